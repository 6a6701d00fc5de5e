//! What crosses crates: other implementations' results, plans, faults. This library holds what its
//! tests share.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

pub mod paging;
pub mod trajectories;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use nibble_engine::{
    adapter::{AdapterConfig, AdapterLayout, peft::AdapterFolder},
    devices::RunDevice,
    optimizer::StateFormat,
    plan::{MemoryPlan, Residency, Trainable, TrainingShape},
    residency::open_store,
    train::{MicroBatch, Trainer},
    weights::{
        EmbeddingFormat, ModelFolder, PlacedWeights, WeightFormat, load::unwatched, place_weights,
    },
};
use nibble_kernels::{
    Compute, Cpu, DeviceKind, DeviceProfile, FloatFormat, Isa, attention::Segment,
};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

/// This crate's folder. Cargo says where it lies when it runs a test; whoever runs one elsewhere says
/// so in its place.
fn crate_folder() -> PathBuf {
    std::env::var("CARGO_MANIFEST_DIR").unwrap_or(env!("CARGO_MANIFEST_DIR").into()).into()
}

/// The golden files.
pub fn golden() -> PathBuf {
    crate_folder().join("golden")
}

/// The built-in model.
pub fn starter() -> PathBuf {
    crate_folder().join("..").join("assets").join("starter")
}

/// The tensors of a golden file in f64, by name.
pub fn golden_tensors(path: &Path) -> BTreeMap<String, Vec<f64>> {
    let bytes = fs::read(path).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    tensors
        .tensors()
        .into_iter()
        .map(|(name, tensor)| {
            let data = tensor.data();
            let values = match tensor.dtype() {
                Dtype::F64 => numbers(data, f64::from_le_bytes),
                Dtype::F32 => numbers(data, |bytes| f64::from(f32::from_le_bytes(bytes))),
                Dtype::I64 => numbers(data, |bytes| i64::from_le_bytes(bytes) as f64),
                Dtype::U8 => numbers(data, |[byte]| f64::from(byte)),
                other => panic!("{name} is {other}"),
            };
            (name, values)
        })
        .collect()
}

fn numbers<const N: usize>(data: &[u8], read: fn([u8; N]) -> f64) -> Vec<f64> {
    data.chunks_exact(N).map(|bytes| read(bytes.try_into().unwrap())).collect()
}

/// A golden JSON file.
pub fn golden_json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Sequences behind one another, with what is trained in them.
#[derive(Clone, Debug, Default)]
pub struct Sequences {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Position of each in its sequence.
    pub positions: Vec<u32>,
    /// The sequences.
    pub segments: Vec<Segment>,
    /// Rows whose next token is trained.
    pub target_rows: Vec<u32>,
    /// That next token.
    pub targets: Vec<u32>,
}

impl Sequences {
    /// Adds a sequence; a label stands at its own token, negative where nothing is trained.
    pub fn push(&mut self, ids: &[u32], labels: &[i64]) {
        let (start, n) = (self.ids.len() as u32, ids.len() as u32);
        for (i, label) in labels.iter().enumerate().skip(1) {
            if *label >= 0 {
                self.target_rows.push(start + i as u32 - 1);
                self.targets.push(*label as u32);
            }
        }
        self.ids.extend(ids);
        self.positions.extend(0..n);
        self.segments.push(Segment {
            query_start: start,
            n_queries: n,
            key_start: start,
            n_keys: n,
        });
    }

    /// All of it as one micro-batch.
    pub fn batch(&self) -> MicroBatch<'_> {
        MicroBatch {
            ids: &self.ids,
            positions: &self.positions,
            segments: &self.segments,
            target_rows: &self.target_rows,
            targets: &self.targets,
            max_segment: self.segments.iter().map(|s| s.n_queries as usize).max().unwrap_or(1),
        }
    }
}

/// This machine's processor in f32.
pub fn f32_profile(n_threads: usize) -> DeviceProfile {
    DeviceProfile { kind: DeviceKind::Cpu { isa: Isa::best(), n_threads }, compute: Compute::F32 }
}

/// What is trained from a golden folder, and how.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// How the matrices are stored.
    pub weight_format: WeightFormat,
    /// Whether the golden adapter is trained, or every weight.
    pub with_adapter: bool,
    /// Layers whose activations are kept instead of computed twice.
    pub kept_layers: usize,
    /// Worker threads.
    pub n_threads: usize,
    /// The most tokens of a micro-batch.
    pub n_rows: usize,
    /// How the gradients of the layers' matrices are kept.
    pub gradients: FloatFormat,
    /// How the optimizer's states are stored.
    pub states: StateFormat,
    /// What lies outside the device.
    pub residency: Residency,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            weight_format: WeightFormat::F32,
            with_adapter: false,
            kept_layers: 0,
            n_threads: 2,
            n_rows: 64,
            gradients: FloatFormat::F32,
            states: StateFormat::F32,
            residency: Residency::default(),
        }
    }
}

/// A trainer of a golden model on the processor in f32, its golden adapter in place if one is wanted.
pub fn open_trainer(
    folder: &Path,
    setup: Setup,
) -> (Trainer<Cpu>, Option<(AdapterConfig, AdapterLayout)>) {
    open_trainer_on(folder, setup, f32_profile(setup.n_threads))
}

/// The same on the device of `profile`.
pub fn open_trainer_on<B: RunDevice>(
    folder: &Path,
    setup: Setup,
    profile: DeviceProfile,
) -> (Trainer<B>, Option<(AdapterConfig, AdapterLayout)>) {
    let model = ModelFolder::open(folder).unwrap();
    let spec = model.spec().clone();
    let adapter =
        setup.with_adapter.then(|| AdapterFolder::open(&folder.join("adapter"), &spec).unwrap());
    let shape = TrainingShape {
        weight_format: setup.weight_format,
        embedding_format: EmbeddingFormat::F32,
        trainable: match &adapter {
            Some(AdapterFolder { config, .. }) => {
                Trainable::Adapter { targets: config.targets, rank: config.rank, dropout: false }
            }
            None => Trainable::Everything,
        },
        sequence: setup.n_rows,
        batch: 1,
        kept_layers: setup.kept_layers,
        sample_tokens: setup.n_rows,
        gradients: setup.gradients,
        states: setup.states,
        residency: setup.residency,
        profile,
        spec,
    };
    let scale = adapter.as_ref().map_or(1.0, |adapter| adapter.config.scale());
    let cache = tempfile::tempdir().unwrap();
    let mut trainer: Trainer<B> = place_trainer(&model, shape, scale, cache.path());
    let adapter = adapter.map(|adapter| {
        let parameters = trainer.layout().trainable.parameters.unwrap();
        adapter.upload(trainer.device(), parameters).unwrap();
        (adapter.config, adapter.layout)
    });
    (trainer, adapter)
}

/// A trainer of `model` as `shape` says, its adapter and moments zero; `folder` is for the quantised
/// image and the page file.
pub fn place_trainer<B: RunDevice>(
    model: &ModelFolder,
    shape: TrainingShape,
    scale: f32,
    folder: &Path,
) -> Trainer<B> {
    let mut plan = MemoryPlan::new(shape);
    let shape = plan.shape();
    let mut device = B::open(shape.profile).unwrap();
    let store = open_store(&mut device, &plan, &folder.join("pages.bin")).unwrap();
    let (layout, paged, cache) = (shape.weight_layout(), shape.paged_layers(store), Some(folder));
    let placed = place_weights(&mut device, model, layout, &paged, cache, &mut unwatched);
    let PlacedWeights { weights, .. } = placed.unwrap();
    Trainer::new(device, &mut plan, weights, scale, store).unwrap()
}

/// The root of the mean squared difference.
pub fn rms(actual: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(actual.len(), expected.len());
    let sum: f64 = actual.iter().zip(expected).map(|(a, e)| (f64::from(*a) - e).powi(2)).sum();
    (sum / actual.len() as f64).sqrt()
}
