//! A block of rows on its way through a product: packed, passed through what is beside, added up.

use std::ops::Range;

use arrayvec::ArrayVec;

use super::{
    Blocking, LowRank, MOST_AT_ONCE, MOST_SHARING, Operand, Place, Rows, SharedTarget, Sums,
    Target, Term,
    kernels::Kernel,
    layout::Layout,
    operand::{Form, Side},
    products_beside,
    stores::Tile,
};
use crate::{
    Store,
    cpu::{
        parallel::{Shared, for_each_task},
        pool::Pool,
    },
};

/// Sums of a task that are yet to be rounded, at most: 512 KiB, which stay in a second-level cache beside the
/// panels; with the deepest ones of matrix registers they fill it, for which no other limit was measured.
const MOST_UNROUNDED: usize = 1 << 17;

/// Places in a buffer of packed elements.
type Places<const MOST: usize> = ArrayVec<Range<usize>, MOST>;

/// Some rows of every A, over the steps of k that are packed at a time.
pub(super) struct Block<'a> {
    kernel: &'a Kernel,
    place: Place<'a>,
    lanes: Range<usize>,
    /// Of the deepest.
    steps: Range<usize>,
    /// Of every A.
    rows: Places<MOST_AT_ONCE>,
    /// Of the first matrix of every product beside.
    downs: Places<MOST_SHARING>,
    /// Of the middle of every product beside.
    throughs: Places<MOST_SHARING>,
}

impl<'a> Block<'a> {
    pub fn new(
        kernel: &'a Kernel,
        place: Place<'a>,
        lanes: Range<usize>,
        steps: Range<usize>,
        rows: &[Rows<'_>],
        sums: &[Sums<'_>],
    ) -> Self {
        let (downs, throughs) = (Places::default(), Places::default());
        let mut block =
            Self { kernel, place, lanes, steps, rows: Places::default(), downs, throughs };
        block.rows = in_order(rows.iter().map(|rows| block.panels_len(block.steps_of(rows).len())));
        block.downs = in_order(products_beside(sums).map(|(number, beside)| {
            let padded = beside.rank.next_multiple_of(block.tile_beside(beside.rank).n_columns);
            padded * kernel.packed_depth(rows[number].k)
        }));
        block.throughs =
            in_order(products_beside(sums).map(|(_, beside)| block.panels_len(beside.rank)));
        block
    }

    /// The steps of an A, which may have fewer than the deepest.
    fn steps_of(&self, rows: &Rows<'_>) -> Range<usize> {
        self.steps.start.min(rows.k)..self.steps.end.min(rows.k)
    }

    fn padded_rows(&self) -> usize {
        self.lanes.len().next_multiple_of(self.kernel.n_rows)
    }

    /// Elements of the rows' panels, `depth` steps deep.
    fn panels_len(&self, depth: usize) -> usize {
        self.padded_rows() * self.kernel.packed_depth(depth)
    }

    /// Steps of k in a block of an operand that has `k`.
    fn depth(&self, k: usize) -> usize {
        Blocking::new(self.kernel, k).depth
    }

    /// The tile of a product of `rank` columns beside.
    fn tile_beside(&self, rank: usize) -> Kernel {
        self.kernel.beside(self.place.isa, self.place.compute, rank)
    }

    /// Packs every A; and with the first rows the first matrices of the products beside.
    pub fn pack(
        &self,
        rows: &[Rows<'_>],
        sums: &[Sums<'_>],
        (packed_a, packed_down): (&mut [u32], &mut [u32]),
    ) {
        let mut packings = ArrayVec::<Packing<'_>, { MOST_AT_ONCE + MOST_SHARING }>::new();
        let form = self.place.form(self.kernel, Side::Rows);
        for (rows, place) in rows.iter().zip(&self.rows) {
            let k = (self.steps_of(rows), self.depth(rows.k));
            let packed = &mut packed_a[place.clone()];
            packings.push(Packing::new(form, rows.a, self.lanes.clone(), k, packed));
        }
        let downs = products_beside(sums).zip(&self.downs);
        for ((number, &LowRank { rank, down, .. }), place) in downs {
            let Some((down, _)) = down.filter(|_| self.lanes.start == 0) else { continue };
            let form = self.place.form(&self.tile_beside(rank), Side::Columns);
            let k = rows[number].k;
            let packed = &mut packed_down[place.clone()];
            packings.push(Packing::new(form, down, 0..rank, (0..k, self.depth(k)), packed));
        }
        Packing::run(self.place.pool, &packings);
    }

    /// Passes the rows through the first matrix of every product beside, and packs what comes out.
    pub fn pass_beside(
        &self,
        rows: &[Rows<'_>],
        sums: &mut [Sums<'_>],
        (packed_a, packed_down): (&[u32], &[u32]),
        packed_through: &mut [u32],
    ) {
        let mut middles = ArrayVec::<Middle<'_>, MOST_SHARING>::new();
        let terms = sums.iter_mut().flat_map(|sums| &mut sums.terms);
        let products = terms.filter_map(|term| Some((term.rows, term.beside.as_mut()?)));
        for ((number, beside), (down, through)) in
            products.zip(self.downs.iter().zip(&self.throughs))
        {
            let LowRank { rank, down: product, through: middle, .. } = beside;
            let a = &packed_a[self.rows[number].clone()];
            let down = &packed_down[down.clone()];
            middles.push(Middle {
                rank: *rank,
                k: rows[number].k,
                product: product.map(|(_, factor)| (a, down, factor)),
                through: Shared::new(&mut middle[self.lanes.start * *rank..]),
                packed: Shared::new(&mut packed_through[through.clone()]),
            });
        }
        let n_panels = self.lanes.len().div_ceil(self.kernel.n_rows);
        for_each_task(self.place.pool, middles.len() * n_panels, |task| {
            middles[task / n_panels].pass(self, task % n_panels);
        });
    }

    /// Adds every term to its sums, and with the last steps the bias. Of the last memory each thread has a
    /// part of its own, for a task's part of B and of C.
    pub fn add(
        &self,
        rows: &[Rows<'_>],
        sums: &mut [Sums<'_>],
        (packed_a, packed_through): (&[u32], &[u32]),
        (of_threads, b_len, c_len): (&mut [u32], usize, usize),
    ) {
        let are_last = rows.iter().all(|rows| rows.k <= self.steps.end);
        let mut throughs = self.throughs.iter().map(|place| &packed_through[place.clone()]);
        let mut ready = ArrayVec::<ReadySums<'_>, MOST_AT_ONCE>::new();
        for Sums { n, store, onto, bias, terms, c } in sums {
            let mut ready_terms = ArrayVec::new();
            for &Term { rows: number, b, factor, ref beside } in &*terms {
                let a = (number..number + c.len()).map(|i| &packed_a[self.rows[i].clone()]);
                let k = rows[number].k;
                let (steps, depth) = (self.steps_of(&rows[number]), self.depth(k));
                ready_terms.push(Ready { a: a.collect(), b, k: steps, depth, factor });
                let Some(LowRank { rank, up, .. }) = *beside else { continue };
                let through = throughs.next().expect("a place for each");
                if let Some((b, factor)) = up {
                    let a = ArrayVec::from_iter([through]);
                    let depth = self.depth(rank);
                    ready_terms.push(Ready { a, b, k: 0..rank, depth, factor });
                }
            }
            // What spans before this one left is added to.
            let store = if self.steps.start == 0 { *store } else { Store::Accumulate };
            let c = c.iter_mut().map(Target::share).collect();
            // It is there once the first span has been added.
            let onto = onto.filter(|_| self.steps.start == 0);
            let bias = bias.filter(|_| are_last);
            ready.push(ReadySums { n: *n, terms: ready_terms, store, onto, bias, c });
        }
        let (place, kernel) = (self.place, self.kernel);
        let n_threads = place.pool.n_threads();
        let len = b_len + c_len;
        let of_threads = Shared::new(&mut of_threads[..len * n_threads]);
        let widths = || ready.iter().map(|sums| sums.n);
        let most = if c_len > 0 { MOST_UNROUNDED } else { usize::MAX };
        let tasks = Tasks::cut(kernel, self.lanes.len(), widths, most, n_threads);
        place.pool.run(tasks.n, |thread, mut task| {
            // SAFETY: each thread has a part of its own, and a thread runs one task at a time.
            let own = unsafe { of_threads.slice(thread * len, len) };
            for sums in &ready {
                let column_tasks = sums.n.div_ceil(tasks.n_columns);
                let n = column_tasks * tasks.row_tasks;
                if task >= n {
                    task -= n;
                    continue;
                }
                let first = task % column_tasks * tasks.n_columns;
                let columns = first..(first + tasks.n_columns).min(sums.n);
                let top = task / column_tasks * tasks.n_rows;
                let rows = top..(top + tasks.n_rows).min(self.lanes.len());
                return self.add_part(sums, rows, columns, own.split_at_mut(b_len));
            }
        });
    }

    /// Adds every term to some rows and columns of the sums.
    fn add_part(
        &self,
        sums: &ReadySums<'_>,
        rows: Range<usize>,
        columns: Range<usize>,
        (packed_b, unrounded): (&mut [u32], &mut [u32]),
    ) {
        let kernel = self.kernel;
        let form = self.place.form(kernel, Side::Columns);
        let padded_rows = self.padded_rows();
        let n = sums.n;
        let start = |row: usize| (self.lanes.start + row) * n + columns.start;
        // SAFETY: the device was made with instructions that this processor has.
        let ready = unsafe { kernel.ready() };
        let mut overwrite = sums.store == Store::Overwrite;
        if let (Some(onto), [SharedTarget::F32(c)]) = (sums.onto, &*sums.c) {
            for row in rows.clone() {
                // SAFETY: tasks own disjoint rows or columns of C, and C outlives them.
                let c = unsafe { c.slice(start(row), columns.len()) };
                c.copy_from_slice(&onto[start(row)..][..columns.len()]);
            }
            overwrite = false;
        }
        for Ready { a, b, k, depth: most, factor } in &sums.terms {
            for depth_start in (0..k.len()).step_by(*most) {
                let depth = (*most).min(k.len() - depth_start);
                let first = k.start + depth_start;
                b.pack(form, columns.clone(), first..first + depth, packed_b);
                let steps = kernel.packed_depth(depth);
                // Depths of earlier blocks are whole, so that their panels lie behind one another.
                let earlier = padded_rows * kernel.packed_depth(depth_start);
                let near_rows = Blocking::near_panels(kernel, steps) * kernel.n_rows;
                for (a, c) in a.iter().zip(&sums.c) {
                    for near in rows.clone().step_by(near_rows) {
                        let near = near..(near + near_rows).min(rows.end);
                        for column in columns.clone().step_by(kernel.n_columns) {
                            let b_panel = &packed_b[(column - columns.start) * steps..];
                            for row in near.clone().step_by(kernel.n_rows) {
                                let a_panel = &a[earlier + row * steps..];
                                let (stride, start) = match c {
                                    SharedTarget::F32(_) => {
                                        (n, (self.lanes.start + row) * n + column)
                                    }
                                    SharedTarget::Bf16(_) => {
                                        let stride = columns.len();
                                        let from_top = (row - rows.start) * stride;
                                        (stride, from_top + column - columns.start)
                                    }
                                };
                                let tile = Tile {
                                    n_rows: kernel.n_rows.min(rows.end - row),
                                    n_columns: kernel.n_columns.min(columns.end - column),
                                    stride,
                                    factor: *factor,
                                    overwrite,
                                };
                                let len = (tile.n_rows - 1) * stride + tile.n_columns;
                                // SAFETY: tasks own disjoint rows or columns of C, and C outlives
                                // them; `part` checks that the tile ends inside C, as the slice of the
                                // sums to be rounded does.
                                unsafe {
                                    let c = match c {
                                        SharedTarget::F32(c) => c.part(start, len),
                                        SharedTarget::Bf16(_) => {
                                            unrounded[start..start + len].as_mut_ptr().cast()
                                        }
                                    };
                                    ready.run(steps, a_panel, b_panel, c, tile);
                                }
                            }
                        }
                    }
                }
                overwrite = false;
            }
        }
        let len = columns.len();
        let bias = sums.bias.map(|bias| &bias[columns.clone()]);
        for c in &sums.c {
            for (number, row) in rows.clone().enumerate() {
                match c {
                    SharedTarget::F32(c) if overwrite || bias.is_some() => {
                        // SAFETY: as above.
                        finish(unsafe { c.slice(start(row), len) }, overwrite, bias);
                    }
                    SharedTarget::F32(_) => {}
                    SharedTarget::Bf16(_) => {
                        let sums = bytemuck::cast_slice_mut(&mut unrounded[number * len..][..len]);
                        finish(sums, overwrite, bias);
                        // SAFETY: as above.
                        unsafe { c.store(self.place.isa, start(row), sums) };
                    }
                }
            }
        }
    }
}

/// What comes after the terms of a row of sums, of which there may have been none.
fn finish(sums: &mut [f32], is_of_nothing: bool, bias: Option<&[f32]>) {
    if is_of_nothing {
        sums.fill(0.0);
    }
    for (sum, bias) in sums.iter_mut().zip(bias.into_iter().flatten()) {
        *sum += bias;
    }
}

/// Places of these lengths, one behind another.
fn in_order<const MOST: usize>(lengths: impl Iterator<Item = usize>) -> Places<MOST> {
    let mut end = 0;
    let place = |len| {
        let start = end;
        end += len;
        start..end
    };
    lengths.map(place).collect()
}

/// A term whose rows are packed.
struct Ready<'a> {
    /// Of each sum.
    a: ArrayVec<&'a [u32], MOST_SHARING>,
    b: Operand<'a>,
    /// The steps that are packed.
    k: Range<usize>,
    /// How many of them are multiplied at a time.
    depth: usize,
    factor: f32,
}

/// Sums whose terms are ready, and what is beside each behind it.
struct ReadySums<'a> {
    n: usize,
    terms: ArrayVec<Ready<'a>, { 2 * MOST_SHARING }>,
    store: Store,
    /// What a single sum is added to, brought to C by each task for its part: the sums find it in the cache.
    onto: Option<&'a [f32]>,
    bias: Option<&'a [f32]>,
    c: ArrayVec<SharedTarget, MOST_SHARING>,
}

/// What a block of rows of a low-rank product passes through.
struct Middle<'a> {
    rank: usize,
    k: usize,
    /// Packed rows, packed first matrix, and the factor, unless the middle is given.
    product: Option<(&'a [u32], &'a [u32], f32)>,
    /// The block's rows, `[n_rows, rank]`.
    through: Shared<f32>,
    /// The same as panels of A.
    packed: Shared<u32>,
}

impl Middle<'_> {
    /// Makes one panel of the middle, unless it is given; and packs it.
    fn pass(&self, block: &Block<'_>, panel: usize) {
        let &Self { rank, k, product, through, packed } = self;
        let kernel = block.kernel;
        let top = panel * kernel.n_rows;
        let n_rows = kernel.n_rows.min(block.lanes.len() - top);
        let padded_rows = block.padded_rows();
        // SAFETY: each task has rows of its own.
        let through = unsafe { through.slice(top * rank, n_rows * rank) };
        if let Some((a, down, factor)) = product {
            let tiles = block.tile_beside(rank);
            // SAFETY: the device was made with instructions that this processor has.
            let ready = unsafe { tiles.ready() };
            let padded_rank = rank.next_multiple_of(tiles.n_columns);
            let depth = block.depth(k);
            for depth_start in (0..k).step_by(depth) {
                let steps = kernel.packed_depth(depth.min(k - depth_start));
                let earlier = kernel.packed_depth(depth_start);
                let a = &a[padded_rows * earlier + top * steps..];
                for column in (0..rank).step_by(tiles.n_columns) {
                    let tile = Tile {
                        n_rows,
                        n_columns: tiles.n_columns.min(rank - column),
                        stride: rank,
                        factor,
                        overwrite: depth_start == 0,
                    };
                    let down = &down[padded_rank * earlier + column * steps..];
                    let c = &mut through[column..];
                    // SAFETY: the part holds the tile's rows, each `rank` long.
                    unsafe { ready.run(steps, a, down, c.as_mut_ptr(), tile) };
                }
            }
        }
        let form = block.place.form(kernel, Side::Rows);
        let rows = Operand::f32(through, Layout::Depth, rank);
        let depth = block.depth(rank);
        for depth_start in (0..rank).step_by(depth) {
            let depth = depth_start..(depth_start + depth).min(rank);
            let steps = form.packed_depth(depth.len());
            let start = padded_rows * form.packed_depth(depth_start) + top * steps;
            // SAFETY: each task has panels of its own.
            let packed = unsafe { packed.slice(start, kernel.n_rows * steps) };
            rows.pack(form, 0..n_rows, depth, packed);
        }
    }
}

/// How the rows and columns of a product are handed out.
struct Tasks {
    n: usize,
    row_tasks: usize,
    n_rows: usize,
    n_columns: usize,
}

impl Tasks {
    /// The cut of sums of these widths with which all threads are done soonest, into tasks of up to `most`
    /// sums where a panel's columns allow it. Tasks that divide the rows each pack B for themselves.
    fn cut<W: Iterator<Item = usize>>(
        kernel: &Kernel,
        n_rows: usize,
        widths: impl Fn() -> W,
        most: usize,
        n_threads: usize,
    ) -> Self {
        let task_columns = Blocking::task_columns(kernel);
        let wide = task_columns / kernel.n_columns;
        let most_rows = n_rows.div_ceil(4 * kernel.n_rows).clamp(1, 2 * n_threads);
        let cuts = (1..=most_rows).flat_map(|row_tasks| {
            let n_rows = n_rows.div_ceil(row_tasks).next_multiple_of(kernel.n_rows);
            let wide = wide.min(most / (n_rows * kernel.n_columns)).max(1);
            (1..=wide).rev().map(move |panels| (n_rows, panels * kernel.n_columns))
        });
        let cut = |(rows, n_columns): (usize, usize)| {
            let row_tasks = n_rows.div_ceil(rows);
            let n = row_tasks * widths().map(|n| n.div_ceil(n_columns)).sum::<usize>();
            (
                n.div_ceil(n_threads) * n_columns * (rows + kernel.rows_of_packing()),
                Self { n, row_tasks, n_rows: rows, n_columns },
            )
        };
        // The first of the best: as few rows' tasks and as wide columns as do no harm.
        let (_, tasks) = cuts
            .map(cut)
            .min_by_key(|(time, _)| *time)
            .unwrap_or_else(|| cut((n_rows.next_multiple_of(kernel.n_rows), task_columns)));
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
