//! The two ends of a run on its thread: a handle for whoever shows it, a link for the run.
//!
//! Events come out, commands go in; whoever shows the run needs nothing else.

use std::{
    cell::Cell,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::mpsc::{self, Receiver, Sender},
    thread::JoinHandle,
};

use nibble_data::DataError;
use nibble_kernels::paging::PageFile;
use nibble_run::{Event, MetricsWriter, RunFolder, RunLock, RunSettings, TrainingDevice};
use serde::Deserialize;

use super::{
    TrainError,
    checkpoint::{self, RunState},
    prepare::{self, Prepared},
    run::{Run, Watched},
};
use crate::{
    devices::{self, RunDevice, on_device},
    model::ModelError,
};

/// What a running run can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
pub enum Command {
    /// Hold before the next step.
    Pause,
    /// Go on.
    Resume,
    /// Write a checkpoint and end.
    Stop,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// Steps done, of all sittings.
    pub n_steps: u64,
    /// The last step's mean loss.
    pub final_loss: f64,
    /// The last checkpoint; `None` where the run was stopped before there was one.
    pub checkpoint: Option<PathBuf>,
    /// Whether everything was done, as opposed to stopped before.
    pub complete: bool,
}

impl Outcome {
    /// Told to stop before the first step of a sitting: nothing has changed since `checkpoint`.
    fn stopped_while_loading(checkpoint: Option<PathBuf>) -> Result<Self, TrainError> {
        let state = match &checkpoint {
            Some(path) => checkpoint::read_state(path)?,
            None => RunState::new(0, f64::NAN, 0),
        };
        let RunState { step, loss, .. } = state;
        Ok(Self { n_steps: step, final_loss: loss, checkpoint, complete: false })
    }
}

/// A run on its thread.
#[derive(Debug)]
pub struct RunHandle {
    events: Receiver<Event>,
    commands: Sender<Command>,
    thread: JoinHandle<Result<Outcome, TrainError>>,
}

impl RunHandle {
    /// What happens, in order; ends when the run does.
    pub fn events(&self) -> &Receiver<Event> {
        &self.events
    }

    /// Tells the run something; a run that has ended does not hear it.
    pub fn send(&self, command: Command) {
        let _ = self.commands.send(command);
    }

    /// A way to send commands from elsewhere, such as a signal handler.
    pub fn commands(&self) -> Sender<Command> {
        self.commands.clone()
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// Whatever ended the run.
    pub fn join(self) -> Result<Outcome, TrainError> {
        drop(self.events);
        self.thread.join().unwrap_or(Err(TrainError::Panicked))
    }
}

/// Starts a new run in the folder `path`. Everything that can be wrong with the settings, the
/// model's shape or the memory is found before this returns, and before anything is loaded.
///
/// # Errors
/// What is wrong, and what to do; then no folder is left behind.
pub fn start(settings: RunSettings, path: &Path) -> Result<RunHandle, TrainError> {
    start_watched(settings, path, false)
}

/// As [`start`], and finds out where the time of the steps goes: see [`Event::Profile`].
///
/// # Errors
/// As [`start`].
pub fn start_profiled(settings: RunSettings, path: &Path) -> Result<RunHandle, TrainError> {
    start_watched(settings, path, true)
}

fn start_watched(
    settings: RunSettings,
    path: &Path,
    profiled: bool,
) -> Result<RunHandle, TrainError> {
    let prepared = prepare::prepare(settings)?;
    let folder = RunFolder::create(path, &prepared.settings)?;
    let open = || -> Result<RunLock, TrainError> {
        let lock = folder.lock()?;
        settle_plan(&prepared, &folder)?;
        Ok(lock)
    };
    let started =
        open().and_then(|lock| spawn(prepared, folder.clone(), lock, Begin::New { profiled }));
    if started.is_err() {
        folder.discard();
    }
    started
}

/// Stores the plan of a sitting, which may be another than that of the sitting before. Refuses one
/// whose page file has no room, before examples are read and weights loaded for it.
fn settle_plan(prepared: &Prepared, folder: &RunFolder) -> Result<(), TrainError> {
    let n_bytes = prepared.plan.page_file_bytes() as u64;
    PageFile::check_space(&folder.page_file(), n_bytes)?;
    let shape = prepared.plan.shape();
    if !shape.residency.is_resident() {
        // So that the stored plan tells what paging costs, where it happens.
        devices::measure_page_rates(&shape.profile, folder.path());
    }
    Ok(folder.write_plan(&prepared.report())?)
}

/// Where a sitting of a run begins.
enum Begin {
    /// In a folder that this sitting made; `profiled`: with its operations timed.
    New { profiled: bool },
    /// At a checkpoint, or from the beginning where there is none yet.
    Again(Option<PathBuf>),
}

/// What may be otherwise when a run goes on: where it computes and in how much memory, as a card may be gone,
/// or less memory be free. `None`: as its settings say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Elsewhere {
    /// What computes. Another device rounds otherwise, so that the run is no longer the same bit for bit.
    pub device: Option<TrainingDevice>,
    /// The most memory to use, in bytes.
    pub budget_bytes: Option<u64>,
}

/// Goes on with the run in the folder `path` from its last whole checkpoint, or from the beginning
/// when it has none.
///
/// # Errors
/// As [`start`]; or when the run is complete, or is being trained already.
pub fn resume(path: &Path, elsewhere: Elsewhere) -> Result<RunHandle, TrainError> {
    let folder = RunFolder::open(path)?;
    let lock = folder.lock()?;
    let settings = folder.settings()?;
    let prepared = prepare::prepare(RunSettings {
        device: elsewhere.device.unwrap_or(settings.device),
        budget_bytes: elsewhere.budget_bytes.or(settings.budget_bytes),
        ..settings
    })?;
    settle_plan(&prepared, &folder)?;
    folder.remove_unfinished_checkpoints();
    let last = folder.checkpoints()?.pop();
    spawn(prepared, folder, lock, Begin::Again(last.map(|checkpoint| checkpoint.path)))
}

fn spawn(
    prepared: Prepared,
    folder: RunFolder,
    lock: RunLock,
    begin: Begin,
) -> Result<RunHandle, TrainError> {
    let (event_sender, events) = mpsc::channel();
    let (commands, command_receiver) = mpsc::channel();
    let thread = std::thread::Builder::new()
        .name("nibble-run".into())
        .spawn(move || {
            let link = Link {
                events: event_sender,
                commands: command_receiver,
                wants_pause: Cell::new(false),
                wants_stop: Cell::new(false),
            };
            let (is_new, profiled, checkpoint) = match begin {
                Begin::New { profiled } => (true, profiled, None),
                Begin::Again(checkpoint) => (false, false, checkpoint),
            };
            let sitting = Sitting { folder, lock, is_new, profiled, checkpoint };
            let profile = prepared.plan.shape().profile;
            on_device!(profile, Device => sit::<Device>(prepared, sitting, link))
        })
        .map_err(|error| TrainError::Threads(error.to_string()))?;
    Ok(RunHandle { events, commands, thread })
}

/// What a sitting of a run is made of, beside its plan.
struct Sitting {
    folder: RunFolder,
    lock: RunLock,
    is_new: bool,
    profiled: bool,
    checkpoint: Option<PathBuf>,
}

/// A whole sitting, on its thread.
fn sit<B: RunDevice>(
    prepared: Prepared,
    sitting: Sitting,
    link: Link,
) -> Result<Outcome, TrainError> {
    let Sitting { folder, lock, is_new, profiled, checkpoint } = sitting;
    match Run::<B>::open(prepared, folder.clone(), checkpoint.as_deref(), link) {
        Ok(mut run) => {
            run.watched = profiled.then(Watched::default);
            let result = run.run();
            if let Err(error) = &result {
                run.remember(error);
            }
            result
        }
        Err(error) => {
            let is_cancelled = matches!(
                error,
                TrainError::Model(ModelError::Cancelled) | TrainError::Data(DataError::Cancelled)
            );
            if is_cancelled {
                return Outcome::stopped_while_loading(checkpoint);
            }
            drop(lock);
            if is_new {
                // The folder holds settings alone, and the same name should be free for
                // the next try.
                folder.discard();
            }
            Err(error)
        }
    }
}

/// The thread's ends of the handle's channels.
pub(super) struct Link {
    events: Sender<Event>,
    commands: Receiver<Command>,
    /// What the last of Pause and Resume asked for.
    wants_pause: Cell<bool>,
    /// Whether Stop has come; it is never taken back.
    wants_stop: Cell<bool>,
}

impl Link {
    /// One that nobody listens or speaks to.
    #[cfg(test)]
    pub(super) fn silent() -> Self {
        let (wants_pause, wants_stop) = (Cell::new(false), Cell::new(false));
        Self { events: mpsc::channel().0, commands: mpsc::channel().1, wants_pause, wants_stop }
    }

    pub(super) fn emit(&self, event: Event) {
        // Nobody listening is no reason to stop: the run folder has everything.
        let _ = self.events.send(event);
    }

    /// Tells how far loading has come. Breaks it off when the run was told to stop.
    pub(super) fn load(&self, done_bytes: u64, total_bytes: u64) -> ControlFlow<()> {
        self.emit(Event::Loading { done_bytes, total_bytes });
        if self.must_stop() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn hear(&self, command: Command) {
        match command {
            Command::Pause => self.wants_pause.set(true),
            Command::Resume => self.wants_pause.set(false),
            Command::Stop => self.wants_stop.set(true),
        }
    }

    /// Whether the run was told to stop. Asked within long work too, so that a person who wants to
    /// end a run never waits for more than a step.
    pub(super) fn must_stop(&self) -> bool {
        while let Ok(command) = self.commands.try_recv() {
            self.hear(command);
        }
        self.wants_stop.get()
    }

    /// Takes the commands that have come; waits while paused. Returns whether to go on.
    pub(super) fn goes_on(&self, metrics: &mut MetricsWriter) -> Result<bool, TrainError> {
        let mut tell = |event: Event| {
            metrics.write(&event)?;
            self.emit(event);
            Ok::<_, TrainError>(())
        };
        let mut paused = false;
        while !self.must_stop() {
            let wants_pause = self.wants_pause.get();
            if paused != wants_pause {
                tell(if wants_pause { Event::Paused } else { Event::Resumed })?;
                paused = wants_pause;
            }
            if !paused {
                return Ok(true);
            }
            match self.commands.recv() {
                Ok(command) => self.hear(command),
                // A paused run whose handle is gone can never be told to go on: it is saved.
                Err(_) => return Ok(false),
            }
        }
        Ok(false)
    }
}
