//! The layers and their pairs on the processor: what they share is packed once, a pair's products are
//! multiplied beside its layer's, and the dropout is applied on the way in.

use arrayvec::ArrayVec;
use half::bf16;

use super::{Adapter, Layer, LayerBackward, LayerWidth, Layers, LayersShape, MAX_LAYERS};
use crate::{
    Compute, Cpu, DeviceKind, DeviceProfile, Isa,
    cpu::{
        Access,
        float::Float,
        gemm::{
            self, Extents, Layout, LowRank, MOST_AT_ONCE, Operand, Place, Rows, Sums, Target, Term,
            Values,
        },
        parallel::{Shared, for_each_part, for_each_task},
        pool::Pool,
    },
    linear::{self, Linear, LinearShape, Weight, cpu::operand as linear_operand},
    memory::{DeviceSlice, FloatFormat, Floats, Memory, Store},
    random::Dropout,
};

/// One for each layer.
type Each<T> = ArrayVec<T, MAX_LAYERS>;

/// Rows whose product waits for its mask at a time.
const PRODUCT_ROWS: usize = 128;

/// The most elements of every `dy` together that are packed beside each other: 16 MiB in f32, which a
/// last-level cache holds. Where there are more, each layer has its turn.
const TOGETHER: usize = 4 << 20;

/// Bytes of a part of the workspace that holds `n · width` numbers.
fn part_bytes(n: usize, width: usize) -> usize {
    let bytes = n.saturating_mul(width).saturating_mul(size_of::<f32>());
    bytes.saturating_add(63) / 64 * 64
}

/// The most rows with which every `dy` of layers of these widths is packed at once: any, where those that
/// are packed at a time are few enough.
pub(super) fn rows_together(
    (isa, compute): (Isa, Compute),
    widths: impl Iterator<Item = usize>,
) -> usize {
    match TOGETHER / widths.fold(0, usize::saturating_add).max(1) {
        rows if rows >= gemm::rows_at_once(isa, compute) => usize::MAX,
        rows => rows,
    }
}

pub(super) fn workspace_bytes(
    profile: &DeviceProfile,
    shape: LayersShape,
    layers: &[LayerWidth],
    dropout: bool,
) -> usize {
    let LayersShape { n_rows, n_in, rank } = shape;
    let product = |m, n, k| gemm::workspace_bytes(profile, Extents { m, n, k });
    let rounded = |beside: &[(usize, usize)], n| {
        let beside = beside.iter().copied();
        gemm::rounded_workspace_bytes_of_all(profile, (n_rows, n), n_in, beside)
    };
    let all = |m, n, k: &[usize], beside: &[(usize, usize)]| {
        gemm::workspace_bytes_of_all(profile, (m, n), k.iter().copied(), beside.iter().copied())
    };
    let pairs = || layers.iter().filter(|layer| layer.has_pair);
    let widest = layers.iter().map(|layer| layer.n_out).max().unwrap_or(0);
    // Forward: every layer and what is beside it.
    let beside: Each<_> = pairs().map(|_| (rank, n_in)).collect();
    let mut most = all(n_rows, widest, &[n_in], &beside);
    if layers.iter().any(|layer| layer.output == FloatFormat::Bf16) {
        most = most.max(rounded(&beside, widest));
    }
    for &LayerWidth { n_out, has_pair, output, .. } in layers {
        // Few rows, each layer alone.
        let layer = LinearShape { n_rows, n_in, n_out };
        let unrounded = unrounded_bytes(n_rows, n_out, output);
        most = most.max(linear::workspace_bytes(profile, layer).saturating_add(unrounded));
        // Backward, one after another.
        let beside = if has_pair { &[(rank, n_out)][..] } else { &[] };
        most = most.max(all(n_rows, n_in, &[n_out], beside));
        if has_pair {
            // The pair's products of few rows, and its first gradient without dx.
            let few = n_rows.min(gemm::FEW_ROWS);
            for (n, k) in [(n_out, rank), (rank, n_in)] {
                most = most.max(product(few, n, k).saturating_add(unrounded));
            }
            most = most.max(product(n_rows, rank, n_out));
        }
    }
    // Backward, at once: no more for fewer rows.
    let DeviceKind::Cpu { isa, .. } = profile.kind else {
        unreachable!("a workspace of the processor")
    };
    let widths = layers.iter().map(|layer| layer.n_out);
    let together = n_rows.min(rows_together((isa, profile.compute), widths));
    let n_outs: Each<_> = layers.iter().map(|layer| layer.n_out).collect();
    let beside: Each<_> = pairs().map(|layer| (rank, layer.n_out)).collect();
    most = most.max(all(together, n_in, &n_outs, &beside));
    let n_pairs = pairs().count();
    if n_pairs > 0 {
        // A mask, which falls between the pair's products; and the gradients.
        for (m, n, k) in [(n_rows, rank, n_in), (n_rows, n_in, rank)] {
            most = most.max(product(m, n, k));
        }
        let rows: ArrayVec<_, MOST_AT_ONCE> = (0..2 * n_pairs).map(|_| n_rows).collect();
        most = most.max(all(rank, widest.max(n_in), &rows, &[]));
    }
    let apart = pairs().fold(0_usize, |bytes, layer| {
        let parts = part_bytes(n_rows, rank).saturating_add(part_bytes(rank, layer.n_out));
        bytes.saturating_add(parts)
    });
    let masked = if dropout { part_bytes(n_rows.min(PRODUCT_ROWS), n_in) } else { 0 };
    apart.saturating_add(masked).saturating_add(most)
}

/// Bytes of a few rows that are yet to be rounded.
fn unrounded_bytes(n_rows: usize, n_out: usize, output: FloatFormat) -> usize {
    match output {
        FloatFormat::F32 => 0,
        FloatFormat::Bf16 => part_bytes(n_rows.min(gemm::FEW_ROWS), n_out),
    }
}

/// A workspace, handed out from its front.
struct Workspace(DeviceSlice<u8>);

impl Workspace {
    /// `n · width` numbers.
    fn take<'a>(&mut self, access: &mut Access<'a>, n: usize, width: usize) -> &'a mut [f32] {
        let n_bytes = part_bytes(n, width);
        let part = self.0.first(n_bytes);
        self.0 = self.0.slice(n_bytes..self.0.len());
        &mut access.write(part.cast())[..n * width]
    }

    /// What is left.
    fn rest<'a>(self, access: &mut Access<'a>) -> &'a mut [u32] {
        access.write(self.0.cast())
    }
}

/// `x` as it enters the pair.
fn dropped(x: Values<'_>, dropout: Option<Dropout>) -> Values<'_> {
    match (x, dropout) {
        (x, None) => x,
        (Values::F32(x), Some(dropout)) => Values::Dropped(x, dropout),
        (_, Some(_)) => panic!("an input that was to be in f32, as some of it is dropped"),
    }
}

/// A layer on the way back: what it reads and writes.
struct Back<'a> {
    n_out: usize,
    dy: Values<'a>,
    weight: Weight,
    pair: Option<PairBack<'a>>,
}

/// The pair beside it.
struct PairBack<'a> {
    /// A `[R, n_in]`, along its rows.
    a: Operand<'a>,
    /// B `[n_out, R]`, along its rows.
    b: Operand<'a>,
    scale: f32,
    dropout: Option<Dropout>,
    xa: &'a [f32],
    /// `[T, R]`.
    dxa: &'a mut [f32],
    da: &'a mut [f32],
    db: &'a mut [f32],
    /// dBᵀ `[R, n_out]`.
    dbt: &'a mut [f32],
}

impl<'a> Back<'a> {
    fn new(
        access: &mut Access<'a>,
        LayersShape { n_rows, n_in, rank }: LayersShape,
        layer: &LayerBackward,
        workspace: &mut Workspace,
    ) -> Self {
        let LayerBackward { weight, ref adapter, n_out, dy } = *layer;
        let pair =
            adapter.as_ref().map(|&(Adapter { pair, scale, dropout, xa }, gradient)| PairBack {
                a: Operand::f32(access.read(pair.a), Layout::Lanes, n_in),
                b: Operand::f32(access.read(pair.b), Layout::Lanes, rank),
                scale,
                dropout,
                xa: access.read(xa),
                dxa: workspace.take(access, n_rows, rank),
                da: access.write(gradient.a),
                db: access.write(gradient.b),
                dbt: workspace.take(access, rank, n_out),
            });
        Self { n_out, dy: access.read_floats(dy), weight, pair }
    }

    /// `dy` as rows of a product.
    fn rows(&self) -> Rows<'a> {
        let a = Operand { values: self.dy, layout: Layout::Depth, stride: self.n_out };
        Rows { a, k: self.n_out }
    }
}

impl Layers for Cpu {
    fn layers(
        &mut self,
        shape: LayersShape,
        x: Floats,
        layers: &[Layer],
        workspace: DeviceSlice<u8>,
    ) {
        let LayersShape { n_rows, n_in, rank } = shape;
        // So few rows are not packed, nor worth sharing.
        if gemm::is_few_rows(n_rows) {
            for layer in layers {
                self.layer_of_few_rows(shape, x, layer, workspace);
            }
            return;
        }
        let mut access = self.access("linear layers");
        let place = access.place();
        let x = access.read_floats(x);
        let scratch = access.write(workspace.cast());
        let mut sums = Each::new();
        for layer in layers {
            let Layer { weight, bias, ref adapter, n_out, residual, y } = *layer;
            access.count_product(n_rows, n_out, n_in);
            let beside = adapter.as_ref().map(|adapter| {
                access.count_product(n_rows, rank, n_in + n_out);
                let Adapter { pair, scale, dropout, xa } = *adapter;
                let through = access.write(xa);
                let a = Operand::f32(access.read(pair.a), Layout::Depth, n_in);
                let b = Operand::f32(access.read(pair.b), Layout::Depth, rank);
                if dropout.is_some() {
                    let extents = Extents { m: n_rows, n: rank, k: n_in };
                    let x = Operand {
                        values: dropped(x, dropout),
                        layout: Layout::Depth,
                        stride: n_in,
                    };
                    gemm::multiply(place, extents, 1.0, x, a, Store::Overwrite, through, scratch);
                }
                let down = dropout.is_none().then_some((a, 1.0));
                LowRank { rank, down, through, up: Some((b, scale)) }
            });
            let shape = LinearShape { n_rows, n_in, n_out };
            let b = linear_operand(&mut access, weight, shape, Layout::Depth);
            let term = Term { rows: 0, b, factor: 1.0, beside };
            let onto = residual.map(|residual| access.read(residual));
            let bias = bias.map(|bias| &access.read(bias)[..n_out]);
            let sum = Sums::into_target(term, n_out, Store::Overwrite, access.write_floats(y));
            sums.push(Sums { onto, bias, ..sum });
        }
        let x = Operand { values: x, layout: Layout::Depth, stride: n_in };
        let rows = Rows { a: x, k: n_in };
        gemm::multiply_all(place, n_rows, &[rows], &mut sums, scratch);
    }

    fn layers_backward(
        &mut self,
        shape: LayersShape,
        x: Floats,
        layers: &[LayerBackward],
        gradients: Store,
        dx: Option<(DeviceSlice<f32>, Store)>,
        workspace: DeviceSlice<u8>,
    ) {
        let LayersShape { n_rows, n_in, rank } = shape;
        let mut access = self.access("linear layers, backward");
        let place = access.place();
        let mut workspace = Workspace(workspace);
        let back = |layer| Back::new(&mut access, shape, layer, &mut workspace);
        let mut layers: Each<_> = layers.iter().map(back).collect();
        let pairs = layers.iter().filter_map(|layer| layer.pair.as_ref());
        let dropout = pairs.clone().any(|pair| pair.dropout.is_some());
        let n_pairs = pairs.count();
        // Without a pair nothing of it is left.
        let x = if n_pairs > 0 { access.read_floats(x) } else { Values::F32(&[]) };
        let masked_rows = if dropout { n_rows.min(PRODUCT_ROWS) } else { 0 };
        let masked = workspace.take(&mut access, masked_rows, n_in);
        let scratch = workspace.rest(&mut access);
        for layer in &layers {
            let (of_pair, of_dx) = if layer.pair.is_some() { (rank, rank) } else { (0, 0) };
            access.count_product(n_rows, of_pair, 2 * layer.n_out + n_in);
            if dx.is_some() {
                access.count_product(n_rows, n_in, layer.n_out + of_dx);
            }
        }

        let mut dx = dx.map(|(dx, store)| (access.write(dx), store));
        if let Some((dx, store)) = &mut dx {
            let widths = layers.iter().map(|layer| layer.n_out);
            let together = n_rows <= rows_together((place.isa, place.compute), widths);
            let n_at_once = if together { layers.len() } else { 1 };
            for layers in layers.chunks_mut(n_at_once.max(1)) {
                let (mut rows, mut terms) = (Each::new(), Each::new());
                for (number, layer) in layers.iter_mut().enumerate() {
                    rows.push(layer.rows());
                    let shape = LinearShape { n_rows, n_in, n_out: layer.n_out };
                    let b = linear_operand(&mut access, layer.weight, shape, Layout::Lanes);
                    let beside = layer.pair.as_mut().map(|pair| LowRank {
                        rank,
                        down: Some((pair.b, pair.scale)),
                        through: pair.dxa,
                        // A mask falls between that product and the sum.
                        up: pair.dropout.is_none().then_some((pair.a, 1.0)),
                    });
                    terms.push(Term { rows: number, b, factor: 1.0, beside });
                }
                let c = ArrayVec::from_iter([Target::F32(dx)]);
                let sums = Sums { n: n_in, store: *store, onto: None, bias: None, terms, c };
                gemm::multiply_all(place, n_rows, &rows, &mut [sums], scratch);
                *store = Store::Accumulate;
            }
        } else {
            for layer in &mut layers {
                let Rows { a, k } = layer.rows();
                let Some(PairBack { b, scale, dxa, .. }) = &mut layer.pair else { continue };
                let extents = Extents { m: n_rows, n: rank, k };
                gemm::multiply(place, extents, *scale, a, *b, Store::Overwrite, dxa, scratch);
            }
        }

        pair_gradients(place, shape, x, gradients, &mut layers, scratch);
        turn_db(place.pool, rank, gradients, &mut layers);
        if let Some((dx, _)) = dx {
            add_masked(place, shape, &layers, masked, dx, scratch);
        }
    }
}

/// dA and dBᵀ of every pair: as its transpose, like dA, so that the longer side of each is what is packed
/// once and passed over.
fn pair_gradients(
    place: Place<'_>,
    LayersShape { n_rows, n_in, rank }: LayersShape,
    x: Values<'_>,
    gradients: Store,
    layers: &mut [Back<'_>],
    scratch: &mut [u32],
) {
    let pairs = layers.iter().filter_map(|layer| layer.pair.as_ref());
    let dropout = pairs.clone().any(|pair| pair.dropout.is_some());
    let n_pairs = pairs.count();
    let columns = |values| Rows { a: Operand::f32(values, Layout::Lanes, rank), k: n_rows };
    let of_x = |number, dropout| {
        let b = Operand { values: dropped(x, dropout), layout: Layout::Lanes, stride: n_in };
        Term { rows: number, b, factor: 1.0, beside: None }
    };
    let mut rows = ArrayVec::<_, MOST_AT_ONCE>::new();
    let mut rows_of_b = Each::new();
    let mut sums = ArrayVec::<Sums<'_>, MOST_AT_ONCE>::new();
    let mut sums_of_b = Each::new();
    for Back { n_out, dy, pair, .. } in layers {
        let Some(PairBack { scale, xa, dxa, da, dbt, dropout: mask, .. }) = pair else { continue };
        let number = rows.len();
        match sums.first_mut() {
            // All see the same x.
            Some(sums) if !dropout => sums.c.push(Target::F32(da)),
            _ => sums.push(Sums::of(of_x(number, *mask), n_in, gradients, da)),
        }
        rows.push(columns(&**dxa));
        rows_of_b.push(columns(xa));
        let b = Operand { values: *dy, layout: Layout::Lanes, stride: *n_out };
        let term = Term { rows: n_pairs + number, b, factor: *scale, beside: None };
        sums_of_b.push(Sums::of(term, *n_out, Store::Overwrite, dbt));
    }
    rows.extend(rows_of_b);
    sums.extend(sums_of_b);
    gemm::multiply_all(place, rank, &rows, &mut sums, scratch);
}

/// `dx += drop(dxa · A)` of every pair that drops.
fn add_masked(
    place: Place<'_>,
    LayersShape { n_rows, n_in, rank }: LayersShape,
    layers: &[Back<'_>],
    masked: &mut [f32],
    dx: &mut [f32],
    scratch: &mut [u32],
) {
    for PairBack { a, dropout, dxa, .. } in layers.iter().filter_map(|layer| layer.pair.as_ref()) {
        let Some(dropout) = *dropout else { continue };
        for first in (0..n_rows).step_by(PRODUCT_ROWS) {
            let m = PRODUCT_ROWS.min(n_rows - first);
            let extents = Extents { m, n: n_in, k: rank };
            let dxa_rows = Operand::f32(&dxa[first * rank..], Layout::Depth, rank);
            let store = Store::Overwrite;
            gemm::multiply(place, extents, 1.0, dxa_rows, *a, store, masked, scratch);
            let dx = &mut dx[first * n_in..(first + m) * n_in];
            let masked = &mut masked[..m * n_in];
            for_each_part(place.pool, (dx, masked), n_in, |row, (dx, masked)| {
                dropout.apply(place.isa, (first + row) * n_in, masked);
                for (dx, product) in dx.iter_mut().zip(masked) {
                    *dx += *product;
                }
            });
        }
    }
}

/// `dB (store) dBᵀ`, turned, of every pair.
fn turn_db(pool: &Pool, rank: usize, store: Store, layers: &mut [Back<'_>]) {
    /// Columns of dBᵀ that a task turns.
    const COLUMNS: usize = 256;
    let mut pairs = Each::new();
    for Back { n_out, pair, .. } in layers {
        let Some(PairBack { db, dbt, .. }) = pair else { continue };
        pairs.push((*n_out, &**dbt, Shared::new(&mut db[..*n_out * rank])));
    }
    let n_tasks = |n_out: usize| n_out.div_ceil(COLUMNS);
    for_each_task(pool, pairs.iter().map(|(n_out, ..)| n_tasks(*n_out)).sum(), |mut task| {
        for &(n_out, dbt, ref db) in &pairs {
            if task >= n_tasks(n_out) {
                task -= n_tasks(n_out);
                continue;
            }
            let first = task * COLUMNS;
            let n = COLUMNS.min(n_out - first);
            // SAFETY: each task has rows of its own, and the gradient outlives them.
            let db = unsafe { db.slice(first * rank, n * rank) };
            for (row, db) in db.chunks_exact_mut(rank).enumerate() {
                let column = dbt[first + row..].iter().step_by(n_out);
                match store {
                    Store::Overwrite => db.iter_mut().zip(column).for_each(|(db, sum)| *db = *sum),
                    Store::Accumulate => db.iter_mut().zip(column).for_each(|(db, sum)| *db += sum),
                }
            }
            return;
        }
    });
}

impl Cpu {
    /// A layer and its pair where there are too few rows to pack.
    fn layer_of_few_rows(
        &mut self,
        LayersShape { n_rows, n_in, rank }: LayersShape,
        x: Floats,
        layer: &Layer,
        workspace: DeviceSlice<u8>,
    ) {
        let Layer { weight, bias, ref adapter, n_out, residual, y } = *layer;
        let shape = LinearShape { n_rows, n_in, n_out };
        let unrounded = unrounded_bytes(n_rows, n_out, y.format());
        let (sums, workspace) =
            (workspace.first(unrounded), workspace.slice(unrounded..workspace.len()));
        let (y, rounded) = match y {
            Floats::F32(y) => (y, None),
            Floats::Bf16(y) => (sums.cast().first(n_rows * n_out), Some(y)),
        };
        let store = match residual {
            Some(residual) => {
                self.copy(residual.first(n_rows * n_out), y.first(n_rows * n_out));
                Store::Accumulate
            }
            None => Store::Overwrite,
        };
        self.linear(shape, x, weight, bias, store, y, workspace);
        if let Some(adapter) = adapter {
            self.pair_of_few_rows(shape, rank, x, adapter, y, workspace);
        }
        if let Some(rounded) = rounded {
            let isa = self.isa();
            let mut access = self.access("rounding");
            let (sums, y) = (access.read(y), access.write(rounded));
            bf16::store_row(isa, sums, &mut y[..sums.len()]);
        }
    }

    /// What the pair adds to its layer's output.
    fn pair_of_few_rows(
        &mut self,
        LinearShape { n_rows, n_in, n_out }: LinearShape,
        rank: usize,
        x: Floats,
        adapter: &Adapter,
        y: DeviceSlice<f32>,
        workspace: DeviceSlice<u8>,
    ) {
        let Adapter { pair, scale, dropout, xa } = *adapter;
        let mut access = self.access("low-rank pair");
        let place = access.place();
        let a = Operand::f32(access.read(pair.a), Layout::Depth, n_in);
        let b = Operand::f32(access.read(pair.b), Layout::Depth, rank);
        let x = Operand {
            values: dropped(access.read_floats(x), dropout),
            layout: Layout::Depth,
            stride: n_in,
        };
        let (xa, y) = (access.write(xa), access.write(y));
        let scratch = access.write(workspace.cast());
        access.count_product(n_rows, rank, n_in + n_out);
        let extents = Extents { m: n_rows, n: rank, k: n_in };
        gemm::multiply(place, extents, 1.0, x, a, Store::Overwrite, xa, scratch);
        let xa = Operand::f32(xa, Layout::Depth, rank);
        let extents = Extents { m: n_rows, n: n_out, k: rank };
        gemm::multiply(place, extents, scale, xa, b, Store::Accumulate, y, scratch);
    }
}
