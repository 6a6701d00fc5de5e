//! The runs that this process trains or has trained, each on the engine's own thread. Whatever
//! happens to one, the app goes on.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc::Sender},
    thread,
};

use nibble_engine::train::{Command, Outcome, RunHandle, TrainError};
use nibble_run::{Event, RunState};

use crate::error::CommandError;

/// Where a run of this process is.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    /// What it is doing, or how it ended.
    pub state: RunState,
    /// How far loading has come, which the run folder does not say.
    pub loading: Option<Event>,
    /// What ended it.
    pub error: Option<CommandError>,
}

#[derive(Debug)]
struct Training {
    commands: Sender<Command>,
    status: Status,
}

/// The end of a run, for whoever wants to tell the person.
#[derive(Clone, Debug, PartialEq)]
pub struct Ended {
    /// The run folder.
    pub run: PathBuf,
    /// How it ended.
    pub state: RunState,
    /// What ended it.
    pub error: Option<CommandError>,
}

/// Every run of this process.
#[derive(Debug, Default)]
pub struct Trainings {
    runs: Mutex<HashMap<PathBuf, Training>>,
    changed: Condvar,
}

/// What a lock protects is whole after every single change, so a panic in between harms nothing.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Trainings {
    /// Takes charge of a run that has been started, and calls `on_end` when it ends.
    pub fn add(
        self: &Arc<Self>,
        run: &Path,
        handle: RunHandle,
        on_end: impl FnOnce(Ended) + Send + 'static,
    ) {
        let status = Status { state: RunState::Loading, loading: None, error: None };
        let training = Training { commands: handle.commands(), status };
        lock(&self.runs).insert(run.to_owned(), training);
        let (runs, path) = (self.clone(), run.to_owned());
        let follow = move || {
            for event in handle.events() {
                runs.note(&path, event);
            }
            let ended = runs.end(path, handle.join());
            on_end(ended);
        };
        if thread::Builder::new().name("nibble-follow".into()).spawn(follow).is_err() {
            // The handle is gone with the closure: the run saves itself when it is next paused, and
            // trains on otherwise; its folder says the rest.
            lock(&self.runs).remove(run);
        }
    }

    fn change(&self, run: &Path, change: impl FnOnce(&mut Status)) {
        if let Some(training) = lock(&self.runs).get_mut(run) {
            change(&mut training.status);
        }
        self.changed.notify_all();
    }

    fn note(&self, run: &Path, event: Event) {
        self.change(run, |status| match event {
            Event::Loading { .. } => status.loading = Some(event),
            // A run that was told to stop is saving, whatever it reports on the way.
            _ if status.state == RunState::Saving => {}
            Event::Ready { .. } | Event::Resumed => status.state = RunState::Training,
            Event::Paused => status.state = RunState::Paused,
            _ => {}
        });
    }

    fn end(&self, run: PathBuf, result: Result<Outcome, TrainError>) -> Ended {
        let (state, error) = match result {
            Ok(outcome) if outcome.complete => (RunState::Finished, None),
            Ok(_) => (RunState::Stopped, None),
            Err(error) => (RunState::Failed, Some(CommandError::from(error))),
        };
        self.change(&run, |status| {
            *status = Status { state, loading: None, error: error.clone() };
        });
        Ended { run, state, error }
    }

    /// Where a run of this process is.
    pub fn status(&self, run: &Path) -> Option<Status> {
        lock(&self.runs).get(run).map(|training| training.status.clone())
    }

    /// Whether any run trains.
    pub fn any_active(&self) -> bool {
        lock(&self.runs).values().any(|training| training.status.state.is_active())
    }

    /// Forgets a run that has ended; its folder says the rest.
    pub fn forget(&self, run: &Path) {
        lock(&self.runs).remove(run);
    }

    /// Tells a run something.
    ///
    /// # Errors
    /// When it does not train in this process.
    pub fn control(&self, run: &Path, command: Command) -> Result<(), CommandError> {
        let mut runs = lock(&self.runs);
        let active = runs.get_mut(run).filter(|training| training.status.state.is_active());
        let Some(training) = active else {
            let message = format!("{} is not being trained here.", run.display());
            let hint = "Control it where it was started, or resume it.";
            return Err(CommandError::new("run_not_active", message, hint));
        };
        if command == Command::Stop {
            training.status.state = RunState::Saving;
        }
        // A run that has just ended does not hear it, and has nothing to do.
        let _ = training.commands.send(command);
        Ok(())
    }

    /// Stops and saves every run, and waits until all have.
    pub fn stop_all(&self) {
        let mut runs = lock(&self.runs);
        for training in runs.values_mut().filter(|training| training.status.state.is_active()) {
            training.status.state = RunState::Saving;
            let _ = training.commands.send(Command::Stop);
        }
        while runs.values().any(|training| training.status.state.is_active()) {
            runs = self.changed.wait(runs).unwrap_or_else(PoisonError::into_inner);
        }
    }
}
