//! The shape of a decoder, whatever its family.

use std::{fmt, path::Path};

use nibble_kernels::rope::RopeScaling;
use serde::{Deserialize, Serialize};

use super::{Family, ModelError};

/// The largest width, vocabulary or number of heads that is believed; published models stay a
/// hundredfold below.
const MAX_EXTENT: usize = 1 << 24;
/// The deepest decoder that is believed.
const MAX_LAYERS: usize = 1 << 12;
/// The longest context that is believed: positions are stored in 32 bits.
const MAX_CONTEXT: usize = 1 << 31;
/// The most parameters that are believed. Sixteen bytes for each, the dearest method, then stay
/// far within 64 bits.
const MAX_PARAMETERS: usize = 1 << 47;

/// A linear layer of a decoder block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Projection {
    /// Hidden state to queries.
    #[serde(rename = "q_proj")]
    Query,
    /// Hidden state to keys.
    #[serde(rename = "k_proj")]
    Key,
    /// Hidden state to values.
    #[serde(rename = "v_proj")]
    Value,
    /// Attention's result back to the hidden width.
    #[serde(rename = "o_proj")]
    Output,
    /// Hidden state to the gate of the feed-forward block.
    #[serde(rename = "gate_proj")]
    Gate,
    /// Hidden state to the feed-forward width.
    #[serde(rename = "up_proj")]
    Up,
    /// Feed-forward width back to the hidden width.
    #[serde(rename = "down_proj")]
    Down,
}

impl Projection {
    /// All of them, in the order the decoder runs them.
    pub const ALL: [Self; 7] =
        [Self::Query, Self::Key, Self::Value, Self::Output, Self::Gate, Self::Up, Self::Down];

    /// Those that read the same input, and so run together.
    pub const OF_ONE_INPUT: [&[Self]; 4] = [
        &[Self::Query, Self::Key, Self::Value],
        &[Self::Output],
        &[Self::Gate, Self::Up],
        &[Self::Down],
    ];

    /// The name of the layer in model and adapter files.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Query => "q_proj",
            Self::Key => "k_proj",
            Self::Value => "v_proj",
            Self::Output => "o_proj",
            Self::Gate => "gate_proj",
            Self::Up => "up_proj",
            Self::Down => "down_proj",
        }
    }

    /// The name with that of the block it is in, as in `self_attn.q_proj`.
    pub const fn path(self) -> &'static str {
        match self {
            Self::Query => "self_attn.q_proj",
            Self::Key => "self_attn.k_proj",
            Self::Value => "self_attn.v_proj",
            Self::Output => "self_attn.o_proj",
            Self::Gate => "mlp.gate_proj",
            Self::Up => "mlp.up_proj",
            Self::Down => "mlp.down_proj",
        }
    }

    /// The projection that files call `name`, as in `q_proj`.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|projection| projection.name() == name)
    }
}

impl fmt::Display for Projection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Everything about a decoder that its weights' shapes and its arithmetic depend on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelSpec {
    /// Which family it belongs to.
    pub family: Family,
    /// Decoder blocks.
    pub n_layers: usize,
    /// D, width of the residual stream.
    pub hidden_width: usize,
    /// F, width inside the feed-forward block.
    pub ffn_width: usize,
    /// H, query heads.
    pub n_heads: usize,
    /// G, key and value heads; each serves `n_heads / n_kv_heads` query heads.
    pub n_kv_heads: usize,
    /// K, width of a head.
    pub head_size: usize,
    /// V, rows of the embedding table.
    pub vocabulary: usize,
    /// Added to the mean square under the root of every norm.
    pub rms_epsilon: f64,
    /// Base of the rotation frequencies.
    pub rope_base: f64,
    /// How the rotation frequencies are stretched.
    pub rope_scaling: RopeScaling,
    /// Tokens the model was made for.
    pub max_context: usize,
    /// Whether the output projection is the embedding table.
    pub tied_embeddings: bool,
    /// Whether queries, keys and values have a bias.
    pub qkv_bias: bool,
    /// Whether attention's output projection has a bias.
    pub output_bias: bool,
    /// Whether gate, up and down have a bias.
    pub mlp_bias: bool,
    /// Whether each query and key head is normalised before the rotation.
    pub qk_norm: bool,
    /// For each layer, how many tokens a token sees, itself included; `None`: all before it.
    pub sliding_windows: Vec<Option<usize>>,
}

impl ModelSpec {
    /// Width of all query heads together.
    pub const fn query_width(&self) -> usize {
        self.n_heads * self.head_size
    }

    /// Width of all key (or value) heads together.
    pub const fn kv_width(&self) -> usize {
        self.n_kv_heads * self.head_size
    }

    /// `[n_out, n_in]` of a projection's weight.
    pub const fn projection_shape(&self, projection: Projection) -> [usize; 2] {
        match projection {
            Projection::Query => [self.query_width(), self.hidden_width],
            Projection::Key | Projection::Value => [self.kv_width(), self.hidden_width],
            Projection::Output => [self.hidden_width, self.query_width()],
            Projection::Gate | Projection::Up => [self.ffn_width, self.hidden_width],
            Projection::Down => [self.hidden_width, self.ffn_width],
        }
    }

    /// Whether a projection has a bias.
    pub const fn has_bias(&self, projection: Projection) -> bool {
        match projection {
            Projection::Query | Projection::Key | Projection::Value => self.qkv_bias,
            Projection::Output => self.output_bias,
            Projection::Gate | Projection::Up | Projection::Down => self.mlp_bias,
        }
    }

    /// How many tokens a token of `layer` sees, itself included; `None`: all before it.
    pub fn sliding_window(&self, layer: usize) -> Option<usize> {
        self.sliding_windows.get(layer).copied().flatten()
    }

    /// Numbers in one layer's weights.
    pub fn n_layer_parameters(&self) -> usize {
        let linear: usize = Projection::ALL
            .into_iter()
            .map(|projection| {
                let [n_out, n_in] = self.projection_shape(projection);
                n_out * n_in + if self.has_bias(projection) { n_out } else { 0 }
            })
            .sum();
        let head_norms = if self.qk_norm { 2 * self.head_size } else { 0 };
        linear + head_norms + 2 * self.hidden_width
    }

    /// Numbers in the model's weights; a tied table counts once.
    pub fn n_parameters(&self) -> usize {
        let table = self.vocabulary * self.hidden_width;
        let tables = if self.tied_embeddings { table } else { 2 * table };
        tables + self.n_layers * self.n_layer_parameters() + self.hidden_width
    }

    /// Refuses shapes that no decoder can have, before anything is computed from them.
    ///
    /// # Errors
    /// Names the key of `path` that is at fault.
    pub(super) fn validate(&self, path: &Path) -> Result<(), ModelError> {
        let bad = |key: &str, found: usize, expected: String| {
            Err(ModelError::BadValue {
                path: path.to_owned(),
                key: key.into(),
                found: found.to_string(),
                expected,
            })
        };
        for (key, value, limit) in [
            ("num_hidden_layers", self.n_layers, MAX_LAYERS),
            ("hidden_size", self.hidden_width, MAX_EXTENT),
            ("intermediate_size", self.ffn_width, MAX_EXTENT),
            ("num_attention_heads", self.n_heads, MAX_EXTENT),
            ("num_key_value_heads", self.n_kv_heads, MAX_EXTENT),
            ("head_dim", self.head_size, MAX_EXTENT),
            ("vocab_size", self.vocabulary, MAX_EXTENT),
            ("max_position_embeddings", self.max_context, MAX_CONTEXT),
        ] {
            if value == 0 || value > limit {
                return bad(key, value, format!("a whole number from 1 to {limit}"));
            }
        }
        if !self.n_heads.is_multiple_of(self.n_kv_heads) {
            return bad(
                "num_key_value_heads",
                self.n_kv_heads,
                format!("a divisor of num_attention_heads ({})", self.n_heads),
            );
        }
        if !self.head_size.is_multiple_of(2) {
            return bad("head_dim", self.head_size, "even, for its halves are rotated".into());
        }
        // Every product below is of two extents of at most 2^24, or of a head count and a head
        // size: within 64 bits, so only their sum over the layers needs the check.
        let query_width = self.n_heads * self.head_size;
        if query_width > MAX_EXTENT {
            return bad(
                "head_dim",
                self.head_size,
                format!("at most {} with {} heads", MAX_EXTENT / self.n_heads, self.n_heads),
            );
        }
        let total = self
            .n_layer_parameters()
            .checked_mul(self.n_layers)
            .and_then(|layers| layers.checked_add(2 * self.vocabulary * self.hidden_width));
        if total.is_none_or(|total| total > MAX_PARAMETERS) {
            return bad(
                "num_hidden_layers",
                self.n_layers,
                format!("small enough for at most {MAX_PARAMETERS} parameters in all"),
            );
        }
        Ok(())
    }
}
