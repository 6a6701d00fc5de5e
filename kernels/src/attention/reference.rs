//! Attention as its formulas read, one score at a time.

use super::{AttentionShape, Segment};

/// Everything attention computes, for one arithmetic.
pub struct Attended {
    pub out: Vec<f64>,
    pub log_sum_exp: Vec<f64>,
    pub dq: Vec<f64>,
    pub dk: Vec<f64>,
    pub dv: Vec<f64>,
}

/// Forward and backward; every intermediate goes through `round`, and those that enter a product
/// through `operand`, so that one body serves as the exact reference (in f64) and as the plain
/// version of a narrower precision.
pub fn attend(
    shape: &AttentionShape,
    segments: &[Segment],
    [q, k, v, dout]: [&[f32]; 4],
    round: impl Fn(f64) -> f64,
    operand: impl Fn(f64) -> f64,
) -> Attended {
    let AttentionShape { n_rows, n_key_rows, n_heads, n_kv_heads, head_size, .. } = *shape;
    let (query_width, key_width) = (n_heads * head_size, n_kv_heads * head_size);
    let mut result = Attended {
        out: vec![0.0; n_rows * query_width],
        log_sum_exp: vec![0.0; n_rows * n_heads],
        dq: vec![0.0; n_rows * query_width],
        dk: vec![0.0; n_key_rows * key_width],
        dv: vec![0.0; n_key_rows * key_width],
    };
    let scale = f64::from(shape.scale);
    let dot = |a: &[f32], b: &[f32]| {
        a.iter().zip(b).fold(0.0, |sum, (a, b)| round(sum + f64::from(*a) * f64::from(*b)))
    };
    for segment in segments {
        for i in 0..segment.n_queries as usize {
            let position = (segment.n_keys - segment.n_queries) as usize + i;
            let first = (position + 1).saturating_sub(shape.window.unwrap_or(usize::MAX));
            let row = segment.query_start as usize + i;
            for head in 0..n_heads {
                let at = row * query_width + head * head_size;
                let query = &q[at..at + head_size];
                let kv = head / (n_heads / n_kv_heads) * head_size;
                let key_at = |j: usize| (segment.key_start as usize + j) * key_width + kv;
                let rows = |matrix, j| {
                    let matrix: &[f32] = matrix;
                    matrix[key_at(j)..key_at(j) + head_size].to_vec()
                };
                let scores: Vec<f64> =
                    (first..=position).map(|j| round(scale * dot(query, &rows(k, j)))).collect();
                let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let total = scores.iter().fold(0.0, |sum, s| round(sum + round((s - most).exp())));
                let lse = round(most + total.ln());
                result.log_sum_exp[row * n_heads + head] = lse;
                let p: Vec<f64> = scores.iter().map(|s| round((s - lse).exp())).collect();
                let out = &mut result.out[at..at + head_size];
                for (j, p) in (first..=position).zip(&p) {
                    for (out, v) in out.iter_mut().zip(rows(v, j)) {
                        *out = round(*out + operand(*p) * f64::from(v));
                    }
                }
                let dout = &dout[at..at + head_size];
                let delta =
                    dout.iter().zip(&*out).fold(0.0, |sum, (d, o)| round(sum + f64::from(*d) * o));
                for (j, p) in (first..=position).zip(&p) {
                    let ds = operand(round(p * (dot(dout, &rows(v, j)) - delta)));
                    let ds = round(ds * scale);
                    for d in 0..head_size {
                        let (key, dv) = (f64::from(k[key_at(j) + d]), f64::from(dout[d]));
                        let dq = &mut result.dq[at + d];
                        *dq = round(*dq + ds * key);
                        let dk = &mut result.dk[key_at(j) + d];
                        *dk = round(*dk + ds * f64::from(query[d]));
                        let sum = &mut result.dv[key_at(j) + d];
                        *sum = round(*sum + operand(*p) * dv);
                    }
                }
            }
        }
    }
    result
}
