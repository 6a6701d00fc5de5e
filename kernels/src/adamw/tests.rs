use half::bf16;

use super::*;
use crate::testing::{
    Random, assert_as_close_as_plain, assert_same_on_any_number_of_threads, fetch, on_every_device,
    place, to_f32, unrounded, widened,
};
use crate::{Compute, Cpu, Cuda, DeviceKind, DeviceProfile, Element, Isa};

const STEP: AdamWStep = AdamWStep {
    learning_rate: 3e-3,
    beta1: 0.9,
    beta2: 0.999,
    epsilon: 1e-8,
    weight_decay: 0.1,
    step: 1,
    gradient_scale: 0.7,
    rounding_seed: 11,
    first_element: 0,
};

/// The steps of a test, numbered from 1.
fn steps() -> impl Iterator<Item = AdamWStep> {
    (1..=20).map(|step| AdamWStep { step, rounding_seed: 1000 + step, ..STEP })
}

fn gradient(n: usize, step: &AdamWStep) -> Vec<f32> {
    let mut gradient = Random::new(step.step).normal(n);
    // Some weights never have a gradient.
    gradient.iter_mut().step_by(7).for_each(|g| *g = 0.0);
    gradient
}

/// Moments of `n` elements before the first step.
fn fresh_f32(device: &mut impl AdamW, n: usize) -> Moments {
    let [first, second] = [(); 2].map(|()| place(device, &vec![0.0; n]));
    Moments::F32 { first, second }
}

/// Parameters and both moments after all steps.
fn run_f32(device: &mut impl AdamW, n: usize) -> [Vec<f32>; 3] {
    let w = place(device, &Random::new(0).normal(n));
    let [m, v] = [(); 2].map(|()| place(device, &vec![0.0; n]));
    for step in steps() {
        let g = place(device, &gradient(n, &step));
        device.adamw(step, Floats::F32(w), g.into(), Moments::F32 { first: m, second: v });
    }
    [w, m, v].map(|slice| fetch(device, slice))
}

fn twenty_steps_match_the_reference(device: &mut impl AdamW) {
    for n in [1, 123, 40_001] {
        let start = Random::new(0).normal(n);
        let follow = |round: fn(f64) -> f64| {
            let mut states: Vec<_> = widened(&start)
                .into_iter()
                .map(|w| reference::State { w, ..Default::default() })
                .collect();
            for step in steps() {
                for (state, g) in states.iter_mut().zip(gradient(n, &step)) {
                    *state = reference::update(&step, *state, f64::from(g), round);
                }
            }
            states
        };
        let (exact, plain) = (follow(unrounded), follow(to_f32));
        let part = |states: &[reference::State], part: fn(&reference::State) -> f64| {
            states.iter().map(part).collect::<Vec<_>>()
        };
        let [w, m, v] = run_f32(device, n);
        for (name, actual, of) in [
            ("w", w, (|s| s.w) as fn(&reference::State) -> f64),
            ("m", m, |s| s.m),
            ("v", v, |s| s.v),
        ] {
            assert_as_close_as_plain(name, &actual, &part(&exact, of), &part(&plain, of));
        }
    }
}

/// Parameters after all steps.
fn run_bf16(device: &mut impl AdamW, n: usize) -> Vec<f32> {
    let start: Vec<_> = Random::new(0).normal(n).into_iter().map(bf16::from_f32).collect();
    let w = place(device, &start);
    let moments = fresh_f32(device, n);
    for step in steps() {
        let g = place(device, &gradient(n, &step));
        device.adamw(step, Floats::Bf16(w), g.into(), moments);
    }
    fetch(device, w).into_iter().map(f32::from).collect()
}

fn rounding_moves_bf16_parameters_by_the_update_on_average(device: &mut impl AdamW) {
    const N: usize = 1 << 16;
    // Far less than the 2⁻⁸ between neighbours of 1 (half that below it).
    for (start, learning_rate) in [(1.0_f32, 2e-4), (-1.0, 2e-4), (1.0, 1e-6), (0.75, 3e-3)] {
        for sign in [1.0, -1.0] {
            let step = AdamWStep { learning_rate, weight_decay: 0.0, ..STEP };
            let w = place(device, &vec![bf16::from_f32(start); N]);
            let g = place(device, &vec![sign; N]);
            let moments = fresh_f32(device, N);
            device.adamw(step, Floats::Bf16(w), g.into(), moments);
            let before = reference::State { w: f64::from(start), ..Default::default() };
            let expected = reference::update(&step, before, f64::from(sign), to_f32).w;
            let rounded = fetch(device, w);
            let mean = rounded.iter().map(|w| w.to_f64()).sum::<f64>() / N as f64;
            // The two neighbours of a value are a unit apart, so a draw deviates by at most half of
            // one; six deviations of the mean happen once in 10⁹ tests. A draw of 16 bits adds half
            // its step.
            let unit = 2.0_f64.powi(-7);
            let limit = 6.0 * (unit / 2.0) / (N as f64).sqrt() + unit / 65_536.0;
            assert!((mean - expected).abs() <= limit, "{start} {sign}: {mean} not {expected}");
            let neighbours = |w: &bf16| (w.to_f64() - expected).abs() < unit;
            assert!(rounded.iter().all(neighbours));
        }
    }
}

fn draws_differ_between_elements_and_seeds(device: &mut impl AdamW) {
    const N: usize = 4096;
    let mut draws = |rounding_seed| {
        // Half-way between two neighbours: each draw is a coin.
        let step = AdamWStep {
            learning_rate: f64::from(2.0_f32.powi(-9)),
            weight_decay: 0.0,
            rounding_seed,
            ..STEP
        };
        let w = place(device, &vec![bf16::from_f32(1.0); N]);
        let g = place(device, &vec![1.0; N]);
        let moments = fresh_f32(device, N);
        device.adamw(step, Floats::Bf16(w), g.into(), moments);
        fetch(device, w).into_iter().map(|w| w == bf16::from_f32(1.0)).collect::<Vec<_>>()
    };
    let [first, again, second] = [5, 5, 6].map(&mut draws);
    assert_eq!(first, again);
    let agreements =
        |a: &[bool], b: &[bool]| a.iter().zip(b).filter(|(a, b)| a == b).count() as f64;
    // Independent coins agree as often as not, to within six deviations.
    let limit = 6.0 * (N as f64).sqrt() / 2.0;
    for agreements in [agreements(&first, &second), agreements(&first[1..], &first)] {
        assert!((agreements - N as f64 / 2.0).abs() <= limit, "{agreements} of {N}");
    }
}

fn values_bf16_holds_exactly_are_not_rounded(device: &mut impl AdamW) {
    let values: Vec<_> = (0..=u16::MAX).map(bf16::from_bits).filter(|w| w.is_finite()).collect();
    let step = AdamWStep { learning_rate: 0.0, ..STEP };
    let w = place(device, &values);
    let g = place(device, &vec![1.0; values.len()]);
    let moments = fresh_f32(device, values.len());
    device.adamw(step, Floats::Bf16(w), g.into(), moments);
    assert_eq!(fetch(device, w), values);
}

/// Both moments of `n` elements in eight bits, before the first step.
fn fresh_blockwise(device: &mut impl AdamW, n: usize) -> [QuantizedMoment; 2] {
    [(); 2].map(|()| QuantizedMoment {
        codes: place(device, &vec![0; n]),
        absmax: place(device, &vec![0.0; n_moment_blocks(n)]),
    })
}

fn blockwise([first, second]: [QuantizedMoment; 2]) -> Moments {
    Moments::Blockwise8 { first, second }
}

/// Parts of a block, whole blocks, a task and more.
const BLOCKWISE_LENGTHS: [usize; 6] = [1, 255, 256, 257, 1000, (1 << 14) + 300];

/// Gradients of every kind: zeros, outliers in some blocks, tiny and huge blocks.
fn uneven_gradient(n: usize, step: &AdamWStep) -> Vec<f32> {
    let mut gradient = gradient(n, step);
    gradient.iter_mut().skip(3).step_by(389).for_each(|g| *g *= 1e4);
    for (block, gradient) in gradient.chunks_mut(MOMENT_BLOCK).enumerate() {
        let factor = [1.0, 0.0, 1e-12, 1e12, -1e-3][block % 5];
        gradient.iter_mut().for_each(|g| *g *= factor);
    }
    gradient
}

fn blockwise_steps_quantise_the_reference_to_the_nearest_code(device: &mut impl AdamW) {
    const ROUNDING: f64 = f32::EPSILON as f64 / 2.0;
    let codes = [first_moment_code(), second_moment_code()];
    for n in BLOCKWISE_LENGTHS {
        let w = place(device, &Random::new(0).normal(n));
        let moments = fresh_blockwise(device, n);
        let expand = |device: &_, which: usize| {
            let QuantizedMoment { codes: coded, absmax } = moments[which];
            reference::expand(codes[which], &fetch(device, coded), &fetch(device, absmax))
        };
        for step in steps().take(4) {
            // Each step from the state that the device has, so that roundings do not add up.
            let before = fetch(device, w);
            let [old_m, old_v] = [0, 1].map(|which| expand(device, which));
            let gradient = uneven_gradient(n, &step);
            let g = place(device, &gradient);
            device.adamw(step, Floats::F32(w), g.into(), blockwise(moments));

            let update = |round: fn(f64) -> f64| {
                let state = |i: usize| reference::State {
                    w: f64::from(before[i]),
                    m: old_m[i],
                    v: old_v[i],
                };
                let update = |i| reference::update(&step, state(i), f64::from(gradient[i]), round);
                (0..n).map(update).collect::<Vec<_>>()
            };
            let (exact, plain) = (update(unrounded), update(to_f32));
            let part = |states: &[reference::State], part: fn(&reference::State) -> f64| {
                states.iter().map(part).collect::<Vec<_>>()
            };
            let (exact_w, plain_w) = (part(&exact, |s| s.w), part(&plain, |s| s.w));
            assert_as_close_as_plain("w", &fetch(device, w), &exact_w, &plain_w);

            for (which, of) in
                [(|s| s.m) as fn(&reference::State) -> f64, |s| s.v].iter().enumerate()
            {
                let values = part(&exact, *of);
                let new = expand(device, which);
                let nearest = reference::nearest(codes[which], &values);
                for (i, (absmax, distance)) in nearest.into_iter().enumerate() {
                    // In f32 a moment is within six roundings of numbers up to the old moment and
                    // the gradient of its block; so is the absmax, by which it is divided. Then
                    // the code is the nearest but for that, the reciprocal's rounding, the
                    // product's and the border's; expanding rounds once more.
                    let block = i / MOMENT_BLOCK * MOMENT_BLOCK;
                    let block = block..(block + MOMENT_BLOCK).min(n);
                    let terms = |i: usize| {
                        let g = f64::from(gradient[i]) * f64::from(step.gradient_scale);
                        if which == 0 { old_m[i].abs() + g.abs() } else { values[i] }
                    };
                    let largest = block.map(terms).fold(0.0, f64::max);
                    let margin = 2.0 * 6.0 * ROUNDING * largest / absmax + 4.0 * ROUNDING;
                    let off = (new[i] - values[i]).abs() / absmax;
                    assert!(
                        off <= distance + 2.0 * margin,
                        "{n}, step {}, moment {which}: {} instead of {} at {i}",
                        step.step,
                        new[i],
                        values[i]
                    );
                    // The bound that needs no search: half the widest gap of the code.
                    assert!(off <= half_of_the_widest_gap(codes[which]) + 2.0 * margin);
                }
            }
        }
    }
}

fn half_of_the_widest_gap(code: &DynamicCode) -> f64 {
    let gaps = code.values().windows(2).map(|pair| f64::from(pair[1]) - f64::from(pair[0]));
    // And below the lowest value, where the code ends before −1.
    let end = if code.zero() == 0 { 0.0 } else { 2.0 * (1.0 + f64::from(code.values()[0])) };
    gaps.fold(end, f64::max) / 2.0
}

/// Everything an update writes, as bytes, after all steps; each done in parts that begin where
/// `cuts` says.
fn run_in_parts(
    device: &mut impl AdamW,
    n: usize,
    is_bf16: bool,
    is_blockwise: bool,
    cuts: &[usize],
) -> Vec<Vec<u8>> {
    let start = Random::new(0).normal(n);
    let rounded: Vec<_> = start.iter().map(|&w| bf16::from_f32(w)).collect();
    let (w, w_bf16) = (place(device, &start), place(device, &rounded));
    let moments = fresh_blockwise(device, n);
    let [m, v] = [(); 2].map(|()| place(device, &vec![0.0; n]));
    for step in steps().take(5) {
        let g = place(device, &uneven_gradient(n, &step));
        // From the last to the first, as the order does not matter.
        for (part, &first) in cuts.iter().enumerate().rev() {
            let end = cuts.get(part + 1).copied().unwrap_or(n);
            let range = first..end;
            let parameters = if is_bf16 {
                Floats::Bf16(w_bf16.slice(range.clone()))
            } else {
                Floats::F32(w.slice(range.clone()))
            };
            let moments = if is_blockwise {
                blockwise(moments.map(|moment| QuantizedMoment {
                    codes: moment.codes.slice(range.clone()),
                    absmax: moment.absmax.slice(first / MOMENT_BLOCK..n_moment_blocks(end)),
                }))
            } else {
                Moments::F32 { first: m.slice(range.clone()), second: v.slice(range.clone()) }
            };
            let step = AdamWStep { first_element: first, ..step };
            device.adamw(step, parameters, g.slice(range).into(), moments);
        }
    }
    let [first, second] = moments;
    let mut written = vec![fetch(device, w.cast()), fetch(device, w_bf16.cast())];
    written.extend([m, v].map(|moment| fetch(device, moment.cast())));
    written.extend([first, second].map(|moment| fetch(device, moment.codes)));
    written.extend([first, second].map(|moment| fetch(device, moment.absmax.cast())));
    written
}

fn parts_give_the_bits_of_the_whole(device: &mut impl AdamW) {
    const N: usize = 40_001;
    for is_bf16 in [false, true] {
        let whole = run_in_parts(device, N, is_bf16, false, &[0]);
        let parts = run_in_parts(device, N, is_bf16, false, &[0, 1, 300, 16_385, 40_000]);
        assert!(whole == parts, "f32 moments, bf16 parameters: {is_bf16}");
        let whole = run_in_parts(device, N, is_bf16, true, &[0]);
        let parts = run_in_parts(device, N, is_bf16, true, &[0, 256, 768, 16_640, 39_936]);
        assert!(whole == parts, "eight-bit moments, bf16 parameters: {is_bf16}");
    }
}

/// A gradient in bf16 counts as the f32 that it stands for, with parameters and moments of either form.
fn a_bf16_gradient_is_read_as_the_number_that_it_is(device: &mut impl AdamW) {
    const N: usize = 5_003;
    let start = Random::new(0).normal(N);
    let narrow: Vec<_> = start.iter().map(|&w| bf16::from_f32(w)).collect();
    for (is_bf16, is_blockwise) in [(false, false), (true, false), (false, true), (true, true)] {
        let mut run = |gradient_is_bf16: bool| {
            let (w, w_bf16) = (place(device, &start), place(device, &narrow));
            let quantized = fresh_blockwise(device, N);
            let [m, v] = [(); 2].map(|()| place(device, &vec![0.0; N]));
            for step in steps().take(3) {
                let gradient = uneven_gradient(N, &step);
                let rounded: Vec<_> = gradient.iter().map(|&g| bf16::from_f32(g)).collect();
                let gradient = if gradient_is_bf16 {
                    Floats::Bf16(place(device, &rounded))
                } else {
                    let values: Vec<_> = rounded.into_iter().map(f32::from).collect();
                    Floats::F32(place(device, &values))
                };
                let parameters = if is_bf16 { Floats::Bf16(w_bf16) } else { Floats::F32(w) };
                let moments = if is_blockwise {
                    blockwise(quantized)
                } else {
                    Moments::F32 { first: m, second: v }
                };
                device.adamw(step, parameters, gradient, moments);
            }
            let mut written: Vec<Vec<u8>> =
                vec![fetch(device, w.cast()), fetch(device, w_bf16.cast())];
            written.extend([m, v].map(|moment| fetch(device, moment.cast())));
            written.extend(quantized.map(|moment| fetch(device, moment.codes)));
            written.extend(quantized.map(|moment| fetch(device, moment.absmax.cast())));
            written
        };
        assert!(run(true) == run(false), "bf16 parameters: {is_bf16}, 8 bits: {is_blockwise}");
    }
}

/// What an update writes, as bytes, with every buffer `offset` elements behind an aligned place.
fn run_behind(
    device: &mut impl AdamW,
    n: usize,
    is_bf16: bool,
    is_blockwise: bool,
    offset: usize,
) -> Vec<Vec<u8>> {
    fn behind<T: Element>(device: &mut impl AdamW, values: &[T], offset: usize) -> DeviceSlice<T> {
        let mut padded = vec![T::zeroed(); offset];
        padded.extend(values);
        place(device, &padded).slice(offset..padded.len())
    }
    let start = Random::new(0).normal(n);
    let rounded: Vec<_> = start.iter().map(|&w| bf16::from_f32(w)).collect();
    let (w, w_bf16) = (behind(device, &start, offset), behind(device, &rounded, offset));
    let [m, v] = [(); 2].map(|()| behind(device, &vec![0.0; n], offset));
    let quantized = [(); 2].map(|()| QuantizedMoment {
        codes: behind(device, &vec![0; n], offset),
        absmax: behind(device, &vec![0.0; n_moment_blocks(n)], offset),
    });
    for step in steps().take(3) {
        let g = behind(device, &uneven_gradient(n, &step), offset);
        let parameters = if is_bf16 { Floats::Bf16(w_bf16) } else { Floats::F32(w) };
        let moments =
            if is_blockwise { blockwise(quantized) } else { Moments::F32 { first: m, second: v } };
        device.adamw(step, parameters, g.into(), moments);
    }
    let mut written = vec![fetch(device, w.cast()), fetch(device, w_bf16.cast())];
    written.extend([m, v].map(|moment| fetch(device, moment.cast())));
    written.extend(quantized.map(|moment| fetch(device, moment.codes)));
    written.extend(quantized.map(|moment| fetch(device, moment.absmax.cast())));
    written
}

/// Which parameters are in bf16, and which moments in eight bits.
const FORMS: [(bool, bool); 4] = [(false, false), (false, true), (true, false), (true, true)];

fn a_buffer_may_lie_anywhere(device: &mut impl AdamW) {
    for (is_bf16, is_blockwise) in FORMS {
        let [aligned, not] =
            [0, 1].map(|offset| run_behind(device, 700, is_bf16, is_blockwise, offset));
        assert!(aligned == not, "bf16: {is_bf16}, eight bits: {is_blockwise}");
    }
}

#[test]
fn a_card_gives_the_bits_of_every_processor() {
    let mut cuda = Cuda::simulated(Compute::F32).unwrap();
    for (is_bf16, is_blockwise) in FORMS {
        let on_cuda = run_behind(&mut cuda, 2_000, is_bf16, is_blockwise, 0);
        for isa in Isa::available() {
            let kind = DeviceKind::Cpu { isa, n_threads: 2 };
            let mut cpu = Cpu::new(DeviceProfile { kind, compute: Compute::F32 }).unwrap();
            let on_cpu = run_behind(&mut cpu, 2_000, is_bf16, is_blockwise, 0);
            assert!(on_cpu == on_cuda, "{isa}, bf16: {is_bf16}, eight bits: {is_blockwise}");
        }
    }
}

/// Without a gradient a moment fades away, and does not come to rest among the subnormal numbers.
fn moments_are_never_subnormal(device: &mut impl AdamW) {
    const LEAST: f32 = f32::MIN_POSITIVE;
    const N: usize = 300;
    let faded = |values: [f32; 4]| (0..N).map(|i| values[i % 4]).collect::<Vec<_>>();
    let w = place(device, &vec![1.0; N]);
    let m = place(device, &faded([1.2 * LEAST, -1.2 * LEAST, 1.05 * LEAST, -1.05 * LEAST]));
    let v = place(device, &faded([LEAST, 1.01 * LEAST, 0.0, 1.0]));
    let g = place(device, &vec![0.0; N]);
    device.adamw(STEP, Floats::F32(w), g.into(), Moments::F32 { first: m, second: v });
    let (m, v) = (fetch(device, m), fetch(device, v));
    let one_minus_beta1 = (1.0 - STEP.beta1) as f32;
    let m_kept = one_minus_beta1.mul_add(-1.2 * LEAST, 1.2 * LEAST);
    assert_eq!(m, faded([m_kept, -m_kept, 0.0, 0.0]));
    let beta2 = STEP.beta2 as f32;
    assert_eq!(v, faded([0.0, 1.01 * LEAST * beta2, 0.0, beta2]));
}

fn no_elements_are_updated(device: &mut impl AdamW) {
    for (is_bf16, is_blockwise) in FORMS {
        let written = run_behind(device, 0, is_bf16, is_blockwise, 0);
        assert!(written.iter().all(Vec::is_empty));
    }
}

fn a_block_that_would_not_be_finite_is_left_as_it_was(device: &mut impl AdamW) {
    const N: usize = 1000;
    // The last: finite, but its square is not.
    for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e25] {
        // In a whole block and in the short one.
        for at in [300, 999] {
            let mut run = |wrong: Option<f32>| {
                let w = place(device, &Random::new(0).normal(N));
                let moments = fresh_blockwise(device, N);
                let state = |device: &_| {
                    let [m, v] = moments.map(|moment| fetch(device, moment.codes));
                    let [m_absmax, v_absmax] = moments.map(|moment| fetch(device, moment.absmax));
                    (fetch(device, w), m, v, m_absmax, v_absmax)
                };
                let mut before = state(device);
                for step in steps().take(2) {
                    before = state(device);
                    let mut gradient = gradient(N, &step);
                    if let Some(wrong) = wrong.filter(|_| step.step == 2) {
                        gradient[at] = wrong;
                    }
                    let g = place(device, &gradient);
                    device.adamw(step, Floats::F32(w), g.into(), blockwise(moments));
                }
                (before, state(device))
            };
            let (_, right) = run(None);
            let (before, left) = run(Some(wrong));
            let block = at / MOMENT_BLOCK;
            for i in 0..N {
                let of = if i / MOMENT_BLOCK == block { &before } else { &right };
                assert_eq!((left.0[i], left.1[i], left.2[i]), (of.0[i], of.1[i], of.2[i]), "{i}");
            }
            for i in 0..n_moment_blocks(N) {
                let of = if i == block { &before } else { &right };
                assert_eq!((left.3[i], left.4[i]), (of.3[i], of.4[i]), "block {i}");
            }
        }
    }
}

fn a_wrong_gradient_stays_in_its_element_with_f32_moments(device: &mut impl AdamW) {
    const N: usize = 100;
    let mut run = |wrong: Option<f32>| {
        let w = place(device, &Random::new(0).normal(N));
        let moments = fresh_f32(device, N);
        let mut gradient = gradient(N, &STEP);
        gradient[37] = wrong.unwrap_or(gradient[37]);
        let g = place(device, &gradient);
        device.adamw(STEP, Floats::F32(w), g.into(), moments);
        fetch(device, w)
    };
    let (right, wrong) = (run(None), run(Some(f32::NAN)));
    for i in 0..N {
        assert!(if i == 37 { wrong[i].is_nan() } else { wrong[i] == right[i] }, "{i}");
    }
}

fn zero_bytes_are_moments_of_zero(device: &mut impl AdamW) {
    const N: usize = 1000;
    let mut run = |codes: [u8; 2]| {
        let w = place(device, &Random::new(0).normal(N));
        let moments = fresh_blockwise(device, N);
        for (moment, code) in moments.iter().zip(codes) {
            device.upload(&vec![code; N], moment.codes);
        }
        // First without a gradient, then with one.
        let mut results = Vec::new();
        for step in steps().take(2) {
            let gradient = if step.step == 1 { vec![0.0; N] } else { gradient(N, &step) };
            let g = place(device, &gradient);
            device.adamw(step, Floats::F32(w), g.into(), blockwise(moments));
            results.extend(fetch(device, w.cast::<u8>()));
            for moment in moments {
                results.extend(fetch(device, moment.codes));
                results.extend(fetch(device, moment.absmax.cast::<u8>()));
            }
        }
        results
    };
    let zeros = [first_moment_code().zero(), second_moment_code().zero()];
    assert!(run([0, 0]) == run(zeros));
    // Without a gradient, nothing but decay happens.
    let start = Random::new(0).normal(N);
    let w = place(device, &start);
    let moments = fresh_blockwise(device, N);
    let g = place(device, &[0.0; N]);
    device.adamw(STEP, Floats::F32(w), g.into(), blockwise(moments));
    let decay = (1.0 - STEP.learning_rate * STEP.weight_decay) as f32;
    assert_eq!(fetch(device, w), start.iter().map(|w| w * decay).collect::<Vec<_>>());
    for (moment, code) in moments.iter().zip([first_moment_code(), second_moment_code()]) {
        let values =
            reference::expand(code, &fetch(device, moment.codes), &fetch(device, moment.absmax));
        assert_eq!(values, [0.0; N]);
    }
}

on_every_device! {
    twenty_steps_match_the_reference,
    blockwise_steps_quantise_the_reference_to_the_nearest_code,
    parts_give_the_bits_of_the_whole,
    a_bf16_gradient_is_read_as_the_number_that_it_is,
    a_buffer_may_lie_anywhere,
    no_elements_are_updated,
    a_block_that_would_not_be_finite_is_left_as_it_was,
    a_wrong_gradient_stays_in_its_element_with_f32_moments,
    zero_bytes_are_moments_of_zero,
    moments_are_never_subnormal,
    rounding_moves_bf16_parameters_by_the_update_on_average,
    draws_differ_between_elements_and_seeds,
    values_bf16_holds_exactly_are_not_rounded,
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    assert_same_on_any_number_of_threads(|device| {
        let [w, m, v] = run_f32(device, 40_001);
        let mut results = vec![w, m, v, run_bf16(device, 40_001)];
        for is_bf16 in [false, true] {
            let written = run_in_parts(device, 40_001, is_bf16, true, &[0]);
            results.extend(
                written.into_iter().map(|bytes| bytes.into_iter().map(f32::from).collect()),
            );
        }
        results
    });
}

#[test]
#[should_panic(expected = "not the first element of a block")]
fn a_part_may_not_begin_within_a_block() {
    let mut device = Cpu::new(DeviceProfile::native_cpu()).unwrap();
    let [w, g] = [(); 2].map(|()| place(&mut device, &[0.0; 10]));
    let moments = blockwise(fresh_blockwise(&mut device, 10));
    let step = AdamWStep { first_element: 128, ..STEP };
    device.adamw(step, Floats::F32(w), g.into(), moments);
}

#[test]
fn a_moment_has_an_absmax_for_every_block_begun() {
    let counts = [0, 1, 256, 257, 512].map(n_moment_blocks);
    assert_eq!(counts, [0, 1, 1, 2, 2]);
}
