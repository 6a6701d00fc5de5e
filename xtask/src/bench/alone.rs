//! Nibble by itself: how long it takes to start, what a second thread brings, and how a step grows
//! with its sequence.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
    time::Instant,
};

use serde_json::Value;

use super::{Case, QLORA, SMALL, measure_nibble, median, random_model, train};
use crate::{Error, nibble};

/// The shape whose start is measured, and the one that trains.
const LARGE: &str = "tinyllama-1.1b";
/// Steps of a measurement, of which the first warms up and does not count.
const STEPS: usize = 6;
const LENGTHS: [&str; 5] = ["128", "256", "512", "1024", "2048"];

/// Measures and prints three short tables.
pub fn bench() -> Result<(), Error> {
    let nibble = nibble()?;
    starts(&nibble)?;
    let folder = random_model(SMALL)?;
    let speed = |sequence, n_threads| -> Result<f64, Error> {
        let (method, n_steps, n_threads) = (QLORA, STEPS, Some(n_threads));
        let case = Case { folder: &folder, method, sequence, n_steps, n_threads };
        Ok(median(measure_nibble(&nibble, &case)?.tokens_per_s))
    };
    let n_cores = std::thread::available_parallelism().map_or(1, usize::from);
    println!("{SMALL} {QLORA}, 256 tokens a step, by threads\n");
    println!("{:>8} {:>10} {:>8}", "threads", "tokens/s", "ratio");
    let mut alone = f64::NAN;
    let doubled = std::iter::successors(Some(1), |n| Some(2 * n)).take_while(|&n| n <= n_cores);
    for n_threads in doubled {
        let speed = speed("256", n_threads)?;
        if n_threads == 1 {
            alone = speed;
        }
        println!("{n_threads:>8} {speed:>10.1} {:>7.2}x", speed / alone);
    }
    println!("\n{SMALL} {QLORA}, one sequence a step, by its length\n");
    println!("{:>8} {:>10} {:>10}", "tokens", "tokens/s", "ms a step");
    for sequence in LENGTHS {
        let speed = speed(sequence, n_cores)?;
        let n_tokens: f64 = sequence.parse().unwrap_or(f64::NAN);
        println!("{sequence:>8} {speed:>10.1} {:>10.0}", 1e3 * n_tokens / speed);
    }
    println!();
    Ok(())
}

/// From the start of the process to weights in place, and to the end of the first step.
fn starts(nibble: &Path) -> Result<(), Error> {
    let folder = random_model(LARGE)?;
    let weights = folder.join("model.safetensors");
    let file = |source| Error::File { path: weights.clone(), source };
    // In the system's memory, so that no disk is measured but the one that the image goes to.
    let n_bytes = fs::read(&weights).map_err(file)?.len() as f64;
    let cache = folder.join("cache");
    if cache.exists() {
        fs::remove_dir_all(&cache).map_err(|source| Error::File { path: cache.clone(), source })?;
    }
    println!("{LARGE} {QLORA}, {:.1} GB in bf16: seconds from the start\n", n_bytes / 1e9);
    println!("{:<24} {:>8} {:>12}", "", "ready", "first step");
    for what in ["quantised, image written", "from the image"] {
        let (method, sequence, n_steps) = (QLORA, "256", STEPS);
        let case = Case { folder: &folder, method, sequence, n_steps, n_threads: None };
        let mut command = train(nibble, &case, &folder.join("run-start"))?;
        let [ready, step] = when(command.env("NIBBLE_CACHE", &cache), ["ready", "step"])?;
        println!("{what:<24} {ready:>8.2} {step:>12.2}");
    }
    println!();
    for left in [cache, folder.join("run-start")] {
        let _ = fs::remove_dir_all(left);
    }
    Ok(())
}

/// Seconds from the start of a run until it first tells each of two events.
fn when(command: &mut Command, events: [&str; 2]) -> Result<[f64; 2], Error> {
    let program = command.get_program().to_string_lossy().into_owned();
    let begin = Instant::now();
    let started = command.stdout(Stdio::piped()).spawn();
    let mut child = started.map_err(|source| Error::Start { program: program.clone(), source })?;
    let mut told = [f64::NAN; 2];
    for line in child.stdout.take().into_iter().flat_map(|out| BufReader::new(out).lines()) {
        let now = begin.elapsed().as_secs_f64();
        let Ok(Ok(event)) = line.map(|line| serde_json::from_str::<Value>(&line)) else { continue };
        for (told, name) in told.iter_mut().zip(events) {
            if told.is_nan() && event["event"] == name {
                *told = now;
            }
        }
    }
    match child.wait() {
        Ok(status) if status.success() => Ok(told),
        _ => Err(Error::Failed { what: program }),
    }
}
