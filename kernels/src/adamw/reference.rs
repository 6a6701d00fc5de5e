//! The update as its formulas read, in PyTorch's order; every result goes through `round`.

use super::AdamWStep;

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
