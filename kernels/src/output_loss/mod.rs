//! Output projection fused with cross-entropy, over chunks of rows: the full logits never exist.
//!
//! ```text
//! logits[t, :] = x[t, :] · Wᵀ                              W [V, D]
//! loss[t]      = log Σ_v exp logits[t, v] − logits[t, target[t]]
//! dlogits      = gradient_scale · (softmax(logits) − onehot(target))
//! dx           = dlogits · W
//! dW          += dlogitsᵀ · x
//! ```
//! `gradient_scale` is one over the number of trained tokens of the whole optimizer step, so that
//! accumulated micro-batches of any lengths weigh every token alike.

use crate::{
    linear::Weight,
    memory::{DeviceSlice, Memory},
};

/// The extents of one loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutputLossShape {
    /// Rows, every one with a target.
    pub n_rows: usize,
    /// D.
    pub width: usize,
    /// V.
    pub vocabulary: usize,
    /// Rows whose logits exist at a time.
    pub chunk_rows: usize,
}

/// What the backward half of the loss writes.
#[derive(Clone, Copy, Debug)]
pub struct OutputLossGradient {
    /// Factor on every gradient.
    pub scale: f32,
    /// `[n_rows, D]` `=`.
    pub dx: DeviceSlice<f32>,
    /// `[V, D]` `+=`, or not wanted.
    pub dweight: Option<DeviceSlice<f32>>,
}

/// The loss and, in the same pass, its gradients.
pub trait OutputLoss: Memory {
    /// The cross-entropy of every row and, if wanted, the gradients.
    ///
    /// `x` `[n_rows, D]`, `weight` `[V, D]`, `targets` `[n_rows]` each below V,
    /// `losses` `[n_rows]` `=`, in nats; `workspace`: [`workspace_bytes`].
    fn output_loss(
        &mut self,
        shape: OutputLossShape,
        x: DeviceSlice<f32>,
        weight: Weight,
        targets: DeviceSlice<u32>,
        losses: DeviceSlice<f32>,
        gradient: Option<OutputLossGradient>,
        workspace: DeviceSlice<u8>,
    );
}

/// Bytes of workspace that `shape` needs on `profile`: one chunk of logits and the products' own.
pub fn workspace_bytes(_profile: &crate::DeviceProfile, _shape: OutputLossShape) -> usize {
    0
}
