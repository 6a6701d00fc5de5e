//! The squared norm of a gradient, for clipping and for the log.
//!
//! ```text
//! Σ g²      in f64 over fixed chunks of each region, the chunks summed in order
//! ```

mod cpu;
mod cuda;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

use crate::memory::{Floats, Memory};

/// The norm.
pub trait GradientNorm: Memory {
    /// `Σ g²` of all regions, added up in their order. Not finite when any element is not.
    fn squared_norm(&mut self, gradients: &[Floats]) -> f64;
}
