//! Products with a weight matrix `W` `[n_out, n_in]`, in the three orientations of training.
//!
//! ```text
//! forward:          y  = x · Wᵀ + bias      [T, n_out] = [T, n_in] · [n_in, n_out]
//! input gradient:   dx = dy · W             [T, n_in]  = [T, n_out] · [n_out, n_in]
//! weight gradient:  dW = dyᵀ · x            [n_out, n_in] = [n_out, T] · [T, n_in]
//! bias gradient:    dbias = Σ_t dy[t, :]
//! ```
//! In [`Compute::Bf16`] both operands are rounded to bf16 (nearest even) and accumulated in f32; an
//! NF4 weight is expanded to f32 and then rounded like any other.
//!
//! [`Compute::Bf16`]: crate::Compute::Bf16

pub(crate) mod cpu;
pub(crate) mod cuda;
#[cfg(test)]
mod reference;
#[cfg(test)]
pub(crate) use reference::rounded;
#[cfg(test)]
mod tests;

use half::bf16;

use crate::{
    DeviceProfile,
    cpu::gemm::{self, Extents},
    device::Compute,
    memory::{DeviceSlice, FloatFormat, Floats, Gradient, Memory, Store, WeightGradient},
    nf4::Nf4Weight,
};

/// The extents of one product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinearShape {
    /// T, rows of `x` and `y`.
    pub n_rows: usize,
    /// Columns of `x` and of the weight.
    pub n_in: usize,
    /// Columns of `y`, rows of the weight.
    pub n_out: usize,
}

/// A weight matrix `[n_out, n_in]` as it is stored.
#[derive(Clone, Copy, Debug)]
pub enum Weight {
    /// Four bytes a number.
    F32(DeviceSlice<f32>),
    /// Two bytes a number.
    Bf16(DeviceSlice<bf16>),
    /// Half a byte a number.
    Nf4(Nf4Weight),
}

impl Weight {
    /// A weight that is trained, or its gradient.
    ///
    /// # Panics
    /// When it is quantised.
    pub fn into_floats(self) -> Floats {
        match self {
            Self::F32(values) => Floats::F32(values),
            Self::Bf16(values) => Floats::Bf16(values),
            Self::Nf4(_) => panic!("a quantised weight is not trained"),
        }
    }
}

/// The three products.
pub trait Linear: Memory {
    /// `y (store) x · Wᵀ + bias`.
    ///
    /// `x` `[n_rows, n_in]`, in [`input_format`] or f32; `bias` `[n_out]`, `y` `[n_rows, n_out]` by `store`;
    /// `workspace`: [`workspace_bytes`].
    fn linear(
        &mut self,
        shape: LinearShape,
        x: Floats,
        weight: Weight,
        bias: Option<DeviceSlice<f32>>,
        store: Store,
        y: DeviceSlice<f32>,
        workspace: DeviceSlice<u8>,
    );

    /// `dx (store) dy · W`.
    ///
    /// `dy` `[n_rows, n_out]`, in [`input_format`] or f32; `dx` `[n_rows, n_in]` by `store`.
    fn linear_input_gradient(
        &mut self,
        shape: LinearShape,
        dy: Floats,
        weight: Weight,
        store: Store,
        dx: DeviceSlice<f32>,
        workspace: DeviceSlice<u8>,
    );

    /// `dweight (store) dyᵀ · x`, or the sums rounded to bf16.
    ///
    /// `x` `[n_rows, n_in]`, `dy` `[n_rows, n_out]`, each in [`input_format`] or f32; `dweight` `[n_out, n_in]`.
    fn linear_weight_gradient(
        &mut self,
        shape: LinearShape,
        x: Floats,
        dy: Floats,
        dweight: WeightGradient,
        workspace: DeviceSlice<u8>,
    );

    /// `dbias (store) Σ_t dy[t, :]`.
    ///
    /// `dy` `[n_rows, n_out]`, `dbias` `[n_out]`.
    fn linear_bias_gradient(&mut self, n_rows: usize, n_out: usize, dy: Floats, dbias: Gradient);
}

/// How an activation of `width` numbers a row is best stored that products read: in bf16 where they would
/// round it to that anyway.
pub fn input_format(profile: &DeviceProfile, width: usize) -> FloatFormat {
    match profile.compute {
        // A card copies eight numbers at a time.
        Compute::Bf16 if !profile.is_cuda() || width.is_multiple_of(8) => FloatFormat::Bf16,
        _ => FloatFormat::F32,
    }
}

/// Bytes of workspace that any of the three products needs on `profile`, for `shape` or for fewer
/// rows, with activations, their gradients and that of the weight in f32.
pub fn workspace_bytes(profile: &DeviceProfile, shape: LinearShape) -> usize {
    workspace_bytes_of(profile, shape, FloatFormat::F32)
}

/// The same with gradients of activations in a format.
pub(crate) fn workspace_bytes_of(
    profile: &DeviceProfile,
    shape: LinearShape,
    gradient: FloatFormat,
) -> usize {
    if profile.is_cuda() {
        return cuda::workspace_bytes(shape, gradient);
    }
    let LinearShape { n_rows, n_in, n_out } = shape;
    let bytes = |m, n, k| gemm::workspace_bytes(profile, Extents { m, n, k });
    bytes(n_rows, n_out, n_in)
        .saturating_add(few_rows_bytes(shape))
        .max(bytes(n_rows, n_in, n_out))
        .max(bytes(n_out, n_in, n_rows))
}

/// Bytes of workspace that [`Linear::linear_weight_gradient`] needs on `profile`, for `shape` or for fewer rows,
/// with `x`, `dy` and `dweight` in these formats.
pub fn weight_gradient_workspace_bytes(
    profile: &DeviceProfile,
    shape: LinearShape,
    [x, dy, dweight]: [FloatFormat; 3],
) -> usize {
    if profile.is_cuda() {
        return cuda::weight_gradient_workspace_bytes(shape, [x, dy]);
    }
    let LinearShape { n_rows, n_in, n_out } = shape;
    let extents = Extents { m: n_out, n: n_in, k: n_rows };
    match dweight {
        FloatFormat::F32 => gemm::workspace_bytes(profile, extents),
        FloatFormat::Bf16 => gemm::rounded_workspace_bytes(profile, extents),
    }
}

/// Bytes at the front of the workspace for products with very few rows; a multiple of a cache line.
fn few_rows_bytes(shape: LinearShape) -> usize {
    let LinearShape { n_rows, n_in, n_out } = shape;
    gemm::few_rows_workspace_bytes(Extents { m: n_rows, n: n_out, k: n_in }).next_multiple_of(64)
}
