//! The gated activation of the feed-forward block (Shazeer, "GLU Variants", 2020).
//!
//! ```text
//! y     = silu(gate) · up           silu(x) = x · σ(x)
//! dgate = dy · up · σ(gate) · (1 + gate · (1 − σ(gate)))
//! dup   = dy · silu(gate)
//! ```

mod cpu;
mod cuda;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

use crate::memory::{DeviceSlice, FloatFormat, Floats, Memory};

/// The activation, forward and backward.
pub trait Swiglu: Memory {
    /// `y = silu(gate) · up`; all of one length, `gate` and `up` in one format; `y` `=`, in bf16 rounded.
    fn swiglu(&mut self, gate: Floats, up: Floats, y: Floats);

    /// Replaces `gate` by its gradient and `up` by its own, in place, in bf16 rounded.
    fn swiglu_backward(&mut self, dy: DeviceSlice<f32>, gate_dgate: Floats, up_dup: Floats);
}

/// The format of both.
///
/// # Panics
/// When they differ.
fn same_format(gate: Floats, up: Floats) -> FloatFormat {
    assert_eq!(gate.format(), up.format(), "gate and up in different formats");
    gate.format()
}
