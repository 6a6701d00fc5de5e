//! Products in matrix registers: A's panels, and the loop of a tile. B's panels are those of pairs.

use super::{
    expand::{RUN, Values},
    transpose::LANES,
};
use crate::{Isa, amx::ROW_PAIRS};

#[cfg(target_arch = "x86_64")]
pub(super) use x86::sum;

impl Values<'_> {
    /// `n` elements from `start` on as pairs of neighbours, [`ROW_PAIRS`] of them at the beginning of every
    /// `width` · [`ROW_PAIRS`] packed elements; the last filled up with zeros.
    pub(super) fn blocks_along(
        &self,
        isa: Isa,
        (start, n): (usize, usize),
        packed: &mut [u32],
        width: usize,
    ) {
        let stride = width * ROW_PAIRS;
        #[cfg(target_arch = "x86_64")]
        if isa >= Isa::Avx512Bf16 {
            use x86::{join_blocks, round_blocks};
            // SAFETY: the device was made with instructions that this processor has.
            unsafe {
                match *self {
                    Self::F32(values) => {
                        return round_blocks(&values[start..][..n], (packed, stride));
                    }
                    Self::Bf16(values) => {
                        return join_blocks(&values[start..][..n], (packed, stride));
                    }
                    Self::Dropped(..) | Self::Nf4(_) => {}
                }
            }
        }
        let mut pairs = [0_u32; RUN / 2];
        for first in (0..n).step_by(RUN) {
            let n = RUN.min(n - first);
            self.pairs_along(isa, start + first, n, &mut pairs);
            let n_steps = n.div_ceil(2);
            pairs[n_steps..n_steps.next_multiple_of(ROW_PAIRS)].fill(0);
            let blocks = pairs[..n_steps.next_multiple_of(ROW_PAIRS)].chunks_exact(ROW_PAIRS);
            for (pairs, packed) in blocks.zip(packed[first / 2 * width..].chunks_mut(stride)) {
                packed[..ROW_PAIRS].copy_from_slice(pairs);
            }
        }
    }

    /// The same of `n_lanes` lanes beside each other, where neighbours in k are `stride` apart: of each lane
    /// [`ROW_PAIRS`] after those of the one before.
    pub(super) fn blocks_across(
        &self,
        isa: Isa,
        (start, stride, n): (usize, usize, usize),
        n_lanes: usize,
        packed: &mut [u32],
        width: usize,
    ) {
        let blocks = packed.chunks_mut(width * ROW_PAIRS).zip((0..n).step_by(2 * ROW_PAIRS));
        for (packed, first) in blocks {
            let n = (2 * ROW_PAIRS).min(n - first);
            let start = start + first * stride;
            #[cfg(target_arch = "x86_64")]
            if isa >= Isa::Avx512Bf16 && n_lanes == LANES && n == 2 * ROW_PAIRS {
                use x86::{join_block_across, round_block_across};
                // SAFETY: the device was made with instructions that this processor has.
                unsafe {
                    match *self {
                        Self::F32(values) => {
                            round_block_across(&values[start..], stride, packed);
                            continue;
                        }
                        Self::Bf16(values) => {
                            join_block_across(&values[start..], stride, packed);
                            continue;
                        }
                        Self::Dropped(..) | Self::Nf4(_) => {}
                    }
                }
            }
            let mut pairs = [0_u32; LANES * ROW_PAIRS];
            for (step, pairs) in pairs.chunks_exact_mut(LANES).take(n.div_ceil(2)).enumerate() {
                let first = start + 2 * step * stride;
                let second = (2 * step + 1 < n).then_some(first + stride);
                self.pairs_across(isa, first, second, &mut pairs[..n_lanes]);
            }
            for (lane, packed) in packed.chunks_exact_mut(ROW_PAIRS).take(n_lanes).enumerate() {
                for (step, packed) in packed.iter_mut().enumerate() {
                    *packed = pairs[step * LANES + lane];
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::{
        arch::{asm, x86_64::*},
        mem::MaybeUninit,
    };

    use half::bf16;

    use super::{
        super::{
            expand::x86::{join_pairs, round_pairs},
            stores::{Tile, x86::prefetch},
            transpose::x86::{joined, rounded, turned},
        },
        LANES, ROW_PAIRS,
    };

    /// Numbers as blocks of 16 pairs, rounded; `stride` packed elements from one block to the next, the last
    /// filled up with zeros.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub fn round_blocks(row: &[f32], packed: (&mut [u32], usize)) {
        blocks(row, packed, rounded);
    }

    /// As [`round_blocks`], of bf16.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub fn join_blocks(row: &[bf16], packed: (&mut [u32], usize)) {
        blocks(row, packed, joined);
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    fn blocks<T>(
        row: &[T],
        (packed, stride): (&mut [u32], usize),
        load: unsafe fn(*const T, u32) -> __m512i,
    ) {
        for (row, packed) in row.chunks(2 * LANES).zip(packed.chunks_mut(stride)) {
            let there = ((1_u64 << row.len()) - 1) as u32;
            let packed = &mut packed[..LANES];
            // SAFETY: what the mask names is there, and so are 16 elements.
            unsafe { _mm512_storeu_si512(packed.as_mut_ptr().cast(), load(row.as_ptr(), there)) };
        }
    }

    /// 32 rows of 16 numbers, `stride` apart, of which `pairs` joins two: the pairs of each of the 16 lanes
    /// after another.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    fn block_across<T>(
        values: &[T],
        stride: usize,
        packed: &mut [u32],
        pairs: unsafe fn(*const T, *const T) -> __m512i,
    ) {
        let (values, packed) = (&values[..31 * stride + 16], &mut packed[..256]);
        let row = |step: usize| {
            let first = values.as_ptr().wrapping_add(2 * step * stride);
            let second = first.wrapping_add(stride);
            for row in [first, second] {
                // The next rows: they are far apart, so that the processor does not guess them itself.
                _mm_prefetch::<_MM_HINT_T0>(row.wrapping_add(32 * stride).cast());
            }
            // SAFETY: both rows are there.
            unsafe { pairs(first, second) }
        };
        // One by one, as the compiler would put what a loop makes in memory.
        let block = turned([
            row(0),
            row(1),
            row(2),
            row(3),
            row(4),
            row(5),
            row(6),
            row(7),
            row(8),
            row(9),
            row(10),
            row(11),
            row(12),
            row(13),
            row(14),
            row(15),
        ]);
        for (lane, pairs) in block.into_iter().enumerate() {
            let packed = &mut packed[lane * 16..][..16];
            // SAFETY: 16 elements are there.
            unsafe { _mm512_storeu_si512(packed.as_mut_ptr().cast(), pairs) };
        }
    }

    /// [`block_across`] of f32, rounded.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub fn round_block_across(values: &[f32], stride: usize, packed: &mut [u32]) {
        block_across(values, stride, packed, round_pairs);
    }

    /// [`block_across`] of bf16.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub fn join_block_across(values: &[bf16], stride: usize, packed: &mut [u32]) {
        block_across(values, stride, packed, join_pairs);
    }

    /// Eight instructions that do nothing, for loops that ask for nothing; see [`ahead`].
    macro_rules! apart {
        () => {
            ".rept 8\nnop\n.endr"
        };
    }

    /// Asks for eight lines of a panel, from a byte of the block after the next on. Between the loop's instructions,
    /// not for what it brings alone: where another program uses the core's other thread, such instructions take 1.5
    /// times as long behind one another as with eight others between each two.
    macro_rules! ahead {
        ($panel:literal, $from:literal) => {
            concat!(
                ".irp line, 0, 64, 128, 192, 256, 320, 384, 448\n",
                "prefetcht0 [{",
                $panel,
                "} + 4096 + ",
                $from,
                " + \\line]\n",
                ".endr"
            )
        };
    }

    /// What the loop of a tile in matrix registers does: clears the sums, of each block loads two
    /// registers of A and two of B (or one), multiplies, and stores the sums.
    macro_rules! sum_blocks {
        (
            ($blocks:ident, $a:ident, $b:ident, $b_stride:expr, $b_block:expr, $c:expr, $c_stride:expr),
            [$($clear:literal),*], [$($step:expr),* $(,)?], [$($store:literal),*]
        ) => {
            asm!(
                $($clear,)*
                "2:",
                $($step,)*
                // Of a block of A there are 32 lanes.
                "add {a}, 2048",
                "add {b}, {b_block}",
                "dec {blocks}",
                "jnz 2b",
                "lea {b}, [{c} + 8 * {c_stride}]",
                "lea {b}, [{b} + 8 * {c_stride}]",
                $($store,)*
                blocks = inout(reg) $blocks => _,
                a = inout(reg) $a => _,
                b = inout(reg) $b => _,
                b_block = const $b_block,
                a_stride = in(reg) 64_usize,
                b_stride = in(reg) $b_stride,
                c = in(reg) $c,
                c_stride = in(reg) $c_stride,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            )
        };
    }

    /// 16·`TILES` × 16·`VECTORS` sums of products of bf16 pairs, out of panels of blocks: 32 rows of A,
    /// 16·`VECTORS` columns of B.
    ///
    /// # Safety
    /// The panels must hold `steps` steps, whole blocks of them and one at least; `c` must be valid for the tile, which is no
    /// larger than the sums; the processor must have AMX, and this thread have configured it.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    pub unsafe fn sum<const TILES: usize, const VECTORS: usize>(
        steps: usize,
        a: *const u32,
        b: *const u32,
        c: *mut f32,
        tile: Tile,
    ) {
        /// Sums on their way.
        #[repr(align(64))]
        struct Sums([MaybeUninit<f32>; 32 * 32]);
        const { assert!(matches!(TILES, 1 | 2) && matches!(VECTORS, 1 | 2)) };
        let blocks = steps / ROW_PAIRS;
        // Sums of fewer, as attention's scores, are stored before what is asked for could come.
        if blocks > 2 {
            prefetch::<VECTORS>(c, tile);
        }
        let is_whole = tile.n_rows == 16 * TILES && tile.n_columns == 16 * VECTORS;
        let is_plain = is_whole && tile.overwrite && tile.factor == 1.0;
        let mut sums = Sums([MaybeUninit::uninit(); 32 * 32]);
        let (place, stride) = if is_plain {
            (c, tile.stride)
        } else {
            (sums.0.as_mut_ptr().cast::<f32>(), 16 * VECTORS)
        };
        let stride = stride * size_of::<f32>();
        // SAFETY: the panels hold so many blocks, and a prefetch may be of any address; there is a place for the
        // sums, by the caller's promise or here; the caller vouches for the registers, which nothing else uses.
        unsafe {
            match (TILES, VECTORS) {
                (1, 1) => sum_blocks!(
                    (blocks, a, b, 64_usize, 1024, place, stride),
                    ["tilezero tmm0"],
                    [
                        apart!(),
                        "tileloadd tmm4, [{a} + {a_stride}]",
                        apart!(),
                        "tileloadd tmm6, [{b} + {b_stride}]",
                        apart!(),
                        "tdpbf16ps tmm0, tmm4, tmm6",
                    ],
                    ["tilestored [{c} + {c_stride}], tmm0"]
                ),
                (1, _) => sum_blocks!(
                    (blocks, a, b, 128_usize, 2048, place, stride),
                    ["tilezero tmm0", "tilezero tmm1"],
                    [
                        apart!(),
                        "tileloadd tmm4, [{a} + {a_stride}]",
                        apart!(),
                        "tileloadd tmm6, [{b} + {b_stride}]",
                        apart!(),
                        "tileloadd tmm7, [{b} + {b_stride} + 64]",
                        apart!(),
                        "tdpbf16ps tmm0, tmm4, tmm6",
                        apart!(),
                        "tdpbf16ps tmm1, tmm4, tmm7",
                    ],
                    [
                        "tilestored [{c} + {c_stride}], tmm0",
                        "tilestored [{c} + {c_stride} + 64], tmm1"
                    ]
                ),
                (_, 1) => sum_blocks!(
                    (blocks, a, b, 64_usize, 1024, place, stride),
                    ["tilezero tmm0", "tilezero tmm2"],
                    [
                        apart!(),
                        "tileloadd tmm6, [{b} + {b_stride}]",
                        apart!(),
                        "tileloadd tmm4, [{a} + {a_stride}]",
                        apart!(),
                        "tileloadd tmm5, [{a} + {a_stride} + 1024]",
                        apart!(),
                        "tdpbf16ps tmm0, tmm4, tmm6",
                        apart!(),
                        "tdpbf16ps tmm2, tmm5, tmm6",
                    ],
                    ["tilestored [{c} + {c_stride}], tmm0", "tilestored [{b} + {c_stride}], tmm2"]
                ),
                _ => sum_blocks!(
                    (blocks, a, b, 128_usize, 2048, place, stride),
                    ["tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3"],
                    [
                        ahead!("a", 0),
                        "tileloadd tmm4, [{a} + {a_stride}]",
                        ahead!("a", 512),
                        "tileloadd tmm6, [{b} + {b_stride}]",
                        ahead!("b", 0),
                        "tileloadd tmm7, [{b} + {b_stride} + 64]",
                        ahead!("b", 512),
                        "tdpbf16ps tmm0, tmm4, tmm6",
                        ahead!("b", 1024),
                        "tileloadd tmm5, [{a} + {a_stride} + 1024]",
                        ahead!("b", 1536),
                        "tdpbf16ps tmm1, tmm4, tmm7",
                        ahead!("a", 1024),
                        "tdpbf16ps tmm2, tmm5, tmm6",
                        ahead!("a", 1536),
                        "tdpbf16ps tmm3, tmm5, tmm7"
                    ],
                    [
                        "tilestored [{c} + {c_stride}], tmm0",
                        "tilestored [{c} + {c_stride} + 64], tmm1",
                        "tilestored [{b} + {c_stride}], tmm2",
                        "tilestored [{b} + {c_stride} + 64], tmm3"
                    ]
                ),
            }
        }
        if is_plain {
            return;
        }
        let factor = _mm512_set1_ps(tile.factor);
        let sums = sums.0.as_ptr().cast::<f32>();
        for row in 0..tile.n_rows {
            for vector in 0..VECTORS {
                let n = tile.n_columns.saturating_sub(vector * 16).min(16);
                let mask = ((1_u32 << n) - 1) as u16;
                let c = c.wrapping_add(row * tile.stride + vector * 16);
                // SAFETY: the sums were stored, and C is inside the tile where the mask is set.
                unsafe {
                    let sum = _mm512_load_ps(sums.add((row * VECTORS + vector) * 16));
                    let sum = _mm512_mul_ps(factor, sum);
                    let sum = if tile.overwrite {
                        sum
                    } else {
                        _mm512_add_ps(_mm512_maskz_loadu_ps(mask, c), sum)
                    };
                    _mm512_mask_storeu_ps(c, mask, sum);
                }
            }
        }
    }
}
