//! What happens to a finished tile.

/// What happens to a finished tile.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    /// Rows that exist; the panel may have more, of anything.
    pub n_rows: usize,
    /// Columns that exist.
    pub n_columns: usize,
    /// Elements between rows of C.
    pub stride: usize,
    /// Factor on the sums.
    pub factor: f32,
    /// Whether C is replaced rather than added to.
    pub overwrite: bool,
}

/// Stores rows of sums.
///
/// # Safety
/// `c` must be valid for the tile's rows and columns.
#[inline(always)]
pub(super) unsafe fn store<const COLUMNS: usize>(sums: &[[f32; COLUMNS]], c: *mut f32, tile: Tile) {
    for (row, sums) in sums.iter().take(tile.n_rows).enumerate() {
        // SAFETY: the caller vouches for the tile's rows and columns.
        let c = unsafe { std::slice::from_raw_parts_mut(c.add(row * tile.stride), tile.n_columns) };
        if tile.overwrite {
            for (c, sum) in c.iter_mut().zip(sums) {
                *c = tile.factor * sum;
            }
        } else {
            for (c, sum) in c.iter_mut().zip(sums) {
                *c += tile.factor * sum;
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) mod x86 {
    use std::arch::x86_64::*;

    use super::{Tile, store};

    /// Asks for the tile's part of C, which the sums will need when they are done; to be written, so that
    /// another core gives up what it holds of it now rather than then.
    #[inline(always)]
    pub fn prefetch<const LINES: usize>(c: *const f32, tile: Tile) {
        /// Elements of a cache line.
        const LINE: usize = 16;
        for row in 0..tile.n_rows {
            for line in 0..LINES {
                // What is beyond may be another thread's.
                if line * LINE >= tile.n_columns {
                    break;
                }
                let address = c.wrapping_add(row * tile.stride + line * LINE);
                // SAFETY: a prefetch may be of any address, and changes nothing; a processor that has
                // vectors and not this instruction (Intel's before 2014) does nothing for it. By its name,
                // since the compiler makes the intrinsic one for reading where it is not told otherwise.
                unsafe {
                    std::arch::asm!(
                        "prefetchw [{}]",
                        in(reg) address,
                        options(readonly, nostack, preserves_flags)
                    );
                }
            }
        }
    }

    /// Stores the sums, columns that do not exist masked.
    ///
    /// # Safety
    /// `c` must be valid for the tile's rows and columns; the processor must have AVX-512.
    #[inline(always)]
    pub unsafe fn store_avx512<const ROWS: usize, const VECTORS: usize>(
        sums: &[[__m512; VECTORS]; ROWS],
        c: *mut f32,
        tile: Tile,
    ) {
        // SAFETY: by the caller's promise.
        let factor = unsafe { _mm512_set1_ps(tile.factor) };
        if tile.n_rows == ROWS && tile.n_columns == VECTORS * 16 {
            // Apart from the other case so that its loops unroll and the sums stay in registers.
            for (row, sums) in sums.iter().enumerate() {
                for (vector, sum) in sums.iter().enumerate() {
                    // SAFETY: inside the tile.
                    unsafe {
                        let c = c.add(row * tile.stride + vector * 16);
                        let sum = _mm512_mul_ps(factor, *sum);
                        let sum = if tile.overwrite {
                            sum
                        } else {
                            _mm512_add_ps(_mm512_loadu_ps(c), sum)
                        };
                        _mm512_storeu_ps(c, sum);
                    }
                }
            }
            return;
        }
        // Every row, so that none is chosen at run time, for which the sums would have to be in memory.
        for (row, sums) in sums.iter().enumerate() {
            for (vector, sum) in sums.iter().enumerate() {
                let n = tile.n_columns.saturating_sub(vector * 16).min(16);
                let mask = if row < tile.n_rows { ((1_u32 << n) - 1) as u16 } else { 0 };
                let c = c.wrapping_add(row * tile.stride + vector * 16);
                // SAFETY: inside the tile where the mask is set.
                unsafe {
                    let sum = _mm512_mul_ps(factor, *sum);
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

    /// Stores the sums; those of a tile with fewer rows or columns by way of memory.
    ///
    /// # Safety
    /// As [`store_avx512`], with AVX2.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    pub unsafe fn store_avx2<const ROWS: usize, const VECTORS: usize>(
        sums: &[[__m256; VECTORS]; ROWS],
        c: *mut f32,
        tile: Tile,
    ) {
        if tile.n_rows == ROWS && tile.n_columns == VECTORS * 8 {
            // Apart from the other case, so that the sums stay in registers.
            let factor = _mm256_set1_ps(tile.factor);
            for (row, sums) in sums.iter().enumerate() {
                for (vector, sum) in sums.iter().enumerate() {
                    // SAFETY: inside the tile.
                    unsafe {
                        let c = c.add(row * tile.stride + vector * 8);
                        let sum = _mm256_mul_ps(factor, *sum);
                        let sum = if tile.overwrite {
                            sum
                        } else {
                            _mm256_add_ps(_mm256_loadu_ps(c), sum)
                        };
                        _mm256_storeu_ps(c, sum);
                    }
                }
            }
            return;
        }
        let mut rows = [[0.0_f32; 16]; ROWS];
        for (row, sums) in rows.iter_mut().zip(sums) {
            for (row, sum) in row.as_chunks_mut::<8>().0.iter_mut().zip(sums) {
                // SAFETY: there are eight elements.
                unsafe { _mm256_storeu_ps(row.as_mut_ptr(), *sum) };
            }
        }
        // SAFETY: by the caller's promise.
        unsafe { store(&rows, c, tile) };
    }
}
