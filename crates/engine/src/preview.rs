//! What a person sees before there is a run: models to choose, what a run would cost in memory,
//! and how a dataset would be read. The window and the command line ask the same functions.

use std::{
    fs,
    path::{Path, PathBuf},
};

use nibble_data::{ChatTemplate, Encoder, Inspection, OnProgress, Tokenizer};
use nibble_run::{ModelSummary, PlanReport, RunSettings};
use serde::Serialize;

use crate::{
    catalog::{self, CatalogEntry},
    devices::{self, OpenDeviceError},
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
    /// Where it is published on the Hugging Face hub, of a model of the catalog.
    pub repository: Option<String>,
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
        Ok(Self::at(path, model.spec()))
    }

    fn at(path: &Path, spec: &ModelSpec) -> Self {
        let name = path.file_name().unwrap_or(path.as_os_str());
        Self {
            id: path.display().to_string(),
            name: name.to_string_lossy().into_owned(),
            path: Some(path.to_owned()),
            repository: None,
            summary: plan::model_summary(spec),
        }
    }

    /// The models in `folder`, each in a folder of its own, directly below or below a folder of its
    /// publisher's name; in the order of their names. Only configurations are read, so that a
    /// list takes no time: whether a model is whole is found when it is opened. Folders that
    /// hold no model of a known family are left out, and so is a `folder` that is not there.
    pub fn in_folder(folder: &Path) -> Vec<Self> {
        let folders = |folder: &Path| {
            let entries = fs::read_dir(folder).into_iter().flatten();
            entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| path.is_dir())
        };
        let mut models = Vec::new();
        for path in folders(folder) {
            match Self::listed(&path) {
                Some(model) => models.push(model),
                None => models.extend(folders(&path).filter_map(|path| Self::listed(&path))),
            }
        }
        models.sort_by(|a, b| a.name.cmp(&b.name).then_with(|| a.path.cmp(&b.path)));
        models
    }

    /// The model at `path`, if there seems to be one.
    fn listed(path: &Path) -> Option<Self> {
        if !path.join("tokenizer.json").is_file() {
            return None;
        }
        let spec = ModelSpec::from_config_file(&path.join("config.json")).ok()?;
        Some(Self::at(path, &spec))
    }

    /// Every model of the catalog.
    ///
    /// # Errors
    /// None for this build's own catalog.
    pub fn catalog() -> Result<Vec<Self>, ModelError> {
        let choice = |entry: &CatalogEntry| {
            let summary = plan::model_summary(&entry.spec()?);
            Ok(Self {
                id: entry.id.clone(),
                name: entry.name.clone(),
                path: None,
                repository: Some(entry.repository.clone()),
                summary,
            })
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

/// The plans of full fine-tuning, LoRA and QLoRA side by side, held against the memory that `another` machine
/// has free, or against what a run with these settings would have on this one (on a card that is not
/// there: nothing). Takes less than a frame of a window.
///
/// # Errors
/// When the model is unknown or a setting impossible; when neither another machine is meant nor the card there.
pub fn plan_report(
    model: &str,
    settings: &RunSettings,
    another: Option<u64>,
) -> Result<PlanReport, TrainError> {
    let spec = model_spec(model)?;
    settings.check()?;
    let profile =
        devices::profile(settings.device, settings.threads, train::compute(settings.compute));
    if profile.is_cuda() && another.is_none() {
        devices::card().map_err(OpenDeviceError::from)?;
    }
    let available_bytes = devices::available_bytes(&profile);
    let budget_bytes = another.unwrap_or_else(|| devices::budget_bytes(settings, available_bytes));
    let page_rates = devices::page_rates(&profile);
    let plan_settings = PlanSettings {
        settings,
        profile,
        page_rates,
        // Another machine's budget is all that it has.
        available_bytes: another.unwrap_or(available_bytes),
    };
    Ok(PlanReport {
        model: plan::model_summary(&spec),
        device: settings.device,
        budget_bytes,
        available_bytes,
        device_overhead_bytes: devices::overhead_bytes(&profile),
        host_available_bytes: profile.is_cuda().then(devices::host_available_bytes),
        methods: compare_methods(&spec, plan_settings, budget_bytes)?,
    })
}

/// The dataset of `settings` as the model in the folder `model` would be trained on it, with the
/// first `n_samples` examples. `on_progress` is told how many bytes of the dataset are read, and may
/// break it off.
///
/// # Errors
/// When a file is missing or cannot be read, nothing would be trained on, or it was broken off.
pub fn inspect(
    model: &Path,
    settings: &RunSettings,
    n_samples: usize,
    on_progress: OnProgress<'_>,
) -> Result<Inspection, TrainError> {
    let tokenizer = Tokenizer::open(model)?;
    let template = ChatTemplate::open(model, &tokenizer)?;
    let options = train::tokenize_options(settings);
    let n_threads = devices::cpu_profile(settings.threads, None).n_threads();
    let encoder = Encoder { tokenizer: &tokenizer, template: &template, options, n_threads };
    let columns = train::column_mapping(settings);
    Ok(nibble_data::inspect(&settings.data, &columns, encoder, n_samples, on_progress)?)
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

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
    fn a_folder_of_models_is_listed() {
        let place = tempfile::tempdir().unwrap();
        assert_eq!(ModelChoice::in_folder(&place.path().join("nowhere")), []);
        for model in ["b", "publisher/a"] {
            let folder = place.path().join(model);
            fs::create_dir_all(&folder).unwrap();
            for file in ["config.json", "tokenizer.json"] {
                fs::copy(assets("starter").join(file), folder.join(file)).unwrap();
            }
        }
        fs::create_dir(place.path().join("holidays")).unwrap();
        fs::write(place.path().join("notes.txt"), "").unwrap();
        let models = ModelChoice::in_folder(place.path());
        let names: Vec<&str> = models.iter().map(|model| model.name.as_str()).collect();
        assert_eq!(names, ["a", "b"]);
        assert_eq!(models[1].path.as_deref(), Some(place.path().join("b").as_path()));
        assert_eq!(models[0].summary.layers, 6);
    }

    #[test]
    fn a_dataset_is_read_as_it_would_be_trained_on() {
        let data = assets("datasets").join("pirate.jsonl");
        let settings = RunSettings { data, ..RunSettings::default() };
        let to_the_end = &mut |_| ControlFlow::Continue(());
        let inspection = inspect(&assets("starter"), &settings, 2, to_the_end).unwrap();
        assert_eq!((inspection.examples, inspection.samples.len()), (300, 2));
        assert!(inspection.trained_tokens < inspection.tokens);
    }
}
