//! A small model of many pages, trained for a few steps in every way: what the tests of paging share.

use nibble_engine::{
    adapter::Targets,
    decoder::DropoutMask,
    devices::RunDevice,
    model::ModelSpec,
    optimizer::{MomentParts, OptimizerConfig, StateFormat},
    plan::{Outside, Residency, Trainable, TrainingShape},
    residency::Stored,
    train::Trainer,
    weights::{
        EmbeddingFormat, ModelFolder, StoredType, WeightFormat,
        random::{RandomModel, write_random_model},
    },
};
use nibble_kernels::{Compute, DeviceProfile, FloatFormat, Store, adamw::n_moment_blocks};
use tempfile::TempDir;

use crate::{Sequences, f32_profile, place_trainer};

/// Layers of the model.
pub const N_LAYERS: usize = 6;
/// The optimizer of every run.
pub const OPTIMIZER: OptimizerConfig = OptimizerConfig {
    beta1: 0.9,
    beta2: 0.999,
    epsilon: 1e-8,
    weight_decay: 0.01,
    clip_norm: Some(1.0),
};

/// A model's files, and the folder that they are in as long as it lives.
#[derive(Debug)]
pub struct TestModel {
    /// The files.
    pub files: ModelFolder,
    /// Their folder.
    pub folder: TempDir,
}

/// A model of six small layers, tied as small models are.
pub fn model() -> TestModel {
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

/// [`methods`] on the processor, with products in f32 and in bf16.
pub fn methods_in_both(spec: &ModelSpec, rank: usize) -> Vec<(String, TrainingShape)> {
    let of = |compute| {
        let methods = methods(spec, f32_profile(2).with_compute(compute), rank);
        methods.into_iter().map(move |(name, shape)| (format!("{name}, in {compute:?}"), shape))
    };
    [Compute::F32, Compute::Bf16].into_iter().flat_map(of).collect()
}

/// What is trained, and how weights and states are stored; adapters of this rank.
pub fn methods(
    spec: &ModelSpec,
    profile: DeviceProfile,
    rank: usize,
) -> Vec<(&'static str, TrainingShape)> {
    let adapter = |dropout| Trainable::Adapter { targets: Targets::all_linear(), rank, dropout };
    let shape = |trainable, weight_format, states| TrainingShape {
        spec: spec.clone(),
        weight_format,
        embedding_format: EmbeddingFormat::beside(weight_format),
        sequence: 48,
        batch: 1,
        kept_layers: 0,
        sample_tokens: 0,
        gradients: match (&trainable, weight_format) {
            (Trainable::Everything, WeightFormat::Bf16) => FloatFormat::Bf16,
            _ => FloatFormat::F32,
        },
        trainable,
        states,
        residency: Residency { outside: Outside::of(&profile), ..Residency::default() },
        profile,
    };
    let (everything, f32, eight) =
        (Trainable::Everything, StateFormat::F32, StateFormat::Blockwise8);
    vec![
        ("full in f32", shape(everything.clone(), WeightFormat::F32, f32)),
        (
            "full in bf16, of several micro-batches",
            TrainingShape {
                gradients: FloatFormat::F32,
                ..shape(everything.clone(), WeightFormat::Bf16, f32)
            },
        ),
        ("full in bf16 with 8-bit states", shape(everything, WeightFormat::Bf16, eight)),
        ("LoRA with dropout", shape(adapter(true), WeightFormat::Bf16, f32)),
        ("QLoRA", shape(adapter(false), WeightFormat::Nf4, f32)),
        ("QLoRA with dropout and 8-bit states", shape(adapter(true), WeightFormat::Nf4, eight)),
    ]
}

/// Three micro-batches.
pub fn sequences() -> Vec<Sequences> {
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

/// Micro-batches of a step: several where their gradients may be added up.
pub fn n_batches(shape: &TrainingShape) -> usize {
    match shape.gradients {
        FloatFormat::F32 => 2,
        FloatFormat::Bf16 => 1,
    }
}

/// The micro-batches of a step and an update; returns loss and norm.
pub fn step<B: RunDevice>(trainer: &mut Trainer<B>, number: u64) -> (f64, f64) {
    accumulate(trainer, number);
    let measures = trainer.update(&OPTIMIZER, 1e-2, number, 5 * number).unwrap();
    (measures.loss, measures.gradient_norm)
}

/// The micro-batches of a step.
pub fn accumulate<B: RunDevice>(trainer: &mut Trainer<B>, number: u64) {
    let mut store = Store::Overwrite;
    for batch in &sequences()[..n_batches(trainer.shape())] {
        let drops = matches!(trainer.shape().trainable, Trainable::Adapter { dropout: true, .. });
        let dropout = drops.then_some(DropoutMask { probability: 0.1, seed: number });
        trainer.accumulate(&batch.batch(), 1.0 / 92.0, dropout, store).unwrap();
        store = Store::Accumulate;
    }
}

/// Losses and norms of `steps`, an evaluation between them, and the bytes of a checkpoint after them.
pub fn run<B: RunDevice>(
    trainer: &mut Trainer<B>,
    steps: std::ops::RangeInclusive<u64>,
) -> Vec<Vec<u8>> {
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
pub fn parameters<B: RunDevice>(trainer: &mut Trainer<B>) -> Vec<Vec<u8>> {
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
pub fn open<B: RunDevice>(
    model: &TestModel,
    shape: &TrainingShape,
    residency: Residency,
) -> Trainer<B> {
    let shape = TrainingShape { residency, ..shape.clone() };
    let mut trainer: Trainer<B> = place_trainer(&model.files, shape, 2.0, model.folder.path());
    if let Some((adapter, parameters)) =
        trainer.decoder().adapter.clone().zip(trainer.layout().trainable.parameters)
    {
        let values: Vec<f32> =
            (0..adapter.layout.len()).map(|i| ((i * 7919) % 101) as f32 / 2e4 - 2.5e-3).collect();
        trainer.device().upload(&values, parameters);
    }
    trainer
}
