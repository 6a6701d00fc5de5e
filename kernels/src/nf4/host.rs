//! Quantisation of host slices: what the loader streams a model through, and the definition that
//! the device operations follow bit for bit.

use rayon::prelude::*;

use super::{ABSMAX_GROUP, BLOCK, LEVELS};
use crate::{
    Isa,
    blockwise::{DynamicCode, LEAST_ABSMAX, Plain, largest_magnitude, quantize_block},
    cpu::math::for_each_isa,
};

/// The 256 values of the code for the absmax values, rising.
pub fn dynamic_code() -> &'static [f32; 256] {
    DynamicCode::signed().values()
}

/// The middles between neighbours of a rising table; a value on a middle belongs to the lower.
const fn middles<const N: usize, const M: usize>(table: &[f32; N]) -> [f32; M] {
    let mut middles = [0.0; M];
    let mut i = 0;
    while i < M {
        middles[i] = (table[i] + table[i + 1]) / 2.0;
        i += 1;
    }
    middles
}

/// Quantises `values`, which begin at a block's start, into packed `codes` (`n / 2` bytes, rounded
/// up) and one `absmax` a block. Runs on rayon's current pool.
///
/// # Panics
/// When an output is too short.
pub fn quantize(values: &[f32], codes: &mut [u8], absmax: &mut [f32]) {
    const BLOCKS_PER_TASK: usize = 256;
    let isa = Isa::best();
    let codes = &mut codes[..values.len().div_ceil(2)];
    let absmax = &mut absmax[..values.len().div_ceil(BLOCK)];
    values
        .par_chunks(BLOCK * BLOCKS_PER_TASK)
        .zip(codes.par_chunks_mut(BLOCK / 2 * BLOCKS_PER_TASK))
        .zip(absmax.par_chunks_mut(BLOCKS_PER_TASK))
        .for_each(|((values, codes), absmax)| quantize_blocks(isa, values, codes, absmax));
}

for_each_isa! {
    /// [`quantize`] on one path and one thread; every path gives the same bits.
    pub(super) fn quantize_blocks(values: &[f32], codes: &mut [u8], absmax: &mut [f32]) {
        let (blocks, rest) = values.as_chunks::<BLOCK>();
        let block_codes = codes.as_chunks_mut::<{ BLOCK / 2 }>().0;
        for ((block, codes), absmax) in blocks.iter().zip(block_codes).zip(&mut *absmax) {
            *absmax = largest_magnitude(block);
            let inverse = 1.0 / absmax.max(LEAST_ABSMAX);
            *codes = pack(&block.map(|value| value * inverse));
        }
        if !rest.is_empty() {
            // The format's one irregularity: a short block is divided, and keeps the raised absmax.
            let mut block = [0.0; BLOCK];
            block[..rest.len()].copy_from_slice(rest);
            let raised = largest_magnitude(&block).max(LEAST_ABSMAX);
            let packed = pack(&block.map(|value| value / raised));
            let n_codes = rest.len().div_ceil(2);
            codes[blocks.len() * BLOCK / 2..].copy_from_slice(&packed[..n_codes]);
            absmax[blocks.len()] = raised;
        }
    }
}

/// The codes of numbers in [−1, 1] (or a rounding beyond, which changes no comparison).
#[inline(always)]
fn pack(scaled: &[f32; BLOCK]) -> [u8; BLOCK / 2] {
    const BOUNDS: [f32; 15] = middles(&LEVELS);
    // Bound by bound over the whole block: a loop that vectorises.
    let mut indices = [0_u32; BLOCK];
    for bound in BOUNDS {
        for (index, &value) in indices.iter_mut().zip(scaled) {
            *index += u32::from(value > bound);
        }
    }
    let mut codes = [0; BLOCK / 2];
    for (code, pair) in codes.iter_mut().zip(indices.as_chunks::<2>().0) {
        *code = (pair[0] << 4 | pair[1]) as u8;
    }
    codes
}

/// The mean of the absmax values, summed in f64; 0 of none.
pub fn absmax_offset(absmax: &[f32]) -> f32 {
    let sum: f64 = absmax.iter().map(|&value| f64::from(value)).sum();
    (sum / absmax.len().max(1) as f64) as f32
}

/// Quantises absmax values, less `offset`, into one code each and one scale a group of 256.
///
/// # Panics
/// When an output is too short.
pub fn quantize_absmax(absmax: &[f32], offset: f32, codes: &mut [u8], scales: &mut [f32]) {
    let codes = &mut codes[..absmax.len()];
    let scales = &mut scales[..absmax.len().div_ceil(ABSMAX_GROUP)];
    let groups = absmax.chunks(ABSMAX_GROUP).zip(codes.chunks_mut(ABSMAX_GROUP));
    for ((absmax, codes), scale) in groups.zip(scales) {
        let (mut centred, mut coded) = ([0.0; ABSMAX_GROUP], [0; ABSMAX_GROUP]);
        for (centred, value) in centred.iter_mut().zip(absmax) {
            *centred = value - offset;
        }
        let is_short = absmax.len() < ABSMAX_GROUP;
        let largest = largest_magnitude(&centred);
        let code = DynamicCode::signed();
        // SAFETY: it is for every processor.
        *scale = unsafe { quantize_block::<Plain>(code, &centred, largest, is_short, &mut coded) };
        codes.copy_from_slice(&coded[..codes.len()]);
    }
}

/// The absmax of a block.
#[inline(always)]
pub(crate) fn restore_absmax(code: u8, scale: f32, offset: f32) -> f32 {
    dynamic_code()[usize::from(code)] * scale + offset
}

/// Expands a quantised tensor of `values.len()` numbers.
///
/// # Panics
/// When a part is too short.
pub fn dequantize(
    codes: &[u8],
    absmax_codes: &[u8],
    absmax_scales: &[f32],
    absmax_offset: f32,
    values: &mut [f32],
) {
    for (block, values) in values.chunks_mut(BLOCK).enumerate() {
        let scale = absmax_scales[block / ABSMAX_GROUP];
        let absmax = restore_absmax(absmax_codes[block], scale, absmax_offset);
        let codes = &codes[block * BLOCK / 2..];
        let (pairs, last) = values.as_chunks_mut::<2>();
        for (pair, &byte) in pairs.iter_mut().zip(codes) {
            *pair = LEVEL_PAIRS[usize::from(byte)].map(|level| level * absmax);
        }
        if let [value] = last {
            *value = LEVEL_PAIRS[usize::from(codes[pairs.len()])][0] * absmax;
        }
    }
}

/// The two levels that each byte of codes stands for.
static LEVEL_PAIRS: [[f32; 2]; 256] = {
    let mut pairs = [[0.0; 2]; 256];
    let mut byte = 0;
    while byte < 256 {
        pairs[byte] = [LEVELS[byte >> 4], LEVELS[byte & 15]];
        byte += 1;
    }
    pairs
};
