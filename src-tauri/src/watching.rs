//! Whoever looks at a run gets its events from its folder: those of the past in chunks, then new
//! ones as they are written, whichever process trains it.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread,
    time::Duration,
};

use nibble_run::{Event, RunFollower, RunState};
use serde::Serialize;
use ts_rs::TS;

use crate::{
    error::CommandError,
    training::{Trainings, lock},
};

/// The most events of one update.
const CHUNK: usize = 5_000;

/// Between two updates of a run that trains: at most twenty a second.
const INTERVAL: Duration = Duration::from_millis(50);

/// Between two looks at a run that does not: somebody else may resume it.
const IDLE_INTERVAL: Duration = Duration::from_millis(500);

/// What is new about a run.
#[derive(Clone, Debug, PartialEq, Serialize, TS)]
pub struct RunUpdate {
    /// Whether the events begin again with the first.
    pub reset: bool,
    /// New events.
    pub events: Vec<Event>,
    /// What the run is doing.
    pub state: RunState,
    /// What ended it, when it failed.
    pub error: Option<CommandError>,
}

/// Everyone who looks at a run. Two may look at the same one.
#[derive(Debug, Default)]
pub struct Watches {
    /// By the number of the watch: its run, and how it is told to end.
    stops: Mutex<HashMap<u32, (PathBuf, Arc<AtomicBool>)>>,
    last_number: AtomicU32,
}

impl Watches {
    /// Sends what happens to `run` until `send` returns false or the watch is ended; returns the
    /// watch's number.
    ///
    /// # Errors
    /// When the folder is no run.
    pub fn start(
        &self,
        run: &Path,
        trainings: Arc<Trainings>,
        send: impl Fn(RunUpdate) -> bool + Send + 'static,
    ) -> Result<u32, CommandError> {
        let number = self.last_number.fetch_add(1, Ordering::Relaxed) + 1;
        let watch = match RunFollower::open(run) {
            Ok(follower) => Watch { run: run.to_owned(), trainings, follower, failure: None },
            // A new run that failed while loading has left no folder, but its error is known.
            Err(error) => match trainings.status(run).and_then(|status| status.error) {
                Some(failure) => {
                    send(failed(failure));
                    return Ok(number);
                }
                None => return Err(error.into()),
            },
        };
        let stop = Arc::new(AtomicBool::new(false));
        {
            let mut stops = lock(&self.stops);
            // A thread that has ended has let go of its flag.
            stops.retain(|_, (_, stop)| Arc::strong_count(stop) > 1);
            stops.insert(number, (run.to_owned(), stop.clone()));
        }
        thread::Builder::new()
            .name("nibble-watch".into())
            .spawn(move || watch.follow(&stop, &send))
            .map_err(CommandError::defect)?;
        Ok(number)
    }

    /// Ends the watch of that number.
    pub fn end(&self, number: u32) {
        self.end_those(|watch, _| watch == number);
    }

    /// Ends every watch of `run`.
    pub fn stop(&self, run: &Path) {
        self.end_those(|_, of| of == run);
    }

    /// Ends every watch: the page that asked is gone.
    pub fn stop_all(&self) {
        self.end_those(|_, _| true);
    }

    fn end_those(&self, is_meant: impl Fn(u32, &Path) -> bool) {
        lock(&self.stops).retain(|&number, (run, stop)| {
            let ends = is_meant(number, run);
            stop.fetch_or(ends, Ordering::Relaxed);
            !ends
        });
    }
}

fn failed(error: CommandError) -> RunUpdate {
    RunUpdate { reset: false, events: Vec::new(), state: RunState::Failed, error: Some(error) }
}

struct Watch {
    run: PathBuf,
    trainings: Arc<Trainings>,
    follower: RunFollower,
    /// What the events say ended the run.
    failure: Option<CommandError>,
}

impl Watch {
    fn follow(mut self, stop: &AtomicBool, send: &impl Fn(RunUpdate) -> bool) {
        let mut last = None;
        let mut loading = None;
        while !stop.load(Ordering::Relaxed) {
            let (mut update, more, progress) = match self.look() {
                Ok(looked) => looked,
                Err(error) => {
                    send(failed(error));
                    return;
                }
            };
            if progress != loading {
                update.events.extend(progress.clone());
                loading = progress;
            }
            let now = (update.state, update.error.clone());
            let is_news = update.reset || !update.events.is_empty() || last.as_ref() != Some(&now);
            let is_active = update.state.is_active();
            last = Some(now);
            if is_news && !send(update) {
                return;
            }
            if !more {
                thread::sleep(if is_active { INTERVAL } else { IDLE_INTERVAL });
            }
        }
    }

    /// What is new, whether more is waiting, and how far loading has come.
    fn look(&mut self) -> Result<(RunUpdate, bool, Option<Event>), CommandError> {
        // First, so that an end is told with or after the last event.
        let own = self.trainings.status(&self.run);
        let news = match self.follower.poll(CHUNK) {
            Ok(news) if self.run.is_dir() => news,
            result => {
                let gone = || {
                    let message = format!("{} is gone.", self.run.display());
                    CommandError::new("run_gone", message, "It was moved or deleted.")
                };
                let known = own.and_then(|status| status.error);
                return Err(known.or(result.err().map(Into::into)).unwrap_or_else(gone));
            }
        };
        for event in &news.events {
            match event {
                Event::Failed { code, message, hint } => {
                    self.failure = Some(CommandError::new(code, message, hint));
                }
                Event::Loading { .. } => self.failure = None,
                _ => {}
            }
        }
        let (state, error, loading) = match own {
            Some(own) => (own.state, own.error, own.loading),
            None => (news.state, self.failure.clone(), None),
        };
        let error = error.filter(|_| state == RunState::Failed);
        Ok((RunUpdate { reset: news.reset, events: news.events, state, error }, news.more, loading))
    }
}
