//! The innermost loops: a tile of C in registers, one step of k at a time.

use crate::{Compute, Isa};

/// The most elements of any tile.
pub(super) const MAX_TILE: usize = 14 * 32;

/// What happens to a finished tile.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    /// Rows that exist; the panel may have more, of zeros.
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

/// A tile's extents, its panels' form, and its loop.
#[derive(Clone, Copy)]
pub(super) struct Kernel {
    /// Rows of a panel of A.
    pub n_rows: usize,
    /// Columns of a panel of B.
    pub n_columns: usize,
    /// Whether a packed element is a pair of bf16 (two steps of k) rather than one f32.
    pub bf16_pairs: bool,
    /// Sums `steps` packed steps into a whole tile.
    sums: unsafe fn(usize, *const u32, *const u32, &mut [f32; MAX_TILE]),
}

impl Kernel {
    /// The tile for a product with `n` columns. Narrow products get narrow tiles, since a panel's
    /// missing columns cost as much as real ones.
    pub fn choose(isa: Isa, compute: Compute, n: usize) -> Self {
        let narrow = n <= 16;
        let kernel =
            |n_rows, n_columns, bf16_pairs, sums| Self { n_rows, n_columns, bf16_pairs, sums };
        match (isa, compute) {
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512Bf16, Compute::Bf16) if narrow => {
                kernel(14, 16, true, x86::sums_avx512_bf16::<14, 1>)
            }
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512Bf16, Compute::Bf16) => {
                kernel(14, 32, true, x86::sums_avx512_bf16::<14, 2>)
            }
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512 | Isa::Avx512Bf16, _) if narrow => {
                kernel(14, 16, false, x86::sums_avx512::<14, 1>)
            }
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512 | Isa::Avx512Bf16, _) => kernel(14, 32, false, x86::sums_avx512::<14, 2>),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx2, _) => kernel(6, 16, false, x86::sums_avx2::<6, 2>),
            _ => kernel(4, 16, false, sums_portable::<4, 16>),
        }
    }

    /// Packed elements of `depth` steps of k.
    pub fn packed_depth(&self, depth: usize) -> usize {
        if self.bf16_pairs { depth.div_ceil(2) } else { depth }
    }

    /// Sums `steps` packed steps of both panels and stores the tile at `c`.
    ///
    /// # Safety
    /// `c` must be valid for the tile's rows and columns; the processor must have the instructions
    /// that the kernel was chosen for.
    pub unsafe fn run(&self, steps: usize, a: &[u32], b: &[u32], c: *mut f32, tile: Tile) {
        assert!(a.len() >= steps * self.n_rows && b.len() >= steps * self.n_columns);
        let mut sums = [0.0_f32; MAX_TILE];
        // SAFETY: the panels are long enough, as just checked; the instructions are the caller's
        // promise.
        unsafe { (self.sums)(steps, a.as_ptr(), b.as_ptr(), &mut sums) };
        for (row, sums) in sums.chunks_exact(self.n_columns).take(tile.n_rows).enumerate() {
            // SAFETY: the caller vouches for the tile's rows and columns.
            let c =
                unsafe { std::slice::from_raw_parts_mut(c.add(row * tile.stride), tile.n_columns) };
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
}

/// The tile in plain Rust, which the compiler vectorises for the target's baseline.
///
/// # Safety
/// The panels must hold `steps` steps.
unsafe fn sums_portable<const ROWS: usize, const COLUMNS: usize>(
    steps: usize,
    a: *const u32,
    b: *const u32,
    sums: &mut [f32; MAX_TILE],
) {
    // SAFETY: the caller vouches for the lengths; f32 and u32 are alike in size and alignment.
    let (a, b) = unsafe {
        (
            std::slice::from_raw_parts(a.cast::<f32>(), steps * ROWS),
            std::slice::from_raw_parts(b.cast::<f32>(), steps * COLUMNS),
        )
    };
    let mut tile = [[0.0_f32; COLUMNS]; ROWS];
    for (a, b) in a.chunks_exact(ROWS).zip(b.chunks_exact(COLUMNS)) {
        for row in 0..ROWS {
            for column in 0..COLUMNS {
                tile[row][column] += a[row] * b[column];
            }
        }
    }
    for (sums, row) in sums.chunks_exact_mut(COLUMNS).zip(&tile) {
        sums.copy_from_slice(row);
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::MAX_TILE;

    /// `ROWS` × 16·`VECTORS` sums of products of bf16 pairs.
    ///
    /// # Safety
    /// The panels must hold `steps` steps; the processor must have AVX-512 BF16.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    pub unsafe fn sums_avx512_bf16<const ROWS: usize, const VECTORS: usize>(
        steps: usize,
        a: *const u32,
        b: *const u32,
        sums: &mut [f32; MAX_TILE],
    ) {
        let mut tile = [[_mm512_setzero_ps(); VECTORS]; ROWS];
        for step in 0..steps {
            // SAFETY: inside the panels, by the caller's promise. Bits of one vector type are
            // valid for another.
            unsafe {
                let mut columns = [_mm512_setzero_si512(); VECTORS];
                for (vector, column) in columns.iter_mut().enumerate() {
                    *column =
                        _mm512_loadu_si512(b.add((step * VECTORS + vector) * 16).cast::<__m512i>());
                }
                for (row, tile) in tile.iter_mut().enumerate() {
                    let pair = _mm512_set1_epi32(a.add(step * ROWS + row).read() as i32);
                    for (sum, column) in tile.iter_mut().zip(columns) {
                        *sum = _mm512_dpbf16_ps(
                            *sum,
                            std::mem::transmute::<__m512i, __m512bh>(pair),
                            std::mem::transmute::<__m512i, __m512bh>(column),
                        );
                    }
                }
            }
        }
        store(&tile, sums);
    }

    /// `ROWS` × 16·`VECTORS` sums of products of f32.
    ///
    /// # Safety
    /// The panels must hold `steps` steps; the processor must have AVX-512.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    pub unsafe fn sums_avx512<const ROWS: usize, const VECTORS: usize>(
        steps: usize,
        a: *const u32,
        b: *const u32,
        sums: &mut [f32; MAX_TILE],
    ) {
        let (a, b) = (a.cast::<f32>(), b.cast::<f32>());
        let mut tile = [[_mm512_setzero_ps(); VECTORS]; ROWS];
        for step in 0..steps {
            // SAFETY: inside the panels, by the caller's promise.
            unsafe {
                let mut columns = [_mm512_setzero_ps(); VECTORS];
                for (vector, column) in columns.iter_mut().enumerate() {
                    *column = _mm512_loadu_ps(b.add((step * VECTORS + vector) * 16));
                }
                for (row, tile) in tile.iter_mut().enumerate() {
                    let value = _mm512_set1_ps(a.add(step * ROWS + row).read());
                    for (sum, column) in tile.iter_mut().zip(columns) {
                        *sum = _mm512_fmadd_ps(value, column, *sum);
                    }
                }
            }
        }
        store(&tile, sums);
    }

    #[target_feature(enable = "avx512f")]
    fn store<const ROWS: usize, const VECTORS: usize>(
        tile: &[[__m512; VECTORS]; ROWS],
        sums: &mut [f32; MAX_TILE],
    ) {
        for (index, sum) in tile.iter().flatten().enumerate() {
            let target = &mut sums[index * 16..index * 16 + 16];
            // SAFETY: the target has 16 elements.
            unsafe { _mm512_storeu_ps(target.as_mut_ptr(), *sum) };
        }
    }

    /// `ROWS` × 8·`VECTORS` sums of products of f32.
    ///
    /// # Safety
    /// The panels must hold `steps` steps; the processor must have AVX2 and FMA.
    #[target_feature(enable = "avx2,fma")]
    pub unsafe fn sums_avx2<const ROWS: usize, const VECTORS: usize>(
        steps: usize,
        a: *const u32,
        b: *const u32,
        sums: &mut [f32; MAX_TILE],
    ) {
        let (a, b) = (a.cast::<f32>(), b.cast::<f32>());
        let mut tile = [[_mm256_setzero_ps(); VECTORS]; ROWS];
        for step in 0..steps {
            // SAFETY: inside the panels, by the caller's promise.
            unsafe {
                let mut columns = [_mm256_setzero_ps(); VECTORS];
                for (vector, column) in columns.iter_mut().enumerate() {
                    *column = _mm256_loadu_ps(b.add((step * VECTORS + vector) * 8));
                }
                for (row, tile) in tile.iter_mut().enumerate() {
                    let value = _mm256_broadcast_ss(&*a.add(step * ROWS + row));
                    for (sum, column) in tile.iter_mut().zip(columns) {
                        *sum = _mm256_fmadd_ps(value, column, *sum);
                    }
                }
            }
        }
        for (index, sum) in tile.iter().flatten().enumerate() {
            let target = &mut sums[index * 8..index * 8 + 8];
            // SAFETY: the target has 8 elements.
            unsafe { _mm256_storeu_ps(target.as_mut_ptr(), *sum) };
        }
    }
}
