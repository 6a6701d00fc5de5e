//! Qwen 2 and 2.5 (Yang et al., 2024): a bias on queries, keys and values, and windows from some
//! depth on.

use super::{Config, Defaults, Family, ModelError, ModelSpec, decoder, windows_by_depth};

pub(super) fn spec(config: Config<'_>) -> Result<ModelSpec, ModelError> {
    let defaults = Defaults { head_size: None, kv_heads_optional: false };
    let mut spec = decoder(config, Family::Qwen2, &defaults)?;
    spec.qkv_bias = true;
    spec.sliding_windows = windows_by_depth(config, spec.n_layers)?;
    Ok(spec)
}
