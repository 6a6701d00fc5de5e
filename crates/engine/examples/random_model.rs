//! A model folder of a catalog model's shape with random weights, a tokenizer of made-up words and
//! a dataset of whole sequences: something to measure with.
//!
//! `cargo run --release --example random_model -- SHAPE FOLDER TOKENS`, the shape by its id in the
//! catalog or as a `config.json`, and the tokens of an example.

use std::{error::Error, fmt::Write, fs, path::PathBuf};

use nibble_engine::{
    catalog,
    weights::{
        StoredType,
        random::{RandomModel, write_random_model},
    },
};
use serde_json::{Map, json};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [shape, folder, n_tokens] = arguments.as_slice() else {
        return Err(
            "give a catalog id or a config.json, a folder, and the tokens of an example".into()
        );
    };
    let folder = PathBuf::from(folder);
    let n_tokens: usize = n_tokens.parse()?;
    let mut config = if shape.ends_with(".json") {
        serde_json::from_str(&fs::read_to_string(shape)?)?
    } else {
        catalog::find(shape)?.config.clone()
    };
    // A small model may see less than an example.
    let context = config["max_position_embeddings"].as_u64().unwrap_or(0);
    config["max_position_embeddings"] = json!(context.max(n_tokens as u64));
    let model = RandomModel { seed: 1, stored_type: StoredType::Bf16, max_shard_bytes: None };
    let spec = write_random_model(&config, &folder, model)?;
    let n_words = spec.vocabulary.min(10_000);
    let vocabulary: Map<_, _> =
        (0..n_words).map(|word| (format!("w{word}"), json!(word))).collect();
    let tokenizer = json!({
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": { "type": "WhitespaceSplit" },
        "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": "w0" },
    });
    fs::write(folder.join("tokenizer.json"), tokenizer.to_string())?;
    fs::write(folder.join("tokenizer_config.json"), json!({ "eos_token": "w0" }).to_string())?;
    let mut lines = String::new();
    for example in 0..64 {
        let mut text = String::new();
        // The end of the text is a token too.
        for i in 0..n_tokens - 1 {
            write!(text, "w{} ", 1 + (example * 7919 + i * 104_729) % (n_words - 1))?;
        }
        writeln!(lines, "{}", json!({ "text": text }))?;
    }
    fs::write(folder.join(format!("data-{n_tokens}.jsonl")), lines)?;
    Ok(())
}
