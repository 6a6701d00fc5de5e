//! Linear layers that share an input, each with or without a low-rank pair beside it (Hu et al., "LoRA",
//! 2021).
//!
//! ```text
//! forward, of each layer:   xa  = drop(x) · Aᵀ                      [T, R],  A [R, n_in]
//!                           y   = x · Wᵀ + bias + scale · xa · Bᵀ   [T, n_out], B [n_out, R];
//!                           y   = residual + … where that is asked
//! backward, of each layer:  dxa = scale · dy · B
//!                           dB (store) scale · dyᵀ · xa
//!                           dA (store) dxaᵀ · drop(x)
//! of all:                   dx (store) Σ dy · W + drop(dxa · A)
//! drop(x)[i] = keep(i) ? x[i] / (1 - p) : 0
//! ```
//! They are one operation, as much of each product is the reading of what the others read as well: the
//! queries', keys' and values' layers all read `x`, and a pair's skinny products what its layer's do.
//! `keep(i)` is a hash of the seed and the element's index: the backward pass draws the same mask
//! again instead of saving it, whatever the number of threads.

mod cpu;
mod cuda;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

use crate::{
    DeviceProfile,
    cpu::gemm,
    linear::Weight,
    memory::{DeviceSlice, FloatFormat, Floats, Memory, Store},
    random::Dropout,
};

/// The most layers that share an input: queries, keys and values.
pub const MAX_LAYERS: usize = gemm::MOST_SHARING;

/// The extents that layers of one input have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayersShape {
    /// T, rows of `x` and `y`.
    pub n_rows: usize,
    /// Columns of `x`.
    pub n_in: usize,
    /// R, of every pair.
    pub rank: usize,
}

/// What a workspace depends on of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerWidth {
    /// Columns of `y`.
    pub n_out: usize,
    /// Whether it has a pair.
    pub has_pair: bool,
    /// How `y` is stored.
    pub output: FloatFormat,
    /// How `dy` is stored.
    pub gradient: FloatFormat,
}

/// The matrices of one pair, or of their gradients.
#[derive(Clone, Copy, Debug)]
pub struct LoraPair {
    /// A `[R, n_in]`.
    pub a: DeviceSlice<f32>,
    /// B `[n_out, R]`.
    pub b: DeviceSlice<f32>,
}

/// A pair, how it enters its layer, and what it keeps for the backward pass.
#[derive(Clone, Copy, Debug)]
pub struct Adapter {
    /// A and B.
    pub pair: LoraPair,
    /// Factor on the pair's output.
    pub scale: f32,
    /// Which of its inputs are dropped.
    pub dropout: Option<Dropout>,
    /// `xa` `[T, R]`.
    pub xa: DeviceSlice<f32>,
}

/// A layer on its way forward.
#[derive(Clone, Copy, Debug)]
pub struct Layer {
    /// W `[n_out, n_in]`.
    pub weight: Weight,
    /// `[n_out]`.
    pub bias: Option<DeviceSlice<f32>>,
    /// The pair beside it; its `xa` `=`.
    pub adapter: Option<Adapter>,
    /// Columns of `y`.
    pub n_out: usize,
    /// `[T, n_out]`, which the layer's output is added to on its way to `y`, and which is no part of that.
    pub residual: Option<DeviceSlice<f32>>,
    /// `[T, n_out]` `=`, in bf16 rounded once; in f32 where there is a residual.
    pub y: Floats,
}

/// A layer on the way back.
#[derive(Clone, Copy, Debug)]
pub struct LayerBackward {
    /// W `[n_out, n_in]`.
    pub weight: Weight,
    /// The pair beside it, with what the way forward left, and where its gradients go.
    pub adapter: Option<(Adapter, LoraPair)>,
    /// Columns of `dy`.
    pub n_out: usize,
    /// `[T, n_out]`, in f32 or in [`crate::linear::input_format`].
    pub dy: Floats,
}

/// Layers of one input, forward and backward.
pub trait Layers: Memory {
    /// `xa = drop(x) · Aᵀ`, `y = residual + x · Wᵀ + bias + scale · xa · Bᵀ` of each.
    ///
    /// `x` `[T, n_in]`, in f32, or, where nothing is dropped from it, in [`crate::linear::input_format`];
    /// one to [`MAX_LAYERS`] `layers`; `workspace`: [`workspace_bytes`].
    fn layers(
        &mut self,
        shape: LayersShape,
        x: Floats,
        layers: &[Layer],
        workspace: DeviceSlice<u8>,
    );

    /// The gradients of the pairs, by `gradients`, and of the input, by the store beside it.
    ///
    /// `x` `[T, n_in]` as it was given to [`Layers::layers`], not read where no layer has a pair; one to
    /// [`MAX_LAYERS`] `layers`; `dx` `[T, n_in]`, or not wanted; `workspace`: [`workspace_bytes`].
    fn layers_backward(
        &mut self,
        shape: LayersShape,
        x: Floats,
        layers: &[LayerBackward],
        gradients: Store,
        dx: Option<(DeviceSlice<f32>, Store)>,
        workspace: DeviceSlice<u8>,
    );
}

/// Bytes of workspace that either direction needs on `profile` with `x` in `input`, for `shape` or for
/// fewer rows.
pub fn workspace_bytes(
    profile: &DeviceProfile,
    shape: LayersShape,
    layers: &[LayerWidth],
    input: FloatFormat,
    dropout: bool,
) -> usize {
    if profile.is_cuda() {
        cuda::workspace_bytes(shape, layers, input, dropout)
    } else {
        cpu::workspace_bytes(profile, shape, layers, dropout)
    }
}
