//! AdamW (Loshchilov & Hutter, 2019) on flat buffers, in the order of operations of PyTorch.
//!
//! ```text
//! g  = gradient · gradient_scale
//! w  = w · (1 − lr · weight_decay)
//! m  = β₁·m + (1 − β₁)·g
//! v  = β₂·v + (1 − β₂)·g²
//! w −= lr / (1 − β₁ᵗ) · m / (√v / √(1 − β₂ᵗ) + ε)
//! ```

mod cpu;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

use half::bf16;

use crate::memory::{DeviceSlice, Memory};

/// The numbers of one update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWStep {
    /// Learning rate of this step.
    pub learning_rate: f64,
    /// β₁.
    pub beta1: f64,
    /// β₂.
    pub beta2: f64,
    /// ε.
    pub epsilon: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// t, from 1.
    pub step: u64,
    /// Factor on the gradient: the clipping factor.
    pub gradient_scale: f32,
    /// Chooses the rounding of bf16 parameters; one value for each step and region.
    pub rounding_seed: u64,
}

/// The parameters of a flat buffer, as stored.
#[derive(Clone, Copy, Debug)]
pub enum Parameters {
    /// Four bytes a number.
    F32(DeviceSlice<f32>),
    /// Two bytes a number, rounded stochastically (up with the probability of the remainder), so
    /// that updates smaller than half a unit in the last place still move them on average. The
    /// draw is a hash of the seed and the element's index.
    Bf16(DeviceSlice<bf16>),
}

/// The update.
pub trait AdamW: Memory {
    /// Updates `parameters` and both moments, in place; all of one length.
    fn adamw(
        &mut self,
        step: AdamWStep,
        parameters: Parameters,
        gradient: DeviceSlice<f32>,
        first_moment: DeviceSlice<f32>,
        second_moment: DeviceSlice<f32>,
    );
}
