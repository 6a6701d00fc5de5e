//! Where a model's matrices are: handles, and the products with weight and pair together.

use nibble_kernels::{
    Backend, DeviceSlice, MemoryId, Store,
    embedding::EmbeddingTable,
    linear::{LinearShape, Weight},
    lora::{LoraPair, LoraShape},
};

use super::{Decoder, DropoutMask};
use crate::{
    adapter::AdapterLayout,
    model::Projection,
    weights::{LayerTensor, TensorPlace, WeightLayout},
};

/// The base weights in device memory.
#[derive(Clone, Debug)]
pub struct BaseWeights {
    /// Where each tensor lies.
    pub layout: WeightLayout,
    /// The block.
    pub memory: MemoryId,
    /// Bytes from its start.
    pub offset: usize,
}

impl BaseWeights {
    /// The matrix of a linear layer.
    pub fn matrix(&self, layer: usize, projection: Projection) -> Weight {
        self.layout.matrix(layer, projection, self.memory, self.offset)
    }

    /// The bias of a linear layer, if it has one.
    pub fn bias(&self, layer: usize, projection: Projection) -> Option<DeviceSlice<f32>> {
        self.vector(layer, LayerTensor::Bias(projection))
    }

    /// A norm or a bias inside a layer, if the model has it.
    pub fn vector(&self, layer: usize, tensor: LayerTensor) -> Option<DeviceSlice<f32>> {
        self.layout.vector(layer, tensor, self.memory, self.offset)
    }

    /// Every tensor, in the order they lie, with its place.
    pub fn tensors(&self) -> impl Iterator<Item = (TensorPlace, Weight)> + '_ {
        self.layout.tensors().map(|place| (place, place.weight(self.memory, self.offset)))
    }

    /// The weight of the last normalisation.
    pub fn final_norm(&self) -> DeviceSlice<f32> {
        self.layout.final_norm(self.memory, self.offset)
    }

    /// The token embedding.
    pub fn embedding(&self) -> EmbeddingTable {
        self.layout.embedding(self.memory, self.offset)
    }

    /// The output projection; the embedding itself in tied models.
    pub fn output(&self) -> Weight {
        self.layout.output(self.memory, self.offset)
    }
}

/// An adapter in device memory.
#[derive(Clone, Debug)]
pub struct Adapter {
    /// Where each pair lies.
    pub layout: AdapterLayout,
    /// The flat buffer.
    pub parameters: DeviceSlice<f32>,
    /// Factor on every pair's output: alpha / R, or alpha / √R.
    pub scale: f32,
}

impl Adapter {
    /// The pair beside a linear layer.
    pub fn pair(&self, layer: usize, projection: Projection) -> Option<LoraPair> {
        self.layout.pair(self.parameters, layer, projection)
    }
}

/// The input of a product and what its pair keeps of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct ProductInput {
    pub x: DeviceSlice<f32>,
    pub low_rank: Option<DeviceSlice<f32>>,
    pub n_rows: usize,
    pub dropout: Option<DropoutMask>,
    pub workspace: DeviceSlice<u8>,
}

impl Decoder {
    fn linear_shape(&self, projection: Projection, n_rows: usize) -> LinearShape {
        let [n_out, n_in] = self.spec.projection_shape(projection);
        LinearShape { n_rows, n_in, n_out }
    }

    fn lora_shape(&self, projection: Projection, n_rows: usize, rank: usize) -> LoraShape {
        let [n_out, n_in] = self.spec.projection_shape(projection);
        LoraShape { n_rows, n_in, n_out, rank }
    }

    /// `y (store) x·Wᵀ + bias + pair(x)`.
    pub(super) fn project(
        &self,
        device: &mut impl Backend,
        (layer, projection): (usize, Projection),
        input: ProductInput,
        store: Store,
        y: DeviceSlice<f32>,
    ) {
        let ProductInput { x, low_rank, n_rows, dropout, workspace } = input;
        let weight = self.weights.matrix(layer, projection);
        let bias = self.weights.bias(layer, projection);
        let shape = self.linear_shape(projection, n_rows);
        device.linear(shape, x, weight, bias, store, y, workspace);
        if let Some(adapter) = &self.adapter
            && let Some(pair) = adapter.pair(layer, projection)
            && let Some(low_rank) = low_rank
        {
            let shape = self.lora_shape(projection, n_rows, adapter.layout.rank);
            let dropout = dropout.map(|mask| mask.of(layer, projection));
            device.lora(shape, adapter.scale, dropout, x, pair, low_rank, y, workspace);
        }
    }

    /// The gradients of [`Decoder::project`]: of the pair into `pair_gradients`, of weight and bias
    /// into `weight_gradients`, and `dx (store) …` if the input's is wanted.
    pub(super) fn project_backward(
        &self,
        device: &mut impl Backend,
        (layer, projection): (usize, Projection),
        input: ProductInput,
        dy: DeviceSlice<f32>,
        gradients: &super::Gradients,
        store: Store,
        dx: Option<DeviceSlice<f32>>,
    ) {
        let ProductInput { x, low_rank, n_rows, dropout, workspace } = input;
        let shape = self.linear_shape(projection, n_rows);
        if let Some(dx) = dx {
            let weight = self.weights.matrix(layer, projection);
            device.linear_input_gradient(shape, dy, weight, store, dx, workspace);
        }
        match gradients {
            super::Gradients::Adapter(gradients) => {
                if let Some(adapter) = &self.adapter
                    && let Some(pair) = adapter.pair(layer, projection)
                    && let Some(gradient) = adapter.layout.pair(*gradients, layer, projection)
                    && let Some(low_rank) = low_rank
                {
                    let shape = self.lora_shape(projection, n_rows, adapter.layout.rank);
                    let dropout = dropout.map(|mask| mask.of(layer, projection));
                    let scale = adapter.scale;
                    device.lora_backward(
                        shape, scale, dropout, x, low_rank, dy, pair, gradient, dx, workspace,
                    );
                }
            }
            super::Gradients::Weights(gradients) => {
                if let Weight::F32(dweight) = gradients.matrix(layer, projection) {
                    let store = Store::Accumulate;
                    device.linear_weight_gradient(shape, x, dy, store, dweight, workspace);
                }
                if let Some(dbias) = gradients.bias(layer, projection) {
                    device.linear_bias_gradient(n_rows, shape.n_out, dy, dbias);
                }
            }
        }
    }
}
