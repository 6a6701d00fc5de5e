//! The optimizer: what it trains, where its states lie, and the update.

mod states;
mod update;

use nibble_kernels::{DeviceSlice, Floats};

use crate::{
    adapter::AdapterTensor,
    weights::{TensorPlace, TensorRole},
};

pub use states::{
    LEAST_QUANTIZED, MomentParts, PAGE_ELEMENTS, Page, Piece, StateFormat, StateLayout, StateTensor,
};
pub use update::{OptimizerConfig, OptimizerStates, Trained};

/// Which tensor is trained.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum TrainedRole {
    /// One matrix of a pair.
    Adapter(AdapterTensor),
    /// A weight of the model.
    Weight(TensorPlace),
}

/// A tensor that is trained.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TrainedTensor {
    /// Which.
    pub role: TrainedRole,
    /// Elements.
    pub n_elements: usize,
    /// The block of weights it belongs to, by number, in full fine-tuning.
    pub block: usize,
}

impl TrainedTensor {
    /// A matrix of an adapter.
    pub(crate) fn of_adapter(tensor: AdapterTensor) -> Self {
        let n_elements = tensor.n_elements();
        Self { role: TrainedRole::Adapter(tensor), n_elements, block: 0 }
    }

    /// A weight, by its place in the layout of gradients.
    pub(crate) fn of_weights(place: TensorPlace, n_layers: usize) -> Self {
        let block = match place.role {
            TensorRole::Embedding => 0,
            TensorRole::Layer(layer, _) => 1 + layer,
            TensorRole::FinalNorm => 1 + n_layers,
            TensorRole::Output => 2 + n_layers,
        };
        Self { role: TrainedRole::Weight(place), n_elements: place.shape.n_elements(), block }
    }

    /// The tensor's gradient, in the bytes of all gradients.
    pub fn gradient(&self, all: DeviceSlice<u8>) -> Floats {
        match self.role {
            TrainedRole::Adapter(tensor) => {
                let range = tensor.start..tensor.start + self.n_elements;
                Floats::F32(all.cast::<f32>().slice(range))
            }
            TrainedRole::Weight(place) => place.weight(all.memory(), all.offset()).into_floats(),
        }
    }

    /// The layer whose weight it is, in full fine-tuning.
    pub fn layer(&self) -> Option<usize> {
        match self.role {
            TrainedRole::Weight(TensorPlace { role: TensorRole::Layer(layer, _), .. }) => {
                Some(layer)
            }
            _ => None,
        }
    }

    /// Whether weight decay applies: norms and biases are spared.
    pub fn decays(&self) -> bool {
        match self.role {
            TrainedRole::Adapter(_) => true,
            TrainedRole::Weight(place) => place.role.is_matrix(),
        }
    }

    /// What the layout of the states needs to know of it.
    pub(crate) fn state(&self) -> StateTensor {
        StateTensor { n_elements: self.n_elements, block: self.block }
    }
}
