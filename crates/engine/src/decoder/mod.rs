//! The decoder: every model family's forward and backward pass, written once.
//!
//! ```text
//! n1 = norm(h)                     q, k, v = n1·Wq, n1·Wk, n1·Wv      (+ bias, + low-rank pair)
//! q, k = rotate(norm?(q)), rotate(norm?(k))
//! m  = h + attention(q, k, v)·Wo
//! n2 = norm(m)                     h' = m + (silu(n2·Wgate) · (n2·Wup))·Wdown
//! ```
//! A pass works on slices that a layout gave it and owns no memory. It knows nothing of datasets,
//! optimizers or files.

mod backward;
mod forward;
mod weights;

pub use backward::{BackwardSlices, Gradients, StepGradients};
pub use forward::{LossGradient, PassRows, fill_rope_tables, loss};
pub use weights::{Adapter, BaseWeights, BlockPlace, LayerPlace, Sweep};

use crate::{
    model::{ModelSpec, Projection},
    plan::{LayerSlices, RopeTables},
};
use nibble_kernels::{DeviceSlice, Floats, random::Dropout};

/// A model in device memory: base weights, rotation tables, and an adapter if one is in use.
#[derive(Clone, Debug)]
pub struct Decoder {
    /// The model's shape.
    pub spec: ModelSpec,
    /// Frozen (or fully trained) weights.
    pub weights: BaseWeights,
    /// Rotation tables.
    pub rope: RopeTables,
    /// The adapter, unless the base model alone is wanted.
    pub adapter: Option<Adapter>,
}

/// Which elements of the pairs' inputs are dropped in one micro-batch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DropoutMask {
    /// Share of inputs set to zero.
    pub probability: f32,
    /// One value for each micro-batch.
    pub seed: u64,
}

impl DropoutMask {
    /// The mask of one pair.
    fn of(self, layer: usize, projection: Projection) -> Dropout {
        let index = (layer * Projection::ALL.len() + projection as usize) as u64;
        // Distinct for every pair, so that no two pairs drop the same elements; the kernel hashes.
        let seed = self.seed.wrapping_add((index + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        Dropout { probability: self.probability, seed }
    }
}

/// The first `n_rows` rows of a matrix.
fn rows(matrix: DeviceSlice<f32>, n_rows: usize, width: usize) -> DeviceSlice<f32> {
    matrix.first(n_rows * width)
}

impl LayerSlices {
    /// The same slices for fewer rows. Keys and values keep their length: in generation they are a
    /// cache that holds more than the rows of this pass.
    fn first_rows(&self, spec: &ModelSpec, n_rows: usize) -> Self {
        let cut = |slice, width| rows(slice, n_rows, width);
        let floats = |floats: Floats, width| floats.first(n_rows * width);
        let mut low_rank = self.low_rank;
        for slice in low_rank.iter_mut().flatten() {
            // Each is [T, R]: the rank is what remains of its length.
            *slice = slice.first(slice.len() / self.capacity(spec) * n_rows);
        }
        Self {
            input_normed: floats(self.input_normed, spec.hidden_width),
            query_raw: self.query_raw.map(|raw| floats(raw, spec.query_width())),
            key_raw: self.key_raw.map(|raw| floats(raw, spec.kv_width())),
            query: floats(self.query, spec.query_width()),
            key: self.key,
            value: self.value,
            attention: floats(self.attention, spec.query_width()),
            log_sum_exp: cut(self.log_sum_exp, spec.n_heads),
            middle: cut(self.middle, spec.hidden_width),
            feed_forward_normed: floats(self.feed_forward_normed, spec.hidden_width),
            gate: floats(self.gate, spec.ffn_width),
            up: floats(self.up, spec.ffn_width),
            activated: floats(self.activated, spec.ffn_width),
            low_rank,
        }
    }

    /// The most rows these slices hold.
    fn capacity(&self, spec: &ModelSpec) -> usize {
        (self.middle.len() / spec.hidden_width).max(1)
    }
}
