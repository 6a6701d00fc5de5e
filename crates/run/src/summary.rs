//! A run in one line, and the list of them.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

use crate::{Event, Method, Progress, RunError, RunFolder, RunState, read_metrics};

/// Losses of a sparkline.
const SPARKLINE: usize = 60;

/// A run in one line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
pub struct RunSummary {
    /// Its folder.
    pub path: PathBuf,
    /// The folder's name.
    pub name: String,
    /// The name of the model's folder.
    pub model_name: String,
    /// The name of the dataset, without its ending.
    pub data_name: String,
    /// What is trained.
    pub method: Method,
    /// What it is doing, or how it ended.
    pub state: RunState,
    /// When it was made, in milliseconds since 1970; `None` where the system does not tell.
    pub started_ms: Option<u64>,
    /// Steps done.
    pub steps: u64,
    /// Steps of the whole run, as far as is known.
    pub n_steps: u64,
    /// The last step's loss.
    pub final_loss: Option<f64>,
    /// The most memory that the process held.
    pub peak_bytes: Option<u64>,
    /// The peak that was planned.
    pub planned_bytes: Option<u64>,
    /// The course of the loss in at most 60 numbers, each the mean of as many steps.
    pub sparkline: Vec<f64>,
    /// Steps of the whole checkpoints, the earliest first.
    pub checkpoints: Vec<u64>,
}

/// Summaries that are read again only when the run has changed.
#[derive(Debug, Default)]
pub struct RunList {
    known: HashMap<PathBuf, (Stamp, Course)>,
}

/// What changes whenever the events do.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Stamp {
    n_bytes: u64,
    modified: Option<SystemTime>,
}

/// What the events say.
#[derive(Clone, Debug, Default)]
struct Course {
    progress: Progress,
    sparkline: Vec<f64>,
}

impl Course {
    fn read(metrics: &Path) -> Result<Self, RunError> {
        let mut progress = Progress::default();
        let mut losses = Vec::new();
        for event in read_metrics(metrics)? {
            progress.add(&event);
            if let Event::Step { loss, .. } = event {
                losses.push(loss);
            }
        }
        Ok(Self { progress, sparkline: sparkline(&losses) })
    }
}

/// The means of at most [`SPARKLINE`] stretches of equal length.
fn sparkline(losses: &[f64]) -> Vec<f64> {
    let n = losses.len().min(SPARKLINE);
    (0..n)
        .map(|i| {
            let stretch = &losses[i * losses.len() / n..(i + 1) * losses.len() / n];
            stretch.iter().sum::<f64>() / stretch.len() as f64
        })
        .collect()
}

impl RunList {
    /// Every run directly below `folder`, and those at `others`, the latest first. Folders that
    /// are no runs, or of a newer Nibble, are left out; so are runs that are gone.
    ///
    /// # Errors
    /// When `folder` is there and cannot be listed.
    pub fn list(&mut self, folder: &Path, others: &[PathBuf]) -> Result<Vec<RunSummary>, RunError> {
        let mut paths: Vec<PathBuf> = match fs::read_dir(folder) {
            Ok(entries) => entries.filter_map(|entry| Some(entry.ok()?.path())).collect(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(source) => return Err(RunError::Read { path: folder.to_owned(), source }),
        };
        paths.extend_from_slice(others);
        paths.sort();
        paths.dedup();
        let mut runs: Vec<_> = paths.iter().filter_map(|path| self.summary(path).ok()).collect();
        runs.sort_by(|a, b| b.started_ms.cmp(&a.started_ms).then_with(|| b.name.cmp(&a.name)));
        Ok(runs)
    }

    /// The run at `path` in one line.
    ///
    /// # Errors
    /// When it is none, or damaged.
    pub fn summary(&mut self, path: &Path) -> Result<RunSummary, RunError> {
        let folder = RunFolder::open(path)?;
        let settings = folder.settings()?;
        let is_active = folder.is_active();
        let course = self.course(&folder)?;
        let progress = &course.progress;
        let steps = progress.step;
        Ok(RunSummary {
            name: name(path),
            model_name: name(&settings.model),
            data_name: name(&settings.data.with_extension("")),
            method: settings.method,
            state: progress.state(is_active),
            started_ms: created_ms(&folder),
            steps,
            n_steps: progress.n_steps.or(settings.steps).unwrap_or(steps),
            final_loss: progress.loss,
            peak_bytes: progress.peak_bytes,
            planned_bytes: folder
                .plan()
                .ok()
                .and_then(|plan| Some(plan.methods.first()?.peak_bytes)),
            sparkline: course.sparkline.clone(),
            checkpoints: folder.checkpoints()?.iter().map(|checkpoint| checkpoint.step).collect(),
            path: path.to_owned(),
        })
    }

    fn course(&mut self, folder: &RunFolder) -> Result<&Course, RunError> {
        let metrics = folder.metrics();
        let metadata = fs::metadata(&metrics).ok();
        let stamp = Stamp {
            n_bytes: metadata.as_ref().map_or(0, fs::Metadata::len),
            modified: metadata.and_then(|metadata| metadata.modified().ok()),
        };
        let path = folder.path();
        if self.known.get(path).is_none_or(|(known, _)| *known != stamp) {
            let course = Course::read(&metrics)?;
            self.known.insert(path.to_owned(), (stamp, course));
        }
        let known = self.known.entry(path.to_owned());
        Ok(&known.or_insert_with(|| (stamp, Course::default())).1)
    }
}

/// The last part of a path, as it is shown.
fn name(path: &Path) -> String {
    let last = path.file_name().unwrap_or(path.as_os_str());
    last.to_string_lossy().into_owned()
}

/// When the settings were written, which happens once.
fn created_ms(folder: &RunFolder) -> Option<u64> {
    let modified = fs::metadata(folder.settings_file()).ok()?.modified().ok()?;
    modified.duration_since(UNIX_EPOCH).ok()?.as_millis().try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{append, checkpoint, done, ready, run, step};

    #[test]
    fn a_summary_says_what_the_folder_says() {
        let place = tempfile::tempdir().unwrap();
        let folder = run(&place.path().join("first"));
        append(&folder, &[ready(4), step(1), step(2)]);
        fs::create_dir(folder.checkpoint(2)).unwrap();
        let mut list = RunList::default();
        let summary = list.summary(folder.path()).unwrap();
        assert_eq!(summary.name, "first");
        assert_eq!((summary.model_name.as_str(), summary.data_name.as_str()), ("tiny", "sums"));
        assert_eq!((summary.steps, summary.n_steps), (2, 4));
        assert_eq!(summary.sparkline, [0.1, 0.2]);
        assert_eq!(summary.final_loss, Some(0.2));
        assert_eq!(summary.checkpoints, [2]);
        assert_eq!(summary.state, RunState::Interrupted);
        assert_eq!(summary.planned_bytes, None);
        assert!(summary.started_ms.is_some());
        append(&folder, &[step(3), step(4), checkpoint(4), done(4)]);
        let summary = list.summary(folder.path()).unwrap();
        assert_eq!((summary.state, summary.steps), (RunState::Finished, 4));
        assert_eq!(summary.peak_bytes, Some(1 << 21));
    }

    #[test]
    fn lists_hold_runs_alone() {
        let place = tempfile::tempdir().unwrap();
        for name in ["a", "b"] {
            run(&place.path().join("runs").join(name));
        }
        fs::create_dir(place.path().join("runs").join("holidays")).unwrap();
        fs::write(place.path().join("runs").join("notes.txt"), "").unwrap();
        let newer = place.path().join("runs").join("newer");
        fs::create_dir(&newer).unwrap();
        fs::write(newer.join("run.toml"), "format = 99").unwrap();
        let elsewhere = run(&place.path().join("elsewhere"));
        let mut list = RunList::default();
        let runs = place.path().join("runs");
        let others = [elsewhere.path().to_owned(), place.path().join("gone"), runs.join("a")];
        let mut names: Vec<_> =
            list.list(&runs, &others).unwrap().into_iter().map(|run| run.name).collect();
        names.sort();
        assert_eq!(names, ["a", "b", "elsewhere"]);
        assert_eq!(list.list(&place.path().join("none yet"), &[]).unwrap(), []);
    }

    #[test]
    fn a_sparkline_is_short_and_misses_no_step() {
        for n in [0, 1, 59, 60, 61, 100_000] {
            let losses: Vec<f64> = (0..n).map(f64::from).collect();
            let line = sparkline(&losses);
            assert_eq!(line.len(), losses.len().min(SPARKLINE));
            assert!(line.is_sorted());
        }
        // Stretches of equal length weigh the same, so that the mean stays.
        let line = sparkline(&(0..600).map(f64::from).collect::<Vec<_>>());
        assert_eq!(line.iter().sum::<f64>() / 60.0, 299.5);
    }
}
