//! The forward half for so few queries, as in writing text, that packing keys would cost more than it
//! saves: each key and value is read once where it lies.

use super::{
    super::{AttentionShape, Segment},
    forward::Forward,
    tile::{Inputs, lines, split},
};
use crate::{
    Compute,
    cpu::{
        float::Float,
        gemm::Values,
        math::{dot, exp, for_each_isa, sum},
    },
};

/// The most queries that are few.
const FEW_QUERIES: usize = 2;

/// Keys handled at a time.
const KEYS: usize = 128;

/// Scores handled at a time; divides [`KEYS`].
const LANES: usize = 16;

pub(super) fn is_few(segment: &Segment) -> bool {
    segment.n_queries as usize <= FEW_QUERIES
}

/// Scores, a query as the products see it, and sums of values.
fn scratch_parts(head_size: usize) -> [usize; 3] {
    lines([KEYS, head_size, head_size])
}

/// Elements of one thread's scratch.
pub(super) fn scratch_len(head_size: usize) -> usize {
    scratch_parts(head_size).iter().sum()
}

/// The output of a segment's queries of one head.
pub(super) fn attend(forward: &Forward<'_>, segment: &Segment, head: usize, scratch: &mut [u32]) {
    match (forward.inputs.k, forward.inputs.v) {
        (Values::F32(k), Values::F32(v)) => attend_to(forward, segment, head, (k, v), scratch),
        (Values::Bf16(k), Values::Bf16(v)) => attend_to(forward, segment, head, (k, v), scratch),
        _ => panic!("keys and values in different formats"),
    }
}

fn attend_to<T: Float>(
    forward: &Forward<'_>,
    segment: &Segment,
    head: usize,
    (k, v): (&[T], &[T]),
    scratch: &mut [u32],
) {
    let inputs = &forward.inputs;
    let Inputs { isa, compute, q, .. } = *inputs;
    let AttentionShape { head_size, n_heads, scale, .. } = inputs.shape;
    let (query_stride, stride) = (inputs.query_stride(), inputs.key_stride());
    let column = head / inputs.group() * head_size;
    let parts = split(scratch, scratch_parts(head_size));
    let [scores, query_row, sums] = parts.map(bytemuck::cast_slice_mut);
    let (query_row, sums) = (&mut query_row[..head_size], &mut sums[..head_size]);
    for query in 0..segment.n_queries as usize {
        let row = segment.query_start as usize + query;
        let at = row * query_stride + head * head_size;
        let mut running = [f32::NEG_INFINITY, 0.0];
        sums.fill(0.0);
        q.fill(isa, compute, at, query_row);
        let visible = inputs.visible(segment, &(query..query + 1));
        for key in visible.clone().step_by(KEYS) {
            let n = KEYS.min(visible.end - key);
            let start = segment.key_row(key) * stride + column;
            let scores_of_keys = &mut scores[..n];
            scores_of_one(isa, compute, query_row, &k[start..], stride, scale, scores_of_keys);
            scores[n..n.next_multiple_of(LANES)].fill(f32::NEG_INFINITY);
            soften(isa, &mut scores[..n.next_multiple_of(LANES)], &mut running, sums);
            add_weighed_rows(isa, compute, &scores[..n], &v[start..], stride, sums);
        }
        let [highest, total] = running;
        for sum in &mut *sums {
            *sum /= total;
        }
        // SAFETY: each task has its own rows and columns.
        unsafe { forward.out.store(isa, at, sums) };
        // SAFETY: as above.
        let log_sum_exp = unsafe { forward.log_sum_exp.slice(row * n_heads + head, 1) };
        log_sum_exp[0] = highest + total.ln();
    }
}

for_each_isa! {
    /// Scores of one query into its running softmax: `s` becomes `exp(s − highest)`, and the sums
    /// of the values fade accordingly.
    fn soften(scores: &mut [f32], running: &mut [f32; 2], sums: &mut [f32]) {
        let scores = scores.as_chunks_mut::<LANES>().0;
        let [before, total] = *running;
        let mut most = [before; LANES];
        for scores in scores.iter() {
            for (most, score) in most.iter_mut().zip(scores) {
                *most = if score > most { *score } else { *most };
            }
        }
        let highest = most.iter().fold(before, |a, b| a.max(*b));
        let mut added = [0.0_f32; LANES];
        for scores in scores {
            for (score, added) in scores.iter_mut().zip(&mut added) {
                *score = exp::<FUSED>(*score - highest);
                *added += *score;
            }
        }
        let faded = exp::<FUSED>(before - highest);
        if faded != 1.0 {
            for value in sums {
                *value *= faded;
            }
        }
        *running = [highest, total * faded + added.iter().sum::<f32>()];
    }
}

for_each_isa! {
    /// Scores of one query, as the products see it, with some keys, `stride` apart.
    fn scores_of_one<T: Float>(
        compute: Compute,
        query: &[f32],
        keys: &[T],
        stride: usize,
        scale: f32,
        scores: &mut [f32],
    ) {
        for (score, key) in scores.iter_mut().zip(keys.chunks(stride)) {
            let key = &key[..query.len()];
            *score = scale * match compute {
                Compute::F32 => dot(query, key),
                Compute::Bf16 => sum(query.len(), |d| query[d] * key[d].seen(Compute::Bf16)),
            };
        }
    }
}

for_each_isa! {
    /// `sums += Σ_j weights[j] · values[j, :]`, rows `stride` apart.
    fn add_weighed_rows<T: Float>(
        compute: Compute,
        weights: &[f32],
        values: &[T],
        stride: usize,
        sums: &mut [f32],
    ) {
        for (weight, values) in weights.iter().zip(values.chunks(stride)) {
            let weight = weight.seen(compute);
            let values = values[..sums.len()].iter();
            match compute {
                Compute::F32 => {
                    sums.iter_mut().zip(values).for_each(|(s, v)| *s += weight * v.widen());
                }
                Compute::Bf16 => sums.iter_mut().zip(values).for_each(|(s, v)| {
                    *s += weight * v.seen(Compute::Bf16);
                }),
            }
        }
    }
}
