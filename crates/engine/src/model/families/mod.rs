//! The families of models: one file each, filling in a [`ModelSpec`].
//!
//! A family differs from the others in which keys its configuration has, what they default to, and
//! which biases, norms and windows its blocks have. The decoder itself is written once, for all.

mod llama;
mod mistral;
mod qwen2;
mod qwen3;

use serde::{Deserialize, Serialize};

use super::{
    ModelError, ModelSpec,
    config::{self, Config},
};

/// A family of models.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// Llama 2 and 3, TinyLlama, SmolLM2.
    Llama,
    /// Mistral.
    Mistral,
    /// Qwen 2 and 2.5.
    Qwen2,
    /// Qwen 3, dense.
    Qwen3,
}

impl Family {
    /// Every family.
    pub const ALL: [Self; 4] = [Self::Llama, Self::Mistral, Self::Qwen2, Self::Qwen3];

    /// The family's name, `model_type` in configuration files.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
        }
    }

    /// The class its configuration files name under `architectures`.
    pub const fn architecture(self) -> &'static str {
        match self {
            Self::Llama => "LlamaForCausalLM",
            Self::Mistral => "MistralForCausalLM",
            Self::Qwen2 => "Qwen2ForCausalLM",
            Self::Qwen3 => "Qwen3ForCausalLM",
        }
    }

    fn spec(self, config: Config<'_>) -> Result<ModelSpec, ModelError> {
        match self {
            Self::Llama => llama::spec(config),
            Self::Mistral => mistral::spec(config),
            Self::Qwen2 => qwen2::spec(config),
            Self::Qwen3 => qwen3::spec(config),
        }
    }
}

/// The spec that `config` describes.
pub(super) fn read(config: Config<'_>) -> Result<ModelSpec, ModelError> {
    let family = recognise(config)?;
    if let Some(quantization) = config.value("quantization_config") {
        let method = quantization.get("quant_method").and_then(|method| method.as_str());
        return Err(ModelError::Quantized {
            path: config.path().to_owned(),
            method: method.unwrap_or("unnamed").into(),
        });
    }
    if let Some(activation) = config.text("hidden_act")?
        && !matches!(activation, "silu" | "swish")
    {
        return Err(config.unsupported("hidden_act", "silu"));
    }
    family.spec(config)
}

/// The family by `model_type`, or by `architectures` where that is absent. Where both are there they
/// must agree: a classifier of a known type is not a language model.
fn recognise(config: Config<'_>) -> Result<Family, ModelError> {
    let model_type = config.text("model_type")?;
    let architectures = config.texts("architectures")?.filter(|names| !names.is_empty());
    let family = Family::ALL.into_iter().find(|family| {
        model_type.is_none_or(|name| name == family.name())
            && architectures.as_ref().is_none_or(|names| names.contains(&family.architecture()))
    });
    let found = match (model_type, architectures) {
        (None, None) => return Err(config.missing("model_type")),
        (Some(name), None) => name.to_owned(),
        (None, Some(names)) => names.join(", "),
        (Some(name), Some(names)) => format!("{} (of type {name})", names.join(", ")),
    };
    family.ok_or_else(|| ModelError::UnknownArchitecture {
        path: config.path().to_owned(),
        found,
        supported: Family::ALL.map(Family::architecture).join(", "),
    })
}

/// What a family assumes where its configuration is silent.
struct Defaults {
    /// Width of a head; `None`: the hidden width shared among the heads.
    head_size: Option<usize>,
    /// Whether `num_key_value_heads` may be absent and then equals `num_attention_heads`.
    kv_heads_optional: bool,
}

/// The keys that every family has, checked, with no bias, no norm on queries and keys, and no window.
fn decoder(
    config: Config<'_>,
    family: Family,
    defaults: &Defaults,
) -> Result<ModelSpec, ModelError> {
    let n_layers = config.count("num_hidden_layers")?;
    let hidden_width = config.count("hidden_size")?;
    let n_heads = config.count("num_attention_heads")?;
    let n_kv_heads = match config.optional_count("num_key_value_heads")? {
        Some(n_kv_heads) => n_kv_heads,
        None if defaults.kv_heads_optional => n_heads,
        None => return Err(config.missing("num_key_value_heads")),
    };
    let head_size = match config.optional_count("head_dim")?.or(defaults.head_size) {
        Some(head_size) => head_size,
        None if hidden_width.is_multiple_of(n_heads) => hidden_width / n_heads,
        None => {
            let expected = format!("a divisor of hidden_size ({hidden_width})");
            return Err(config.bad("num_attention_heads", expected));
        }
    };
    let max_context = config.count("max_position_embeddings")?;
    let (rope_base, rope_scaling) = config::rope(config, max_context, 10_000.0)?;
    let mut spec = ModelSpec {
        family,
        n_layers,
        hidden_width,
        ffn_width: config.count("intermediate_size")?,
        n_heads,
        n_kv_heads,
        head_size,
        vocabulary: config.count("vocab_size")?,
        rms_epsilon: config.optional_positive("rms_norm_eps")?.unwrap_or(1e-6),
        rope_base,
        rope_scaling,
        max_context,
        tied_embeddings: config.flag("tie_word_embeddings", false)?,
        qkv_bias: false,
        output_bias: false,
        mlp_bias: false,
        qk_norm: false,
        sliding_windows: Vec::new(),
    };
    spec.validate(config.path())?;
    // Only now is the number of layers known to be one that a list can be made for.
    spec.sliding_windows = vec![None; n_layers];
    Ok(spec)
}

/// The window of each layer where only the layers from some depth on have one: `use_sliding_window`,
/// `sliding_window` and `max_window_layers`, or a `layer_types` that spells it out.
fn windows_by_depth(config: Config<'_>, n_layers: usize) -> Result<Vec<Option<usize>>, ModelError> {
    if !config.flag("use_sliding_window", false)? {
        return windows_by_type(config, None, vec![None; n_layers]);
    }
    let window = match config.contains("sliding_window") {
        true => config.optional_count("sliding_window")?,
        false => Some(4096),
    };
    let n_full = match config.value("max_window_layers").and_then(serde_json::Value::as_u64) {
        Some(n_full) => usize::try_from(n_full).unwrap_or(usize::MAX),
        None if config.value("max_window_layers").is_none() => 28,
        None => return Err(config.bad("max_window_layers", "a whole number")),
    };
    let by_depth = (0..n_layers).map(|layer| if layer >= n_full { window } else { None }).collect();
    windows_by_type(config, window, by_depth)
}

/// `layer_types`, where it is there, decides which layers have `window`; else `otherwise` holds.
fn windows_by_type(
    config: Config<'_>,
    window: Option<usize>,
    otherwise: Vec<Option<usize>>,
) -> Result<Vec<Option<usize>>, ModelError> {
    let Some(types) = config.texts("layer_types")? else { return Ok(otherwise) };
    if types.len() != otherwise.len() {
        let expected = format!("one entry for each of the {} layers", otherwise.len());
        return Err(config.bad("layer_types", expected));
    }
    types
        .into_iter()
        .map(|layer_type| match (layer_type, window) {
            ("full_attention", _) => Ok(None),
            ("sliding_attention", Some(window)) => Ok(Some(window)),
            ("sliding_attention", None) => {
                Err(config.bad("layer_types", "full_attention only, as there is no sliding_window"))
            }
            _ => Err(config.unsupported("layer_types", "full_attention, sliding_attention")),
        })
        .collect()
}
