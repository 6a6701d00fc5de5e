//! AdamW (Loshchilov & Hutter, 2019) on flat buffers, in the order of operations of PyTorch.
//!
//! ```text
//! g  = gradient · gradient_scale
//! w  = w · (1 − lr · weight_decay)
//! m  = β₁·m + (1 − β₁)·g
//! v  = β₂·v + (1 − β₂)·g²
//! w −= lr / (1 − β₁ᵗ) · m / (√v / √(1 − β₂ᵗ) + ε)
//! ```
//!
//! The moments are kept in f32, or in eight bits ([`blockwise`](crate::blockwise); Dettmers et al.,
//! "8-bit optimizers via block-wise quantization", 2022): m in the signed code, v in the unsigned.
//! Then each step expands a block of 256, computes the above in f32, and quantises m and v anew by
//! their new absmax, to the nearest code; w takes m and v as they were before that. So does
//! bitsandbytes on the processor; its CUDA kernels differ in that a code of m may not change sign.
//!
//! A moment in f32 that would be subnormal, below 2⁻¹²⁶, becomes zero.
//!
//! **A fresh state is all zero bytes**, in either form: an absmax of 0 makes every code mean 0.
//!
//! **Parameters in bf16** are rounded stochastically (up with the probability of the remainder), so that
//! updates smaller than half a unit in the last place still move them on average. Four neighbours share a hash
//! of the seed and their place in the region, 16 bits each. A gradient in bf16 is read as the number that it is.
//!
//! A buffer may be updated in parts, in any order, with the bits of the whole:
//! [`AdamWStep::first_element`] says which part.

mod cpu;
mod cuda;
mod factors;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

use crate::{
    blockwise::{self, DynamicCode},
    memory::{DeviceSlice, Floats, Memory},
};

/// Elements that share one absmax of an eight-bit moment.
pub const MOMENT_BLOCK: usize = blockwise::BLOCK;

/// Blocks, and so absmax values, of an eight-bit moment of `n_elements`.
pub const fn n_moment_blocks(n_elements: usize) -> usize {
    n_elements.div_ceil(MOMENT_BLOCK)
}

/// The code of the first moment.
pub fn first_moment_code() -> &'static DynamicCode {
    DynamicCode::signed()
}

/// The code of the second moment.
pub fn second_moment_code() -> &'static DynamicCode {
    DynamicCode::unsigned()
}

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
    /// Chooses the rounding of bf16 parameters, and nothing else; one value for each step and region.
    pub rounding_seed: u64,
    /// Where in its region the first of the given elements stands. With eight-bit moments, a
    /// multiple of [`MOMENT_BLOCK`].
    pub first_element: usize,
}

/// One moment in eight bits.
#[derive(Clone, Copy, Debug)]
pub struct QuantizedMoment {
    /// A code for each element.
    pub codes: DeviceSlice<u8>,
    /// The largest magnitude of each block, [`n_moment_blocks`].
    pub absmax: DeviceSlice<f32>,
}

/// Both moments of a flat buffer, as stored; fresh ones are all zero bytes.
#[derive(Clone, Copy, Debug)]
pub enum Moments {
    /// Eight bytes an element for both.
    F32 {
        /// m.
        first: DeviceSlice<f32>,
        /// v.
        second: DeviceSlice<f32>,
    },
    /// Two bytes and 1/32 an element for both.
    Blockwise8 {
        /// m.
        first: QuantizedMoment,
        /// v.
        second: QuantizedMoment,
    },
}

/// The update.
pub trait AdamW: Memory {
    /// Updates `parameters` and both moments, in place; all as long as `gradient`.
    ///
    /// A gradient that is not finite makes its own element so. With eight-bit moments it would undo
    /// the whole block, which has one absmax: there a block whose new m or v is not finite
    /// everywhere is left as it was, parameters and moments.
    fn adamw(&mut self, step: AdamWStep, parameters: Floats, gradient: Floats, moments: Moments);
}
