//! Root-mean-square normalisation (Zhang & Sennrich, 2019), row by row.
//!
//! ```text
//! rstd = 1 / sqrt(mean(x²) + eps)
//! y    = x · rstd · w
//! dw  (store) Σ_t dy · x · rstd
//! dx  += rstd · (w·dy − x · rstd² · mean(w·dy·x))
//! ```
//! The backward pass computes `rstd` again from `x`, which it reads anyway; nothing is saved.

mod cpu;
mod cuda;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

use crate::memory::{DeviceSlice, Floats, Gradient, Memory};

/// The extents of one normalisation. Heads of a query or key matrix are rows of width K.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RmsNormShape {
    /// Rows, each normalised by itself.
    pub n_rows: usize,
    /// Numbers in a row.
    pub width: usize,
    /// Added to the mean square.
    pub epsilon: f32,
}

/// The normalisation, forward and backward.
pub trait RmsNorm: Memory {
    /// `x` `[n_rows, width]`, `weight` `[width]`, `y` `[n_rows, width]` `=`, in bf16 rounded.
    fn rms_norm(&mut self, shape: RmsNormShape, x: Floats, weight: DeviceSlice<f32>, y: Floats);

    /// `dx` `[n_rows, width]` `+=`; `dweight` `[width]`, or not wanted;
    /// `workspace`: [`workspace_bytes`], for the partial sums of `dweight`.
    fn rms_norm_backward(
        &mut self,
        shape: RmsNormShape,
        x: Floats,
        weight: DeviceSlice<f32>,
        dy: DeviceSlice<f32>,
        dx: DeviceSlice<f32>,
        dweight: Option<Gradient>,
        workspace: DeviceSlice<u8>,
    );

    /// As [`RmsNorm::rms_norm_backward`] with `dy` and `dx` in one place: `dy` is read, then
    /// replaced by `dx` (in place, `=`).
    fn rms_norm_backward_in_place(
        &mut self,
        shape: RmsNormShape,
        x: Floats,
        weight: DeviceSlice<f32>,
        dy_dx: DeviceSlice<f32>,
        dweight: Option<Gradient>,
        workspace: DeviceSlice<u8>,
    );
}

/// Bytes of workspace that the backward pass of `shape` needs on `profile`: one partial sum of the
/// weight's gradient for every few rows, so that their number does not depend on the threads.
pub fn workspace_bytes(profile: &crate::DeviceProfile, shape: RmsNormShape) -> usize {
    if profile.is_cuda() {
        return cuda::workspace_bytes(shape);
    }
    n_partials(shape).saturating_mul(shape.width).saturating_mul(size_of::<f32>())
}

/// Rows that share one partial sum.
fn partial_rows(width: usize) -> usize {
    (1_usize << 16).div_ceil(width.max(1)).max(64)
}

fn n_partials(shape: RmsNormShape) -> usize {
    shape.n_rows.div_ceil(partial_rows(shape.width))
}
