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

use half::bf16;

use crate::memory::{DeviceSlice, Floats, Memory};

/// The activation, forward and backward.
pub trait Swiglu: Memory {
    /// `y = silu(gate) · up`; all of one length, `gate` and `up` in one format; `y` `=`, in bf16 rounded.
    fn swiglu(&mut self, gate: Floats, up: Floats, y: Floats);

    /// Replaces `gate` by its gradient and `up` by its own, in place, in bf16 rounded.
    fn swiglu_backward(&mut self, dy: DeviceSlice<f32>, gate_dgate: Floats, up_dup: Floats);
}

/// `gate` and `up`, of one format.
#[derive(Clone, Copy)]
enum Pair {
    F32([DeviceSlice<f32>; 2]),
    Bf16([DeviceSlice<bf16>; 2]),
}

impl Pair {
    fn of(gate: Floats, up: Floats) -> Self {
        match (gate, up) {
            (Floats::F32(gate), Floats::F32(up)) => Self::F32([gate, up]),
            (Floats::Bf16(gate), Floats::Bf16(up)) => Self::Bf16([gate, up]),
            _ => panic!("{gate:?} and {up:?} in different formats"),
        }
    }
}
