//! Numeric operations on flat device buffers, forward and backward.
//!
//! One folder an operation: `mod.rs` states the mathematics and declares the operation as a trait,
//! `reference.rs` is the naive version that every backend is held to, `cpu.rs` implements the
//! trait for [`Cpu`], `tests.rs` runs one test body over every device. [`Backend`] is the sum of
//! those traits, so adding an operation is one folder and one line in the list below.
//!
//! This crate knows nothing of models, files or training; it is the only one with `unsafe`.
//!
//! # Shape letters
//! `B` batch, `T` tokens (rows of one micro-batch), `D` hidden width, `F` feed-forward width,
//! `H` query heads, `G` key/value heads, `K` head size, `V` vocabulary, `R` adapter rank.
//! Matrices are row-major. A weight is stored `[n_out, n_in]`, as in the model files.
//!
//! # Writing
//! Each output is documented as `=` (overwritten) or `+=` (accumulated), but where a [`Store`] or the
//! [`Gradient`] that it is part of says so. Within one operation an output overlaps no other argument unless its documentation says "in place".
//!
//! # Panics
//! Arguments come from a plan that was checked as a whole, so a slice that is out of bounds, too
//! short for its shape or overlapping an output is a defect of the caller and panics, like an index
//! out of bounds. Nothing a person can type or load reaches these checks.
//!
//! # Determinism
//! An operation's result depends on its inputs and on [`Compute`] alone: each
//! element is one task's, however they are divided among threads, and its sum is taken in a fixed order.

mod arguments;
pub mod blockwise;
pub mod cpu;
pub mod cuda;
pub mod device;
pub mod memory;
pub mod paging;
mod profile;
pub mod random;

pub use cpu::Cpu;
pub use cuda::Cuda;
pub use device::{Capability, Compute, DeviceKind, DeviceProfile, Isa};
pub use memory::{DeviceSlice, Element, Gradient, Memory, MemoryError, MemoryId, Store};
pub use paging::Paging;
pub use profile::OperationProfile;

macro_rules! operations {
    ($($(#[$doc:meta])* $module:ident :: $operation:ident),* $(,)?) => {
        $($(#[$doc])* pub mod $module;)*

        /// Everything a device must be able to do: own memory, move pages, and run every operation.
        pub trait Backend: Memory + Paging $(+ $module::$operation)* {}
        impl<T: Memory + Paging $(+ $module::$operation)*> Backend for T {}
    };
}

operations! {
    /// Token embeddings: a gather, and its scatter-add gradient.
    embedding::Embedding,
    /// Products with a weight matrix in the three orientations of training.
    linear::Linear,
    /// Linear layers of one input, with low-rank pairs beside them.
    layers::Layers,
    /// Four-bit normal floats.
    nf4::Nf4,
    /// Root-mean-square normalisation.
    rms_norm::RmsNorm,
    /// Rotary position embeddings.
    rope::Rope,
    /// Causal attention without the T×T matrix.
    attention::Attention,
    /// The gated activation of the feed-forward block.
    swiglu::Swiglu,
    /// Output projection fused with cross-entropy.
    output_loss::OutputLoss,
    /// Residual sums and moving rows.
    rows::Rows,
    /// The optimizer's update.
    adamw::AdamW,
    /// Gradient norm, for clipping and for the log.
    gradient_norm::GradientNorm,
}

#[cfg(test)]
mod testing;
