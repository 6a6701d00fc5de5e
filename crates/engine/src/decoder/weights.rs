//! Where a model's matrices are: handles, the visits of paged layers, and the products with weight and
//! pair together.

use arrayvec::ArrayVec;
use nibble_kernels::{
    Backend, DeviceSlice, Floats, Gradient, MemoryId, Store, WeightGradient,
    embedding::EmbeddingTable,
    layers::{self, Layer, LayerBackward, LayersShape, LoraPair, MAX_LAYERS},
    linear::{LinearShape, Weight},
    paging::PageError,
};

use super::{Decoder, DropoutMask};
use crate::{
    adapter::AdapterLayout,
    model::Projection,
    residency::{PageWindow, Stored, StoredPage},
    weights::{
        LayerTensor, TensorPlace, TensorRole, WeightLayout,
        layout::{Block, TensorParts, handle},
    },
};

/// Where a block of weights begins.
#[derive(Clone, Copy, Debug)]
pub struct BlockPlace {
    /// The memory block.
    pub memory: MemoryId,
    /// Bytes from its start.
    pub offset: usize,
}

/// Where the weights of a layer are.
#[derive(Clone, Copy, Debug)]
pub enum LayerPlace {
    /// On the device.
    Resident(BlockPlace),
    /// In a store, whose pages visit the device.
    Paged(StoredPage),
}

/// The order in which layers are visited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sweep {
    /// From the first to the last.
    Up,
    /// From the last to the first.
    Down,
}

/// The base weights: on the device, or visiting it layer by layer.
#[derive(Clone, Debug)]
pub struct BaseWeights {
    /// Where each tensor lies in the whole image.
    pub layout: WeightLayout,
    embedding: BlockPlace,
    layers: Vec<LayerPlace>,
    final_norm: BlockPlace,
    output: BlockPlace,
    window: Option<PageWindow>,
    /// The paged layer that is on the device now.
    entered: Option<(usize, BlockPlace)>,
}

impl BaseWeights {
    /// The whole image in one piece, which begins `offset` bytes into `memory`.
    pub fn whole(layout: WeightLayout, memory: MemoryId, offset: usize) -> Self {
        let at = |block| BlockPlace { memory, offset: offset + layout.block_offset(block) };
        let layers =
            (0..layout.n_layers()).map(|layer| LayerPlace::Resident(at(Block::Layer(layer))));
        Self::at(layers.collect(), at, &layout)
    }

    /// Layers at `layers`, other blocks where `at` says.
    pub fn at(
        layers: Vec<LayerPlace>,
        at: impl Fn(Block) -> BlockPlace,
        layout: &WeightLayout,
    ) -> Self {
        Self {
            embedding: at(Block::Embedding),
            layers,
            final_norm: at(Block::FinalNorm),
            output: if layout.is_tied() { at(Block::Embedding) } else { at(Block::Output) },
            window: None,
            entered: None,
            layout: layout.clone(),
        }
    }

    /// Lets paged layers pass through `places`.
    pub fn open_window(&mut self, places: [DeviceSlice<u8>; 2]) {
        self.window = Some(PageWindow::new(places));
    }

    /// Makes `layer` ready for use, and begins to bring the one that `sweep` will ask for next. Until
    /// the next call the layer's handles are valid.
    ///
    /// # Errors
    /// When a page could not be moved.
    pub fn enter(
        &mut self,
        device: &mut impl Backend,
        layer: usize,
        sweep: Sweep,
    ) -> Result<(), PageError> {
        let Some(window) = &mut self.window else { return Ok(()) };
        if let LayerPlace::Paged(page) = self.layers[layer] {
            let slice = window.bring(device, page)?;
            let place = BlockPlace { memory: slice.memory(), offset: slice.offset() };
            self.entered = Some((layer, place));
        }
        let page_of = |place: &LayerPlace| match place {
            LayerPlace::Paged(page) => Some(*page),
            LayerPlace::Resident(_) => None,
        };
        let next = match sweep {
            Sweep::Up => self.layers[layer + 1..].iter().find_map(page_of),
            Sweep::Down => self.layers[..layer].iter().rev().find_map(page_of),
        };
        match next {
            Some(page) => window.expect(device, page),
            None => Ok(()),
        }
    }

    /// Begins to save a layer that was entered and changed, if it does not stay on the device.
    ///
    /// # Errors
    /// When a page could not be moved.
    pub fn save_layer(&mut self, device: &mut impl Backend, layer: usize) -> Result<(), PageError> {
        match (self.layers[layer], &mut self.window) {
            (LayerPlace::Paged(page), Some(window)) => window.save(device, page),
            _ => Ok(()),
        }
    }

    /// Waits for every transfer.
    ///
    /// # Errors
    /// When one failed.
    pub fn settle(&mut self, device: &mut impl Backend) -> Result<(), PageError> {
        self.window.as_mut().map_or(Ok(()), |window| window.settle(device))
    }

    fn layer_place(&self, layer: usize) -> BlockPlace {
        match (self.layers[layer], self.entered) {
            (LayerPlace::Resident(place), _) => place,
            (LayerPlace::Paged(_), Some((entered, place))) if entered == layer => place,
            _ => panic!("layer {layer} is used before it was entered"),
        }
    }

    /// The matrix of a linear layer.
    ///
    /// # Panics
    /// When the layer is paged and was not entered; so do the others below.
    pub fn matrix(&self, layer: usize, projection: Projection) -> Weight {
        let BlockPlace { memory, offset } = self.layer_place(layer);
        self.layout.matrix_at(projection, memory, offset)
    }

    /// The bias of a linear layer, if it has one.
    pub fn bias(&self, layer: usize, projection: Projection) -> Option<DeviceSlice<f32>> {
        self.vector(layer, LayerTensor::Bias(projection))
    }

    /// A norm or a bias inside a layer, if the model has it.
    pub fn vector(&self, layer: usize, tensor: LayerTensor) -> Option<DeviceSlice<f32>> {
        let BlockPlace { memory, offset } = self.layer_place(layer);
        self.layout.vector_at(tensor, memory, offset)
    }

    /// The numbers of one tensor.
    pub fn weight(&self, tensor: &TensorPlace) -> Weight {
        let place = match tensor.role {
            TensorRole::Embedding => self.embedding,
            TensorRole::Layer(layer, _) => self.layer_place(layer),
            TensorRole::FinalNorm => self.final_norm,
            TensorRole::Output => self.output,
        };
        let block = self.layout.block_offset(Block::of(tensor.role));
        handle(tensor.shape, tensor.parts.moved(block, place.offset), place.memory)
    }

    /// Every tensor, in the order they lie, with its place in the image.
    pub fn tensors(&self) -> impl Iterator<Item = (TensorPlace, Weight)> + '_ {
        self.layout.tensors().map(|place| (place, self.weight(&place)))
    }

    /// The bytes of a tensor of one part, wherever its layer is now.
    pub fn stored(&self, tensor: &TensorPlace) -> Stored {
        let (offset, element_bytes) = match tensor.parts {
            TensorParts::F32 { offset } => (offset, size_of::<f32>()),
            TensorParts::Bf16 { offset } => (offset, size_of::<half::bf16>()),
            TensorParts::Nf4 { .. } => {
                unreachable!("quantised weights are not trained, and so never stored")
            }
        };
        let block = Block::of(tensor.role);
        if let Block::Layer(layer) = block
            && let LayerPlace::Paged(page) = self.layers[layer]
        {
            let start = offset - self.layout.block_offset(block);
            let n_bytes = tensor.shape.n_elements() * element_bytes;
            let layer = Stored::Outside { place: page.place, n_bytes: page.n_bytes };
            return layer.part(start, n_bytes);
        }
        Stored::Device(match self.weight(tensor) {
            Weight::F32(slice) => slice.cast(),
            Weight::Bf16(slice) => slice.cast(),
            Weight::Nf4(_) => unreachable!("of one part, as was just seen"),
        })
    }

    /// The weight of the last normalisation.
    pub fn final_norm(&self) -> DeviceSlice<f32> {
        self.layout.final_norm_at(self.final_norm.memory, self.final_norm.offset)
    }

    /// The token embedding.
    pub fn embedding(&self) -> EmbeddingTable {
        self.layout.embedding_at(self.embedding.memory, self.embedding.offset)
    }

    /// The output projection; the embedding itself in tied models.
    pub fn output(&self) -> Weight {
        self.layout.output_at(self.output.memory, self.output.offset)
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

/// The input of projections that run together, and what their pairs keep of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct ProductInput {
    pub layer: usize,
    pub x: Floats,
    /// Of every projection.
    pub low_rank: [Option<DeviceSlice<f32>>; Projection::ALL.len()],
    pub n_rows: usize,
    pub dropout: Option<DropoutMask>,
    pub workspace: DeviceSlice<u8>,
}

/// A projection, and what comes out of it or its gradient.
pub(super) type Projected = (Projection, Floats);

impl Decoder {
    /// The extents of projections that run together.
    fn layers_shape(&self, projections: &[Projected], n_rows: usize) -> LayersShape {
        let together = |group: &&[Projection]| {
            group.iter().eq(projections.iter().map(|(projection, _)| projection))
        };
        debug_assert!(Projection::OF_ONE_INPUT.iter().any(together), "not what was planned");
        let n_in = projections.first().map_or(0, |&(projection, _)| {
            let [_, n_in] = self.spec.projection_shape(projection);
            n_in
        });
        let rank = self.adapter.as_ref().map_or(0, |adapter| adapter.layout.rank);
        LayersShape { n_rows, n_in, rank }
    }

    /// `y = residual + x · Wᵀ + bias + pair(x)` of each of the projections, which read the same input.
    pub(super) fn project(
        &self,
        device: &mut impl Backend,
        input: ProductInput,
        projections: &[Projected],
        residual: Option<DeviceSlice<f32>>,
    ) {
        let ProductInput { layer, x, n_rows, workspace, .. } = input;
        let layers = projections.iter().map(|&(projection, y)| Layer {
            weight: self.weights.matrix(layer, projection),
            bias: self.weights.bias(layer, projection),
            adapter: self.pair(projection, &input),
            n_out: self.spec.projection_shape(projection)[0],
            residual,
            y,
        });
        let layers: ArrayVec<_, MAX_LAYERS> = layers.collect();
        device.layers(self.layers_shape(projections, n_rows), x, &layers, workspace);
    }

    /// The pair beside a projection, if there is one.
    fn pair(&self, projection: Projection, input: &ProductInput) -> Option<layers::Adapter> {
        let adapter = self.adapter.as_ref()?;
        Some(layers::Adapter {
            pair: adapter.pair(input.layer, projection)?,
            scale: adapter.scale,
            dropout: input.dropout.map(|mask| mask.of(input.layer, projection)),
            xa: input.low_rank[projection as usize]?,
        })
    }

    /// The gradients of [`Decoder::project`]: of pairs, weights and biases by the gradients' store, and
    /// `dx (store) …` if the input's is wanted. Each projection comes with the gradient of its output.
    pub(super) fn project_backward(
        &self,
        device: &mut impl Backend,
        input: ProductInput,
        projections: &[Projected],
        gradients: &super::StepGradients<'_>,
        dx: Option<(DeviceSlice<f32>, Store)>,
    ) {
        let ProductInput { layer, x, n_rows, workspace, .. } = input;
        let store = gradients.store;
        let backward = projections.iter().map(|&(projection, dy)| LayerBackward {
            weight: self.weights.matrix(layer, projection),
            adapter: self
                .pair_gradient(gradients, (layer, projection))
                .and_then(|gradient| Some((self.pair(projection, &input)?, gradient))),
            n_out: self.spec.projection_shape(projection)[0],
            dy,
        });
        let layers: ArrayVec<_, MAX_LAYERS> = backward.collect();
        let shape = self.layers_shape(projections, n_rows);
        if dx.is_some() || layers.iter().any(|layer| layer.adapter.is_some()) {
            device.layers_backward(shape, x, &layers, store, dx, workspace);
        }
        let super::Gradients::Weights(gradients) = gradients.places else { return };
        for &(projection, dy) in projections {
            let [n_out, n_in] = self.spec.projection_shape(projection);
            let shape = LinearShape { n_rows, n_in, n_out };
            let dweight = match gradients.matrix(layer, projection).into_floats() {
                Floats::F32(values) => WeightGradient::F32(Gradient { values, store }),
                Floats::Bf16(values) => {
                    debug_assert_eq!(store, Store::Overwrite);
                    WeightGradient::Bf16(values)
                }
            };
            device.linear_weight_gradient(shape, x, dy, dweight, workspace);
            if let Some(values) = gradients.bias(layer, projection) {
                device.linear_bias_gradient(n_rows, n_out, dy, Gradient { values, store });
            }
        }
    }

    /// Where the gradients of the pair beside a product go, if there is one that is trained.
    fn pair_gradient(
        &self,
        gradients: &super::StepGradients<'_>,
        (layer, projection): (usize, Projection),
    ) -> Option<LoraPair> {
        let super::Gradients::Adapter(gradients) = gradients.places else { return None };
        self.adapter.as_ref()?.layout.pair(*gradients, layer, projection)
    }

    /// Whether a gradient is wanted that reads the products' input.
    pub(super) fn trains(
        &self,
        gradients: &super::StepGradients<'_>,
        layer: usize,
        projections: &[Projection],
    ) -> bool {
        let has_pair =
            |&projection: &Projection| self.pair_gradient(gradients, (layer, projection)).is_some();
        matches!(gradients.places, super::Gradients::Weights(_)) || projections.iter().any(has_pair)
    }
}
