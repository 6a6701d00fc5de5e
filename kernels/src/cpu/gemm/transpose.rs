//! Turning rows along k into steps of a panel.

use crate::Isa;

/// The most rows that are turned at a time: the lanes of the widest vector.
pub(crate) const LANES: usize = 16;

/// Elements from one row to the next, and the most steps that are turned at a time: with 16 rows
/// they take half of a first-level cache.
pub(super) const STEPS: usize = 256;

/// `panel[step · width + lane] = rows[lane · stride + step]`. Of each row up to whole vectors are read,
/// which must be there.
pub(crate) fn transpose(
    isa: Isa,
    (rows, stride): (&[u32], usize),
    n_lanes: usize,
    n_steps: usize,
    panel: &mut [u32],
    width: usize,
) {
    assert!(n_lanes <= LANES.min(width));
    let needed = n_steps.saturating_sub(1) * width + n_lanes;
    let panel = &mut panel[..needed];
    #[cfg(target_arch = "x86_64")]
    if isa >= Isa::Avx512 {
        // SAFETY: the device was made with instructions that this processor has.
        return unsafe { x86::transpose_avx512((rows, stride), n_lanes, n_steps, panel, width) };
    } else if isa == Isa::Avx2 {
        // SAFETY: as above.
        return unsafe { x86::transpose_avx2((rows, stride), n_lanes, n_steps, panel, width) };
    }
    let _ = isa;
    for (step, panel) in panel.chunks_mut(width).enumerate() {
        for (lane, packed) in panel.iter_mut().take(n_lanes).enumerate() {
            *packed = rows[lane * stride + step];
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) mod x86 {
    use std::arch::x86_64::*;

    use half::bf16;

    use super::LANES;

    /// As [`super::transpose`], 8 × 8 elements in registers: pairs of rows are interleaved by
    /// elements, then by twos, then halves are exchanged.
    #[target_feature(enable = "avx2")]
    pub fn transpose_avx2(
        (rows, stride): (&[u32], usize),
        n_lanes: usize,
        n_steps: usize,
        panel: &mut [u32],
        width: usize,
    ) {
        const SIDE: usize = 8;
        for first_lane in (0..n_lanes).step_by(SIDE) {
            let n_lanes = SIDE.min(n_lanes - first_lane);
            for first in (0..n_steps).step_by(SIDE) {
                let mut r = [_mm256_setzero_si256(); SIDE];
                for (lane, r) in r.iter_mut().enumerate().take(n_lanes) {
                    let row = &rows[(first_lane + lane) * stride + first..][..SIDE];
                    // SAFETY: eight elements are there.
                    *r = unsafe { _mm256_loadu_si256(row.as_ptr().cast()) };
                }
                let mut t = r;
                for i in (0..SIDE).step_by(2) {
                    t[i] = _mm256_unpacklo_epi32(r[i], r[i + 1]);
                    t[i + 1] = _mm256_unpackhi_epi32(r[i], r[i + 1]);
                }
                for i in (0..SIDE).step_by(4) {
                    r[i] = _mm256_unpacklo_epi64(t[i], t[i + 2]);
                    r[i + 1] = _mm256_unpackhi_epi64(t[i], t[i + 2]);
                    r[i + 2] = _mm256_unpacklo_epi64(t[i + 1], t[i + 3]);
                    r[i + 3] = _mm256_unpackhi_epi64(t[i + 1], t[i + 3]);
                }
                for s in 0..SIDE / 2 {
                    t[s] = _mm256_permute2x128_si256::<0x20>(r[s], r[4 + s]);
                    t[4 + s] = _mm256_permute2x128_si256::<0x31>(r[s], r[4 + s]);
                }
                for (step, t) in t.iter().enumerate().take(n_steps - first) {
                    let target = &mut panel[(first + step) * width + first_lane..][..n_lanes];
                    match n_lanes {
                        // SAFETY: eight elements are there.
                        SIDE => unsafe { _mm256_storeu_si256(target.as_mut_ptr().cast(), *t) },
                        // A panel's rows on this path.
                        // SAFETY: four elements and two are there.
                        6 => unsafe {
                            _mm_storeu_si128(
                                target.as_mut_ptr().cast(),
                                _mm256_castsi256_si128(*t),
                            );
                            let rest = _mm256_extracti128_si256::<1>(*t);
                            _mm_storel_epi64(target.as_mut_ptr().add(4).cast(), rest);
                        },
                        _ => {
                            let mut lanes = [0; SIDE];
                            // SAFETY: eight elements are there.
                            unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), *t) };
                            target.copy_from_slice(&lanes[..n_lanes]);
                        }
                    }
                }
            }
        }
    }

    /// As [`super::transpose`], 16 × 16 elements in registers.
    #[target_feature(enable = "avx512f")]
    pub fn transpose_avx512(
        (rows, stride): (&[u32], usize),
        n_lanes: usize,
        n_steps: usize,
        panel: &mut [u32],
        width: usize,
    ) {
        for first in (0..n_steps).step_by(LANES) {
            let mut block = [_mm512_setzero_si512(); LANES];
            for (lane, row) in block.iter_mut().enumerate().take(n_lanes) {
                let elements = &rows[lane * stride + first..][..LANES];
                // SAFETY: 16 elements are there.
                *row = unsafe { _mm512_loadu_si512(elements.as_ptr().cast()) };
            }
            store(turned(block), first, n_lanes, n_steps, panel, width);
        }
    }

    /// `panel[step · width + lane]` = the elements `2 · step` and `2 · step + 1` of row `lane`, rounded
    /// to pairs; `n` elements of rows `stride` apart.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub fn round_turned(
        rows: (&[f32], usize),
        n_lanes: usize,
        n: usize,
        panel: &mut [u32],
        width: usize,
    ) {
        turn_pairs(rows, n_lanes, n, panel, width, rounded);
    }

    /// As [`round_turned`], of bf16.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub fn join_turned(
        rows: (&[bf16], usize),
        n_lanes: usize,
        n: usize,
        panel: &mut [u32],
        width: usize,
    ) {
        turn_pairs(rows, n_lanes, n, panel, width, joined);
    }

    /// Rows of which `load` makes 16 pairs, of the elements that a mask says are there.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    fn turn_pairs<T>(
        (rows, stride): (&[T], usize),
        n_lanes: usize,
        n: usize,
        panel: &mut [u32],
        width: usize,
        load: unsafe fn(*const T, u32) -> __m512i,
    ) {
        for first in (0..n).step_by(2 * LANES) {
            let n_there = (n - first).min(2 * LANES);
            let there = ((1_u64 << n_there) - 1) as u32;
            // Of lanes that do not exist, the last one that does. One by one, as the compiler would put what a
            // loop or a closure of an array makes in memory.
            let row = |lane: usize| {
                let start = rows[lane.min(n_lanes - 1) * stride + first..][..n_there].as_ptr();
                for line in (0..2 * LANES).step_by(64 / size_of::<T>()) {
                    ask_for(start.wrapping_add(n_lanes * stride + line));
                }
                // SAFETY: what the mask names is there.
                unsafe { load(start, there) }
            };
            let block = [
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
            ];
            store(turned(block), first / 2, n_lanes, n.div_ceil(2), panel, width);
        }
    }

    /// 16 pairs of numbers, rounded.
    ///
    /// # Safety
    /// What the mask names must be there.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub unsafe fn rounded(start: *const f32, there: u32) -> __m512i {
        // SAFETY: by the caller's promise; bits of one vector type are valid for another.
        unsafe {
            let low = _mm512_maskz_loadu_ps(there as u16, start);
            let high = _mm512_maskz_loadu_ps((there >> LANES) as u16, start.wrapping_add(LANES));
            std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low))
        }
    }

    /// 16 pairs of bf16.
    ///
    /// # Safety
    /// As [`rounded`].
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub unsafe fn joined(start: *const bf16, there: u32) -> __m512i {
        // SAFETY: by the caller's promise.
        unsafe { _mm512_maskz_loadu_epi16(there, start.cast()) }
    }

    /// Asks for a line that will be read with the next rows: they are far apart, so that the processor
    /// does not guess them itself.
    #[inline]
    fn ask_for<T>(address: *const T) {
        // SAFETY: a prefetch may be of any address.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(address.cast()) };
    }

    /// Rows of a block as its columns: pairs of rows are interleaved by elements, then by twos, then
    /// the quarters of four registers at a time are exchanged, twice.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn turned(mut r: [__m512i; LANES]) -> [__m512i; LANES] {
        let mut t = r;
        for i in (0..LANES).step_by(2) {
            t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
            t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
        }
        for i in (0..LANES).step_by(4) {
            r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
            r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
            r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
            r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
        }
        // Now r[4g + s] has, in quarter q, step 4q + s of the four lanes of group g.
        for s in 0..4 {
            t[s] = _mm512_shuffle_i32x4::<0b10_00_10_00>(r[s], r[4 + s]);
            t[4 + s] = _mm512_shuffle_i32x4::<0b11_01_11_01>(r[s], r[4 + s]);
            t[8 + s] = _mm512_shuffle_i32x4::<0b10_00_10_00>(r[8 + s], r[12 + s]);
            t[12 + s] = _mm512_shuffle_i32x4::<0b11_01_11_01>(r[8 + s], r[12 + s]);
        }
        for s in 0..4 {
            r[s] = _mm512_shuffle_i32x4::<0b10_00_10_00>(t[s], t[8 + s]);
            r[8 + s] = _mm512_shuffle_i32x4::<0b11_01_11_01>(t[s], t[8 + s]);
            r[4 + s] = _mm512_shuffle_i32x4::<0b10_00_10_00>(t[4 + s], t[12 + s]);
            r[12 + s] = _mm512_shuffle_i32x4::<0b11_01_11_01>(t[4 + s], t[12 + s]);
        }
        r
    }

    /// Steps from `first` on, as far as there are any.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn store(
        block: [__m512i; LANES],
        first: usize,
        n_lanes: usize,
        n_steps: usize,
        panel: &mut [u32],
        width: usize,
    ) {
        let mask = ((1_u32 << n_lanes) - 1) as u16;
        for (step, row) in block.iter().enumerate().take(n_steps - first) {
            let target = &mut panel[(first + step) * width..][..n_lanes];
            // SAFETY: the lanes of the mask are there.
            unsafe { _mm512_mask_storeu_epi32(target.as_mut_ptr().cast(), mask, *row) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_turns_rows_into_steps_and_touches_nothing_else() {
        for isa in Isa::available() {
            for (n_lanes, width) in [(1, 4), (6, 6), (14, 14), (9, 14), (16, 32), (8, 8), (16, 16)]
            {
                let rows: Vec<_> = (0..(n_lanes * STEPS) as u32).collect();
                for n_steps in [1, 15, 16, 17, 256] {
                    let mut panel = vec![u32::MAX; n_steps * width + 32];
                    transpose(isa, (&rows, STEPS), n_lanes, n_steps, &mut panel, width);
                    for (at, &packed) in panel.iter().enumerate() {
                        let (step, lane) = (at / width, at % width);
                        let expected = if step < n_steps && lane < n_lanes {
                            (lane * STEPS + step) as u32
                        } else {
                            u32::MAX
                        };
                        assert_eq!(packed, expected, "{isa}: {n_lanes} of {width} at {at}");
                    }
                }
            }
        }
    }
}
