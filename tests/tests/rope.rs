//! Rotation tables against transformers, from the configuration to cosines, for every scaling.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;

use nibble_engine::model::ModelSpec;
use nibble_kernels::rope;
use nibble_tests::{golden, golden_json};
use serde_json::{Value, json};

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

#[test]
fn tables_are_those_of_transformers() {
    let file = golden_json(&golden().join("rope.json"));
    let positions = numbers(&file["positions"]);
    let n_positions = *positions.last().unwrap() as usize + 1;
    for (name, case) in file["cases"].as_object().unwrap() {
        let head_size = case["head_size"].as_u64().unwrap();
        let config = json!({
            "model_type": "llama", "vocab_size": 8, "hidden_size": 2 * head_size,
            "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
            "max_position_embeddings": n_positions, "rms_norm_eps": 1e-5,
            "rope_parameters": case["parameters"],
        });
        let spec = ModelSpec::from_config(&config, Path::new(name)).unwrap();
        let unit = f64::from(f32::EPSILON);
        let (frequencies, factor) =
            rope::frequencies(spec.rope_scaling, spec.rope_base, spec.head_size);
        let expected = numbers(&case["inverse_frequencies"]);
        assert_eq!(frequencies.len(), expected.len(), "{name}");
        // Both round a power, its reciprocal and at most four operations of a blend: half a unit
        // each, and two for the f32 power of theirs.
        let relative = 5.0 * unit;
        for (actual, expected) in frequencies.iter().zip(&expected) {
            let error = (f64::from(*actual) - expected).abs();
            assert!(error <= relative * expected, "{name}: {actual} for {expected}");
        }
        let on_tables = case["attention_factor"].as_f64().unwrap();
        assert!((f64::from(factor) - on_tables).abs() <= unit * on_tables, "{name}");

        let (cos, sin) =
            rope::tables(spec.rope_scaling, spec.rope_base, spec.head_size, n_positions);
        for (row, &position) in positions.iter().enumerate() {
            let start = position as usize * expected.len();
            for (table, of) in [(&cos, "cos"), (&sin, "sin")] {
                let wanted = numbers(&case[of][row]);
                for (i, wanted) in wanted.iter().enumerate() {
                    let error = (f64::from(table[start + i]) - wanted).abs();
                    // The angle carries the frequency's error and a rounding of its own.
                    let angle = position * expected[i];
                    let limit = on_tables * ((relative + unit) * angle + 2.0 * unit);
                    assert!(error <= limit, "{name}: {of} of {position} · {i}: {error:e}");
                }
            }
        }
    }
}
