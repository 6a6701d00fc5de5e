//! What a person sees before there is a run: models to choose, what a run would cost in memory,
//! and how a dataset would be read. The window and the command line ask the same functions.

use std::path::{Path, PathBuf};

use nibble_data::{ChatTemplate, Encoder, Inspection, Tokenizer};
use nibble_run::{ModelSummary, PlanReport, RunSettings};
use serde::Serialize;

use crate::{
    catalog::{self, CatalogEntry},
    devices,
    model::{ModelError, ModelSpec},
    plan::{self, PlanSettings, compare_methods},
    train::{self, TrainError},
    weights::ModelFolder,
};

/// A model that can be planned for, and trained when it has a folder.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
pub struct ModelChoice {
    /// What plans and runs call it: its folder, or its id in the catalog.
    pub id: String,
    /// What it is called in a window.
    pub name: String,
    /// Its folder; `None` when it is not on this machine.
    pub path: Option<PathBuf>,
    /// Its shape in numbers people know.
    pub summary: ModelSummary,
}

impl ModelChoice {
    /// The model in a folder, whose files are all there.
    ///
    /// # Errors
    /// When the folder holds no model that can be trained.
    pub fn open(path: &Path) -> Result<Self, TrainError> {
        let model = ModelFolder::open(path)?;
        Tokenizer::open(path)?;
        let name = path.file_name().unwrap_or(path.as_os_str());
        Ok(Self {
            id: path.display().to_string(),
            name: name.to_string_lossy().into_owned(),
            path: Some(path.to_owned()),
            summary: plan::model_summary(model.spec()),
        })
    }

    /// Every model of the catalog.
    ///
    /// # Errors
    /// None for this build's own catalog.
    pub fn catalog() -> Result<Vec<Self>, ModelError> {
        let choice = |entry: &CatalogEntry| {
            let summary = plan::model_summary(&entry.spec()?);
            Ok(Self { id: entry.id.clone(), name: entry.name.clone(), path: None, summary })
        };
        catalog::all().iter().map(choice).collect()
    }
}

/// The shape of a folder's model, or of the catalog's.
///
/// # Errors
/// When there is neither.
pub fn model_spec(model: &str) -> Result<ModelSpec, ModelError> {
    let folder = Path::new(model);
    // An id of the catalog is one word.
    if folder.is_dir() || folder.components().count() > 1 {
        ModelSpec::from_config_file(&folder.join("config.json"))
    } else {
        catalog::find(model)?.spec()
    }
}

/// The plans of full fine-tuning, LoRA and QLoRA side by side, held against `budget_bytes`, or
/// against what other programs leave. Takes less than a frame of a window.
///
/// # Errors
/// When the model is unknown or a setting impossible.
pub fn plan_report(
    model: &str,
    settings: &RunSettings,
    budget_bytes: Option<u64>,
) -> Result<PlanReport, TrainError> {
    let spec = model_spec(model)?;
    settings.check()?;
    let profile = devices::cpu_profile(settings.threads, train::compute(settings.compute));
    let budget_bytes = budget_bytes.or(settings.budget_bytes);
    let budget_bytes = budget_bytes.unwrap_or_else(devices::available_bytes);
    let plan_settings = PlanSettings { settings, profile, page_rates: devices::page_rates() };
    Ok(compare_methods(&spec, plan_settings, budget_bytes)?)
}

/// The dataset of `settings` as the model in the folder `model` would be trained on it, with the
/// first `n_samples` examples.
///
/// # Errors
/// When a file is missing or cannot be read, or nothing would be trained on.
pub fn inspect(
    model: &Path,
    settings: &RunSettings,
    n_samples: usize,
) -> Result<Inspection, TrainError> {
    let tokenizer = Tokenizer::open(model)?;
    let template = ChatTemplate::open(model, &tokenizer)?;
    let options = train::tokenize_options(settings);
    let encoder = Encoder { tokenizer: &tokenizer, template: &template, options };
    let columns = train::column_mapping(settings);
    Ok(nibble_data::inspect(&settings.data, &columns, encoder, n_samples)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assets(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets").join(name)
    }

    #[test]
    fn folders_and_ids_are_planned_for() {
        let settings = RunSettings { sequence: 256, ..RunSettings::default() };
        let starter = assets("starter").display().to_string();
        for model in [starter.as_str(), "llama-2-13b"] {
            let report = plan_report(model, &settings, Some(24 << 30)).unwrap();
            assert_eq!(report.budget_bytes, 24 << 30);
            assert_eq!(report.methods.len(), 3);
        }
        for (model, expected) in [("llama-9", "llama"), ("./nowhere", "config.json")] {
            let error = plan_report(model, &settings, None).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        assert_eq!(ModelChoice::catalog().unwrap().len(), catalog::all().len());
    }

    #[test]
    fn a_choice_is_a_whole_model() {
        let choice = ModelChoice::open(&assets("starter")).unwrap();
        assert_eq!((choice.name.as_str(), choice.summary.layers), ("starter", 6));
        assert!(ModelChoice::open(&assets("datasets")).is_err());
    }

    #[test]
    fn a_dataset_is_read_as_it_would_be_trained_on() {
        let data = assets("datasets").join("pirate.jsonl");
        let settings = RunSettings { data, ..RunSettings::default() };
        let inspection = inspect(&assets("starter"), &settings, 2).unwrap();
        assert_eq!((inspection.examples, inspection.samples.len()), (300, 2));
        assert!(inspection.trained_tokens < inspection.tokens);
    }
}
