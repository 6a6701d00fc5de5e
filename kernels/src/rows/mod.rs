//! Residual sums and moving rows.
//!
//! ```text
//! add:      y += x
//! gather:   y[i, :] = x[index[i], :]
//! scatter:  y[index[i], :] = x[i, :]      every other row of y = 0; indices differ
//! ```

mod cpu;
mod cuda;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

use crate::memory::{DeviceSlice, Memory};

/// Sums and moves.
pub trait Rows: Memory {
    /// `y += x`, of one length.
    fn add(&mut self, x: DeviceSlice<f32>, y: DeviceSlice<f32>);

    /// `index` `[n]`, `x` `[_, width]`, `y` `[n, width]` `=`.
    fn gather_rows(
        &mut self,
        width: usize,
        index: DeviceSlice<u32>,
        x: DeviceSlice<f32>,
        y: DeviceSlice<f32>,
    );

    /// `index` `[n]`, `x` `[n, width]`, `y` `[_, width]` `=`.
    fn scatter_rows(
        &mut self,
        width: usize,
        index: DeviceSlice<u32>,
        x: DeviceSlice<f32>,
        y: DeviceSlice<f32>,
    );
}
