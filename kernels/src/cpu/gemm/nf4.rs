//! Blocks of four-bit normal floats to runs of f32 or pairs of bf16; the format is that of
//! [`crate::nf4`].

#[cfg(target_arch = "x86_64")]
use super::expand::Panels;
use super::expand::bf16_bits;
use crate::{
    Compute, Isa,
    nf4::{ABSMAX_GROUP, BLOCK, LEVELS, restore_absmax},
};

/// Elements that are expanded at a time: 16 bytes of codes.
pub(super) const HALF: usize = BLOCK / 2;

/// A quantised tensor, read flat.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Nf4Values<'a> {
    pub n_elements: usize,
    pub codes: &'a [u8],
    pub absmax_codes: &'a [u8],
    pub absmax_scales: &'a [f32],
    pub absmax_offset: f32,
}

impl Nf4Values<'_> {
    #[inline(always)]
    fn absmax(&self, block: usize) -> f32 {
        let scale = self.absmax_scales[block / ABSMAX_GROUP];
        restore_absmax(self.absmax_codes[block], scale, self.absmax_offset)
    }

    #[inline(always)]
    fn block_codes(&self, block: usize) -> &[u8; BLOCK / 2] {
        &self.codes.as_chunks().0[block]
    }

    /// The 16 values that the codes of a block stand for, as the products see them.
    fn levels(&self, compute: Compute, block: usize) -> [f32; 16] {
        let absmax = self.absmax(block);
        match compute {
            Compute::F32 => LEVELS.map(|level| level * absmax),
            Compute::Bf16 => LEVELS.map(|level| f32::from_bits(bf16_bits(level * absmax) << 16)),
        }
    }

    /// The elements from `start` on.
    pub fn expand(&self, isa: Isa, compute: Compute, start: usize, run: &mut [f32]) {
        let first = start.next_multiple_of(BLOCK).min(start + run.len());
        let (front, rest) = run.split_at_mut(first - start);
        let (blocks, back) = rest.split_at_mut(rest.len() / BLOCK * BLOCK);
        self.expand_part(compute, start, front);
        self.expand_blocks(isa, compute, first / BLOCK, blocks);
        self.expand_part(compute, first + blocks.len(), back);
    }

    /// Part of one block.
    fn expand_part(&self, compute: Compute, start: usize, run: &mut [f32]) {
        if run.is_empty() {
            return;
        }
        let levels = self.levels(compute, start / BLOCK);
        for (i, value) in (start..).zip(run) {
            let byte = self.codes[i / 2];
            let code = if i % 2 == 0 { byte >> 4 } else { byte & 15 };
            *value = levels[usize::from(code)];
        }
    }

    /// Whole blocks.
    fn expand_blocks(&self, isa: Isa, compute: Compute, first: usize, run: &mut [f32]) {
        #[cfg(target_arch = "x86_64")]
        if isa >= Isa::Avx512 {
            // SAFETY: the device was made with instructions that this processor has.
            return unsafe { x86::expand_blocks_avx512(self, compute, first, run) };
        } else if isa == Isa::Avx2 {
            // SAFETY: as above.
            return unsafe { x86::expand_blocks_avx2(self, compute, first, run) };
        }
        let _ = isa;
        for (block, run) in (first..).zip(run.as_chunks_mut::<BLOCK>().0) {
            let levels = self.levels(compute, block);
            for (pair, byte) in run.chunks_exact_mut(2).zip(self.block_codes(block)) {
                pair[0] = levels[usize::from(byte >> 4)];
                pair[1] = levels[usize::from(byte & 15)];
            }
        }
    }

    /// Whole blocks' neighbours as pairs.
    pub fn blocks_along(&self, isa: Isa, first: usize, pairs: &mut [u32]) {
        #[cfg(target_arch = "x86_64")]
        if isa >= Isa::Avx512 {
            // SAFETY: the device was made with instructions that this processor has.
            return unsafe { x86::blocks_along(self, first, pairs) };
        }
        let _ = isa;
        for (block, pairs) in (first..).zip(pairs.as_chunks_mut::<{ BLOCK / 2 }>().0) {
            let levels = self.levels(Compute::Bf16, block);
            for (pair, byte) in pairs.iter_mut().zip(self.block_codes(block)) {
                *pair = levels[usize::from(byte >> 4)].to_bits() >> 16
                    | levels[usize::from(byte & 15)].to_bits();
            }
        }
    }

    /// The codes of half a block, from element `start` on.
    #[inline(always)]
    fn half_codes(&self, start: usize) -> &[u8; HALF / 2] {
        &self.codes.as_chunks().0[start / HALF]
    }

    /// Elements of two runs of whole halves of blocks as pairs.
    pub fn halves_across(&self, isa: Isa, starts: [usize; 2], pairs: &mut [u32]) {
        #[cfg(target_arch = "x86_64")]
        if isa >= Isa::Avx512 {
            let panels = Panels { width: pairs.len(), stride: pairs.len(), has_next: false };
            // SAFETY: the device was made with instructions that this processor has.
            return unsafe { x86::halves_into_panels(self, starts, pairs.len(), panels, pairs) };
        }
        let _ = isa;
        for (i, pairs) in pairs.as_chunks_mut::<HALF>().0.iter_mut().enumerate() {
            let starts = starts.map(|start| start + i * HALF);
            let levels = starts.map(|start| self.levels(Compute::Bf16, start / BLOCK));
            let [a, b] = starts.map(|start| self.half_codes(start));
            for (pairs, (a, b)) in pairs.as_chunks_mut::<2>().0.iter_mut().zip(a.iter().zip(b)) {
                *pairs = [4, 0].map(|shift| {
                    levels[0][usize::from(a >> shift & 15)].to_bits() >> 16
                        | levels[1][usize::from(b >> shift & 15)].to_bits()
                });
            }
        }
    }

    /// The same of `n` elements into panels of whole halves, on AVX-512.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn halves_into_panels(
        &self,
        isa: Isa,
        starts: [usize; 2],
        n: usize,
        panels: Panels,
        packed: &mut [u32],
    ) {
        assert!(isa >= Isa::Avx512);
        // SAFETY: the device was made with instructions that this processor has.
        unsafe { x86::halves_into_panels(self, starts, n, panels, packed) };
    }
}

/// A byte holds an element of even index in its high nibble and the next in its low one. One
/// register holds all 16 levels, of which a permutation picks by the lowest four bits of each lane.
#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{BLOCK, Compute, HALF, LEVELS, Nf4Values, Panels};

    /// 16 bytes, one a lane.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn lanes(codes: &[u8; 16]) -> __m512i {
        // SAFETY: 16 bytes are there.
        _mm512_cvtepu8_epi32(unsafe { _mm_loadu_si128(codes.as_ptr().cast()) })
    }

    /// What the codes of a block stand for, as the products see them.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn table(compute: Compute, absmax: f32) -> __m512i {
        // SAFETY: 16 elements are there.
        let levels = unsafe { _mm512_loadu_ps(LEVELS.as_ptr()) };
        let levels = _mm512_mul_ps(levels, _mm512_set1_ps(absmax));
        let bits = _mm512_castps_si512(levels);
        if compute == Compute::F32 {
            return bits;
        }
        let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
        let half = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
        let rounded = _mm512_add_epi32(bits, half);
        // A NaN stays as it is; the product made it a quiet one, whose upper half is a NaN too.
        let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(levels, levels);
        let rounded = _mm512_mask_mov_epi32(rounded, nan, bits);
        _mm512_and_si512(rounded, _mm512_set1_epi32(0xffff_0000_u32 as i32))
    }

    /// Two rows of lanes as `(a0, b0, a1, b1, …)`, 32 elements.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn store_interleaved(a: __m512i, b: __m512i, target: &mut [u32; 32]) {
        let low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
        let high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
        // SAFETY: 32 elements are there.
        unsafe {
            let target = target.as_mut_ptr();
            _mm512_storeu_si512(target.cast(), _mm512_permutex2var_epi32(a, low, b));
            _mm512_storeu_si512(target.add(16).cast(), _mm512_permutex2var_epi32(a, high, b));
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub fn expand_blocks_avx512(
        values: &Nf4Values<'_>,
        compute: Compute,
        first: usize,
        run: &mut [f32],
    ) {
        let run = bytemuck::cast_slice_mut::<f32, u32>(run);
        for (block, run) in (first..).zip(run.as_chunks_mut::<BLOCK>().0) {
            let levels = table(compute, values.absmax(block));
            let codes = values.block_codes(block).as_chunks().0;
            for (codes, run) in codes.iter().zip(run.as_chunks_mut().0) {
                let low = lanes(codes);
                let high = _mm512_srli_epi32::<4>(low);
                store_interleaved(
                    _mm512_permutexvar_epi32(high, levels),
                    _mm512_permutexvar_epi32(low, levels),
                    run,
                );
            }
        }
    }

    #[target_feature(enable = "avx2,fma")]
    pub fn expand_blocks_avx2(
        values: &Nf4Values<'_>,
        compute: Compute,
        first: usize,
        run: &mut [f32],
    ) {
        // Every second lane takes the byte's high nibble.
        let shifts = _mm256_setr_epi32(4, 0, 4, 0, 4, 0, 4, 0);
        let twice = _mm_setr_epi8(0, 0, 1, 1, 2, 2, 3, 3, -1, -1, -1, -1, -1, -1, -1, -1);
        for (block, run) in (first..).zip(run.as_chunks_mut::<BLOCK>().0) {
            let levels = values.levels(compute, block);
            // SAFETY: 16 elements are there.
            let (low, high) = unsafe {
                (_mm256_loadu_ps(levels.as_ptr()), _mm256_loadu_ps(levels.as_ptr().add(8)))
            };
            let codes = values.block_codes(block).as_chunks().0;
            for (codes, run) in codes.iter().zip(run.as_chunks_mut::<8>().0) {
                let bytes = _mm_cvtsi32_si128(i32::from_le_bytes(*codes));
                let indices = _mm256_cvtepu8_epi32(_mm_shuffle_epi8(bytes, twice));
                let indices = _mm256_srlv_epi32(indices, shifts);
                // Eight levels a register: three bits pick in both, the fourth between them.
                let picked = _mm256_blendv_ps(
                    _mm256_permutevar8x32_ps(low, indices),
                    _mm256_permutevar8x32_ps(high, indices),
                    _mm256_castsi256_ps(_mm256_slli_epi32::<28>(indices)),
                );
                // SAFETY: eight elements are there.
                unsafe { _mm256_storeu_ps(run.as_mut_ptr(), picked) };
            }
        }
    }

    /// The levels are bf16 already: a pair is one level's bits above another's.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub fn blocks_along(values: &Nf4Values<'_>, first: usize, pairs: &mut [u32]) {
        for (block, pairs) in (first..).zip(pairs.as_chunks_mut::<{ BLOCK / 2 }>().0) {
            let second = table(Compute::Bf16, values.absmax(block));
            let first = _mm512_srli_epi32::<16>(second);
            let codes = values.block_codes(block).as_chunks().0;
            for (codes, pairs) in codes.iter().zip(pairs.as_chunks_mut::<16>().0) {
                let low = lanes(codes);
                let even = _mm512_permutexvar_epi32(_mm512_srli_epi32::<4>(low), first);
                let odd = _mm512_permutexvar_epi32(low, second);
                let both = _mm512_or_si512(even, odd);
                // SAFETY: 16 elements are there.
                unsafe { _mm512_storeu_si512(pairs.as_mut_ptr().cast(), both) };
            }
        }
    }

    /// Whole halves of blocks of two runs as pairs, into panels of whole halves; a run of pairs is
    /// one panel.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub fn halves_into_panels(
        values: &Nf4Values<'_>,
        starts: [usize; 2],
        n: usize,
        panels: Panels,
        packed: &mut [u32],
    ) {
        let mut levels = [_mm512_setzero_si512(); 2];
        for (panel, lane) in (0..n).step_by(panels.width).enumerate() {
            let packed = &mut packed[panel * panels.stride..][..panels.width.min(n - lane)];
            for (i, pairs) in packed.as_chunks_mut::<HALF>().0.iter_mut().enumerate() {
                let starts = starts.map(|start| start + lane + i * HALF);
                for (levels, start) in levels.iter_mut().zip(starts) {
                    if lane + i == 0 || start.is_multiple_of(BLOCK) {
                        *levels = table(Compute::Bf16, values.absmax(start / BLOCK));
                    }
                }
                let [a, b] = starts.map(|start| lanes(values.half_codes(start)));
                let first = _mm512_srli_epi32::<16>(levels[0]);
                let even = _mm512_or_si512(
                    _mm512_permutexvar_epi32(_mm512_srli_epi32::<4>(a), first),
                    _mm512_permutexvar_epi32(_mm512_srli_epi32::<4>(b), levels[1]),
                );
                let odd = _mm512_or_si512(
                    _mm512_permutexvar_epi32(a, first),
                    _mm512_permutexvar_epi32(b, levels[1]),
                );
                store_interleaved(even, odd, pairs);
            }
        }
    }
}
