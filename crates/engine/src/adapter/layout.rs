//! Which matrices carry an adapter, and where each pair lies in the flat buffer of all.
//!
//! Parameters, gradients and both moments use this one layout, so that the optimizer is one pass
//! over flat buffers and a checkpoint is a copy of them.

use std::ops::Range;

use nibble_kernels::{DeviceSlice, layers::LoraPair};

use crate::model::{ModelSpec, Projection};

/// A set of projections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Targets(u8);

impl Targets {
    /// Every linear layer of a decoder layer.
    pub fn all_linear() -> Self {
        Projection::ALL.into_iter().collect()
    }

    /// Whether `projection` carries an adapter.
    pub fn contains(self, projection: Projection) -> bool {
        self.0 & 1 << projection as u8 != 0
    }

    /// Whether no projection carries one.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The projections of the set.
    pub fn iter(self) -> impl Iterator<Item = Projection> {
        Projection::ALL.into_iter().filter(move |&projection| self.contains(projection))
    }
}

impl FromIterator<Projection> for Targets {
    fn from_iter<I: IntoIterator<Item = Projection>>(projections: I) -> Self {
        Self(projections.into_iter().fold(0, |set, projection| set | 1 << projection as u8))
    }
}

/// One of the two matrices of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Factor {
    /// A `[R, n_in]`.
    A,
    /// B `[n_out, R]`.
    B,
}

/// One adapter matrix in the flat buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdapterTensor {
    /// The decoder layer.
    pub layer: usize,
    /// The linear layer it stands beside.
    pub projection: Projection,
    /// Which of the pair.
    pub factor: Factor,
    /// Rows and columns.
    pub shape: [usize; 2],
    /// First element in the flat buffer.
    pub start: usize,
}

impl AdapterTensor {
    /// Elements.
    pub fn n_elements(&self) -> usize {
        self.shape[0] * self.shape[1]
    }

    /// Its elements in the flat buffer.
    pub fn range(&self) -> Range<usize> {
        self.start..self.start + self.n_elements()
    }
}

/// The flat layout of every adapter of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdapterLayout {
    /// The linear layers that carry an adapter.
    pub targets: Targets,
    /// R.
    pub rank: usize,
    n_layers: usize,
    layer_len: usize,
    /// Start of A within a layer, with the extents, for each projection of the set.
    pairs: [Option<Pair>; Projection::ALL.len()],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pair {
    start: usize,
    n_in: usize,
    n_out: usize,
}

impl AdapterLayout {
    /// Lays out an adapter of `rank` beside every target of every layer.
    pub fn new(spec: &ModelSpec, targets: Targets, rank: usize) -> Self {
        let mut pairs = [None; Projection::ALL.len()];
        let mut layer_len = 0_usize;
        for projection in targets.iter() {
            let [n_out, n_in] = spec.projection_shape(projection);
            pairs[projection as usize] = Some(Pair { start: layer_len, n_in, n_out });
            layer_len = layer_len.saturating_add(rank.saturating_mul(n_in + n_out));
        }
        Self { targets, rank, n_layers: spec.n_layers, layer_len, pairs }
    }

    /// Elements of the flat buffer.
    pub fn len(&self) -> usize {
        self.layer_len.saturating_mul(self.n_layers)
    }

    /// Whether there is no adapter.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The pair beside `projection` in `layer`, inside `flat`, or `None` where there is none.
    pub fn pair(
        &self,
        flat: DeviceSlice<f32>,
        layer: usize,
        projection: Projection,
    ) -> Option<LoraPair> {
        let pair = self.pairs[projection as usize]?;
        let a = layer * self.layer_len + pair.start;
        let b = a + self.rank * pair.n_in;
        Some(LoraPair { a: flat.slice(a..b), b: flat.slice(b..b + self.rank * pair.n_out) })
    }

    /// Every matrix, in the order of the flat buffer.
    pub fn tensors(&self) -> impl Iterator<Item = AdapterTensor> + '_ {
        (0..self.n_layers).flat_map(move |layer| {
            self.targets.iter().flat_map(move |projection| {
                self.pairs[projection as usize].into_iter().flat_map(move |pair| {
                    let a = layer * self.layer_len + pair.start;
                    let b = a + self.rank * pair.n_in;
                    let tensor = |factor, shape, start| AdapterTensor {
                        layer,
                        projection,
                        factor,
                        shape,
                        start,
                    };
                    [
                        tensor(Factor::A, [self.rank, pair.n_in], a),
                        tensor(Factor::B, [pair.n_out, self.rank], b),
                    ]
                })
            })
        })
    }
}
