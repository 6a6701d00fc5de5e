//! One tile of scores, and the memory a thread makes it in.

use std::ops::Range;

use super::super::{AttentionShape, Segment};
use crate::{
    Compute, DeviceKind, DeviceProfile, Isa, Store,
    cpu::{
        gemm::{Extents, Layout, Operand, TileProducts},
        math::{exp, for_each_isa},
    },
};

/// Queries of a tile: eight panels of the widest registers' 14 rows, so that packing the keys and
/// values of a tile costs little beside multiplying them.
pub(super) const QUERIES: usize = 112;

/// Keys of a tile: with K = 128 in f32, all that a thread works on takes some 700 KiB, within a
/// core's second-level cache.
pub(super) const KEYS: usize = 128;

/// Scores handled at a time; divides [`KEYS`].
const LANES: usize = 16;

for_each_isa! {
    /// A tile of scores into the running softmax: `s` becomes `exp(s − max)`, and the sums of the
    /// values fade accordingly. Of each row `n_keys`, a multiple of [`LANES`], are there.
    pub(super) fn soften(
        scores: &mut [f32],
        n_keys: usize,
        running: &mut [[f32; 2]],
        sums: &mut [f32],
    ) {
        let head_size = sums.len() / running.len();
        let rows = scores.chunks_exact_mut(KEYS).zip(sums.chunks_exact_mut(head_size));
        for ((scores, sums), running) in rows.zip(running) {
            let scores = scores[..n_keys].as_chunks_mut::<LANES>().0;
            let [max, sum] = *running;
            let mut highest = [max; LANES];
            for scores in scores.iter() {
                for lane in 0..LANES {
                    let (score, most) = (scores[lane], highest[lane]);
                    highest[lane] = if score > most { score } else { most };
                }
            }
            let highest = highest.iter().fold(max, |a, b| a.max(*b));
            if highest == f32::NEG_INFINITY {
                // Nothing visible yet.
                scores.as_flattened_mut().fill(0.0);
                continue;
            }
            let mut totals = [0.0_f32; LANES];
            for scores in scores {
                for lane in 0..LANES {
                    scores[lane] = exp(scores[lane] - highest);
                    totals[lane] += scores[lane];
                }
            }
            let faded = exp(max - highest);
            if faded != 1.0 {
                for value in sums {
                    *value *= faded;
                }
            }
            *running = [highest, sum * faded + totals.iter().sum::<f32>()];
        }
    }
}

for_each_isa! {
    /// Scores to probabilities, and `dp` to the gradient of the scores but for their scale, in a
    /// tile of rows with the given log-sum-exp and delta, `stride` apart.
    pub(super) fn score_gradients(
        scores: &mut [f32],
        dp: &mut [f32],
        n_keys: usize,
        log_sum_exp: &[f32],
        delta: &[f32],
        stride: usize,
    ) {
        let rows = scores.chunks_exact_mut(KEYS).zip(dp.chunks_exact_mut(KEYS));
        for (row, (scores, dp)) in rows.enumerate() {
            let (log_sum_exp, delta) = (log_sum_exp[row * stride], delta[row * stride]);
            let scores = scores[..n_keys].as_chunks_mut::<LANES>().0;
            for (scores, dp) in scores.iter_mut().zip(dp.as_chunks_mut::<LANES>().0) {
                for lane in 0..LANES {
                    let probability = exp(scores[lane] - log_sum_exp);
                    scores[lane] = probability;
                    // Of a hidden pair `dp` was not computed.
                    let gradient = probability * (dp[lane] - delta);
                    dp[lane] = if probability == 0.0 { 0.0 } else { gradient };
                }
            }
        }
    }
}

impl Segment {
    /// The key that query `i` sits at.
    pub(super) fn position(&self, i: usize) -> usize {
        self.n_keys as usize - self.n_queries as usize + i
    }

    pub(super) fn query_tiles(&self) -> usize {
        (self.n_queries as usize).div_ceil(QUERIES)
    }

    /// Rows of `k` and `v` of `keys`.
    pub(super) fn key_row(&self, key: usize) -> usize {
        self.key_start as usize + key
    }
}

/// How tiles are multiplied.
pub(super) fn products(isa: Isa, compute: Compute) -> TileProducts {
    TileProducts::new(isa, compute, QUERIES, KEYS)
}

/// What a thread works in.
pub(super) struct Scratch<'a> {
    /// Packed rows of the scores' products.
    pub queries: &'a mut [u32],
    pub douts: &'a mut [u32],
    /// Packed columns of the scores' products.
    pub keys: &'a mut [u32],
    pub values: &'a mut [u32],
    /// `[QUERIES, KEYS]`: scores, then probabilities; and the gradients of the scores.
    pub scores: &'a mut [f32],
    pub dscores: &'a mut [f32],
    /// Probabilities or gradients, packed, and the rows that they weigh; those of keys stay.
    pub weights: &'a mut [u32],
    pub weighed: &'a mut [u32],
    pub key_rows: &'a mut [u32],
    /// `[QUERIES, K]`: what a tile of keys adds to the gradient of queries.
    pub dqueries: &'a mut [f32],
    /// `[KEYS, K]` each: sums over tiles.
    pub sums: [&'a mut [f32]; 2],
}

/// Elements of the parts of a scratch, in order, each up to a whole cache line.
fn parts(products: &TileProducts, head_size: usize) -> [usize; 12] {
    let queries = products.a_len(QUERIES, head_size);
    let keys = products.b_len(KEYS, head_size);
    let weights = products.a_len(QUERIES, KEYS).max(products.a_len(KEYS, QUERIES));
    let weighed = products.b_len(head_size, KEYS).max(products.b_len(head_size, QUERIES));
    let (scores, sums) = (QUERIES * KEYS, KEYS * head_size);
    let (rows, dqueries) = (products.b_len(head_size, KEYS), QUERIES * head_size);
    [queries, queries, keys, keys, scores, scores, weights, weighed, rows, dqueries, sums, sums]
        .map(|len| len.next_multiple_of(16))
}

/// Elements of one thread's scratch on `profile`.
pub(in crate::attention) fn scratch_len(profile: &DeviceProfile, head_size: usize) -> usize {
    let DeviceKind::Cpu { isa, .. } = profile.kind else {
        unreachable!("a workspace of the processor")
    };
    // A profile may ask for more than this processor has; the device would then use less.
    let products = products(isa.min(Isa::best()), profile.compute);
    Scratch::len(&products, head_size)
}

impl<'a> Scratch<'a> {
    /// Elements of it.
    pub fn len(products: &TileProducts, head_size: usize) -> usize {
        parts(products, head_size).iter().sum()
    }

    pub fn new(mut memory: &'a mut [u32], products: &TileProducts, head_size: usize) -> Self {
        let [queries, douts, keys, values, scores, dscores, weights, weighed, key_rows, dqueries, dk, dv] =
            parts(products, head_size).map(|len| {
                let (part, rest) = std::mem::take(&mut memory).split_at_mut(len);
                memory = rest;
                part
            });
        let [scores, dscores, dqueries, dk, dv] =
            [scores, dscores, dqueries, dk, dv].map(bytemuck::cast_slice_mut);
        Self {
            queries,
            douts,
            keys,
            values,
            scores,
            dscores,
            weights,
            weighed,
            key_rows,
            dqueries,
            sums: [dk, dv],
        }
    }
}

/// What every tile of an attention reads.
#[derive(Clone, Copy)]
pub(super) struct Inputs<'a> {
    pub isa: Isa,
    pub compute: Compute,
    pub products: TileProducts,
    pub shape: AttentionShape,
    pub q: &'a [f32],
    pub k: &'a [f32],
    pub v: &'a [f32],
}

impl Inputs<'_> {
    pub fn query_stride(&self) -> usize {
        self.shape.n_heads * self.shape.head_size
    }

    pub fn key_stride(&self) -> usize {
        self.shape.n_kv_heads * self.shape.head_size
    }

    pub fn kv_head(&self, head: usize) -> usize {
        head / (self.shape.n_heads / self.shape.n_kv_heads)
    }

    /// Rows of a head of a matrix like `q`, from `row` on.
    pub fn queries<'m>(
        &self,
        matrix: &'m [f32],
        row: usize,
        head: usize,
        layout: Layout,
    ) -> Operand<'m> {
        let stride = self.query_stride();
        Operand::f32(&matrix[row * stride + head * self.shape.head_size..], layout, stride)
    }

    /// Rows of a head of a matrix like `k`, from `row` on.
    pub fn keys<'m>(
        &self,
        matrix: &'m [f32],
        row: usize,
        kv_head: usize,
        layout: Layout,
    ) -> Operand<'m> {
        let stride = self.key_stride();
        Operand::f32(&matrix[row * stride + kv_head * self.shape.head_size..], layout, stride)
    }

    /// Keys that a query sees.
    pub fn visible(&self, segment: &Segment, query: usize) -> Range<usize> {
        let end = segment.position(query) + 1;
        end.saturating_sub(self.shape.window.unwrap_or(usize::MAX))..end
    }

    /// Keys that any of the queries sees.
    pub fn visible_to_any(&self, segment: &Segment, queries: &Range<usize>) -> Range<usize> {
        self.visible(segment, queries.start).start..segment.position(queries.end - 1) + 1
    }

    /// Multiplications and additions of one product over all pairs that see each other.
    pub fn product_flops(&self, segments: &[Segment]) -> f64 {
        let n_pairs: usize = segments
            .iter()
            .flat_map(|segment| {
                (0..segment.n_queries as usize).map(|query| self.visible(segment, query).len())
            })
            .sum();
        2.0 * (n_pairs * self.shape.n_heads * self.shape.head_size) as f64
    }

    /// Products of packed queries (or `dout`) with packed keys (or values), where visible.
    pub fn products_of_pairs(
        &self,
        segment: &Segment,
        (queries, keys): (&Range<usize>, &Range<usize>),
        factor: f32,
        packed: (&[u32], &[u32]),
        result: &mut [f32],
    ) {
        let extents = Extents { m: queries.len(), n: keys.len(), k: self.shape.head_size };
        let visible = |rows: Range<usize>| {
            let rows = queries.start + rows.start..queries.start + rows.end;
            let visible = self.visible_to_any(segment, &rows);
            visible.start.saturating_sub(keys.start)..visible.end.saturating_sub(keys.start)
        };
        let store = Store::Overwrite;
        self.products.multiply(extents, factor, packed, store, (result, KEYS), visible);
    }

    /// Sets the scores of pairs that do not see each other to −∞, up to a whole number of
    /// [`LANES`], which it returns.
    pub fn hide(
        &self,
        segment: &Segment,
        (queries, keys): (&Range<usize>, &Range<usize>),
        scores: &mut [f32],
    ) -> usize {
        let n_keys = keys.len().next_multiple_of(LANES);
        for (query, scores) in queries.clone().zip(scores.chunks_exact_mut(KEYS)) {
            let visible = self.visible(segment, query);
            let start = visible.start.saturating_sub(keys.start).min(n_keys);
            let end = visible.end.saturating_sub(keys.start).clamp(start, keys.len().max(start));
            scores[..start].fill(f32::NEG_INFINITY);
            scores[end..n_keys].fill(f32::NEG_INFINITY);
        }
        n_keys
    }

    /// `sums (store) factor · weights · weighed`, of packed operands.
    pub fn weigh(
        &self,
        (m, k): (usize, usize),
        factor: f32,
        packed: (&[u32], &[u32]),
        store: Store,
        sums: &mut [f32],
    ) {
        let head_size = self.shape.head_size;
        let extents = Extents { m, n: head_size, k };
        let c = (sums, head_size);
        self.products.multiply(extents, factor, packed, store, c, |_| 0..head_size);
    }
}
