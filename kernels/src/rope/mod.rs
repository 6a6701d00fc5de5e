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

mod cpu;
mod cuda;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

use crate::memory::{DeviceSlice, Floats, Memory};

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
    /// Turns every head of `x` `[T, n_heads, head_size]`, in place, in bf16 rounded.
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
        x: Floats,
    );
}

/// The frequencies of a head's pairs `[head_size / 2]`, and the factor on cosines and sines.
/// In f32, as the models are defined; the ends of the ramps in f64.
pub fn frequencies(scaling: RopeScaling, base: f64, head_size: usize) -> (Vec<f32>, f32) {
    let half = head_size / 2;
    // The power in f64, then rounded: the nearest f32 on every system, where f32 powers differ.
    let plain = |i: usize| {
        let exponent = (2 * i) as f32 / head_size as f32;
        1.0 / f64::from(base as f32).powf(f64::from(exponent)) as f32
    };
    match scaling {
        RopeScaling::None => ((0..half).map(plain).collect(), 1.0),
        RopeScaling::Linear { factor } => {
            ((0..half).map(|i| plain(i) / factor as f32).collect(), 1.0)
        }
        RopeScaling::Llama3 {
            factor,
            low_frequency_factor,
            high_frequency_factor,
            original_context,
        } => {
            let context = original_context as f32;
            let (low, high) = (low_frequency_factor as f32, high_frequency_factor as f32);
            let stretched = |i: usize| {
                let frequency = plain(i);
                let wave = std::f32::consts::TAU / frequency;
                if wave > context / low {
                    frequency / factor as f32
                } else if wave < context / high {
                    frequency
                } else {
                    let kept = (context / wave - low) / (high - low);
                    (1.0 - kept) * frequency / factor as f32 + kept * frequency
                }
            };
            ((0..half).map(stretched).collect(), 1.0)
        }
        RopeScaling::Yarn {
            factor,
            beta_fast,
            beta_slow,
            original_context,
            attention_factor,
            truncate,
        } => {
            // The pair that turns `rotations` times over the old context.
            let pair = |rotations: f64| {
                let waves = original_context as f64 / (rotations * std::f64::consts::TAU);
                head_size as f64 * waves.ln() / (2.0 * base.ln())
            };
            let (mut first, mut last) = (pair(beta_fast), pair(beta_slow));
            if truncate {
                (first, last) = (first.floor(), last.ceil());
            }
            let (first, mut last) = (first.max(0.0), last.min(head_size as f64 - 1.0));
            if first == last {
                // A ramp needs a width.
                last += 0.001;
            }
            let blended = |i: usize| {
                let ramp = ((i as f32 - first as f32) / (last - first) as f32).clamp(0.0, 1.0);
                let kept = 1.0 - ramp;
                let frequency = plain(i);
                frequency / factor as f32 * (1.0 - kept) + frequency * kept
            };
            let on_tables = attention_factor.unwrap_or(if factor <= 1.0 {
                1.0
            } else {
                0.1 * factor.ln() + 1.0
            });
            ((0..half).map(blended).collect(), on_tables as f32)
        }
    }
}

/// The cosines and sines of positions `0..n_positions`, each `[n_positions, head_size / 2]`.
pub fn tables(
    scaling: RopeScaling,
    base: f64,
    head_size: usize,
    n_positions: usize,
) -> (Vec<f32>, Vec<f32>) {
    let (frequencies, factor) = frequencies(scaling, base, head_size);
    (0..n_positions)
        .flat_map(|position| frequencies.iter().map(move |frequency| position as f32 * frequency))
        .map(|angle| (angle.cos() * factor, angle.sin() * factor))
        .unzip()
}
