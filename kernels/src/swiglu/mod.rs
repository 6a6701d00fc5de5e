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

use crate::memory::{DeviceSlice, Floats, Memory};

/// The activation, forward and backward.
pub trait Swiglu: Memory {
    /// `y = silu(gate) · up`; all of one length, `y` `=`, in bf16 rounded.
    fn swiglu(&mut self, gate: DeviceSlice<f32>, up: DeviceSlice<f32>, y: Floats);

    /// Replaces `gate` by its gradient and `up` by its own, in place.
    fn swiglu_backward(
        &mut self,
        dy: DeviceSlice<f32>,
        gate_dgate: DeviceSlice<f32>,
        up_dup: DeviceSlice<f32>,
    );
}
