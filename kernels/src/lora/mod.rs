//! A linear layer with a low-rank pair beside it (Hu et al., "LoRA", 2021).
//!
//! ```text
//! forward:   xa  = drop(x) · Aᵀ             [T, R],  A [R, n_in]
//!            y   = x · Wᵀ + bias + scale · xa · Bᵀ          [T, n_out], B [n_out, R]
//! backward:  dxa = scale · dy · B
//!            dB += scale · dyᵀ · xa
//!            dA += dxaᵀ · drop(x)
//!            dx  = dy · W + drop(dxa · A)
//! drop(x)[i] = keep(i) ? x[i] / (1 - p) : 0
//! ```
//! Layer and pair are one operation, as the pair's skinny products are mostly the reading of what
//! the layer's reads anyway.
//! `keep(i)` is a hash of the seed and the element's index: the backward pass draws the same mask
//! again instead of saving it, whatever the number of threads.

mod cpu;
mod cuda;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

use std::ops::Range;

use crate::{
    DeviceProfile,
    cpu::gemm::{self, Extents},
    linear::{self, LinearShape, Weight},
    memory::{DeviceSlice, Memory, Store},
};

/// The extents of one pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoraShape {
    /// T, rows of `x` and `y`.
    pub n_rows: usize,
    /// Columns of `x`.
    pub n_in: usize,
    /// Columns of `y`.
    pub n_out: usize,
    /// R.
    pub rank: usize,
}

/// Which inputs of the pair are dropped.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// The share of inputs set to zero, in `[0, 1)`.
    pub probability: f32,
    /// Chooses the mask: one value for each micro-batch, layer and matrix.
    pub seed: u64,
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

/// A linear layer and its pair, forward and backward.
pub trait Lora: Memory {
    /// `xa = drop(x) · Aᵀ`, `y (store) x · Wᵀ + bias + scale · xa · Bᵀ`.
    ///
    /// `x` `[T, n_in]`, `bias` `[n_out]`; `adapter.xa` `=`; `y` `[T, n_out]` by `store`;
    /// `workspace`: [`workspace_bytes`].
    fn adapted_linear(
        &mut self,
        shape: LoraShape,
        x: DeviceSlice<f32>,
        weight: Weight,
        bias: Option<DeviceSlice<f32>>,
        adapter: Adapter,
        store: Store,
        y: DeviceSlice<f32>,
        workspace: DeviceSlice<u8>,
    );

    /// The gradients of the pair and of the input.
    ///
    /// `x`, `weight`, `adapter` as given to and left by [`Lora::adapted_linear`]; `dy` `[T, n_out]`;
    /// `gradient` `+=`; `dx` `[T, n_in]` by `store`, or not wanted.
    fn adapted_linear_backward(
        &mut self,
        shape: LoraShape,
        x: DeviceSlice<f32>,
        weight: Weight,
        adapter: Adapter,
        dy: DeviceSlice<f32>,
        gradient: LoraPair,
        store: Store,
        dx: Option<DeviceSlice<f32>>,
        workspace: DeviceSlice<u8>,
    );
}

/// Rows whose product waits for its mask at a time.
const PRODUCT_ROWS: usize = 128;

/// The workspace's parts before that of the products, in bytes.
struct Parts {
    /// `[T, R]`.
    dxa: Range<usize>,
    /// `[R, n_out]`.
    dbt: Range<usize>,
    /// `[PRODUCT_ROWS, n_in]`, with dropout.
    product: Range<usize>,
}

fn parts(shape: LoraShape, dropout: bool) -> Parts {
    let bytes = |n: usize, width: usize| {
        n.saturating_mul(width).saturating_mul(size_of::<f32>()).saturating_add(63) / 64 * 64
    };
    let dxa = bytes(shape.n_rows, shape.rank);
    let product =
        if dropout { bytes(shape.n_rows.min(PRODUCT_ROWS), shape.n_in) } else { 0 };
    let dbt = dxa.saturating_add(bytes(shape.rank, shape.n_out));
    Parts { dxa: 0..dxa, dbt: dxa..dbt, product: dbt..dbt.saturating_add(product) }
}

/// Bytes of workspace that either direction needs on `profile`, for `shape` or for fewer rows; the
/// layer's own products alone need no more.
pub fn workspace_bytes(profile: &DeviceProfile, shape: LoraShape, dropout: bool) -> usize {
    if profile.is_cuda() {
        return cuda::workspace_bytes(profile, shape, dropout);
    }
    let LoraShape { n_rows, n_in, n_out, rank } = shape;
    let products = [
        // The layer's and what is beside them; with dropout, the pair's first apart.
        (n_rows, n_out, n_in, rank),
        (n_rows, n_in, n_out, rank),
        (n_rows, rank, n_in, 0),
        // The pair's second where the layer's product takes few rows, or is masked, or not wanted.
        (n_rows, n_out, rank, 0),
        (n_rows, n_in, rank, 0),
        (n_rows, rank, n_out, 0),
        // The gradients.
        (rank, n_out, n_rows, 0),
        (rank, n_in, n_rows, 0),
    ];
    let products = products
        .map(|(m, n, k, rank)| gemm::workspace_bytes(profile, Extents { m, n, k }, rank));
    let layer = linear::workspace_bytes(profile, LinearShape { n_rows, n_in, n_out });
    let most = products.into_iter().fold(layer, usize::max);
    parts(shape, dropout).product.end.saturating_add(most)
}
