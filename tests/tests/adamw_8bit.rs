//! AdamW with eight-bit moments against bitsandbytes' own optimizer: every step from the state that
//! it had before it, as `tests/reference/adamw_8bit.py` kept them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};

use nibble_kernels::{
    Cpu, DeviceSlice, Element, Memory,
    adamw::{
        AdamW, AdamWStep, MOMENT_BLOCK, Moments, QuantizedMoment, first_moment_code,
        n_moment_blocks, second_moment_code,
    },
    blockwise::DynamicCode,
};
use nibble_tests::{f32_profile, golden, golden_tensors};

/// Half a unit in the last place of 1: one rounding, relative.
const ROUNDING: f64 = f32::EPSILON as f64 / 2.0;
/// The least distance between two numbers in f32: roundings near zero, absolute.
const LEAST: f64 = 1.401_298_464_324_817e-45;
/// An absmax below this counts as this in divisions.
const LEAST_ABSMAX: f64 = 1e-38_f32 as f64;

type Tensors = BTreeMap<String, Vec<f64>>;

#[derive(Clone)]
struct Moment {
    codes: Vec<u8>,
    absmax: Vec<f32>,
}

#[derive(Clone)]
struct State {
    parameters: Vec<f32>,
    first: Moment,
    second: Moment,
}

impl State {
    /// As the file has it; zero bytes where it has no moments.
    fn read(golden: &Tensors, case: &str, step: u64) -> Self {
        let parameters = narrowed(&golden[&format!("{case}.{step}.parameters")]);
        let n = parameters.len();
        let moment = |which: &str| Moment {
            codes: golden
                .get(&format!("{case}.{step}.{which}_codes"))
                .map_or(vec![0; n], |codes| codes.iter().map(|&code| code as u8).collect()),
            absmax: golden
                .get(&format!("{case}.{step}.{which}_absmax"))
                .map_or(vec![0.0; n_moment_blocks(n)], |absmax| narrowed(absmax)),
        };
        Self { first: moment("first"), second: moment("second"), parameters }
    }

    /// After one step on the processor.
    fn updated(&self, step: AdamWStep, gradient: &[f32]) -> Self {
        let mut device = Cpu::new(f32_profile(2)).unwrap();
        let parameters = place(&mut device, &self.parameters);
        let gradient = place(&mut device, gradient);
        let [first, second] = [&self.first, &self.second].map(|moment| QuantizedMoment {
            codes: place(&mut device, &moment.codes),
            absmax: place(&mut device, &moment.absmax),
        });
        let moments = Moments::Blockwise8 { first, second };
        device.adamw(step, parameters.into(), gradient.into(), moments);
        let [first, second] = [first, second].map(|moment| Moment {
            codes: fetch(&device, moment.codes),
            absmax: fetch(&device, moment.absmax),
        });
        Self { parameters: fetch(&device, parameters), first, second }
    }
}

fn narrowed(values: &[f64]) -> Vec<f32> {
    values.iter().map(|&value| value as f32).collect()
}

fn place<T: Element>(device: &mut Cpu, values: &[T]) -> DeviceSlice<T> {
    let slice = DeviceSlice::new(device.allocate(size_of_val(values)).unwrap(), 0, values.len());
    device.upload(values, slice);
    slice
}

fn fetch<T: Element>(device: &Cpu, slice: DeviceSlice<T>) -> Vec<T> {
    let mut values = vec![T::zeroed(); slice.len()];
    device.download(slice, &mut values);
    values
}

/// The numbers a moment stands for: a product in f32, by the format.
fn expand(code: &DynamicCode, moment: &Moment) -> Vec<f64> {
    let value = |(i, &coded): (usize, &u8)| {
        f64::from(code.values()[usize::from(coded)] * moment.absmax[i / MOMENT_BLOCK])
    };
    moment.codes.iter().enumerate().map(value).collect()
}

/// A moment after the step, exactly, and how far an f32 version may be from it.
struct Exact {
    value: f64,
    error: f64,
}

/// Asserts that both moments are the exact one in eight bits, but for roundings. Returns how many
/// codes differ.
fn compare(
    what: &str,
    code: &DynamicCode,
    ours: &Moment,
    theirs: &Moment,
    exact: &[Exact],
) -> usize {
    let mut n_differing = 0;
    for (block, exact) in exact.chunks(MOMENT_BLOCK).enumerate() {
        let error = exact.iter().fold(0.0_f64, |most, e| most.max(e.error));
        let absmax = exact.iter().fold(0.0_f64, |most, e| most.max(e.value.abs()));
        let (a, b) = (f64::from(ours.absmax[block]), f64::from(theirs.absmax[block]));
        assert!((a - b).abs() <= 2.0 * error, "{what}: absmax {block} is {a:e}, theirs {b:e}");
        let divisor = absmax.max(LEAST_ABSMAX);
        for (i, exact) in exact.iter().enumerate() {
            let i = block * MOMENT_BLOCK + i;
            let share = exact.value / divisor;
            let distance = |coded: u8| (share - f64::from(code.values()[usize::from(coded)])).abs();
            // The number's own error, the absmax's, and four roundings at most: of the reciprocal,
            // of the product, and of the border between two codes.
            let margin = (exact.error + share.abs() * error) / divisor + 4.0 * ROUNDING;
            let (a, b) = (ours.codes[i], theirs.codes[i]);
            let least = (0..=255).map(distance).fold(f64::MAX, f64::min);
            for coded in [a, b] {
                // Moved over a border by the margin, one distance grows by it and the other shrinks.
                let limit = least + 2.0 * margin;
                assert!(distance(coded) <= limit, "{what}: {share:e} at {i} is {a}, theirs {b}");
            }
            n_differing += usize::from(a != b);
        }
    }
    n_differing
}

/// The largest difference, as a share of the largest number.
fn relative_error(actual: &[f32], exact: &[f64]) -> f64 {
    let scale = exact.iter().fold(f64::MIN_POSITIVE, |scale, e| scale.max(e.abs()));
    actual.iter().zip(exact).fold(0.0, |worst, (&a, &e)| {
        let error = (f64::from(a) - e).abs() / scale;
        assert!(error.is_finite());
        error.max(worst)
    })
}

#[test]
fn codes_are_those_of_bitsandbytes_bit_for_bit() {
    let golden = golden_tensors(&golden().join("adamw_8bit.safetensors"));
    for (name, code) in [("first_code", first_moment_code()), ("second_code", second_moment_code())]
    {
        let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(code.values()), bits(&narrowed(&golden[name])), "{name}");
    }
}

#[test]
fn every_step_is_that_of_bitsandbytes() {
    let golden = golden_tensors(&golden().join("adamw_8bit.safetensors"));
    let [learning_rate, beta1, beta2, epsilon, weight_decay] =
        golden["settings"][..].try_into().unwrap();
    let steps: BTreeSet<(&str, u64)> = golden
        .keys()
        .filter_map(|name| name.strip_suffix(".gradient")?.split_once('.'))
        .map(|(case, step)| (case, step.parse().unwrap()))
        .collect();
    assert!(steps.len() >= 9 * 4);
    let (mut n_codes, mut n_differing) = (0, 0);
    for (case, t) in steps {
        let what = format!("{case}, step {t}");
        let before = State::read(&golden, case, t - 1);
        let theirs = State::read(&golden, case, t);
        let gradient = narrowed(&golden[&format!("{case}.{t}.gradient")]);
        let step = AdamWStep {
            learning_rate,
            beta1,
            beta2,
            epsilon,
            weight_decay,
            step: t,
            gradient_scale: 1.0,
            rounding_seed: 0,
            first_element: 0,
        };
        let ours = before.updated(step, &gradient);

        // Both sides take three roundings on the way to a first moment, of numbers no larger than
        // the old one and the gradient together; four to a second, in which all is positive.
        let old = expand(first_moment_code(), &before.first).into_iter().zip(&gradient);
        let first: Vec<_> = old
            .map(|(old, &g)| (old, f64::from(g)))
            .map(|(old, g)| Exact {
                value: old + (1.0 - beta1) * (g - old),
                error: 3.0 * ROUNDING * (old.abs() + g.abs()) + LEAST,
            })
            .collect();
        let old = expand(second_moment_code(), &before.second).into_iter().zip(&gradient);
        let second: Vec<_> = old
            .map(|(old, &g)| old * beta2 + (1.0 - beta2) * f64::from(g).powi(2))
            .map(|value| Exact { value, error: 4.0 * ROUNDING * value + LEAST })
            .collect();
        n_codes += 2 * gradient.len();
        for (name, code, a, b, exact) in [
            ("first", first_moment_code(), &ours.first, &theirs.first, &first),
            ("second", second_moment_code(), &ours.second, &theirs.second, &second),
        ] {
            n_differing += compare(&format!("{what}, {name}"), code, a, b, exact);
        }

        let corrections = [beta1, beta2].map(|beta| 1.0 - beta.powf(t as f64));
        let exact: Vec<_> = (0..gradient.len())
            .map(|i| {
                let w = f64::from(before.parameters[i]) * (1.0 - learning_rate * weight_decay);
                let denominator = (second[i].value / corrections[1]).sqrt() + epsilon;
                w - learning_rate / corrections[0] * first[i].value / denominator
            })
            .collect();
        let limit = 2.0 * relative_error(&theirs.parameters, &exact) + f64::from(f32::EPSILON);
        let error = relative_error(&ours.parameters, &exact);
        assert!(error <= limit, "{what}: parameters {error:e} off, beyond {limit:e}");
    }
    eprintln!("{n_differing} of {n_codes} codes differ, all by rounding at a border");
}
