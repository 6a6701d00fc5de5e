//! A run behind its handle: events out, commands in.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{path::Path, time::Duration};

use nibble_engine::train::{self, Command, Elsewhere};
use nibble_run::{Event, RunFolder, RunSettings, SampleSettings};

fn settings() -> RunSettings {
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets");
    RunSettings {
        model: assets.join("starter"),
        data: assets.join("datasets").join("pirate.jsonl"),
        steps: Some(400),
        sequence: 64,
        learning_rate: Some(1e-3),
        ..RunSettings::default()
    }
}

#[test]
fn a_run_pauses_goes_on_and_stops_with_everything_saved() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("run");
    let run = train::start(settings(), &path).unwrap();
    let wait_for = |wanted: fn(&Event) -> bool| {
        loop {
            let event = run.events().recv_timeout(Duration::from_secs(120)).unwrap();
            if wanted(&event) {
                return event;
            }
        }
    };
    wait_for(|event| matches!(event, Event::Step { step: 2, .. }));
    run.send(Command::Pause);
    wait_for(|event| matches!(event, Event::Paused));
    assert!(run.events().recv_timeout(Duration::from_millis(300)).is_err(), "a paused run holds");
    // Told twice, it pauses once.
    run.send(Command::Pause);
    run.send(Command::Resume);
    let next = run.events().recv_timeout(Duration::from_secs(120)).unwrap();
    assert!(matches!(next, Event::Resumed), "{next:?}");
    let Event::Step { step, .. } = wait_for(|event| matches!(event, Event::Step { .. })) else {
        panic!("waited for a step")
    };
    run.send(Command::Stop);
    let outcome = run.join().unwrap();
    assert!(!outcome.complete && outcome.n_steps >= step && outcome.n_steps < 400);
    let checkpoints = RunFolder::open(&path).unwrap().checkpoints().unwrap();
    assert_eq!(checkpoints.last().unwrap().step, outcome.n_steps);
    assert_eq!(Some(&checkpoints.last().unwrap().path), outcome.checkpoint.as_ref());
}

/// Every way to stop before the first step: nothing is claimed to be saved, and the run goes on.
#[test]
fn a_run_that_is_stopped_at_once_says_so_and_goes_on_later() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("run");
    let samples = SampleSettings { prompts: vec!["What is the sky?".into()], ..Default::default() };
    let settings = RunSettings { steps: Some(3), samples, ..settings() };
    let run = train::start(settings, &path).unwrap();
    run.send(Command::Stop);
    let events: Vec<Event> = run.events().iter().collect();
    let outcome = run.join().unwrap();
    assert_eq!((outcome.n_steps, outcome.checkpoint, outcome.complete), (0, None, false));
    assert!(!events.iter().any(|event| matches!(event, Event::Step { .. } | Event::Done { .. })));
    let outcome = train::resume(&path, Elsewhere::default()).unwrap().join().unwrap();
    assert!(outcome.complete && outcome.checkpoint.unwrap().is_dir());
}

#[test]
fn a_run_that_nobody_listens_to_goes_on_to_its_end() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("run");
    let run = train::start(RunSettings { steps: Some(3), ..settings() }, &path).unwrap();
    let outcome = run.join().unwrap();
    assert!(outcome.complete);
    let events = nibble_run::read_metrics(&RunFolder::open(&path).unwrap().metrics()).unwrap();
    assert!(matches!(events.last(), Some(Event::Done { steps: 3, .. })));
}
