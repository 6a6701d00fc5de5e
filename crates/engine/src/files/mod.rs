//! Writing tensors to disk without holding them.

mod safetensors_writer;

pub use safetensors_writer::{SafetensorsWriter, TensorEntry};
