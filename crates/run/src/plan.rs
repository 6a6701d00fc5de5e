//! A memory plan as it is shown and stored. The engine's planner fills it in.

use serde::{Deserialize, Serialize};

use crate::{Method, Paging, Recompute, TrainingDevice};

/// What a region is for. The window's colours follow this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
pub enum Category {
    /// Base weights.
    Weights,
    /// Parameters of adapters.
    Adapters,
    /// Gradients of what is trained.
    Gradients,
    /// The optimizer's moments.
    Optimizer,
    /// Values kept or passed between forward and backward pass.
    Activations,
    /// Scratch memory of the operations, inputs and tables.
    Workspace,
}

/// Where a region lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
pub enum Residence {
    /// On the device that computes.
    Device,
    /// In the host's memory, visiting the device.
    Host,
    /// In a file, visiting the device.
    Disk,
}

/// One stretch of memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
pub struct PlannedRegion {
    /// What it holds.
    pub name: String,
    /// What it is for.
    pub category: Category,
    /// Size.
    pub bytes: u64,
    /// Where it lives.
    pub resident: Residence,
}

/// The peak divided among the categories; the parts sum to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
pub struct CategoryBytes {
    /// Base weights.
    pub weights: u64,
    /// Parameters of adapters.
    pub adapters: u64,
    /// Gradients.
    pub gradients: u64,
    /// Moments.
    pub optimizer: u64,
    /// Activations; regions that take turns in one place count once.
    pub activations: u64,
    /// Everything else.
    pub workspace: u64,
}

impl CategoryBytes {
    /// The parts' sum.
    pub fn total(&self) -> u64 {
        [self.weights, self.adapters, self.gradients, self.optimizer, self.activations]
            .into_iter()
            .fold(self.workspace, u64::saturating_add)
    }
}

/// A change that makes a plan fit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
pub struct Suggestion {
    /// What to change.
    pub change: String,
    /// The peak with it.
    pub peak_bytes: u64,
    /// The settings that decide memory, with the change made.
    pub settings: SuggestedSettings,
}

/// Settings that decide memory, for programs that make a suggested change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
pub struct SuggestedSettings {
    /// What is trained.
    pub method: Method,
    /// Rows of a micro-batch.
    pub batch: usize,
    /// The longest example, in tokens.
    pub sequence: usize,
    /// Whether activations are computed again in the backward pass.
    pub recompute: Recompute,
    /// Rank of the adapter; `None`: trained in full.
    pub rank: Option<usize>,
    /// Whether regions may live outside the device.
    #[serde(default)]
    pub paged: Paging,
}

/// What a plan keeps outside the device, and what it costs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
pub struct PagingPlan {
    /// Where it lies.
    pub resident: Residence,
    /// States of the optimizer.
    pub optimizer_bytes: u64,
    /// Weights.
    pub weights_bytes: u64,
    /// Checkpointed inputs of layers.
    pub activations_bytes: u64,
    /// Bytes that cross in each step, in both directions.
    pub step_bytes: u64,
    /// How long they take, which is what a step grows by where nothing hides it; `None` before the
    /// rate was measured.
    #[serde(default)]
    pub step_seconds: Option<f64>,
}

/// The plan of one method.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
pub struct MethodPlan {
    /// The method.
    pub method: Method,
    /// Every byte that the run will hold on the device.
    pub peak_bytes: u64,
    /// Every byte that it will hold in the host's memory beside that.
    #[serde(default)]
    pub host_bytes: u64,
    /// The size of its page file.
    #[serde(default)]
    pub page_file_bytes: u64,
    /// Layers whose activations are computed again in the backward pass, instead of kept; `None` in
    /// plans of before this was told.
    #[serde(default)]
    pub recomputed_layers: Option<usize>,
    /// What does not stay on the device; `None`: everything does.
    #[serde(default)]
    pub paging: Option<PagingPlan>,
    /// The smallest budget that a run with these settings fits.
    #[serde(default)]
    pub smallest_bytes: u64,
    /// The same by category.
    pub categories: CategoryBytes,
    /// Every region.
    pub regions: Vec<PlannedRegion>,
    /// Whether it fits the budget.
    pub fits: bool,
    /// Changes that would make it fit, when it does not.
    pub suggestions: Vec<Suggestion>,
}

/// What a model is, in numbers people know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
pub struct ModelSummary {
    /// Family name, such as `llama`.
    pub family: String,
    /// Parameters.
    pub parameters: u64,
    /// Decoder layers.
    pub layers: usize,
    /// Hidden width.
    pub hidden: usize,
    /// Tokens it knows.
    pub vocabulary: usize,
    /// The most tokens it reads.
    pub context: usize,
}

/// The plans of several methods side by side.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
pub struct PlanReport {
    /// The model.
    pub model: ModelSummary,
    /// The device that the plans are for.
    #[serde(default)]
    pub device: TrainingDevice,
    /// What the plans were held against.
    pub budget_bytes: u64,
    /// What other programs left of the device's memory meanwhile, without `device_overhead_bytes`.
    #[serde(default)]
    pub available_bytes: u64,
    /// What a card's driver takes of its memory beside every plan, for its own state and the kernels'
    /// code, as it was on this card before; `None`: not known before its first use, or no card.
    #[serde(default)]
    pub device_overhead_bytes: Option<u64>,
    /// What other programs left of the host's memory, where a card's plan keeps what leaves the card;
    /// `None`: of no card.
    #[serde(default)]
    pub host_available_bytes: Option<u64>,
    /// A plan for each method.
    pub methods: Vec<MethodPlan>,
}

/// Bytes as people read them: in GiB, MiB or KiB, with three digits.
pub fn size(n: u64) -> String {
    if n == 0 {
        return "0".into();
    }
    let n = n as f64;
    let (value, unit) = match n {
        n if n >= 1024.0 * 1024.0 * 1024.0 => (n / (1024.0 * 1024.0 * 1024.0), "GiB"),
        n if n >= 1024.0 * 1024.0 => (n / (1024.0 * 1024.0), "MiB"),
        n => (n / 1024.0, "KiB"),
    };
    let digits = if value >= 100.0 {
        0
    } else if value >= 10.0 {
        1
    } else {
        2
    };
    format!("{value:.digits$} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_well() {
        assert_eq!(size(5_368_709_120), "5.00 GiB");
        assert_eq!(size(123_456_789), "118 MiB");
        assert_eq!(size(0), "0");
        assert_eq!(size(1536), "1.50 KiB");
    }
}
