//! Blocks of four-bit normal floats to runs of f32 or pairs of bf16; the format is that of
//! [`crate::nf4`].

#[cfg(target_arch = "x86_64")]
use std::ops::Range;

#[cfg(target_arch = "x86_64")]
use super::layout::Layout;
use crate::cpu::float::bf16_bits;
use crate::{
    Compute, Isa,
    nf4::{ABSMAX_GROUP, BLOCK, LEVELS, restore_absmax},
};

/// Lanes of the panels that are packed as a whole.
#[cfg(target_arch = "x86_64")]
pub(super) const PANEL: usize = 32;

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

    /// The same, by the numbers of the code.
    ///
    /// # Safety
    /// There must be as many blocks.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub(super) unsafe fn absmax_by(&self, code: &[f32; 256], block: usize) -> f32 {
        // SAFETY: the block is there, by the caller's promise.
        let (scale, coded) = unsafe {
            (
                *self.absmax_scales.get_unchecked(block / ABSMAX_GROUP),
                *self.absmax_codes.get_unchecked(block),
            )
        };
        code[usize::from(coded)] * scale + self.absmax_offset
    }

    /// Asks for the line of codes of an element, and the absmax codes beside it.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub(super) fn ask_for(&self, element: usize) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch may be of any address.
        unsafe {
            _mm_prefetch::<_MM_HINT_T0>(self.codes.as_ptr().wrapping_add(element / 2).cast());
            let absmax = self.absmax_codes.as_ptr().wrapping_add(element / BLOCK);
            _mm_prefetch::<_MM_HINT_T0>(absmax.cast());
        }
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
            // SAFETY: the device was made with instructions that this processor has.
            return unsafe { x86::halves_across(self, starts, pairs) };
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

    /// Packs `lanes` × `depth` of a matrix with rows of `stride` into panels of pairs, [`PANEL`] lanes wide
    /// and as deep as `depth`, on AVX-512 with bf16; or says that it cannot: where blocks begin within them.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn pack_panels(
        &self,
        isa: Isa,
        (layout, stride): (Layout, usize),
        lanes: Range<usize>,
        depth: Range<usize>,
        packed: &mut [u32],
    ) -> bool {
        let is_whole = |n: usize, range: &Range<usize>| {
            range.start.is_multiple_of(n) && range.len().is_multiple_of(n)
        };
        let fits = match layout {
            Layout::Depth => is_whole(BLOCK, &depth),
            Layout::Lanes => is_whole(PANEL, &lanes) && depth.len().is_multiple_of(2),
        };
        if isa < Isa::Avx512Bf16 || !stride.is_multiple_of(BLOCK) || !fits {
            return false;
        }
        let (rows, columns) = match layout {
            Layout::Depth => (&lanes, &depth),
            Layout::Lanes => (&depth, &lanes),
        };
        let end = rows.end.saturating_sub(1) * stride + columns.end;
        let there = [2 * self.codes.len(), BLOCK * self.absmax_codes.len(), self.n_elements];
        assert!(there.iter().all(|&n| n >= end), "{end} elements of {there:?}");
        assert!(self.absmax_scales.len() * ABSMAX_GROUP * BLOCK >= end);
        assert!(packed.len() >= lanes.len().next_multiple_of(PANEL) * depth.len() / 2);
        // SAFETY: the device was made with instructions that this processor has; all that is read and
        // written is there, as just checked.
        unsafe {
            match layout {
                Layout::Depth => x86::pack_along(self, stride, lanes, depth, packed),
                Layout::Lanes => x86::pack_across(self, stride, lanes, depth, packed),
            }
        }
        true
    }
}

/// A byte holds an element of even index in its high nibble and the next in its low one. One
/// register holds all 16 levels, of which a permutation picks by the lowest four bits of each lane.
#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{
        super::{
            layout::{LANES_AHEAD, STEPS_AHEAD},
            transpose::LANES,
        },
        BLOCK, Compute, HALF, LEVELS, Nf4Values, PANEL, Range,
    };
    use crate::blockwise::DynamicCode;

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

    /// [`table`] in bf16: the bits of each in the lower half of a lane.
    ///
    /// # Safety
    /// There must be as many blocks.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn narrow_table(values: &Nf4Values<'_>, code: &[f32; 256], block: usize) -> __m512i {
        // SAFETY: the block is there, by the caller's promise; bits of one vector type are valid for
        // another.
        unsafe {
            let absmax = _mm512_set1_ps(values.absmax_by(code, block));
            let levels = _mm512_mul_ps(_mm512_loadu_ps(LEVELS.as_ptr()), absmax);
            let rounded = std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(levels));
            _mm512_cvtepu16_epi32(rounded)
        }
    }

    /// The 16 bytes of codes from element `start` on, one a lane.
    ///
    /// # Safety
    /// They must be there.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn lanes_at(values: &Nf4Values<'_>, start: usize) -> __m512i {
        // SAFETY: by the caller's promise.
        unsafe {
            _mm512_cvtepu8_epi32(_mm_loadu_si128(values.codes.as_ptr().add(start / 2).cast()))
        }
    }

    /// [`Nf4Values::pack_panels`] where neighbours are neighbouring lanes.
    ///
    /// # Safety
    /// The matrix and the panels must be as large as is asked for.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub unsafe fn pack_across(
        values: &Nf4Values<'_>,
        stride: usize,
        columns: Range<usize>,
        depth: Range<usize>,
        packed: &mut [u32],
    ) {
        let n_steps = depth.len() / 2;
        let code = DynamicCode::signed().values();
        let (mut first, mut second) = (_mm512_setzero_si512(), _mm512_setzero_si512());
        for step in 0..n_steps {
            let row = depth.start + 2 * step;
            for ahead in 0..2 {
                let row = (row + 2 * STEPS_AHEAD + ahead) * stride;
                for start in columns.clone().step_by(2 * BLOCK) {
                    values.ask_for(row + start);
                }
            }
            for (panel, lane) in columns.clone().step_by(PANEL).enumerate() {
                let starts = [row * stride + lane, (row + 1) * stride + lane];
                // SAFETY: rows and columns are there, and so is the step of the panel.
                unsafe {
                    if panel == 0 || lane.is_multiple_of(BLOCK) {
                        first = narrow_table(values, code, starts[0] / BLOCK);
                        second =
                            _mm512_slli_epi32::<16>(narrow_table(values, code, starts[1] / BLOCK));
                    }
                    let [a, b] = [lanes_at(values, starts[0]), lanes_at(values, starts[1])];
                    let even = _mm512_or_si512(
                        _mm512_permutexvar_epi32(_mm512_srli_epi32::<4>(a), first),
                        _mm512_permutexvar_epi32(_mm512_srli_epi32::<4>(b), second),
                    );
                    let odd = _mm512_or_si512(
                        _mm512_permutexvar_epi32(a, first),
                        _mm512_permutexvar_epi32(b, second),
                    );
                    let pairs = packed.as_mut_ptr().add((panel * n_steps + step) * PANEL);
                    store_interleaved(even, odd, &mut *pairs.cast());
                }
            }
        }
    }

    /// [`Nf4Values::pack_panels`] where neighbours are neighbours in k. A byte holds a pair, so that bytes are
    /// turned and not pairs: 16 of 16 lanes at a time.
    ///
    /// # Safety
    /// The matrix and the panels must be as large as is asked for.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub unsafe fn pack_along(
        values: &Nf4Values<'_>,
        stride: usize,
        rows: Range<usize>,
        depth: Range<usize>,
        packed: &mut [u32],
    ) {
        let n_steps = depth.len() / 2;
        let code = DynamicCode::signed().values();
        // SAFETY: 16 elements are there.
        let levels = unsafe { _mm512_loadu_ps(LEVELS.as_ptr()) };
        // The lower and the upper half of a register, word by word.
        let halves: [u16; 32] = std::array::from_fn(|i| (i / 2 + i % 2 * LANES) as u16);
        // SAFETY: 32 elements are there.
        let interleaved = unsafe { _mm512_loadu_si512(halves.as_ptr().cast()) };
        for (group, lane) in rows.clone().step_by(LANES).enumerate() {
            let n_lanes = LANES.min(rows.end - lane);
            let mask = ((1_u32 << n_lanes) - 1) as u16;
            let panel = &mut packed[group / 2 * n_steps * PANEL + group % 2 * LANES..];
            for k in depth.clone().step_by(BLOCK) {
                // Of lanes that do not exist, the last one that does. Nothing is gathered in an array, which
                // the compiler would put in memory and read back before it is there.
                let start = |i: usize| (lane + i.min(n_lanes - 1)) * stride + k;
                let at = |i| {
                    values.ask_for(start(i) + LANES_AHEAD * stride);
                    // SAFETY: the row is there.
                    unsafe { values.absmax_by(code, start(i) / BLOCK) }
                };
                let absmax = _mm512_setr_ps(
                    at(0),
                    at(1),
                    at(2),
                    at(3),
                    at(4),
                    at(5),
                    at(6),
                    at(7),
                    at(8),
                    at(9),
                    at(10),
                    at(11),
                    at(12),
                    at(13),
                    at(14),
                    at(15),
                );
                for half in [0, HALF] {
                    let row = |i| {
                        let codes = values.codes.as_ptr().wrapping_add((start(i) + half) / 2);
                        // SAFETY: the row is there.
                        unsafe { _mm_loadu_si128(codes.cast()) }
                    };
                    // In quarter q row 4q + i.
                    let fours = |i| {
                        let all = _mm512_castsi128_si512(row(i));
                        let all = _mm512_inserti32x4::<1>(all, row(4 + i));
                        let all = _mm512_inserti32x4::<2>(all, row(8 + i));
                        _mm512_inserti32x4::<3>(all, row(12 + i))
                    };
                    let codes = turned_bytes(fours(0), fours(1), fours(2), fours(3));
                    let first = (k - depth.start + half) / 2;
                    for (step, codes) in codes.into_iter().enumerate() {
                        let low = _mm512_cvtepu8_epi32(codes);
                        let high = _mm512_srli_epi32::<4>(low);
                        let number =
                            |code| _mm512_mul_ps(_mm512_permutexvar_ps(code, levels), absmax);
                        let both = _mm512_cvtne2ps_pbh(number(low), number(high));
                        // SAFETY: bits of one vector type are valid for another; the step's lanes are
                        // there.
                        unsafe {
                            let both = std::mem::transmute::<__m512bh, __m512i>(both);
                            let pairs = _mm512_permutexvar_epi16(interleaved, both);
                            let place = panel.as_mut_ptr().add((first + step) * PANEL);
                            _mm512_mask_storeu_epi32(place.cast(), mask, pairs);
                        }
                    }
                }
            }
        }
    }

    /// Sixteen rows of bytes as their columns: rows are interleaved by bytes, then by twos; then the fours of
    /// one column come together. Of the rows `a` has 0, 4, 8 and 12, `b` the next of each, and so on.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn turned_bytes(a: __m512i, b: __m512i, c: __m512i, d: __m512i) -> [__m128i; LANES] {
        let (low, high) = (_mm512_unpacklo_epi8(a, b), _mm512_unpackhi_epi8(a, b));
        let (low_next, high_next) = (_mm512_unpacklo_epi8(c, d), _mm512_unpackhi_epi8(c, d));
        // In quarter q four columns, of each the bytes of rows 4q to 4q + 3.
        let fours = [
            _mm512_unpacklo_epi16(low, low_next),
            _mm512_unpackhi_epi16(low, low_next),
            _mm512_unpacklo_epi16(high, high_next),
            _mm512_unpackhi_epi16(high, high_next),
        ];
        let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        let mut columns = [_mm_setzero_si128(); LANES];
        for (fours, columns) in fours.into_iter().zip(columns.as_chunks_mut::<4>().0) {
            let turned = _mm512_permutexvar_epi32(order, fours);
            *columns = [
                _mm512_castsi512_si128(turned),
                _mm512_extracti32x4_epi32::<1>(turned),
                _mm512_extracti32x4_epi32::<2>(turned),
                _mm512_extracti32x4_epi32::<3>(turned),
            ];
        }
        columns
    }

    /// Whole halves of blocks of two runs as pairs.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub fn halves_across(values: &Nf4Values<'_>, starts: [usize; 2], pairs: &mut [u32]) {
        let mut levels = [_mm512_setzero_si512(); 2];
        for (i, pairs) in pairs.as_chunks_mut::<HALF>().0.iter_mut().enumerate() {
            let starts = starts.map(|start| start + i * HALF);
            for (levels, start) in levels.iter_mut().zip(starts) {
                if i == 0 || start.is_multiple_of(BLOCK) {
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
