//! Everything about a run that is decided before anything is loaded.

use nibble_data::{ColumnMapping, DataError, TokenizeOptions, TrainOn};
use nibble_kernels::Compute;
use nibble_run::{ComputePrecision, Method, PlanReport, RunSettings};

use super::{OptimizerConfig, TrainError};
use crate::{
    adapter::AdapterConfig,
    catalog, devices,
    model::ModelSpec,
    plan::{self, Allowance, MemoryPlan, PlanSettings},
    weights::ModelFolder,
};

/// A run that can start: its plan fits and its model is whole.
#[derive(Debug)]
pub struct Prepared {
    /// The person's settings.
    pub settings: RunSettings,
    /// The model's files.
    pub model: ModelFolder,
    /// Every byte that the run will hold.
    pub plan: MemoryPlan,
    /// The memory that the plan was held against.
    pub budget_bytes: u64,
    /// What other programs left.
    pub available_bytes: u64,
    /// What they left of the host's memory beside a card.
    pub host_available_bytes: Option<u64>,
}

/// Checks the settings, the model and the memory.
///
/// # Errors
/// The first thing that is wrong, and what to do.
pub fn prepare(settings: RunSettings) -> Result<Prepared, TrainError> {
    settings.check()?;
    if !settings.model.is_dir()
        && let Some(entry) = settings.model.to_str().and_then(|id| catalog::find(id).ok())
    {
        return Err(TrainError::NotDownloaded {
            id: entry.id.clone(),
            repository: entry.repository.clone(),
        });
    }
    let config = settings.model.join("config.json");
    let spec = ModelSpec::from_config_file(&config)?;
    let profile = devices::profile(settings.device, settings.threads, compute(settings.compute));
    devices::check_model(&profile, &spec, &config)?;
    devices::meet(&profile)?;
    let page_rates = devices::page_rates(&profile);
    let available_bytes = devices::available_bytes(&profile);
    let plan_settings = PlanSettings { settings: &settings, profile, page_rates, available_bytes };
    let shape = plan::training_shape(&spec, settings.method, plan_settings)?;
    let budget_bytes = devices::budget_bytes(&settings, available_bytes);
    let plan = plan::choose(&shape, Allowance::of(plan_settings, budget_bytes));
    plan::check(&plan, budget_bytes, plan_settings)?;
    let host_available_bytes = profile.is_cuda().then(devices::host_available_bytes);
    plan::check_host(&plan, host_available_bytes.unwrap_or(u64::MAX))?;
    let model = ModelFolder::open(&settings.model)?;
    // A dataset that is not there is found before a run folder is made for it.
    std::fs::File::open(&settings.data)
        .map_err(|source| DataError::Read { path: settings.data.clone(), source })?;
    Ok(Prepared { settings, model, plan, budget_bytes, available_bytes, host_available_bytes })
}

/// The precision of products that was asked for; `None`: as suits the machine.
pub fn compute(precision: ComputePrecision) -> Option<Compute> {
    match precision {
        ComputePrecision::Auto => None,
        ComputePrecision::Bf16 => Some(Compute::Bf16),
        ComputePrecision::F32 => Some(Compute::F32),
    }
}

impl Prepared {
    /// The plan as it is stored beside the run.
    pub fn report(&self) -> PlanReport {
        let Self { settings, plan, budget_bytes, available_bytes, .. } = self;
        let available_bytes = *available_bytes;
        let profile = plan.shape().profile;
        let page_rates = devices::page_rates(&profile);
        let plan_settings = PlanSettings { settings, profile, page_rates, available_bytes };
        let method = plan::planned_method(settings.method, plan, *budget_bytes, plan_settings);
        PlanReport {
            model: plan::model_summary(self.model.spec()),
            device: settings.device,
            budget_bytes: self.budget_bytes,
            available_bytes: self.available_bytes,
            device_overhead_bytes: devices::overhead_bytes(&profile),
            host_available_bytes: self.host_available_bytes,
            methods: vec![method],
        }
    }

    /// The adapter's settings, unless everything is trained.
    pub fn adapter_config(&self) -> Option<AdapterConfig> {
        let layout = self.plan.shape().adapter_layout()?;
        let lora = &self.settings.lora;
        Some(AdapterConfig {
            rank: layout.rank,
            alpha: lora.alpha,
            rslora: lora.rslora,
            dropout: lora.dropout,
            targets: layout.targets,
            base_model: self.settings.model.display().to_string(),
        })
    }

    /// The optimizer's constants.
    pub fn optimizer(&self) -> OptimizerConfig {
        let settings = &self.settings;
        OptimizerConfig {
            beta1: settings.beta1,
            beta2: settings.beta2,
            epsilon: settings.epsilon,
            weight_decay: settings.weight_decay,
            clip_norm: (settings.clip_norm > 0.0).then_some(settings.clip_norm),
        }
    }

    /// Whether every weight is trained.
    pub fn is_full(&self) -> bool {
        self.settings.method == Method::Full
    }
}

/// The columns that the settings name.
pub fn column_mapping(settings: &RunSettings) -> ColumnMapping {
    let columns = settings.columns.clone();
    ColumnMapping {
        text: columns.text,
        prompt: columns.prompt,
        completion: columns.completion,
        messages: columns.messages,
    }
}

/// How the settings want examples tokenized.
pub fn tokenize_options(settings: &RunSettings) -> TokenizeOptions {
    TokenizeOptions {
        max_tokens: settings.sequence,
        train_on: match settings.train_on {
            nibble_run::TrainOn::Completions => TrainOn::Completions,
            nibble_run::TrainOn::Everything => TrainOn::Everything,
        },
    }
}
