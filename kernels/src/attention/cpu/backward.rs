//! The backward half: queries along a tile's rows, keys side by side. Probabilities and the gradients of
//! scores then enter the sums of `dv` and `dk`, which are made column by column, as they lie, and only
//! those of `dq` take them turned.
//!
//! A tile of queries passes all keys that it sees, so that every score is made once, and what is packed
//! of it serves them all.

use std::f32::consts::LOG2_E;

use super::{
    super::{AttentionShape, Segment},
    copy,
    tile::{Batch, Inputs, KeyTiles, Pairs, lines, split},
    turn_columns,
};
use crate::{
    Store,
    cpu::{
        gemm::{Layout, Operand, TURNED_LANES, TileProducts, Values},
        math::{exp2, for_each_isa, multiply_add},
        parallel::Shared,
        pool::Pool,
    },
};

/// Queries of a tile: eight panels of the widest registers' 14 rows.
const QUERIES: usize = 112;

/// Keys of a tile.
const KEYS: usize = 128;

/// Scores handled at a time; divides [`KEYS`].
const LANES: usize = 16;

/// Keys beside those that a row sees which meet it in some product: the panel of rows or of columns that
/// it is in may reach 31 further, and the block of steps that its partner is in another 31.
const BESIDE: usize = 64;

/// Tiles of keys: keys and values as columns of the scores' products, and keys as what the gradients of
/// scores weigh.
pub(super) fn key_tiles(products: &TileProducts, head_size: usize) -> KeyTiles {
    KeyTiles { n_keys: KEYS, len: key_parts(products, head_size).iter().sum() }
}

fn key_parts(products: &TileProducts, head_size: usize) -> [usize; 3] {
    let columns = products.b_len(KEYS, head_size);
    lines([columns, columns, products.b_len(head_size, KEYS)])
}

/// What a thread works in.
struct Scratch<'a> {
    /// Queries and their `dout`, packed as rows, and as what columns weigh.
    queries: &'a mut [u32],
    douts: &'a mut [u32],
    query_columns: &'a mut [u32],
    dout_columns: &'a mut [u32],
    /// `[QUERIES, KEYS]`: scores before they are scaled, then probabilities; and the gradients of the scores.
    scores: &'a mut [f32],
    dscores: &'a mut [f32],
    /// Either, packed.
    weights: &'a mut [u32],
    /// `[QUERIES, K]`: the gradient of queries.
    dqueries: &'a mut [f32],
    /// `[KEYS, TURNED_LANES]`: sums, turned.
    turned: &'a mut [f32],
    /// `[K, KEYS]` of each tile of keys: sums for keys, and for values.
    dkeys: &'a mut [f32],
    dvalues: &'a mut [f32],
}

fn scratch_parts(products: &TileProducts, shape: &AttentionShape) -> [usize; 11] {
    let head_size = shape.head_size;
    let rows = products.a_len(QUERIES, head_size);
    let columns = products.a_len(head_size, QUERIES);
    let weights = products.b_len(KEYS, QUERIES).max(products.a_len(QUERIES, KEYS));
    let sums = shape.n_key_rows.div_ceil(KEYS).saturating_mul(KEYS * head_size);
    let (scores, dqueries) = (QUERIES * KEYS, QUERIES * head_size);
    let turned = KEYS * TURNED_LANES;
    lines([rows, rows, columns, columns, scores, scores, weights, dqueries, turned, sums, sums])
}

/// Elements of one thread's scratch.
pub(super) fn scratch_len(products: &TileProducts, shape: &AttentionShape) -> usize {
    scratch_parts(products, shape).iter().fold(0, |sum, len| sum.saturating_add(*len))
}

impl<'a> Scratch<'a> {
    fn new(memory: &'a mut [u32], products: &TileProducts, shape: &AttentionShape) -> Self {
        let [
            queries,
            douts,
            query_columns,
            dout_columns,
            scores,
            dscores,
            weights,
            dqueries,
            turned,
            dkeys,
            dvalues,
        ] = split(memory, scratch_parts(products, shape));
        let [scores, dscores, dqueries, turned, dkeys, dvalues] =
            [scores, dscores, dqueries, turned, dkeys, dvalues].map(bytemuck::cast_slice_mut);
        Self {
            queries,
            douts,
            query_columns,
            dout_columns,
            scores,
            dscores,
            weights,
            dqueries,
            turned,
            dkeys,
            dvalues,
        }
    }
}

/// The backward pass.
pub(super) struct Backward<'a> {
    pub inputs: Inputs<'a>,
    pub tiles: KeyTiles,
    pub dout: &'a [f32],
    pub log_sum_exp: &'a [f32],
    pub delta: &'a [f32],
    pub dq: Shared<f32>,
    /// What each head adds to `dk` and `dv`, laid out as `q` is.
    pub dk: Shared<f32>,
    pub dv: Shared<f32>,
}

impl Backward<'_> {
    pub fn key_tiles_of(&self, segment: &Segment) -> usize {
        self.tiles.count(segment.n_keys as usize)
    }

    /// Everything of a batch: its keys into `packed`, then its heads.
    pub fn run(&self, pool: &Pool, batch: &Batch<'_>, packed: &mut [u32], scratch: &Shared<u32>) {
        let count = |segment: &Segment| self.key_tiles_of(segment);
        self.tiles.pack(pool, batch, packed, count, |segment, tile, kv_head, packed| {
            self.pack_keys(segment, tile, kv_head, packed);
        });
        let packed = &*packed;
        let group = self.inputs.group();
        let scratch_len = scratch_len(&self.inputs.products, &self.inputs.shape);
        pool.run(batch.segments.len() * batch.kv_heads.len() * group, |thread, task| {
            let (head, segment) = batch.head_of(task, group);
            // SAFETY: a thread runs one task at a time, and has a part of its own.
            let scratch = unsafe { scratch.slice(thread * scratch_len, scratch_len) };
            let keys = self.tiles.of_segment(batch, packed, (segment, head / group), count);
            self.head(&batch.segments[segment], head, keys, scratch);
        });
    }

    fn pack_keys(&self, segment: &Segment, tile: usize, kv_head: usize, packed: &mut [u32]) {
        let Inputs { products, shape, k, v, .. } = self.inputs;
        let n = KEYS.min(segment.n_keys as usize - tile * KEYS);
        let row = segment.key_row(tile * KEYS);
        let [keys, values, key_rows] = split(packed, key_parts(&products, shape.head_size));
        for (matrix, packed) in [(k, keys), (v, values)] {
            let rows = self.inputs.keys(matrix, row, kv_head, Layout::Depth);
            products.pack_b(rows, n, shape.head_size, packed);
        }
        let rows = self.inputs.keys(k, row, kv_head, Layout::Lanes);
        products.pack_b(rows, shape.head_size, n, key_rows);
    }

    /// The gradients of one head of queries: its part of `dq`, and what it adds to `dk` and `dv`.
    fn head(&self, segment: &Segment, head: usize, packed_keys: &[u32], scratch: &mut [u32]) {
        let inputs = &self.inputs;
        let Inputs { products, q, .. } = *inputs;
        let AttentionShape { head_size, scale, .. } = inputs.shape;
        let _ready = products.ready();
        let mut scratch = Scratch::new(scratch, &products, &inputs.shape);
        let n_keys = segment.n_keys as usize;
        let n_sums = self.tiles.count(n_keys) * KEYS * head_size;
        for sums in [&mut *scratch.dkeys, &mut *scratch.dvalues] {
            sums[..n_sums].fill(0.0);
        }
        for query in (0..segment.n_queries as usize).step_by(QUERIES) {
            let n_queries = QUERIES.min(segment.n_queries as usize - query);
            let row = segment.query_start as usize + query;
            for (matrix, rows, columns) in [
                (q, &mut *scratch.queries, &mut *scratch.query_columns),
                (Values::F32(self.dout), &mut *scratch.douts, &mut *scratch.dout_columns),
            ] {
                let matrix = |layout| inputs.queries(matrix, row, head, layout);
                products.pack_a(matrix(Layout::Depth), n_queries, head_size, rows);
                products.pack_a(matrix(Layout::Lanes), head_size, n_queries, columns);
            }
            let dqueries = &mut scratch.dqueries[..n_queries * head_size];
            dqueries.fill(0.0);
            let visible = inputs.visible(segment, &(query..query + n_queries));
            for tile in visible.start / KEYS..self.tiles.count(visible.end) {
                let key = tile * KEYS;
                let n_packed = KEYS.min(n_keys - key);
                let n_keys = n_packed.min(visible.end - key);
                let pairs = Pairs { inputs, segment, query, key, n_queries, n_keys };
                let keys = &packed_keys[tile * self.tiles.len..];
                self.tile(&pairs, head, (keys, n_packed), &mut scratch);
            }
            scale_all(inputs.isa, scale, &mut scratch.dqueries[..n_queries * head_size]);
            for (i, values) in scratch.dqueries.chunks_exact(head_size).enumerate().take(n_queries)
            {
                let at = (row + i) * inputs.query_stride() + head * head_size;
                // SAFETY: each task has its own rows and columns.
                unsafe { self.dq.slice(at, head_size) }.copy_from_slice(values);
            }
        }
        scale_all(inputs.isa, scale, &mut scratch.dkeys[..n_sums]);
        for (gradient, sums) in [(&self.dk, &*scratch.dkeys), (&self.dv, &*scratch.dvalues)] {
            self.store(segment, head, sums, scratch.turned, gradient);
        }
    }

    /// What a tile of queries and one of keys add to each other's gradients.
    fn tile(
        &self,
        pairs: &Pairs<'_>,
        head: usize,
        (keys, n_packed): (&[u32], usize),
        scratch: &mut Scratch<'_>,
    ) {
        let inputs = &self.inputs;
        let Inputs { products, isa, .. } = *inputs;
        let AttentionShape { head_size, n_heads, scale, .. } = inputs.shape;
        let Pairs { n_queries, n_keys, .. } = *pairs;
        let [keys_len, values_len, _] = key_parts(&products, head_size);
        let (keys, rest) = keys.split_at(keys_len);
        let (values, key_rows) = rest.split_at(values_len);
        let scores = &mut scratch.scores[..n_queries * KEYS];
        let dscores = &mut scratch.dscores[..n_queries * KEYS];
        for (rows, columns, result) in
            [(&*scratch.queries, keys, &mut *scores), (&*scratch.douts, values, &mut *dscores)]
        {
            let operands = (products.packed(rows, head_size), products.packed(columns, head_size));
            let (extents, store) = ((n_queries, n_keys), Store::Overwrite);
            products.multiply(extents, operands, store, (result, KEYS), |queries, keys| {
                let seen = pairs.keys_seen(&queries);
                let any = seen.start < keys.end && keys.start < seen.end;
                0..if any { head_size } else { 0 }
            });
        }
        let mut seen = [[0; 2]; QUERIES];
        for (query, seen) in seen.iter_mut().enumerate().take(n_queries) {
            let keys = pairs.keys_seen(&(query..query + 1));
            *seen = [keys.start, keys.end];
        }
        let row = pairs.segment.query_start as usize + pairs.query;
        let (log_sum_exp, delta) =
            (&self.log_sum_exp[row * n_heads + head..], &self.delta[row * n_heads + head..]);
        score_gradients(isa, scale, scores, dscores, &seen, log_sum_exp, delta, n_heads);

        for (weights, columns, sums) in [
            (&*scores, &*scratch.dout_columns, &mut *scratch.dvalues),
            (&*dscores, &*scratch.query_columns, &mut *scratch.dkeys),
        ] {
            let weights = Operand::f32(weights, Layout::Lanes, KEYS);
            products.pack_b(weights, n_keys, n_queries, scratch.weights);
            let columns = products.packed(columns, n_queries);
            let operands = (columns, products.packed(scratch.weights, n_queries));
            let sums = &mut sums[pairs.key * head_size..][..KEYS * head_size];
            let (extents, store) = ((head_size, n_keys), Store::Accumulate);
            products.multiply(extents, operands, store, (sums, KEYS), |_, keys| {
                pairs.queries_seeing(&keys)
            });
        }
        let weights = Operand::f32(dscores, Layout::Depth, KEYS);
        products.pack_a(weights, n_queries, n_keys, scratch.weights);
        let operands =
            (products.packed(scratch.weights, n_keys), products.packed(key_rows, n_packed));
        let sums = &mut scratch.dqueries[..n_queries * head_size];
        let (extents, store) = ((n_queries, head_size), Store::Accumulate);
        products.multiply(extents, operands, store, (sums, head_size), |queries, _| {
            pairs.keys_seen(&queries)
        });
    }

    /// Columns of `sums` to rows of a gradient.
    fn store(
        &self,
        segment: &Segment,
        head: usize,
        sums: &[f32],
        turned: &mut [f32],
        gradient: &Shared<f32>,
    ) {
        let AttentionShape { head_size, .. } = self.inputs.shape;
        let n_keys = segment.n_keys as usize;
        let tiles = sums.chunks_exact(KEYS * head_size).take(self.tiles.count(n_keys));
        for (tile, sums) in tiles.enumerate() {
            let n = KEYS.min(n_keys - tile * KEYS);
            let store = |i: usize, first: usize, values: &[f32]| {
                let row = segment.key_row(tile * KEYS + i);
                let at = row * self.inputs.query_stride() + head * head_size + first;
                // SAFETY: each task has its own rows and columns.
                copy(values, unsafe { gradient.slice(at, values.len()) });
            };
            turn_columns(self.inputs.isa, (sums, KEYS), head_size, n, turned, store);
        }
    }
}

for_each_isa! {
    /// Sums over what was not scaled.
    fn scale_all(scale: f32, sums: &mut [f32]) {
        for sum in sums {
            *sum *= scale;
        }
    }
}

for_each_isa! {
    /// Scores before they are scaled to probabilities, and `dp` to the gradient of the scaled ones, in a tile of
    /// rows with the given log-sum-exp and delta, `stride` apart; both zero of keys that are not seen, as
    /// far as [`BESIDE`] to both sides of those that are.
    fn score_gradients(
        scale: f32,
        scores: &mut [f32],
        dp: &mut [f32],
        seen: &[[usize; 2]],
        log_sum_exp: &[f32],
        delta: &[f32],
        stride: usize,
    ) {
        let rows = scores.as_chunks_mut::<LANES>().0.as_chunks_mut::<{ KEYS / LANES }>().0.iter_mut();
        let rows = rows.zip(dp.as_chunks_mut::<LANES>().0.as_chunks_mut::<{ KEYS / LANES }>().0);
        for (row, ((scores, dp), &[start, end])) in rows.zip(seen).enumerate() {
            let (log_sum_exp, delta) = (log_sum_exp[row * stride], delta[row * stride]);
            let (first, last) = (start / LANES, end.div_ceil(LANES));
            for (scores, dp) in scores[first..last].iter_mut().zip(&mut dp[first..last]) {
                for lane in 0..LANES {
                    let score = multiply_add::<FUSED>(scale, scores[lane], -log_sum_exp);
                    let probability = exp2::<FUSED>(LOG2_E * score);
                    scores[lane] = probability;
                    dp[lane] = probability * (dp[lane] - delta);
                }
            }
            if start == 0 && end == KEYS {
                continue;
            }
            for row in [scores, dp] {
                row[first.saturating_sub(BESIDE / LANES)..first].fill([0.0; LANES]);
                row[last..(last + BESIDE / LANES).min(KEYS / LANES)].fill([0.0; LANES]);
                if last > first {
                    keep(&mut row[first], start - first * LANES, LANES);
                    keep(&mut row[last - 1], 0, end - (last - 1) * LANES);
                }
            }
        }
    }
}

/// Sets all but the lanes from `start` to `end` to zero.
#[inline(always)]
fn keep(values: &mut [f32; LANES], start: usize, end: usize) {
    let (start, end) = (start as u32, end as u32);
    for lane in 0..LANES as u32 {
        let value = &mut values[lane as usize];
        *value = if (lane >= start) & (lane < end) { *value } else { 0.0 };
    }
}
