//! `nibble bench`: what the device does at most, and where the time of a training step goes beside that.

use std::{fmt::Write, fs, path::Path};

use nibble_engine::{
    devices::{self, Ceilings},
    train,
};
use nibble_run::{Event, Method, RunSettings, TrainingDevice};
use serde::Serialize;

use crate::{
    Failure,
    arguments::BenchArguments,
    output::say,
    profile,
    train::{apply_sizes, device, failure, method},
    verbs::print_json,
};

/// What was measured.
#[derive(Serialize)]
struct Report {
    device: TrainingDevice,
    /// Multiplications and additions a second on registers alone.
    product_flops_per_s: Option<f64>,
    /// Bytes a second that a copy reads and writes.
    copy_bytes_per_s: Option<f64>,
    /// Bytes a second from this computer's memory to the card.
    to_device_bytes_per_s: Option<f64>,
    /// And back.
    from_device_bytes_per_s: Option<f64>,
    /// Bytes a second to a file, flushed, in the folder where this was asked.
    disk_bytes_per_s: Option<f64>,
    /// Where the time of the steps went.
    profile: Option<Event>,
}

/// `nibble bench`.
pub fn bench(arguments: &BenchArguments, json: bool) -> Result<(), Failure> {
    let mut settings = RunSettings::default();
    apply_sizes(&mut settings, &arguments.sizes);
    settings.device = device(arguments.sizes.device);
    let profile =
        devices::profile(settings.device, settings.threads, train::compute(settings.compute));
    let Ceilings { product_flops_per_s, copy_bytes_per_s, host_copy_bytes_per_s } =
        devices::ceilings(profile).map_err(|error| failure(error.into()))?;
    let [to_device_bytes_per_s, from_device_bytes_per_s] =
        [0, 1].map(|way| host_copy_bytes_per_s.map(|rates| rates[way]));
    let processor = devices::cpu_profile(settings.threads, None);
    let disk_bytes_per_s = devices::measure_page_rates(&processor, Path::new(".")).disk;
    let mut report = Report {
        device: settings.device,
        product_flops_per_s,
        copy_bytes_per_s,
        to_device_bytes_per_s,
        from_device_bytes_per_s,
        disk_bytes_per_s,
        profile: None,
    };
    if !json {
        show(&report);
    }
    if let Some(model) = &arguments.model {
        settings.model = std::path::absolute(model).map_err(Failure::input)?;
        settings.method = arguments.method.map_or(Method::Qlora, method);
        settings.steps = Some(arguments.steps);
        report.profile = Some(steps(settings, arguments.steps, json)?);
    }
    if json { print_json(&report) } else { Ok(()) }
}

fn show(report: &Report) {
    let row = |what: &str, rate: Option<f64>, unit: &str| {
        if let Some(rate) = rate {
            say!("{what:<36} {:>8.1} {unit}", rate / 1e9);
        }
    };
    say!("{}, at most", report.device.id());
    row("products, on registers alone", report.product_flops_per_s, "GFLOP/s");
    row("copies, read and written", report.copy_bytes_per_s, "GB/s");
    row("from this computer's memory to it", report.to_device_bytes_per_s, "GB/s");
    row("and back", report.from_device_bytes_per_s, "GB/s");
    row("to a file here, flushed", report.disk_bytes_per_s, "GB/s");
}

/// Trains a few steps on numbers and returns where their time went.
fn steps(mut settings: RunSettings, n_steps: u64, json: bool) -> Result<Event, Failure> {
    /// Steps after which examples come again.
    const MOST_STEPS: u64 = 8;
    let place = tempfile::tempdir().map_err(Failure::running)?;
    settings.data = place.path().join("numbers.jsonl");
    // What no run could be is refused before as much text is made for it.
    fs::write(&settings.data, "").map_err(Failure::running)?;
    train::prepare(settings.clone()).map_err(failure)?;
    // Every number is a token at least, so that every row is as long as it may be.
    let n_examples = n_steps.min(MOST_STEPS) as usize * settings.batch;
    let lines: String = (0..n_examples).fold(String::new(), |mut lines, example| {
        lines.push_str("{\"text\": \"");
        for number in 0..settings.sequence {
            let _ = write!(lines, "{} ", (number + example) % 1000);
        }
        lines.push_str("\"}\n");
        lines
    });
    fs::write(&settings.data, lines).map_err(Failure::running)?;
    if !json {
        let RunSettings { method, batch, sequence, .. } = &settings;
        say!("\n{n_steps} steps of {}, {batch} × {sequence} tokens:", method.name());
    }
    let run = train::start_profiled(settings, &place.path().join("run")).map_err(failure)?;
    let profiled =
        run.events().iter().filter(|event| matches!(event, Event::Profile { .. })).last();
    run.join().map_err(failure)?;
    let Some(profiled) = profiled else {
        return Err(Failure::running("the run ended without saying where its time went"));
    };
    if let (
        false,
        Event::Profile { steps, seconds, operations, product_flops_per_s, copy_bytes_per_s },
    ) = (json, &profiled)
    {
        profile::show(*steps, *seconds, operations, (*product_flops_per_s, *copy_bytes_per_s));
    }
    Ok(profiled)
}
