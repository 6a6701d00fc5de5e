//! The starter model before its training: a tokenizer made from its corpus, and random weights.
//!
//! `cargo run --release --example starter_base -- CORPUS.jsonl FOLDER`

use std::{error::Error, fs, path::PathBuf};

use nibble_engine::weights::{
    StoredType,
    random::{RandomModel, write_random_model},
};
use serde_json::{Value, json};
use tokenizers::{
    AddedToken, TokenizerBuilder,
    models::{
        TrainerWrapper,
        bpe::{BPE, BpeTrainerBuilder},
    },
    normalizers::NormalizerWrapper,
    pre_tokenizers::byte_level::ByteLevel,
};

/// Tokens: every byte, the special ones, and the commonest pieces of the corpus.
const VOCABULARY: usize = 2048;

const TEMPLATE: &str = "\
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif -%}
";

fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [corpus, folder] = arguments.as_slice() else {
        return Err("give the corpus and a folder".into());
    };
    let folder = PathBuf::from(folder);
    fs::create_dir_all(&folder)?;
    let special = ["<|im_start|>", "<|im_end|>"];
    let mut texts = Vec::new();
    for line in fs::read_to_string(corpus)?.lines() {
        let value: Value = serde_json::from_str(line)?;
        let mut text = value["text"].as_str().unwrap_or_default().to_owned();
        for token in special {
            text = text.replace(token, "");
        }
        texts.push(text);
    }
    let mut trainer = TrainerWrapper::from(
        BpeTrainerBuilder::new()
            .show_progress(false)
            .vocab_size(VOCABULARY)
            .special_tokens(special.map(|token| AddedToken::from(token, true)).to_vec())
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .build(),
    );
    let bytes = ByteLevel::new(false, true, true);
    let mut tokenizer: tokenizers::Tokenizer = TokenizerBuilder::new()
        .with_model(tokenizers::ModelWrapper::from(BPE::default()))
        .with_normalizer(None::<NormalizerWrapper>)
        .with_pre_tokenizer(Some(tokenizers::PreTokenizerWrapper::from(bytes)))
        .with_post_processor(Some(tokenizers::PostProcessorWrapper::from(bytes)))
        .with_decoder(Some(tokenizers::DecoderWrapper::from(bytes)))
        .build()?
        .into();
    tokenizer.train(&mut trainer, texts.into_iter())?;
    tokenizer.save(folder.join("tokenizer.json"), true)?;
    let end = tokenizer.token_to_id(special[1]).ok_or("no end token")?;
    let n_tokens = tokenizer.get_vocab_size(true);

    let config = json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": n_tokens,
        "hidden_size": 192,
        "intermediate_size": 576,
        "num_hidden_layers": 6,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": true,
        "hidden_act": "silu",
        "attention_bias": false,
        "mlp_bias": false,
        "bos_token_id": null,
        "eos_token_id": end,
        "initializer_range": 0.05,
        "torch_dtype": "bfloat16",
    });
    let model = RandomModel { seed: 3, stored_type: StoredType::Bf16, max_shard_bytes: None };
    let spec = write_random_model(&config, &folder, model)?;
    let settings = json!({ "eos_token": special[1], "pad_token": special[1],
        "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 512 });
    fs::write(folder.join("tokenizer_config.json"), format!("{settings:#}\n"))?;
    let generation = json!({ "eos_token_id": end, "pad_token_id": end });
    fs::write(folder.join("generation_config.json"), format!("{generation:#}\n"))?;
    fs::write(folder.join("chat_template.jinja"), TEMPLATE)?;
    println!("{n_tokens} tokens, {} parameters", spec.n_parameters());
    Ok(())
}
