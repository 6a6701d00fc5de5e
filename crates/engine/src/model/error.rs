//! What can be wrong with a model: its configuration, its files, its image on disk.

use std::path::PathBuf;

use nibble_kernels::{MemoryError, paging::PageError};

use nibble_run::size;

/// Why a model could not be described, opened, loaded or written.
///
/// Each message says what is wrong, where, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A file could not be read.
    #[error("could not read {path}: {source}; check that it exists and that you may read it")]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A file could not be written.
    #[error(
        "could not write {path}: {source}; check the disk and your rights, or choose another folder"
    )]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The disk has not enough room.
    #[error(
        "not enough room in {folder}: {} is needed and {} is free; free some space or choose another \
         folder (environment variable NIBBLE_CACHE)",
        size(*needed_bytes), size(*available_bytes)
    )]
    NoSpace {
        /// Where the file was to go.
        folder: PathBuf,
        /// Bytes the file needs.
        needed_bytes: u64,
        /// Bytes that are free.
        available_bytes: u64,
    },
    /// The system has no folder for caches.
    #[error("this system has no folder for caches; set the environment variable NIBBLE_CACHE")]
    NoCacheFolder,
    /// A file is not JSON.
    #[error("{path} is not valid JSON: {source}; download the file again")]
    Json {
        /// The file.
        path: PathBuf,
        /// What the parser met, and in which line.
        source: serde_json::Error,
    },
    /// The configuration lacks a key.
    #[error("{path} has no \"{key}\"; use the config.json that was published with the model")]
    MissingKey {
        /// The configuration.
        path: PathBuf,
        /// The key.
        key: String,
    },
    /// A key's value is of the wrong kind or out of range.
    #[error(
        "{path}: \"{key}\" is {found}, but must be {expected}; use the config.json that was \
         published with the model"
    )]
    BadValue {
        /// The configuration.
        path: PathBuf,
        /// The key.
        key: String,
        /// The value, as JSON.
        found: String,
        /// What it would have to be.
        expected: String,
    },
    /// The model asks for something that is not implemented.
    #[error("{path}: \"{key}\" is {found}, which is not supported; supported: {supported}")]
    Unsupported {
        /// The configuration.
        path: PathBuf,
        /// The key.
        key: String,
        /// The value, as JSON.
        found: String,
        /// What is.
        supported: String,
    },
    /// The model's family is unknown.
    #[error(
        "{path}: the architecture {found} is not supported; supported: {supported}. Choose a model \
         of one of these"
    )]
    UnknownArchitecture {
        /// The configuration.
        path: PathBuf,
        /// What the configuration calls itself.
        found: String,
        /// The architectures that are supported.
        supported: String,
    },
    /// No model of the catalog has this id.
    #[error("no known model is called \"{id}\"; did you mean {near}?")]
    UnknownId {
        /// The id asked for.
        id: String,
        /// The ids nearest to it.
        near: String,
    },
    /// The folder holds no weights in a form that is read.
    #[error(
        "{folder} holds neither model.safetensors nor model.safetensors.index.json; download the \
         model's .safetensors files into it"
    )]
    NoWeights {
        /// The model folder.
        folder: PathBuf,
    },
    /// The index names a file that is not there.
    #[error("{shard} is missing, though {index} lists it; download it again")]
    MissingShard {
        /// The file that should exist.
        shard: PathBuf,
        /// The index that lists it.
        index: PathBuf,
    },
    /// A tensor the model needs is in none of its files.
    #[error(
        "{folder} has no tensor \"{tensor}\", which its config.json asks for; download the model again"
    )]
    MissingTensor {
        /// The model folder, or the shard that should hold it.
        folder: PathBuf,
        /// The tensor's name.
        tensor: String,
    },
    /// A tensor's shape is not the one the configuration implies.
    #[error(
        "{path}: tensor \"{tensor}\" is {found:?}, but config.json makes it {expected:?}; weights \
         and config.json are of different models: download both again"
    )]
    WrongShape {
        /// The file.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// What the configuration implies.
        expected: Vec<usize>,
        /// What the file says.
        found: Vec<usize>,
    },
    /// A tensor's numbers are of a type that is not read.
    #[error(
        "{path}: tensor \"{tensor}\" holds {found} numbers; supported: F32, F16, BF16. Use the \
         model's original, unquantised files"
    )]
    UnsupportedDtype {
        /// The file.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// The type, as the file calls it.
        found: String,
    },
    /// The model is already quantised.
    #[error(
        "{path}: the model is stored quantised ({method}); use the original model, which is \
         quantised while loading"
    )]
    Quantized {
        /// The configuration.
        path: PathBuf,
        /// The quantisation's name.
        method: String,
    },
    /// A file ends before its contents do.
    #[error("{path} is cut off: it has {found_bytes} of {expected_bytes} bytes; download it again")]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Bytes its header promises.
        expected_bytes: u64,
        /// Bytes it has.
        found_bytes: u64,
    },
    /// A safetensors header contradicts itself or the file.
    #[error("{path} has a damaged header ({reason}); download it again")]
    BadHeader {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Memory could not be had, or a file not be mapped.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Weights could not be brought to their store.
    #[error(transparent)]
    Page(#[from] PageError),
    /// The person asked to stop.
    #[error("loading was cancelled")]
    Cancelled,
}
