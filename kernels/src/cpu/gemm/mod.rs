//! The matrix product: `C (store) factor · A · B`, from operands as they are stored.
//!
//! Both operands are copied into panels that the innermost loop reads front to back; whatever a
//! weight is stored as is expanded, and rounded to bf16 where the products are, on the way. A is
//! packed once for a block of rows and stays in the last-level cache; a task takes a few columns,
//! packs their part of B into its core's second-level cache, and passes all rows over it, so that a
//! quantised weight is expanded once for every [`Blocking::rows`] rows.
//!
//! Every element of C is one task's sum over k in order, so that no result depends on the threads.

mod expand;
mod kernels;
mod nf4;
mod operand;
mod tiles;
mod transpose;
mod vector;

pub(crate) use expand::{Values, bf16_bits};
pub(crate) use nf4::Nf4Values;
pub(crate) use operand::{Layout, Operand};
pub(crate) use tiles::TileProducts;
pub(crate) use vector::{few_rows, few_rows_workspace_bytes};

use crate::{
    Store,
    device::{Compute, DeviceKind, DeviceProfile, Isa},
};
use kernels::{Kernel, MAX_ROWS, Tile};
use operand::Form;

use super::{
    parallel::{Shared, for_each_task},
    pool::Pool,
};

/// Columns of B that a task packs at a time: 128 columns of 512 bf16 are 128 KiB, an eighth of the
/// second-level cache, and four panels amortise each read of A's panel.
const TASK_COLUMNS: usize = 128;

/// How a product is cut.
#[derive(Clone, Copy, Debug)]
struct Blocking {
    /// Rows of A packed at a time: 1,024 of bf16, half as many of f32.
    rows: usize,
    /// Steps of k packed at a time: 1 KiB of a row, so that a panel of A (14 KiB) and one of B
    /// (32 KiB) stay near the core.
    depth: usize,
}

impl Blocking {
    fn new(kernel: &Kernel) -> Self {
        let rows: usize = if kernel.bf16_pairs { 1024 } else { 512 };
        Self {
            rows: rows.next_multiple_of(kernel.n_rows),
            depth: if kernel.bf16_pairs { 512 } else { 256 },
        }
    }
}

/// Extents of a product.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extents {
    /// Rows of A and C.
    pub m: usize,
    /// Columns of B and C.
    pub n: usize,
    /// Columns of A, rows of B.
    pub k: usize,
}

/// Bytes of workspace that a product needs.
pub(crate) fn workspace_bytes(profile: &DeviceProfile, extents: Extents) -> usize {
    let DeviceKind::Cpu { isa, n_threads } = profile.kind;
    // A profile may ask for more than this processor has; the device would then use less.
    let kernel = Kernel::choose(isa.min(Isa::best()), profile.compute, extents.m, extents.n);
    let blocking = Blocking::new(&kernel);
    packed_a_len(&kernel, &blocking, extents)
        .saturating_add(packed_b_len(&kernel, &blocking).saturating_mul(n_threads))
        .saturating_mul(size_of::<u32>())
}

/// Elements (f32, or pairs of bf16) of a packed block of A.
fn packed_a_len(kernel: &Kernel, blocking: &Blocking, extents: Extents) -> usize {
    // Whatever tile a smaller product would choose: its panels end within so many rows.
    let rows = extents.m.min(blocking.rows) + MAX_ROWS;
    rows.saturating_mul(kernel.packed_depth(extents.k))
}

/// Elements of one task's packed part of B.
fn packed_b_len(kernel: &Kernel, blocking: &Blocking) -> usize {
    TASK_COLUMNS.next_multiple_of(kernel.n_columns) * kernel.packed_depth(blocking.depth)
}

/// Where a product runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place<'a> {
    pub pool: &'a Pool,
    pub isa: Isa,
    pub compute: Compute,
}

impl Place<'_> {
    /// Panels of `width` lanes for `kernel`.
    fn form(&self, kernel: &Kernel, width: usize) -> Form {
        let Self { isa, compute, .. } = *self;
        Form { isa, compute, bf16_pairs: kernel.bf16_pairs, width }
    }
}

/// `c (store) factor · a · b`, `c` `[m, n]` row-major.
///
/// `workspace`: [`workspace_bytes`], read as 32-bit elements.
pub(crate) fn multiply(
    place: Place<'_>,
    extents: Extents,
    factor: f32,
    a: Operand<'_>,
    b: Operand<'_>,
    store: Store,
    c: &mut [f32],
    workspace: &mut [u32],
) {
    let Extents { m, n, k } = extents;
    let c = &mut c[..m * n];
    if m == 0 || n == 0 {
        return;
    }
    if k == 0 {
        if store == Store::Overwrite {
            c.fill(0.0);
        }
        return;
    }
    a.check(m, k);
    b.check(n, k);
    let kernel = Kernel::choose(place.isa, place.compute, m, n);
    let blocking = Blocking::new(&kernel);
    let a_len = packed_a_len(&kernel, &blocking, extents);
    let b_len = packed_b_len(&kernel, &blocking);
    let n_threads = place.pool.n_threads();
    let (packed_a, rest) = workspace.split_at_mut(a_len);
    let packed_b = Shared::new(&mut rest[..b_len * n_threads]);
    let shared_c = Shared::new(c);

    for first_row in (0..m).step_by(blocking.rows) {
        let n_rows = blocking.rows.min(m - first_row);
        pack_a(place, &kernel, &blocking, a, (first_row, n_rows), k, packed_a);
        let packed_a = &*packed_a;
        let column_tasks = n.div_ceil(TASK_COLUMNS);
        // Few columns: tasks share them and divide the rows, though each packs B for itself.
        let row_tasks =
            (2 * n_threads).div_ceil(column_tasks).min(n_rows.div_ceil(4 * kernel.n_rows)).max(1);
        let rows_of_task = n_rows.div_ceil(row_tasks).next_multiple_of(kernel.n_rows);
        place.pool.run(column_tasks * row_tasks, |thread, task| {
            let (columns, rows) = (task % column_tasks, task / column_tasks);
            let first_column = columns * TASK_COLUMNS;
            let n_columns = TASK_COLUMNS.min(n - first_column);
            let top = rows * rows_of_task;
            let bottom = (top + rows_of_task).min(n_rows);
            if top >= bottom {
                return;
            }
            // SAFETY: each thread has a part of its own, and a thread runs one task at a time.
            let packed_b = unsafe {
                std::slice::from_raw_parts_mut(packed_b.part(thread * b_len, b_len), b_len)
            };
            for depth_start in (0..k).step_by(blocking.depth) {
                let depth = blocking.depth.min(k - depth_start);
                b.pack(
                    place.form(&kernel, kernel.n_columns),
                    first_column..first_column + n_columns,
                    depth_start..depth_start + depth,
                    packed_b,
                );
                let overwrite = store == Store::Overwrite && depth_start == 0;
                let steps = kernel.packed_depth(depth);
                // Depths of earlier blocks are whole, so that their panels lie behind one another.
                let earlier =
                    n_rows.next_multiple_of(kernel.n_rows) * kernel.packed_depth(depth_start);
                for panel_row in (top..bottom).step_by(kernel.n_rows) {
                    let a_panel = &packed_a[earlier + panel_row * steps..];
                    for panel_column in (0..n_columns).step_by(kernel.n_columns) {
                        let b_panel = &packed_b[panel_column * steps..];
                        let tile = Tile {
                            n_rows: kernel.n_rows.min(bottom - panel_row),
                            n_columns: kernel.n_columns.min(n_columns - panel_column),
                            stride: n,
                            factor,
                            overwrite,
                        };
                        let row = first_row + panel_row;
                        let start = row * n + first_column + panel_column;
                        let len = (tile.n_rows - 1) * n + tile.n_columns;
                        // SAFETY: tasks own disjoint rows or columns of C, and C outlives them;
                        // `part` checks that the tile ends inside C.
                        unsafe {
                            kernel.run(steps, a_panel, b_panel, shared_c.part(start, len), tile);
                        }
                    }
                }
            }
        });
    }
}

/// Packs `n_rows` rows of A: block by block of k, panel by panel of rows.
fn pack_a(
    place: Place<'_>,
    kernel: &Kernel,
    blocking: &Blocking,
    a: Operand<'_>,
    (first_row, n_rows): (usize, usize),
    k: usize,
    packed: &mut [u32],
) {
    /// Panels of a task.
    const PANELS: usize = 8;
    let padded_rows = n_rows.next_multiple_of(kernel.n_rows);
    let n_depths = k.div_ceil(blocking.depth);
    let rows_of_task = PANELS * kernel.n_rows;
    let n_row_tasks = n_rows.div_ceil(rows_of_task);
    let shared = Shared::new(packed);
    for_each_task(place.pool, n_depths * n_row_tasks, |task| {
        let depth_start = task / n_row_tasks * blocking.depth;
        let depth = blocking.depth.min(k - depth_start);
        let top = task % n_row_tasks * rows_of_task;
        let bottom = (top + rows_of_task).min(n_rows);
        let steps = kernel.packed_depth(depth);
        let start = padded_rows * kernel.packed_depth(depth_start) + top * steps;
        let len = (bottom - top).next_multiple_of(kernel.n_rows) * steps;
        // SAFETY: tasks own different depths or panels.
        let part = unsafe { std::slice::from_raw_parts_mut(shared.part(start, len), len) };
        a.pack(
            place.form(kernel, kernel.n_rows),
            first_row + top..first_row + bottom,
            depth_start..depth_start + depth,
            part,
        );
    });
}
