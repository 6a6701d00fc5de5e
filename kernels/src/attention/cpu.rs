//! Attention on the processor: tiles of queries against tiles of keys, in f32.
//!
//! The backward pass runs twice over the scores, once by tiles of keys for `dk` and `dv` and once
//! by tiles of queries for `dq`: each result is then one task's sum in a fixed order, and a single
//! long sequence still keeps every core busy.

use std::ops::Range;

use super::{Attention, AttentionShape, Segment};
use crate::{
    Cpu, Isa,
    cpu::{
        math::{dot, exp, for_each_isa},
        parallel::{Shared, for_each_task},
    },
    memory::DeviceSlice,
};

/// Queries of a tile.
pub(super) const QUERIES: usize = 32;
/// Keys of a tile: with K = 128, four tiles of queries, keys, values and scores fit a core's
/// second-level cache many times over, and one of each its first.
pub(super) const KEYS: usize = 64;

for_each_isa! {
    /// `c[i, j] += Σ_k a[i·row + k·step] · b[k, j]` for `i < m`, `j < n`.
    fn add_product(
        extents: (usize, usize, usize),
        a: &[f32],
        a_strides: (usize, usize),
        b: &[f32],
        b_stride: usize,
        c: &mut [f32],
        c_stride: usize,
    ) {
        const ROWS: usize = 4;
        const COLUMNS: usize = 32;
        let ((m, n, depth), (a_row, a_step)) = (extents, a_strides);
        let mut i = 0;
        while i < m {
            let rows = ROWS.min(m - i);
            let mut j = 0;
            while j < n {
                let columns = COLUMNS.min(n - j);
                if rows == ROWS && columns == COLUMNS {
                    let mut sums = [[0.0_f32; COLUMNS]; ROWS];
                    for k in 0..depth {
                        let b = &b[k * b_stride + j..k * b_stride + j + COLUMNS];
                        for (r, sums) in sums.iter_mut().enumerate() {
                            let a = a[(i + r) * a_row + k * a_step];
                            for (sum, b) in sums.iter_mut().zip(b) {
                                *sum += a * b;
                            }
                        }
                    }
                    for (r, sums) in sums.iter().enumerate() {
                        let start = (i + r) * c_stride + j;
                        for (c, sum) in c[start..start + COLUMNS].iter_mut().zip(sums) {
                            *c += sum;
                        }
                    }
                } else {
                    for r in i..i + rows {
                        let mut sums = [0.0_f32; COLUMNS];
                        for k in 0..depth {
                            let a = a[r * a_row + k * a_step];
                            let b = &b[k * b_stride + j..k * b_stride + j + columns];
                            for (sum, b) in sums.iter_mut().zip(b) {
                                *sum += a * b;
                            }
                        }
                        let start = r * c_stride + j;
                        for (c, sum) in c[start..start + columns].iter_mut().zip(&sums) {
                            *c += sum;
                        }
                    }
                }
                j += columns;
            }
            i += rows;
        }
    }
}

for_each_isa! {
    /// One row of scores into the running softmax: the row becomes `exp(s − max)`.
    fn soften(scores: &mut [f32], running: &mut [f32; 2], out: &mut [f32]) {
        let [max, sum] = *running;
        let mut highest = max;
        for &score in scores.iter() {
            highest = highest.max(score);
        }
        if highest == f32::NEG_INFINITY {
            // Nothing visible yet.
            scores.fill(0.0);
            return;
        }
        let faded = exp(max - highest);
        let mut total = 0.0;
        for score in scores.iter_mut() {
            *score = exp(*score - highest);
            total += *score;
        }
        for value in out.iter_mut() {
            *value *= faded;
        }
        *running = [highest, sum * faded + total];
    }
}

for_each_isa! {
    /// Scores to probabilities, and `dp` to the gradient of the scores, times `scale`.
    fn score_gradients(
        scores: &mut [f32],
        dp: &mut [f32],
        log_sum_exp: f32,
        delta: f32,
        scale: f32,
    ) {
        for (score, dp) in scores.iter_mut().zip(dp) {
            *score = exp(*score - log_sum_exp);
            *dp = *score * (*dp - delta) * scale;
        }
    }
}

/// Copies `n` rows of a head into `out`, `[n, width]`.
fn gather(matrix: &[f32], stride: usize, first_row: usize, column: usize, out: &mut [f32], width: usize) {
    for (i, out) in out.chunks_exact_mut(width).enumerate() {
        let start = (first_row + i) * stride + column;
        out.copy_from_slice(&matrix[start..start + width]);
    }
}

/// Copies `n` rows of a head into `out` turned, `[width, KEYS]`.
fn gather_turned(
    matrix: &[f32],
    stride: usize,
    rows: Range<usize>,
    column: usize,
    out: &mut [f32],
    width: usize,
) {
    for (j, row) in rows.enumerate() {
        let values = &matrix[row * stride + column..row * stride + column + width];
        for (d, value) in values.iter().enumerate() {
            out[d * KEYS + j] = *value;
        }
    }
}

/// A segment, with its number of tiles of either kind found by the task's index.
fn tile_of(
    segments: &[Segment],
    mut task: usize,
    n_tiles: impl Fn(&Segment) -> usize,
) -> Option<(Segment, usize)> {
    for segment in segments {
        let n = n_tiles(segment);
        if task < n {
            return Some((*segment, task));
        }
        task -= n;
    }
    None
}

impl Segment {
    /// The key that query `i` sits at.
    fn position(&self, i: usize) -> usize {
        self.n_keys as usize - self.n_queries as usize + i
    }

    fn query_tiles(&self) -> usize {
        (self.n_queries as usize).div_ceil(QUERIES)
    }

    fn key_tiles(&self) -> usize {
        (self.n_keys as usize).div_ceil(KEYS)
    }
}

/// The head-size buffers of one tile.
struct Scratch<'a> {
    queries: &'a mut [f32],
    out: &'a mut [f32],
    turned_keys: &'a mut [f32],
    turned_values: &'a mut [f32],
    scores: &'a mut [f32],
    dscores: &'a mut [f32],
    keys: &'a mut [f32],
    values: &'a mut [f32],
}

/// Elements of one thread's scratch.
pub(super) fn scratch_len(head_size: usize) -> usize {
    2 * QUERIES * head_size + 4 * KEYS * head_size + 2 * QUERIES * KEYS
}

impl<'a> Scratch<'a> {
    fn new(memory: &'a mut [f32], head_size: usize) -> Self {
        let (queries, rest) = memory.split_at_mut(QUERIES * head_size);
        let (out, rest) = rest.split_at_mut(QUERIES * head_size);
        let (turned_keys, rest) = rest.split_at_mut(KEYS * head_size);
        let (turned_values, rest) = rest.split_at_mut(KEYS * head_size);
        let (keys, rest) = rest.split_at_mut(KEYS * head_size);
        let (values, rest) = rest.split_at_mut(KEYS * head_size);
        let (scores, rest) = rest.split_at_mut(QUERIES * KEYS);
        let dscores = &mut rest[..QUERIES * KEYS];
        Self { queries, out, turned_keys, turned_values, scores, dscores, keys, values }
    }
}

/// What every tile of an attention reads.
#[derive(Clone, Copy)]
struct Inputs<'a> {
    isa: Isa,
    shape: AttentionShape,
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
}

impl Inputs<'_> {
    fn query_stride(&self) -> usize {
        self.shape.n_heads * self.shape.head_size
    }

    fn key_stride(&self) -> usize {
        self.shape.n_kv_heads * self.shape.head_size
    }

    fn kv_head(&self, head: usize) -> usize {
        head / (self.shape.n_heads / self.shape.n_kv_heads)
    }

    /// Keys that any of the queries `first..first + n` sees, from the start of a tile on.
    fn visible_keys(&self, segment: &Segment, first: usize, n: usize) -> Range<usize> {
        let end = segment.position(first + n - 1) + 1;
        let window = self.shape.window.unwrap_or(usize::MAX);
        let start = (segment.position(first) + 1).saturating_sub(window);
        start / KEYS * KEYS..end
    }

    /// Scores of a tile, those of hidden keys at −∞. `turned_keys` holds the keys.
    fn scores(
        &self,
        segment: &Segment,
        (first_query, queries): (usize, &[f32]),
        keys: &Range<usize>,
        turned_keys: &[f32],
        scores: &mut [f32],
    ) {
        let head_size = self.shape.head_size;
        let n_queries = queries.len() / head_size;
        let scores = &mut scores[..n_queries * KEYS];
        scores.fill(0.0);
        let extents = (n_queries, keys.len(), head_size);
        let strides = (head_size, 1);
        add_product(self.isa, extents, queries, strides, turned_keys, KEYS, scores, KEYS);
        let window = self.shape.window.unwrap_or(usize::MAX);
        for (i, scores) in scores.chunks_exact_mut(KEYS).enumerate() {
            let position = segment.position(first_query + i);
            let start = (position + 1).saturating_sub(window);
            for (j, score) in scores.iter_mut().enumerate() {
                let key = keys.start + j;
                let visible = key <= position && key >= start && j < keys.len();
                *score = if visible { *score * self.shape.scale } else { f32::NEG_INFINITY };
            }
        }
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
        let isa = self.isa();
        let mut access = self.access();
        let segments = access.read(segments);
        let inputs =
            Inputs { isa, shape, q: access.read(q), k: access.read(k), v: access.read(v) };
        let out = &mut access.write(out)[..shape.n_rows * inputs.query_stride()];
        let log_sum_exp = &mut access.write(log_sum_exp)[..shape.n_rows * shape.n_heads];
        out.fill(0.0);
        log_sum_exp.fill(0.0);
        let (out, log_sum_exp) = (Shared::new(out), Shared::new(log_sum_exp));
        let scratch = Shared::new(access.write(workspace.cast::<f32>()));
        let scratch_len = scratch_len(shape.head_size);

        let n_tiles: usize = segments.iter().map(Segment::query_tiles).sum();
        for_each_task(access.pool(), n_tiles * shape.n_heads, |task| {
            let head = task % shape.n_heads;
            // The last tiles see the most keys: they go first.
            let tile = n_tiles - 1 - task / shape.n_heads;
            let Some((segment, tile)) = tile_of(segments, tile, Segment::query_tiles) else {
                return;
            };
            let thread = rayon::current_thread_index().unwrap_or(0);
            // SAFETY: a thread runs one task at a time, and has a part of its own.
            let scratch = unsafe { scratch.slice(thread * scratch_len, scratch_len) };
            let mut scratch = Scratch::new(scratch, shape.head_size);
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
        let isa = self.isa();
        let mut access = self.access();
        let segments = access.read(segments);
        let inputs =
            Inputs { isa, shape, q: access.read(q), k: access.read(k), v: access.read(v) };
        let (query_stride, key_stride) = (inputs.query_stride(), inputs.key_stride());
        let (out, dout) = (access.read(out), access.read(dout));
        let log_sum_exp = access.read(log_sum_exp);
        let dq = &mut access.write(dq)[..shape.n_rows * query_stride];
        let dk = &mut access.write(dk)[..shape.n_key_rows * key_stride];
        let dv = &mut access.write(dv)[..shape.n_key_rows * key_stride];
        for gradient in [&mut *dq, &mut *dk, &mut *dv] {
            gradient.fill(0.0);
        }
        let workspace = access.write(workspace.cast::<f32>());
        let (delta, scratch) = workspace.split_at_mut(shape.n_rows * shape.n_heads);
        let head_size = shape.head_size;
        crate::cpu::parallel::for_each_part(access.pool(), delta, shape.n_heads, |row, delta| {
            for (head, delta) in delta.iter_mut().enumerate() {
                let at = row * query_stride + head * head_size;
                *delta = dot(&dout[at..at + head_size], &out[at..at + head_size]);
            }
        });
        let gradient = Gradient { inputs, dout, log_sum_exp, delta };
        let (dq, dk, dv) = (Shared::new(dq), Shared::new(dk), Shared::new(dv));
        let scratch = Shared::new(scratch);
        let scratch_len = scratch_len(head_size);
        let thread_scratch = || {
            let thread = rayon::current_thread_index().unwrap_or(0);
            // SAFETY: a thread runs one task at a time, and has a part of its own.
            Scratch::new(unsafe { scratch.slice(thread * scratch_len, scratch_len) }, head_size)
        };

        let n_tiles: usize = segments.iter().map(Segment::key_tiles).sum();
        for_each_task(access.pool(), n_tiles * shape.n_kv_heads, |task| {
            let (head, tile) = (task % shape.n_kv_heads, task / shape.n_kv_heads);
            if let Some((segment, tile)) = tile_of(segments, tile, Segment::key_tiles) {
                gradient.key_tile(&segment, tile, head, &mut thread_scratch(), &dk, &dv);
            }
        });
        let n_tiles: usize = segments.iter().map(Segment::query_tiles).sum();
        for_each_task(access.pool(), n_tiles * shape.n_heads, |task| {
            let (head, tile) = (task % shape.n_heads, n_tiles - 1 - task / shape.n_heads);
            if let Some((segment, tile)) = tile_of(segments, tile, Segment::query_tiles) {
                gradient.query_tile(&segment, tile, head, &mut thread_scratch(), &dq);
            }
        });
    }
}

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
    let (query_stride, key_stride) = (inputs.query_stride(), inputs.key_stride());
    let first = tile * QUERIES;
    let n_queries = QUERIES.min(segment.n_queries as usize - first);
    let row = segment.query_start as usize + first;
    let key_column = inputs.kv_head(head) * head_size;
    let queries = &mut scratch.queries[..n_queries * head_size];
    gather(inputs.q, query_stride, row, head * head_size, queries, head_size);
    let sums = &mut scratch.out[..n_queries * head_size];
    sums.fill(0.0);
    let mut running = [[f32::NEG_INFINITY, 0.0]; QUERIES];
    let visible = inputs.visible_keys(segment, first, n_queries);
    for start in visible.clone().step_by(KEYS) {
        let keys = start..(start + KEYS).min(visible.end);
        let rows = segment.key_start as usize + keys.start..segment.key_start as usize + keys.end;
        gather_turned(
            inputs.k,
            key_stride,
            rows.clone(),
            key_column,
            scratch.turned_keys,
            head_size,
        );
        inputs.scores(segment, (first, queries), &keys, scratch.turned_keys, scratch.scores);
        for (i, running) in running[..n_queries].iter_mut().enumerate() {
            let scores = &mut scratch.scores[i * KEYS..i * KEYS + keys.len()];
            let sums = &mut sums[i * head_size..(i + 1) * head_size];
            soften(inputs.isa, scores, running, sums);
        }
        let values = &inputs.v[rows.start * key_stride + key_column..];
        let extents = (n_queries, head_size, keys.len());
        let scores = &*scratch.scores;
        add_product(inputs.isa, extents, scores, (KEYS, 1), values, key_stride, sums, head_size);
    }
    for (i, sums) in sums.chunks_exact(head_size).enumerate() {
        let [max, sum] = running[i];
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

/// What every tile of a backward pass reads.
struct Gradient<'a> {
    inputs: Inputs<'a>,
    dout: &'a [f32],
    log_sum_exp: &'a [f32],
    delta: &'a [f32],
}

impl Gradient<'_> {
    /// Probabilities into `scratch.scores` and gradients of the scores into `scratch.dscores`, for
    /// `n_queries` queries and the keys in the turned buffers; `scratch.queries` and `scratch.out`
    /// hold the queries and their `dout`.
    fn scores(
        &self,
        segment: &Segment,
        (first, n_queries): (usize, usize),
        head: usize,
        keys: &Range<usize>,
        scratch: &mut Scratch<'_>,
    ) {
        let AttentionShape { head_size, n_heads, scale, .. } = self.inputs.shape;
        let isa = self.inputs.isa;
        let queries = &scratch.queries[..n_queries * head_size];
        let turned_keys = &*scratch.turned_keys;
        self.inputs.scores(segment, (first, queries), keys, turned_keys, scratch.scores);
        let dscores = &mut scratch.dscores[..n_queries * KEYS];
        dscores.fill(0.0);
        let extents = (n_queries, keys.len(), head_size);
        let (dout, values) = (&*scratch.out, &*scratch.turned_values);
        add_product(isa, extents, dout, (head_size, 1), values, KEYS, dscores, KEYS);
        for i in 0..n_queries {
            let at = (segment.query_start as usize + first + i) * n_heads + head;
            let range = i * KEYS..i * KEYS + keys.len();
            let (scores, dscores) =
                (&mut scratch.scores[range.clone()], &mut scratch.dscores[range]);
            score_gradients(isa, scores, dscores, self.log_sum_exp[at], self.delta[at], scale);
        }
    }

    /// `dk` and `dv` of one tile of keys of one key/value head.
    fn key_tile(
        &self,
        segment: &Segment,
        tile: usize,
        kv_head: usize,
        scratch: &mut Scratch<'_>,
        dk: &Shared<f32>,
        dv: &Shared<f32>,
    ) {
        let inputs = &self.inputs;
        let AttentionShape { head_size, n_heads, n_kv_heads, window, .. } = inputs.shape;
        let (query_stride, key_stride) = (inputs.query_stride(), inputs.key_stride());
        let n_keys = segment.n_keys as usize;
        let keys = tile * KEYS..(tile * KEYS + KEYS).min(n_keys);
        let rows = segment.key_start as usize + keys.start..segment.key_start as usize + keys.end;
        let column = kv_head * head_size;
        for (matrix, turned) in [
            (inputs.k, &mut *scratch.turned_keys),
            (inputs.v, &mut *scratch.turned_values),
        ] {
            gather_turned(matrix, key_stride, rows.clone(), column, turned, head_size);
        }
        scratch.keys[..keys.len() * head_size].fill(0.0);
        scratch.values[..keys.len() * head_size].fill(0.0);
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
                let n = QUERIES.min(last_query - first);
                let row = segment.query_start as usize + first;
                for (matrix, tile) in
                    [(inputs.q, &mut *scratch.queries), (self.dout, &mut *scratch.out)]
                {
                    let tile = &mut tile[..n * head_size];
                    gather(matrix, query_stride, row, head * head_size, tile, head_size);
                }
                self.scores(segment, (first, n), head, &keys, scratch);
                let extents = (keys.len(), head_size, n);
                for (scores, queries, sums) in [
                    (&*scratch.scores, &*scratch.out, &mut *scratch.values),
                    (&*scratch.dscores, &*scratch.queries, &mut *scratch.keys),
                ] {
                    let strides = (1, KEYS);
                    add_product(
                        inputs.isa, extents, scores, strides, queries, head_size, sums, head_size,
                    );
                }
            }
        }
        for (gradient, sums) in [(dk, &*scratch.keys), (dv, &*scratch.values)] {
            for (row, sums) in rows.clone().zip(sums.chunks_exact(head_size)) {
                // SAFETY: each task has its own rows and columns.
                unsafe { gradient.slice(row * key_stride + column, head_size) }
                    .copy_from_slice(sums);
            }
        }
    }

    /// `dq` of one tile of queries of one head.
    fn query_tile(
        &self,
        segment: &Segment,
        tile: usize,
        head: usize,
        scratch: &mut Scratch<'_>,
        dq: &Shared<f32>,
    ) {
        let inputs = &self.inputs;
        let head_size = inputs.shape.head_size;
        let (query_stride, key_stride) = (inputs.query_stride(), inputs.key_stride());
        let first = tile * QUERIES;
        let n_queries = QUERIES.min(segment.n_queries as usize - first);
        let row = segment.query_start as usize + first;
        for (matrix, tile) in [(inputs.q, &mut *scratch.queries), (self.dout, &mut *scratch.out)] {
            let tile = &mut tile[..n_queries * head_size];
            gather(matrix, query_stride, row, head * head_size, tile, head_size);
        }
        let column = inputs.kv_head(head) * head_size;
        // The buffer of the keys' gradient is free here.
        let len = n_queries * head_size;
        scratch.keys[..len].fill(0.0);
        let visible = inputs.visible_keys(segment, first, n_queries);
        for start in visible.clone().step_by(KEYS) {
            let keys = start..(start + KEYS).min(visible.end);
            let rows =
                segment.key_start as usize + keys.start..segment.key_start as usize + keys.end;
            for (matrix, turned) in [
                (inputs.k, &mut *scratch.turned_keys),
                (inputs.v, &mut *scratch.turned_values),
            ] {
                gather_turned(matrix, key_stride, rows.clone(), column, turned, head_size);
            }
            self.scores(segment, (first, n_queries), head, &keys, scratch);
            let keys_of_head = &inputs.k[rows.start * key_stride + column..];
            let extents = (n_queries, head_size, keys.len());
            let (dscores, sums) = (&*scratch.dscores, &mut scratch.keys[..len]);
            add_product(
                inputs.isa, extents, dscores, (KEYS, 1), keys_of_head, key_stride, sums, head_size,
            );
        }
        for (i, sums) in scratch.keys[..len].chunks_exact(head_size).enumerate() {
            let start = (row + i) * query_stride + head * head_size;
            // SAFETY: each task has its own rows and columns.
            unsafe { dq.slice(start, head_size) }.copy_from_slice(sums);
        }
    }
}
