//! The forward half: keys along a tile's rows, queries side by side. What a query needs of all keys then
//! goes lane by lane, and probabilities enter their product as they lie.

use std::f32::consts::LOG2_E;

use super::{
    super::{AttentionShape, Segment},
    few,
    tile::{Batch, Inputs, KeyTiles, Pairs, lines, part_of, split},
    turn_columns,
};
use crate::{
    Store,
    cpu::{
        gemm::{Layout, Operand, SharedTarget, TURNED_LANES, TileProducts},
        math::{exp2, for_each_isa, multiply_add},
        parallel::Shared,
        pool::Pool,
    },
};

/// Queries of a tile: with its keys and what they weigh, the scores fit a first-level cache.
const QUERIES: usize = 64;

/// Keys of a tile, up to whole panels.
const KEYS: usize = 112;

/// Queries handled at a time.
const LANES: usize = 16;

/// Tiles of keys: as rows of the scores' product, and the values' columns as rows of the other.
pub(super) fn key_tiles(products: &TileProducts, head_size: usize) -> KeyTiles {
    let n_keys = KEYS / products.panel_rows() * products.panel_rows();
    KeyTiles { n_keys, len: key_parts(products, n_keys, head_size).iter().sum() }
}

fn key_parts(products: &TileProducts, n_keys: usize, head_size: usize) -> [usize; 2] {
    lines([products.a_len(n_keys, head_size), products.a_len(head_size, n_keys)])
}

/// What a thread works in.
struct Scratch<'a> {
    /// Packed queries.
    queries: &'a mut [u32],
    /// `[keys, QUERIES]`: scores before they are scaled, then probabilities.
    scores: &'a mut [f32],
    /// The same, packed.
    weights: &'a mut [u32],
    /// `[K, QUERIES]`: sums of values.
    sums: &'a mut [f32],
    /// `[2, QUERIES]`: the highest score so far, and the sum of what was made of them.
    running: &'a mut [f32],
    /// `[QUERIES, TURNED_LANES]`: sums, turned.
    turned: &'a mut [f32],
}

fn scratch_parts(products: &TileProducts, n_keys: usize, head_size: usize) -> [usize; 6] {
    lines([
        products.b_len(QUERIES, head_size),
        n_keys * QUERIES,
        products.b_len(QUERIES, n_keys),
        head_size * QUERIES,
        2 * QUERIES,
        QUERIES * TURNED_LANES,
    ])
}

/// Elements of one thread's scratch.
pub(super) fn scratch_len(products: &TileProducts, head_size: usize) -> usize {
    let n_keys = key_tiles(products, head_size).n_keys;
    scratch_parts(products, n_keys, head_size)
        .iter()
        .sum::<usize>()
        .max(few::scratch_len(head_size))
}

impl<'a> Scratch<'a> {
    fn new(
        memory: &'a mut [u32],
        products: &TileProducts,
        n_keys: usize,
        head_size: usize,
    ) -> Self {
        let parts = scratch_parts(products, n_keys, head_size);
        let [queries, scores, weights, sums, running, turned] = split(memory, parts);
        let [scores, sums, running, turned] =
            [scores, sums, running, turned].map(bytemuck::cast_slice_mut);
        Self { queries, scores, weights, sums, running, turned }
    }
}

/// The forward pass.
pub(super) struct Forward<'a> {
    pub inputs: Inputs<'a>,
    pub tiles: KeyTiles,
    pub out: SharedTarget,
    pub log_sum_exp: Shared<f32>,
}

impl Forward<'_> {
    /// Tiles of keys to pack; so few queries read each key where it lies.
    pub fn key_tiles_of(&self, segment: &Segment) -> usize {
        if few::is_few(segment) { 0 } else { self.tiles.count(segment.n_keys as usize) }
    }

    /// Everything of a batch: its keys into `packed`, then its queries.
    pub fn run(&self, pool: &Pool, batch: &Batch<'_>, packed: &mut [u32], scratch: &Shared<u32>) {
        let count = |segment: &Segment| self.key_tiles_of(segment);
        self.tiles.pack(pool, batch, packed, count, |segment, tile, kv_head, packed| {
            self.pack_keys(segment, tile, kv_head, packed);
        });
        let packed = &*packed;
        let group = self.inputs.group();
        let query_tiles = |segment: &Segment| (segment.n_queries as usize).div_ceil(QUERIES);
        let n_query_tiles = batch.count(query_tiles);
        let scratch_len = scratch_len(&self.inputs.products, self.inputs.shape.head_size);
        pool.run(n_query_tiles * batch.kv_heads.len() * group, |thread, task| {
            // Head by head, so that the threads' parts are alike; the last tiles of each see the most
            // keys, and go first.
            let head = batch.kv_heads.start * group + task / n_query_tiles;
            let tile = n_query_tiles - 1 - task % n_query_tiles;
            let Some((at, tile)) = part_of(batch.segments, tile, query_tiles) else { return };
            let segment = &batch.segments[at];
            // SAFETY: a thread runs one task at a time, and has a part of its own.
            let scratch = unsafe { scratch.slice(thread * scratch_len, scratch_len) };
            if few::is_few(segment) {
                return few::attend(self, segment, head, scratch);
            }
            let keys = self.tiles.of_segment(batch, packed, (at, head / group), count);
            self.query_tile(segment, tile * QUERIES, head, keys, scratch);
        });
    }

    fn pack_keys(&self, segment: &Segment, tile: usize, kv_head: usize, packed: &mut [u32]) {
        let Inputs { products, shape, k, v, .. } = self.inputs;
        let first = tile * self.tiles.n_keys;
        let n = self.tiles.n_keys.min(segment.n_keys as usize - first);
        let row = segment.key_row(first);
        let parts = key_parts(&products, self.tiles.n_keys, shape.head_size);
        let [keys, values] = split(packed, parts);
        let rows = self.inputs.keys(k, row, kv_head, Layout::Depth);
        products.pack_a(rows, n, shape.head_size, keys);
        let rows = self.inputs.keys(v, row, kv_head, Layout::Lanes);
        products.pack_a(rows, shape.head_size, n, values);
    }

    /// The output of one tile of queries of one head.
    fn query_tile(
        &self,
        segment: &Segment,
        first: usize,
        head: usize,
        packed_keys: &[u32],
        scratch: &mut [u32],
    ) {
        let inputs = &self.inputs;
        let AttentionShape { head_size, scale, .. } = inputs.shape;
        let products = &inputs.products;
        let _ready = products.ready();
        let n_queries = QUERIES.min(segment.n_queries as usize - first);
        let n_lanes = n_queries.next_multiple_of(LANES);
        let row = segment.query_start as usize + first;
        let scratch = Scratch::new(scratch, products, self.tiles.n_keys, head_size);
        let rows = inputs.queries(inputs.q, row, head, Layout::Depth);
        products.pack_b(rows, n_queries, head_size, scratch.queries);
        let queries = products.packed(scratch.queries, head_size);
        let sums = &mut scratch.sums[..head_size * QUERIES];
        sums.fill(0.0);
        let (highest, totals) = scratch.running.split_at_mut(QUERIES);
        highest.fill(f32::NEG_INFINITY);
        totals[..QUERIES].fill(0.0);
        let visible = inputs.visible(segment, &(first..first + n_queries));
        for tile in visible.start / self.tiles.n_keys..self.tiles.count(visible.end) {
            let key = tile * self.tiles.n_keys;
            let n_packed = self.tiles.n_keys.min(segment.n_keys as usize - key);
            let n_keys = n_packed.min(visible.end - key);
            let pairs = Pairs { inputs, segment, query: first, key, n_queries, n_keys };
            let [keys_len, _] = key_parts(products, self.tiles.n_keys, head_size);
            let (keys, values) = packed_keys[tile * self.tiles.len..].split_at(keys_len);
            let scores = &mut scratch.scores[..n_keys * QUERIES];
            products.multiply(
                (n_keys, n_queries),
                (products.packed(keys, head_size), queries),
                Store::Overwrite,
                (scores, QUERIES),
                |keys, queries| {
                    let seeing = pairs.queries_seeing(&keys);
                    let any = seeing.start < queries.end && queries.start < seeing.end;
                    0..if any { head_size } else { 0 }
                },
            );
            pairs.hide(scores, n_lanes);
            soften(inputs.isa, scale, scores, n_lanes, highest, totals, sums);
            let rows = Operand::f32(scores, Layout::Lanes, QUERIES);
            products.pack_b(rows, n_queries, n_keys, scratch.weights);
            products.multiply(
                (head_size, n_queries),
                (products.packed(values, n_packed), products.packed(scratch.weights, n_keys)),
                Store::Accumulate,
                (sums, QUERIES),
                |_, queries| pairs.keys_seen(&queries),
            );
        }
        for sums in sums.chunks_exact_mut(QUERIES) {
            for (sum, total) in sums.iter_mut().zip(&*totals).take(n_queries) {
                *sum /= total;
            }
        }
        let columns = (&*sums, QUERIES);
        let store = |i: usize, first: usize, values: &[f32]| {
            let at = (row + i) * inputs.query_stride() + head * head_size + first;
            // SAFETY: each task has its own rows and columns.
            unsafe { self.out.store(inputs.isa, at, values) };
        };
        turn_columns(inputs.isa, columns, head_size, n_queries, scratch.turned, store);
        for (i, (highest, total)) in highest.iter().zip(&*totals).enumerate().take(n_queries) {
            let at = (row + i) * inputs.shape.n_heads + head;
            // SAFETY: each task has its own rows and columns.
            let log_sum_exp = unsafe { self.log_sum_exp.slice(at, 1) };
            log_sum_exp[0] = highest + total.ln();
        }
    }
}

impl Pairs<'_> {
    /// Sets the scores of pairs that do not see each other to −∞, in all of the first `n_lanes`.
    fn hide(&self, scores: &mut [f32], n_lanes: usize) {
        let [first, last] =
            [0, self.n_queries - 1].map(|query| self.keys_seen(&(query..query + 1)));
        if first.end == self.n_keys && last.start == 0 && self.n_queries == n_lanes {
            return;
        }
        for (key, scores) in scores.chunks_exact_mut(QUERIES).enumerate() {
            let seeing = self.queries_seeing(&(key..key + 1));
            if seeing.len() < n_lanes {
                scores[..seeing.start].fill(f32::NEG_INFINITY);
                scores[seeing.end..n_lanes].fill(f32::NEG_INFINITY);
            }
        }
    }
}

for_each_isa! {
    /// A tile of scores into the running softmax of each query: `s` becomes `exp(scale · s − highest)`, and
    /// the sums of the values fade accordingly.
    fn soften(
        scale: f32,
        scores: &mut [f32],
        n_lanes: usize,
        highest: &mut [f32],
        totals: &mut [f32],
        sums: &mut [f32],
    ) {
        let scores = scores.as_chunks_mut::<LANES>().0.as_chunks_mut::<{ QUERIES / LANES }>().0;
        let mut faded = [1.0_f32; QUERIES];
        let running = highest.as_chunks_mut::<LANES>().0.iter_mut();
        let running = running.zip(totals.as_chunks_mut::<LANES>().0);
        for (part, (highest, totals)) in running.enumerate().take(n_lanes / LANES) {
            let mut most = [f32::NEG_INFINITY; LANES];
            for row in scores.iter() {
                for lane in 0..LANES {
                    let (score, highest) = (row[part][lane], most[lane]);
                    most[lane] = if score > highest { score } else { highest };
                }
            }
            for lane in 0..LANES {
                let (score, highest) = (scale * most[lane], highest[lane]);
                most[lane] = if score > highest { score } else { highest };
            }
            // Nothing to take away where nothing is visible yet.
            let away = most.map(|most| if most == f32::NEG_INFINITY { 0.0 } else { most });
            let mut added = [0.0_f32; LANES];
            for row in scores.iter_mut() {
                for lane in 0..LANES {
                    let score = multiply_add::<FUSED>(scale, row[part][lane], -away[lane]);
                    row[part][lane] = exp2::<FUSED>(LOG2_E * score);
                    added[lane] += row[part][lane];
                }
            }
            let faded = &mut faded.as_chunks_mut::<LANES>().0[part];
            for lane in 0..LANES {
                faded[lane] = exp2::<FUSED>(LOG2_E * (highest[lane] - away[lane]));
                totals[lane] = totals[lane] * faded[lane] + added[lane];
            }
            *highest = most;
        }
        if faded.iter().any(|faded| *faded != 1.0) {
            for row in sums.as_chunks_mut::<QUERIES>().0 {
                for (sum, faded) in row.iter_mut().zip(&faded) {
                    *sum *= faded;
                }
            }
        }
    }
}
