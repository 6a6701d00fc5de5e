//! What comes with the app: the starter model and the example datasets.

use std::{
    fs,
    path::{Path, PathBuf},
};

use nibble_engine::preview::ModelChoice;
use nibble_run::{RunSettings, SampleSettings};
use serde::{Deserialize, Serialize};
use ts_rs::TS;

use crate::error::CommandError;

const STARTER: &str = "starter";
const DATASETS: &str = "datasets";

/// A dataset that comes with the app.
#[derive(Clone, Debug, PartialEq, Serialize, TS)]
pub struct DatasetChoice {
    /// What it is called.
    pub name: String,
    /// What it teaches.
    pub description: String,
    /// Its file.
    pub path: PathBuf,
    /// A prompt that shows what was learned.
    pub prompt: String,
}

/// An entry of `datasets.json`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DatasetEntry {
    file: String,
    name: String,
    description: String,
    prompt: String,
}

/// Where the built-in files are.
#[derive(Clone, Debug)]
pub struct BuiltIn {
    folder: PathBuf,
}

impl BuiltIn {
    /// Looks beside the installed app first, then in the checkout that this program was built in.
    pub fn find(resources: Option<&Path>) -> Self {
        let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join("assets");
        let has_starter = |folder: &Path| folder.join(STARTER).join("config.json").is_file();
        let folder = resources.filter(|folder| has_starter(folder)).map(Path::to_owned);
        let folder = folder.or_else(|| fs::canonicalize(checkout).ok());
        Self { folder: folder.unwrap_or_default() }
    }

    /// The starter model.
    ///
    /// # Errors
    /// When the installation is damaged.
    pub fn starter(&self) -> Result<ModelChoice, CommandError> {
        let starter = ModelChoice::open(&self.folder.join(STARTER)).map_err(|error| {
            let hint = "Install Nibble again.";
            CommandError::new("no_starter", format!("The starter model is damaged: {error}."), hint)
        })?;
        Ok(ModelChoice { name: "Nibble starter".into(), ..starter })
    }

    /// The example datasets.
    ///
    /// # Errors
    /// When the installation is damaged.
    pub fn datasets(&self) -> Result<Vec<DatasetChoice>, CommandError> {
        let folder = self.folder.join(DATASETS);
        let read = || {
            let text = fs::read_to_string(folder.join("datasets.json"))?;
            Ok::<Vec<DatasetEntry>, std::io::Error>(serde_json::from_str(&text)?)
        };
        let entries = read().map_err(|error| {
            let message = format!("The example datasets are damaged: {error}.");
            CommandError::new("no_datasets", message, "Install Nibble again.")
        })?;
        let choice = |entry: DatasetEntry| DatasetChoice {
            path: folder.join(entry.file),
            name: entry.name,
            description: entry.description,
            prompt: entry.prompt,
        };
        Ok(entries.into_iter().map(choice).collect())
    }

    /// What the first run begins with: a minute's training that shows.
    ///
    /// # Errors
    /// When the installation is damaged.
    pub fn defaults(&self) -> Result<RunSettings, CommandError> {
        let dataset = self.datasets()?.into_iter().next();
        let (data, prompts) =
            dataset.map_or_else(Default::default, |dataset| (dataset.path, vec![dataset.prompt]));
        Ok(RunSettings {
            model: self.folder.join(STARTER),
            data,
            steps: Some(80),
            sequence: 256,
            batch: 4,
            // A model this small takes, and needs, ten times the usual rate.
            learning_rate: Some(2e-3),
            warmup_steps: 5,
            eval_split: 0.1,
            eval_every: 20,
            save_every: 20,
            samples: SampleSettings { prompts, every: 20, ..SampleSettings::default() },
            ..RunSettings::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_run_has_all_it_needs() {
        let built_in = BuiltIn::find(None);
        assert_eq!(built_in.starter().unwrap().name, "Nibble starter");
        let datasets = built_in.datasets().unwrap();
        assert_eq!(datasets.len(), 3);
        assert!(datasets.iter().all(|dataset| dataset.path.is_file()));
        let defaults = built_in.defaults().unwrap();
        defaults.check().unwrap();
        assert!(defaults.model.is_absolute() && defaults.data.is_file());
    }

    #[test]
    fn resources_beside_the_app_come_first() {
        let place = tempfile::tempdir().unwrap();
        assert_ne!(BuiltIn::find(Some(place.path())).folder, place.path());
        fs::create_dir(place.path().join("starter")).unwrap();
        fs::write(place.path().join("starter").join("config.json"), "{}").unwrap();
        assert_eq!(BuiltIn::find(Some(place.path())).folder, place.path());
        assert_eq!(BuiltIn::find(Some(place.path())).starter().unwrap_err().code, "no_starter");
    }
}
