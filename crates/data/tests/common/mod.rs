//! A tokenizer of single bytes and a few special tokens, which shows every boundary.

#![allow(dead_code, reason = "each test uses a part of it")]

use std::{ops::ControlFlow, path::Path};

use nibble_data::{ColumnMapping, DataError, Encoder, TokenizedDataset, Tokenizer};
use serde_json::{Value, json};

/// Writes a model folder's tokenizer files: an id for each printable ASCII character and the line
/// break, then the special tokens.
pub fn write_tokenizer(folder: &Path, settings: serde_json::Value) {
    let mut vocabulary = serde_json::Map::new();
    for (id, letter) in (' '..='~').chain(['\n', '…']).enumerate() {
        vocabulary.insert(letter.to_string(), json!(id));
    }
    let n = vocabulary.len();
    let special = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"];
    let added: Vec<_> = special
        .iter()
        .enumerate()
        .map(|(i, token)| {
            json!({ "id": n + i, "content": token, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true })
        })
        .collect();
    let tokenizer = json!({
        "version": "1.0",
        "added_tokens": added,
        "pre_tokenizer": { "type": "Split", "pattern": { "Regex": "(?s)." }, "behavior": "Isolated",
            "invert": false },
        "decoder": { "type": "Fuse" },
        "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": "…" },
    });
    std::fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    std::fs::write(folder.join("tokenizer_config.json"), settings.to_string()).unwrap();
}

/// A tokenizer whose texts end with `</s>`.
pub fn tokenizer(folder: &Path) -> Tokenizer {
    write_tokenizer(folder, json!({ "eos_token": "</s>", "bos_token": { "content": "<s>" } }));
    Tokenizer::open(folder).unwrap()
}

/// Writes a JSON-lines file.
pub fn write_rows(path: &Path, rows: &[Value]) {
    let lines: Vec<_> = rows.iter().map(|row| format!("{row}\n")).collect();
    std::fs::write(path, lines.concat()).unwrap();
}

/// The tokens of a file with columns that are recognised.
pub fn read_tokens(path: &Path, encoder: Encoder<'_>) -> Result<TokenizedDataset, DataError> {
    let unwatched = &mut |_| ControlFlow::Continue(());
    TokenizedDataset::read(path, &ColumnMapping::default(), encoder, None, unwatched)
}
