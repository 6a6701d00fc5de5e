//! Everything that a run's memory depends on, and the layouts that follow from it.

use nibble_kernels::{DeviceProfile, FloatFormat, paging::StoreId};

use super::residency::{Outside, Residency, is_spread};
use crate::{
    adapter::{AdapterLayout, Targets},
    model::{ModelSpec, Projection},
    optimizer::{StateFormat, StateLayout, TrainedTensor},
    weights::{EmbeddingFormat, PagedLayers, WeightFormat, WeightLayout},
};

/// What is trained.
#[derive(Clone, Debug, PartialEq)]
pub enum Trainable {
    /// Low-rank pairs beside frozen weights.
    Adapter {
        /// Which linear layers carry a pair.
        targets: Targets,
        /// R.
        rank: usize,
        /// Whether inputs of the pairs are dropped at random.
        dropout: bool,
    },
    /// Every weight.
    Everything,
}

/// Everything that a run's memory depends on.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainingShape {
    /// The model.
    pub spec: ModelSpec,
    /// How the matrices of the layers are stored.
    pub weight_format: WeightFormat,
    /// How the embedding and the output matrix are stored.
    pub embedding_format: EmbeddingFormat,
    /// What is trained.
    pub trainable: Trainable,
    /// The longest example, in tokens.
    pub sequence: usize,
    /// Rows of `sequence` tokens in a micro-batch.
    pub batch: usize,
    /// Layers whose activations are kept for the backward pass, the last of all; those of the others are
    /// computed again there.
    pub kept_layers: usize,
    /// The longest sample written during the run, prompt included; 0: none.
    pub sample_tokens: usize,
    /// How the gradients of the layers' matrices are kept, when everything is trained: in bf16, in which each is
    /// rounded once, for steps of a single micro-batch. All others are in f32, in which sums of several parts are
    /// added up.
    pub gradients: FloatFormat,
    /// How the optimizer's states are stored.
    pub states: StateFormat,
    /// What lies outside the device.
    pub residency: Residency,
    /// The device.
    pub profile: DeviceProfile,
}

impl TrainingShape {
    /// T, the tokens of a micro-batch.
    pub fn n_rows(&self) -> usize {
        self.batch.saturating_mul(self.sequence)
    }

    /// The layout of the base weights.
    pub fn weight_layout(&self) -> WeightLayout {
        WeightLayout::with_embedding_format(&self.spec, self.weight_format, self.embedding_format)
    }

    /// The layout of the adapter, if one is trained.
    pub fn adapter_layout(&self) -> Option<AdapterLayout> {
        match self.trainable {
            Trainable::Adapter { targets, rank, .. } => {
                Some(AdapterLayout::new(&self.spec, targets, rank))
            }
            Trainable::Everything => None,
        }
    }

    /// The layout of the gradients of full fine-tuning.
    pub fn gradient_layout(&self) -> WeightLayout {
        let format = match self.gradients {
            FloatFormat::F32 => WeightFormat::F32,
            FloatFormat::Bf16 => WeightFormat::Bf16,
        };
        WeightLayout::with_embedding_format(&self.spec, format, EmbeddingFormat::F32)
    }

    /// The layout of the optimizer's states.
    pub fn state_layout(&self) -> StateLayout {
        match self.adapter_layout() {
            Some(layout) => {
                let tensors = layout.tensors().map(TrainedTensor::of_adapter);
                StateLayout::new(tensors.map(|tensor| tensor.state()), self.states)
            }
            None => StateLayout::new(self.trained_tensors().map(|t| t.state()), self.states),
        }
    }

    /// Everything that is trained, in the order of their layout.
    pub fn trained_tensors(&self) -> impl Iterator<Item = TrainedTensor> {
        let adapter = self.adapter_layout();
        let weights = adapter.is_none().then(|| self.gradient_layout());
        let pairs = adapter.map(|layout| layout.tensors().collect::<Vec<_>>());
        let places = weights.map(|layout| layout.tensors().collect::<Vec<_>>());
        let n_layers = self.spec.n_layers;
        let of_adapter = pairs.into_iter().flatten().map(TrainedTensor::of_adapter);
        let of_weights = places
            .into_iter()
            .flatten()
            .map(move |place| TrainedTensor::of_weights(place, n_layers));
        of_adapter.chain(of_weights)
    }

    /// Layers whose activations are computed again in the backward pass, the first of all.
    pub fn recomputed_layers(&self) -> usize {
        self.spec.n_layers.saturating_sub(self.kept_layers)
    }

    /// Whether the weights of `layer` lie outside the device.
    pub fn is_layer_paged(&self, layer: usize) -> bool {
        is_spread(layer, self.residency.layers, self.spec.n_layers)
    }

    /// Which layers lie outside, in `store` or, without one, in the model's image.
    pub fn paged_layers(&self, store: Option<StoreId>) -> PagedLayers {
        let is_paged = (0..self.spec.n_layers).map(|layer| self.is_layer_paged(layer)).collect();
        PagedLayers { is_paged, store: store.filter(|_| !self.pages_from_image()) }
    }

    /// Whether the paged weights are read from the model's quantised image on disk, which nothing
    /// changes, rather than from a store of the run's own.
    pub fn pages_from_image(&self) -> bool {
        self.weight_format == WeightFormat::Nf4 && self.residency.outside == Outside::Disk
    }

    /// Whether the gradient of this projection's own matrices (weight or pair) is wanted.
    pub(super) fn trains(&self, projection: Projection) -> bool {
        match self.trainable {
            Trainable::Adapter { targets, .. } => targets.contains(projection),
            Trainable::Everything => true,
        }
    }
}
