//! The update as its formulas read, in PyTorch's order; every result goes through `round`.

use super::{AdamWStep, MOMENT_BLOCK};
use crate::blockwise::DynamicCode;

/// One element's parameter and moments.
#[derive(Clone, Copy, Debug, Default)]
pub struct State {
    pub w: f64,
    pub m: f64,
    pub v: f64,
}

/// The state after one step with gradient `g`.
pub fn update(step: &AdamWStep, state: State, g: f64, round: impl Fn(f64) -> f64) -> State {
    let AdamWStep { learning_rate, beta1, beta2, epsilon, weight_decay, .. } = *step;
    let correction1 = 1.0 - beta1.powf(step.step as f64);
    let correction2 = 1.0 - beta2.powf(step.step as f64);
    let g = round(g * f64::from(step.gradient_scale));
    let w = round(state.w * round(1.0 - learning_rate * weight_decay));
    // PyTorch's vector code multiplies and adds with one rounding.
    let m = round(state.m + round(1.0 - beta1) * round(g - state.m));
    let v = round(round(state.v * round(beta2)) + round(round(1.0 - beta2) * g) * g);
    let root = round(round(v.sqrt()) / round(correction2.sqrt()));
    let denominator = round(root + round(epsilon));
    let step_size = round(learning_rate / correction1);
    State { w: round(w - round(round(step_size * m) / denominator)), m, v }
}

/// The numbers that a moment of eight bits stands for, by the format: products in f32.
pub fn expand(code: &DynamicCode, codes: &[u8], absmax: &[f32]) -> Vec<f64> {
    codes
        .chunks(MOMENT_BLOCK)
        .zip(absmax)
        .flat_map(|(codes, absmax)| codes.iter().map(move |&coded| (coded, absmax)))
        .map(|(coded, absmax)| f64::from(code.values()[usize::from(coded)] * absmax))
        .collect()
}

/// Of each number, the absmax of its block and the distance, as a share of that, to the nearest of
/// the code's values.
pub fn nearest(code: &DynamicCode, values: &[f64]) -> Vec<(f64, f64)> {
    let block = |values: &[f64]| {
        let absmax = values.iter().fold(f64::MIN_POSITIVE, |most, x| x.abs().max(most));
        let distance = |x: &f64| {
            let distances =
                code.values().iter().map(|&value| (x / absmax - f64::from(value)).abs());
            (absmax, distances.fold(f64::MAX, f64::min))
        };
        values.iter().map(distance).collect::<Vec<_>>()
    };
    values.chunks(MOMENT_BLOCK).flat_map(block).collect()
}
