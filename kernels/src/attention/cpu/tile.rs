//! How segments are cut into tiles of queries and of keys, which keys are packed together, and who sees
//! whom.

use std::{iter, ops::Range};

use super::super::{AttentionShape, Segment};
use crate::{
    Compute, DeviceKind, DeviceProfile, Isa,
    cpu::{
        gemm::{Layout, Operand, TileProducts, Values},
        parallel::Shared,
        pool::Pool,
    },
};

/// Heads of keys that are packed at a time, at least: enough to keep many threads busy, few enough that
/// what is packed of a long sequence stays in the last-level cache.
const HEADS_AT_ONCE: usize = 8;

impl Segment {
    /// Keys before its first query.
    pub(super) fn n_before(&self) -> usize {
        self.n_keys as usize - self.n_queries as usize
    }

    /// Rows of `q` and `out`.
    pub(super) fn query_rows(&self) -> Range<usize> {
        let first = self.query_start as usize;
        first..first + self.n_queries as usize
    }

    /// Rows of `k` and `v`.
    pub(super) fn key_rows(&self) -> Range<usize> {
        self.key_row(0)..self.key_row(self.n_keys as usize)
    }

    /// The row of `k` and `v` of a key.
    pub(super) fn key_row(&self, key: usize) -> usize {
        self.key_start as usize + key
    }
}

/// The segment, by its index, and its part that have this index among all, where each segment has
/// `count` parts.
pub(super) fn part_of(
    segments: &[Segment],
    mut index: usize,
    count: impl Fn(&Segment) -> usize,
) -> Option<(usize, usize)> {
    for (i, segment) in segments.iter().enumerate() {
        let n = count(segment);
        if index < n {
            return Some((i, index));
        }
        index -= n;
    }
    None
}

/// How keys are packed, in tiles of equal size, for all heads of queries that read them.
#[derive(Clone, Copy)]
pub(super) struct KeyTiles {
    /// Keys of a tile.
    pub n_keys: usize,
    /// Packed elements of one tile of one head.
    pub len: usize,
}

impl KeyTiles {
    /// Tiles that hold `n_keys`.
    pub fn count(&self, n_keys: usize) -> usize {
        n_keys.div_ceil(self.n_keys)
    }

    /// Heads that are packed at a time.
    fn n_heads(n_kv_heads: usize, n_threads: usize) -> usize {
        n_kv_heads.min(HEADS_AT_ONCE.max(n_threads))
    }

    /// Elements of all that is packed at a time.
    pub fn memory_len(&self, shape: &AttentionShape, n_threads: usize) -> usize {
        self.count(shape.n_key_rows)
            .saturating_mul(Self::n_heads(shape.n_kv_heads, n_threads))
            .saturating_mul(self.len)
    }

    /// All segments and heads of keys, cut into what is packed at a time. Segments whose tiles together
    /// fit the keys of one long sequence go together.
    pub fn batches<'a>(
        self,
        shape: &AttentionShape,
        n_threads: usize,
        segments: &'a [Segment],
        count: impl Fn(&Segment) -> usize + Copy + 'a,
    ) -> impl Iterator<Item = Batch<'a>> {
        let most = self.count(shape.n_key_rows);
        let (n_kv_heads, n_heads) = (shape.n_kv_heads, Self::n_heads(shape.n_kv_heads, n_threads));
        let mut rest = segments;
        let runs = iter::from_fn(move || {
            let mut n_tiles = 0;
            let fits = |segment: &&Segment| {
                n_tiles += count(segment);
                n_tiles <= most
            };
            let n = rest.iter().take_while(fits).count();
            // A segment has no more keys than there are.
            let (run, later) = rest.split_at_checked(n.max(1))?;
            rest = later;
            Some(run)
        });
        runs.flat_map(move |segments| {
            (0..n_kv_heads).step_by(n_heads.max(1)).map(move |first| Batch {
                segments,
                kv_heads: first..(first + n_heads).min(n_kv_heads),
            })
        })
    }
}

impl KeyTiles {
    /// Packs the keys of a batch, `count` tiles of each segment: `pack` is given segment, tile, head of
    /// keys, and where they go.
    pub fn pack(
        &self,
        pool: &Pool,
        batch: &Batch<'_>,
        packed: &mut [u32],
        count: impl Fn(&Segment) -> usize + Sync,
        pack: impl Fn(&Segment, usize, usize, &mut [u32]) + Sync,
    ) {
        let n_tiles = batch.count(&count);
        let packed = Shared::new(packed);
        pool.run(n_tiles * batch.kv_heads.len(), |_, task| {
            let (kv_head, task) = batch.kv_head_of(task);
            let Some((segment, tile)) = part_of(batch.segments, task, &count) else { return };
            let at = ((kv_head - batch.kv_heads.start) * n_tiles + task) * self.len;
            // SAFETY: each task has a tile of its own.
            let packed = unsafe { packed.slice(at, self.len) };
            pack(&batch.segments[segment], tile, kv_head, packed);
        });
    }

    /// What was packed of a segment, by its index, and a head of keys.
    pub fn of_segment<'a>(
        &self,
        batch: &Batch<'_>,
        packed: &'a [u32],
        (segment, kv_head): (usize, usize),
        count: impl Fn(&Segment) -> usize,
    ) -> &'a [u32] {
        let earlier: usize = batch.segments[..segment].iter().map(&count).sum();
        let of_earlier_heads = (kv_head - batch.kv_heads.start) * batch.count(&count);
        &packed[(of_earlier_heads + earlier) * self.len..]
    }
}

/// Segments and heads of keys that are packed at the same time.
pub(super) struct Batch<'a> {
    pub segments: &'a [Segment],
    pub kv_heads: Range<usize>,
}

impl Batch<'_> {
    /// Parts of all segments.
    pub fn count(&self, count: impl Fn(&Segment) -> usize) -> usize {
        self.segments.iter().map(count).sum()
    }

    /// Of a task for each head of keys: the head, and the task among those of that head.
    pub fn kv_head_of(&self, task: usize) -> (usize, usize) {
        let n = self.kv_heads.len();
        (self.kv_heads.start + task % n, task / n)
    }

    /// As [`Batch::kv_head_of`], for each head of queries.
    pub fn head_of(&self, task: usize, group: usize) -> (usize, usize) {
        let n = self.kv_heads.len() * group;
        (self.kv_heads.start * group + task % n, task / n)
    }
}

/// What every tile of an attention reads.
#[derive(Clone, Copy)]
pub(super) struct Inputs<'a> {
    pub isa: Isa,
    pub compute: Compute,
    pub products: TileProducts,
    pub shape: AttentionShape,
    pub q: Values<'a>,
    pub k: Values<'a>,
    pub v: Values<'a>,
}

impl Inputs<'_> {
    pub fn query_stride(&self) -> usize {
        self.shape.n_heads * self.shape.head_size
    }

    pub fn key_stride(&self) -> usize {
        self.shape.n_kv_heads * self.shape.head_size
    }

    /// Heads of queries that read one of keys.
    pub fn group(&self) -> usize {
        self.shape.n_heads / self.shape.n_kv_heads
    }

    /// Rows of a head of a matrix like `q`, from `row` on.
    pub fn queries<'m>(
        &self,
        matrix: Values<'m>,
        row: usize,
        head: usize,
        layout: Layout,
    ) -> Operand<'m> {
        let stride = self.query_stride();
        let values = matrix.starting_at(row * stride + head * self.shape.head_size);
        Operand { values, layout, stride }
    }

    /// Rows of a head of a matrix like `k`, from `row` on.
    pub fn keys<'m>(
        &self,
        matrix: Values<'m>,
        row: usize,
        kv_head: usize,
        layout: Layout,
    ) -> Operand<'m> {
        let stride = self.key_stride();
        let values = matrix.starting_at(row * stride + kv_head * self.shape.head_size);
        Operand { values, layout, stride }
    }

    /// Keys that any of the queries sees.
    pub fn visible(&self, segment: &Segment, queries: &Range<usize>) -> Range<usize> {
        let position = |query| segment.n_before() + query;
        let first = position(queries.start) + 1;
        first.saturating_sub(self.shape.window.unwrap_or(usize::MAX))..position(queries.end - 1) + 1
    }

    /// Multiplications and additions of one product over all pairs that see each other.
    pub fn product_flops(&self, segments: &[Segment]) -> f64 {
        let n_pairs: usize = segments
            .iter()
            .flat_map(|segment| {
                let n_queries = segment.n_queries as usize;
                (0..n_queries).map(|query| self.visible(segment, &(query..query + 1)).len())
            })
            .sum();
        2.0 * (n_pairs * self.shape.n_heads * self.shape.head_size) as f64
    }

    /// How tiles are multiplied on a processor of this profile.
    pub fn products_on(profile: &DeviceProfile) -> TileProducts {
        let DeviceKind::Cpu { isa, .. } = profile.kind else {
            unreachable!("a workspace of the processor")
        };
        // A profile may ask for more than this processor has; the device would then use less.
        TileProducts::new(isa.min(Isa::best()), profile.compute)
    }
}

/// A tile of queries and one of keys, of one segment.
#[derive(Clone, Copy)]
pub(super) struct Pairs<'a> {
    pub inputs: &'a Inputs<'a>,
    pub segment: &'a Segment,
    /// The first of each.
    pub query: usize,
    pub key: usize,
    /// How many of each.
    pub n_queries: usize,
    pub n_keys: usize,
}

impl Pairs<'_> {
    /// Keys of the tile that any of these queries of it sees.
    pub fn keys_seen(&self, queries: &Range<usize>) -> Range<usize> {
        let queries = self.query + queries.start..self.query + queries.end;
        let seen = self.inputs.visible(self.segment, &queries);
        let inside = |key: usize| key.saturating_sub(self.key).min(self.n_keys);
        inside(seen.start)..inside(seen.end)
    }

    /// Queries of the tile that see any of these keys of it.
    pub fn queries_seeing(&self, keys: &Range<usize>) -> Range<usize> {
        let before = self.segment.n_before();
        let first = (self.key + keys.start).saturating_sub(before);
        let end = match self.inputs.shape.window {
            Some(window) => (self.key + keys.end - 1).saturating_add(window).saturating_sub(before),
            None => usize::MAX,
        };
        let inside = |query: usize| query.saturating_sub(self.query).min(self.n_queries);
        inside(first)..inside(end)
    }
}

/// Lengths of parts of a memory, each up to a whole cache line.
pub(super) fn lines<const N: usize>(parts: [usize; N]) -> [usize; N] {
    parts.map(|len| len.next_multiple_of(16))
}

/// The parts of `memory`, in order.
pub(super) fn split<const N: usize>(mut memory: &mut [u32], parts: [usize; N]) -> [&mut [u32]; N] {
    parts.map(|len| {
        let (part, rest) = std::mem::take(&mut memory).split_at_mut(len);
        memory = rest;
        part
    })
}
