//! QLoRA on an NVIDIA card, beside PEFT + bitsandbytes: speed, memory of the card, and loading.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use super::{Wanted, data_of, median, random_model};
use crate::{Error, nibble, root, run};

/// Ids of the catalog; the second has the shape of Llama 3 8B.
const SHAPES: [&str; 3] = ["llama-2-7b", "llama-3.1-8b", "llama-2-13b"];
/// Tokens of a step, one sequence.
const SEQUENCES: [&str; 3] = ["512", "1024", "2048"];
/// The share of their memory within which ours is measured a second time.
const SHARE: f64 = 0.6;
/// Whose weights visit the card, and the most of it in GiB: with what a driver takes, less than 4 GB.
const PAGED: (&str, f64) = ("llama-2-13b", 3.25);
/// Two sequences of 2,048 tokens a step.
const LONG_STEP: [&str; 4] = ["--seq", "2048", "--batch", "2"];
/// Steps of a measurement; the first warms up and does not count.
const STEPS: &str = "8";
/// Rounds of a measurement, ours and theirs by turns.
const ROUNDS: usize = 2;
/// From one look at the card's memory to the next.
const LOOKS_APART: Duration = Duration::from_millis(250);

#[derive(Default)]
struct Measured {
    tokens_per_s: Vec<f64>,
    /// The most of the card's memory that was in use meanwhile, without what was before; `None` where the
    /// driver's own program does not tell.
    peak_bytes: Option<f64>,
    planned_bytes: f64,
    /// From the start of the program to its first step.
    load_seconds: Vec<f64>,
}

/// Measures the shapes named, or the usual ones, and prints a table. Both sides compute activations
/// twice, as a card's memory asks for; then ours keeps those of as many layers as fit in a share of the
/// memory that theirs took. Of the first shape, where a long step's time goes; of the last of the usual
/// ones, what it costs that its weights visit the card.
///
/// # Errors
/// When a model cannot be made, or our own run fails.
pub fn bench(words: &[&str]) -> Result<(), Error> {
    let Wanted { shapes, sequences, n_rounds } =
        Wanted::parse(words, (&SHAPES, &SEQUENCES, ROUNDS))?;
    let nibble = nibble()?;
    let python = python();
    if python.is_none() {
        println!("Without PEFT + bitsandbytes: no Python with them was found (NIBBLE_PYTHON).");
    }
    println!(
        "QLoRA, rank 16 on all linear layers, one sequence a step, activations computed twice; \
         medians of {n_rounds} rounds by turns. Within: ours in {SHARE} of their memory, keeping what fits\n"
    );
    println!(
        "{:<14} {:>6} {:>9} {:>9} {:>9} {:>7} {:>10} {:>9} {:>7} {:>7} {:>7} {:>9} {:>7}",
        "shape",
        "tokens",
        "nibble",
        "plan GiB",
        "peak GiB",
        "load s",
        "peft+bnb",
        "peak GiB",
        "load s",
        "speed",
        "memory",
        "within",
        "speed"
    );
    for (number, shape) in shapes.iter().enumerate() {
        let folder = random_model(shape)?;
        for sequence in &sequences {
            let (mut ours, mut theirs) = (Measured::default(), None);
            let one = ["--seq", sequence, "--recompute", "on"];
            for _ in 0..n_rounds {
                ours.add(measure(train(&nibble, &folder, &one)?.arg("--json"))?);
                if let Some(python) = &python {
                    // What does not fit the card by their method is a result too.
                    match measure(&mut peft(python, &folder, sequence)) {
                        Ok(round) => theirs.get_or_insert_with(Measured::default).add(round),
                        Err(error) => eprintln!("{shape}: {error}"),
                    }
                }
            }
            print_row(shape, sequence, &ours, theirs.as_ref());
            let peaks = theirs.as_ref().and_then(|theirs| theirs.peak_bytes.zip(ours.peak_bytes));
            if let Some((theirs, (theirs_peak, ours_peak))) = theirs.zip(peaks) {
                // A plan is held against the budget without what the driver takes.
                let beside = ours_peak - ours.planned_bytes;
                let budget = SHARE * theirs_peak - beside;
                let within = ["--seq", sequence, "--budget", &format!("{budget:.0}")];
                // What does not fit is a result here as well.
                match measure(train(&nibble, &folder, &within)?.arg("--json")) {
                    Ok(within) => {
                        let speed = median(within.tokens_per_s);
                        let ratio = speed / median(theirs.tokens_per_s);
                        print!(" {speed:>9.1} {ratio:>6.2}x");
                    }
                    Err(error) => eprintln!("{shape} in {budget:.0} bytes: {error}"),
                }
            }
            println!();
        }
        if number == 0 {
            println!("\n{shape}, a step of 4,096 tokens:");
            let mut command =
                train(&nibble, &folder, &[&LONG_STEP[..], &["--recompute", "on"]].concat())?;
            run("nibble train --profile", command.arg("--profile"))?;
            println!();
        }
        if *shape == PAGED.0 {
            paged(&nibble, &folder, n_rounds)?;
        }
        // Of the largest there would be 56 GB together.
        fs::remove_dir_all(&folder).map_err(|source| Error::File { path: folder, source })?;
    }
    println!();
    Ok(())
}

/// Steps whose weights visit the card from the computer's memory, beside those of which all stays there.
fn paged(nibble: &Path, folder: &Path, n_rounds: usize) -> Result<(), Error> {
    let (shape, gib) = PAGED;
    let budget = format!("{:.0}", gib * f64::from(1 << 30));
    let cases = [&["--paged", "off"][..], &["--budget", &budget]];
    let mut measured = [Measured::default(), Measured::default()];
    for _ in 0..n_rounds {
        for (case, measured) in cases.iter().zip(&mut measured) {
            let words = [&LONG_STEP[..], &["--recompute", "on"], case].concat();
            measured.add(measure(train(nibble, folder, &words)?.arg("--json"))?);
        }
    }
    let [resident, visiting] = measured.map(|measured| median(measured.tokens_per_s));
    println!(
        "\n{shape}, 4,096 tokens a step: {resident:.1} tokens/s on the card, {visiting:.1} within {gib} GiB of it: \
         {:.2} times as long a step\n",
        resident / visiting
    );
    Ok(())
}

fn print_row(shape: &str, sequence: &str, ours: &Measured, theirs: Option<&Measured>) {
    let gib = |bytes: Option<f64>| match bytes {
        Some(bytes) => format!("{:.2}", bytes / f64::from(1 << 30)),
        None => "-".to_owned(),
    };
    let speed = median(ours.tokens_per_s.clone());
    print!(
        "{shape:<14} {sequence:>6} {speed:>9.1} {:>9} {:>9} {:>7.1}",
        gib(Some(ours.planned_bytes)),
        gib(ours.peak_bytes),
        median(ours.load_seconds.clone())
    );
    if let Some(theirs) = theirs {
        let other = median(theirs.tokens_per_s.clone());
        let memory = ours.peak_bytes.zip(theirs.peak_bytes);
        let memory =
            memory.map_or("-".to_owned(), |(ours, theirs)| format!("{:.2}x", ours / theirs));
        print!(
            " {other:>10.1} {:>9} {:>7.1} {:>6.2}x {memory:>7}",
            gib(theirs.peak_bytes),
            median(theirs.load_seconds.clone()),
            speed / other,
        );
    }
}

impl Measured {
    fn add(&mut self, round: Self) {
        self.tokens_per_s.extend(round.tokens_per_s);
        self.load_seconds.extend(round.load_seconds);
        // None is less than any.
        self.peak_bytes =
            if round.peak_bytes > self.peak_bytes { round.peak_bytes } else { self.peak_bytes };
        self.planned_bytes = self.planned_bytes.max(round.planned_bytes);
    }
}

/// An interpreter that has what theirs needs.
fn python() -> Option<std::path::PathBuf> {
    let named = std::env::var_os("NIBBLE_PYTHON").unwrap_or_else(|| "python3".into());
    let has = Command::new(&named)
        .args([
            "-c",
            "import torch, transformers, peft, bitsandbytes; assert torch.cuda.is_available()",
        ])
        .stderr(Stdio::null())
        .status();
    has.is_ok_and(|status| status.success()).then(|| named.into())
}

fn train(nibble: &Path, folder: &Path, words: &[&str]) -> Result<Command, Error> {
    let out = folder.join("run-cuda");
    if out.exists() {
        fs::remove_dir_all(&out).map_err(|source| Error::File { path: out.clone(), source })?;
    }
    let mut command = Command::new(nibble);
    command.args(["train", "--device", "cuda", "--method", "qlora", "--rank", "16"]);
    command.args(["--steps", STEPS]).args(words);
    command.arg("--model").arg(folder).arg("--data").arg(data_of(folder)).arg("--out").arg(out);
    Ok(command)
}

fn peft(python: &Path, folder: &Path, sequence: &str) -> Command {
    let mut command = Command::new(python);
    command.arg(root().join("tests").join("reference").join("bench_peft.py"));
    command.args(["--device", "cuda", "--recompute", "--method", "qlora", "--rank", "16"]);
    command.args(["--sequence", sequence, "--steps", STEPS]).arg("--model").arg(folder);
    command
}

/// How cards are numbered for programs that compute, and by the driver's own program always.
const CARD_ORDER: (&str, &str) = ("CUDA_DEVICE_ORDER", "PCI_BUS_ID");

/// Memory that is in use of the card that is computed on, as the driver's own program tells. A driver does not
/// know the processes of a container by their numbers, and Windows tells nobody what a process has.
fn used_bytes() -> Option<f64> {
    let visible = std::env::var("CUDA_VISIBLE_DEVICES").unwrap_or_default();
    let card = visible.split(',').next().filter(|card| !card.is_empty()).unwrap_or("0");
    let mut command = Command::new("nvidia-smi");
    command.arg(format!("--id={card}"));
    command.args(["--query-gpu=memory.used", "--format=csv,noheader,nounits"]);
    let output = command.stderr(Stdio::null()).output().ok()?;
    let mib: f64 = String::from_utf8_lossy(&output.stdout).trim().parse().ok()?;
    Some(mib * f64::from(1 << 20))
}

/// Runs a program that prints a JSON object for each step, as both sides do.
fn measure(command: &mut Command) -> Result<Measured, Error> {
    let before = used_bytes();
    let is_done = AtomicBool::new(false);
    thread::scope(|scope| {
        let looks = scope.spawn(|| {
            let mut peak = before;
            while before.is_some() && !is_done.load(Ordering::Relaxed) {
                peak = peak.zip(used_bytes()).map(|(peak, used)| peak.max(used)).or(peak);
                thread::sleep(LOOKS_APART);
            }
            peak
        });
        let measured = follow(command);
        is_done.store(true, Ordering::Relaxed);
        let peak = looks.join().unwrap_or_default();
        let held = peak.zip(before).map(|(peak, before)| peak - before);
        let peak_bytes = held.filter(|&bytes| bytes > 0.0);
        Ok(Measured { peak_bytes, ..measured? })
    })
}

fn follow(command: &mut Command) -> Result<Measured, Error> {
    let program = command.get_program().to_string_lossy().into_owned();
    let start = Instant::now();
    let (order, by_place) = CARD_ORDER;
    let mut child = command
        .env(order, by_place)
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|source| Error::Start { program: program.clone(), source })?;
    let mut measured = Measured::default();
    let lines = child.stdout.take().map(|output| BufReader::new(output).lines());
    let events = lines.into_iter().flatten().map_while(Result::ok);
    let mut n_steps = 0;
    for event in events.filter_map(|line| serde_json::from_str::<Value>(&line).ok()) {
        let number = |name: &str| event[name].as_f64();
        match event["event"].as_str() {
            Some("ready") => measured.load_seconds.push(start.elapsed().as_secs_f64()),
            Some("step") => {
                n_steps += 1;
                if n_steps > 1 {
                    measured.tokens_per_s.extend(number("tokens_per_s"));
                }
            }
            _ => {}
        }
        measured.planned_bytes =
            measured.planned_bytes.max(number("planned_peak_bytes").unwrap_or(0.0));
    }
    let status =
        child.wait().map_err(|source| Error::Start { program: program.clone(), source })?;
    if status.success() { Ok(measured) } else { Err(Error::Failed { what: program }) }
}
