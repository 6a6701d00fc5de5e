//! Four-bit normal floats with double quantisation, bit-identical to bitsandbytes.
//!
//! A tensor is read flat in blocks of 64 numbers. Each block keeps the largest magnitude (absmax)
//! and, for each number, the index of the nearest of 16 fixed levels of `x / absmax` (Dettmers et
//! al., "QLoRA", 2023, appendix E). The absmax values are themselves quantised: less their mean
//! (the offset), in groups of 256 that each keep an f32 scale, as the nearest of the 256 values of
//! the signed dynamic 8-bit code ([`blockwise`]).
//!
//! ```text
//! absmax[b] = dynamic_code[absmax_codes[b]] · absmax_scales[b / 256] + absmax_offset
//! w[i]      = nf4_level[code(i)] · absmax[i / 64]
//! code(i)   = high nibble of codes[i / 2] for even i, low nibble for odd i
//! ```
//! 4.127 bits a number: 4 + 8/64 + 32/(64·256).

mod cpu;
mod cuda;
mod host;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

use crate::{
    blockwise,
    memory::{DeviceSlice, Memory},
};

pub(crate) use host::restore_absmax;
pub use host::{absmax_offset, dequantize, dynamic_code, quantize, quantize_absmax};

/// The 16 levels: quantiles of the standard normal distribution, scaled to [−1, 1], with an exact
/// zero (the published table of QLoRA).
pub const LEVELS: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// Numbers that share one absmax.
pub const BLOCK: usize = 64;
/// Absmax values that share one scale.
pub const ABSMAX_GROUP: usize = blockwise::BLOCK;

/// How many elements each part of a quantised tensor of `n_elements` has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nf4Layout {
    /// Numbers in the tensor.
    pub n_elements: usize,
}

impl Nf4Layout {
    /// Bytes of packed codes, two numbers a byte.
    pub const fn n_codes(self) -> usize {
        self.n_elements.div_ceil(2)
    }
    /// Blocks, and so bytes of absmax codes.
    pub const fn n_blocks(self) -> usize {
        self.n_elements.div_ceil(BLOCK)
    }
    /// Groups of absmax values, and so f32 scales.
    pub const fn n_groups(self) -> usize {
        self.n_blocks().div_ceil(ABSMAX_GROUP)
    }
}

/// A quantised tensor in device memory; lengths as [`Nf4Layout`] says.
#[derive(Clone, Copy, Debug)]
pub struct Nf4Weight {
    /// Packed codes, `n_codes`.
    pub codes: DeviceSlice<u8>,
    /// Code of each block's absmax, `n_blocks`.
    pub absmax_codes: DeviceSlice<u8>,
    /// Scale of each group of absmax values, `n_groups`.
    pub absmax_scales: DeviceSlice<f32>,
    /// The mean of the absmax values, one element.
    pub absmax_offset: DeviceSlice<f32>,
}

/// Quantisation on the device.
pub trait Nf4: Memory {
    /// Quantises `source` `[n]` into `weight` `=`.
    ///
    /// `workspace`: `n_blocks` f32.
    fn nf4_quantize(
        &mut self,
        source: DeviceSlice<f32>,
        weight: Nf4Weight,
        workspace: DeviceSlice<f32>,
    );

    /// Expands `weight` into `destination` `[n]` `=`.
    fn nf4_dequantize(&mut self, weight: Nf4Weight, destination: DeviceSlice<f32>);
}
