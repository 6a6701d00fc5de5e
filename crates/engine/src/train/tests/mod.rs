//! A device that fails ends a run, whenever it does, with nothing lost that was saved and nothing saved
//! that was lost.

mod failing;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use nibble_run::{Event, Explain, Method, RunFolder, RunSettings, SampleSettings, read_metrics};

use self::failing::Failing;
use super::{TrainError, handle::Link, prepare, run::Run};

const N_STEPS: u64 = 3;

/// A run of three steps that saves, evaluates and samples after each.
fn settings(folder: &Path) -> RunSettings {
    let line =
        |i: usize| format!("{{\"prompt\": \"Say {i}.\", \"completion\": \"Aye, {i} it be!\"}}\n");
    let data = folder.join("data.jsonl");
    fs::write(&data, (0..8).map(line).collect::<String>()).unwrap();
    RunSettings {
        model: Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/starter"),
        data,
        method: Method::Lora,
        steps: Some(N_STEPS),
        sequence: 16,
        save_every: 1,
        eval_split: 0.2,
        eval_every: 1,
        samples: SampleSettings {
            prompts: vec!["Say 1.".into()],
            every: 1,
            max_tokens: 2,
            ..SampleSettings::default()
        },
        threads: Some(1),
        ..RunSettings::default()
    }
}

/// One sitting of the run at `path`, whose device fails after `n_operations`.
fn sit(settings: &RunSettings, path: &Path, n_operations: u64) -> Result<(), TrainError> {
    let folder = match RunFolder::open(path) {
        Ok(folder) => folder,
        Err(_) => RunFolder::create(path, settings)?,
    };
    let checkpoint = folder.checkpoints()?.pop().map(|checkpoint| checkpoint.path);
    Failing::after(n_operations);
    let prepared = prepare(settings.clone())?;
    let mut run = Run::<Failing>::open(prepared, folder, checkpoint.as_deref(), Link::silent())?;
    let result = run.run();
    if let Err(error) = &result {
        run.remember(error);
    }
    result.map(drop)
}

/// Every file of a folder with its bytes, by name.
fn files(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> =
        entries.map(|path| (path.file_name().unwrap().into(), fs::read(&path).unwrap())).collect();
    files.sort();
    files
}

/// What the run told of, without what a clock or another program decides.
fn told(run: &Path) -> Vec<String> {
    let events = read_metrics(&RunFolder::open(run).unwrap().metrics()).unwrap();
    let tell = |event: &Event| match event {
        Event::Step { step, loss, grad_norm, .. } => Some(format!("{step}: {loss} {grad_norm}")),
        Event::Eval { step, loss, .. } => Some(format!("{step}: {loss}")),
        Event::Sample { step, text, .. } => Some(format!("{step}: {text}")),
        _ => None,
    };
    events.iter().filter_map(tell).collect()
}

#[test]
fn a_device_that_fails_loses_nothing_that_was_saved_and_saves_nothing_else() {
    let place = tempfile::tempdir().unwrap();
    let settings = settings(place.path());
    let whole = place.path().join("whole");
    sit(&settings, &whole, u64::MAX).unwrap();
    let expected: BTreeSet<String> = told(&whole).into_iter().collect();
    let checkpoint = |run: &Path, step: u64| RunFolder::open(run).unwrap().checkpoint(step);
    let mut n_failures = 0;
    // Every so often, until a run is shorter than that.
    for n_operations in (1..).map(|n: u64| n * 193) {
        let run = place.path().join(format!("fails-{n_operations}"));
        let Err(error) = sit(&settings, &run, n_operations) else { break };
        n_failures += 1;
        let is_the_devices = match &error {
            TrainError::Device(_) => true,
            other => other.code() == "card_failed",
        };
        assert!(is_the_devices, "after {n_operations}: {error}");
        for event in told(&run) {
            assert!(expected.contains(&event), "after {n_operations}: {event}");
        }
        // What is there is what the run that did not fail had.
        let saved = RunFolder::open(&run).unwrap().checkpoints().unwrap();
        for saved in &saved {
            let whole = files(&checkpoint(&whole, saved.step));
            assert!(files(&saved.path) == whole, "step {} after {n_operations}", saved.step);
        }
        sit(&settings, &run, u64::MAX).unwrap();
        let last = checkpoint(&whole, N_STEPS);
        assert!(files(&checkpoint(&run, N_STEPS)) == files(&last), "after {n_operations}");
        fs::remove_dir_all(&run).unwrap();
    }
    assert!(n_failures > 10, "{n_failures} are less than it takes");
}

/// What the micro-batches bring to the device and compute is asked for without a wait.
#[test]
fn the_host_waits_as_often_however_many_micro_batches_a_step_has() {
    let place = tempfile::tempdir().unwrap();
    let settings = settings(place.path());
    let n_waits = [1, 3].map(|gradient_accumulation| {
        let settings = RunSettings { gradient_accumulation, ..settings.clone() };
        let path = place.path().join(gradient_accumulation.to_string());
        let folder = RunFolder::create(&path, &settings).unwrap();
        let prepared = prepare(settings).unwrap();
        let mut run = Run::<Failing>::open(prepared, folder, None, Link::silent()).unwrap();
        run.run().unwrap();
        run.trainer.device().n_waits()
    });
    assert_eq!(n_waits[0], n_waits[1]);
}
