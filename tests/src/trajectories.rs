//! AdamW steps against torch's: full, LoRA and QLoRA, step by step.

use nibble_engine::{devices::RunDevice, train::OptimizerConfig, weights::WeightFormat};
use nibble_kernels::{DeviceProfile, Store};
use serde_json::Value;

use crate::{Sequences, Setup, golden, golden_json, open_trainer_on};

fn floats(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

/// One batch of the golden file.
fn sequences(batch: &Value) -> Sequences {
    let mut sequences = Sequences::default();
    for segment in batch.as_array().unwrap() {
        let ids: Vec<u32> = floats(&segment["input_ids"]).iter().map(|&id| id as u32).collect();
        let labels: Vec<i64> = floats(&segment["labels"]).iter().map(|&l| l as i64).collect();
        sequences.push(&ids, &labels);
    }
    sequences
}

/// Trains full, LoRA and QLoRA on the device of `profile`, whose products are in f32, and holds the
/// first `n_steps` losses and gradient norms against torch's.
///
/// # Panics
/// When one is further from the exact result than twice as far as torch's f32 was.
pub fn check<B: RunDevice>(profile: DeviceProfile, n_steps: usize) {
    let golden_run = golden_json(&golden().join("trajectories.json"));
    let batches: Vec<Sequences> =
        golden_run["batches"].as_array().unwrap().iter().map(sequences).collect();
    let optimizer = OptimizerConfig {
        beta1: golden_run["optimizer"]["beta1"].as_f64().unwrap(),
        beta2: golden_run["optimizer"]["beta2"].as_f64().unwrap(),
        epsilon: golden_run["optimizer"]["epsilon"].as_f64().unwrap(),
        weight_decay: golden_run["optimizer"]["weight_decay_of_matrices"].as_f64().unwrap(),
        clip_norm: golden_run["optimizer"]["clip_gradient_norm"].as_f64(),
    };
    let rates = floats(&golden_run["learning_rates"]);
    let order = floats(&golden_run["batch_of_step"]);
    for (method, weight_format, with_adapter) in [
        ("full", WeightFormat::F32, false),
        ("lora", WeightFormat::F32, true),
        ("qlora", WeightFormat::Nf4, true),
    ] {
        let setup = Setup {
            weight_format,
            with_adapter,
            n_rows: batches.iter().map(|batch| batch.ids.len()).max().unwrap(),
            ..Setup::default()
        };
        let folder = golden().join(golden_run["model"].as_str().unwrap());
        let (mut trainer, _) = open_trainer_on::<B>(&folder, setup, profile);
        let expected = &golden_run["methods"][method];
        let of = |precision: &str, what: &str| floats(&expected[precision][what]);
        let (mut losses, mut norms) = (Vec::new(), Vec::new());
        for (step, (&rate, &batch)) in rates.iter().zip(&order).take(n_steps).enumerate() {
            let batch = &batches[batch as usize];
            let n_targets = batch.targets.len();
            let weight = 1.0 / n_targets as f32;
            trainer.accumulate(&batch.batch(), weight, None, Store::Overwrite).unwrap();
            let measures = trainer.update(&optimizer, rate, step as u64 + 1, 0).unwrap();
            losses.push(measures.loss / n_targets as f64);
            norms.push(measures.gradient_norm);
        }
        for (what, actual) in [("losses", &losses), ("gradient_norms", &norms)] {
            let (exact, torch) = (of("f64", what), of("f32", what));
            // Errors grow along the way: each step is held to twice the largest relative error that
            // torch's f32 had until then, or an f32's rounding where it had none.
            let mut worst = f64::from(f32::EPSILON);
            for (step, ((actual, exact), torch)) in
                actual.iter().zip(&exact).zip(&torch).enumerate()
            {
                worst = worst.max((torch - exact).abs() / exact);
                let error = (actual - exact).abs() / exact;
                assert!(
                    error <= 2.0 * worst,
                    "{method} {what}, step {}: {actual} instead of {exact}, {error:e} beyond {:e}",
                    step + 1,
                    2.0 * worst
                );
            }
        }
    }
}
