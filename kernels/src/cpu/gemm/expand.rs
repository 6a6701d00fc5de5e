//! Weights from what they are stored as to runs of f32 or pairs of bf16.

use half::bf16;

use crate::{
    Compute, Isa,
    cpu::math::for_each_isa,
    lora::Dropout,
    nf4::{ABSMAX_GROUP, BLOCK, LEVELS, restore_absmax},
};

/// The most elements that are expanded at a time.
pub(super) const RUN: usize = 512;

/// The numbers of a matrix.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Values<'a> {
    F32(&'a [f32]),
    /// f32 of which some are dropped; the index of an element decides.
    Dropped(&'a [f32], Dropout),
    Bf16(&'a [bf16]),
    Nf4(Nf4Values<'a>),
}

/// A quantised tensor, read flat.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Nf4Values<'a> {
    pub n_elements: usize,
    pub codes: &'a [u8],
    pub absmax_codes: &'a [u8],
    pub absmax_scales: &'a [f32],
    pub absmax_offset: f32,
}

impl Values<'_> {
    pub fn len(&self) -> usize {
        match self {
            Self::F32(values) | Self::Dropped(values, _) => values.len(),
            Self::Bf16(values) => values.len(),
            Self::Nf4(values) => values.n_elements,
        }
    }

    /// Asks for the bytes of `n` elements from `start` on, which will be read soon. Rows of a matrix
    /// are far apart, so that the processor does not guess the next one itself.
    #[inline]
    pub fn prefetch(&self, start: usize, n: usize) {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            let lines = |bytes: *const u8, len: usize| {
                for line in (0..len).step_by(64) {
                    // SAFETY: a prefetch may be of any address.
                    unsafe { _mm_prefetch::<_MM_HINT_T0>(bytes.wrapping_add(line).cast()) };
                }
            };
            match self {
                Self::F32(values) | Self::Dropped(values, _) => {
                    lines(values.as_ptr().wrapping_add(start).cast(), n * size_of::<f32>());
                }
                Self::Bf16(values) => {
                    lines(values.as_ptr().wrapping_add(start).cast(), n * size_of::<bf16>());
                }
                Self::Nf4(values) => {
                    lines(values.codes.as_ptr().wrapping_add(start / 2), n / 2);
                    lines(values.absmax_codes.as_ptr().wrapping_add(start / BLOCK), 1);
                }
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = (start, n);
    }

    /// The elements from `start` on in f32, rounded to the precision of the products; `run` gives
    /// their number and the place for those that are not stored so.
    pub fn expand<'s>(
        &'s self,
        isa: Isa,
        compute: Compute,
        start: usize,
        run: &'s mut [f32],
    ) -> &'s [f32] {
        if let (Self::F32(values), Compute::F32) = (self, compute) {
            return &values[start..start + run.len()];
        }
        self.fill(isa, compute, start, run);
        run
    }

    /// As [`Values::expand`], always into `run`.
    pub fn fill(&self, isa: Isa, compute: Compute, start: usize, run: &mut [f32]) {
        let end = start + run.len();
        match *self {
            Self::F32(values) => {
                run.copy_from_slice(&values[start..end]);
                round(isa, compute, run);
            }
            Self::Dropped(values, dropout) => {
                run.copy_from_slice(&values[start..end]);
                dropout.apply(isa, start, run);
                round(isa, compute, run);
            }
            Self::Bf16(values) => widen(isa, &values[start..end], run),
            Self::Nf4(values) => values.expand(isa, compute, start, run),
        }
    }

    /// `pairs[i]` = the elements `start + 2i` and `start + 2i + 1`, of `n`; after an odd last one
    /// comes zero.
    pub fn pairs_along(&self, isa: Isa, start: usize, n: usize, pairs: &mut [u32]) {
        let pairs = &mut pairs[..n.div_ceil(2)];
        match *self {
            Self::F32(values) => round_along(isa, &values[start..start + n], pairs),
            Self::Bf16(values) => join_along(isa, &values[start..start + n], pairs),
            Self::Nf4(values) if start.is_multiple_of(BLOCK) && n.is_multiple_of(BLOCK) => {
                values.blocks_along(isa, start / BLOCK, pairs);
            }
            _ => {
                let mut run = [0.0; RUN];
                let run = self.expand(isa, Compute::F32, start, &mut run[..n]);
                round_along(isa, run, pairs);
            }
        }
    }

    /// `pairs[i]` = the elements `first + i` and `second + i`; without a second, zero.
    pub fn pairs_across(&self, isa: Isa, first: usize, second: Option<usize>, pairs: &mut [u32]) {
        let n = pairs.len();
        match (*self, second) {
            (Self::F32(values), Some(second)) => {
                round_across(isa, &values[first..first + n], &values[second..second + n], pairs);
            }
            (Self::Bf16(values), Some(second)) => {
                join_across(isa, &values[first..first + n], &values[second..second + n], pairs);
            }
            (Self::Nf4(values), Some(second))
                if [first, second, n].iter().all(|at| at.is_multiple_of(BLOCK)) =>
            {
                values.blocks_across(isa, first / BLOCK, second / BLOCK, pairs);
            }
            _ => {
                let (mut run, mut second_run) = ([0.0; RUN], [0.0; RUN]);
                let first = self.expand(isa, Compute::F32, first, &mut run[..n]);
                let second = match second {
                    Some(second) => self.expand(isa, Compute::F32, second, &mut second_run[..n]),
                    None => &second_run[..n],
                };
                round_across(isa, first, second, pairs);
            }
        }
    }
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

    fn expand(&self, isa: Isa, compute: Compute, start: usize, run: &mut [f32]) {
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
    fn blocks_along(&self, isa: Isa, first: usize, pairs: &mut [u32]) {
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

    /// Elements of two runs of whole blocks as pairs.
    fn blocks_across(&self, isa: Isa, first: usize, second: usize, pairs: &mut [u32]) {
        #[cfg(target_arch = "x86_64")]
        if isa >= Isa::Avx512 {
            // SAFETY: the device was made with instructions that this processor has.
            return unsafe { x86::blocks_across(self, first, second, pairs) };
        }
        let _ = isa;
        for (i, pairs) in pairs.as_chunks_mut::<BLOCK>().0.iter_mut().enumerate() {
            let levels = [first, second].map(|block| self.levels(Compute::Bf16, block + i));
            let codes = [first, second].map(|block| self.block_codes(block + i));
            let bytes = codes[0].iter().zip(codes[1]);
            for (pairs, (a, b)) in pairs.as_chunks_mut::<2>().0.iter_mut().zip(bytes) {
                *pairs = [4, 0].map(|shift| {
                    levels[0][usize::from(a >> shift & 15)].to_bits() >> 16
                        | levels[1][usize::from(b >> shift & 15)].to_bits()
                });
            }
        }
    }
}

for_each_isa! {
    fn widen(values: &[bf16], run: &mut [f32]) {
        for (run, value) in run.iter_mut().zip(values) {
            *run = f32::from_bits(u32::from(value.to_bits()) << 16);
        }
    }
}

for_each_isa! {
    /// Neighbours as pairs.
    fn join_along(values: &[bf16], pairs: &mut [u32]) {
        for (pair, values) in pairs.iter_mut().zip(values.chunks_exact(2)) {
            *pair = u32::from(values[0].to_bits()) | u32::from(values[1].to_bits()) << 16;
        }
        if let [last] = values.chunks_exact(2).remainder() {
            pairs[values.len() / 2] = u32::from(last.to_bits());
        }
    }
}

for_each_isa! {
    /// Elements of two runs as pairs.
    fn join_across(first: &[bf16], second: &[bf16], pairs: &mut [u32]) {
        for (pair, (first, second)) in pairs.iter_mut().zip(first.iter().zip(second)) {
            *pair = u32::from(first.to_bits()) | u32::from(second.to_bits()) << 16;
        }
    }
}

/// Neighbours, rounded, as pairs.
fn round_along(isa: Isa, run: &[f32], pairs: &mut [u32]) {
    let mut done = 0;
    #[cfg(target_arch = "x86_64")]
    if isa >= Isa::Avx512Bf16 {
        // SAFETY: the device was made with instructions that this processor has.
        done = unsafe { x86::round_along(run, pairs) };
    }
    let _ = isa;
    let pieces = run.chunks(2).zip(pairs).skip(done);
    for (values, pair) in pieces {
        *pair = bf16_bits(values[0]) | values.get(1).map_or(0, |&value| bf16_bits(value) << 16);
    }
}

/// Elements of two runs, rounded, as pairs.
fn round_across(isa: Isa, first: &[f32], second: &[f32], pairs: &mut [u32]) {
    let mut done = 0;
    #[cfg(target_arch = "x86_64")]
    if isa >= Isa::Avx512Bf16 {
        // SAFETY: the device was made with instructions that this processor has.
        done = unsafe { x86::round_across(first, second, pairs) };
    }
    let _ = isa;
    for (pair, (first, second)) in pairs.iter_mut().zip(first.iter().zip(second)).skip(done) {
        *pair = bf16_bits(*first) | bf16_bits(*second) << 16;
    }
}

/// Rounded to bf16 (nearest even), as bits.
#[inline(always)]
pub(crate) fn bf16_bits(value: f32) -> u32 {
    let bits = value.to_bits();
    // A NaN must not round to infinity; its bits may wrap here and are not used then.
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
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

/// A byte holds an element of even index in its high nibble and the next in its low one. One
/// register holds all 16 levels, of which a permutation picks by the lowest four bits of each lane.
#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{BLOCK, Compute, LEVELS, Nf4Values};

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

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub fn blocks_across(values: &Nf4Values<'_>, first: usize, second: usize, pairs: &mut [u32]) {
        for (i, pairs) in pairs.as_chunks_mut::<BLOCK>().0.iter_mut().enumerate() {
            let (first, second) = (first + i, second + i);
            let a_codes = values.block_codes(first).as_chunks().0;
            let b_codes = values.block_codes(second).as_chunks().0;
            let first = table(Compute::Bf16, values.absmax(first));
            let first = _mm512_srli_epi32::<16>(first);
            let second = table(Compute::Bf16, values.absmax(second));
            let codes = a_codes.iter().zip(b_codes);
            for ((a, b), pairs) in codes.zip(pairs.as_chunks_mut().0) {
                let (a, b) = (lanes(a), lanes(b));
                let even = _mm512_or_si512(
                    _mm512_permutexvar_epi32(_mm512_srli_epi32::<4>(a), first),
                    _mm512_permutexvar_epi32(_mm512_srli_epi32::<4>(b), second),
                );
                let odd = _mm512_or_si512(
                    _mm512_permutexvar_epi32(a, first),
                    _mm512_permutexvar_epi32(b, second),
                );
                store_interleaved(even, odd, pairs);
            }
        }
    }

    /// Rounds whole vectors to pairs; returns how many pairs that were. (The instruction flushes
    /// denormal numbers, as does the one that multiplies.)
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub fn round_along(run: &[f32], pairs: &mut [u32]) -> usize {
        let (run, pairs) = (run.as_chunks::<32>().0, pairs.as_chunks_mut::<16>().0);
        for (run, pairs) in run.iter().zip(pairs) {
            // SAFETY: 32 elements are read and 16 written, which are there; bits of one vector
            // type are valid for another.
            unsafe {
                let low = _mm512_loadu_ps(run.as_ptr());
                let high = _mm512_loadu_ps(run.as_ptr().add(16));
                let both: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(high, low));
                _mm512_storeu_si512(pairs.as_mut_ptr().cast(), both);
            }
        }
        run.len() * 16
    }

    /// As [`round_along`], from two runs.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub fn round_across(first: &[f32], second: &[f32], pairs: &mut [u32]) -> usize {
        // Words 0, 16, 1, 17, …
        let turned = _mm512_setr_epi32(
            0x10_0000, 0x11_0001, 0x12_0002, 0x13_0003, 0x14_0004, 0x15_0005, 0x16_0006, 0x17_0007,
            0x18_0008, 0x19_0009, 0x1a_000a, 0x1b_000b, 0x1c_000c, 0x1d_000d, 0x1e_000e, 0x1f_000f,
        );
        let pairs = pairs.as_chunks_mut::<16>().0;
        let n = pairs.len() * 16;
        let runs = first.as_chunks::<16>().0.iter().zip(second.as_chunks::<16>().0);
        for (pairs, (first, second)) in pairs.iter_mut().zip(runs) {
            // SAFETY: 16 elements of each are there; as in `round_along`.
            unsafe {
                let low = _mm512_loadu_ps(first.as_ptr());
                let high = _mm512_loadu_ps(second.as_ptr());
                let both: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(high, low));
                let both = _mm512_permutexvar_epi16(turned, both);
                _mm512_storeu_si512(pairs.as_mut_ptr().cast(), both);
            }
        }
        n
    }
}
