//! Products of matrices small enough for a core's caches, on one thread: the caller packs each
//! operand into memory of its own, and may multiply it more than once.

use std::ops::Range;

use super::{
    Operand,
    kernels::{Kernel, Ready},
    operand::{Form, Side},
    stores::Tile,
};
use crate::{Compute, Isa, Store};

/// How small products are made: which loop, and so which form of panels.
#[derive(Clone, Copy)]
pub(crate) struct TileProducts {
    kernel: Kernel,
    isa: Isa,
    compute: Compute,
}

/// An operand in panels.
#[derive(Clone, Copy)]
pub(crate) struct PackedTile<'a> {
    elements: &'a [u32],
    /// Packed steps of each panel.
    steps: usize,
}

impl TileProducts {
    /// For products of many rows and columns.
    pub fn new(isa: Isa, compute: Compute) -> Self {
        Self { kernel: Kernel::choose(isa, compute, usize::MAX, usize::MAX), isa, compute }
    }

    /// Rows of a panel of A: an even number.
    pub fn panel_rows(&self) -> usize {
        self.kernel.n_rows
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
        self.pack(a, Side::Rows, lanes, k, packed);
    }

    /// Packs `lanes` columns of B, `k` long.
    pub fn pack_b(&self, b: Operand<'_>, lanes: usize, k: usize, packed: &mut [u32]) {
        self.pack(b, Side::Columns, lanes, k, packed);
    }

    fn pack(&self, operand: Operand<'_>, side: Side, n: usize, k: usize, packed: &mut [u32]) {
        operand.check(n, k);
        let form = Form::new((self.isa, self.compute), &self.kernel, side);
        operand.pack(form, 0..n, 0..k, packed);
    }

    /// Makes this thread ready to multiply, which each product otherwise does for itself.
    pub fn ready(&self) -> Ready<'_> {
        // SAFETY: the device was made with instructions that this processor has.
        unsafe { self.kernel.ready() }
    }

    /// What was packed `k` long.
    pub fn packed<'a>(&self, elements: &'a [u32], k: usize) -> PackedTile<'a> {
        PackedTile { elements, steps: self.kernel.packed_depth(k) }
    }

    /// `c (store) a · b`, `c` `[m, n]` with `stride`, in panels of rows by panels of columns, each
    /// over the steps of k that `depth` names for its rows and columns, up to whole pairs or blocks
    /// of them; where it names none, `c` is left as it is.
    pub fn multiply(
        &self,
        (m, n): (usize, usize),
        (a, b): (PackedTile<'_>, PackedTile<'_>),
        store: Store,
        (c, stride): (&mut [f32], usize),
        depth: impl Fn(Range<usize>, Range<usize>) -> Range<usize>,
    ) {
        let kernel = &self.kernel;
        let ready = self.ready();
        for row in (0..m).step_by(kernel.n_rows) {
            let n_rows = kernel.n_rows.min(m - row);
            for column in (0..n).step_by(kernel.n_columns) {
                let n_columns = kernel.n_columns.min(n - column);
                let depth = depth(row..row + n_rows, column..column + n_columns);
                if depth.is_empty() {
                    continue;
                }
                let first = kernel.elements.first_step(depth.start);
                let steps = kernel.packed_depth(depth.end) - first;
                let tile = Tile {
                    n_rows,
                    n_columns,
                    stride,
                    factor: 1.0,
                    overwrite: store == Store::Overwrite,
                };
                let start = row * stride + column;
                let c = &mut c[start..start + (n_rows - 1) * stride + n_columns];
                let a = &a.elements[row * a.steps + first * kernel.n_rows..];
                let b = &b.elements[column * b.steps + first * kernel.n_columns..];
                // SAFETY: the slice of C holds the tile's rows and columns.
                unsafe { ready.run(steps, a, b, c.as_mut_ptr(), tile) };
            }
        }
    }
}
