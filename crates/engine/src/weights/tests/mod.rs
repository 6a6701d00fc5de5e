//! Tests of everything between a model folder and an image, on folders made for the purpose.

mod image;
mod load;
mod random;
mod source;

use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{
    random::{RandomModel, write_random_model},
    source::{ModelFolder, StoredType},
};

const STORED_TYPES: [StoredType; 3] = [StoredType::F32, StoredType::F16, StoredType::Bf16];

/// A tiny Qwen 3: every kind of tensor but the biases of the feed-forward block, untied.
fn config() -> Value {
    json!({
        "model_type": "qwen3",
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": true,
        "hidden_act": "silu",
        "hidden_size": 48,
        "intermediate_size": 80,
        "max_position_embeddings": 256,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "head_dim": 10,
        "vocab_size": 67
    })
}

fn write(config: &Value, folder: &Path, model: RandomModel) {
    write_random_model(config, folder, model).unwrap();
}

fn in_one_file(stored_type: StoredType) -> RandomModel {
    RandomModel { seed: 1, stored_type, max_shard_bytes: None }
}

/// A folder of random weights in one bf16 file.
fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    write(&config(), folder.path(), in_one_file(StoredType::Bf16));
    folder
}

fn open(folder: &TempDir) -> ModelFolder {
    ModelFolder::open(folder.path()).unwrap()
}
