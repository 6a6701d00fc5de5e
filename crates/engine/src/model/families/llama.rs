//! Llama 2 and 3 (Touvron et al., 2023; Grattafiori et al., 2024) and the models built like them.

use super::{Config, Defaults, Family, ModelError, ModelSpec, decoder};

pub(super) fn spec(config: Config<'_>) -> Result<ModelSpec, ModelError> {
    let defaults = Defaults { head_size: None, kv_heads_optional: true };
    let mut spec = decoder(config, Family::Llama, &defaults)?;
    let attention_bias = config.flag("attention_bias", false)?;
    spec.qkv_bias = attention_bias;
    spec.output_bias = attention_bias;
    spec.mlp_bias = config.flag("mlp_bias", false)?;
    Ok(spec)
}
