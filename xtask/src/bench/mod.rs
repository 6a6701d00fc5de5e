//! `cargo xtask bench`: speed and memory of every method on random weights of well-known shapes,
//! ours beside PEFT + bitsandbytes in the same run where their environment is ready.

mod alone;
mod cuda;
mod paging;
mod plan;

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::Value;

use crate::{Error, carried_programs, nibble, reference, root, run};

/// Shapes unless others are named: the starter model's, and ids of the catalog.
const SHAPES: [&str; 4] = [STARTER, SMALL, "qwen2.5-0.5b", "tinyllama-1.1b"];
const STARTER: &str = "starter";
const SMALL: &str = "smollm2-135m";
const FULL: &str = "full";
/// What is trained beside theirs.
const METHODS: [Method; 5] = [
    Method::alike(FULL, &["--method", "full"]),
    // By either in the form that takes it least memory; theirs is mostly their fastest as well, where the
    // processor multiplies bf16.
    FULL_IN_BF16,
    // Moments in f32 may be the fastest of ours, and where a model is small their memory is no question.
    Method {
        name: "full, mixed",
        ours: &["--method", "full", "--weights", "bf16"],
        of_small: true,
        ..FULL_IN_BF16
    },
    LORA,
    QLORA,
];
const FULL_IN_BF16: Method = Method {
    name: "full, bf16",
    ours: &["--method", "full", "--weights", "bf16", "--optimizer", "adamw-8bit"],
    theirs: &["--method", "full", "--weights", "bf16"],
    of_small: false,
};
const LORA: Method = Method::alike("lora", &["--method", "lora"]);
const QLORA: Method = Method::alike("qlora", &["--method", "qlora"]);
/// Tokens of a step, one sequence.
const SEQUENCES: [&str; 2] = ["256", "1024"];
/// Tokens of an example of the data; a shorter sequence is the beginning of one.
const EXAMPLE: &str = "2048";
/// Steps of a measurement; the first warms up and does not count. The starter's take hundredths of a second.
const STEPS: usize = 4;
const STARTER_STEPS: usize = 40;
/// Rounds of a measurement, ours and theirs by turns.
const ROUNDS: usize = 3;
/// The share that a step must have had of the cores that the best of its run had: less, and another program
/// was timed. (Not of all cores: an optimizer that keeps one busy is what is measured.)
const LEAST_SHARE: f64 = 0.85;

/// A method, and how either program is asked for it.
#[derive(Clone, Copy)]
struct Method {
    name: &'static str,
    ours: &'static [&'static str],
    theirs: &'static [&'static str],
    /// Whether it is measured with small models alone.
    of_small: bool,
}

impl Method {
    /// One that either program is asked for in the same words.
    const fn alike(name: &'static str, words: &'static [&'static str]) -> Self {
        Self { name, ours: words, theirs: words, of_small: false }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name)
    }
}

/// What is measured: `[--tokens=N,…] [--rounds=N] [SHAPE …]`.
struct Wanted<'a> {
    shapes: Vec<&'a str>,
    sequences: Vec<&'a str>,
    n_rounds: usize,
}

impl<'a> Wanted<'a> {
    /// As `words` say; where they say nothing, the shapes, tokens and rounds that are usual.
    fn parse(
        words: &[&'a str],
        (shapes, sequences, n_rounds): (&[&'a str], &[&'a str], usize),
    ) -> Result<Self, Error> {
        let mut wanted = Self { shapes: Vec::new(), sequences: sequences.to_vec(), n_rounds };
        for word in words {
            let usage = |wanted| Error::Usage { word: (*word).into(), wanted };
            let number = |text: &str| text.parse().ok().filter(|&n: &usize| n > 0);
            if let Some(tokens) = word.strip_prefix("--tokens=") {
                wanted.sequences = tokens.split(',').collect();
                // No example of the data is longer, so that ours would be other work than theirs.
                let fits =
                    |tokens: &&str| number(tokens).is_some() && number(tokens) <= number(EXAMPLE);
                if !wanted.sequences.iter().all(fits) {
                    return Err(usage(
                        "whole numbers of tokens, no more than an example has, with commas between them",
                    ));
                }
            } else if let Some(n) = word.strip_prefix("--rounds=") {
                wanted.n_rounds = number(n).ok_or_else(|| usage("a whole number of rounds"))?;
            } else if word.starts_with("--") {
                return Err(usage("--tokens=N,... or --rounds=N, or shapes of the catalog"));
            } else {
                wanted.shapes.push(word);
            }
        }
        if wanted.shapes.is_empty() {
            wanted.shapes = shapes.to_vec();
        }
        Ok(wanted)
    }
}

/// One measurement.
#[derive(Default)]
struct Measured {
    /// Of each step that counts.
    tokens_per_s: Vec<f64>,
    peak_bytes: f64,
    planned_bytes: f64,
}

impl Measured {
    fn add(&mut self, round: Self) {
        self.tokens_per_s.extend(round.tokens_per_s);
        self.peak_bytes = self.peak_bytes.max(round.peak_bytes);
        self.planned_bytes = round.planned_bytes;
    }
}

pub use alone::bench as bench_alone;
pub use cuda::bench as bench_cuda;
pub use paging::bench as bench_paging;
pub use plan::bench as bench_plan;

/// Everything but the windows: plans, training beside PEFT, starts and threads and lengths, and paging;
/// of the shapes named, or the usual ones.
pub fn bench(shapes: &[&str]) -> Result<(), Error> {
    if let Some(word) = shapes.iter().find(|word| word.starts_with("--")) {
        let wanted = "shapes of the catalog; `bench training` can be told tokens and rounds";
        return Err(Error::Usage { word: (*word).into(), wanted });
    }
    bench_plan()?;
    bench_training(shapes)?;
    bench_alone()?;
    bench_paging(shapes)
}

/// Measures the shapes named, or the usual ones, and prints a table.
pub fn bench_training(words: &[&str]) -> Result<(), Error> {
    let wanted = Wanted::parse(words, (&SHAPES, &SEQUENCES, ROUNDS))?;
    let nibble = nibble()?;
    let python = reference::ready_python();
    if python.is_none() {
        println!("Without PEFT + bitsandbytes: `cargo xtask reference` sets them up.");
    }
    println!(
        "Tokens/s and peak memory at one sequence a step, rank 16, no recomputation; medians of \
         {} rounds by turns\n",
        wanted.n_rounds
    );
    println!(
        "{:<16} {:<12} {:>6} {:>10} {:>10} {:>10} {:>10} {:>10} {:>7} {:>7}",
        "shape",
        "method",
        "tokens",
        "nibble",
        "plan GiB",
        "peak GiB",
        "peft+bnb",
        "peak GiB",
        "speed",
        "memory"
    );
    for shape in wanted.shapes {
        let folder = random_model(shape)?;
        let n_steps = if shape == STARTER { STARTER_STEPS } else { STEPS };
        for &sequence in &wanted.sequences {
            let mut fastest = [0.0_f64; 2];
            let is_small = [STARTER, SMALL].contains(&shape);
            for method in METHODS.into_iter().filter(|method| is_small || !method.of_small) {
                let case = Case { folder: &folder, method, sequence, n_steps, n_threads: None };
                let speeds = measure(shape, &case, &nibble, python.as_deref(), wanted.n_rounds)?;
                if method.name.starts_with(FULL) {
                    // Of what could not be measured there is no number.
                    fastest = [0, 1].map(|i| fastest[i].max(speeds[i]));
                }
            }
            let [ours, theirs] = fastest;
            if theirs > 0.0 {
                let (name, ratio) = ("full, best", ours / theirs);
                println!(
                    "{shape:<16} {name:<12} {sequence:>6} {ours:>10.1} {:>10} {:>10} {theirs:>10.1} \
                     {:>10} {ratio:>6.2}x",
                    "", "", ""
                );
            }
        }
    }
    println!();
    Ok(())
}

/// What is measured.
struct Case<'a> {
    folder: &'a Path,
    method: Method,
    sequence: &'a str,
    n_steps: usize,
    /// All that there are unless told.
    n_threads: Option<usize>,
}

/// Measures one case and prints its row; the tokens/s of ours and of theirs.
fn measure(
    shape: &str,
    case: &Case<'_>,
    nibble: &Path,
    python: Option<&Path>,
    n_rounds: usize,
) -> Result<[f64; 2], Error> {
    let Case { method, sequence, .. } = case;
    let (mut ours, mut theirs) = (Measured::default(), None);
    for _ in 0..n_rounds {
        ours.add(measure_nibble(nibble, case)?);
        if let Some(python) = python {
            // A shape that does not fit the machine by their method is a result too.
            match measure_peft(python, case) {
                Ok(round) => theirs.get_or_insert_with(Measured::default).add(round),
                Err(error) => eprintln!("{shape} {method}: {error}"),
            }
        }
    }
    let gib = |bytes: f64| bytes / f64::from(1 << 30);
    let speed = median(ours.tokens_per_s);
    print!(
        "{shape:<16} {method:<12} {sequence:>6} {speed:>10.1} {:>10.2} {:>10.2}",
        gib(ours.planned_bytes),
        gib(ours.peak_bytes)
    );
    let mut other = f64::NAN;
    if let Some(theirs) = theirs {
        other = median(theirs.tokens_per_s);
        print!(
            " {other:>10.1} {:>10.2} {:>6.2}x {:>6.2}x",
            gib(theirs.peak_bytes),
            speed / other,
            ours.peak_bytes / theirs.peak_bytes
        );
    }
    println!();
    Ok([speed, other])
}

/// A program that stands beside the engine, built to be measured.
fn example(name: &str) -> Command {
    if let Some(programs) = carried_programs() {
        return Command::new(programs.join(name));
    }
    let mut command = Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()));
    command.current_dir(root()).args(["run", "--quiet", "--release", "--package", "nibble-engine"]);
    command.args(["--example", name, "--"]);
    command
}

/// A folder of random weights of a shape, with data of whole sequences; made once, in the folder that
/// NIBBLE_BENCH names or in the build's.
fn random_model(shape: &str) -> Result<PathBuf, Error> {
    let place = std::env::var_os("NIBBLE_BENCH").map(PathBuf::from);
    let folder = place.unwrap_or_else(|| root().join("target").join("bench")).join(shape);
    if !data_of(&folder).is_file() {
        let what = "making a random model";
        let mut command = example("random_model");
        match shape {
            STARTER => command.arg(root().join("assets").join("starter").join("config.json")),
            shape => command.arg(shape),
        };
        run(what, command.arg(&folder).arg(EXAMPLE))?;
    }
    Ok(folder)
}

/// The data of a random model, as the example that makes both names it.
fn data_of(folder: &Path) -> PathBuf {
    folder.join(format!("data-{EXAMPLE}.jsonl"))
}

/// What a run of one case is started with.
fn train(nibble: &Path, case: &Case<'_>, out: &Path) -> Result<Command, Error> {
    let Case { folder, method, sequence, n_steps, n_threads } = *case;
    if out.exists() {
        fs::remove_dir_all(out).map_err(|source| Error::File { path: out.to_owned(), source })?;
    }
    let mut command = Command::new(nibble);
    command.args(["train", "--json", "--seq", sequence, "--rank", "16"]).args(method.ours);
    command.args(["--steps", &n_steps.to_string(), "--recompute", "off", "--device", "cpu"]);
    if let Some(n_threads) = n_threads {
        command.args(["--threads", &n_threads.to_string()]);
    }
    command.arg("--model").arg(folder).arg("--data").arg(data_of(folder)).arg("--out").arg(out);
    Ok(command)
}

fn measure_nibble(nibble: &Path, case: &Case<'_>) -> Result<Measured, Error> {
    let out = case.folder.join("run");
    let events = json_lines(&mut train(nibble, case, &out)?)?;
    let steps = events.iter().filter(|event| event["event"] == "step");
    let tokens_per_s = steps.skip(1).filter_map(|event| event["tokens_per_s"].as_f64()).collect();
    let done = events.iter().find(|event| event["event"] == "done");
    let of = |name: &str| done.and_then(|done| done[name].as_f64()).unwrap_or(f64::NAN);
    let (peak_bytes, planned_bytes) = (of("peak_rss_bytes"), of("planned_peak_bytes"));
    // A fully trained checkpoint of a large shape is tens of gigabytes that nobody wants.
    let _ = fs::remove_dir_all(&out);
    Ok(Measured { tokens_per_s, peak_bytes, planned_bytes })
}

fn measure_peft(python: &Path, case: &Case<'_>) -> Result<Measured, Error> {
    let Case { folder, method, sequence, n_steps, .. } = *case;
    let script = root().join("tests").join("reference").join("bench_peft.py");
    let mut command = Command::new(python);
    command.arg(script).arg("--config").arg(folder.join("config.json"));
    command.args(["--sequence", sequence, "--rank", "16"]).args(method.theirs);
    let events = json_lines(command.args(["--steps", &n_steps.to_string()]))?;
    let steps: Vec<_> = events.iter().filter(|event| event["event"] == "step").skip(1).collect();
    let cores = |event: &Value| event["cores_used"].as_f64().unwrap_or(f64::NAN);
    let most = steps.iter().map(|event| cores(event)).fold(0.0, f64::max);
    let tokens_per_s = steps
        .into_iter()
        .filter(|event| cores(event) >= LEAST_SHARE * most)
        .filter_map(|event| event["tokens_per_s"].as_f64())
        .collect();
    let peaks = events.iter().filter_map(|event| event["peak_rss_bytes"].as_f64());
    let peak_bytes = peaks.fold(f64::NAN, f64::max);
    Ok(Measured { tokens_per_s, peak_bytes, planned_bytes: f64::NAN })
}

/// The JSON objects that a program prints, a line each.
fn json_lines(command: &mut Command) -> Result<Vec<Value>, Error> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .map_err(|source| Error::Start { program: program.clone(), source })?;
    if !output.status.success() {
        return Err(Error::Failed { what: program });
    }
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
