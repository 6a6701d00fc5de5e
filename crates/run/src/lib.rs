//! The run folder: its settings, its plan, its events and its files.
//!
//! Everything that shows a run reads this folder and depends on this crate alone; the engine writes
//! it. There is no computation here, and in particular no memory formula.
//!
//! ```text
//! RUN/run.toml                   every setting, so that the run can be repeated
//! RUN/plan.json                  the memory plan it ran under
//! RUN/metrics.jsonl              one event a line, appended
//! RUN/checkpoints/step-000100/   see the engine
//! RUN/report/                    charts
//! RUN/pages.bin                  while it trains: what does not stay on the device
//! RUN/run.lock                   locked while a process trains the run
//! ```

mod error;
mod events;
mod explain;
mod folder;
mod follow;
mod lock;
mod naming;
mod plan;
mod settings;
mod state;
mod summary;
#[cfg(test)]
mod testing;

pub use error::RunError;
pub use events::{CardReadings, Event, OperationTime};
pub use explain::Explain;
pub use folder::{CheckpointFolder, MetricsWriter, RunFolder, read_metrics, read_settings};
pub use follow::{RunFollower, RunNews};
pub use lock::RunLock;
pub use naming::new_run_path;
pub use plan::{
    Category, CategoryBytes, MethodPlan, ModelSummary, PagingPlan, PlanReport, PlannedRegion,
    Residence, SuggestedSettings, Suggestion, size,
};
pub use settings::{
    Columns, ComputePrecision, LoraSettings, Method, Optimizer, Paging, Recompute, RunSettings,
    SampleSettings, Schedule, TrainOn, TrainingDevice, WeightPrecision,
};
pub use state::{Progress, RunState};
pub use summary::{RunList, RunSummary};
