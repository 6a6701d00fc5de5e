//! The squared norm of a gradient, for clipping and for the log.
//!
//! ```text
//! Σ g²      in f64 over fixed chunks, the chunks summed in order
//! ```

mod cpu;
mod cuda;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

use crate::memory::{DeviceSlice, Memory};

/// The norm.
pub trait GradientNorm: Memory {
    /// `Σ g²` of one region. Not finite when any element is not.
    fn squared_norm(&mut self, gradient: DeviceSlice<f32>) -> f64;
}
