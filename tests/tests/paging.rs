//! A run whose optimizer, weights and activations visit the device is the run in which they stay.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;

use nibble_engine::{
    adapter::Targets,
    model::ModelSpec,
    optimizer::{MomentParts, OptimizerConfig, StateFormat},
    plan::{
        Allowance, MemoryPlan, Outside, Residency, Trainable, TrainingShape, choose, smallest_bytes,
    },
    residency::Stored,
    train::{Trainer, checkpoint},
    weights::{
        EmbeddingFormat, ModelFolder, StoredType, WeightFormat,
        random::{RandomModel, write_random_model},
    },
};
use nibble_kernels::{Cpu, Memory, Paging as _, adamw::n_moment_blocks};
use nibble_run::{Paging, Recompute};
use nibble_tests::{Sequences, f32_profile, place_trainer};
use tempfile::TempDir;

const N_LAYERS: usize = 6;
const OPTIMIZER: OptimizerConfig = OptimizerConfig {
    beta1: 0.9,
    beta2: 0.999,
    epsilon: 1e-8,
    weight_decay: 0.01,
    clip_norm: Some(1.0),
};

/// A model's files, and the folder that they are in as long as it lives.
struct TestModel {
    files: ModelFolder,
    folder: TempDir,
}

/// A model of six small layers, tied as small models are.
fn model() -> TestModel {
    let config = serde_json::json!({
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3",
        "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": N_LAYERS,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 300,
        "max_position_embeddings": 128, "rms_norm_eps": 1e-6, "rope_theta": 1e4,
        "hidden_act": "silu", "attention_bias": false, "tie_word_embeddings": true,
        "initializer_range": 0.1,
    });
    let random = RandomModel { seed: 3, stored_type: StoredType::Bf16, max_shard_bytes: None };
    let folder = tempfile::tempdir().unwrap();
    write_random_model(&config, folder.path(), random).unwrap();
    TestModel { files: ModelFolder::open(folder.path()).unwrap(), folder }
}

/// What is trained, and how weights and states are stored.
fn methods(spec: &ModelSpec) -> Vec<(&'static str, TrainingShape)> {
    // So high a rank that the states take several pages.
    let trainable = Trainable::Adapter { targets: Targets::all_linear(), rank: 512, dropout: true };
    let shape = |trainable, weight_format, states| TrainingShape {
        spec: spec.clone(),
        weight_format,
        embedding_format: EmbeddingFormat::beside(weight_format),
        trainable,
        sequence: 48,
        batch: 1,
        recompute: true,
        sample_tokens: 0,
        states,
        residency: Residency::default(),
        profile: f32_profile(2),
    };
    let (everything, f32, eight) =
        (Trainable::Everything, StateFormat::F32, StateFormat::Blockwise8);
    vec![
        ("full in f32", shape(everything.clone(), WeightFormat::F32, f32)),
        ("full in bf16 with 8-bit states", shape(everything, WeightFormat::Bf16, eight)),
        ("LoRA", shape(trainable.clone(), WeightFormat::Bf16, f32)),
        ("QLoRA with 8-bit states", shape(trainable, WeightFormat::Nf4, eight)),
    ]
}

fn sequences() -> Vec<Sequences> {
    (0..3_u32)
        .map(|batch| {
            let mut sequences = Sequences::default();
            for (start, len) in [(7, 20), (91, 28)] {
                let ids: Vec<u32> =
                    (0..len).map(|i| (start + 13 * i * (batch + 1)) % 300).collect();
                let labels: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
                sequences.push(&ids, &labels);
            }
            sequences
        })
        .collect()
}

/// Two micro-batches and an update; returns loss and norm.
fn step(trainer: &mut Trainer<Cpu>, number: u64) -> (f64, f64) {
    let mut loss = 0.0;
    trainer.clear_gradients();
    for batch in &sequences()[..2] {
        let dropout = nibble_engine::decoder::DropoutMask { probability: 0.1, seed: number };
        let dropout = trainer.decoder().adapter.is_some().then_some(dropout);
        loss += trainer.accumulate(&batch.batch(), 1.0 / 92.0, dropout).unwrap();
    }
    (loss, trainer.update(&OPTIMIZER, 1e-2, number, 5 * number).unwrap())
}

/// Losses and norms of `steps`, an evaluation between them, and the bytes of a checkpoint after them.
fn run(trainer: &mut Trainer<Cpu>, steps: std::ops::RangeInclusive<u64>) -> Vec<Vec<u8>> {
    let mut seen = Vec::new();
    for number in steps {
        let (loss, norm) = step(trainer, number);
        assert!(loss.is_finite() && norm.is_finite());
        let held_out = trainer.evaluate(&sequences()[2].batch()).unwrap();
        seen.push([loss, norm, held_out].map(f64::to_le_bytes).concat());
    }
    seen.extend(parameters(trainer));
    seen
}

/// Everything that training changes.
fn parameters(trainer: &mut Trainer<Cpu>) -> Vec<Vec<u8>> {
    let mut stored = Vec::new();
    match trainer.layout().trainable.parameters {
        Some(flat) => stored.push(Stored::Device(flat.cast())),
        None => {
            let weights = &trainer.decoder().weights;
            stored.extend(weights.layout.tensors().map(|place| weights.stored(&place)));
        }
    }
    for tensor in 0..trainer.states().tensors().len() {
        for (piece, page) in trainer.states().pieces_of(tensor) {
            for moment in [piece.first, piece.second] {
                match moment {
                    MomentParts::F32 { offset } => stored.push(page.part(offset, 4 * piece.len)),
                    MomentParts::Blockwise8 { codes, absmax } => {
                        stored.push(page.part(codes, piece.len));
                        stored.push(page.part(absmax, 4 * n_moment_blocks(piece.len)));
                    }
                }
            }
        }
    }
    let read = |stored: Stored| {
        let mut bytes = vec![0; stored.n_bytes()];
        trainer.read(stored, &mut bytes).unwrap();
        bytes
    };
    stored.into_iter().map(read).collect()
}

/// A trainer whose page file, if it has one, is in the model's folder.
fn open(model: &TestModel, shape: &TrainingShape, residency: Residency) -> Trainer<Cpu> {
    let shape = TrainingShape { residency, ..shape.clone() };
    let mut trainer = place_trainer(&model.files, shape, 2.0, model.folder.path());
    if let Some((adapter, parameters)) =
        trainer.decoder().adapter.clone().zip(trainer.layout().trainable.parameters)
    {
        let values: Vec<f32> =
            (0..adapter.layout.len()).map(|i| ((i * 7919) % 101) as f32 / 2e4 - 2.5e-3).collect();
        trainer.device().upload(&values, parameters);
    }
    trainer
}

/// Each kind alone and in part, in turn in both places outside; the two that move in every layer
/// together; and all of them, in part and in whole, in both places.
fn residencies(shape: &TrainingShape) -> Vec<Residency> {
    let n_pages = shape.state_layout().n_pages();
    let (optimizer, layers, inputs) = (1, 2, 4);
    let everything = optimizer | layers | inputs;
    [
        (optimizer, false, Outside::Disk),
        (layers, false, Outside::Host),
        (inputs, false, Outside::Disk),
        (layers | inputs, true, Outside::Host),
        (everything, false, Outside::Host),
        (everything, true, Outside::Host),
        (everything, true, Outside::Disk),
    ]
    .map(|(kinds, whole, outside)| {
        let count = |kind: usize, n: usize| match (kinds & kind, whole) {
            (0, _) => 0,
            (_, true) => n,
            (_, false) => n.div_ceil(2),
        };
        Residency {
            optimizer_pages: count(optimizer, n_pages),
            layers: count(layers, N_LAYERS),
            inputs: count(inputs, N_LAYERS),
            outside,
        }
    })
    .to_vec()
}

#[test]
fn paged_runs_are_bit_for_bit_the_unpaged_one() {
    let model = model();
    for (name, shape) in methods(model.files.spec()) {
        let n_pages = shape.state_layout().n_pages();
        assert!(n_pages >= 3, "{name}: {n_pages} pages show nothing");
        let mut resident = open(&model, &shape, Residency::default());
        let expected = run(&mut resident, 1..=3);
        assert_eq!(resident.transferred_bytes(), 0);
        for residency in residencies(&shape) {
            let mut paged = open(&model, &shape, residency);
            let actual = run(&mut paged, 1..=3);
            assert!(actual == expected, "{name}: {residency:?}");
            assert!(paged.transferred_bytes() > 0);
        }
    }
}

#[test]
fn what_is_planned_is_allocated_and_crosses() {
    let model = model();
    for (name, shape) in methods(model.files.spec()) {
        let whole = MemoryPlan::new(shape.clone());
        for residency in residencies(&shape) {
            let mut trainer = open(&model, &shape, residency);
            let plan = MemoryPlan::new(trainer.shape().clone());
            assert_eq!(trainer.allocated_bytes(), plan.peak_bytes(), "{name} {residency:?}");
            let outside = plan.paged_bytes();
            let image =
                if shape.weight_format == WeightFormat::Nf4 && residency.outside == Outside::Disk {
                    outside.weights
                } else {
                    0
                };
            let store = outside.optimizer + outside.weights + outside.activations - image;
            // The store's regions begin on pages.
            let slack = 4096 * (2 + N_LAYERS as u64);
            assert!((store..store + slack).contains(&(plan.store_bytes() as u64)));
            assert_eq!(
                trainer.device().stored_bytes(),
                plan.store_bytes() as u64,
                "{name} {residency:?}"
            );
            let states = |plan: &MemoryPlan| plan.category_bytes().optimizer;
            assert_eq!(states(&plan) + outside.optimizer, states(&whole));

            step(&mut trainer, 1);
            let before = trainer.transferred_bytes();
            step(&mut trainer, 2);
            let crossed = trainer.transferred_bytes() - before;
            assert_eq!(crossed, plan.step_bytes(2), "{name} {residency:?}");
        }
    }
}

#[test]
fn a_checkpoint_does_not_know_where_things_were() {
    let model = model();
    let folder = tempfile::tempdir().unwrap();
    for (name, shape) in methods(model.files.spec()) {
        let mut resident = open(&model, &shape, Residency::default());
        let expected = run(&mut resident, 1..=4);
        let residency = residencies(&shape).pop().unwrap();
        for (before, after) in
            [(residency, Residency::default()), (Residency::default(), residency)]
        {
            let path = folder.path().join("step-000002");
            let mut first = open(&model, &shape, before);
            run(&mut first, 1..=2);
            let config = first.decoder().adapter.as_ref().map(|adapter| {
                nibble_engine::adapter::AdapterConfig {
                    rank: adapter.layout.rank,
                    alpha: 16.0,
                    rslora: false,
                    dropout: 0.1,
                    targets: adapter.layout.targets,
                    base_model: "model".into(),
                }
            });
            let state = checkpoint::RunState::new(2, 1.0, 10);
            checkpoint::write(&path, &mut first, config.as_ref(), model.files.path(), &state)
                .unwrap();
            // What a step that was cut short leaves in the store is not there afterwards.
            step(&mut first, 3);
            drop(first);
            let mut second = open(&model, &shape, after);
            checkpoint::read(&path, &mut second).unwrap();
            let resumed = run(&mut second, 3..=4);
            assert!(resumed == expected[2..], "{name}: from {before:?} to {after:?}");
        }
    }
}

#[test]
fn the_least_is_paged_that_fits() {
    let model = model();
    for (name, shape) in methods(model.files.spec()) {
        let whole = MemoryPlan::new(shape.clone()).peak_bytes() as u64;
        let within = |budget_bytes| Allowance {
            budget_bytes,
            recompute: Recompute::On,
            paging: Paging::Auto,
        };
        let unlimited = choose(&shape, within(whole));
        assert!(unlimited.shape().residency.is_resident(), "{name}");
        let mut last = Residency::default();
        for percent in (1..100).rev() {
            let budget = whole * percent / 100;
            let plan = choose(&shape, within(budget));
            let residency = plan.shape().residency;
            if plan.peak_bytes() as u64 > budget {
                // Even everything that can leave is not enough, and the least is said.
                assert!(residency.is_resident());
                let least = smallest_bytes(&plan, within(budget));
                assert!(least > budget, "{name}: {least} in {budget}");
                let plan = choose(&shape, within(least));
                assert_eq!(plan.peak_bytes() as u64, least, "{name}");
                break;
            }
            // In order: the optimizer first, then weights, then inputs.
            assert!(residency.optimizer_pages >= last.optimizer_pages.min(1), "{name} {percent}");
            if residency.inputs > 0 {
                assert_eq!(residency.layers, N_LAYERS, "{name} {percent}");
            }
            // Paging less of the last kind would not fit.
            let mut less = residency;
            let last_kind = [&mut less.inputs, &mut less.layers, &mut less.optimizer_pages]
                .into_iter()
                .find(|count| **count > 0);
            if let Some(count) = last_kind {
                *count -= 1;
                // Fewer than a window's pages take as much room as none.
                if *count > 2 {
                    let less = MemoryPlan::new(TrainingShape { residency: less, ..shape.clone() });
                    assert!(less.peak_bytes() as u64 > budget, "{name} {percent}");
                }
            }
            last = residency;
        }
        assert!(!last.is_resident(), "{name}: nothing was ever paged");
    }
}

#[test]
fn a_page_file_that_another_program_takes_away_ends_the_step_with_an_error() {
    let model = model();
    let (_, shape) = methods(model.files.spec()).remove(0);
    let residency = Residency { layers: N_LAYERS, ..Residency::default() };
    let mut trainer = open(&model, &shape, residency);
    step(&mut trainer, 1);
    assert!(trainer.check_stores().is_ok());
    let path = model.folder.path().join("pages.bin");
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(4096).unwrap();
    assert!(trainer.check_stores().is_err());
    trainer.clear_gradients();
    let error = trainer.accumulate(&sequences()[0].batch(), 1.0, None).unwrap_err().to_string();
    assert!(error.contains("page file") && error.contains("resume"), "{error}");
}
