//! Qwen 3, dense (Yang et al., 2025): queries and keys are normalised head by head, and the head
//! size is a key of its own.

use super::{Config, Defaults, Family, ModelError, ModelSpec, decoder, windows_by_depth};

/// The head size of every published model of the family.
const DEFAULT_HEAD_SIZE: usize = 128;

pub(super) fn spec(config: Config<'_>) -> Result<ModelSpec, ModelError> {
    let defaults = Defaults { head_size: Some(DEFAULT_HEAD_SIZE), kv_heads_optional: false };
    let mut spec = decoder(config, Family::Qwen3, &defaults)?;
    let attention_bias = config.flag("attention_bias", false)?;
    spec.qkv_bias = attention_bias;
    spec.output_bias = attention_bias;
    spec.qk_norm = true;
    spec.sliding_windows = windows_by_depth(config, spec.n_layers)?;
    Ok(spec)
}
