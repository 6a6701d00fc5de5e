use std::path::Path;

use serde_json::{Value, json};

use super::*;
use nibble_kernels::rope::RopeScaling;

fn base(model_type: &str, architecture: &str) -> Value {
    json!({
        "model_type": model_type,
        "architectures": [architecture],
        "hidden_act": "silu",
        "hidden_size": 64,
        "intermediate_size": 128,
        "max_position_embeddings": 256,
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "num_key_value_heads": 2,
        "vocab_size": 100
    })
}

fn llama() -> Value {
    base("llama", "LlamaForCausalLM")
}

/// `config` with `changes` made; null counts as absent.
fn with(mut config: Value, changes: Value) -> Value {
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

fn read(config: &Value) -> Result<ModelSpec, ModelError> {
    ModelSpec::from_config(config, Path::new("some/config.json"))
}

#[test]
fn a_family_fills_in_what_its_configuration_leaves_out() {
    let spec = read(&llama()).unwrap();
    assert_eq!(spec.family, Family::Llama);
    assert_eq!((spec.head_size, spec.query_width(), spec.kv_width()), (16, 64, 32));
    assert_eq!((spec.rms_epsilon, spec.rope_base), (1e-6, 10_000.0));
    assert_eq!(spec.rope_scaling, RopeScaling::None);
    assert!(!spec.tied_embeddings && !spec.qkv_bias && !spec.output_bias && !spec.mlp_bias);
    assert_eq!(spec.sliding_windows, [None, None, None]);

    let mut config = llama();
    config.as_object_mut().unwrap().remove("num_key_value_heads");
    assert_eq!(read(&config).unwrap().n_kv_heads, 4);

    let spec = read(&base("mistral", "MistralForCausalLM")).unwrap();
    assert_eq!(spec.sliding_windows, [Some(4096); 3]);

    let spec = read(&base("qwen2", "Qwen2ForCausalLM")).unwrap();
    assert!(spec.qkv_bias && !spec.output_bias);

    let spec = read(&base("qwen3", "Qwen3ForCausalLM")).unwrap();
    assert!(spec.qk_norm && !spec.qkv_bias);
    assert_eq!(spec.head_size, 128);
}

#[test]
fn biases_follow_their_flags() {
    let spec = read(&with(llama(), json!({"attention_bias": true, "mlp_bias": true}))).unwrap();
    assert!(spec.qkv_bias && spec.output_bias && spec.mlp_bias);
}

#[test]
fn the_family_is_known_by_type_or_by_architecture() {
    let by_type = with(llama(), json!({"architectures": null}));
    assert_eq!(read(&by_type).unwrap().family, Family::Llama);
    let by_architecture = with(llama(), json!({"model_type": null}));
    assert_eq!(read(&by_architecture).unwrap().family, Family::Llama);
}

#[test]
fn windows_are_read_however_they_are_written() {
    let qwen = base("qwen2", "Qwen2ForCausalLM");
    let mistral = base("mistral", "MistralForCausalLM");
    let none = [None; 3];
    for (config, expected) in [
        (with(qwen.clone(), json!({"sliding_window": 8})), none),
        (
            with(
                qwen.clone(),
                json!({"use_sliding_window": true, "sliding_window": 8, "max_window_layers": 1}),
            ),
            [None, Some(8), Some(8)],
        ),
        (
            with(qwen.clone(), json!({"use_sliding_window": true, "max_window_layers": 0})),
            [Some(4096); 3],
        ),
        (with(qwen.clone(), json!({"use_sliding_window": true})), none),
        (
            with(
                qwen,
                json!({
                    "use_sliding_window": true,
                    "sliding_window": 8,
                    "max_window_layers": 3,
                    "layer_types": ["full_attention", "sliding_attention", "full_attention"]
                }),
            ),
            [None, Some(8), None],
        ),
        (with(mistral.clone(), json!({"sliding_window": null})), none),
        (with(mistral, json!({"sliding_window": 8})), [Some(8); 3]),
    ] {
        assert_eq!(read(&config).unwrap().sliding_windows, expected, "{config}");
    }
}

#[test]
fn rope_is_read_in_the_old_form_and_in_the_new() {
    let yarn = |factor, attention_factor| RopeScaling::Yarn {
        factor,
        beta_fast: 32.0,
        beta_slow: 1.0,
        original_context: 64,
        attention_factor,
        truncate: true,
    };
    let llama3 = RopeScaling::Llama3 {
        factor: 8.0,
        low_frequency_factor: 1.0,
        high_frequency_factor: 4.0,
        original_context: 64,
    };
    let llama3_json = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 64});
    for (changes, base, scaling) in [
        (json!({"rope_theta": 5e5, "rope_scaling": null}), 5e5, RopeScaling::None),
        (
            json!({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
            5e5,
            RopeScaling::None,
        ),
        (json!({"rope_parameters": {"rope_theta": 5e5}}), 5e5, RopeScaling::None),
        (
            json!({"rope_scaling": {"type": "linear", "factor": 2}}),
            1e4,
            RopeScaling::Linear { factor: 2.0 },
        ),
        (json!({"rope_theta": 5e5, "rope_scaling": llama3_json}), 5e5, llama3),
        (json!({"rope_theta": 5e5, "rope_parameters": llama3_json}), 5e5, llama3),
        (
            json!({"rope_scaling": {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64}}),
            1e4,
            yarn(2.0, None),
        ),
        // No factor: how far the context was stretched.
        (
            json!({"rope_scaling": {"rope_type": "yarn", "original_max_position_embeddings": 64}}),
            1e4,
            yarn(4.0, None),
        ),
        (
            json!({"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "mscale": 0.7, "mscale_all_dim": 0.7,
                "original_max_position_embeddings": 64}}),
            1e4,
            yarn(2.0, Some(1.0)),
        ),
    ] {
        let spec = read(&with(llama(), changes.clone())).unwrap();
        assert_eq!((spec.rope_base, spec.rope_scaling), (base, scaling), "{changes}");
    }
}

#[test]
fn an_unknown_architecture_is_named_with_the_supported_ones() {
    for (changes, found) in [
        (json!({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}), "GPT2LMHeadModel"),
        (json!({"model_type": "gemma3"}), "gemma3"),
        (
            json!({"architectures": ["LlamaForSequenceClassification"]}),
            "LlamaForSequenceClassification",
        ),
    ] {
        let error = read(&with(llama(), changes)).unwrap_err();
        assert!(matches!(error, ModelError::UnknownArchitecture { .. }), "{error}");
        let message = error.to_string();
        assert!(message.contains(found) && message.contains("Qwen3ForCausalLM"), "{message}");
    }
}

#[test]
fn a_missing_key_is_named_with_its_file() {
    for key in [
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "vocab_size",
        "max_position_embeddings",
    ] {
        let error = read(&with(llama(), json!({key: null}))).unwrap_err();
        assert!(matches!(&error, ModelError::MissingKey { key: named, .. } if named == key));
        assert!(error.to_string().contains("some/config.json"), "{error}");
    }
}

#[test]
fn impossible_values_are_refused_by_key() {
    for (key, value) in [
        ("num_attention_heads", json!(0)),
        ("num_attention_heads", json!(-4)),
        ("num_attention_heads", json!(5)),
        ("num_key_value_heads", json!(0)),
        ("num_key_value_heads", json!(3)),
        ("num_hidden_layers", json!(0)),
        ("num_hidden_layers", json!(u64::MAX)),
        ("num_hidden_layers", json!(1e30)),
        ("hidden_size", json!(1_u64 << 63)),
        ("hidden_size", json!(1_u64 << 40)),
        ("hidden_size", json!("64")),
        ("hidden_size", json!(64.5)),
        ("intermediate_size", json!(-1)),
        ("vocab_size", json!(1_u64 << 62)),
        ("head_dim", json!(15)),
        ("head_dim", json!(1_u64 << 23)),
        ("max_position_embeddings", json!([])),
        ("rms_norm_eps", json!(-1e-6)),
        ("rope_theta", json!(0)),
        ("tie_word_embeddings", json!("yes")),
        ("rope_scaling", json!(8)),
        ("layer_types", json!(3)),
    ] {
        let config = match key {
            "layer_types" => base("qwen2", "Qwen2ForCausalLM"),
            _ => llama(),
        };
        let error = read(&with(config, json!({key: value.clone()}))).unwrap_err();
        let ModelError::BadValue { key: named, .. } = &error else { panic!("{key}: {error}") };
        assert_eq!(named, key, "{value}: {error}");
    }
}

#[test]
fn the_largest_believable_extents_together_are_refused_without_overflow() {
    let extent = 1_u64 << 24;
    let config = with(
        llama(),
        json!({"hidden_size": extent, "intermediate_size": extent, "vocab_size": extent,
            "num_hidden_layers": 4096}),
    );
    assert!(matches!(read(&config), Err(ModelError::BadValue { .. })));
}

#[test]
fn what_is_not_implemented_is_refused_by_name() {
    for (key, changes) in [
        ("hidden_act", json!({"hidden_act": "gelu"})),
        ("rope_type", json!({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}})),
        ("type", json!({"rope_scaling": {"type": "dynamic", "factor": 2.0}})),
        ("partial_rotary_factor", json!({"partial_rotary_factor": 0.5})),
    ] {
        let error = read(&with(llama(), changes)).unwrap_err();
        assert!(
            matches!(&error, ModelError::Unsupported { key: named, .. } if named == key),
            "{error}"
        );
    }
    let quantised = with(llama(), json!({"quantization_config": {"quant_method": "gptq"}}));
    assert!(read(&quantised).unwrap_err().to_string().contains("gptq"));
}

#[test]
fn files_that_are_not_configurations_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");
    assert!(matches!(ModelSpec::from_config_file(&path), Err(ModelError::Read { .. })));
    std::fs::write(&path, "{\"hidden_size\": ").unwrap();
    assert!(matches!(ModelSpec::from_config_file(&path), Err(ModelError::Json { .. })));
    std::fs::write(&path, "[1]").unwrap();
    assert!(matches!(ModelSpec::from_config_file(&path), Err(ModelError::BadValue { .. })));
}

#[test]
fn a_spec_survives_being_written_and_read() {
    for entry in crate::catalog::all() {
        let spec = entry.spec().unwrap();
        let text = serde_json::to_string(&spec).unwrap();
        assert_eq!(serde_json::from_str::<ModelSpec>(&text).unwrap(), spec);
    }
}
