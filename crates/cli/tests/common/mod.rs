//! A tiny model folder and dataset, and the program itself.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use nibble_engine::weights::{
    StoredType,
    random::{RandomModel, write_random_model},
};
use serde_json::{Map, Value, json};

/// A folder with a model, a dataset and a cache of its own.
pub struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    /// A model of two layers that knows the numbers up to 200, and sums to train it on.
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 256,
            "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
            "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": true,
            "hidden_act": "silu", "eos_token_id": 0, "initializer_range": 0.1,
        });
        let model = folder.path().join("model");
        let random = RandomModel { seed: 5, stored_type: StoredType::F32, max_shard_bytes: None };
        write_random_model(&config, &model, random).unwrap();
        let words = ["<end>", "plus", "is", "user:", "assistant:"].map(str::to_owned);
        let words = words.into_iter().chain((0..200).map(|number| number.to_string()));
        let vocabulary: Map<_, _> = words.enumerate().map(|(id, word)| (word, json!(id))).collect();
        let end = json!({ "id": 0, "content": "<end>", "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true });
        let tokenizer = json!({
            "version": "1.0",
            "added_tokens": [end],
            "pre_tokenizer": { "type": "WhitespaceSplit" },
            "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": "<end>" },
        });
        fs::write(model.join("tokenizer.json"), tokenizer.to_string()).unwrap();
        let settings = json!({ "eos_token": "<end>" });
        fs::write(model.join("tokenizer_config.json"), settings.to_string()).unwrap();
        let lines: String = (0..90)
            .map(|i| {
                let (a, b) = (i % 9, i / 9);
                let (prompt, sum) = (format!("{a} plus {b} is "), (a + b).to_string());
                format!("{}\n", json!({ "prompt": prompt, "completion": sum }))
            })
            .collect();
        fs::write(folder.path().join("data.jsonl"), lines).unwrap();
        Self { folder }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `nibble`, with `arguments` divided at spaces; names beginning with `@` are in this place.
    pub fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nibble"));
        command.env("NIBBLE_CACHE", self.path("cache"));
        // On the processor, unless a test asks for more: what it expects is the same on every machine.
        command.env("CUDA_VISIBLE_DEVICES", "-1");
        for word in arguments.split_whitespace() {
            match word.strip_prefix('@') {
                Some(name) => command.arg(self.path(name)),
                None => command.arg(word),
            };
        }
        command
    }

    pub fn nibble(&self, arguments: &str) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// The JSON objects that it prints, a line each, when it succeeds.
    pub fn json(&self, arguments: &str) -> Vec<Value> {
        let output = self.nibble(&format!("{arguments} --json"));
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments}: {errors}");
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
    }

    /// The one line that it says when it fails with `code`.
    pub fn error(&self, code: i32, arguments: &str) -> String {
        let output = self.nibble(arguments);
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments}: {errors}");
        assert_eq!(errors.trim_end().lines().count(), 1, "{arguments}: {errors}");
        assert!(!errors.contains("panicked"), "{errors}");
        errors
    }
}

/// Every file below `folder` with its bytes, but for those whose content is a time.
pub fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            (name, fs::read(path).unwrap())
        })
        .collect();
    files.sort();
    files
}
