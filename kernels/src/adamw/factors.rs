//! What every device computes a step's numbers by.

use super::AdamWStep;

/// The numbers of a step, each rounded once, and the seed of its draws.
#[derive(Clone, Copy)]
pub(super) struct Factors {
    pub gradient_scale: f32,
    pub decay: f32,
    pub one_minus_beta1: f32,
    pub beta2: f32,
    pub one_minus_beta2: f32,
    pub step_size: f32,
    pub correction2_root: f32,
    pub epsilon: f32,
    pub rounding_seed: u64,
}

impl Factors {
    /// Those of `step`.
    pub fn new(step: &AdamWStep) -> Self {
        let t = step.step as f64;
        let correction1 = 1.0 - step.beta1.powf(t);
        let correction2 = 1.0 - step.beta2.powf(t);
        Self {
            gradient_scale: step.gradient_scale,
            decay: (1.0 - step.learning_rate * step.weight_decay) as f32,
            one_minus_beta1: (1.0 - step.beta1) as f32,
            beta2: step.beta2 as f32,
            one_minus_beta2: (1.0 - step.beta2) as f32,
            step_size: (step.learning_rate / correction1) as f32,
            correction2_root: correction2.sqrt() as f32,
            epsilon: step.epsilon as f32,
            rounding_seed: step.rounding_seed,
        }
    }
}
