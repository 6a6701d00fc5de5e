//! Operands as they are stored, and their way into panels.

use std::ops::Range;

use half::bf16;

use crate::{
    Compute, Isa,
    cpu::math::for_each_isa,
    lora::Dropout,
    nf4::{ABSMAX_GROUP, BLOCK, LEVELS, restore_absmax},
};

/// The numbers of a matrix.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Values<'a> {
    F32(&'a [f32]),
    /// f32 of which some are dropped; the index of an element decides.
    Dropped(&'a [f32], Dropout),
    Bf16(&'a [bf16]),
    Nf4 {
        n_elements: usize,
        codes: &'a [u8],
        absmax_codes: &'a [u8],
        absmax_scales: &'a [f32],
        absmax_offset: f32,
    },
}

/// Which index of the product runs along the rows of the stored matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// Neighbours in memory are neighbours in k: x in `x · Wᵀ`, and W.
    Depth,
    /// Neighbours in memory are neighbouring rows of A or columns of B: W in `dy · W`.
    Lanes,
}

/// A matrix as the product sees it: lanes (rows of A, columns of B) by depth (k).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Operand<'a> {
    pub values: Values<'a>,
    pub layout: Layout,
    /// Elements between rows of the stored matrix.
    pub stride: usize,
}

/// Elements that are expanded at a time.
const RUN: usize = 512;

impl<'a> Operand<'a> {
    /// An f32 matrix `[lanes, k]`, or `[k, lanes]` in the other layout.
    pub fn f32(values: &'a [f32], layout: Layout, stride: usize) -> Self {
        Self { values: Values::F32(values), layout, stride }
    }

    /// Panics when the stored matrix is smaller than its extents.
    pub fn check(&self, n_lanes: usize, depth: usize) {
        let (n_rows, n_columns) = match self.layout {
            Layout::Depth => (n_lanes, depth),
            Layout::Lanes => (depth, n_lanes),
        };
        let needed = (n_rows - 1) * self.stride + n_columns;
        let there = self.values.len();
        assert!(there >= needed, "an operand of {there} elements where {needed} are needed");
    }

    /// Packs `lanes` × `depth` into panels of `width` lanes: for each step of k the lanes' elements,
    /// f32 or pairs of bf16 as bits. Lanes and steps that do not exist are zero.
    pub fn pack(
        &self,
        isa: Isa,
        compute: Compute,
        bf16_pairs: bool,
        width: usize,
        lanes: Range<usize>,
        depth: Range<usize>,
        packed: &mut [u32],
    ) {
        let steps = if bf16_pairs { depth.len().div_ceil(2) } else { depth.len() };
        let n_panels = lanes.len().div_ceil(width);
        let packed = &mut packed[..n_panels * width * steps];
        if !lanes.len().is_multiple_of(width) {
            packed[(n_panels - 1) * width * steps..].fill(0);
        }
        let mut run = [0.0_f32; RUN];
        match self.layout {
            Layout::Depth => {
                for (lane, row) in lanes.enumerate() {
                    let panel = &mut packed[lane / width * width * steps..];
                    let column = lane % width;
                    for start in (0..depth.len()).step_by(RUN) {
                        let n = RUN.min(depth.len() - start);
                        let from = row * self.stride + depth.start + start;
                        let run = &mut run[..n];
                        self.values.expand(isa, from, run);
                        if bf16_pairs {
                            scatter_pairs(
                                isa,
                                run,
                                &mut panel[start / 2 * width + column..],
                                width,
                            );
                        } else {
                            round(isa, compute, run);
                            scatter(run, &mut panel[start * width + column..], width);
                        }
                    }
                }
            }
            Layout::Lanes => {
                let mut second = [0.0_f32; RUN];
                for start in (0..lanes.len()).step_by(RUN) {
                    let n = RUN.min(lanes.len() - start);
                    let (run, second) = (&mut run[..n], &mut second[..n]);
                    for step in 0..steps {
                        let k = depth.start + if bf16_pairs { 2 * step } else { step };
                        self.values.expand(isa, k * self.stride + lanes.start + start, run);
                        if bf16_pairs {
                            if k + 1 < depth.end {
                                let from = (k + 1) * self.stride + lanes.start + start;
                                self.values.expand(isa, from, second);
                            } else {
                                second.fill(0.0);
                            }
                        } else {
                            round(isa, compute, run);
                        }
                        let pieces = run.chunks(width).zip(second.chunks(width));
                        for (panel, (run, second)) in pieces.enumerate() {
                            let panel = (start / width + panel) * width * steps + step * width;
                            let packed = &mut packed[panel..panel + run.len()];
                            if bf16_pairs {
                                join_pairs(isa, run, second, packed);
                            } else {
                                for (packed, value) in packed.iter_mut().zip(run) {
                                    *packed = value.to_bits();
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

impl Values<'_> {
    fn len(&self) -> usize {
        match self {
            Self::F32(values) | Self::Dropped(values, _) => values.len(),
            Self::Bf16(values) => values.len(),
            Self::Nf4 { n_elements, .. } => *n_elements,
        }
    }

    /// The elements from `start` on, in f32.
    pub fn expand(&self, isa: Isa, start: usize, run: &mut [f32]) {
        match *self {
            Self::F32(values) => run.copy_from_slice(&values[start..start + run.len()]),
            Self::Dropped(values, dropout) => {
                run.copy_from_slice(&values[start..start + run.len()]);
                dropout.apply(start, run);
            }
            Self::Bf16(values) => expand_bf16(isa, &values[start..start + run.len()], run),
            Self::Nf4 { codes, absmax_codes, absmax_scales, absmax_offset, .. } => {
                let mut at = start;
                let mut rest = run;
                while !rest.is_empty() {
                    let block = at / BLOCK;
                    let n = (BLOCK - at % BLOCK).min(rest.len());
                    let (piece, behind) = rest.split_at_mut(n);
                    let scale = absmax_scales[block / ABSMAX_GROUP];
                    let absmax = restore_absmax(absmax_codes[block], scale, absmax_offset);
                    if n == BLOCK {
                        let codes = &codes[at / 2..at / 2 + BLOCK / 2];
                        expand_block(isa, codes, absmax, piece);
                    } else {
                        for (i, value) in piece.iter_mut().enumerate() {
                            let byte = codes[(at + i) / 2];
                            let code = if (at + i) % 2 == 0 { byte >> 4 } else { byte & 15 };
                            *value = LEVELS[usize::from(code)] * absmax;
                        }
                    }
                    at += n;
                    rest = behind;
                }
            }
        }
    }
}

for_each_isa! {
    fn expand_bf16(values: &[bf16], run: &mut [f32]) {
        for (run, value) in run.iter_mut().zip(values) {
            *run = f32::from_bits(u32::from(value.to_bits()) << 16);
        }
    }
}

/// One block of NF4.
fn expand_block(isa: Isa, codes: &[u8], absmax: f32, run: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if isa >= Isa::Avx512 {
        // SAFETY: the device was made with instructions that this processor has.
        return unsafe { expand_block_avx512(codes, absmax, run) };
    }
    let _ = isa;
    for (pair, byte) in run.chunks_exact_mut(2).zip(codes) {
        pair[0] = LEVELS[usize::from(byte >> 4)] * absmax;
        pair[1] = LEVELS[usize::from(byte & 15)] * absmax;
    }
}

/// The levels times the absmax are one register; a code permutes it.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn expand_block_avx512(codes: &[u8], absmax: f32, run: &mut [f32]) {
    use std::arch::x86_64::*;
    // SAFETY: the table has 16 elements.
    let levels = unsafe { _mm512_loadu_ps(LEVELS.as_ptr()) };
    let levels = _mm512_mul_ps(levels, _mm512_set1_ps(absmax));
    // Bytes 0, 0, 1, 1, …: the even lanes take the high nibble, the odd ones the low.
    let shifts = _mm512_set1_epi64(0x0000_0000_0000_0004);
    let twice = _mm_setr_epi8(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
    for (codes, run) in codes.chunks_exact(8).zip(run.chunks_exact_mut(16)) {
        // SAFETY: eight bytes are read and 16 elements written, which the chunks have.
        unsafe {
            let bytes = _mm_shuffle_epi8(_mm_loadl_epi64(codes.as_ptr().cast()), twice);
            let indices = _mm512_srlv_epi32(_mm512_cvtepu8_epi32(bytes), shifts);
            // The permutation reads the lowest four bits of each index.
            _mm512_storeu_ps(run.as_mut_ptr(), _mm512_permutexvar_ps(indices, levels));
        }
    }
}

/// Rounded to bf16 (nearest even), as bits.
#[inline(always)]
pub(crate) fn bf16_bits(value: f32) -> u32 {
    let bits = value.to_bits();
    let rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    // A NaN must not round to infinity.
    if value.is_nan() { (bits >> 16) | 0x40 } else { rounded }
}

for_each_isa! {
    /// Rounds to bf16 where products are.
    fn round_bf16(run: &mut [f32]) {
        for value in run {
            *value = f32::from_bits(bf16_bits(*value) << 16);
        }
    }
}

/// Rounds a run to the precision of the products, where that is not f32.
pub(super) fn round(isa: Isa, compute: Compute, run: &mut [f32]) {
    if compute == Compute::Bf16 {
        round_bf16(isa, run);
    }
}

for_each_isa! {
    /// Joins neighbours in k into pairs, `width` apart.
    fn scatter_pairs(run: &[f32], packed: &mut [u32], width: usize) {
        const CHUNK: usize = 64;
        let mut pairs = [0_u32; CHUNK];
        for (chunk, run) in run.chunks(2 * CHUNK).enumerate() {
            let n = run.len().div_ceil(2);
            let whole = run.len() / 2;
            for (pair, values) in pairs.iter_mut().zip(run.chunks_exact(2)) {
                *pair = bf16_bits(values[0]) | bf16_bits(values[1]) << 16;
            }
            if whole < n {
                pairs[whole] = bf16_bits(run[run.len() - 1]);
            }
            for (i, pair) in pairs[..n].iter().enumerate() {
                packed[(chunk * CHUNK + i) * width] = *pair;
            }
        }
    }
}

for_each_isa! {
    /// Joins two steps of k into pairs.
    fn join_pairs(first: &[f32], second: &[f32], packed: &mut [u32]) {
        let n = packed.len();
        let (first, second) = (&first[..n], &second[..n]);
        for i in 0..n {
            packed[i] = bf16_bits(first[i]) | bf16_bits(second[i]) << 16;
        }
    }
}

fn scatter(run: &[f32], packed: &mut [u32], width: usize) {
    for (i, value) in run.iter().enumerate() {
        packed[i * width] = value.to_bits();
    }
}
