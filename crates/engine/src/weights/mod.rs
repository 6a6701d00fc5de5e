//! A model's base weights: where each tensor lies, where it comes from, how it gets into memory.
//!
//! ```text
//! model folder ── source ── load ── image on disk, mapped in place
//!                             └──── device memory
//! ```
//! Knows nothing of training; what is done with the weights is decided by whoever holds their
//! layout.

pub mod image;
pub mod layout;
pub mod load;
mod place;
pub mod random;
mod safetensors_file;
pub mod source;
mod tensor;

pub use layout::{
    EmbeddingFormat, LayerTensor, TensorPlace, TensorRole, WeightFormat, WeightLayout,
};
pub use place::{PagedLayers, PlacedWeights, place_weights};
pub use source::{ModelFolder, StoredType};

pub(crate) use safetensors_file::convert;

#[cfg(test)]
mod tests;
