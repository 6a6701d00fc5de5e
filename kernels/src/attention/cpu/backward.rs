//! The backward half.

use std::ops::Range;

use super::{
    super::{AttentionShape, Segment},
    tile::{Inputs, KEYS, QUERIES, Scratch, score_gradients},
};
use crate::{
    Store,
    cpu::{
        gemm::{Layout, Operand},
        parallel::Shared,
    },
};

/// What every tile of a backward pass reads.
pub(super) struct Gradient<'a> {
    pub inputs: Inputs<'a>,
    pub dout: &'a [f32],
    pub log_sum_exp: &'a [f32],
    pub delta: &'a [f32],
}

impl Gradient<'_> {
    /// Packs a tile of keys and values as columns of the scores' products.
    fn pack_keys(
        &self,
        segment: &Segment,
        keys: &Range<usize>,
        kv_head: usize,
        scratch: &mut Scratch<'_>,
    ) {
        let Inputs { products, shape, k, v, .. } = self.inputs;
        for (matrix, packed) in [(k, &mut *scratch.keys), (v, &mut *scratch.values)] {
            let row = segment.key_row(keys.start);
            let rows = self.inputs.keys(matrix, row, kv_head, Layout::Depth);
            products.pack_b(rows, keys.len(), shape.head_size, packed);
        }
    }

    /// Packs a tile of queries and their `dout` as rows of the scores' products.
    fn pack_queries(
        &self,
        segment: &Segment,
        queries: &Range<usize>,
        head: usize,
        scratch: &mut Scratch<'_>,
    ) {
        let Inputs { products, shape, q, .. } = self.inputs;
        let row = segment.query_start as usize + queries.start;
        for (matrix, packed) in [(q, &mut *scratch.queries), (self.dout, &mut *scratch.douts)] {
            let rows = self.inputs.queries(matrix, row, head, Layout::Depth);
            products.pack_a(rows, queries.len(), shape.head_size, packed);
        }
    }

    /// Probabilities into `scratch.scores`, and gradients of the scores but for their scale into
    /// `scratch.dscores`, of packed queries and keys.
    fn scores(
        &self,
        segment: &Segment,
        (queries, keys): (&Range<usize>, &Range<usize>),
        head: usize,
        scratch: &mut Scratch<'_>,
    ) {
        let inputs = &self.inputs;
        let AttentionShape { n_heads, scale, .. } = inputs.shape;
        let scores = &mut scratch.scores[..queries.len() * KEYS];
        let dscores = &mut scratch.dscores[..queries.len() * KEYS];
        let tile = (queries, keys);
        let packed = (&*scratch.queries, &*scratch.keys);
        inputs.products_of_pairs(segment, tile, scale, packed, scores);
        let packed = (&*scratch.douts, &*scratch.values);
        inputs.products_of_pairs(segment, tile, 1.0, packed, dscores);
        let n_lanes = inputs.hide(segment, tile, scores);
        let at = (segment.query_start as usize + queries.start) * n_heads + head;
        let (log_sum_exp, delta) = (&self.log_sum_exp[at..], &self.delta[at..]);
        score_gradients(inputs.isa, scores, dscores, n_lanes, log_sum_exp, delta, n_heads);
    }

    /// The gradients of one head of queries: its part of `dq`, and what it adds to `dk` and `dv`,
    /// all laid out as `q` is. Keys go by tiles, each past all queries that see any of it, so that
    /// every score is made once.
    pub fn head(
        &self,
        segment: &Segment,
        head: usize,
        scratch: &mut Scratch<'_>,
        [dq, dk, dv]: [&Shared<f32>; 3],
    ) {
        let inputs = &self.inputs;
        let AttentionShape { head_size, window, scale, .. } = inputs.shape;
        let (products, kv_head) = (&inputs.products, inputs.kv_head(head));
        let stride = inputs.query_stride();
        let n_keys = segment.n_keys as usize;
        let n_queries = segment.n_queries as usize;
        let before = n_keys - n_queries;
        for first_key in (0..n_keys).step_by(KEYS) {
            let keys = first_key..(first_key + KEYS).min(n_keys);
            self.pack_keys(segment, &keys, kv_head, scratch);
            let rows = inputs.keys(inputs.k, segment.key_row(first_key), kv_head, Layout::Lanes);
            products.pack_b(rows, head_size, keys.len(), scratch.key_rows);
            for sums in &mut scratch.sums {
                sums[..keys.len() * head_size].fill(0.0);
            }
            // Queries that see any key of the tile.
            let first_query = keys.start.saturating_sub(before);
            let last_query = match window {
                Some(window) => (keys.end - 1).saturating_add(window).saturating_sub(before),
                None => n_queries,
            }
            .min(n_queries);
            for first in (first_query..last_query).step_by(QUERIES) {
                let queries = first..(first + QUERIES).min(last_query);
                let row = segment.query_start as usize + first;
                self.pack_queries(segment, &queries, head, scratch);
                self.scores(segment, (&queries, &keys), head, scratch);
                let [dk, dv] = &mut scratch.sums;
                for (weights, matrix, factor, sums) in [
                    (&*scratch.scores, self.dout, 1.0, dv),
                    (&*scratch.dscores, inputs.q, scale, dk),
                ] {
                    let turned = Operand::f32(weights, Layout::Lanes, KEYS);
                    products.pack_a(turned, keys.len(), queries.len(), scratch.weights);
                    let rows = inputs.queries(matrix, row, head, Layout::Lanes);
                    products.pack_b(rows, head_size, queries.len(), scratch.weighed);
                    let packed = (&*scratch.weights, &*scratch.weighed);
                    let store = Store::Accumulate;
                    inputs.weigh((keys.len(), queries.len()), factor, packed, store, sums);
                }
                let weights = Operand::f32(scratch.dscores, Layout::Depth, KEYS);
                products.pack_a(weights, queries.len(), keys.len(), scratch.weights);
                let packed = (&*scratch.weights, &*scratch.key_rows);
                let sums = &mut scratch.dqueries[..queries.len() * head_size];
                let store = Store::Overwrite;
                inputs.weigh((queries.len(), keys.len()), scale, packed, store, sums);
                for (i, sums) in sums.chunks_exact(head_size).enumerate() {
                    let start = (row + i) * stride + head * head_size;
                    // SAFETY: each task has its own rows and columns.
                    let dq = unsafe { dq.slice(start, head_size) };
                    for (dq, sum) in dq.iter_mut().zip(sums) {
                        *dq += sum;
                    }
                }
            }
            for (gradient, sums) in [dk, dv].into_iter().zip(&scratch.sums) {
                for (key, sums) in keys.clone().zip(sums.chunks_exact(head_size)) {
                    let start = segment.key_row(key) * stride + head * head_size;
                    // SAFETY: each task has its own rows and columns.
                    unsafe { gradient.slice(start, head_size) }.copy_from_slice(sums);
                }
            }
        }
    }
}
