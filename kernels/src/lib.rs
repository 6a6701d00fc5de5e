//! Numeric operations on flat device buffers, forward and backward.
//!
//! One folder an operation: `mod.rs` states the mathematics and declares the operation as a trait,
//! `reference.rs` is the naive version that every backend is held to, `cpu.rs` implements the
//! trait for [`Cpu`], `tests.rs` runs one test body over every device. [`Backend`] is the sum of
//! those traits, so adding an operation is one folder and a line in each list below.
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

mod amx;
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
pub use device::{Capability, Compute, DeviceError, DeviceKind, DeviceProfile, Isa};
pub use memory::{
    DeviceSlice, Element, FloatFormat, Floats, Gradient, Memory, MemoryError, MemoryId, Store,
    WeightGradient,
};
pub use paging::Paging;
pub use profile::OperationProfile;

// Declared here and not by the macro below, where rustfmt would not find them.
/// The optimizer's update.
pub mod adamw;
/// Causal attention without the T×T matrix.
pub mod attention;
/// Token embeddings: a gather, and its scatter-add gradient.
pub mod embedding;
/// Gradient norm, for clipping and for the log.
pub mod gradient_norm;
/// Linear layers of one input, with low-rank pairs beside them.
pub mod layers;
/// Products with a weight matrix in the three orientations of training.
pub mod linear;
/// Four-bit normal floats.
pub mod nf4;
/// Output projection fused with cross-entropy.
pub mod output_loss;
/// Root-mean-square normalisation.
pub mod rms_norm;
/// Rotary position embeddings.
pub mod rope;
/// Residual sums and moving rows.
pub mod rows;
/// The gated activation of the feed-forward block.
pub mod swiglu;

macro_rules! backend {
    ($($operation:path),* $(,)?) => {
        /// Everything a device must be able to do: own memory, move pages, and run every operation.
        pub trait Backend: Memory + Paging $(+ $operation)* {}
        impl<T: Memory + Paging $(+ $operation)*> Backend for T {}
    };
}

backend! {
    embedding::Embedding,
    linear::Linear,
    layers::Layers,
    nf4::Nf4,
    rms_norm::RmsNorm,
    rope::Rope,
    attention::Attention,
    swiglu::Swiglu,
    output_loss::OutputLoss,
    rows::Rows,
    adamw::AdamW,
    gradient_norm::GradientNorm,
}

#[cfg(test)]
mod testing;
