//! Times training steps whose layers' weights visit the device from the host's memory beside steps whose
//! weights stay, by turns in one process.
//!
//! `cargo run --release --example paged_step -- MODEL-FOLDER lora|qlora TOKENS ROUNDS` prints a JSON
//! object a step: where the weights were, seconds, the share of its threads' time that the step had
//! (Linux), and the bytes that crossed. The first step of each kind warms up and is not told.

use std::{error::Error, fs, path::PathBuf, time::Instant};

use nibble_engine::{
    devices,
    plan::{
        MemoryPlan, Outside, PageRates, PlanSettings, Residency, TrainingShape, training_shape,
    },
    residency::open_store,
    train::{MicroBatch, OptimizerConfig, Trainer},
    weights::{ModelFolder, load::unwatched, place_weights},
};
use nibble_kernels::{Cpu, Store};
use nibble_run::{Method, RunSettings};
use serde_json::json;

const OPTIMIZER: OptimizerConfig = OptimizerConfig {
    beta1: 0.9,
    beta2: 0.999,
    epsilon: 1e-8,
    weight_decay: 0.0,
    clip_norm: Some(1.0),
};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, method, n_tokens, n_rounds] = arguments.as_slice() else {
        return Err("give a model folder, lora or qlora, tokens and rounds".into());
    };
    let method = match method.as_str() {
        "lora" => Method::Lora,
        "qlora" => Method::Qlora,
        _ => return Err("weights that stay as they are belong to lora or qlora".into()),
    };
    let (n_tokens, n_rounds): (usize, usize) = (n_tokens.parse()?, n_rounds.parse()?);
    let model = ModelFolder::open(&PathBuf::from(folder))?;
    let profile = devices::cpu_profile(None, None);
    let n_threads = profile.n_threads();
    let settings = RunSettings { sequence: n_tokens, ..RunSettings::default() };
    let page_rates = PageRates::default();
    let plan_settings =
        PlanSettings { settings: &settings, profile, page_rates, available_bytes: u64::MAX };
    let shape = training_shape(model.spec(), method, plan_settings)?;
    let layers = shape.spec.n_layers;
    let paged = Residency { layers, outside: Outside::Host, ..Residency::default() };
    let mut trainers = Vec::new();
    for (name, residency) in [("resident", Residency::default()), ("paged", paged)] {
        let shape = TrainingShape { residency, ..shape.clone() };
        trainers.push((name, open(&model, shape)?));
    }

    let n_words = shape.spec.vocabulary;
    let ids: Vec<u32> = (0..n_tokens).map(|i| (i * 7919 % n_words) as u32).collect();
    let positions: Vec<u32> = (0..n_tokens as u32).collect();
    let segments = [nibble_kernels::attention::Segment {
        query_start: 0,
        n_queries: n_tokens as u32,
        key_start: 0,
        n_keys: n_tokens as u32,
    }];
    let batch = MicroBatch {
        ids: &ids,
        positions: &positions,
        segments: &segments,
        target_rows: &positions[..n_tokens - 1],
        targets: &ids[1..],
        max_segment: n_tokens,
    };
    for step in 0..=n_rounds as u64 {
        let mut losses = Vec::new();
        for (name, trainer) in &mut trainers {
            let (before, used, start) =
                (trainer.transferred(), processor_seconds(), Instant::now());
            let weight = 1.0 / (n_tokens - 1) as f32;
            trainer.accumulate(&batch, weight, None, Store::Overwrite)?;
            losses.push(trainer.update(&OPTIMIZER, 1e-4, step + 1, step)?.loss);
            let seconds = start.elapsed().as_secs_f64();
            let used = used.zip(processor_seconds()).map(|(before, after)| after - before);
            let share = used.map(|used| used / seconds / n_threads as f64);
            let paged_bytes = (trainer.transferred() - before).bytes();
            if step > 0 {
                let line = json!({"residency": name, "seconds": seconds, "share": share,
                    "paged_bytes": paged_bytes});
                println!("{line}");
            }
        }
        assert_eq!(losses[0], losses[1], "paging changes no number");
    }
    Ok(())
}

fn open(model: &ModelFolder, shape: TrainingShape) -> Result<Trainer<Cpu>, Box<dyn Error>> {
    let mut plan = MemoryPlan::new(shape);
    let shape = plan.shape();
    let mut device = Cpu::new(shape.profile)?;
    // Nothing goes to a file.
    let store = open_store(&mut device, &plan, &PathBuf::new())?;
    let (layout, paged) = (shape.weight_layout(), shape.paged_layers(store));
    let placed = place_weights(&mut device, model, layout, &paged, None, &mut unwatched)?;
    Ok(Trainer::new(device, &mut plan, placed.weights, 1.0, store)?)
}

/// Seconds of all processors that this process has had, where the system tells (Linux).
fn processor_seconds() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // Behind the name, which may hold anything, are the fields from the third on; the 14th and 15th
    // count hundredths of a second.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |n: usize| fields.get(n - 3)?.parse::<f64>().ok();
    Some((ticks(14)? + ticks(15)?) / 100.0)
}
