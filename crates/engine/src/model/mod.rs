//! The shapes of models: what a `config.json` says, in one form for every family.
//!
//! Knows nothing of weights' storage, devices or training.

mod config;
mod error;
mod families;
mod spec;

use std::path::Path;

pub use error::ModelError;
pub use families::Family;
pub use spec::{ModelSpec, Projection};

impl ModelSpec {
    /// The shape that the Hugging Face configuration at `path` describes.
    ///
    /// # Errors
    /// When the file cannot be read, is not JSON, is of an unknown family or describes a shape
    /// that no decoder can have.
    pub fn from_config_file(path: &Path) -> Result<Self, ModelError> {
        let read = |source| ModelError::Read { path: path.to_owned(), source };
        let text = std::fs::read_to_string(path).map_err(read)?;
        let value = serde_json::from_str(&text)
            .map_err(|source| ModelError::Json { path: path.to_owned(), source })?;
        Self::from_config(&value, path)
    }

    /// The shape that a Hugging Face configuration describes; `path` names it in errors.
    ///
    /// # Errors
    /// When it is of an unknown family or describes a shape that no decoder can have.
    pub fn from_config(config: &serde_json::Value, path: &Path) -> Result<Self, ModelError> {
        families::read(config::Config::new(config, path)?)
    }
}

#[cfg(test)]
mod tests;
