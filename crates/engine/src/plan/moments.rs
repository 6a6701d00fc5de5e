//! When a region's content matters, as a set of moments of one training step.
//!
//! All layers pass through the same moments, since their shared buffers do: a step is the forward
//! pass of one layer (again and again), the loss, the second forward pass of one layer that rebuilds
//! its activations (unless it keeps them), its backward pass, and the optimizer. Sampling happens between steps.

use std::ops::BitOr;

/// A set of moments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moments(u64);

/// Stages of one layer's forward pass, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Forward {
    /// Normalisation before attention.
    InputNorm,
    /// Query, key and value products.
    QueryKeyValue,
    /// Head normalisation and rotation.
    Rotate,
    /// Attention.
    Attention,
    /// Output product and residual sum.
    Output,
    /// Normalisation before the feed-forward block.
    FeedForwardNorm,
    /// Gate and up products.
    GateUp,
    /// Activation.
    Activation,
    /// Down product and residual sum.
    Down,
}

/// Stages of one layer's backward pass, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Backward {
    /// Through the down product.
    Down,
    /// Through the activation.
    Activation,
    /// Through the gate and up products.
    GateUp,
    /// Through the feed-forward normalisation.
    FeedForwardNorm,
    /// Through the output product.
    Output,
    /// Through attention.
    Attention,
    /// Through rotation and head normalisation.
    Rotate,
    /// Through the query, key and value products.
    QueryKeyValue,
    /// Through the first normalisation.
    InputNorm,
}

const N_STAGES: u32 = 9;
const FORWARD: u32 = 0;
const LOSS: u32 = N_STAGES;
const RECOMPUTE: u32 = LOSS + 1;
const BACKWARD: u32 = RECOMPUTE + N_STAGES;
const OPTIMIZER: u32 = BACKWARD + N_STAGES;
const GENERATE: u32 = OPTIMIZER + 1;

impl Moments {
    /// The whole run.
    pub const ALWAYS: Self = Self(u64::MAX);
    /// The output projection and the loss.
    pub const LOSS: Self = Self(1 << LOSS);
    /// The optimizer's update.
    pub const OPTIMIZER: Self = Self(1 << OPTIMIZER);
    /// Writing a sample, between steps.
    pub const GENERATE: Self = Self(1 << GENERATE);

    /// Moments `first..=last`, by number.
    pub(super) const fn range(first: u32, last: u32) -> Self {
        Self((u64::MAX >> (63 - (last - first))) << first)
    }

    /// From the first layer's forward pass to the last one's backward pass.
    pub const fn pass() -> Self {
        Self::range(FORWARD, OPTIMIZER - 1)
    }

    /// Every layer's forward pass, and its repetition before the backward pass.
    pub fn forward(first: Forward, last: Forward) -> Self {
        Self::range(FORWARD + first as u32, FORWARD + last as u32)
            | Self::range(RECOMPUTE + first as u32, RECOMPUTE + last as u32)
    }

    /// From a stage of the forward pass to one of the backward pass of the same layer, when the
    /// layer is computed again just before it.
    pub fn recomputed(first: Forward, last: Backward) -> Self {
        Self::range(FORWARD + first as u32, FORWARD + N_STAGES - 1)
            | Self::range(RECOMPUTE + first as u32, BACKWARD + last as u32)
    }

    /// Stages of one layer's backward pass.
    pub const fn backward(first: Backward, last: Backward) -> Self {
        Self::range(BACKWARD + first as u32, BACKWARD + last as u32)
    }

    /// The products and norms of all layers, forward and backward.
    pub fn layers() -> Self {
        Self::range(FORWARD, LOSS - 1) | Self::range(RECOMPUTE, OPTIMIZER - 1)
    }

    /// From the loss to the end of the backward passes, where the residual gradient lives.
    pub fn residual_gradient() -> Self {
        Self::range(LOSS, OPTIMIZER - 1)
    }

    /// Whether the two sets have a moment in common.
    pub const fn meets(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

impl BitOr for Moments {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}
