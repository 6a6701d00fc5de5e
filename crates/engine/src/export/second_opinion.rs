//! A second implementation's logits: the same weights run by candle-transformers, which shares no
//! code with this engine.

use std::collections::HashMap;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::{llama, mistral, qwen2, qwen3};
use nibble_kernels::rope::RopeScaling;
use serde_json::{Value, json};

use crate::model::{Family, ModelSpec, Projection};

/// The logits of the last of `ids`, computed by candle from f32 `tensors` under their names in
/// model files; `None` where candle does not know such a model.
///
/// # Errors
/// When candle refuses the tensors.
pub fn last_logits(
    spec: &ModelSpec,
    tensors: HashMap<String, Tensor>,
    ids: &[u32],
) -> Result<Option<Vec<f32>>> {
    let Some(config) = config(spec) else { return Ok(None) };
    let vars = VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
    let ids = Tensor::new(ids, &Device::Cpu)?.unsqueeze(0)?;
    let invalid = |error: serde_json::Error| candle_core::Error::Msg(error.to_string());
    let logits = match spec.family {
        Family::Llama => {
            let config: llama::LlamaConfig = serde_json::from_value(config).map_err(invalid)?;
            let config = config.into_config(false);
            let mut cache = llama::Cache::new(false, DType::F32, &config, &Device::Cpu)?;
            llama::Llama::load(vars, &config)?.forward(&ids, 0, &mut cache)?
        }
        Family::Mistral => {
            let config: mistral::Config = serde_json::from_value(config).map_err(invalid)?;
            mistral::Model::new(&config, vars)?.forward(&ids, 0)?
        }
        Family::Qwen2 => {
            let config: qwen2::Config = serde_json::from_value(config).map_err(invalid)?;
            qwen2::ModelForCausalLM::new(&config, vars)?.forward(&ids, 0)?
        }
        Family::Qwen3 => {
            let config: qwen3::Config = serde_json::from_value(config).map_err(invalid)?;
            qwen3::ModelForCausalLM::new(&config, vars)?.forward(&ids, 0)?
        }
    };
    logits.flatten_all()?.to_vec1().map(Some)
}

/// The shape in the words of candle's configurations, or `None` where they lack one.
fn config(spec: &ModelSpec) -> Option<Value> {
    let rope_scaling = match spec.rope_scaling {
        RopeScaling::None => Value::Null,
        RopeScaling::Llama3 {
            factor,
            low_frequency_factor,
            high_frequency_factor,
            original_context,
        } if spec.family == Family::Llama => json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low_frequency_factor,
            "high_freq_factor": high_frequency_factor,
            "original_max_position_embeddings": original_context,
        }),
        _ => return None,
    };
    let windows: Vec<_> = (0..spec.n_layers).map(|layer| spec.sliding_window(layer)).collect();
    let window = windows.first().copied().flatten();
    // Candle's windows are those of whole models, and its Llama has neither window nor bias.
    let uniform = windows.iter().all(|&other| other == window);
    let plain_heads = spec.head_size * spec.n_heads == spec.hidden_width;
    let bias = Projection::ALL.into_iter().any(|projection| spec.has_bias(projection));
    let known = match spec.family {
        Family::Llama => window.is_none() && plain_heads && !bias,
        Family::Mistral => uniform && !bias,
        Family::Qwen2 => uniform && window.is_none() && plain_heads,
        Family::Qwen3 => uniform && window.is_none() && !bias,
    };
    known.then(|| {
        json!({
            "vocab_size": spec.vocabulary,
            "hidden_size": spec.hidden_width,
            "intermediate_size": spec.ffn_width,
            "num_hidden_layers": spec.n_layers,
            "num_attention_heads": spec.n_heads,
            "num_key_value_heads": spec.n_kv_heads,
            "head_dim": spec.head_size,
            "attention_bias": false,
            "hidden_act": "silu",
            "max_position_embeddings": spec.max_context,
            "rms_norm_eps": spec.rms_epsilon,
            "rope_theta": spec.rope_base,
            "rope_scaling": rope_scaling,
            // Mistral's window is optional; the others want a number even when it is not used.
            "sliding_window": match (spec.family, window) {
                (_, Some(window)) => json!(window),
                (Family::Qwen2, None) => json!(spec.max_context),
                (_, None) => Value::Null,
            },
            "max_window_layers": spec.n_layers,
            "use_sliding_window": false,
            "tie_word_embeddings": spec.tied_embeddings,
        })
    })
}
