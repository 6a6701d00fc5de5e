//! Checkpoints: everything a killed run needs to go on bit for bit.
//!
//! ```text
//! step-000100/adapter_model.safetensors, adapter_config.json     or, trained in full:
//! step-000100/model.safetensors                                  every weight, as it is stored
//! step-000100/optimizer.safetensors                              both moments of every tensor, in
//!                                                                f32 or as codes and block maxima
//! step-000100/state.json                                         where the run stands
//! ```
//! A checkpoint is written beside its place and renamed when it is whole, so that a folder with
//! its final name is always complete.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use nibble_kernels::{
    Backend, DeviceError, MemoryError, adamw::n_moment_blocks, memory::MappedFile,
    paging::PageError,
};
use nibble_run::size;
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};

use super::trainer::Trainer;
use crate::{
    adapter::{AdapterConfig, AdapterError, AdapterTensor, peft},
    decoder::BaseWeights,
    export::{ExportError, MODEL_WEIGHTS, copy_companions},
    files::{SafetensorsWriter, TensorEntry},
    optimizer::{MomentParts, OptimizerStates, TrainedRole},
    residency::Stored,
    weights::layout::TensorParts,
};

const OPTIMIZER: &str = "optimizer.safetensors";
const STATE: &str = "state.json";
const VERSION: u32 = 1;

/// Where a run stands.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunState {
    /// Version of the checkpoint's format.
    pub version: u32,
    /// Steps done.
    pub step: u64,
    /// The last step's mean loss.
    pub loss: f64,
    /// Tokens seen.
    pub n_tokens: u64,
    /// What tells the examples in tokens from others; absent in checkpoints of older Nibbles.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_fingerprint: Option<u64>,
}

impl RunState {
    /// The state after `step` steps.
    pub fn new(step: u64, loss: f64, n_tokens: u64) -> Self {
        Self { version: VERSION, step, loss, n_tokens, data_fingerprint: None }
    }
}

/// Why a checkpoint could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A file could not be written.
    #[error(
        "could not write the checkpoint {path}: {source}; the checkpoint before it is whole. Free some space or check the folder's permissions, then resume"
    )]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A checkpoint would not find room.
    #[error(
        "each checkpoint of this run takes {} and {} is free where {path} is; free some space, or choose another place for the run (--out)",
        size(*needed_bytes), size(*available_bytes)
    )]
    NoSpace {
        /// The run folder.
        path: PathBuf,
        /// What one takes.
        needed_bytes: u64,
        /// What is free.
        available_bytes: u64,
    },
    /// A file could not be read.
    #[error("could not read the checkpoint {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A file is not what the run wrote.
    #[error("the checkpoint {path} is damaged: {reason}; delete it to resume from the one before")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The adapter's files.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// The model's configuration or tokenizer could not be taken along.
    #[error(transparent)]
    Companions(#[from] ExportError),
    /// What lies outside the device could not be reached.
    #[error(transparent)]
    Page(#[from] PageError),
    /// The device failed before all was read from it.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// Bytes of the large files of a checkpoint of `trainer`.
pub fn n_bytes<B: Backend>(trainer: &Trainer<B>) -> u64 {
    let trained = match (&trainer.decoder().adapter, trainer.layout().trainable.parameters) {
        (Some(_), Some(parameters)) => (parameters.len() * size_of::<f32>()) as u64,
        _ => n_tensor_bytes(&weight_tensors(&trainer.decoder().weights)),
    };
    trained + n_tensor_bytes(&moment_tensors(trainer.states()))
}

fn n_tensor_bytes(tensors: &[StoredTensor]) -> u64 {
    tensors.iter().map(|tensor| tensor.entry().n_bytes()).sum()
}

/// Writes a checkpoint of `trainer` at `path`, whole or not at all. Beside the configuration and the
/// tokenizer of `base`, which come along where everything is trained, it is a model.
///
/// # Errors
/// When the disk is full or refuses, or the device failed.
pub fn write<B: Backend>(
    path: &Path,
    trainer: &mut Trainer<B>,
    adapter: Option<&AdapterConfig>,
    base: &Path,
    state: &RunState,
) -> Result<(), CheckpointError> {
    let failed = |source| CheckpointError::Write { path: path.to_owned(), source };
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let unfinished = path.with_file_name(format!("{name}.tmp"));
    // What a device that has failed holds, and what was read while it did, is none of the run's.
    trainer.check_device()?;
    let result = write_files(&unfinished, trainer, adapter, base, state).and_then(|()| {
        trainer.check_device()?;
        if path.exists() {
            fs::remove_dir_all(path).map_err(failed)?;
        }
        fs::rename(&unfinished, path).map_err(failed)?;
        sync_folder(path.parent().unwrap_or(path)).map_err(failed)
    });
    if result.is_err() {
        // What is left of it only takes space that the person now needs.
        let _ = fs::remove_dir_all(&unfinished);
    }
    result
}

fn write_files<B: Backend>(
    folder: &Path,
    trainer: &mut Trainer<B>,
    adapter: Option<&AdapterConfig>,
    base: &Path,
    state: &RunState,
) -> Result<(), CheckpointError> {
    let failed = |source| CheckpointError::Write { path: folder.to_owned(), source };
    if folder.exists() {
        fs::remove_dir_all(folder).map_err(failed)?;
    }
    fs::create_dir_all(folder).map_err(failed)?;
    let trainable = trainer.layout().trainable;
    match (&trainer.decoder().adapter, trainable.parameters, adapter) {
        (Some(adapter), Some(parameters), Some(config)) => {
            let layout = adapter.layout.clone();
            let fill = |tensor: &AdapterTensor, values: &mut [f32]| {
                trainer.download(parameters.slice(tensor.range()), values);
            };
            peft::write(folder, config, &layout, fill).map_err(|error| match error {
                AdapterError::File { source, .. } => failed(source),
                other => other.into(),
            })?;
        }
        _ => {
            let tensors = weight_tensors(&trainer.decoder().weights);
            write_tensors(&folder.join(MODEL_WEIGHTS), trainer, &tensors)?;
            copy_companions(base, None, folder).map_err(|error| match error {
                ExportError::Write { source, .. } => failed(source),
                other => other.into(),
            })?;
        }
    }
    let moments = moment_tensors(trainer.states());
    write_tensors(&folder.join(OPTIMIZER), trainer, &moments)?;
    let json = serde_json::to_vec_pretty(state).map_err(|error| failed(error.into()))?;
    fs::write(folder.join(STATE), json).map_err(failed)?;
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        // Windows brings only files to the disk that may be written.
        let file = fs::OpenOptions::new().read(true).write(true).open(&path);
        file.and_then(|file| file.sync_all()).map_err(failed)?;
    }
    Ok(())
}

/// Brings a folder's entries to the disk, where the system can (Unix).
fn sync_folder(folder: &Path) -> io::Result<()> {
    if cfg!(unix) { fs::File::open(folder)?.sync_all() } else { Ok(()) }
}

/// Reads where the run stood.
///
/// # Errors
/// When the file is missing, damaged, or of a newer version.
pub fn read_state(folder: &Path) -> Result<RunState, CheckpointError> {
    let path = folder.join(STATE);
    let bytes =
        fs::read(&path).map_err(|source| CheckpointError::Read { path: path.clone(), source })?;
    let damaged = |reason: String| CheckpointError::Damaged { path: path.clone(), reason };
    let state: RunState =
        serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
    if state.version > VERSION {
        let reason = format!("it is of version {}, newer than this Nibble knows", state.version);
        return Err(damaged(reason));
    }
    Ok(state)
}

/// Brings a checkpoint's parameters and moments back into `trainer`.
///
/// # Errors
/// When a file is missing or does not belong to the run's model and settings.
pub fn read<B: Backend>(
    folder: &Path,
    trainer: &mut Trainer<B>,
) -> Result<RunState, CheckpointError> {
    let state = read_state(folder)?;
    let trainable = trainer.layout().trainable;
    match (trainer.decoder().adapter.clone(), trainable.parameters) {
        (Some(adapter), Some(parameters)) => {
            let path = folder.join(peft::ADAPTER_WEIGHTS);
            let device = trainer.device();
            peft::read_parameters(&path, &adapter.layout, |tensor, values| {
                device.upload(values, parameters.slice(tensor.range()));
            })?;
        }
        _ => {
            let tensors = weight_tensors(&trainer.decoder().weights);
            read_tensors(&folder.join(MODEL_WEIGHTS), trainer, &tensors)?;
        }
    }
    let moments = moment_tensors(trainer.states());
    read_tensors(&folder.join(OPTIMIZER), trainer, &moments)?;
    Ok(state)
}

/// One tensor of a checkpoint: its name in the file, and where its bytes are, run after run.
#[derive(Debug)]
struct StoredTensor {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    runs: Vec<Stored>,
}

impl StoredTensor {
    fn entry(&self) -> TensorEntry {
        TensorEntry { name: self.name.clone(), dtype: self.dtype, shape: self.shape.clone() }
    }
}

/// Every tensor of a block of weights, under its name in model files.
fn weight_tensors(weights: &BaseWeights) -> Vec<StoredTensor> {
    let places = weights.layout.tensors();
    places
        .map(|place| StoredTensor {
            name: place.role.name(),
            dtype: match place.parts {
                TensorParts::F32 { .. } => Dtype::F32,
                TensorParts::Bf16 { .. } => Dtype::BF16,
                TensorParts::Nf4 { .. } => unreachable!("quantised weights are not trained"),
            },
            shape: place.shape.to_vec(),
            runs: vec![weights.stored(&place)],
        })
        .collect()
}

/// Both moments of everything trained: f32 tensors of the parameter's shape, or its codes and, beside
/// them, the largest magnitude of each block.
fn moment_tensors(states: &OptimizerStates) -> Vec<StoredTensor> {
    let mut tensors = Vec::new();
    for moment in ["first_moments", "second_moments"] {
        for (number, tensor) in states.tensors().iter().enumerate() {
            let (name, shape) = match tensor.role {
                TrainedRole::Adapter(tensor) => (peft::tensor_name(&tensor), tensor.shape.to_vec()),
                TrainedRole::Weight(place) => (place.role.name(), place.shape.to_vec()),
            };
            let name = format!("{moment}.{name}");
            let (mut values, mut codes, mut maxima) = (Vec::new(), Vec::new(), Vec::new());
            for (piece, page) in states.pieces_of(number) {
                let parts = if moment == "first_moments" { piece.first } else { piece.second };
                match parts {
                    MomentParts::F32 { offset } => {
                        values.push(page.part(offset, piece.len * size_of::<f32>()));
                    }
                    MomentParts::Blockwise8 { codes: at, absmax } => {
                        codes.push(page.part(at, piece.len));
                        let bytes = n_moment_blocks(piece.len) * size_of::<f32>();
                        maxima.push(page.part(absmax, bytes));
                    }
                }
            }
            if codes.is_empty() {
                tensors.push(StoredTensor { name, dtype: Dtype::F32, shape, runs: values });
            } else {
                let n_blocks = n_moment_blocks(tensor.n_elements);
                let absmax = format!("{name}.absmax");
                tensors.push(StoredTensor { name, dtype: Dtype::U8, shape, runs: codes });
                let (dtype, shape) = (Dtype::F32, vec![n_blocks]);
                tensors.push(StoredTensor { name: absmax, dtype, shape, runs: maxima });
            }
        }
    }
    tensors
}

/// Bytes that cross between run and file at a time.
const CHUNK: usize = 4 << 20;

fn write_tensors<B: Backend>(
    path: &Path,
    trainer: &mut Trainer<B>,
    tensors: &[StoredTensor],
) -> Result<(), CheckpointError> {
    let failed = |source| CheckpointError::Write { path: path.to_owned(), source };
    let entries: Vec<_> = tensors.iter().map(StoredTensor::entry).collect();
    let mut writer = SafetensorsWriter::create(path, &entries).map_err(failed)?;
    let mut chunk = Vec::new();
    for run in tensors.iter().flat_map(|tensor| &tensor.runs) {
        for start in (0..run.n_bytes()).step_by(CHUNK) {
            chunk.resize(CHUNK.min(run.n_bytes() - start), 0);
            trainer.read(run.part(start, chunk.len()), &mut chunk)?;
            writer.write_values(&chunk).map_err(failed)?;
        }
    }
    writer.finish().map_err(failed)
}

fn read_tensors<B: Backend>(
    path: &Path,
    trainer: &mut Trainer<B>,
    tensors: &[StoredTensor],
) -> Result<(), CheckpointError> {
    let file = MappedFile::open(path).map_err(|error| CheckpointError::Read {
        path: path.to_owned(),
        source: match error {
            MemoryError::Map { source, .. } | MemoryError::Allocate { source, .. } => source,
            MemoryError::Device(error) => io::Error::other(error),
        },
    })?;
    let damaged = |reason: String| CheckpointError::Damaged { path: path.to_owned(), reason };
    let stored = SafeTensors::deserialize(&file).map_err(|error| damaged(error.to_string()))?;
    for tensor in tensors {
        let name = &tensor.name;
        let view = stored.tensor(name).map_err(|_| damaged(format!("`{name}` is missing")))?;
        if view.shape() != tensor.shape || view.dtype() != tensor.dtype {
            return Err(damaged(format!(
                "`{name}` is {:?} {:?} instead of {:?} {:?}",
                view.dtype(),
                view.shape(),
                tensor.dtype,
                tensor.shape
            )));
        }
        let mut bytes = view.data();
        for run in &tensor.runs {
            for start in (0..run.n_bytes()).step_by(CHUNK) {
                let (chunk, rest) = bytes.split_at(CHUNK.min(run.n_bytes() - start));
                trainer.write(run.part(start, chunk.len()), chunk)?;
                // A checkpoint may be larger than the memory: what was read makes room.
                let position = chunk.as_ptr().addr() - file.as_ptr().addr();
                file.release(position..position + chunk.len());
                bytes = rest;
            }
        }
    }
    Ok(())
}
