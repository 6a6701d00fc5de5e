//! Where each number of a model's base weights lies: one contiguous image.
//!
//! The image is what is planned, allocated, cached on disk and mapped, so this is the only place
//! that knows its order:
//!
//! ```text
//! embedding | layer 0 | layer 1 | … | final norm | output projection (if it is not the embedding)
//! ```
//! Each block begins on a page, so that it can be mapped, copied or paged by itself; each part of a
//! tensor begins on a cache line. Every layer has the same layout, stored once. Gradients of full
//! fine-tuning lie by such a layout of their own.

use half::bf16;
use nibble_kernels::{
    DeviceSlice, MemoryId,
    embedding::EmbeddingTable,
    linear::Weight,
    memory::BLOCK_ALIGNMENT,
    nf4::{Nf4Layout, Nf4Weight},
};

pub use super::tensor::{
    EmbeddingFormat, LayerTensor, TensorParts, TensorRole, TensorShape, WeightFormat,
};
use crate::model::{ModelSpec, Projection};

/// Part of the identity of every image on disk; grows when the order or the alignment changes.
pub const LAYOUT_VERSION: u32 = 1;

/// Where the parts of a tensor may begin: a cache line, and the widest vector register.
const PART_ALIGNMENT: usize = 64;

/// A tensor and its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorPlace {
    /// Which one.
    pub role: TensorRole,
    /// Its extents.
    pub shape: TensorShape,
    /// Where its bytes are, from the start of the image.
    pub parts: TensorParts,
}

/// A run of the image that begins on a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Block {
    /// The embedding table.
    Embedding,
    /// The decoder block of this number.
    Layer(usize),
    /// The last norm.
    FinalNorm,
    /// The output projection, where it is not the embedding table.
    Output,
}

impl Block {
    /// The block that a tensor is in.
    pub fn of(role: TensorRole) -> Self {
        match role {
            TensorRole::Embedding => Self::Embedding,
            TensorRole::Layer(layer, _) => Self::Layer(layer),
            TensorRole::FinalNorm => Self::FinalNorm,
            TensorRole::Output => Self::Output,
        }
    }
}

/// The place of a tensor within a decoder block.
#[derive(Clone, Copy, Debug)]
struct LayerPlace {
    tensor: LayerTensor,
    shape: TensorShape,
    parts: TensorParts,
}

/// Where every tensor lies.
#[derive(Clone, Debug)]
pub struct WeightLayout {
    format: WeightFormat,
    embedding_format: EmbeddingFormat,
    n_layers: usize,
    table: TensorShape,
    hidden_width: usize,
    n_elements: usize,
    /// One decoder block, offsets from its start, in the order they lie.
    layer: Vec<LayerPlace>,
    /// Index into `layer` of each projection's weight.
    matrices: [usize; 7],
    /// Offset of the first decoder block; the embedding table is at 0.
    first_layer: usize,
    /// Bytes from one decoder block to the next.
    layer_bytes: usize,
    final_norm: usize,
    output: Option<usize>,
    n_bytes: usize,
}

/// Lays runs of bytes one after another.
#[derive(Default)]
struct Cursor(usize);

impl Cursor {
    fn place(&mut self, bytes: usize) -> usize {
        let offset = self.0.next_multiple_of(PART_ALIGNMENT);
        self.0 = offset + bytes;
        offset
    }

    fn parts(&mut self, shape: TensorShape, format: WeightFormat) -> TensorParts {
        let n = shape.n_elements();
        match format {
            WeightFormat::F32 => TensorParts::F32 { offset: self.place(n * size_of::<f32>()) },
            WeightFormat::Bf16 => TensorParts::Bf16 { offset: self.place(n * size_of::<bf16>()) },
            WeightFormat::Nf4 => {
                let layout = Nf4Layout { n_elements: n };
                TensorParts::Nf4 {
                    codes: self.place(layout.n_codes()),
                    absmax_codes: self.place(layout.n_blocks()),
                    absmax_scales: self.place(layout.n_groups() * size_of::<f32>()),
                    absmax_offset: self.place(size_of::<f32>()),
                }
            }
        }
    }

    fn page(&mut self) -> usize {
        self.0 = self.0.next_multiple_of(BLOCK_ALIGNMENT);
        self.0
    }
}

impl WeightLayout {
    /// The layout of `spec`'s weights with the usual format for the embedding table.
    pub fn new(spec: &ModelSpec, format: WeightFormat) -> Self {
        Self::with_embedding_format(spec, format, EmbeddingFormat::beside(format))
    }

    /// The layout of `spec`'s weights.
    pub fn with_embedding_format(
        spec: &ModelSpec,
        format: WeightFormat,
        embedding_format: EmbeddingFormat,
    ) -> Self {
        let (layer, layer_bytes) = layer_places(spec, format);
        let matrices = Projection::ALL.map(|projection| {
            layer
                .iter()
                .position(|place| place.tensor == LayerTensor::Matrix(projection))
                .expect("a decoder block has every projection")
        });
        let table = TensorShape::Matrix(spec.vocabulary, spec.hidden_width);
        let table_format = embedding_format.as_weight_format();

        let mut cursor = Cursor::default();
        cursor.parts(table, table_format);
        let first_layer = cursor.page();
        cursor.0 += spec.n_layers * layer_bytes;
        let final_norm = cursor.place(spec.hidden_width * size_of::<f32>());
        cursor.page();
        let output = (!spec.tied_embeddings).then(|| {
            let offset = cursor.0;
            cursor.parts(table, table_format);
            offset
        });
        let n_bytes = cursor.page();
        Self {
            format,
            embedding_format,
            n_layers: spec.n_layers,
            table,
            hidden_width: spec.hidden_width,
            n_elements: spec.n_parameters(),
            layer,
            matrices,
            first_layer,
            layer_bytes,
            final_norm,
            output,
            n_bytes,
        }
    }

    /// The format of the decoder blocks' matrices.
    pub fn format(&self) -> WeightFormat {
        self.format
    }

    /// The format of the embedding table and the output projection.
    pub fn embedding_format(&self) -> EmbeddingFormat {
        self.embedding_format
    }

    /// Decoder blocks.
    pub fn n_layers(&self) -> usize {
        self.n_layers
    }

    /// Numbers stored, without what aligns them.
    pub fn n_elements(&self) -> usize {
        self.n_elements
    }

    /// Bytes of the whole image, a multiple of [`BLOCK_ALIGNMENT`].
    pub fn n_bytes(&self) -> usize {
        self.n_bytes
    }

    /// Bytes of one decoder block, a multiple of [`BLOCK_ALIGNMENT`].
    pub fn layer_bytes(&self) -> usize {
        self.layer_bytes
    }

    /// Where a decoder block begins.
    ///
    /// # Panics
    /// When there is no such layer.
    pub fn layer_offset(&self, layer: usize) -> usize {
        assert!(layer < self.n_layers, "layer {layer} of {}", self.n_layers);
        self.first_layer + layer * self.layer_bytes
    }

    /// The block that holds the byte at `offset` of the image.
    pub fn block_at(&self, offset: usize) -> Block {
        let end_of_layers = self.first_layer + self.n_layers * self.layer_bytes;
        match offset {
            offset if offset < self.first_layer => Block::Embedding,
            offset if offset < end_of_layers => {
                Block::Layer((offset - self.first_layer) / self.layer_bytes)
            }
            offset if self.output.is_some_and(|output| offset >= output) => Block::Output,
            _ => Block::FinalNorm,
        }
    }

    /// The blocks and the bytes they take, in order and without gaps.
    pub fn blocks(&self) -> impl Iterator<Item = (Block, std::ops::Range<usize>)> + '_ {
        let layers = (0..self.n_layers).map(|layer| {
            let offset = self.layer_offset(layer);
            (Block::Layer(layer), offset..offset + self.layer_bytes)
        });
        let norm_end = self.output.unwrap_or(self.n_bytes);
        std::iter::once((Block::Embedding, 0..self.first_layer))
            .chain(layers)
            .chain(std::iter::once((Block::FinalNorm, self.final_norm..norm_end)))
            .chain(self.output.map(|offset| (Block::Output, offset..self.n_bytes)))
    }

    /// Every tensor, in the order they lie.
    pub fn tensors(&self) -> impl Iterator<Item = TensorPlace> + '_ {
        let table = |role, offset| TensorPlace {
            role,
            shape: self.table,
            parts: match self.embedding_format {
                EmbeddingFormat::F32 => TensorParts::F32 { offset },
                EmbeddingFormat::Bf16 => TensorParts::Bf16 { offset },
            },
        };
        let norm = TensorPlace {
            role: TensorRole::FinalNorm,
            shape: TensorShape::Vector(self.hidden_width),
            parts: TensorParts::F32 { offset: self.final_norm },
        };
        std::iter::once(table(TensorRole::Embedding, 0))
            .chain((0..self.n_layers).flat_map(|layer| self.layer_tensors(layer)))
            .chain(std::iter::once(norm))
            .chain(self.output.map(move |offset| table(TensorRole::Output, offset)))
    }

    /// The tensors of one decoder block, in the order they lie.
    pub fn layer_tensors(&self, layer: usize) -> impl Iterator<Item = TensorPlace> + '_ {
        let offset = self.layer_offset(layer);
        self.layer.iter().map(move |place| TensorPlace {
            role: TensorRole::Layer(layer, place.tensor),
            shape: place.shape,
            parts: place.parts.shifted(offset),
        })
    }

    /// A projection's weight, of a decoder block that begins `layer_base` bytes into `memory`.
    pub fn matrix_at(&self, projection: Projection, memory: MemoryId, layer_base: usize) -> Weight {
        let place = &self.layer[self.matrices[projection as usize]];
        handle(place.shape, place.parts.shifted(layer_base), memory)
    }

    /// A norm or a bias, of a decoder block that begins `layer_base` bytes into `memory`; `None`
    /// where the model has none.
    pub fn vector_at(
        &self,
        tensor: LayerTensor,
        memory: MemoryId,
        layer_base: usize,
    ) -> Option<DeviceSlice<f32>> {
        let place = self.layer.iter().find(|place| place.tensor == tensor)?;
        match (place.shape, place.parts) {
            (TensorShape::Vector(len), TensorParts::F32 { offset }) => {
                Some(DeviceSlice::new(memory, layer_base + offset, len))
            }
            _ => None,
        }
    }

    /// The scale of the last norm, of a block that begins `base` bytes into `memory`.
    pub fn final_norm_at(&self, memory: MemoryId, base: usize) -> DeviceSlice<f32> {
        DeviceSlice::new(memory, base, self.hidden_width)
    }

    /// The embedding table, which begins `base` bytes into `memory`.
    pub fn embedding_at(&self, memory: MemoryId, base: usize) -> EmbeddingTable {
        let n = self.table.n_elements();
        match self.embedding_format {
            EmbeddingFormat::F32 => EmbeddingTable::F32(DeviceSlice::new(memory, base, n)),
            EmbeddingFormat::Bf16 => EmbeddingTable::Bf16(DeviceSlice::new(memory, base, n)),
        }
    }

    /// The output projection, which begins `base` bytes into `memory`.
    pub fn output_at(&self, memory: MemoryId, base: usize) -> Weight {
        let n = self.table.n_elements();
        match self.embedding_format {
            EmbeddingFormat::F32 => Weight::F32(DeviceSlice::new(memory, base, n)),
            EmbeddingFormat::Bf16 => Weight::Bf16(DeviceSlice::new(memory, base, n)),
        }
    }

    /// Where a block begins in the image; the output projection of tied models is the embedding.
    ///
    /// # Panics
    /// When there is no such layer.
    pub fn block_offset(&self, block: Block) -> usize {
        match block {
            Block::Embedding => 0,
            Block::Layer(layer) => self.layer_offset(layer),
            Block::FinalNorm => self.final_norm,
            Block::Output => self.output.unwrap_or(0),
        }
    }

    /// Whether the output projection is the embedding table.
    pub fn is_tied(&self) -> bool {
        self.output.is_none()
    }
}

impl TensorPlace {
    /// The tensor's numbers, of an image that begins `base` bytes into `memory`, in its format.
    pub fn weight(&self, memory: MemoryId, base: usize) -> Weight {
        handle(self.shape, self.parts.shifted(base), memory)
    }
}

pub(crate) fn handle(shape: TensorShape, parts: TensorParts, memory: MemoryId) -> Weight {
    let n_elements = shape.n_elements();
    match parts {
        TensorParts::F32 { offset } => Weight::F32(DeviceSlice::new(memory, offset, n_elements)),
        TensorParts::Bf16 { offset } => Weight::Bf16(DeviceSlice::new(memory, offset, n_elements)),
        TensorParts::Nf4 { codes, absmax_codes, absmax_scales, absmax_offset } => {
            let layout = Nf4Layout { n_elements };
            Weight::Nf4(Nf4Weight {
                codes: DeviceSlice::new(memory, codes, layout.n_codes()),
                absmax_codes: DeviceSlice::new(memory, absmax_codes, layout.n_blocks()),
                absmax_scales: DeviceSlice::new(memory, absmax_scales, layout.n_groups()),
                absmax_offset: DeviceSlice::new(memory, absmax_offset, 1),
            })
        }
    }
}

/// The tensors of a decoder block in the order they are used, and the bytes of the whole.
fn layer_places(spec: &ModelSpec, format: WeightFormat) -> (Vec<LayerPlace>, usize) {
    let mut cursor = Cursor::default();
    let mut places = Vec::with_capacity(18);
    let mut place = |tensor, shape, format| {
        places.push(LayerPlace { tensor, shape, parts: cursor.parts(shape, format) });
    };
    let hidden = TensorShape::Vector(spec.hidden_width);
    let head = TensorShape::Vector(spec.head_size);
    place(LayerTensor::InputNorm, hidden, WeightFormat::F32);
    for projection in Projection::ALL {
        let [n_out, n_in] = spec.projection_shape(projection);
        place(LayerTensor::Matrix(projection), TensorShape::Matrix(n_out, n_in), format);
        if spec.has_bias(projection) {
            place(LayerTensor::Bias(projection), TensorShape::Vector(n_out), WeightFormat::F32);
        }
        match projection {
            Projection::Query if spec.qk_norm => {
                place(LayerTensor::QueryNorm, head, WeightFormat::F32);
            }
            Projection::Key if spec.qk_norm => place(LayerTensor::KeyNorm, head, WeightFormat::F32),
            Projection::Output => place(LayerTensor::PostAttentionNorm, hidden, WeightFormat::F32),
            _ => {}
        }
    }
    (places, cursor.page())
}

#[cfg(test)]
mod tests;
