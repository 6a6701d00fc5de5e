//! Attention on the processor: tiles of queries against tiles of keys, multiplied as the linear
//! layers are, in bf16 or f32; everything between the products in f32.
//!
//! In the backward pass a task is one head of queries, so that every score is made once and `dq` is
//! one task's sum in a fixed order. Heads that share keys and values leave what each adds to their
//! gradients apart, to be added up in order. A single sequence keeps no more cores busy than it has
//! heads.

mod backward;
mod tile;

use std::ops::Range;

use super::{Attention, AttentionShape, Segment};
use crate::{
    Compute, Cpu, Store,
    cpu::{
        gemm::{Layout, Operand, bf16_bits},
        math::{dot, for_each_isa},
        parallel::{Shared, for_each_part},
    },
    memory::DeviceSlice,
};
use backward::Gradient;
pub(super) use tile::scratch_len;
use tile::{Inputs, KEYS, QUERIES, Scratch, products, soften};

/// A segment and one of its tiles of queries, found by the index of the task.
fn query_tile_of(segments: &[Segment], mut task: usize) -> Option<(Segment, usize)> {
    for segment in segments {
        let n = segment.query_tiles();
        if task < n {
            return Some((*segment, task));
        }
        task -= n;
    }
    None
}

/// Elements of `delta`, up to a whole cache line.
pub(super) fn delta_len(shape: &AttentionShape) -> usize {
    shape.n_rows.saturating_mul(shape.n_heads).div_ceil(16).saturating_mul(16)
}

/// Elements of what each head adds to `dk` and `dv`, where heads share them.
pub(super) fn parts_len(shape: &AttentionShape) -> usize {
    if shape.n_heads == shape.n_kv_heads {
        return 0;
    }
    let width = shape.n_heads.saturating_mul(shape.head_size);
    shape.n_key_rows.saturating_mul(width).div_ceil(16).saturating_mul(16).saturating_mul(2)
}

impl Cpu {
    /// The scratch of `thread`, out of that of all.
    ///
    /// # Safety
    /// The memory must outlive the task, and the thread have no other scratch.
    unsafe fn scratch<'a>(
        memory: &'a Shared<u32>,
        thread: usize,
        inputs: &Inputs<'_>,
    ) -> Scratch<'a> {
        let head_size = inputs.shape.head_size;
        let len = Scratch::len(&inputs.products, head_size);
        // SAFETY: a thread runs one task at a time, and has a part of its own.
        let memory = unsafe { memory.slice(thread * len, len) };
        Scratch::new(memory, &inputs.products, head_size)
    }
}

impl Attention for Cpu {
    fn attention(
        &mut self,
        shape: AttentionShape,
        segments: DeviceSlice<Segment>,
        q: DeviceSlice<f32>,
        k: DeviceSlice<f32>,
        v: DeviceSlice<f32>,
        out: DeviceSlice<f32>,
        log_sum_exp: DeviceSlice<f32>,
        workspace: DeviceSlice<u8>,
    ) {
        let (isa, compute) = (self.isa(), self.compute());
        let products = products(isa, compute);
        let mut access = self.access("attention");
        let segments = access.read(segments);
        let (q, k, v) = (access.read(q), access.read(k), access.read(v));
        let inputs = Inputs { isa, compute, products, shape, q, k, v };
        // Scores, and what they weigh.
        access.count_flops(|| 2.0 * inputs.product_flops(segments));
        let out = &mut access.write(out)[..shape.n_rows * inputs.query_stride()];
        let log_sum_exp = &mut access.write(log_sum_exp)[..shape.n_rows * shape.n_heads];
        out.fill(0.0);
        log_sum_exp.fill(0.0);
        let (out, log_sum_exp) = (Shared::new(out), Shared::new(log_sum_exp));
        let scratch = Shared::new(access.write(workspace.cast::<u32>()));

        let n_tiles: usize = segments.iter().map(Segment::query_tiles).sum();
        access.pool().run(n_tiles * shape.n_heads, |thread, task| {
            let head = task % shape.n_heads;
            // The last tiles see the most keys: they go first.
            let tile = n_tiles - 1 - task / shape.n_heads;
            let Some((segment, tile)) = query_tile_of(segments, tile) else {
                return;
            };
            // SAFETY: this task's only scratch.
            let mut scratch = unsafe { Cpu::scratch(&scratch, thread, &inputs) };
            forward_tile(&inputs, &segment, tile, head, &mut scratch, &out, &log_sum_exp);
        });
    }

    fn attention_backward(
        &mut self,
        shape: AttentionShape,
        segments: DeviceSlice<Segment>,
        q: DeviceSlice<f32>,
        k: DeviceSlice<f32>,
        v: DeviceSlice<f32>,
        out: DeviceSlice<f32>,
        log_sum_exp: DeviceSlice<f32>,
        dout: DeviceSlice<f32>,
        dq: DeviceSlice<f32>,
        dk: DeviceSlice<f32>,
        dv: DeviceSlice<f32>,
        workspace: DeviceSlice<u8>,
    ) {
        let (isa, compute) = (self.isa(), self.compute());
        let products = products(isa, compute);
        let mut access = self.access("attention backward");
        let segments = access.read(segments);
        let (q, k, v) = (access.read(q), access.read(k), access.read(v));
        let inputs = Inputs { isa, compute, products, shape, q, k, v };
        // Scores again, and four gradients.
        access.count_flops(|| 5.0 * inputs.product_flops(segments));
        let (query_stride, key_stride) = (inputs.query_stride(), inputs.key_stride());
        let (out, dout) = (access.read(out), access.read(dout));
        let log_sum_exp = access.read(log_sum_exp);
        let dq = &mut access.write(dq)[..shape.n_rows * query_stride];
        let dk = &mut access.write(dk)[..shape.n_key_rows * key_stride];
        let dv = &mut access.write(dv)[..shape.n_key_rows * key_stride];
        for gradient in [&mut *dq, &mut *dk, &mut *dv] {
            gradient.fill(0.0);
        }
        let workspace = access.write(workspace.cast::<u32>());
        let (delta, scratch) = workspace.split_at_mut(delta_len(&shape));
        let delta = &mut bytemuck::cast_slice_mut(delta)[..shape.n_rows * shape.n_heads];
        let head_size = shape.head_size;
        for_each_part(access.pool(), &mut *delta, shape.n_heads, |row, delta| {
            let row = row * query_stride..(row + 1) * query_stride;
            row_deltas(isa, compute, &dout[row.clone()], &out[row], head_size, delta);
        });
        let gradient = Gradient { inputs, dout, log_sum_exp, delta };
        let group = shape.n_heads / shape.n_kv_heads;
        let (parts, scratch) = scratch.split_at_mut(parts_len(&shape));
        let parts: &mut [f32] = bytemuck::cast_slice_mut(parts);
        let dq = Shared::new(dq);
        let scratch = Shared::new(scratch);
        let each_head = |dk: &Shared<f32>, dv: &Shared<f32>| {
            access.pool().run(segments.len() * shape.n_heads, |thread, task| {
                let (segment, head) = (&segments[task / shape.n_heads], task % shape.n_heads);
                // SAFETY: this task's only scratch.
                let mut scratch = unsafe { Cpu::scratch(&scratch, thread, &inputs) };
                gradient.head(segment, head, &mut scratch, [&dq, dk, dv]);
            });
        };
        if group == 1 {
            each_head(&Shared::new(dk), &Shared::new(dv));
            return;
        }
        let (dk_parts, dv_parts) = parts.split_at_mut(parts.len() / 2);
        each_head(&Shared::new(dk_parts), &Shared::new(dv_parts));
        // Rows outside of every segment have no parts, and stay zero.
        for segment in segments {
            let first = segment.key_row(0);
            let rows = first * key_stride..(first + segment.n_keys as usize) * key_stride;
            let sums = (&mut dk[rows.clone()], &mut dv[rows]);
            for_each_part(access.pool(), sums, key_stride, |row, (dk, dv)| {
                let row = (first + row) * query_stride..(first + row + 1) * query_stride;
                add_heads(isa, group * head_size, head_size, &dk_parts[row.clone()], dk);
                add_heads(isa, group * head_size, head_size, &dv_parts[row], dv);
            });
        }
    }
}

for_each_isa! {
    /// A row of sums over the heads of each group, of what each head has for it.
    fn add_heads(group_width: usize, head_size: usize, parts: &[f32], sums: &mut [f32]) {
        let groups = parts.chunks_exact(group_width).zip(sums.chunks_exact_mut(head_size));
        for (parts, sums) in groups {
            for part in parts.chunks_exact(head_size) {
                for (sum, part) in sums.iter_mut().zip(part) {
                    *sum += part;
                }
            }
        }
    }
}

/// A value as the products see it.
#[inline(always)]
fn seen(compute: Compute, value: f32) -> f32 {
    match compute {
        Compute::F32 => value,
        Compute::Bf16 => f32::from_bits(bf16_bits(value) << 16),
    }
}

for_each_isa! {
    /// `delta` of every head of a row. `dout` is rounded as in the products, so that the gradients
    /// of a query's scores still add up to zero.
    fn row_deltas(
        compute: Compute,
        dout: &[f32],
        out: &[f32],
        head_size: usize,
        delta: &mut [f32],
    ) {
        let heads = dout.chunks_exact(head_size).zip(out.chunks_exact(head_size));
        for (delta, (dout, out)) in delta.iter_mut().zip(heads) {
            *delta = match compute {
                Compute::F32 => dot(dout, out),
                Compute::Bf16 => crate::cpu::math::sum(head_size, |d| {
                    seen(Compute::Bf16, dout[d]) * out[d]
                }),
            };
        }
    }
}

for_each_isa! {
    /// Scores of one query with some keys, `stride` apart.
    fn scores_of_one(
        compute: Compute,
        query: &[f32],
        keys: &[f32],
        stride: usize,
        scale: f32,
        scores: &mut [f32],
    ) {
        for (score, key) in scores.iter_mut().zip(keys.chunks(stride)) {
            let key = &key[..query.len()];
            *score = scale * match compute {
                Compute::F32 => dot(query, key),
                Compute::Bf16 => crate::cpu::math::sum(query.len(), |d| {
                    seen(Compute::Bf16, query[d]) * seen(Compute::Bf16, key[d])
                }),
            };
        }
    }
}

for_each_isa! {
    /// `sums += Σ_j weights[j] · values[j, :]`, rows `stride` apart.
    fn add_weighed_rows(
        compute: Compute,
        weights: &[f32],
        values: &[f32],
        stride: usize,
        sums: &mut [f32],
    ) {
        for (weight, values) in weights.iter().zip(values.chunks(stride)) {
            let weight = seen(compute, *weight);
            let values = values[..sums.len()].iter();
            match compute {
                Compute::F32 => sums.iter_mut().zip(values).for_each(|(s, v)| *s += weight * v),
                Compute::Bf16 => sums.iter_mut().zip(values).for_each(|(s, v)| {
                    *s += weight * seen(Compute::Bf16, *v);
                }),
            }
        }
    }
}

/// The most queries for which packing a tile of keys costs more than it saves, as in writing text.
const FEW_QUERIES: usize = 2;

/// The output of one tile of queries of one head.
fn forward_tile(
    inputs: &Inputs<'_>,
    segment: &Segment,
    tile: usize,
    head: usize,
    scratch: &mut Scratch<'_>,
    out: &Shared<f32>,
    log_sum_exp: &Shared<f32>,
) {
    let AttentionShape { head_size, n_heads, .. } = inputs.shape;
    let query_stride = inputs.query_stride();
    let first = tile * QUERIES;
    let queries = first..(first + QUERIES).min(segment.n_queries as usize);
    let row = segment.query_start as usize + first;
    let few = queries.len() <= FEW_QUERIES;
    if !few {
        let rows = inputs.queries(inputs.q, row, head, Layout::Depth);
        inputs.products.pack_a(rows, queries.len(), head_size, scratch.queries);
    }
    let mut running = [[f32::NEG_INFINITY, 0.0]; QUERIES];
    scratch.sums[0][..queries.len() * head_size].fill(0.0);
    let visible = inputs.visible_to_any(segment, &queries);
    for start in visible.clone().step_by(KEYS) {
        let keys = start..(start + KEYS).min(visible.end);
        if few {
            add_keys_to_few(inputs, segment, (&queries, head), &keys, scratch, &mut running);
        } else {
            add_keys(inputs, segment, (&queries, head), &keys, scratch, &mut running);
        }
    }
    let sums = scratch.sums[0].chunks_exact(head_size);
    for ((i, sums), [max, sum]) in (0..queries.len()).zip(sums).zip(running) {
        let start = (row + i) * query_stride + head * head_size;
        // SAFETY: each task has its own rows and columns.
        let out = unsafe { out.slice(start, head_size) };
        for (out, value) in out.iter_mut().zip(sums) {
            *out = value / sum;
        }
        // SAFETY: as above.
        let log_sum_exp = unsafe { log_sum_exp.slice((row + i) * n_heads + head, 1) };
        log_sum_exp[0] = max + sum.ln();
    }
}

/// Adds a tile of keys to the running softmax and the sums of a tile of queries.
fn add_keys(
    inputs: &Inputs<'_>,
    segment: &Segment,
    (queries, head): (&Range<usize>, usize),
    keys: &Range<usize>,
    scratch: &mut Scratch<'_>,
    running: &mut [[f32; 2]],
) {
    let AttentionShape { head_size, scale, .. } = inputs.shape;
    let (kv_head, key_row) = (inputs.kv_head(head), segment.key_row(keys.start));
    let (n_queries, n_keys) = (queries.len(), keys.len());
    let products = &inputs.products;
    let rows = inputs.keys(inputs.k, key_row, kv_head, Layout::Depth);
    products.pack_b(rows, n_keys, head_size, scratch.keys);
    let scores = &mut scratch.scores[..n_queries * KEYS];
    let packed = (&*scratch.queries, &*scratch.keys);
    inputs.products_of_pairs(segment, (queries, keys), scale, packed, scores);
    let n_lanes = inputs.hide(segment, (queries, keys), scores);
    let sums = &mut scratch.sums[0][..n_queries * head_size];
    soften(inputs.isa, scores, n_lanes, &mut running[..n_queries], sums);
    products.pack_a(Operand::f32(scores, Layout::Depth, KEYS), n_queries, n_keys, scratch.weights);
    let rows = inputs.keys(inputs.v, key_row, kv_head, Layout::Lanes);
    products.pack_b(rows, head_size, n_keys, scratch.weighed);
    let packed = (&*scratch.weights, &*scratch.weighed);
    inputs.weigh((n_queries, n_keys), 1.0, packed, Store::Accumulate, sums);
}

/// As [`add_keys`], each key and value read once where it lies.
fn add_keys_to_few(
    inputs: &Inputs<'_>,
    segment: &Segment,
    (queries, head): (&Range<usize>, usize),
    keys: &Range<usize>,
    scratch: &mut Scratch<'_>,
    running: &mut [[f32; 2]],
) {
    let Inputs { isa, compute, q, k, v, .. } = *inputs;
    let AttentionShape { head_size, scale, .. } = inputs.shape;
    let (query_stride, stride) = (inputs.query_stride(), inputs.key_stride());
    let start = segment.key_row(keys.start) * stride + inputs.kv_head(head) * head_size;
    let scores = &mut scratch.scores[..queries.len() * KEYS];
    let sums = &mut scratch.sums[0][..queries.len() * head_size];
    for (query, scores) in queries.clone().zip(scores.chunks_exact_mut(KEYS)) {
        let row = segment.query_start as usize + query;
        let query = &q[row * query_stride + head * head_size..][..head_size];
        scores_of_one(isa, compute, query, &k[start..], stride, scale, &mut scores[..keys.len()]);
    }
    let n_lanes = inputs.hide(segment, (queries, keys), scores);
    soften(isa, scores, n_lanes, &mut running[..queries.len()], sums);
    for (scores, sums) in scores.chunks_exact(KEYS).zip(sums.chunks_exact_mut(head_size)) {
        add_weighed_rows(isa, compute, &scores[..keys.len()], &v[start..], stride, sums);
    }
}
