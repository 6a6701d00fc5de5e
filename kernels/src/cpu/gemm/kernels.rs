//! The innermost loops: a tile of C in registers, one step of k at a time.

#[cfg(target_arch = "x86_64")]
use super::matrix_registers;
use super::stores::{Tile, store};
use crate::{
    Compute, Isa,
    amx::{self, ROW_PAIRS},
};

/// Rows of a tile of vectors.
const ROWS: usize = 14;

/// The most columns of any tile.
pub(super) const MAX_COLUMNS: usize = 32;

/// Rows of a low tile.
const LOW_ROWS: usize = 8;

/// Columns of a narrow tile.
const NARROW: usize = 16;

/// What panels are made of, and in which order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Elements {
    /// An f32 of each lane, step by step of k.
    F32,
    /// A pair of bf16, neighbours in k, of each lane; two steps by two.
    Pairs,
    /// Pairs for registers that hold matrices, up to whole blocks of [`ROW_PAIRS`], zero beyond k: of B as
    /// [`Elements::Pairs`], of A a block of each lane after another.
    PairBlocks,
}

impl Elements {
    /// Whether they are bf16.
    pub fn are_pairs(self) -> bool {
        self != Self::F32
    }

    /// Packed elements of `depth` steps of k.
    pub fn packed_depth(self, depth: usize) -> usize {
        match self {
            Self::F32 => depth,
            Self::Pairs => depth.div_ceil(2),
            Self::PairBlocks => depth.div_ceil(2 * ROW_PAIRS) * ROW_PAIRS,
        }
    }

    /// The packed step that products from step `k` on begin with.
    pub fn first_step(self, k: usize) -> usize {
        match self {
            Self::F32 => k,
            Self::Pairs => k / 2,
            Self::PairBlocks => k / (2 * ROW_PAIRS) * ROW_PAIRS,
        }
    }
}

/// A tile's extents, its panels' form, and its loop.
#[derive(Clone, Copy)]
pub(super) struct Kernel {
    /// Rows of a panel of A.
    pub n_rows: usize,
    /// Columns of a panel of B.
    pub n_columns: usize,
    /// What panels are made of.
    pub elements: Elements,
    /// Loops for the first 2, 4, … rows of a panel, the last for all of them: where there are several,
    /// rows that do not exist are not computed, but for one. Of matrix registers for 16 and 32.
    loops: &'static [Loop],
}

/// Sums packed steps of both panels and stores the tile.
type Loop = unsafe fn(usize, *const u32, *const u32, *mut f32, Tile);

/// Loops for some of the rows of a panel.
#[cfg(target_arch = "x86_64")]
macro_rules! loops {
    ($tile:ident, $panel:literal, $vectors:literal, [$($rows:literal),*]) => {
        &[$(x86::$tile::<$rows, $panel, $vectors> as Loop),*]
    };
}

impl Kernel {
    /// The tile for a product with `m` rows and `n` columns.
    ///
    /// On AVX-512, 14 × 2 vectors of sums, two vectors of B and one element of A fill the 32
    /// registers; on AVX2, 6 × 2 fill 16. Without either, 4 × 2 of four fit the 16 of SSE2, and
    /// 6 × 4 the 32 of NEON. Matrix registers hold 32 × 32 in four. A panel's missing rows and columns cost as much as real
    /// ones, so narrow products get narrow tiles, and low ones (an adapter's rank) those of 8 rows,
    /// which still have more independent sums than an instruction's latency needs.
    pub fn choose(isa: Isa, compute: Compute, m: usize, n: usize) -> Self {
        let narrow = n <= NARROW;
        let low = !narrow && m <= 64 && m.next_multiple_of(LOW_ROWS) < m.next_multiple_of(ROWS);
        Self::of(isa, compute, low, narrow)
    }

    /// The tile for a product with `n` columns out of the same panels of A.
    pub fn beside(&self, isa: Isa, compute: Compute, n: usize) -> Self {
        let low = self.n_rows == LOW_ROWS;
        Self::of(isa, compute, low, !low && n <= NARROW)
    }

    /// A tile that is low or narrow, or neither, where the processor has such.
    fn of(isa: Isa, compute: Compute, low: bool, narrow: bool) -> Self {
        let kernel =
            |n_rows, n_columns, elements, loops| Self { n_rows, n_columns, elements, loops };
        match (isa, compute) {
            #[cfg(target_arch = "x86_64")]
            (Isa::Amx, Compute::Bf16) if narrow => kernel(
                32,
                16,
                Elements::PairBlocks,
                &[matrix_registers::sum::<1, 1>, matrix_registers::sum::<2, 1>],
            ),
            #[cfg(target_arch = "x86_64")]
            (Isa::Amx, Compute::Bf16) => kernel(
                32,
                32,
                Elements::PairBlocks,
                &[matrix_registers::sum::<1, 2>, matrix_registers::sum::<2, 2>],
            ),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512Bf16, Compute::Bf16) => match (low, narrow) {
                (true, _) => {
                    kernel(8, 32, Elements::Pairs, loops!(avx512_bf16, 8, 2, [2, 4, 6, 8]))
                }
                (_, true) => kernel(
                    14,
                    16,
                    Elements::Pairs,
                    loops!(avx512_bf16, 14, 1, [2, 4, 6, 8, 10, 12, 14]),
                ),
                _ => kernel(
                    14,
                    32,
                    Elements::Pairs,
                    loops!(avx512_bf16, 14, 2, [2, 4, 6, 8, 10, 12, 14]),
                ),
            },
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512 | Isa::Avx512Bf16 | Isa::Amx, _) => match (low, narrow) {
                (true, _) => kernel(8, 32, Elements::F32, loops!(avx512, 8, 2, [2, 4, 6, 8])),
                (_, true) => {
                    kernel(14, 16, Elements::F32, loops!(avx512, 14, 1, [2, 4, 6, 8, 10, 12, 14]))
                }
                _ => kernel(14, 32, Elements::F32, loops!(avx512, 14, 2, [2, 4, 6, 8, 10, 12, 14])),
            },
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx2, _) => kernel(6, 16, Elements::F32, loops!(avx2, 6, 2, [2, 4, 6])),
            _ if cfg!(target_arch = "aarch64") => {
                kernel(6, 16, Elements::F32, &[portable::<6, 16>])
            }
            _ => kernel(4, 8, Elements::F32, &[portable::<4, 8>]),
        }
    }

    /// Packed elements of `depth` steps of k.
    pub fn packed_depth(&self, depth: usize) -> usize {
        self.elements.packed_depth(depth)
    }

    /// Rows whose products take about as long as packing the columns of B.
    pub fn rows_of_packing(&self) -> usize {
        if self.elements == Elements::PairBlocks { 48 } else { 16 }
    }

    /// Rows and columns beyond those of a product that panels of any tile may have which the same
    /// instructions would choose.
    pub fn padding(&self) -> (usize, usize) {
        (self.n_rows.max(ROWS), MAX_COLUMNS)
    }

    /// Makes this thread ready to run it.
    ///
    /// # Safety
    /// The processor must have the instructions that the kernel was chosen for.
    pub unsafe fn ready(&self) -> Ready<'_> {
        Ready {
            kernel: self,
            #[cfg(target_arch = "x86_64")]
            _tiles: (self.elements == Elements::PairBlocks).then(|| {
                // SAFETY: by the caller's promise.
                unsafe { amx::Tiles::configure() }
            }),
        }
    }
}

/// A kernel on the thread that runs it.
pub(crate) struct Ready<'a> {
    kernel: &'a Kernel,
    #[cfg(target_arch = "x86_64")]
    _tiles: Option<amx::Tiles>,
}

impl Ready<'_> {
    /// Sums `steps` packed steps of both panels and stores the tile at `c`.
    ///
    /// # Safety
    /// `c` must be valid for the tile's rows and columns.
    pub(super) unsafe fn run(&self, steps: usize, a: &[u32], b: &[u32], c: *mut f32, tile: Tile) {
        let Kernel { n_rows, n_columns, elements, loops } = *self.kernel;
        assert!(a.len() >= steps * n_rows && b.len() >= steps * n_columns);
        assert!(tile.n_rows <= n_rows && tile.n_columns <= n_columns);
        let are_blocks = steps > 0 && steps.is_multiple_of(ROW_PAIRS);
        assert!(elements != Elements::PairBlocks || are_blocks);
        let rows = if elements == Elements::PairBlocks { amx::ROWS } else { 2 };
        let fewest = (tile.n_rows.max(1) - 1) / rows;
        let sum = loops[fewest.min(loops.len() - 1)];
        // SAFETY: the panels are long enough and the tile no larger than the loop's, as just
        // checked; C is the caller's promise, and the instructions were that of whoever made this.
        unsafe { sum(steps, a.as_ptr(), b.as_ptr(), c, tile) };
    }
}

/// The tile in plain Rust, which the compiler vectorises for the target's baseline.
///
/// # Safety
/// The panels must hold `steps` steps, and `c` be valid for the tile.
unsafe fn portable<const ROWS: usize, const COLUMNS: usize>(
    steps: usize,
    a: *const u32,
    b: *const u32,
    c: *mut f32,
    tile: Tile,
) {
    // SAFETY: the caller vouches for the lengths; f32 and u32 are alike in size and alignment.
    let (a, b) = unsafe {
        (
            std::slice::from_raw_parts(a.cast::<f32>(), steps * ROWS),
            std::slice::from_raw_parts(b.cast::<f32>(), steps * COLUMNS),
        )
    };
    let mut sums = [[0.0_f32; COLUMNS]; ROWS];
    for (a, b) in a.chunks_exact(ROWS).zip(b.chunks_exact(COLUMNS)) {
        for row in 0..ROWS {
            for column in 0..COLUMNS {
                let sum = &mut sums[row][column];
                // Where every processor has the instruction; elsewhere it would be a call.
                *sum = if cfg!(target_arch = "aarch64") {
                    a[row].mul_add(b[column], *sum)
                } else {
                    *sum + a[row] * b[column]
                };
            }
        }
    }
    // SAFETY: the caller vouches for the tile.
    unsafe { store(&sums, c, tile) };
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::super::stores::{
        Tile,
        x86::{prefetch, store_avx2, store_avx512},
    };

    /// `ROWS` of `PANEL` × 16·`VECTORS` sums of products of bf16 pairs.
    ///
    /// # Safety
    /// The panels must hold `steps` steps, `c` be valid for the tile, which is no larger than the
    /// sums; the processor must have AVX-512 BF16.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    pub unsafe fn avx512_bf16<const ROWS: usize, const PANEL: usize, const VECTORS: usize>(
        steps: usize,
        a: *const u32,
        b: *const u32,
        c: *mut f32,
        tile: Tile,
    ) {
        prefetch::<VECTORS>(c, tile);
        let mut sums = [[_mm512_setzero_ps(); VECTORS]; ROWS];
        for step in 0..steps {
            // SAFETY: inside the panels, by the caller's promise. Bits of one vector type are
            // valid for another.
            unsafe {
                let mut columns = [_mm512_setzero_si512(); VECTORS];
                for (vector, column) in columns.iter_mut().enumerate() {
                    *column =
                        _mm512_loadu_si512(b.add((step * VECTORS + vector) * 16).cast::<__m512i>());
                }
                for (row, sums) in sums.iter_mut().enumerate() {
                    let pair = _mm512_set1_epi32(a.add(step * PANEL + row).read() as i32);
                    for (sum, column) in sums.iter_mut().zip(columns) {
                        *sum = _mm512_dpbf16_ps(
                            *sum,
                            std::mem::transmute::<__m512i, __m512bh>(pair),
                            std::mem::transmute::<__m512i, __m512bh>(column),
                        );
                    }
                }
            }
        }
        // SAFETY: by the caller's promise.
        unsafe { store_avx512(&sums, c, tile) };
    }

    /// `ROWS` of `PANEL` × 16·`VECTORS` sums of products of f32.
    ///
    /// # Safety
    /// The panels must hold `steps` steps, `c` be valid for the tile, which is no larger than the
    /// sums; the processor must have AVX-512.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    pub unsafe fn avx512<const ROWS: usize, const PANEL: usize, const VECTORS: usize>(
        steps: usize,
        a: *const u32,
        b: *const u32,
        c: *mut f32,
        tile: Tile,
    ) {
        let (a, b) = (a.cast::<f32>(), b.cast::<f32>());
        prefetch::<VECTORS>(c, tile);
        let mut sums = [[_mm512_setzero_ps(); VECTORS]; ROWS];
        for step in 0..steps {
            // SAFETY: inside the panels, by the caller's promise.
            unsafe {
                let mut columns = [_mm512_setzero_ps(); VECTORS];
                for (vector, column) in columns.iter_mut().enumerate() {
                    *column = _mm512_loadu_ps(b.add((step * VECTORS + vector) * 16));
                }
                for (row, sums) in sums.iter_mut().enumerate() {
                    let value = _mm512_set1_ps(a.add(step * PANEL + row).read());
                    for (sum, column) in sums.iter_mut().zip(columns) {
                        *sum = _mm512_fmadd_ps(value, column, *sum);
                    }
                }
            }
        }
        // SAFETY: by the caller's promise.
        unsafe { store_avx512(&sums, c, tile) };
    }

    /// `ROWS` of `PANEL` × 8·`VECTORS` sums of products of f32, `VECTORS` = 2.
    ///
    /// # Safety
    /// The panels must hold `steps` steps, `c` be valid for the tile, which is no larger than the
    /// sums; the processor must have AVX2 and FMA.
    #[target_feature(enable = "avx2,fma")]
    pub unsafe fn avx2<const ROWS: usize, const PANEL: usize, const VECTORS: usize>(
        steps: usize,
        a: *const u32,
        b: *const u32,
        c: *mut f32,
        tile: Tile,
    ) {
        const { assert!(VECTORS == 2) };
        let (a, b) = (a.cast::<f32>(), b.cast::<f32>());
        prefetch::<1>(c, tile);
        let mut sums = [[_mm256_setzero_ps(); VECTORS]; ROWS];
        for step in 0..steps {
            // SAFETY: inside the panels, by the caller's promise.
            unsafe {
                let mut columns = [_mm256_setzero_ps(); VECTORS];
                for (vector, column) in columns.iter_mut().enumerate() {
                    *column = _mm256_loadu_ps(b.add((step * VECTORS + vector) * 8));
                }
                for (row, sums) in sums.iter_mut().enumerate() {
                    let value = _mm256_broadcast_ss(&*a.add(step * PANEL + row));
                    for (sum, column) in sums.iter_mut().zip(columns) {
                        *sum = _mm256_fmadd_ps(value, column, *sum);
                    }
                }
            }
        }
        // SAFETY: by the caller's promise.
        unsafe { store_avx2(&sums, c, tile) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every loop, every number of columns: the tile is written, and nothing beside it.
    #[test]
    fn a_tile_writes_its_rows_and_columns_alone() {
        const STEPS: usize = 3;
        const STRIDE: usize = MAX_COLUMNS + 5;
        for isa in Isa::available() {
            for compute in [Compute::Bf16, Compute::F32] {
                for (low, narrow) in [(false, false), (false, true), (true, false)] {
                    let kernel = Kernel::of(isa, compute, low, narrow);
                    // One, in every place.
                    let are_pairs = kernel.elements.are_pairs();
                    let one = if are_pairs { 0x3f80_3f80 } else { 1.0_f32.to_bits() };
                    let steps = if kernel.elements == Elements::PairBlocks {
                        STEPS * ROW_PAIRS
                    } else {
                        STEPS
                    };
                    let a = vec![one; steps * kernel.n_rows];
                    let b = vec![one; steps * kernel.n_columns];
                    let sum = (steps * if are_pairs { 2 } else { 1 }) as f32;
                    // SAFETY: this processor has the instructions.
                    let ready = unsafe { kernel.ready() };
                    for n_rows in 1..=kernel.n_rows {
                        for n_columns in 1..=kernel.n_columns {
                            for (overwrite, factor) in [(false, 0.5), (true, 0.5), (true, 1.0)] {
                                let stride = STRIDE;
                                let tile = Tile { n_rows, n_columns, stride, factor, overwrite };
                                let mut c = vec![7.0_f32; (kernel.n_rows + 2) * STRIDE];
                                let start = c[STRIDE..].as_mut_ptr();
                                // SAFETY: C has more rows and columns than the tile.
                                unsafe { ready.run(steps, &a, &b, start, tile) };
                                for (at, c) in c.into_iter().enumerate() {
                                    let (row, column) = (at / STRIDE, at % STRIDE);
                                    let inside = (1..=n_rows).contains(&row) && column < n_columns;
                                    let expected = match (inside, overwrite) {
                                        (false, _) => 7.0,
                                        (true, true) => factor * sum,
                                        (true, false) => 7.0 + factor * sum,
                                    };
                                    assert_eq!(
                                        c, expected,
                                        "{isa} {compute:?} {n_rows} x {n_columns}"
                                    );
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}
