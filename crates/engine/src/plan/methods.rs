//! From a person's settings to plans: full, LoRA and QLoRA side by side, and whether they fit.

use nibble_kernels::{Compute, DeviceProfile, FloatFormat, paging::Transferred};
use nibble_run::{
    Method, MethodPlan, ModelSummary, Optimizer, Paging, PagingPlan, RunSettings, size,
};

use super::{
    Allowance, MemoryPlan, Outside, Residency, Trainable, TrainingShape, choose,
    residency::least_kept, smallest_bytes, suggestions,
};
use crate::{
    adapter::Targets,
    model::{ModelSpec, Projection},
    optimizer::StateFormat,
    weights::{EmbeddingFormat, WeightFormat},
};

/// Why there is no plan to run.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// A name that is no linear layer.
    #[error(
        "`{name}` is no linear layer of the model; choose among {}, or `all-linear`",
        projection_names()
    )]
    UnknownTarget {
        /// The name.
        name: String,
    },
    /// The sequence is longer than the model reads.
    #[error(
        "sequence length {sequence} is beyond the model's context of {context} tokens; choose {context} or less"
    )]
    SequenceTooLong {
        /// As asked.
        sequence: usize,
        /// The model's limit.
        context: usize,
    },
    /// What leaves a card does not fit beside it.
    #[error(
        "the run keeps {} in the computer's own memory, for what does not fit on the graphics card, and {} is available there, {} too little; close other programs, or page less (a larger --budget, a shorter sequence, a smaller model)",
        size(*host_bytes), size(*available_bytes), size(host_bytes.saturating_sub(*available_bytes))
    )]
    HostTooSmall {
        /// What the plan keeps there.
        host_bytes: u64,
        /// What there is.
        available_bytes: u64,
    },
    /// The plan is larger than the memory.
    #[error(
        "the run needs {} and {} is available{}{}",
        size(*peak_bytes), size(*budget_bytes), least(*peak_bytes, *smallest_bytes),
        changes(suggestions)
    )]
    DoesNotFit {
        /// The plan's peak.
        peak_bytes: u64,
        /// The smallest budget that a run with these settings fits.
        smallest_bytes: u64,
        /// What there is, or the budget that was set.
        budget_bytes: u64,
        /// Changes that would make it fit.
        suggestions: Vec<nibble_run::Suggestion>,
    },
}

fn projection_names() -> String {
    Projection::ALL.map(Projection::name).join(", ")
}

/// What a budget must be at least, unless it has just been said.
fn least(peak_bytes: u64, smallest_bytes: u64) -> String {
    if smallest_bytes == peak_bytes {
        "; no smaller budget would do".into()
    } else {
        format!("; with everything paged that can be, {} would do", size(smallest_bytes))
    }
}

fn changes(suggestions: &[nibble_run::Suggestion]) -> String {
    if suggestions.is_empty() {
        return "; no shorter sequence, smaller batch or other method makes it fit: \
                choose a smaller model"
            .into();
    }
    let each = suggestions.iter().map(|s| format!("{} ({})", s.change, size(s.peak_bytes)));
    format!("; it fits with {}", each.collect::<Vec<_>>().join(", or with "))
}

/// What a plan depends on beside the model: the settings and the device.
#[derive(Clone, Copy, Debug)]
pub struct PlanSettings<'a> {
    /// The person's settings.
    pub settings: &'a RunSettings,
    /// The device, with the precision of its products already chosen.
    pub profile: DeviceProfile,
    /// How fast pages move, as far as it was measured.
    pub page_rates: PageRates,
    /// What other programs leave of the device's memory; a budget may be less.
    pub available_bytes: u64,
}

/// How fast pages move between the device and what lies outside, in bytes a second; `None`: not
/// measured.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PageRates {
    /// To and from a file.
    pub disk: Option<f64>,
    /// To a card from the host's memory, and back; what moves in one phase of a step does both at the same time.
    pub host: Option<[f64; 2]>,
}

/// What a run of `method` with these settings asks of memory.
///
/// # Errors
/// When a target is unknown or the sequence is beyond the model's context.
pub fn training_shape(
    spec: &ModelSpec,
    method: Method,
    plan: PlanSettings<'_>,
) -> Result<TrainingShape, PlanError> {
    let PlanSettings { settings, profile, .. } = plan;
    let sequence = settings.sequence;
    if sequence > spec.max_context {
        return Err(PlanError::SequenceTooLong { sequence, context: spec.max_context });
    }
    let plain = match settings.weights {
        nibble_run::WeightPrecision::F32 => WeightFormat::F32,
        nibble_run::WeightPrecision::Bf16 => WeightFormat::Bf16,
        // Trained weights keep every bit of an update; frozen ones are as precise as the products.
        nibble_run::WeightPrecision::Auto => match (method, profile.compute) {
            (Method::Full, _) | (_, Compute::F32) => WeightFormat::F32,
            (_, Compute::Bf16) => WeightFormat::Bf16,
        },
    };
    let trainable = match method {
        Method::Full => Trainable::Everything,
        Method::Lora | Method::Qlora => Trainable::Adapter {
            targets: targets(&settings.lora.targets)?,
            rank: settings.lora.rank,
            dropout: settings.lora.dropout > 0.0,
        },
    };
    Ok(TrainingShape {
        spec: spec.clone(),
        weight_format: if method == Method::Qlora { WeightFormat::Nf4 } else { plain },
        embedding_format: EmbeddingFormat::beside(plain),
        trainable,
        sequence,
        batch: settings.batch,
        kept_layers: least_kept(spec.n_layers, settings.recompute),
        sample_tokens: if settings.samples.prompts.is_empty() {
            0
        } else {
            // The prompt gets as many tokens again as its answer may have.
            settings.samples.max_tokens.saturating_mul(2).min(spec.max_context)
        },
        // Sums over micro-batches would lose in every addition what is below bf16's rounding.
        gradients: match (method, plain, settings.gradient_accumulation) {
            (Method::Full, WeightFormat::Bf16, 1) => FloatFormat::Bf16,
            _ => FloatFormat::F32,
        },
        states: match settings.optimizer {
            Optimizer::AdamW => StateFormat::F32,
            Optimizer::AdamW8bit => StateFormat::Blockwise8,
        },
        residency: Residency { outside: Outside::of(&profile), ..Residency::default() },
        profile,
    })
}

/// The linear layers that `names` stand for.
///
/// # Errors
/// When a name is unknown.
pub fn targets(names: &[String]) -> Result<Targets, PlanError> {
    let is_all = |name: &&String| *name == "all-linear";
    let named = names.iter().filter(|name| !is_all(name)).map(|name| {
        Projection::from_name(name).ok_or_else(|| PlanError::UnknownTarget { name: name.clone() })
    });
    let named: Targets = named.collect::<Result<_, _>>()?;
    Ok(if names.iter().any(|name| is_all(&name)) { Targets::all_linear() } else { named })
}

/// The plan of one method, held against `budget_bytes`.
///
/// # Errors
/// As [`training_shape`].
pub fn method_plan(
    spec: &ModelSpec,
    method: Method,
    settings: PlanSettings<'_>,
    budget_bytes: u64,
) -> Result<MethodPlan, PlanError> {
    let shape = training_shape(spec, method, settings)?;
    let plan = choose(&shape, Allowance::of(settings, budget_bytes));
    Ok(planned_method(method, &plan, budget_bytes, settings))
}

/// A plan as it is shown and stored, held against `budget_bytes`.
pub fn planned_method(
    method: Method,
    plan: &MemoryPlan,
    budget_bytes: u64,
    plan_settings: PlanSettings<'_>,
) -> MethodPlan {
    let PlanSettings { settings, page_rates, .. } = plan_settings;
    let peak_bytes = plan.peak_bytes() as u64;
    let fits = peak_bytes <= budget_bytes;
    let residency = plan.shape().residency;
    let paging = (!residency.is_resident()).then(|| {
        let bytes = plan.paged_bytes();
        let transfers = plan.step_transfers(settings.gradient_accumulation);
        let step_seconds = match residency.outside {
            Outside::Disk => page_rates.disk.map(|rate| transfers.bytes() as f64 / rate),
            Outside::Host => page_rates.host.map(|[to, from]| {
                let slower = |phase: Transferred| {
                    (phase.to_device as f64 / to).max(phase.from_device as f64 / from)
                };
                let phases = plan.phase_transfers(settings.gradient_accumulation);
                phases.into_iter().map(slower).sum()
            }),
        };
        PagingPlan {
            resident: residency.outside.residence(),
            optimizer_bytes: bytes.optimizer,
            weights_bytes: bytes.weights,
            activations_bytes: bytes.activations,
            step_bytes: transfers.bytes(),
            step_seconds,
        }
    });
    MethodPlan {
        method,
        peak_bytes,
        host_bytes: plan.host_bytes() as u64,
        page_file_bytes: plan.page_file_bytes() as u64,
        paging,
        recomputed_layers: Some(plan.shape().recomputed_layers()),
        smallest_bytes: smallest_bytes(plan, Allowance::of(plan_settings, budget_bytes)),
        categories: plan.category_bytes(),
        regions: plan.planned_regions(),
        fits,
        suggestions: if fits {
            Vec::new()
        } else {
            suggestions(plan.shape(), budget_bytes, plan_settings)
        },
    }
}

/// A model in numbers people know.
pub fn model_summary(spec: &ModelSpec) -> ModelSummary {
    ModelSummary {
        family: spec.family.name().into(),
        parameters: spec.n_parameters() as u64,
        layers: spec.n_layers,
        hidden: spec.hidden_width,
        vocabulary: spec.vocabulary,
        context: spec.max_context,
    }
}

/// The plans of full fine-tuning, LoRA and QLoRA side by side, held against `budget_bytes`.
///
/// # Errors
/// As [`training_shape`].
pub fn compare_methods(
    spec: &ModelSpec,
    settings: PlanSettings<'_>,
    budget_bytes: u64,
) -> Result<Vec<MethodPlan>, PlanError> {
    [Method::Full, Method::Lora, Method::Qlora]
        .into_iter()
        .map(|method| method_plan(spec, method, settings, budget_bytes))
        .collect()
}

/// Refuses a plan that keeps more in the host's memory than the `available_bytes` there.
///
/// # Errors
/// [`PlanError::HostTooSmall`].
pub fn check_host(plan: &MemoryPlan, available_bytes: u64) -> Result<(), PlanError> {
    let host_bytes = plan.host_bytes() as u64;
    if host_bytes <= available_bytes {
        return Ok(());
    }
    Err(PlanError::HostTooSmall { host_bytes, available_bytes })
}

/// Refuses a plan that is larger than `budget_bytes`.
///
/// # Errors
/// [`PlanError::DoesNotFit`], with the changes that would make it fit.
pub fn check(
    plan: &MemoryPlan,
    budget_bytes: u64,
    settings: PlanSettings<'_>,
) -> Result<(), PlanError> {
    let peak_bytes = plan.peak_bytes() as u64;
    if peak_bytes <= budget_bytes {
        return Ok(());
    }
    let suggestions = suggestions(plan.shape(), budget_bytes, settings);
    let paged = Allowance::of(settings, budget_bytes);
    let smallest_bytes = smallest_bytes(plan, Allowance { paging: Paging::Auto, ..paged });
    Err(PlanError::DoesNotFit { peak_bytes, smallest_bytes, budget_bytes, suggestions })
}
