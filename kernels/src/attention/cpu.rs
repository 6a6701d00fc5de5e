//! Attention on the processor: tiles of queries against tiles of keys, multiplied as the linear
//! layers are, in bf16 or f32; everything between the products in f32. What all heads and queries read
//! of the keys is packed once.
//!
//! In the backward pass a task is one head of queries, so that every score is made once and `dq` is
//! one task's sum in a fixed order. Heads that share keys and values leave what each adds to their
//! gradients apart, to be added up in order. A single sequence keeps no more cores busy than it has
//! heads.

mod backward;
mod few;
mod forward;
mod tile;

use std::{iter, ops::Range};

use super::{Attention, AttentionShape, Segment};
use crate::{
    Compute, Cpu, DeviceProfile, Isa,
    cpu::{
        float::Float,
        gemm::{TURNED_LANES, Target, TileProducts, Values, transpose},
        math::{dot, for_each_isa},
        parallel::{Shared, for_each_part, rows_per_task},
    },
    memory::{DeviceSlice, Element, Floats},
};
use backward::Backward;
use forward::Forward;
use tile::Inputs;

/// Elements of the workspace's parts, in order: packed keys, the threads' scratch, and in the backward
/// pass delta and what each head adds to `dk` and `dv` where heads share them.
struct Parts {
    keys: usize,
    scratch: usize,
    delta: usize,
    heads: usize,
}

impl Parts {
    fn new(
        products: &TileProducts,
        shape: &AttentionShape,
        n_threads: usize,
        backward: bool,
    ) -> Self {
        let head_size = shape.head_size;
        let (tiles, scratch) = if backward {
            (backward::key_tiles(products, head_size), backward::scratch_len(products, shape))
        } else {
            (forward::key_tiles(products, head_size), forward::scratch_len(products, head_size))
        };
        let line = |len: usize| len.div_ceil(16).saturating_mul(16);
        let width = shape.n_heads.saturating_mul(head_size);
        let of_heads = shape.n_key_rows.saturating_mul(width).saturating_mul(2);
        let shares = backward && shape.n_heads != shape.n_kv_heads;
        let rows = shape.n_rows.saturating_mul(shape.n_heads);
        Self {
            keys: tiles.memory_len(shape, n_threads),
            scratch: scratch.saturating_mul(n_threads),
            delta: if backward { line(rows) } else { 0 },
            heads: if shares { of_heads } else { 0 },
        }
    }

    fn end(&self) -> usize {
        let Self { keys, scratch, delta, heads } = *self;
        [scratch, delta, heads].into_iter().fold(keys, usize::saturating_add)
    }
}

/// Elements of a workspace.
pub(super) fn workspace_len(
    profile: &DeviceProfile,
    shape: &AttentionShape,
    n_threads: usize,
    backward: bool,
) -> usize {
    let of = |backward| Parts::new(&Inputs::products_on(profile), shape, n_threads, backward).end();
    if backward { of(true).max(of(false)) } else { of(false) }
}

/// Columns of sums, `stride` apart, to rows of each [`TURNED_LANES`] of them: `store(row, first, values)`
/// is given all that row `row` has from column `first` on.
fn turn_columns(
    isa: Isa,
    (sums, stride): (&[f32], usize),
    head_size: usize,
    n_rows: usize,
    turned: &mut [f32],
    store: impl Fn(usize, usize, &[f32]),
) {
    for first in (0..head_size).step_by(TURNED_LANES) {
        let n_lanes = TURNED_LANES.min(head_size - first);
        let columns = bytemuck::cast_slice(&sums[first * stride..]);
        let rows = bytemuck::cast_slice_mut(turned);
        transpose(isa, (columns, stride), n_lanes, n_rows, rows, TURNED_LANES);
        for (row, values) in turned.as_chunks::<TURNED_LANES>().0.iter().enumerate().take(n_rows) {
            store(row, first, &values[..n_lanes]);
        }
    }
}

/// Copies a few numbers, which a call would take longer for.
#[inline(always)]
fn copy(source: &[f32], target: &mut [f32]) {
    match (source.first_chunk::<TURNED_LANES>(), target.first_chunk_mut::<TURNED_LANES>()) {
        (Some(source), Some(target)) => *target = *source,
        _ => target.copy_from_slice(source),
    }
}

/// Sets the rows outside of all that will be `written` to zero, and maybe others.
fn clear_others<T: Element>(
    written: impl Iterator<Item = Range<usize>>,
    width: usize,
    values: &mut [T],
) {
    let n_rows = values.len() / width;
    let mut end = 0;
    for rows in written.chain(iter::once(n_rows..n_rows)) {
        if rows.start > end {
            values[end * width..rows.start * width].fill(T::zeroed());
        }
        end = end.max(rows.end);
    }
}

impl Attention for Cpu {
    fn attention(
        &mut self,
        shape: AttentionShape,
        segments: DeviceSlice<Segment>,
        q: Floats,
        k: Floats,
        v: Floats,
        out: Floats,
        log_sum_exp: DeviceSlice<f32>,
        workspace: DeviceSlice<u8>,
    ) {
        let (isa, compute, n_threads) = (self.isa(), self.compute(), self.n_threads());
        let products = TileProducts::new(isa, compute);
        let mut access = self.access("attention");
        let segments = access.read(segments);
        let [q, k, v] = [q, k, v].map(|matrix| access.read_floats(matrix));
        let inputs = Inputs { isa, compute, products, shape, q, k, v };
        // Scores, and what they weigh.
        access.count_flops(|| 2.0 * inputs.product_flops(segments));
        let mut out = access.write_floats(out.first(shape.n_rows * inputs.query_stride()));
        let log_sum_exp = &mut access.write(log_sum_exp)[..shape.n_rows * shape.n_heads];
        let written = segments.iter().map(Segment::query_rows);
        match &mut out {
            Target::F32(out) => clear_others(written, inputs.query_stride(), out),
            Target::Bf16(out) => clear_others(written, inputs.query_stride(), out),
        }
        log_sum_exp.fill(0.0);
        let parts = Parts::new(&products, &shape, n_threads, false);
        let workspace = access.write(workspace.cast::<u32>());
        let (packed, scratch) = workspace.split_at_mut(parts.keys);
        let scratch = Shared::new(&mut scratch[..parts.scratch]);
        let tiles = forward::key_tiles(&products, shape.head_size);
        let (out, log_sum_exp) = (out.share(), Shared::new(log_sum_exp));
        let forward = Forward { inputs, tiles, out, log_sum_exp };
        let count = |segment: &Segment| forward.key_tiles_of(segment);
        for batch in tiles.batches(&shape, n_threads, segments, count) {
            forward.run(access.pool(), &batch, packed, &scratch);
        }
    }

    fn attention_backward(
        &mut self,
        shape: AttentionShape,
        segments: DeviceSlice<Segment>,
        q: Floats,
        k: Floats,
        v: Floats,
        out: Floats,
        log_sum_exp: DeviceSlice<f32>,
        dout: DeviceSlice<f32>,
        dq: DeviceSlice<f32>,
        dk: DeviceSlice<f32>,
        dv: DeviceSlice<f32>,
        workspace: DeviceSlice<u8>,
    ) {
        let (isa, compute, n_threads) = (self.isa(), self.compute(), self.n_threads());
        let products = TileProducts::new(isa, compute);
        let mut access = self.access("attention backward");
        let segments = access.read(segments);
        let [q, k, v] = [q, k, v].map(|matrix| access.read_floats(matrix));
        let inputs = Inputs { isa, compute, products, shape, q, k, v };
        // Scores again, and four gradients.
        access.count_flops(|| 5.0 * inputs.product_flops(segments));
        let (query_stride, key_stride) = (inputs.query_stride(), inputs.key_stride());
        let (out, dout) = (access.read_floats(out), access.read(dout));
        let log_sum_exp = access.read(log_sum_exp);
        let dq = &mut access.write(dq)[..shape.n_rows * query_stride];
        let dk = &mut access.write(dk)[..shape.n_key_rows * key_stride];
        let dv = &mut access.write(dv)[..shape.n_key_rows * key_stride];
        clear_others(segments.iter().map(Segment::query_rows), query_stride, dq);
        for gradient in [&mut *dk, &mut *dv] {
            clear_others(segments.iter().map(Segment::key_rows), key_stride, gradient);
        }
        let parts = Parts::new(&products, &shape, n_threads, true);
        let workspace = access.write(workspace.cast::<u32>());
        let (packed, rest) = workspace.split_at_mut(parts.keys);
        let (scratch, rest) = rest.split_at_mut(parts.scratch);
        let (delta, of_heads) = rest.split_at_mut(parts.delta);
        let delta = &mut bytemuck::cast_slice_mut(delta)[..shape.n_rows * shape.n_heads];
        let head_size = shape.head_size;
        let rows_at_once = rows_per_task(query_stride);
        for_each_part(access.pool(), &mut *delta, rows_at_once * shape.n_heads, |task, delta| {
            let first = task * rows_at_once;
            let rows = first * query_stride..(first + delta.len() / shape.n_heads) * query_stride;
            let dout = &dout[rows.clone()];
            match out {
                Values::Bf16(out) => row_deltas(isa, compute, dout, &out[rows], head_size, delta),
                Values::F32(out) => row_deltas(isa, compute, dout, &out[rows], head_size, delta),
                _ => unreachable!("an activation is in f32 or in bf16"),
            }
        });
        let of_heads: &mut [f32] = bytemuck::cast_slice_mut(&mut of_heads[..parts.heads]);
        let (dk_of_heads, dv_of_heads) = of_heads.split_at_mut(parts.heads / 2);
        let group = inputs.group();
        let gradients = if group == 1 {
            [Shared::new(dk), Shared::new(dv)]
        } else {
            [Shared::new(dk_of_heads), Shared::new(dv_of_heads)]
        };
        let tiles = backward::key_tiles(&products, head_size);
        let (scratch, dq) = (Shared::new(scratch), Shared::new(dq));
        let [dk_sums, dv_sums] = gradients;
        let backward =
            Backward { inputs, tiles, dout, log_sum_exp, delta, dq, dk: dk_sums, dv: dv_sums };
        let count = |segment: &Segment| backward.key_tiles_of(segment);
        for batch in tiles.batches(&shape, n_threads, segments, count) {
            backward.run(access.pool(), &batch, packed, &scratch);
        }
        if group == 1 {
            return;
        }
        // Rows outside of every segment have no parts.
        for segment in segments {
            let keys = segment.key_rows();
            let rows = keys.start * key_stride..keys.end * key_stride;
            let sums = (&mut dk[rows.clone()], &mut dv[rows]);
            for_each_part(access.pool(), sums, rows_at_once * key_stride, |task, (dk, dv)| {
                let first = keys.start + task * rows_at_once;
                let end = first + dk.len() / key_stride;
                let rows = first * query_stride..end * query_stride;
                add_heads(isa, group * head_size, head_size, &dk_of_heads[rows.clone()], dk);
                add_heads(isa, group * head_size, head_size, &dv_of_heads[rows], dv);
            });
        }
    }
}

for_each_isa! {
    /// Rows of sums over the heads of each group, of what each head has for them.
    fn add_heads(group_width: usize, head_size: usize, parts: &[f32], sums: &mut [f32]) {
        let groups = parts.chunks_exact(group_width).zip(sums.chunks_exact_mut(head_size));
        for (parts, sums) in groups {
            let (first, others) = parts.split_at(head_size);
            sums.copy_from_slice(first);
            for part in others.chunks_exact(head_size) {
                for (sum, part) in sums.iter_mut().zip(part) {
                    *sum += part;
                }
            }
        }
    }
}

for_each_isa! {
    /// `delta` of every head of some rows. `dout` is rounded as in the products, so that the gradients
    /// of a query's scores still add up to zero.
    fn row_deltas<T: Float>(
        compute: Compute,
        dout: &[f32],
        out: &[T],
        head_size: usize,
        delta: &mut [f32],
    ) {
        /// Elements that are rounded at a time.
        const RUN: usize = 64;
        let heads = dout.chunks_exact(head_size).zip(out.chunks_exact(head_size));
        for (delta, (dout, out)) in delta.iter_mut().zip(heads) {
            *delta = 0.0;
            for (dout, out) in dout.chunks(RUN).zip(out.chunks(RUN)) {
                let (mut rounded, mut widened) = ([0.0; RUN], [0.0; RUN]);
                for (rounded, value) in rounded.iter_mut().zip(dout) {
                    *rounded = value.seen(compute);
                }
                for (widened, value) in widened.iter_mut().zip(out) {
                    *widened = value.widen();
                }
                *delta += dot(&rounded[..dout.len()], &widened[..out.len()]);
            }
        }
    }
}
