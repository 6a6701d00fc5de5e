//! Numbers from what they are stored as to runs of f32 or pairs of bf16.

#[cfg(target_arch = "x86_64")]
use std::ops::Range;

use half::bf16;

use super::nf4::{HALF, Nf4Values};
#[cfg(target_arch = "x86_64")]
use super::{layout::Layout, nf4};
use crate::{
    Compute, Isa,
    cpu::{float::bf16_bits, math::for_each_isa},
    nf4::BLOCK,
    random::Dropout,
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

impl Values<'_> {
    pub fn len(&self) -> usize {
        match self {
            Self::F32(values) | Self::Dropped(values, _) => values.len(),
            Self::Bf16(values) => values.len(),
            Self::Nf4(values) => values.n_elements,
        }
    }

    /// The numbers from `start` on, of what is stored one by one.
    ///
    /// # Panics
    /// Where the index of a number matters.
    pub fn starting_at(self, start: usize) -> Self {
        match self {
            Self::F32(values) => Self::F32(&values[start..]),
            Self::Bf16(values) => Self::Bf16(&values[start..]),
            Self::Dropped(..) | Self::Nf4(_) => panic!("a part of {self:?}"),
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
                if [first, second, n].iter().all(|at| at.is_multiple_of(HALF)) =>
            {
                values.halves_across(isa, [first, second], pairs);
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

impl Values<'_> {
    /// Pairs of neighbours, as [`Values::pairs_along`] makes them of `n` elements of `n_lanes` rows
    /// `stride` apart, straight into the lanes of a panel of `width`, where there are instructions for
    /// that; returns whether there are.
    pub(super) fn pairs_turned(
        &self,
        isa: Isa,
        (start, stride): (usize, usize),
        n_lanes: usize,
        n: usize,
        packed: &mut [u32],
        width: usize,
    ) -> bool {
        #[cfg(target_arch = "x86_64")]
        if isa >= Isa::Avx512Bf16 {
            use super::transpose::x86;
            match *self {
                Self::F32(values) => {
                    let rows = (&values[start..], stride);
                    // SAFETY: the device was made with instructions that this processor has.
                    unsafe { x86::round_turned(rows, n_lanes, n, packed, width) };
                    return true;
                }
                Self::Bf16(values) => {
                    let rows = (&values[start..], stride);
                    // SAFETY: as above.
                    unsafe { x86::join_turned(rows, n_lanes, n, packed, width) };
                    return true;
                }
                Self::Dropped(..) | Self::Nf4(_) => {}
            }
        }
        let _ = (isa, start, stride, n_lanes, n, packed, width);
        false
    }
}

#[cfg(target_arch = "x86_64")]
impl Values<'_> {
    /// Packs `lanes` × `depth` of a matrix with rows of `stride` into whole panels of pairs, on AVX-512 with
    /// bf16; or says that it cannot.
    pub(super) fn pack_panels(
        &self,
        isa: Isa,
        (layout, stride): (Layout, usize),
        lanes: Range<usize>,
        depth: Range<usize>,
        (packed, width): (&mut [u32], usize),
    ) -> bool {
        if let Self::Nf4(values) = self {
            return width == nf4::PANEL
                && values.pack_panels(isa, (layout, stride), lanes, depth, packed);
        }
        let is_whole = width.is_multiple_of(16)
            && lanes.len().is_multiple_of(width)
            && depth.len().is_multiple_of(2);
        if isa < Isa::Avx512Bf16 || layout != Layout::Lanes || !is_whole {
            return false;
        }
        let end = depth.end.saturating_sub(1) * stride + lanes.end;
        assert!(self.len() >= end && packed.len() >= lanes.len() * depth.len() / 2);
        let matrix = (stride, lanes, depth);
        // SAFETY: the device was made with instructions that this processor has; all that is read and
        // written is there, as just checked.
        unsafe {
            match self {
                Self::F32(values) => x86::pack_across_f32(values, matrix, (packed, width)),
                Self::Bf16(values) => x86::pack_across_bf16(values, matrix, (packed, width)),
                Self::Dropped(..) | Self::Nf4(_) => return false,
            }
        }
        true
    }
}

/// Panels side by side, of which one step is written.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
pub(super) struct Panels {
    /// Lanes of a panel.
    pub width: usize,
    /// Elements from one panel to the next.
    pub stride: usize,
    /// Whether the next step, which will be written later, lies behind this one in every panel.
    pub has_next: bool,
}

impl Values<'_> {
    /// As [`Values::pairs_across`], of `n` elements and straight into whole panels, where there are
    /// instructions for that; returns how many elements were written.
    pub(super) fn panels_across(
        &self,
        isa: Isa,
        starts: [usize; 2],
        n: usize,
        panels: Panels,
        packed: &mut [u32],
    ) -> usize {
        #[cfg(target_arch = "x86_64")]
        if isa >= Isa::Avx512Bf16 {
            let n = n / panels.width * panels.width;
            let is_wide = panels.width.is_multiple_of(16);
            match *self {
                Self::F32(values) => {
                    let runs = starts.map(|start| &values[start..start + n]);
                    // SAFETY: the device was made with instructions that this processor has.
                    unsafe {
                        if is_wide {
                            x86::round_into_panels(runs, panels, packed);
                        } else {
                            x86::round_into_narrow_panels(runs, panels, packed);
                        }
                    }
                    return n;
                }
                Self::Bf16(values) => {
                    let runs = starts.map(|start| &values[start..start + n]);
                    // SAFETY: as above.
                    unsafe {
                        if is_wide {
                            x86::join_into_panels(runs, panels, packed);
                        } else {
                            x86::join_into_narrow_panels(runs, panels, packed);
                        }
                    }
                    return n;
                }
                _ => {}
            }
        }
        let _ = (isa, starts, n, panels, packed);
        0
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

#[cfg(target_arch = "x86_64")]
pub(super) mod x86 {
    use std::arch::x86_64::*;

    use half::bf16;

    use super::{super::layout::STEPS_AHEAD, Panels, Range};

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

    /// Rows of which `pairs` joins two at 16 places, into whole panels: see [`super::Values::pack_panels`].
    ///
    /// # Safety
    /// The matrix and the panels must be as large as is asked for.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn pack_across<T>(
        values: &[T],
        (stride, columns, depth): (usize, Range<usize>, Range<usize>),
        (packed, width): (&mut [u32], usize),
        pairs: unsafe fn(*const T, *const T) -> __m512i,
    ) {
        let n_steps = depth.len() / 2;
        let row = |k: usize| values.as_ptr().wrapping_add(k * stride + columns.start);
        for step in 0..n_steps {
            let k = depth.start + 2 * step;
            for ahead in [0, 1] {
                let row = row(k + 2 * STEPS_AHEAD + ahead);
                for lane in (0..columns.len()).step_by(64 / size_of::<T>()) {
                    _mm_prefetch::<_MM_HINT_T0>(row.wrapping_add(lane).cast());
                }
            }
            let (first, second) = (row(k), row(k + 1));
            for (panel, lane) in (0..columns.len()).step_by(width).enumerate() {
                for column in (0..width).step_by(16) {
                    // SAFETY: by the caller's promise.
                    unsafe {
                        let pairs = pairs(first.add(lane + column), second.add(lane + column));
                        let place = (panel * n_steps + step) * width + column;
                        _mm512_storeu_si512(packed.as_mut_ptr().add(place).cast(), pairs);
                    }
                }
            }
        }
    }

    /// [`pack_across`] of f32, rounded.
    ///
    /// # Safety
    /// As there.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub unsafe fn pack_across_f32(
        values: &[f32],
        matrix: (usize, Range<usize>, Range<usize>),
        panels: (&mut [u32], usize),
    ) {
        // SAFETY: by the caller's promise.
        unsafe { pack_across(values, matrix, panels, round_pairs) };
    }

    /// [`pack_across`] of bf16.
    ///
    /// # Safety
    /// As there.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub unsafe fn pack_across_bf16(
        values: &[bf16],
        matrix: (usize, Range<usize>, Range<usize>),
        panels: (&mut [u32], usize),
    ) {
        // SAFETY: by the caller's promise.
        unsafe { pack_across(values, matrix, panels, join_pairs) };
    }

    /// 16 numbers of each run, rounded, as pairs.
    ///
    /// # Safety
    /// They must be there.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub unsafe fn round_pairs(first: *const f32, second: *const f32) -> __m512i {
        // SAFETY: by the caller's promise; bits of one vector type are valid for another.
        unsafe {
            let both = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(second), _mm512_loadu_ps(first));
            interleaved(std::mem::transmute::<__m512bh, __m512i>(both))
        }
    }

    /// 16 numbers of each run as pairs.
    ///
    /// # Safety
    /// They must be there.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    pub unsafe fn join_pairs(first: *const bf16, second: *const bf16) -> __m512i {
        // SAFETY: by the caller's promise.
        unsafe {
            let low = _mm512_cvtepu16_epi32(_mm256_loadu_si256(first.cast()));
            let high = _mm512_cvtepu16_epi32(_mm256_loadu_si256(second.cast()));
            _mm512_or_si512(low, _mm512_slli_epi32::<16>(high))
        }
    }

    /// Words 0, 16, 1, 17, … of a vector.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn interleaved(both: __m512i) -> __m512i {
        let turned = _mm512_setr_epi32(
            0x10_0000, 0x11_0001, 0x12_0002, 0x13_0003, 0x14_0004, 0x15_0005, 0x16_0006, 0x17_0007,
            0x18_0008, 0x19_0009, 0x1a_000a, 0x1b_000b, 0x1c_000c, 0x1d_000d, 0x1e_000e, 0x1f_000f,
        );
        _mm512_permutexvar_epi16(turned, both)
    }

    /// 16 numbers of each run, rounded, to 16 pairs.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    fn store_pairs(pairs: &mut [u32; 16], first: &[f32; 16], second: &[f32; 16]) {
        // SAFETY: 16 elements of each are there.
        unsafe {
            let both = round_pairs(first.as_ptr(), second.as_ptr());
            _mm512_storeu_si512(pairs.as_mut_ptr().cast(), both);
        }
    }

    /// As [`round_along`], from two runs.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub fn round_across(first: &[f32], second: &[f32], pairs: &mut [u32]) -> usize {
        let pairs = pairs.as_chunks_mut().0;
        let n = pairs.len() * 16;
        let runs = first.as_chunks().0.iter().zip(second.as_chunks().0);
        for (pairs, (first, second)) in pairs.iter_mut().zip(runs) {
            store_pairs(pairs, first, second);
        }
        n
    }

    /// As [`round_across`], into whole panels of whole vectors.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub fn round_into_panels(runs: [&[f32]; 2], panels: Panels, packed: &mut [u32]) {
        let [first, second] = runs.map(|run| run.chunks_exact(panels.width));
        for (panel, (first, second)) in first.zip(second).enumerate() {
            let packed = packed[panel * panels.stride..][..panels.width].as_chunks_mut().0;
            let runs = first.as_chunks().0.iter().zip(second.as_chunks().0);
            for (pairs, (first, second)) in packed.iter_mut().zip(runs) {
                store_pairs(pairs, first, second);
            }
        }
    }

    /// The lanes of a panel that is narrower than a vector.
    fn lanes_of(panels: Panels) -> __mmask16 {
        // What is beyond a step lies in the next one.
        assert!((8..16).contains(&panels.width));
        (1 << panels.width) - 1
    }

    /// Pairs into one step of a panel that is narrower than a vector.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn store_narrow(pairs: __m512i, panels: Panels, packed: &mut [u32]) {
        if panels.has_next {
            // The next step will be written over what is beyond this one.
            let packed = &mut packed[..16];
            // SAFETY: 16 elements are there.
            unsafe { _mm512_storeu_si512(packed.as_mut_ptr().cast(), pairs) };
        } else {
            let packed = &mut packed[..panels.width];
            // SAFETY: the lanes of the mask are there.
            unsafe {
                _mm512_mask_storeu_epi32(packed.as_mut_ptr().cast(), lanes_of(panels), pairs);
            }
        }
    }

    /// As [`round_across`], into whole panels that are narrower than a vector.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub fn round_into_narrow_panels(runs: [&[f32]; 2], panels: Panels, packed: &mut [u32]) {
        let lanes = lanes_of(panels);
        let [first, second] = runs.map(|run| run.chunks_exact(panels.width));
        for (panel, (first, second)) in first.zip(second).enumerate() {
            // SAFETY: the mask names no more than is there; bits of one vector type are valid for another.
            let pairs = unsafe {
                let low = _mm512_maskz_loadu_ps(lanes, first.as_ptr());
                let high = _mm512_maskz_loadu_ps(lanes, second.as_ptr());
                let both = _mm512_cvtne2ps_pbh(high, low);
                interleaved(std::mem::transmute::<__m512bh, __m512i>(both))
            };
            store_narrow(pairs, panels, &mut packed[panel * panels.stride..]);
        }
    }

    /// Pairs of bf16, into whole panels that are narrower than a vector.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub fn join_into_narrow_panels(runs: [&[bf16]; 2], panels: Panels, packed: &mut [u32]) {
        let lanes = lanes_of(panels);
        let [first, second] = runs.map(|run| run.chunks_exact(panels.width));
        for (panel, (first, second)) in first.zip(second).enumerate() {
            // SAFETY: the mask names no more than is there.
            let [low, high] = unsafe {
                [first, second].map(|run| _mm256_maskz_loadu_epi16(lanes, run.as_ptr().cast()))
            };
            let high = _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(high));
            let pairs = _mm512_or_si512(_mm512_cvtepu16_epi32(low), high);
            store_narrow(pairs, panels, &mut packed[panel * panels.stride..]);
        }
    }

    /// Pairs of bf16, into whole panels of whole vectors.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub fn join_into_panels(runs: [&[bf16]; 2], panels: Panels, packed: &mut [u32]) {
        let [first, second] = runs.map(|run| run.chunks_exact(panels.width));
        for (panel, (first, second)) in first.zip(second).enumerate() {
            let packed = packed[panel * panels.stride..][..panels.width].as_chunks_mut::<16>().0;
            let runs = first.as_chunks::<16>().0.iter().zip(second.as_chunks::<16>().0);
            for (pairs, (first, second)) in packed.iter_mut().zip(runs) {
                // SAFETY: 16 elements of each are there.
                unsafe {
                    let both = join_pairs(first.as_ptr(), second.as_ptr());
                    _mm512_storeu_si512(pairs.as_mut_ptr().cast(), both);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Nf4Parts, Random};

    /// Every way of storing numbers, every instruction set, aligned to blocks and not.
    #[test]
    fn pairs_are_the_rounded_numbers_on_every_path() {
        const N: usize = 1024;
        let mut random = Random::new(1);
        let mut plain = random.normal(N);
        plain[..4].copy_from_slice(&[-0.0, f32::NAN, f32::INFINITY, f32::MAX]);
        let narrow: Vec<_> = plain.iter().map(|&value| bf16::from_f32(value)).collect();
        let parts = Nf4Parts::quantize(&random.normal(N));
        let stored = [
            (Values::F32(&plain), plain.clone()),
            (Values::Bf16(&narrow), narrow.iter().map(|value| value.to_f32()).collect()),
            (Values::Nf4(parts.stored()), parts.values()),
        ];
        for (values, expected) in stored {
            let expected: Vec<_> = expected.into_iter().map(bf16_bits).collect();
            for isa in Isa::available() {
                for (start, n) in
                    [(0, 512), (64, 128), (96, 160), (3, 97), (130, 64), (1000, 24), (7, 1)]
                {
                    let second = if start < 512 { start + 256 } else { start - 256 };
                    let at = |i: usize| if i < start + n { expected[i] } else { 0 };
                    let mut pairs = vec![u32::MAX; n.div_ceil(2)];
                    values.pairs_along(isa, start, n, &mut pairs);
                    for (i, pair) in pairs.iter().enumerate() {
                        let i = start + 2 * i;
                        assert_eq!(*pair, at(i) | at(i + 1) << 16, "{isa}: {values:?} at {i}");
                    }
                    let mut pairs = vec![u32::MAX; n];
                    values.pairs_across(isa, start, Some(second), &mut pairs);
                    for (i, pair) in pairs.iter().enumerate() {
                        let expected = expected[start + i] | expected[second + i] << 16;
                        assert_eq!(*pair, expected, "{isa}: {values:?} at {start} + {i}");
                    }
                    values.pairs_across(isa, start, None, &mut pairs);
                    assert_eq!(pairs, expected[start..start + n], "{isa}: alone from {start}");
                }
                const STRIDE: usize = 250;
                for (start, n_lanes, n, width) in
                    [(0, 3, 97_usize, 14), (7, 1, 1, 8), (64, 3, 128, 14), (3, 3, 33, 32)]
                {
                    let mut panel = vec![u32::MAX; n.div_ceil(2) * width];
                    let rows = (start, STRIDE);
                    if !values.pairs_turned(isa, rows, n_lanes, n, &mut panel, width) {
                        continue;
                    }
                    for (i, packed) in panel.into_iter().enumerate() {
                        let (step, lane) = (i / width, i % width);
                        let row = start + lane * STRIDE;
                        let at = |i: usize| if i < n { expected[row + i] } else { 0 };
                        let pair = if lane < n_lanes {
                            at(2 * step) | at(2 * step + 1) << 16
                        } else {
                            u32::MAX
                        };
                        assert_eq!(packed, pair, "{isa}: {values:?}, lane {lane} at {step}");
                    }
                }
            }
        }
    }
}
