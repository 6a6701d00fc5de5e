//! Training: a step, a run around it, and what survives a run.

pub mod checkpoint;
mod handle;
mod initialise;
mod prepare;
mod run;
mod schedule;
#[cfg(test)]
mod tests;
mod trainer;

pub use handle::{Command, Elsewhere, Outcome, RunHandle, resume, start, start_profiled};
pub use prepare::{Prepared, column_mapping, compute, prepare, tokenize_options};
pub use schedule::LearningRate;
pub use trainer::{MicroBatch, StepMeasures, Trainer};

pub use crate::optimizer::OptimizerConfig;

use std::path::PathBuf;

use nibble_data::DataError;
use nibble_kernels::{DeviceError, MemoryError, paging::PageError};
use nibble_run::RunError;

use crate::{
    adapter::AdapterError, devices::OpenDeviceError, generate::GenerateError, model::ModelError,
    plan::PlanError, train::checkpoint::CheckpointError,
};

/// Why a run could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The settings or the run folder.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The model.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The dataset or the tokenizer.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The memory plan.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The device is not there, or could not be opened.
    #[error(transparent)]
    Open(#[from] OpenDeviceError),
    /// The device has no room.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The device failed while it computed; nothing of the step is kept.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// An adapter.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// A sample.
    #[error(transparent)]
    Generate(#[from] GenerateError),
    /// The model is known by its shape alone.
    #[error(
        "`{id}` is known by its shape only; download {repository} into a folder and give that folder as --model"
    )]
    NotDownloaded {
        /// Its id in the catalog.
        id: String,
        /// Where it is published.
        repository: String,
    },
    /// What does not stay on the device.
    #[error(transparent)]
    Page(#[from] PageError),
    /// The loss is not a number any more.
    #[error(
        "the {what} became {value} in step {step}: the model has diverged, and the run was stopped. Start it again with a smaller learning rate (--lr {:e}, it was {learning_rate:e}), more warm-up steps (--warmup), or a clipped gradient (--clip-norm 1); checkpoints are from before",
        learning_rate / 10.0
    )]
    Diverged {
        /// Loss or gradient norm.
        what: &'static str,
        /// Its value.
        value: f64,
        /// The step.
        step: u64,
        /// The learning rate of the run.
        learning_rate: f64,
    },
    /// The loss is not a number before anything was trained.
    #[error(
        "the loss is {value} before anything was trained: the model's weights are damaged or do not belong to its config.json; download the model again"
    )]
    DamagedModel {
        /// The loss.
        value: f64,
    },
    /// There is nothing left to do.
    #[error("the run {path} is complete after {n_steps} steps; start another, or export it")]
    Complete {
        /// The run folder.
        path: PathBuf,
        /// Its steps.
        n_steps: u64,
    },
    /// The system refused threads.
    #[error("the worker threads could not be started: {0}")]
    Threads(String),
    /// A defect.
    #[error(
        "the training thread ended unexpectedly, which is a defect of Nibble; the last checkpoint is whole: resume the run, and please report what you did"
    )]
    Panicked,
}
