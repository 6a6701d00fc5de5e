//! Mistral (Jiang et al., 2023): Llama's block, with a sliding window on every layer or on none.

use super::{Config, Defaults, Family, ModelError, ModelSpec, decoder, windows_by_type};

/// The window of a configuration that does not mention one: the first published model's.
const DEFAULT_WINDOW: usize = 4096;

pub(super) fn spec(config: Config<'_>) -> Result<ModelSpec, ModelError> {
    let defaults = Defaults { head_size: None, kv_heads_optional: false };
    let mut spec = decoder(config, Family::Mistral, &defaults)?;
    let window = match config.contains("sliding_window") {
        // Null is how the later models say that they have none.
        true => config.optional_count("sliding_window")?,
        false => Some(DEFAULT_WINDOW),
    };
    spec.sliding_windows = windows_by_type(config, window, vec![window; spec.n_layers])?;
    Ok(spec)
}
