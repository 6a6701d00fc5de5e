//! The files of a run folder.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufRead, BufReader, Write},
    path::{Path, PathBuf},
};

use serde::Deserialize;

use crate::{Event, PlanReport, RunError, RunLock, RunSettings, lock, settings::FORMAT};

const PLAN: &str = "plan.json";
const METRICS: &str = "metrics.jsonl";
const CHECKPOINTS: &str = "checkpoints";
const REPORT: &str = "report";
const PAGES: &str = "pages.bin";
const MODEL: &str = "model";

/// A folder that holds one run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunFolder {
    path: PathBuf,
}

/// A whole checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CheckpointFolder {
    /// Steps done when it was written.
    pub step: u64,
    /// Its folder.
    pub path: PathBuf,
}

impl RunFolder {
    /// The name of the file of settings, which makes a folder a run.
    pub const SETTINGS: &str = "run.toml";

    /// Makes a new run folder and writes its settings.
    ///
    /// # Errors
    /// When the folder has anything in it or cannot be written.
    pub fn create(path: &Path, settings: &RunSettings) -> Result<Self, RunError> {
        let failed = |source| RunError::Write { path: path.to_owned(), source };
        if fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_some()) {
            return Err(RunError::NotEmpty { path: path.to_owned() });
        }
        let folder = Self { path: path.to_owned() };
        let write = || {
            fs::create_dir_all(path.join(CHECKPOINTS)).map_err(failed)?;
            let text = toml::to_string_pretty(settings)
                .map_err(|error| failed(io::Error::other(error)))?;
            folder.replace(Self::SETTINGS, text.as_bytes())
        };
        if let Err(error) = write() {
            // The same name is free for the next try.
            folder.discard();
            return Err(error);
        }
        Ok(folder)
    }

    /// Removes what making the folder has put there, and the folder if nothing else is in it.
    pub fn discard(&self) {
        for name in [Self::SETTINGS, PLAN, METRICS, PAGES, lock::LOCK] {
            for file in [name.to_owned(), unfinished_name(name)] {
                let _ = fs::remove_file(self.path.join(file));
            }
        }
        let _ = fs::remove_dir_all(self.path.join(MODEL));
        // A folder with anything in it is not removed.
        let _ = fs::remove_dir(self.path.join(CHECKPOINTS));
        let _ = fs::remove_dir(&self.path);
    }

    /// Opens a run folder.
    ///
    /// # Errors
    /// When it is none, or comes from a newer Nibble.
    pub fn open(path: &Path) -> Result<Self, RunError> {
        if !path.join(Self::SETTINGS).is_file() {
            return Err(RunError::NoRun { path: path.to_owned() });
        }
        let folder = Self { path: path.to_owned() };
        folder.settings()?;
        Ok(folder)
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the run for this process, until the lock is dropped.
    ///
    /// # Errors
    /// When it is being trained already, or the folder cannot be written.
    pub fn lock(&self) -> Result<RunLock, RunError> {
        lock::lock(&self.path)
    }

    /// Whether some process is training the run now.
    pub fn is_active(&self) -> bool {
        lock::is_locked(&self.path)
    }

    /// Where the settings are.
    pub fn settings_file(&self) -> PathBuf {
        self.path.join(Self::SETTINGS)
    }

    /// Where the configuration and the tokenizer of the model are kept, of a run that trains all of
    /// it: every checkpoint is a model with them, whatever becomes of the folder that they came from.
    pub fn model(&self) -> PathBuf {
        self.path.join(MODEL)
    }

    /// Where charts go.
    pub fn report(&self) -> PathBuf {
        self.path.join(REPORT)
    }

    /// Where a run keeps, while it goes on, what does not stay on the device.
    pub fn page_file(&self) -> PathBuf {
        self.path.join(PAGES)
    }

    /// Where the events are.
    pub fn metrics(&self) -> PathBuf {
        self.path.join(METRICS)
    }

    /// The folder of the checkpoint after `step` steps.
    pub fn checkpoint(&self, step: u64) -> PathBuf {
        self.path.join(CHECKPOINTS).join(format!("step-{step:06}"))
    }

    /// Every setting.
    ///
    /// # Errors
    /// When the file is damaged or comes from a newer Nibble.
    pub fn settings(&self) -> Result<RunSettings, RunError> {
        read_settings(&self.path.join(Self::SETTINGS))
    }

    /// Writes the memory plan.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn write_plan(&self, plan: &PlanReport) -> Result<(), RunError> {
        let path = self.path.join(PLAN);
        let json = serde_json::to_vec(plan)
            .map_err(|error| RunError::Write { path, source: error.into() })?;
        self.replace(PLAN, &json)
    }

    /// The memory plan it ran under.
    ///
    /// # Errors
    /// When the file is missing or damaged.
    pub fn plan(&self) -> Result<PlanReport, RunError> {
        let path = self.path.join(PLAN);
        let failed = |source| RunError::Read { path: path.clone(), source };
        let bytes = fs::read(&path).map_err(failed)?;
        serde_json::from_slice(&bytes).map_err(|error| failed(error.into()))
    }

    /// Every whole checkpoint, the earliest first.
    ///
    /// # Errors
    /// When the folder cannot be listed.
    pub fn checkpoints(&self) -> Result<Vec<CheckpointFolder>, RunError> {
        let folder = self.path.join(CHECKPOINTS);
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(RunError::Read { path: folder, source }),
        };
        // A name with an ending is a checkpoint that was never finished.
        let mut checkpoints: Vec<_> = entries
            .filter_map(|entry| {
                let path = entry.ok()?.path();
                let step = path.file_name()?.to_str()?.strip_prefix("step-")?.parse().ok()?;
                path.is_dir().then_some(CheckpointFolder { step, path })
            })
            .collect();
        checkpoints.sort();
        Ok(checkpoints)
    }

    /// Deletes what runs that were killed left of checkpoints: half-written ones and half-deleted ones.
    /// For whoever holds the lock.
    pub fn remove_unfinished_checkpoints(&self) {
        let Ok(entries) = fs::read_dir(self.path.join(CHECKPOINTS)) else { return };
        for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with("step-") && name.ends_with(".tmp") {
                // One that stays only takes room.
                let _ = fs::remove_dir_all(&path);
            }
        }
    }

    /// Deletes all but the last `keep` checkpoints; 0 keeps all.
    ///
    /// # Errors
    /// When one cannot be deleted.
    pub fn prune_checkpoints(&self, keep: usize) -> Result<(), RunError> {
        let checkpoints = self.checkpoints()?;
        if keep == 0 || checkpoints.len() <= keep {
            return Ok(());
        }
        for old in &checkpoints[..checkpoints.len() - keep] {
            // Renamed first: a deletion that is interrupted must not look like a whole checkpoint.
            let doomed = old.path.with_extension("tmp");
            fs::rename(&old.path, &doomed)
                .and_then(|()| fs::remove_dir_all(&doomed))
                .map_err(|source| RunError::Write { path: old.path.clone(), source })?;
        }
        Ok(())
    }

    /// Writes `name` whole or not at all.
    fn replace(&self, name: &str, bytes: &[u8]) -> Result<(), RunError> {
        let path = self.path.join(name);
        let unfinished = self.path.join(unfinished_name(name));
        let write = || {
            let mut file = File::create(&unfinished)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&unfinished, &path)
        };
        write().map_err(|source| RunError::Write { path: path.clone(), source })
    }
}

/// What a file is called until it is whole.
fn unfinished_name(name: &str) -> String {
    format!("{name}.tmp")
}

/// Reads settings from any TOML file.
///
/// # Errors
/// When it is missing, damaged, impossible, or of a newer Nibble.
pub fn read_settings(path: &Path) -> Result<RunSettings, RunError> {
    /// The one field that every format has.
    #[derive(Deserialize)]
    struct Version {
        #[serde(default)]
        format: u32,
    }
    let text = fs::read_to_string(path)
        .map_err(|source| RunError::Read { path: path.to_owned(), source })?;
    let invalid = |error: toml::de::Error| RunError::Settings {
        path: path.to_owned(),
        reason: error.to_string().trim_end().replace('\n', " "),
    };
    let version: Version = toml::from_str(&text).map_err(invalid)?;
    if version.format > FORMAT {
        let (found, known) = (version.format, FORMAT);
        return Err(RunError::Newer { path: path.to_owned(), found, known });
    }
    let settings: RunSettings = toml::from_str(&text).map_err(invalid)?;
    settings.check()?;
    Ok(settings)
}

/// Appends events to `metrics.jsonl`, each line whole.
#[derive(Debug)]
pub struct MetricsWriter {
    path: PathBuf,
    file: File,
    /// Kept from line to line, so that a step allocates nothing.
    line: Vec<u8>,
}

impl MetricsWriter {
    /// Opens the events of `folder` after `step` steps: what a run wrote after the checkpoint that
    /// it is resumed from is forgotten, because it will happen again.
    ///
    /// # Errors
    /// When the file cannot be read or written.
    pub fn open(folder: &RunFolder, step: u64) -> Result<Self, RunError> {
        let path = folder.metrics();
        let failed = |source| RunError::Write { path: path.clone(), source };
        let mut kept = Vec::new();
        for event in read_metrics(&path)? {
            let is_kept = match event {
                Event::Step { step: of, .. }
                | Event::Eval { step: of, .. }
                | Event::Sample { step: of, .. }
                | Event::Checkpoint { step: of, .. } => of <= step && step > 0,
                Event::Ready { .. } | Event::Warning { .. } => step > 0,
                // How the last sitting began and ended says nothing of this one.
                Event::Loading { .. }
                | Event::Paused
                | Event::Profile { .. }
                | Event::Resumed
                | Event::Failed { .. }
                | Event::Done { .. } => false,
            };
            if is_kept {
                serde_json::to_writer(&mut kept, &event).map_err(|error| failed(error.into()))?;
                kept.push(b'\n');
            }
        }
        folder.replace(METRICS, &kept)?;
        let file = OpenOptions::new().append(true).open(&path).map_err(failed)?;
        Ok(Self { path, file, line: Vec::with_capacity(1024) })
    }

    /// Appends one event.
    ///
    /// # Errors
    /// When the disk is full.
    pub fn write(&mut self, event: &Event) -> Result<(), RunError> {
        let failed = |source| RunError::Write { path: self.path.clone(), source };
        self.line.clear();
        serde_json::to_writer(&mut self.line, event).map_err(|error| failed(error.into()))?;
        self.line.push(b'\n');
        self.file.write_all(&self.line).map_err(failed)
    }
}

/// The events at `path`; none when there is no file. A last line that was cut short is left out.
///
/// # Errors
/// When the file cannot be read.
pub fn read_metrics(path: &Path) -> Result<Vec<Event>, RunError> {
    let failed = |source| RunError::Read { path: path.to_owned(), source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut events = Vec::new();
    for line in BufReader::new(file).split(b'\n') {
        // Lines of a newer Nibble, and the torn last one, are no events of this one.
        if let Ok(event) = serde_json::from_slice(&line.map_err(failed)?) {
            events.push(event);
        }
    }
    Ok(events)
}
