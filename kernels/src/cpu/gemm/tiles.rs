//! Products of matrices small enough for a core's caches, on one thread: the caller packs each
//! operand into memory of its own, and may multiply it more than once.

use std::ops::Range;

use super::{
    Extents, Operand,
    kernels::{Kernel, Tile},
    operand::Form,
};
use crate::{Compute, Isa, Store};

/// How small products are made: which loop, and so which form of panels.
#[derive(Clone, Copy)]
pub(crate) struct TileProducts {
    kernel: Kernel,
    isa: Isa,
    compute: Compute,
}

impl TileProducts {
    /// For products of up to `m` × `n`.
    pub fn new(isa: Isa, compute: Compute, m: usize, n: usize) -> Self {
        Self { kernel: Kernel::choose(isa, compute, m, n), isa, compute }
    }

    /// Elements of `m` rows of A, packed.
    pub fn a_len(&self, m: usize, k: usize) -> usize {
        m.next_multiple_of(self.kernel.n_rows) * self.kernel.packed_depth(k)
    }

    /// Elements of `n` columns of B, packed.
    pub fn b_len(&self, n: usize, k: usize) -> usize {
        n.next_multiple_of(self.kernel.n_columns) * self.kernel.packed_depth(k)
    }

    /// Packs `lanes` rows of A, `k` long.
    pub fn pack_a(&self, a: Operand<'_>, lanes: usize, k: usize, packed: &mut [u32]) {
        self.pack(a, self.kernel.n_rows, lanes, k, packed);
    }

    /// Packs `lanes` columns of B, `k` long.
    pub fn pack_b(&self, b: Operand<'_>, lanes: usize, k: usize, packed: &mut [u32]) {
        self.pack(b, self.kernel.n_columns, lanes, k, packed);
    }

    fn pack(&self, operand: Operand<'_>, width: usize, n: usize, k: usize, packed: &mut [u32]) {
        let Self { kernel, isa, compute } = *self;
        operand.check(n, k);
        operand.pack(
            Form { isa, compute, bf16_pairs: kernel.bf16_pairs, width },
            0..n,
            0..k,
            packed,
        );
    }

    /// `c (store) factor · a · b` of packed operands, for the columns of each row of panels that
    /// `columns` names given its rows; others are left as they are, up to a panel's width.
    pub fn multiply(
        &self,
        extents: Extents,
        factor: f32,
        (a, b): (&[u32], &[u32]),
        store: Store,
        (c, stride): (&mut [f32], usize),
        columns: impl Fn(Range<usize>) -> Range<usize>,
    ) {
        let Extents { m, n, k } = extents;
        let kernel = &self.kernel;
        let steps = kernel.packed_depth(k);
        for row in (0..m).step_by(kernel.n_rows) {
            let n_rows = kernel.n_rows.min(m - row);
            let wanted = columns(row..row + n_rows);
            let first = wanted.start / kernel.n_columns * kernel.n_columns;
            for column in (first..wanted.end.min(n)).step_by(kernel.n_columns) {
                let n_columns = kernel.n_columns.min(n - column);
                let tile = Tile {
                    n_rows,
                    n_columns,
                    stride,
                    factor,
                    overwrite: store == Store::Overwrite,
                };
                let start = row * stride + column;
                let c = &mut c[start..start + (n_rows - 1) * stride + n_columns];
                let (a, b) = (&a[row * steps..], &b[column * steps..]);
                // SAFETY: the slice of C holds the tile's rows and columns; the device was made
                // with instructions that this processor has.
                unsafe { kernel.run(steps, a, b, c.as_mut_ptr(), tile) };
            }
        }
    }
}
