//! Quantisation of host slices: what the loader streams a model through, and the definition that
//! the device operations follow bit for bit.

use std::sync::OnceLock;

use rayon::prelude::*;

use super::{ABSMAX_GROUP, BLOCK, LEVELS};
use crate::{Isa, cpu::math::for_each_isa};

/// An absmax below this counts as this in divisions, so that a block of zeros has no NaN.
const LEAST_ABSMAX: f32 = 1e-38;

/// The 256 values of the signed dynamic code, rising.
///
/// For each exponent `e` from −6 to 0 there are `2^(e+6)` values of either sign: the middles of as
/// many equal parts of `[0.1, 1]`, times `10^e`; and 0 and 1. Every operation is in f32, in the
/// order that reproduces the published table's bits.
pub fn dynamic_code() -> &'static [f32; 256] {
    static CODE: OnceLock<[f32; 256]> = OnceLock::new();
    CODE.get_or_init(|| {
        let mut code = [0.0_f32; 256];
        let mut n = 0;
        for exponent in -6..=0 {
            let n_parts = 1_usize << (exponent + 6);
            let power = 10.0_f64.powi(exponent) as f32;
            let step = (1.0_f32 - 0.1) / n_parts as f32;
            // From the nearer end and with one rounding, as evenly spaced numbers are made there on
            // every processor that can multiply and add at once.
            let edge = |i: usize| {
                if i < n_parts.div_ceil(2) {
                    step.mul_add(i as f32, 0.1)
                } else {
                    (-step).mul_add((n_parts - i) as f32, 1.0)
                }
            };
            for part in 0..n_parts {
                let middle = (edge(part) + edge(part + 1)) / 2.0;
                code[n] = power * middle;
                code[n + 1] = -power * middle;
                n += 2;
            }
        }
        code[n] = 0.0;
        code[n + 1] = 1.0;
        code.sort_by(f32::total_cmp);
        code
    })
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
    quantize_with(Isa::best(), values, codes, absmax);
}

/// [`quantize`] on one path; every path gives the same bits.
pub(super) fn quantize_with(isa: Isa, values: &[f32], codes: &mut [u8], absmax: &mut [f32]) {
    const BLOCKS_PER_TASK: usize = 256;
    let codes = &mut codes[..values.len().div_ceil(2)];
    let absmax = &mut absmax[..values.len().div_ceil(BLOCK)];
    values
        .par_chunks(BLOCK * BLOCKS_PER_TASK)
        .zip(codes.par_chunks_mut(BLOCK / 2 * BLOCKS_PER_TASK))
        .zip(absmax.par_chunks_mut(BLOCKS_PER_TASK))
        .for_each(|((values, codes), absmax)| quantize_blocks(isa, values, codes, absmax));
}

for_each_isa! {
    fn quantize_blocks(values: &[f32], codes: &mut [u8], absmax: &mut [f32]) {
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

/// Compared as whole numbers, which order magnitudes alike, and a NaN above all.
#[inline(always)]
fn largest_magnitude(block: &[f32; BLOCK]) -> f32 {
    let magnitude = |value: f32| (value.to_bits() & !(1 << 31)) as i32;
    f32::from_bits(block.iter().fold(0, |most, &value| most.max(magnitude(value))) as u32)
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
    let bounds: [f32; 255] = middles(dynamic_code());
    let codes = &mut codes[..absmax.len()];
    let scales = &mut scales[..absmax.len().div_ceil(ABSMAX_GROUP)];
    let groups = absmax.chunks(ABSMAX_GROUP).zip(codes.chunks_mut(ABSMAX_GROUP));
    for ((absmax, codes), scale) in groups.zip(scales) {
        *scale = absmax.iter().fold(0.0_f32, |most, value| most.max((value - offset).abs()));
        let whole = absmax.len() == ABSMAX_GROUP;
        if !whole {
            *scale = scale.max(LEAST_ABSMAX);
        }
        let inverse = 1.0 / scale.max(LEAST_ABSMAX);
        for (code, value) in codes.iter_mut().zip(absmax) {
            let centred = value - offset;
            let scaled = if whole { centred * inverse } else { centred / *scale };
            let scaled = scaled.clamp(-1.0, 1.0);
            *code = bounds.partition_point(|&bound| bound < scaled) as u8;
        }
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
