//! The two passes of the backward half.

use std::ops::Range;

use super::{
    super::{AttentionShape, Segment},
    tile::{Inputs, KEYS, QUERIES, Scratch, score_gradients},
};
use crate::cpu::{
    gemm::{Layout, Operand},
    parallel::Shared,
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

    /// `dk` and `dv` of one tile of keys of one key/value head.
    pub fn key_tile(
        &self,
        segment: &Segment,
        tile: usize,
        kv_head: usize,
        scratch: &mut Scratch<'_>,
        dk: &Shared<f32>,
        dv: &Shared<f32>,
    ) {
        let inputs = &self.inputs;
        let AttentionShape { head_size, n_heads, n_kv_heads, window, scale, .. } = inputs.shape;
        let n_keys = segment.n_keys as usize;
        let keys = tile * KEYS..(tile * KEYS + KEYS).min(n_keys);
        self.pack_keys(segment, &keys, kv_head, scratch);
        for sums in &mut scratch.sums {
            sums[..keys.len() * head_size].fill(0.0);
        }
        // Queries that see any key of the tile.
        let n_queries = segment.n_queries as usize;
        let before = n_keys - n_queries;
        let first_query = keys.start.saturating_sub(before);
        let last_query = match window {
            Some(window) => (keys.end - 1).saturating_add(window).saturating_sub(before),
            None => n_queries,
        }
        .min(n_queries);
        let group = n_heads / n_kv_heads;
        for head in kv_head * group..(kv_head + 1) * group {
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
                    let products = &inputs.products;
                    products.pack_a(turned, keys.len(), queries.len(), scratch.weights);
                    let rows = inputs.queries(matrix, row, head, Layout::Lanes);
                    products.pack_b(rows, head_size, queries.len(), scratch.weighed);
                    let packed = (&*scratch.weights, &*scratch.weighed);
                    inputs.add_weighed((keys.len(), queries.len()), factor, packed, sums);
                }
            }
        }
        let (stride, column) = (inputs.key_stride(), kv_head * head_size);
        for (gradient, sums) in [dk, dv].into_iter().zip(&scratch.sums) {
            for (key, sums) in keys.clone().zip(sums.chunks_exact(head_size)) {
                let start = segment.key_row(key) * stride + column;
                // SAFETY: each task has its own rows and columns.
                unsafe { gradient.slice(start, head_size) }.copy_from_slice(sums);
            }
        }
    }

    /// `dq` of one tile of queries of one head.
    pub fn query_tile(
        &self,
        segment: &Segment,
        tile: usize,
        head: usize,
        scratch: &mut Scratch<'_>,
        dq: &Shared<f32>,
    ) {
        let inputs = &self.inputs;
        let AttentionShape { head_size, scale, .. } = inputs.shape;
        let (kv_head, products) = (inputs.kv_head(head), &inputs.products);
        let first = tile * QUERIES;
        let queries = first..(first + QUERIES).min(segment.n_queries as usize);
        self.pack_queries(segment, &queries, head, scratch);
        scratch.sums[0][..queries.len() * head_size].fill(0.0);
        let visible = inputs.visible_to_any(segment, &queries);
        for start in visible.clone().step_by(KEYS) {
            let keys = start..(start + KEYS).min(visible.end);
            self.pack_keys(segment, &keys, kv_head, scratch);
            self.scores(segment, (&queries, &keys), head, scratch);
            let weights = Operand::f32(scratch.dscores, Layout::Depth, KEYS);
            products.pack_a(weights, queries.len(), keys.len(), scratch.weights);
            let rows = inputs.keys(inputs.k, segment.key_row(start), kv_head, Layout::Lanes);
            products.pack_b(rows, head_size, keys.len(), scratch.weighed);
            let packed = (&*scratch.weights, &*scratch.weighed);
            inputs.add_weighed((queries.len(), keys.len()), scale, packed, scratch.sums[0]);
        }
        let row = segment.query_start as usize + first;
        for (i, sums) in (0..queries.len()).zip(scratch.sums[0].chunks_exact(head_size)) {
            let start = (row + i) * inputs.query_stride() + head * head_size;
            // SAFETY: each task has its own rows and columns.
            unsafe { dq.slice(start, head_size) }.copy_from_slice(sums);
        }
    }
}
