//! Events and folders for this crate's tests.

use std::{fs, path::Path};

use crate::{Event, RunFolder, RunSettings};

pub fn ready(n_steps: u64) -> Event {
    Event::Ready { n_steps, step: 0, n_examples: 10, n_tokens: 1000, planned_peak_bytes: 1 << 20 }
}

/// A step whose loss is one tenth of its number.
pub fn step(step: u64) -> Event {
    Event::Step {
        step,
        loss: step as f64 / 10.0,
        lr: 1e-3,
        grad_norm: 1.0,
        tokens: 100,
        tokens_per_s: 1000.0,
        host_bytes: 1000 + step,
        device_bytes: 500,
        paged_bytes: 0,
        card: None,
    }
}

pub fn checkpoint(step: u64) -> Event {
    Event::Checkpoint { step, path: format!("step-{step:06}").into() }
}

pub fn done(steps: u64) -> Event {
    Event::Done {
        planned_peak_bytes: 1 << 20,
        allocated_peak_bytes: 1 << 20,
        planned_host_bytes: 0,
        planned_page_file_bytes: 0,
        allocated_outside_bytes: 0,
        peak_rss_bytes: 1 << 21,
        steps,
        final_loss: steps as f64 / 10.0,
        adapter: "adapter".into(),
    }
}

pub fn failed() -> Event {
    Event::Failed {
        code: "diverged".into(),
        message: "the loss is no number".into(),
        hint: "lower the learning rate".into(),
    }
}

/// A run of the model `models/tiny` on `data/sums.jsonl`.
pub fn run(path: &Path) -> RunFolder {
    let settings = RunSettings {
        model: "models/tiny".into(),
        data: "data/sums.jsonl".into(),
        ..RunSettings::default()
    };
    RunFolder::create(path, &settings).unwrap()
}

/// Appends `events` to the run, as they are written by another process.
pub fn append(folder: &RunFolder, events: &[Event]) {
    let mut text = fs::read_to_string(folder.metrics()).unwrap_or_default();
    for event in events {
        text.push_str(&serde_json::to_string(event).unwrap());
        text.push('\n');
    }
    fs::write(folder.metrics(), text).unwrap();
}
