//! What a run reports, one event a line.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What one kind of operation took in the steps of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
pub struct OperationTime {
    /// The operation.
    pub name: String,
    /// How often it ran.
    pub calls: u64,
    /// The time from its beginnings to its ends, in seconds.
    pub seconds: f64,
    /// Multiplications and additions of its matrix products; 0 where it has none.
    pub flops: f64,
    /// Bytes of its arguments, each counted once a call.
    pub bytes: f64,
}

/// What a graphics card says of itself, as far as it does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
pub struct CardReadings {
    /// Memory that is in use on it, by all programs.
    pub used_bytes: Option<u64>,
    /// This process's part of it, the driver's own included.
    pub process_bytes: Option<u64>,
    /// Its temperature.
    pub temperature_celsius: Option<f64>,
    /// The power that it draws.
    pub power_watts: Option<f64>,
}

/// One thing that happened. Losses are mean cross-entropies per trained token, in nats.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
pub enum Event {
    /// Weights are being read, quantised or mapped.
    Loading {
        /// Bytes of the model read so far.
        done_bytes: u64,
        /// Bytes to read.
        total_bytes: u64,
    },
    /// Everything is in place; the first step begins.
    Ready {
        /// Steps of the whole run.
        n_steps: u64,
        /// Steps done before (of a resumed run).
        step: u64,
        /// Examples to train on.
        n_examples: u64,
        /// Their tokens.
        n_tokens: u64,
        /// The plan's peak.
        planned_peak_bytes: u64,
    },
    /// An optimizer step.
    Step {
        /// Steps done.
        step: u64,
        /// Loss before the update.
        loss: f64,
        /// Learning rate.
        lr: f64,
        /// Gradient norm before clipping.
        grad_norm: f64,
        /// Tokens seen in this step.
        tokens: u64,
        /// Tokens a second of this step.
        tokens_per_s: f64,
        /// Resident memory of the process.
        host_bytes: u64,
        /// Memory taken from the device.
        device_bytes: u64,
        /// Bytes that crossed between the device and what lies outside it, in both directions.
        #[serde(default)]
        paged_bytes: u64,
        /// What the card says, where one computes.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[cfg_attr(feature = "typescript", ts(optional = nullable))]
        card: Option<CardReadings>,
    },
    /// A whole checkpoint is on the disk.
    Checkpoint {
        /// Steps done.
        step: u64,
        /// Its folder.
        path: PathBuf,
    },
    /// The held-out examples were evaluated.
    Eval {
        /// Steps done.
        step: u64,
        /// Loss.
        loss: f64,
        /// `exp(loss)`.
        perplexity: f64,
        /// Tokens it is the mean of.
        trained_tokens: u64,
    },
    /// A sample was written.
    Sample {
        /// Steps done.
        step: u64,
        /// What was asked.
        prompt: String,
        /// What the model answered.
        text: String,
    },
    /// Something the person should know.
    Warning {
        /// What, and what to do.
        message: String,
    },
    /// The run holds.
    Paused,
    /// The run goes on.
    Resumed,
    /// Where the time of the steps went, if that was asked for.
    Profile {
        /// Steps that were watched: all but the first, which meets its memory for the first time.
        steps: u64,
        /// Their time.
        seconds: f64,
        /// Every operation, in the order of their first calls.
        operations: Vec<OperationTime>,
        /// Multiplications and additions a second that the device does on registers alone; `None`
        /// where that was not measured.
        product_flops_per_s: Option<f64>,
        /// Bytes a second that a copy reads and writes.
        copy_bytes_per_s: Option<f64>,
    },
    /// An error ended the run.
    Failed {
        /// Which error, in a form that does not change.
        code: String,
        /// What happened, and where.
        message: String,
        /// What to do; may be empty.
        hint: String,
    },
    /// The run has ended.
    Done {
        /// The plan's peak.
        planned_peak_bytes: u64,
        /// What was taken from the device.
        allocated_peak_bytes: u64,
        /// What the plan keeps in the host's memory beside the device.
        #[serde(default)]
        planned_host_bytes: u64,
        /// What it keeps in a page file.
        #[serde(default)]
        planned_page_file_bytes: u64,
        /// What was taken outside the device: the host's memory and page file together.
        #[serde(default)]
        allocated_outside_bytes: u64,
        /// The most memory the process held.
        peak_rss_bytes: u64,
        /// Steps done.
        steps: u64,
        /// The last step's loss.
        final_loss: f64,
        /// The last checkpoint, whose folder other programs can load.
        adapter: PathBuf,
    },
}
