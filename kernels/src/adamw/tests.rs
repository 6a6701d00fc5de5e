use super::*;
use crate::testing::{
    Random, assert_as_close_as_plain, assert_same_on_any_number_of_threads, fetch, on_every_device,
    place, to_f32, unrounded, widened,
};

const STEP: AdamWStep = AdamWStep {
    learning_rate: 3e-3,
    beta1: 0.9,
    beta2: 0.999,
    epsilon: 1e-8,
    weight_decay: 0.1,
    step: 1,
    gradient_scale: 0.7,
    rounding_seed: 11,
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

/// Parameters and both moments after all steps.
fn run_f32(device: &mut impl AdamW, n: usize) -> [Vec<f32>; 3] {
    let w = place(device, &Random::new(0).normal(n));
    let [m, v] = [(); 2].map(|()| place(device, &vec![0.0; n]));
    for step in steps() {
        let g = place(device, &gradient(n, &step));
        device.adamw(step, Parameters::F32(w), g, m, v);
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
    let [m, v] = [(); 2].map(|()| place(device, &vec![0.0; n]));
    for step in steps() {
        let g = place(device, &gradient(n, &step));
        device.adamw(step, Parameters::Bf16(w), g, m, v);
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
            let [m, v] = [(); 2].map(|()| place(device, &vec![0.0; N]));
            device.adamw(step, Parameters::Bf16(w), g, m, v);
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
        let [m, v] = [(); 2].map(|()| place(device, &vec![0.0; N]));
        device.adamw(step, Parameters::Bf16(w), g, m, v);
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
    let [m, v] = [(); 2].map(|()| place(device, &vec![0.0; values.len()]));
    device.adamw(step, Parameters::Bf16(w), g, m, v);
    assert_eq!(fetch(device, w), values);
}

on_every_device! {
    twenty_steps_match_the_reference,
    rounding_moves_bf16_parameters_by_the_update_on_average,
    draws_differ_between_elements_and_seeds,
    values_bf16_holds_exactly_are_not_rounded,
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    assert_same_on_any_number_of_threads(|device| {
        let [w, m, v] = run_f32(device, 40_001);
        vec![w, m, v, run_bf16(device, 40_001)]
    });
}
