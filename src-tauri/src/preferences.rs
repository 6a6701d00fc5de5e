//! What the app remembers: one small file, written whole or not at all.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use ts_rs::TS;

use crate::error::CommandError;

/// Light or dark.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, TS)]
#[serde(rename_all = "lowercase")]
pub enum Theme {
    /// As the system is.
    #[default]
    System,
    /// Dark on light.
    Light,
    /// Light on dark.
    Dark,
}

/// What the person set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, TS)]
pub struct Preferences {
    /// Light or dark.
    pub theme: Theme,
    /// Where runs are made.
    pub runs_folder: PathBuf,
    /// Where models are looked for.
    pub models_folder: PathBuf,
    /// What computes, by its name in the list of devices. A name, so that a file of a Nibble that
    /// knows more devices is still read; one that is not there is as good as none.
    #[serde(default)]
    pub device: String,
}

/// Everything that is remembered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// What the person set.
    pub preferences: Preferences,
    /// Runs outside of the runs' folder that were opened.
    #[serde(default)]
    pub opened_runs: Vec<PathBuf>,
}

/// The file, and what is in it.
#[derive(Debug)]
pub struct MemoryFile {
    path: PathBuf,
    memory: Memory,
}

impl MemoryFile {
    /// Reads the file at `path`; where there is none, or it cannot be read, `defaults` hold.
    pub fn open(path: PathBuf, defaults: Preferences) -> Self {
        let read = fs::read(&path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let fresh = || Memory { preferences: defaults, opened_runs: Vec::new() };
        Self { path, memory: read.unwrap_or_else(fresh) }
    }

    /// What is remembered.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Changes what is remembered; when it cannot be written, nothing changes.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn change(&mut self, change: impl FnOnce(&mut Memory)) -> Result<(), CommandError> {
        let mut memory = self.memory.clone();
        change(&mut memory);
        write(&self.path, &memory).map_err(|error| {
            let message = format!("Could not write {}: {error}.", self.path.display());
            let hint = "Check the free space and the folder's permissions.";
            CommandError::new("preferences_unwritable", message, hint)
        })?;
        self.memory = memory;
        Ok(())
    }
}

fn write(path: &Path, memory: &Memory) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let unfinished = path.with_extension("json.tmp");
    let mut file = File::create(&unfinished)?;
    file.write_all(&serde_json::to_vec_pretty(memory)?)?;
    file.sync_all()?;
    fs::rename(unfinished, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn defaults() -> Preferences {
        Preferences {
            theme: Theme::System,
            runs_folder: "runs".into(),
            models_folder: "models".into(),
            device: "cpu".into(),
        }
    }

    #[test]
    fn preferences_survive_the_app() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("app").join("preferences.json");
        let mut file = MemoryFile::open(path.clone(), defaults());
        assert_eq!(file.memory().preferences, defaults());
        file.change(|memory| memory.preferences.theme = Theme::Dark).unwrap();
        let again = MemoryFile::open(path.clone(), defaults());
        assert_eq!(again.memory().preferences.theme, Theme::Dark);
        // What an older Nibble has written has no device.
        let text = fs::read_to_string(&path).unwrap();
        let mut older: serde_json::Value = serde_json::from_str(&text).unwrap();
        older["preferences"].as_object_mut().unwrap().remove("device");
        fs::write(&path, older.to_string()).unwrap();
        let again = MemoryFile::open(path.clone(), defaults());
        assert_eq!(again.memory().preferences.theme, Theme::Dark);
        fs::write(&path, "{ damaged").unwrap();
        assert_eq!(MemoryFile::open(path, defaults()).memory().preferences, defaults());
    }

    #[test]
    fn what_cannot_be_written_does_not_change() {
        let place = tempfile::tempdir().unwrap();
        fs::write(place.path().join("file"), "").unwrap();
        let path = place.path().join("file").join("preferences.json");
        let mut file = MemoryFile::open(path, defaults());
        let error = file.change(|memory| memory.preferences.theme = Theme::Dark).unwrap_err();
        assert_eq!(error.code, "preferences_unwritable");
        assert_eq!(file.memory().preferences.theme, Theme::System);
    }
}
