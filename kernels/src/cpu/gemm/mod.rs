//! The matrix product: `C (store) factor · A · B`, from operands as they are stored.
//!
//! Both operands are copied into panels that the innermost loop reads front to back; whatever a
//! weight is stored as is expanded, and rounded to bf16 where the products are, on the way. A is
//! packed once for a block of rows and stays in the last-level cache; a task takes a few columns,
//! packs their part of B into its core's second-level cache, and passes all rows over it, so that a
//! quantised weight is expanded once for every [`Blocking::rows`] rows; or for fewer, where there are
//! too few columns for all threads.
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
pub(crate) use transpose::{LANES as TURNED_LANES, transpose};
pub(crate) use vector::{few_rows, few_rows_workspace_bytes, is_few_rows};

use std::ops::Range;

use super::{
    parallel::{Shared, for_each_part, for_each_task},
    pool::Pool,
};
use crate::{
    Store,
    device::{Compute, DeviceKind, DeviceProfile, Isa},
    nf4::BLOCK,
};
use kernels::{Kernel, MAX_COLUMNS, MAX_ROWS, Tile};
use operand::Form;

/// Columns of B that a task packs at a time, at most: 128 columns of 640 bf16 are 160 KiB, a sixth of
/// a second-level cache of 1 MiB.
const TASK_COLUMNS: usize = 128;

/// Panels of A that pass over one panel of B after another: at most 350 KiB, which with a task's B fit
/// a second-level cache of 1 MiB. What then stays nearest is the panel of B, the larger of the two.
const NEAR_PANELS: usize = 20;

/// Packed elements of A at a time, at most, where a product has no other beside it: 4 MiB, which stay in a
/// last-level cache while all columns pass. A product through the output matrix is tens of thousands of
/// steps deep.
const SPAN: usize = 1 << 20;

/// How a product is cut.
#[derive(Clone, Copy, Debug)]
struct Blocking {
    /// Rows of A packed at a time: 1,024 of bf16, half as many of f32.
    rows: usize,
    /// Steps of k packed at a time: up to 1.25 KiB of a row, so that a panel of A (17.5 KiB) and one of
    /// B (40 KiB) stay near the core.
    depth: usize,
}

impl Blocking {
    /// For `k` steps: blocks of like depth, as a short one would cost another pass over C.
    fn new(kernel: &Kernel, k: usize) -> Self {
        let most = Self::most_depth(kernel);
        Self {
            rows: Self::most_rows(kernel),
            // Whole blocks of a quantised row.
            depth: k.div_ceil(k.div_ceil(most).max(1)).next_multiple_of(BLOCK).min(most),
        }
    }

    fn most_rows(kernel: &Kernel) -> usize {
        let rows: usize = if kernel.bf16_pairs { 1024 } else { 512 };
        rows.next_multiple_of(kernel.n_rows)
    }

    /// Steps of k of which A is packed at a time, for up to `m` rows: all of them beside another product;
    /// else whole blocks.
    fn span(&self, kernel: &Kernel, m: usize, k: usize, rank: usize) -> usize {
        if rank > 0 {
            return k;
        }
        let block =
            m.min(self.rows).next_multiple_of(kernel.n_rows) * kernel.packed_depth(self.depth);
        k.min((SPAN / block).max(1) * self.depth)
    }

    /// The most steps of k packed at a time.
    fn most_depth(kernel: &Kernel) -> usize {
        if kernel.bf16_pairs { 640 } else { 320 }
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

/// Bytes of workspace that a product needs, alone or with a low-rank one of up to `rank` beside it.
pub(crate) fn workspace_bytes(profile: &DeviceProfile, extents: Extents, rank: usize) -> usize {
    let DeviceKind::Cpu { isa, n_threads } = profile.kind else {
        unreachable!("a workspace of the processor")
    };
    // A profile may ask for more than this processor has; the device would then use less.
    let kernel = Kernel::choose(isa.min(Isa::best()), profile.compute, extents.m, extents.n);
    Parts::new(&kernel, extents, rank).end(n_threads).saturating_mul(size_of::<u32>())
}

/// Elements (f32, or pairs of bf16) of the parts of a product's workspace, in order.
struct Parts {
    /// A block of rows of A.
    a: usize,
    /// The same rows of the low-rank product's middle.
    through: usize,
    /// All of its first matrix.
    down: usize,
    /// One task's part of B; each thread has its own.
    b: usize,
}

impl Parts {
    fn new(kernel: &Kernel, extents: Extents, rank: usize) -> Self {
        let Extents { m, n: _, k } = extents;
        // Whatever tile a smaller product, or what is beside it, would choose: its panels end within
        // so many rows and columns.
        let rows = m.min(Blocking::most_rows(kernel)) + MAX_ROWS;
        let panels = |n: usize| n.saturating_add(MAX_COLUMNS);
        // As many spans' as fit, or one block's; and no more for fewer rows.
        let of = |depth| rows.saturating_mul(kernel.packed_depth(depth));
        let spans = if rank == 0 { SPAN.max(of(Blocking::most_depth(kernel))) } else { usize::MAX };
        let down = if rank == 0 { 0 } else { panels(rank).saturating_mul(kernel.packed_depth(k)) };
        Self {
            a: of(k).min(spans),
            through: rows.saturating_mul(kernel.packed_depth(rank)),
            down,
            b: panels(TASK_COLUMNS) * kernel.packed_depth(Blocking::most_depth(kernel)),
        }
    }

    fn end(&self, n_threads: usize) -> usize {
        [self.through, self.down, self.b.saturating_mul(n_threads)]
            .into_iter()
            .fold(self.a, usize::saturating_add)
    }
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

/// A product of low rank beside another, with the same rows of A.
pub(crate) struct LowRank<'a> {
    pub rank: usize,
    /// `through = factor · a · down`, `down` `[k, rank]`; without, `through` is given.
    pub down: Option<(Operand<'a>, f32)>,
    /// `[m, rank]`.
    pub through: &'a mut [f32],
    /// `c += factor · through · up`, `up` `[rank, n]`, if that is wanted.
    pub up: Option<(Operand<'a>, f32)>,
}

/// One of the products that C is the sum of, its rows of A packed.
struct Term<'a> {
    a: &'a [u32],
    b: Operand<'a>,
    /// The steps that are packed.
    k: Range<usize>,
    blocking: Blocking,
    factor: f32,
}

/// `c (store) factor · a · b`, `c` `[m, n]` row-major; and what is beside it.
///
/// `workspace`: [`workspace_bytes`], read as 32-bit elements.
pub(crate) fn multiply(
    place: Place<'_>,
    extents: Extents,
    factor: f32,
    a: Operand<'_>,
    b: Operand<'_>,
    mut beside: Option<LowRank<'_>>,
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
    let blocking = Blocking::new(&kernel, k);
    let rank = beside.as_ref().map_or(0, |beside| beside.rank);
    let parts = Parts::new(&kernel, extents, rank);
    let (packed_a, rest) = workspace.split_at_mut(parts.a);
    let (packed_through, rest) = rest.split_at_mut(parts.through);
    let (packed_down, rest) = rest.split_at_mut(parts.down);
    let shared_c = Shared::new(c);

    let span = blocking.span(&kernel, m, k, rank);
    for first_row in (0..m).step_by(blocking.rows) {
        let n_rows = blocking.rows.min(m - first_row);
        let rows = first_row..first_row + n_rows;
        let form = place.form(&kernel, kernel.n_rows);
        for first in (0..k).step_by(span) {
            let k = first..(first + span).min(k);
            let depth = blocking.depth;
            let pack_rows = Packing::new(form, a, rows.clone(), (k.clone(), depth), packed_a);
            let down = beside.as_ref().and_then(|beside| beside.down);
            match down {
                // The first matrix is packed with the first rows.
                Some((down, _)) if first_row == 0 => {
                    down.check(rank, k.end);
                    let tiles = kernel.beside(place.isa, place.compute, rank);
                    let form = place.form(&kernel, tiles.n_columns);
                    let k = (k.clone(), depth);
                    let pack_down = Packing::new(form, down, 0..rank, k, packed_down);
                    Packing::run(place.pool, &[pack_down, pack_rows]);
                }
                _ => Packing::run(place.pool, &[pack_rows]),
            }
            let k_of_down = k.len();
            let mut terms = [Some(Term { a: &*packed_a, b, k, blocking, factor }), None];
            if let Some(LowRank { through, up, .. }) = &mut beside {
                let through = &mut through[first_row * rank..][..n_rows * rank];
                let packed = &mut *packed_through;
                let middle = Middle { kernel: &kernel, rank, k: k_of_down, blocking, packed };
                middle.pass(
                    place,
                    down.map(|(_, factor)| (&*packed_a, &*packed_down, factor)),
                    through,
                );
                if let Some((b, factor)) = *up {
                    b.check(n, rank);
                    let blocking = Blocking::new(&kernel, rank);
                    terms[1] = Some(Term { a: &*packed_through, b, k: 0..rank, blocking, factor });
                }
            }
            let rows = (first_row, n_rows);
            let store = if first == 0 { store } else { Store::Accumulate };
            add_terms(place, &kernel, rows, n, &terms, store, &shared_c, (&mut *rest, parts.b));
        }
    }
}

/// What a block of rows of a low-rank product passes through.
struct Middle<'a> {
    kernel: &'a Kernel,
    rank: usize,
    k: usize,
    blocking: Blocking,
    /// Its rows as panels of A.
    packed: &'a mut [u32],
}

impl Middle<'_> {
    /// `through = factor · a · down` of packed operands, unless it is given; and packs it.
    fn pass(self, place: Place<'_>, product: Option<(&[u32], &[u32], f32)>, through: &mut [f32]) {
        let Self { kernel, rank, k, blocking, packed } = self;
        let panel_rows = kernel.n_rows;
        let n_rows = through.len() / rank;
        let padded_rows = n_rows.next_multiple_of(panel_rows);
        let depth = Blocking::new(kernel, rank).depth;
        let form = place.form(kernel, panel_rows);
        let packed = Shared::new(packed);
        for_each_part(place.pool, through, panel_rows * rank, |panel, through| {
            let top = panel * panel_rows;
            if let Some((a, down, factor)) = product {
                let tiles = kernel.beside(place.isa, place.compute, rank);
                let padded_rank = rank.next_multiple_of(tiles.n_columns);
                for depth_start in (0..k).step_by(blocking.depth) {
                    let steps = kernel.packed_depth(blocking.depth.min(k - depth_start));
                    let earlier = kernel.packed_depth(depth_start);
                    let a = &a[padded_rows * earlier + top * steps..];
                    for column in (0..rank).step_by(tiles.n_columns) {
                        let tile = Tile {
                            n_rows: through.len() / rank,
                            n_columns: tiles.n_columns.min(rank - column),
                            stride: rank,
                            factor,
                            overwrite: depth_start == 0,
                        };
                        let down = &down[padded_rank * earlier + column * steps..];
                        let c = &mut through[column..];
                        // SAFETY: the part holds the tile's rows, each `rank` long; the device was
                        // made with instructions that this processor has.
                        unsafe { tiles.run(steps, a, down, c.as_mut_ptr(), tile) };
                    }
                }
            }
            let rows = Operand::f32(through, Layout::Depth, rank);
            for depth_start in (0..rank).step_by(depth) {
                let depth = depth_start..(depth_start + depth).min(rank);
                let steps = form.packed_depth(depth.len());
                let start = padded_rows * form.packed_depth(depth_start) + top * steps;
                // SAFETY: each task has panels of its own.
                let packed = unsafe { packed.slice(start, panel_rows * steps) };
                rows.pack(form, 0..through.len() / rank, depth, packed);
            }
        });
    }
}

/// `c (store)` the sum of the terms, for a block of rows.
fn add_terms(
    place: Place<'_>,
    kernel: &Kernel,
    (first_row, n_rows): (usize, usize),
    n: usize,
    terms: &[Option<Term<'_>>],
    store: Store,
    c: &Shared<f32>,
    (packed_b, b_len): (&mut [u32], usize),
) {
    let n_threads = place.pool.n_threads();
    let packed_b = Shared::new(&mut packed_b[..b_len * n_threads]);
    let tasks = Tasks::cut(kernel, n_rows, n, n_threads);
    place.pool.run(tasks.n, |thread, task| {
        let column_tasks = n.div_ceil(tasks.n_columns);
        let first_column = task % column_tasks * tasks.n_columns;
        let n_columns = tasks.n_columns.min(n - first_column);
        let top = task / column_tasks * tasks.n_rows;
        let bottom = (top + tasks.n_rows).min(n_rows);
        // SAFETY: each thread has a part of its own, and a thread runs one task at a time.
        let packed_b = unsafe { packed_b.slice(thread * b_len, b_len) };
        let mut overwrite = store == Store::Overwrite;
        for Term { a, b, k, blocking, factor } in terms.iter().flatten() {
            for depth_start in (0..k.len()).step_by(blocking.depth) {
                let depth = blocking.depth.min(k.len() - depth_start);
                let first = k.start + depth_start;
                b.pack(
                    place.form(kernel, kernel.n_columns),
                    first_column..first_column + n_columns,
                    first..first + depth,
                    packed_b,
                );
                let steps = kernel.packed_depth(depth);
                // Depths of earlier blocks are whole, so that their panels lie behind one another.
                let earlier =
                    n_rows.next_multiple_of(kernel.n_rows) * kernel.packed_depth(depth_start);
                let near_rows = NEAR_PANELS * kernel.n_rows;
                for near in (top..bottom).step_by(near_rows) {
                    let near = near..(near + near_rows).min(bottom);
                    for panel_column in (0..n_columns).step_by(kernel.n_columns) {
                        let b_panel = &packed_b[panel_column * steps..];
                        for panel_row in near.clone().step_by(kernel.n_rows) {
                            let a_panel = &a[earlier + panel_row * steps..];
                            let tile = Tile {
                                n_rows: kernel.n_rows.min(bottom - panel_row),
                                n_columns: kernel.n_columns.min(n_columns - panel_column),
                                stride: n,
                                factor: *factor,
                                overwrite,
                            };
                            let row = first_row + panel_row;
                            let start = row * n + first_column + panel_column;
                            let len = (tile.n_rows - 1) * n + tile.n_columns;
                            // SAFETY: tasks own disjoint rows or columns of C, and C outlives
                            // them; `part` checks that the tile ends inside C.
                            unsafe {
                                kernel.run(steps, a_panel, b_panel, c.part(start, len), tile)
                            };
                        }
                    }
                }
                overwrite = false;
            }
        }
    });
}

/// How the rows and columns of a product are handed out.
struct Tasks {
    n: usize,
    n_rows: usize,
    n_columns: usize,
}

impl Tasks {
    /// The cut with which all threads are done soonest. Tasks that divide the rows each pack B for
    /// themselves.
    fn cut(kernel: &Kernel, n_rows: usize, n: usize, n_threads: usize) -> Self {
        /// Rows whose products take as long as packing the columns of B.
        const PACKING: usize = 16;
        let wide = TASK_COLUMNS / kernel.n_columns;
        let most_rows = n_rows.div_ceil(4 * kernel.n_rows).clamp(1, 2 * n_threads);
        let cuts = (1..=most_rows).flat_map(|row_tasks| {
            (1..=wide).rev().map(move |panels| {
                let n_columns = panels * kernel.n_columns;
                let n_rows = n_rows.div_ceil(row_tasks).next_multiple_of(kernel.n_rows);
                (n_rows, n_columns)
            })
        });
        let cut = |(rows, n_columns): (usize, usize)| {
            let n = n_rows.div_ceil(rows) * n.div_ceil(n_columns);
            (
                n.div_ceil(n_threads) * n_columns * (rows + PACKING),
                Self { n, n_rows: rows, n_columns },
            )
        };
        // The first of the best: as few rows' tasks and as wide columns as do no harm.
        let (_, tasks) = cuts
            .map(cut)
            .min_by_key(|(time, _)| *time)
            .unwrap_or_else(|| cut((n_rows.next_multiple_of(kernel.n_rows), TASK_COLUMNS)));
        tasks
    }
}

/// An operand on its way into panels: block by block of k, panel by panel of lanes.
struct Packing<'a> {
    form: Form,
    operand: Operand<'a>,
    lanes: Range<usize>,
    k: Range<usize>,
    /// Steps of k in a block.
    depth: usize,
    packed: Shared<u32>,
}

impl<'a> Packing<'a> {
    /// Panels of a task.
    const PANELS: usize = 2;

    fn new(
        form: Form,
        operand: Operand<'a>,
        lanes: Range<usize>,
        (k, depth): (Range<usize>, usize),
        packed: &mut [u32],
    ) -> Self {
        Self { form, operand, lanes, k, depth, packed: Shared::new(packed) }
    }

    fn lane_tasks(&self) -> usize {
        self.lanes.len().div_ceil(Self::PANELS * self.form.width)
    }

    fn n_tasks(&self) -> usize {
        self.k.len().div_ceil(self.depth) * self.lane_tasks()
    }

    /// Packs all of several operands.
    fn run(pool: &Pool, all: &[Self]) {
        for_each_task(pool, all.iter().map(Self::n_tasks).sum(), |mut task| {
            for packing in all {
                let n = packing.n_tasks();
                if task < n {
                    return packing.pack(task);
                }
                task -= n;
            }
        });
    }

    fn pack(&self, task: usize) {
        let Self { form, operand, ref lanes, ref k, depth, ref packed } = *self;
        let depth_start = task / self.lane_tasks() * depth;
        let depth = depth.min(k.len() - depth_start);
        let lanes_of_task = Self::PANELS * form.width;
        let top = task % self.lane_tasks() * lanes_of_task;
        let bottom = (top + lanes_of_task).min(lanes.len());
        let steps = form.packed_depth(depth);
        let padded = lanes.len().next_multiple_of(form.width);
        let start = padded * form.packed_depth(depth_start) + top * steps;
        let len = (bottom - top).next_multiple_of(form.width) * steps;
        // SAFETY: tasks own different depths or panels, and the memory outlives them.
        let part = unsafe { packed.slice(start, len) };
        let lanes = lanes.start + top..lanes.start + bottom;
        let first = k.start + depth_start;
        operand.pack(form, lanes, first..first + depth, part);
    }
}
