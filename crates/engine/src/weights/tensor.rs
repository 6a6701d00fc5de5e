//! What a model's tensors are: their roles, names, shapes and the forms they are stored in.

use serde::{Deserialize, Serialize};

use crate::model::Projection;

/// How the matrices of the decoder blocks are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WeightFormat {
    /// Four bytes a number.
    F32,
    /// Two bytes a number.
    Bf16,
    /// Half a byte a number, and an eighth of a bit for each block's scale.
    Nf4,
}

impl WeightFormat {
    /// The format's name in files and messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Nf4 => "nf4",
        }
    }
}

/// How the embedding table and the output projection are stored; they are never quantised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EmbeddingFormat {
    /// Four bytes a number.
    F32,
    /// Two bytes a number.
    Bf16,
}

impl EmbeddingFormat {
    /// What goes with a format of the other matrices unless one chooses otherwise.
    pub const fn beside(format: WeightFormat) -> Self {
        match format {
            WeightFormat::F32 => Self::F32,
            WeightFormat::Bf16 | WeightFormat::Nf4 => Self::Bf16,
        }
    }

    /// The format's name in files and messages.
    pub const fn name(self) -> &'static str {
        self.as_weight_format().name()
    }

    pub(super) const fn as_weight_format(self) -> WeightFormat {
        match self {
            Self::F32 => WeightFormat::F32,
            Self::Bf16 => WeightFormat::Bf16,
        }
    }
}

/// A tensor within a decoder block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LayerTensor {
    /// Scale of the norm before attention, `[D]`.
    InputNorm,
    /// A projection's weight, `[n_out, n_in]`.
    Matrix(Projection),
    /// A projection's bias, `[n_out]`.
    Bias(Projection),
    /// Scale of the norm on each query head, `[K]`.
    QueryNorm,
    /// Scale of the norm on each key head, `[K]`.
    KeyNorm,
    /// Scale of the norm before the feed-forward block, `[D]`.
    PostAttentionNorm,
}

/// A tensor of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TensorRole {
    /// The embedding table, `[V, D]`.
    Embedding,
    /// A tensor of the decoder block of this number.
    Layer(usize, LayerTensor),
    /// Scale of the norm before the output projection, `[D]`.
    FinalNorm,
    /// The output projection, `[V, D]`; absent where it is the embedding table.
    Output,
}

impl TensorRole {
    /// The tensor's name in model files.
    pub fn name(self) -> String {
        match self {
            Self::Embedding => "model.embed_tokens.weight".into(),
            Self::FinalNorm => "model.norm.weight".into(),
            Self::Output => "lm_head.weight".into(),
            Self::Layer(layer, tensor) => {
                let (path, kind) = match tensor {
                    LayerTensor::InputNorm => ("input_layernorm", "weight"),
                    LayerTensor::Matrix(projection) => (projection.path(), "weight"),
                    LayerTensor::Bias(projection) => (projection.path(), "bias"),
                    LayerTensor::QueryNorm => ("self_attn.q_norm", "weight"),
                    LayerTensor::KeyNorm => ("self_attn.k_norm", "weight"),
                    LayerTensor::PostAttentionNorm => ("post_attention_layernorm", "weight"),
                };
                format!("model.layers.{layer}.{path}.{kind}")
            }
        }
    }

    /// Whether it is a matrix: norms and biases take no weight decay.
    pub const fn is_matrix(self) -> bool {
        matches!(self, Self::Embedding | Self::Output | Self::Layer(_, LayerTensor::Matrix(_)))
    }
}

/// A tensor's extents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TensorShape {
    /// `[n]`
    Vector(usize),
    /// `[n_out, n_in]`
    Matrix(usize, usize),
}

impl TensorShape {
    /// How many numbers.
    pub const fn n_elements(self) -> usize {
        match self {
            Self::Vector(n) => n,
            Self::Matrix(n_out, n_in) => n_out * n_in,
        }
    }

    /// The extents as a list.
    pub fn to_vec(self) -> Vec<usize> {
        match self {
            Self::Vector(n) => vec![n],
            Self::Matrix(n_out, n_in) => vec![n_out, n_in],
        }
    }
}

/// Byte offsets of a tensor's parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TensorParts {
    /// One run of f32.
    F32 {
        /// Its first byte.
        offset: usize,
    },
    /// One run of bf16.
    Bf16 {
        /// Its first byte.
        offset: usize,
    },
    /// The four parts of [`Nf4Weight`].
    Nf4 {
        /// Packed codes.
        codes: usize,
        /// A byte for each block of 64.
        absmax_codes: usize,
        /// An f32 for each 256 blocks.
        absmax_scales: usize,
        /// One f32.
        absmax_offset: usize,
    },
}

impl TensorParts {
    /// The format the parts are of.
    pub const fn format(self) -> WeightFormat {
        match self {
            Self::F32 { .. } => WeightFormat::F32,
            Self::Bf16 { .. } => WeightFormat::Bf16,
            Self::Nf4 { .. } => WeightFormat::Nf4,
        }
    }

    /// The same parts, `bytes` further on.
    pub(super) const fn shifted(self, bytes: usize) -> Self {
        self.moved(0, bytes)
    }

    /// The same parts of something that begins at `to` instead of at `from`.
    pub(crate) const fn moved(self, from: usize, to: usize) -> Self {
        match self {
            Self::F32 { offset } => Self::F32 { offset: offset - from + to },
            Self::Bf16 { offset } => Self::Bf16 { offset: offset - from + to },
            Self::Nf4 { codes, absmax_codes, absmax_scales, absmax_offset } => Self::Nf4 {
                codes: codes - from + to,
                absmax_codes: absmax_codes - from + to,
                absmax_scales: absmax_scales - from + to,
                absmax_offset: absmax_offset - from + to,
            },
        }
    }
}
