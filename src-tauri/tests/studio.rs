//! The app without its window: what its commands do, on real runs of the starter model.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, mpsc},
    thread,
    time::Duration,
};

use nibble_engine::{
    export::{ExportFormat, ExportProgress, ExportStage, export},
    generate::SamplingSettings,
    playground::{Question, Side},
    train::Command,
};
use nibble_run::{Event, RunSettings, RunState};
use nibble_studio::{
    built_in::BuiltIn,
    preferences::{MemoryFile, Preferences, Theme},
    state::{Studio, describe},
    training::Ended,
    watching::RunUpdate,
};

const PATIENCE: Duration = Duration::from_secs(300);

struct Place {
    folder: tempfile::TempDir,
    studio: Studio,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let preferences = Preferences {
            theme: Theme::System,
            runs_folder: folder.path().join("runs"),
            models_folder: folder.path().join("models"),
            device: "cpu".into(),
        };
        let memory = MemoryFile::open(folder.path().join("preferences.json"), preferences);
        let studio = Studio::new(BuiltIn::find(None), memory);
        Self { folder, studio }
    }

    /// The first run's settings, but shorter.
    fn settings(&self, steps: u64) -> RunSettings {
        let defaults = self.studio.startup().unwrap().defaults;
        let mut settings = RunSettings {
            steps: Some(steps),
            sequence: 64,
            batch: 1,
            save_every: 2,
            eval_every: 0,
            eval_split: 0.0,
            ..defaults
        };
        settings.samples.prompts.clear();
        settings
    }

    fn start(&self, settings: RunSettings) -> (PathBuf, mpsc::Receiver<Ended>) {
        let (sender, ended) = mpsc::channel();
        let run = self.studio.start_run(settings, None, move |end| drop(sender.send(end))).unwrap();
        (run, ended)
    }

    fn watch(&self, run: &Path) -> mpsc::Receiver<RunUpdate> {
        self.numbered_watch(run).1
    }

    fn numbered_watch(&self, run: &Path) -> (u32, mpsc::Receiver<RunUpdate>) {
        let (sender, updates) = mpsc::channel();
        let sender = Mutex::new(sender);
        let send = move |update| sender.lock().unwrap().send(update).is_ok();
        let number = self.studio.watches.start(run, self.studio.trainings.clone(), send).unwrap();
        (number, updates)
    }
}

/// The events up to the first update that `is_last`, and that update.
fn until(
    updates: &mpsc::Receiver<RunUpdate>,
    is_last: impl Fn(&RunUpdate) -> bool,
) -> (Vec<Event>, RunUpdate) {
    let mut events = Vec::new();
    loop {
        let update = updates.recv_timeout(PATIENCE).unwrap();
        if update.reset {
            events.clear();
        }
        events.extend(update.events.clone());
        if is_last(&update) {
            return (events, update);
        }
    }
}

fn steps(events: &[Event]) -> Vec<u64> {
    let step = |event: &Event| match event {
        Event::Step { step, .. } => Some(*step),
        _ => None,
    };
    events.iter().filter_map(step).collect()
}

#[test]
fn a_run_is_started_watched_paused_stopped_resumed_and_exported() {
    let place = Place::new();
    let studio = &place.studio;
    let (run, ended) = place.start(place.settings(400));
    assert!(run.starts_with(place.folder.path().join("runs")));
    let updates = place.watch(&run);
    until(&updates, |update| !steps(&update.events).is_empty());

    studio.control_run(&run, Command::Pause).unwrap();
    until(&updates, |update| update.state == RunState::Paused);
    assert_eq!(studio.runs().unwrap()[0].state, RunState::Paused);
    // While it is paused, nobody else may take or delete it.
    let resumed = studio.resume_run(&run, None, |_| {}).unwrap_err();
    assert_eq!(resumed.code, "run_in_use");
    assert_eq!(studio.release_run(&run).unwrap_err().code, "run_in_use");
    studio.control_run(&run, Command::Resume).unwrap();
    until(&updates, |update| update.state == RunState::Training);

    studio.control_run(&run, Command::Stop).unwrap();
    assert_eq!(ended.recv_timeout(PATIENCE).unwrap().state, RunState::Stopped);
    until(&updates, |update| update.state == RunState::Stopped);
    assert_eq!(studio.control_run(&run, Command::Pause).unwrap_err().code, "run_not_active");

    // A page that is loaded again sees everything once more.
    let again = place.watch(&run);
    let (events, last) = until(&again, |update| update.state == RunState::Stopped);
    assert!(last.error.is_none());
    let seen = steps(&events);
    assert!(!seen.is_empty() && seen.iter().copied().eq(1..=seen.len() as u64), "{seen:?}");

    let details = studio.run_details(&run).unwrap();
    assert_eq!(details.settings.steps, Some(400));
    assert_eq!(details.summary.steps, seen.len() as u64);
    assert_eq!(details.plan.methods.len(), 1);

    let (sender, ended) = mpsc::channel();
    studio.resume_run(&run, None, move |end| drop(sender.send(end))).unwrap();
    until(&again, |update| update.state == RunState::Training);
    studio.trainings.stop_all();
    assert_eq!(ended.recv_timeout(PATIENCE).unwrap().state, RunState::Stopped);
    assert!(!studio.trainings.any_active());

    let to = place.folder.path().join("adapter");
    let mut stages = Vec::new();
    let mut note = |progress: ExportProgress| {
        assert!(progress.share.is_none_or(|share| (0.0..=1.0).contains(&share)));
        if stages.last() != Some(&progress.stage) {
            stages.push(progress.stage);
        }
    };
    let report = export(&run, None, &to, ExportFormat::Adapter, &mut note).unwrap();
    assert!(report.verified && to.join("adapter_model.safetensors").is_file());
    assert_eq!(stages, [ExportStage::Opening, ExportStage::Writing, ExportStage::Checking]);
    let mut shares = Vec::new();
    let to = place.folder.path().join("merged");
    let mut note = |progress: ExportProgress| shares.extend(progress.share);
    export(&run, None, &to, ExportFormat::Merged, &mut note).unwrap();
    assert!(shares.is_sorted() && shares.last() == Some(&1.0), "{shares:?}");

    // The result answers beside the model that it began with.
    let question = Question {
        run: Some(run.clone()),
        model: None,
        step: None,
        prompt: "What color is the sky?".into(),
        sampling: SamplingSettings {
            temperature: 0.0,
            max_tokens: 8,
            ..SamplingSettings::default()
        },
    };
    let pieces = Mutex::new(Vec::new());
    studio
        .answer(&question, |piece| {
            pieces.lock().unwrap().push(piece);
            true
        })
        .unwrap();
    let done: Vec<_> =
        pieces.lock().unwrap().iter().filter(|piece| piece.done).map(|piece| piece.side).collect();
    assert_eq!(done, [Side::Base, Side::Tuned]);

    studio.release_run(&run).unwrap();
    assert!(run.is_dir());
}

#[test]
fn two_may_look_at_one_run() {
    let place = Place::new();
    let (run, ended) = place.start(place.settings(100_000));
    let has_step = |update: &RunUpdate| !steps(&update.events).is_empty();
    let (first, of_first) = place.numbered_watch(&run);
    let (_, of_second) = place.numbered_watch(&run);
    until(&of_first, has_step);
    until(&of_second, has_step);
    // One of them has seen enough.
    place.studio.watches.end(first);
    place.studio.control_run(&run, Command::Stop).unwrap();
    ended.recv_timeout(PATIENCE).unwrap();
    until(&of_second, |update| update.state == RunState::Stopped);
    let last = of_first.iter().last();
    assert!(last.is_none_or(|update| update.state != RunState::Stopped));
}

#[test]
fn a_run_that_fails_says_why_and_the_app_goes_on() {
    let place = Place::new();
    let settings = RunSettings { learning_rate: Some(1e30), clip_norm: 0.0, ..place.settings(50) };
    let (run, ended) = place.start(settings);
    let updates = place.watch(&run);
    let end = ended.recv_timeout(PATIENCE).unwrap();
    assert_eq!(end.state, RunState::Failed);
    assert_eq!(describe(&end).0, "Training failed");
    let (_, last) = until(&updates, |update| update.state == RunState::Failed);
    let error = last.error.unwrap();
    assert_eq!(error.code, "diverged");
    assert!(error.hint.contains("learning rate"), "{}", error.hint);
    // Another app, or this one after a new start, reads it in the folder.
    place.studio.trainings.forget(&run);
    let (_, last) = until(&place.watch(&run), |update| update.state == RunState::Failed);
    assert_eq!(last.error.unwrap().code, "diverged");

    // One that fails before its first step leaves no folder, but is told as well.
    let data = place.folder.path().join("empty.jsonl");
    fs::write(&data, "").unwrap();
    let (run, ended) = place.start(RunSettings { data, ..place.settings(5) });
    assert_eq!(ended.recv_timeout(PATIENCE).unwrap().error.unwrap().code, "data_empty");
    let (_, last) = until(&place.watch(&run), |update| update.state == RunState::Failed);
    assert_eq!(last.error.unwrap().code, "data_empty");
    assert!(!run.exists());

    let (_, ended) = place.start(place.settings(2));
    assert_eq!(ended.recv_timeout(PATIENCE).unwrap().state, RunState::Finished);
}

#[test]
fn what_is_wrong_is_said_before_anything_is_made() {
    let place = Place::new();
    let good = place.settings(2);
    for (settings, code) in [
        (RunSettings { model: "llama-2-7b".into(), ..good.clone() }, "not_downloaded"),
        (RunSettings { model: "/nowhere".into(), ..good.clone() }, "model_unreadable"),
        (RunSettings { data: "/nowhere.jsonl".into(), ..good.clone() }, "data_unreadable"),
        (RunSettings { sequence: 1 << 20, ..good.clone() }, "sequence_too_long"),
        (RunSettings { batch: 0, ..good.clone() }, "setting_impossible"),
        (RunSettings { budget_bytes: Some(1 << 20), ..good.clone() }, "does_not_fit"),
    ] {
        let error = place.studio.start_run(settings, None, |_| {}).unwrap_err();
        assert_eq!(error.code, code, "{error}");
        assert!(!error.hint.is_empty() && !error.hint.contains("--"), "{}", error.hint);
    }
    let error = place.studio.start_run(good, Some("../up"), |_| {}).unwrap_err();
    assert_eq!(error.code, "setting_impossible");
    assert!(!place.folder.path().join("runs").exists());
    assert_eq!(place.studio.runs().unwrap(), []);
}

#[test]
fn runs_from_elsewhere_are_remembered() {
    let place = Place::new();
    let elsewhere = Place::new();
    let (run, ended) = elsewhere.start(elsewhere.settings(2));
    ended.recv_timeout(PATIENCE).unwrap();
    assert_eq!(place.studio.open_run(place.folder.path()).unwrap_err().code, "no_run");
    let summary = place.studio.open_run(&run).unwrap();
    assert_eq!((summary.state, summary.steps), (RunState::Finished, 2));
    assert_eq!(place.studio.runs().unwrap(), [summary]);
    assert_eq!(place.studio.repeat_settings(&run).unwrap().steps, Some(2));
    // Deleting lets go of it first.
    place.studio.release_run(&run).unwrap();
    assert_eq!(place.studio.runs().unwrap(), []);
}

#[test]
fn the_next_look_at_a_dataset_ends_the_one_before() {
    let place = Place::new();
    // More than is read between two tellings, several times.
    let long = place.folder.path().join("long.jsonl");
    let line = format!("{{\"text\": \"{}\"}}\n", "the cat sat ".repeat(80));
    fs::write(&long, line.repeat(6000)).unwrap();
    let (short, long) = (place.settings(2), RunSettings { data: long, ..place.settings(2) });
    let (begun, has_begun) = mpsc::channel();
    thread::scope(|scope| {
        let first = scope.spawn(|| {
            place.studio.inspect(&long.model, &long, 1, |share| {
                begun.send(share).unwrap();
                true
            })
        });
        assert_eq!(has_begun.recv().unwrap(), 0.0);
        let second = place.studio.inspect(&short.model, &short, 1, |_| true).unwrap();
        assert_eq!(second.samples.len(), 1);
        assert_eq!(first.join().unwrap().unwrap_err().code, "cancelled");
    });
    // Nobody waits for it any more.
    let gone = place.studio.inspect(&long.model, &long, 1, |share| share == 0.0).unwrap_err();
    assert_eq!(gone.code, "cancelled");
}

#[test]
fn what_people_bring_is_refused_with_advice() {
    let place = Place::new();
    let file = |name: &str, text: &str| {
        let path = place.folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    };
    // A dataset whose columns nobody knows.
    let data = file("data.jsonl", "{\"foo\": 1}\n{\"foo\": 2}\n");
    let settings = RunSettings { data, ..place.settings(2) };
    let error = place.studio.inspect(&settings.model, &settings, 1, |_| true).unwrap_err();
    assert_eq!(error.code, "columns_unknown");
    assert!(error.hint.contains("columns"), "{}", error.hint);

    // A run of a newer Nibble, which stays as it is.
    let newer = file("newer/run.toml", "format = 99\nof_the_future = true\n");
    let error = place.studio.open_run(newer.parent().unwrap()).unwrap_err();
    assert_eq!(error.code, "run_newer");
    assert!(error.hint.to_lowercase().contains("update nibble"), "{}", error.hint);
    assert!(fs::read_to_string(newer).unwrap().contains("of_the_future"));

    // A folder that cannot be written: below a file, which every system refuses to every user.
    let mut preferences = place.studio.startup().unwrap().preferences;
    preferences.runs_folder = file("occupied", "").join("runs");
    place.studio.save_preferences(preferences).unwrap();
    let error = place.studio.start_run(place.settings(2), None, |_| {}).unwrap_err();
    assert_eq!(error.code, "run_unwritable");
    assert!(error.hint.contains("permissions"), "{}", error.hint);
}

#[test]
fn preferences_are_whole_paths() {
    let place = Place::new();
    let mut preferences = place.studio.startup().unwrap().preferences;
    preferences.theme = Theme::Dark;
    place.studio.save_preferences(preferences.clone()).unwrap();
    assert_eq!(place.studio.startup().unwrap().preferences, preferences);
    preferences.runs_folder = "runs".into();
    let error = place.studio.save_preferences(preferences).unwrap_err();
    assert_eq!(error.code, "path_not_absolute");
}

#[test]
fn new_runs_compute_on_the_device_that_was_chosen() {
    let place = Place::new();
    let startup = place.studio.startup().unwrap();
    assert_eq!(startup.preferences.device, startup.devices[0].id.id());
    assert_eq!(startup.defaults.device, startup.devices[0].id);
    let elsewhere = Preferences { device: "abacus".into(), ..startup.preferences.clone() };
    let error = place.studio.save_preferences(elsewhere.clone()).unwrap_err();
    assert_eq!(error.code, "device_unknown");
    // One that was chosen and has gone since is as good as the first.
    let file = MemoryFile::open(place.folder.path().join("elsewhere.json"), elsewhere);
    let studio = Studio::new(BuiltIn::find(None), file);
    assert_eq!(studio.startup().unwrap().preferences, startup.preferences);
    assert_eq!(studio.startup().unwrap().defaults, startup.defaults);
}

#[test]
fn the_pace_of_pages_is_measured_once_and_told_from_then_on() {
    let place = Place::new();
    let startup = place.studio.startup().unwrap();
    let model = startup.starter.path.unwrap().display().to_string();
    let settings = RunSettings { paged: nibble_run::Paging::On, ..startup.defaults };
    let seconds = || {
        let report = nibble_engine::preview::plan_report(&model, &settings, None).unwrap();
        report.methods[0].paging.unwrap().step_seconds
    };
    // The runs' folder is not there yet.
    assert!(!startup.preferences.runs_folder.exists());
    place.studio.measure_page_rates();
    assert!(seconds().is_some_and(|seconds| seconds > 0.0));
    assert_eq!(std::fs::read_dir(place.folder.path()).unwrap().count(), 0);
}

#[test]
fn a_second_question_ends_the_first_answer() {
    let place = Place::new();
    let studio = Arc::new(place.studio);
    let question = |max_tokens| Question {
        run: None,
        model: Some(BuiltIn::find(None).starter().unwrap().path.unwrap()),
        step: None,
        prompt: "Tell me about cats.".into(),
        sampling: SamplingSettings { max_tokens, ..SamplingSettings::default() },
    };
    let (sender, pieces) = mpsc::channel();
    let (first, long) = (studio.clone(), question(100_000));
    let sender = Mutex::new(sender);
    let answering = std::thread::spawn(move || {
        first.answer(&long, |piece| sender.lock().unwrap().send(piece).is_ok())
    });
    pieces.recv_timeout(PATIENCE).unwrap();
    studio.answer(&question(2), |_| true).unwrap();
    answering.join().unwrap().unwrap();
}
