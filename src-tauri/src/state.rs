//! Everything the app holds, and what its commands do. Nothing here knows of windows, so that all
//! of it is tested without one.

use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::SystemTime,
};

use nibble_data::{DataError, Inspection};
use nibble_engine::{
    devices,
    playground::{AnswerPiece, Playground, Question},
    preview::{self, ModelChoice},
    train::{self, Command, Elsewhere, RunHandle, TrainError},
};
use nibble_run::{
    PlanReport, RunFolder, RunList, RunSettings, RunState, RunSummary, TrainingDevice, new_run_path,
};
use serde::Serialize;
use ts_rs::TS;

use crate::{
    built_in::{BuiltIn, DatasetChoice},
    error::CommandError,
    preferences::{MemoryFile, Preferences},
    training::{Ended, Trainings, lock},
    watching::Watches,
};

/// Sizes of graphics cards on the market, in GiB, to see what would fit there.
const CARD_GIB: [u64; 10] = [8, 10, 11, 12, 16, 20, 24, 32, 48, 80];

/// A size of graphics card.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, TS)]
pub struct Card {
    /// As people call it.
    pub name: String,
    /// Its memory.
    pub bytes: u64,
}

/// What the page needs before it can show anything.
#[derive(Clone, Debug, PartialEq, Serialize, TS)]
pub struct Startup {
    /// This app's version.
    pub version: String,
    /// What this machine can train on.
    pub devices: Vec<devices::Device>,
    /// Whether there is a graphics card among them, or why not.
    pub cuda: devices::CudaStatus,
    /// The built-in model.
    pub starter: ModelChoice,
    /// Well-known models.
    pub catalog: Vec<ModelChoice>,
    /// The built-in datasets.
    pub datasets: Vec<DatasetChoice>,
    /// What the person set.
    pub preferences: Preferences,
    /// What a new run begins with.
    pub defaults: RunSettings,
    /// Sizes of graphics cards.
    pub cards: Vec<Card>,
}

/// A run with all that was decided before it started.
#[derive(Clone, Debug, PartialEq, Serialize, TS)]
pub struct RunDetails {
    /// The run in one line.
    pub summary: RunSummary,
    /// Every setting.
    pub settings: RunSettings,
    /// The memory plan it runs under.
    pub plan: PlanReport,
}

/// The device of that name; the one that a person expects, where there is none.
fn chosen(devices: &[devices::Device], name: &str) -> TrainingDevice {
    let named = devices.iter().find(|device| device.id.id() == name);
    named.map_or_else(devices::preferred, |device| device.id)
}

/// Everything the app holds.
#[derive(Debug)]
pub struct Studio {
    built_in: BuiltIn,
    memory: Mutex<MemoryFile>,
    /// The runs of this process.
    pub trainings: Arc<Trainings>,
    /// The runs that are looked at.
    pub watches: Watches,
    list: Mutex<RunList>,
    playground: Mutex<Playground>,
    /// Rises when the answer of the moment is to end.
    answer_number: AtomicU64,
    /// One dataset is read at a time.
    reading: Mutex<()>,
    /// Rises when another look at a dataset is asked for.
    look_number: AtomicU64,
}

impl Studio {
    /// The app with its built-in files and what it remembers.
    pub fn new(built_in: BuiltIn, memory: MemoryFile) -> Self {
        Self {
            built_in,
            memory: Mutex::new(memory),
            trainings: Arc::default(),
            watches: Watches::default(),
            list: Mutex::default(),
            playground: Mutex::default(),
            answer_number: AtomicU64::new(0),
            reading: Mutex::default(),
            look_number: AtomicU64::new(0),
        }
    }

    /// What the page needs first.
    ///
    /// # Errors
    /// When the installation is damaged.
    pub fn startup(&self) -> Result<Startup, CommandError> {
        let mut devices = devices::devices();
        // Of several cards, runs use the first.
        devices.dedup_by_key(|device| device.id);
        let mut preferences = self.preferences();
        let device = chosen(&devices, &preferences.device);
        preferences.device = device.id().into();
        let card = |gib: u64| Card { name: format!("{gib} GB"), bytes: gib << 30 };
        Ok(Startup {
            version: env!("CARGO_PKG_VERSION").into(),
            devices,
            cuda: devices::cuda(),
            starter: self.built_in.starter()?,
            catalog: ModelChoice::catalog()?,
            datasets: self.built_in.datasets()?,
            preferences,
            defaults: RunSettings { device, ..self.built_in.defaults()? },
            cards: CARD_GIB.map(card).into(),
        })
    }

    /// What the person set.
    pub fn preferences(&self) -> Preferences {
        lock(&self.memory).memory().preferences.clone()
    }

    /// The models in the models' folder.
    pub fn models(&self) -> Vec<ModelChoice> {
        ModelChoice::in_folder(&self.preferences().models_folder)
    }

    /// Measures how fast pages move where this machine's runs would keep theirs.
    pub fn measure_page_rates(&self) {
        let Preferences { runs_folder: runs, device, .. } = self.preferences();
        // Before the first run, its folder is not there yet.
        if let Some(folder) = runs.ancestors().find(|folder| folder.is_dir()) {
            let device = chosen(&devices::devices(), &device);
            devices::measure_page_rates(&devices::profile(device, None, None), folder);
        }
    }

    /// Remembers what the person set.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn save_preferences(&self, preferences: Preferences) -> Result<(), CommandError> {
        for folder in [&preferences.runs_folder, &preferences.models_folder] {
            if !folder.is_absolute() {
                let message = format!("`{}` is no whole path.", folder.display());
                let hint = "Choose the folder, or write its path from the root of the disk.";
                return Err(CommandError::new("path_not_absolute", message, hint));
            }
        }
        // Asked only about another one, as cards take their time to answer.
        let is_known = preferences.device == self.preferences().device
            || devices::devices().iter().any(|device| device.id.id() == preferences.device);
        if !is_known {
            let message = format!("This machine has no device `{}`.", preferences.device);
            let hint = "Choose one of those that are listed.";
            return Err(CommandError::new("device_unknown", message, hint));
        }
        lock(&self.memory).change(|memory| memory.preferences = preferences)
    }

    /// Starts a run in a new folder, which is returned.
    ///
    /// # Errors
    /// Whatever is wrong with settings, model, dataset or memory.
    pub fn start_run(
        &self,
        settings: RunSettings,
        name: Option<&str>,
        on_end: impl FnOnce(Ended) + Send + 'static,
    ) -> Result<PathBuf, CommandError> {
        let folder = self.preferences().runs_folder;
        let run = new_run_path(&folder, name, &settings, SystemTime::now())?;
        self.close_playground();
        self.follow(&run, train::start(settings, &run)?, on_end);
        Ok(run)
    }

    /// Goes on with a run, on another device than before if one is named.
    ///
    /// # Errors
    /// As [`Studio::start_run`]; or when it is complete or being trained.
    pub fn resume_run(
        &self,
        run: &Path,
        device: Option<TrainingDevice>,
        on_end: impl FnOnce(Ended) + Send + 'static,
    ) -> Result<(), CommandError> {
        self.close_playground();
        let elsewhere = Elsewhere { device, ..Elsewhere::default() };
        self.follow(run, train::resume(run, elsewhere)?, on_end);
        Ok(())
    }

    fn follow(&self, run: &Path, handle: RunHandle, on_end: impl FnOnce(Ended) + Send + 'static) {
        self.trainings.add(run, handle, on_end);
    }

    /// Tells a run something.
    ///
    /// # Errors
    /// When it does not train in this process.
    pub fn control_run(&self, run: &Path, command: Command) -> Result<(), CommandError> {
        self.trainings.control(run, command)
    }

    /// Every known run, the latest first.
    ///
    /// # Errors
    /// When the runs' folder cannot be listed.
    pub fn runs(&self) -> Result<Vec<RunSummary>, CommandError> {
        let memory = lock(&self.memory).memory().clone();
        let mut runs =
            lock(&self.list).list(&memory.preferences.runs_folder, &memory.opened_runs)?;
        runs.iter_mut().for_each(|run| self.correct(run));
        Ok(runs)
    }

    /// A run in one line.
    fn summary(&self, run: &Path) -> Result<RunSummary, CommandError> {
        let mut summary = lock(&self.list).summary(run)?;
        self.correct(&mut summary);
        Ok(summary)
    }

    /// What this process knows better than the folder.
    fn correct(&self, run: &mut RunSummary) {
        if let Some(status) = self.trainings.status(&run.path) {
            // A run that has ended here may have been resumed elsewhere.
            if status.state.is_active() || !run.state.is_active() {
                run.state = status.state;
            }
        }
    }

    /// Adds a run from elsewhere to the list.
    ///
    /// # Errors
    /// When the folder is no run.
    pub fn open_run(&self, run: &Path) -> Result<RunSummary, CommandError> {
        let summary = self.summary(run)?;
        let is_listed = run.parent() == Some(&self.preferences().runs_folder);
        let mut memory = lock(&self.memory);
        if !is_listed && !memory.memory().opened_runs.iter().any(|opened| opened == run) {
            memory.change(|memory| memory.opened_runs.push(run.to_owned()))?;
        }
        Ok(summary)
    }

    /// A run with its settings and plan.
    ///
    /// # Errors
    /// When the folder is no run, or damaged.
    pub fn run_details(&self, run: &Path) -> Result<RunDetails, CommandError> {
        let folder = RunFolder::open(run)?;
        let (settings, plan) = (folder.settings()?, folder.plan()?);
        Ok(RunDetails { summary: self.summary(run)?, settings, plan })
    }

    /// The settings of a run, to begin another with.
    ///
    /// # Errors
    /// When the folder is no run.
    pub fn repeat_settings(&self, run: &Path) -> Result<RunSettings, CommandError> {
        Ok(RunFolder::open(run)?.settings()?)
    }

    /// Makes sure that `run` is a run that nobody trains, and lets go of it, so that it can be
    /// deleted.
    ///
    /// # Errors
    /// When it is none, or is being trained.
    pub fn release_run(&self, run: &Path) -> Result<(), CommandError> {
        let state = self.summary(run)?.state;
        if state.is_active() {
            let message = format!("{} is being trained.", run.display());
            return Err(CommandError::new("run_in_use", message, "Stop it first."));
        }
        self.watches.stop(run);
        self.close_playground();
        self.trainings.forget(run);
        lock(&self.memory).change(|memory| memory.opened_runs.retain(|opened| opened != run))
    }

    /// Answers a question, piece by piece, until it is told to stop or asked another.
    ///
    /// # Errors
    /// When there is no such checkpoint, a file is damaged or the memory does not suffice.
    pub fn answer(
        &self,
        question: &Question,
        send: impl Fn(AnswerPiece) -> bool,
    ) -> Result<(), CommandError> {
        let number = self.answer_number.fetch_add(1, Ordering::Relaxed) + 1;
        let goes_on = || self.answer_number.load(Ordering::Relaxed) == number;
        // The answer before has noticed, and lets go.
        let mut playground = lock(&self.playground);
        if !goes_on() {
            return Ok(());
        }
        Ok(playground.answer(question, |piece| goes_on() && send(piece) && goes_on())?)
    }

    /// The dataset of `settings` as the model in the folder `model` would be trained on it, with its
    /// first `limit` examples. `tell` hears the share of the file that is read, and whether anybody
    /// still waits is what it returns. The next call ends this one.
    ///
    /// # Errors
    /// When the dataset cannot be trained on, or nobody waits for the answer any more.
    pub fn inspect(
        &self,
        model: &Path,
        settings: &RunSettings,
        limit: usize,
        mut tell: impl FnMut(f64) -> bool,
    ) -> Result<Inspection, CommandError> {
        let number = self.look_number.fetch_add(1, Ordering::Relaxed) + 1;
        // The look before has noticed.
        let _reading = lock(&self.reading);
        let n_bytes = settings.data.metadata().map_or(0, |metadata| metadata.len());
        let mut goes_on = |n_read: u64| {
            let is_latest = self.look_number.load(Ordering::Relaxed) == number;
            match is_latest && tell(n_read as f64 / n_bytes.max(1) as f64) {
                true => ControlFlow::Continue(()),
                false => ControlFlow::Break(()),
            }
        };
        if goes_on(0).is_break() {
            return Err(TrainError::from(DataError::Cancelled).into());
        }
        Ok(preview::inspect(model, settings, limit, &mut goes_on)?)
    }

    /// Ends the answer of the moment.
    pub fn stop_answer(&self) {
        self.answer_number.fetch_add(1, Ordering::Relaxed);
    }

    /// Gives the playground's memory to the run that is about to need it.
    fn close_playground(&self) {
        self.stop_answer();
        lock(&self.playground).close();
    }
}

/// A run's end in the words of a notification: title and text.
pub fn describe(ended: &Ended) -> (&'static str, String) {
    let name = ended.run.file_name().unwrap_or_default().to_string_lossy().into_owned();
    match (ended.state, &ended.error) {
        (RunState::Finished, _) => ("Training finished", name),
        (_, Some(error)) => ("Training failed", format!("{name}: {}", error.message)),
        _ => ("Training stopped and saved", name),
    }
}
