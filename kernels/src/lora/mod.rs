//! The low-rank pair beside a linear layer (Hu et al., "LoRA", 2021).
//!
//! ```text
//! forward:   xa  = drop(x) · Aᵀ             [T, R],  A [R, n_in]
//!            y  += scale · xa · Bᵀ          [T, n_out], B [n_out, R]
//! backward:  dxa = scale · dy · B
//!            dB += scale · dyᵀ · xa
//!            dA += dxaᵀ · drop(x)
//!            dx += drop(dxa · A)
//! drop(x)[i] = keep(i) ? x[i] / (1 - p) : 0
//! ```
//! `keep(i)` is a hash of the seed and the element's index: the backward pass draws the same mask
//! again instead of saving it, whatever the number of threads.

mod cpu;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

use std::ops::Range;

use crate::{
    DeviceProfile,
    cpu::gemm::{self, Extents},
    memory::{DeviceSlice, Memory},
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

/// The pair, forward and backward.
pub trait Lora: Memory {
    /// `xa = drop(x) · Aᵀ`, `y += scale · xa · Bᵀ`.
    ///
    /// `x` `[T, n_in]`; `xa` `[T, R]` `=`, kept for the backward pass; `y` `[T, n_out]` `+=`;
    /// `workspace`: [`workspace_bytes`].
    fn lora(
        &mut self,
        shape: LoraShape,
        scale: f32,
        dropout: Option<Dropout>,
        x: DeviceSlice<f32>,
        pair: LoraPair,
        xa: DeviceSlice<f32>,
        y: DeviceSlice<f32>,
        workspace: DeviceSlice<u8>,
    );

    /// The gradients of both matrices and of the input.
    ///
    /// `x`, `xa`, `dropout` as given to and left by [`Lora::lora`]; `dy` `[T, n_out]`;
    /// `gradient` `+=`; `dx` `[T, n_in]` `+=`, or not wanted.
    fn lora_backward(
        &mut self,
        shape: LoraShape,
        scale: f32,
        dropout: Option<Dropout>,
        x: DeviceSlice<f32>,
        xa: DeviceSlice<f32>,
        dy: DeviceSlice<f32>,
        pair: LoraPair,
        gradient: LoraPair,
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
    Parts { dxa: 0..dxa, product: dxa..dxa.saturating_add(product) }
}

/// Bytes of workspace that either direction needs on `profile`, for `shape` or for fewer rows.
pub fn workspace_bytes(profile: &DeviceProfile, shape: LoraShape, dropout: bool) -> usize {
    let LoraShape { n_rows, n_in, n_out, rank } = shape;
    let products = [
        (n_rows, rank, n_in),
        (n_rows, n_out, rank),
        (n_rows, rank, n_out),
        (n_out, rank, n_rows),
        (rank, n_in, n_rows),
        (n_rows, n_in, rank),
    ];
    let products =
        products.map(|(m, n, k)| gemm::workspace_bytes(profile, Extents { m, n, k }));
    let most = products.into_iter().fold(0, usize::max);
    parts(shape, dropout).product.end.saturating_add(most)
}
