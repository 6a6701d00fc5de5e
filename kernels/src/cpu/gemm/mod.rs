//! The matrix product: `C (store) factor · A · B`, from operands as they are stored; and several at once
//! that share rows of A, columns of B, or C.
//!
//! Both operands are copied into panels that the innermost loop reads front to back; whatever a
//! weight is stored as is expanded, and rounded to bf16 where the products are, on the way. A is
//! packed once for a block of rows and stays in the last-level cache; a task takes a few columns,
//! packs their part of B into its core's second-level cache, and passes all rows over it, so that a
//! quantised weight is expanded once for every [`Blocking::rows`] rows; or for fewer, where there are
//! too few columns for all threads.
//!
//! Every element of C is one task's sum over k in order, so that no result depends on the threads.

mod block;
mod expand;
#[cfg(target_arch = "x86_64")]
mod f32_panels;
mod kernels;
mod layout;
mod matrix_registers;
mod nf4;
mod operand;
mod stores;
mod tiles;
mod transpose;
mod vector;

pub(crate) use expand::Values;
pub(crate) use layout::Layout;
pub(crate) use nf4::Nf4Values;
pub(crate) use operand::Operand;
pub(crate) use tiles::TileProducts;
pub(crate) use transpose::{LANES as TURNED_LANES, transpose};
pub(crate) use vector::{FEW_ROWS, few_rows, few_rows_workspace_bytes, is_few_rows};

use arrayvec::ArrayVec;
use half::bf16;

use super::{float::Float, parallel::Shared, pool::Pool};
use crate::{
    Store,
    device::{Compute, DeviceKind, DeviceProfile, Isa},
    nf4::BLOCK,
};
use block::Block;
use kernels::{Elements, Kernel};
use operand::{Form, Side};

/// Panels of A that pass over one panel of B after another: at most 350 KiB, which with a task's B fit
/// a second-level cache of 1 MiB. What then stays nearest is the panel of B.
const NEAR_PANELS: usize = 20;

/// Packed elements of those panels with matrix registers, at most: 512 KiB, a quarter of the second-level cache of
/// a processor that has them. A deep panel of B does not stay nearest there, and is asked for ahead like A's.
const NEAR_ELEMENTS: usize = 1 << 17;

/// Packed elements of every A at a time where no product is beside another, or one block of each if that is more:
/// 4 MiB, which stay in a last-level cache while all columns pass; one block of each of three is up to 12 MiB with
/// matrix registers. A product through the output matrix is tens of thousands of steps deep.
const SPAN: usize = 1 << 20;

/// Rows of A packed at a time at least where sums are rounded, however deep: packing B takes as long as
/// sixteen, with matrix registers as 48.
const LEAST_ROUNDED_ROWS: usize = 256;

/// How a product is cut.
#[derive(Clone, Copy, Debug)]
struct Blocking {
    /// Rows of A packed at a time: 1,024 of bf16, half as many of f32.
    rows: usize,
    /// Steps of k packed at a time: up to 1.25 KiB of a row, so that a panel of A (17.5 KiB) and one of
    /// B (40 KiB) stay near the core; up to 4 KiB with matrix registers: their panels are asked for ahead, and
    /// shorter blocks would spend longer bringing sums to memory and back.
    depth: usize,
}

impl Blocking {
    /// For `k` steps: blocks of like depth, as a short one would cost another pass over C.
    fn new(kernel: &Kernel, k: usize) -> Self {
        let most = Self::most_depth(kernel);
        Self {
            rows: Self::most_rows(kernel),
            // Whole blocks of a quantised row, and at least one.
            depth: k.div_ceil(k.div_ceil(most).max(1)).next_multiple_of(BLOCK).clamp(BLOCK, most),
        }
    }

    fn most_rows(kernel: &Kernel) -> usize {
        let rows: usize = if kernel.elements.are_pairs() { 1024 } else { 512 };
        rows.next_multiple_of(kernel.n_rows)
    }

    /// Steps of k of which `n_a` A with up to `m` rows are packed at a time, where no product is beside.
    fn span(&self, kernel: &Kernel, m: usize, n_a: usize) -> usize {
        let rows = m.min(self.rows).next_multiple_of(kernel.n_rows);
        (SPAN / (n_a * rows * kernel.packed_depth(self.depth))).max(1) * self.depth
    }

    /// Rows of A packed at a time where sums are rounded, for which all `k` steps must be there.
    fn rounded_rows(&self, kernel: &Kernel, k: usize) -> usize {
        let fit = SPAN / kernel.packed_depth(k).max(1) / kernel.n_rows * kernel.n_rows;
        fit.max(LEAST_ROUNDED_ROWS.next_multiple_of(kernel.n_rows)).min(self.rows)
    }

    /// Columns of B that a task packs at a time, at most: 256 columns of 640 bf16 are 320 KiB, a third of the
    /// second-level cache of a processor that multiplies them, and of 2,048 1 MiB, half of the 2 MiB that one with
    /// matrix registers has; half as many of 320 f32 160 KiB. A weight's row is then read 512 bytes at a time, where
    /// it is bf16.
    fn task_columns(kernel: &Kernel) -> usize {
        if kernel.elements.are_pairs() { 256 } else { 128 }
    }

    /// The most steps of k packed at a time.
    fn most_depth(kernel: &Kernel) -> usize {
        match kernel.elements {
            Elements::F32 => 320,
            Elements::Pairs => 640,
            Elements::PairBlocks => 2048,
        }
    }

    /// Panels of A, `steps` packed steps deep, that pass over one panel of B after another.
    fn near_panels(kernel: &Kernel, steps: usize) -> usize {
        match kernel.elements {
            Elements::F32 | Elements::Pairs => NEAR_PANELS,
            Elements::PairBlocks => (NEAR_ELEMENTS / (kernel.n_rows * steps)).max(1),
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

/// Rows of A that are packed at a time, of products with many.
pub(crate) fn rows_at_once(isa: Isa, compute: Compute) -> usize {
    Blocking::most_rows(&Kernel::choose(isa.min(Isa::best()), compute, usize::MAX, usize::MAX))
}

/// Bytes of workspace that a product needs, or one of fewer rows.
pub(crate) fn workspace_bytes(profile: &DeviceProfile, extents: Extents) -> usize {
    let Extents { m, n, k } = extents;
    workspace_bytes_of_all(profile, (m, n), [k], [])
}

/// Bytes of workspace that products need of rows of A of each `k`, for C of up to `n` columns, with
/// products of each `(rank, k)` beside them; with `m` rows or fewer.
pub(crate) fn workspace_bytes_of_all(
    profile: &DeviceProfile,
    (m, n): (usize, usize),
    k: impl IntoIterator<Item = usize>,
    beside: impl IntoIterator<Item = (usize, usize)>,
) -> usize {
    let (kernel, n_threads) = chosen(profile, m, n);
    Parts::new(&kernel, (m, n), k, beside).bytes(n_threads)
}

/// The same for a product whose sums are rounded.
pub(crate) fn rounded_workspace_bytes(profile: &DeviceProfile, extents: Extents) -> usize {
    let Extents { m, n, k } = extents;
    rounded_workspace_bytes_of_all(profile, (m, n), k, [])
}

/// The same for products with the rows of one A, and products beside them.
pub(crate) fn rounded_workspace_bytes_of_all(
    profile: &DeviceProfile,
    (m, n): (usize, usize),
    k: usize,
    beside: impl IntoIterator<Item = (usize, usize)>,
) -> usize {
    let (kernel, n_threads) = chosen(profile, m, n);
    Parts::new(&kernel, (m, n), [k], beside).rounded(&kernel, (m, n), k).bytes(n_threads)
}

/// The tile for products of these extents on `profile`, and the threads.
fn chosen(profile: &DeviceProfile, m: usize, n: usize) -> (Kernel, usize) {
    let DeviceKind::Cpu { isa, n_threads } = profile.kind else {
        unreachable!("a workspace of the processor")
    };
    // A profile may ask for more than this processor has; the device would then use less.
    (Kernel::choose(isa.min(Isa::best()), profile.compute, m, n), n_threads)
}

/// Elements (f32, or pairs of bf16) of the parts of a workspace, in order.
struct Parts {
    /// A block of rows of every A.
    a: usize,
    /// The same rows of the middles of the products beside.
    through: usize,
    /// All of their first matrices.
    down: usize,
    /// One task's part of B; each thread has its own.
    b: usize,
    /// One task's part of C, where sums are rounded; each thread has its own.
    c: usize,
}

impl Parts {
    fn new(
        kernel: &Kernel,
        (m, n): (usize, usize),
        k: impl IntoIterator<Item = usize>,
        beside: impl IntoIterator<Item = (usize, usize)>,
    ) -> Self {
        // Whatever tile a smaller product, or what is beside it, would choose: its panels end within
        // so many rows and columns.
        let (more_rows, more_columns) = kernel.padding();
        let rows = m.min(Blocking::most_rows(kernel)) + more_rows;
        let panels = |n: usize| n.saturating_add(more_columns);
        let of = |depth| rows.saturating_mul(kernel.packed_depth(depth));
        let (mut a, mut n_a, mut deepest) = (0_usize, 0, 0);
        for k in k {
            a = a.saturating_add(of(k));
            n_a += 1;
            deepest = deepest.max(k);
        }
        let (mut through, mut down) = (0_usize, 0_usize);
        for (rank, k) in beside {
            through = through.saturating_add(of(rank));
            down = down.saturating_add(panels(rank).saturating_mul(kernel.packed_depth(k)));
            deepest = deepest.max(rank);
        }
        if through == 0 {
            // As many spans' as fit, or one block's; and no more for fewer rows.
            a = a.min(SPAN.max(of(Blocking::most_depth(kernel)).saturating_mul(n_a)));
        }
        // No block is deeper than what is multiplied, up to whole blocks of a quantised row.
        let depth = Blocking::most_depth(kernel).min(deepest.max(1)).next_multiple_of(BLOCK);
        let b = panels(Blocking::task_columns(kernel).min(n)) * kernel.packed_depth(depth);
        Self { a, through, down, b, c: 0 }
    }

    /// The parts of a product with `m` rows and `k` steps, or fewer, whose sums are rounded.
    fn rounded(self, kernel: &Kernel, (m, n): (usize, usize), k: usize) -> Self {
        let (more_rows, _) = kernel.padding();
        let least = m.min(LEAST_ROUNDED_ROWS) + more_rows;
        // With a product beside, all steps of all rows are there anyway.
        let a = self.a.max(least.saturating_mul(kernel.packed_depth(k.max(1))));
        let rows = m.min(Blocking::most_rows(kernel)) + more_rows;
        Self { a, c: rows * Blocking::task_columns(kernel).min(n), ..self }
    }

    fn bytes(&self, n_threads: usize) -> usize {
        let of_threads = self.b.saturating_add(self.c).saturating_mul(n_threads);
        [self.through, self.down, of_threads]
            .into_iter()
            .fold(self.a, usize::saturating_add)
            .saturating_mul(size_of::<u32>())
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
    /// Panels of one side for `kernel`.
    fn form(&self, kernel: &Kernel, side: Side) -> Form {
        Form::new((self.isa, self.compute), kernel, side)
    }
}

/// The most that share something, of each kind.
pub(crate) const MOST_SHARING: usize = 3;

/// The most A, and the most groups of sums, at once.
pub(crate) const MOST_AT_ONCE: usize = 2 * MOST_SHARING;

/// An A, packed once for all that is multiplied with it.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    pub a: Operand<'a>,
    pub k: usize,
}

/// One of the products that a sum is made of.
pub(crate) struct Term<'a> {
    /// Which A, by number. Of sums that share B, those after the first take the A after it.
    pub rows: usize,
    pub b: Operand<'a>,
    pub factor: f32,
    /// Beside the term of a single sum.
    pub beside: Option<LowRank<'a>>,
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

/// Where a sum goes.
pub(crate) enum Target<'a> {
    F32(&'a mut [f32]),
    /// Rounded once, over what is there.
    Bf16(&'a mut [bf16]),
}

impl Target<'_> {
    fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::Bf16(values) => values.len(),
        }
    }

    fn is_rounded(&self) -> bool {
        matches!(self, Self::Bf16(_))
    }

    /// Lets tasks share it.
    pub fn share(&mut self) -> SharedTarget {
        match self {
            Self::F32(values) => SharedTarget::F32(Shared::new(values)),
            Self::Bf16(values) => SharedTarget::Bf16(Shared::new(values)),
        }
    }
}

/// A [`Target`] as all tasks see it.
pub(crate) enum SharedTarget {
    F32(Shared<f32>),
    Bf16(Shared<bf16>),
}

impl SharedTarget {
    /// Writes `values` from `start` on, rounded where they are stored so.
    ///
    /// # Safety
    /// As [`Shared::part`].
    pub unsafe fn store(&self, isa: Isa, start: usize, values: &[f32]) {
        // SAFETY: as the caller promises.
        unsafe {
            match self {
                Self::F32(target) => target.slice(start, values.len()).copy_from_slice(values),
                Self::Bf16(target) => {
                    bf16::store_row(isa, values, target.slice(start, values.len()))
                }
            }
        }
    }
}

/// `c (store) Σ terms`, `c` `[m, n]` row-major; several where they share every B.
pub(crate) struct Sums<'a> {
    pub n: usize,
    pub store: Store,
    /// `c = onto + Σ terms`, where that is wanted: of a single sum that is stored over what is there.
    pub onto: Option<&'a [f32]>,
    /// Added to every row in the end, where that is wanted: of a single sum.
    pub bias: Option<&'a [f32]>,
    pub terms: ArrayVec<Term<'a>, MOST_SHARING>,
    pub c: ArrayVec<Target<'a>, MOST_SHARING>,
}

impl<'a> Sums<'a> {
    /// A sum of one term.
    pub fn of(term: Term<'a>, n: usize, store: Store, c: &'a mut [f32]) -> Self {
        Self::into_target(term, n, store, Target::F32(c))
    }

    /// The same to where it may be rounded.
    pub fn into_target(term: Term<'a>, n: usize, store: Store, c: Target<'a>) -> Self {
        let (terms, c) = (ArrayVec::from_iter([term]), ArrayVec::from_iter([c]));
        Self { n, store, onto: None, bias: None, terms, c }
    }

    /// Panics when an operand is smaller than its extents.
    fn check(&self, m: usize, rows: &[Rows<'_>]) {
        let Self { n, terms, c, store, onto, bias } = self;
        assert!(c.iter().all(|c| c.len() >= m * n), "a sum beyond its matrix");
        let is_rounded = c.iter().any(Target::is_rounded);
        assert!(!is_rounded || *store == Store::Overwrite, "a rounded sum that is added to");
        assert!(c.len() == 1 || bias.is_none() && !is_rounded, "several sums that are finished");
        assert!(bias.is_none_or(|bias| bias.len() == *n), "a bias of another width");
        if let Some(onto) = onto {
            let is_plain = c.len() == 1 && !is_rounded && *store == Store::Overwrite;
            assert!(is_plain && onto.len() >= m * n, "a sum onto what it cannot be added to");
        }
        for Term { rows: number, b, beside, .. } in terms {
            let k = rows[*number].k;
            assert!(rows[*number..][..c.len()].iter().all(|rows| rows.k == k), "A that differ");
            if *n == 0 {
                continue;
            }
            if k > 0 {
                b.check(*n, k);
            }
            let Some(LowRank { rank, down, through, up }) = beside else { continue };
            assert!(c.len() == 1 && through.len() >= m * rank, "a product beside several sums");
            if let Some((down, _)) = down.filter(|_| k > 0) {
                down.check(*rank, k);
            }
            if let Some((up, _)) = up {
                up.check(*n, *rank);
            }
        }
    }
}

/// The products beside, with the number of their A.
fn products_beside<'s, 'a>(sums: &'s [Sums<'a>]) -> impl Iterator<Item = (usize, &'s LowRank<'a>)> {
    let terms = sums.iter().flat_map(|sums| &sums.terms);
    terms.filter_map(|term| Some((term.rows, term.beside.as_ref()?)))
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
    let term = Term { rows: 0, b, factor, beside: None };
    multiply_all(place, m, &[Rows { a, k }], &mut [Sums::of(term, n, store, c)], workspace);
}

/// `c = a · b`, rounded once; `c` `[m, n]` row-major.
///
/// `workspace`: [`rounded_workspace_bytes`], read as 32-bit elements.
pub(crate) fn multiply_rounded(
    place: Place<'_>,
    extents: Extents,
    a: Operand<'_>,
    b: Operand<'_>,
    c: &mut [bf16],
    workspace: &mut [u32],
) {
    let Extents { m, n, k } = extents;
    let term = Term { rows: 0, b, factor: 1.0, beside: None };
    let sums = Sums::into_target(term, n, Store::Overwrite, Target::Bf16(c));
    multiply_all(place, m, &[Rows { a, k }], &mut [sums], workspace);
}

/// Several products with `m` rows: each A is packed once, each B once for all sums that share it, and
/// each C is one sum of all its terms.
///
/// `workspace`: [`workspace_bytes_of_all`], read as 32-bit elements.
pub(crate) fn multiply_all(
    place: Place<'_>,
    m: usize,
    rows: &[Rows<'_>],
    sums: &mut [Sums<'_>],
    workspace: &mut [u32],
) {
    let n = sums.iter().map(|sums| sums.n).max().unwrap_or(0);
    if m == 0 || n == 0 {
        return;
    }
    rows.iter().filter(|rows| rows.k > 0).for_each(|rows| rows.a.check(m, rows.k));
    sums.iter().for_each(|sums| sums.check(m, rows));
    let kernel = Kernel::choose(place.isa, place.compute, m, n);
    let beside = products_beside(sums).map(|(number, beside)| (beside.rank, rows[number].k));
    let mut parts = Parts::new(&kernel, (m, n), rows.iter().map(|rows| rows.k), beside);
    let deepest = rows.iter().map(|rows| rows.k).max().unwrap_or(0).max(1);
    let blocking = Blocking::new(&kernel, deepest);
    let is_rounded = sums.iter().flat_map(|sums| &sums.c).any(Target::is_rounded);
    if is_rounded {
        assert!(rows.len() == 1, "a rounded sum of rows of several matrices");
        parts = parts.rounded(&kernel, (m, n), deepest);
    }
    let (block_rows, span) = match (parts.through, is_rounded) {
        (0, false) => (blocking.rows, blocking.span(&kernel, m, rows.len()).min(deepest)),
        (0, true) => (blocking.rounded_rows(&kernel, deepest), deepest),
        (_, _) => (blocking.rows, deepest),
    };
    let (packed_a, rest) = workspace.split_at_mut(parts.a);
    let (packed_through, rest) = rest.split_at_mut(parts.through);
    let (packed_down, of_threads) = rest.split_at_mut(parts.down);

    for first_row in (0..m).step_by(block_rows) {
        let lanes = first_row..(first_row + block_rows).min(m);
        for first_step in (0..deepest).step_by(span) {
            let steps = first_step..first_step + span;
            let block = Block::new(&kernel, place, lanes.clone(), steps, rows, sums);
            block.pack(rows, sums, (packed_a, packed_down));
            block.pass_beside(rows, sums, (packed_a, packed_down), packed_through);
            block.add(rows, sums, (packed_a, packed_through), (of_threads, parts.b, parts.c));
        }
    }
}
