//! The program with a card: through the interface of NVIDIA's driver and instruments, behind which is the simulator.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[allow(dead_code, reason = "other tests share more of it")]
mod common;

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::OnceLock,
};

use common::{Place, files};
use serde_json::Value;

const TRAIN: &str =
    "train --model @model --data @data.jsonl --device cuda --seq 32 --batch 2 --rank 4 --lr 1e-3";

/// What the driver takes of the simulated card beside what it hands out.
const CONTEXT_BYTES: u64 = 256 << 20;
/// What a device takes for itself.
const OWN_BYTES: u64 = 64 << 10;
/// What nobody gets.
const RESERVED_BYTES: u64 = 64 << 20;

/// The libraries, built beside the programs of tests.
fn library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let mut cargo = Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()));
        cargo.args(["build", "--quiet", "--workspace", "--features", "nibble-tests/simulator"]);
        cargo.args(["--example", "simulated_driver"]).current_dir(env!("CARGO_MANIFEST_DIR"));
        assert!(cargo.status().unwrap().success());
        let program = Path::new(env!("CARGO_BIN_EXE_nibble"));
        let library = program.with_file_name("examples").join("libsimulated_driver.so");
        assert!(library.is_file(), "no {}", library.display());
        library
    })
}

/// A computer with a card.
struct Computer {
    place: Place,
}

impl Computer {
    fn new() -> Self {
        let place = Place::new();
        fs::create_dir(place.path("driver")).unwrap();
        for name in ["libcuda.so", "libnvidia-ml.so.1"] {
            symlink(library(), place.path("driver").join(name)).unwrap();
        }
        Self { place }
    }

    /// The program beside a card that is described as the simulated driver reads it.
    fn command(&self, card: &str, arguments: &str) -> Command {
        let mut command = self.place.command(arguments);
        command.env("CUDA_VISIBLE_DEVICES", "0").env("NIBBLE_SIMULATED_CARD", card);
        command.env("LD_LIBRARY_PATH", self.place.path("driver"));
        command
    }

    fn nibble(&self, card: &str, arguments: &str) -> Output {
        self.command(card, arguments).output().unwrap()
    }

    fn json(&self, arguments: &str) -> Vec<Value> {
        self.json_of("", arguments)
    }

    fn json_of(&self, card: &str, arguments: &str) -> Vec<Value> {
        let output = self.nibble(card, &format!("{arguments} --json"));
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && errors.is_empty(), "{arguments}: {errors}");
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
    }

    /// The one line that it says when it fails with `code`.
    fn error(&self, card: &str, code: i32, arguments: &str) -> String {
        let output = self.nibble(card, arguments);
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments}: {errors}");
        assert_eq!(errors.trim_end().lines().count(), 1, "{arguments}: {errors}");
        errors
    }

    fn checkpoint(&self, run: &str, step: u64) -> Vec<(String, Vec<u8>)> {
        files(&self.place.path(run).join("checkpoints").join(format!("step-{step:06}")))
    }
}

fn steps(events: &[Value]) -> Vec<&Value> {
    events.iter().filter(|event| event["event"] == "step").collect()
}

#[test]
fn a_card_is_listed_with_what_it_says_of_itself() {
    let devices = Computer::new().json("devices").remove(0);
    assert_eq!(devices["cuda"]["available"], true);
    let card = &devices["devices"][1];
    assert_eq!((&card["id"], &card["name"]), (&"cuda".into(), &"Simulated card".into()));
    assert_eq!(card["total_bytes"], 8_u64 << 30);
    assert_eq!(card["free_bytes"], (8_u64 << 30) - RESERVED_BYTES);
    assert_eq!(card["capability"], "10.0");
    assert_eq!((&card["temperature_celsius"], &card["power_watts"]), (&45.0.into(), &123.0.into()));
}

#[test]
fn a_card_that_cannot_compute_is_refused_with_what_to_do() {
    let computer = Computer::new();
    for (card, reason) in [
        ("version=11080", "offers CUDA 11.8 and CUDA 12.0 is needed; update the driver"),
        ("capability=7.5", "Simulated card has compute capability 7.5 and 8.0 is needed"),
    ] {
        let error = computer.error(card, 2, &format!("{TRAIN} --out @run --steps 1"));
        assert!(error.contains(reason), "{error}");
        let devices = computer.nibble(card, "devices");
        let table = String::from_utf8(devices.stdout).unwrap();
        assert!(devices.status.success() && table.contains("cuda   not available"), "{table}");
    }
    assert!(!computer.place.path("run").exists());
}

/// What a run says that it takes is what the driver and its instruments say that it has, on a card that hands out
/// little; and the next knows what the driver takes beside it.
#[test]
fn a_run_takes_of_a_card_what_it_planned() {
    const CARD: &str = "granule=512";
    let computer = Computer::new();
    for method in ["full", "lora", "qlora"] {
        let words = format!("{TRAIN} --method {method} --steps 4 --out @{method}");
        let events = computer.json_of(CARD, &words);
        let steps = steps(&events);
        let loss = |step: &Value| step["loss"].as_f64().unwrap();
        assert!(loss(steps[3]) < loss(steps[0]), "{method}: {steps:?}");
        let done = events.last().unwrap();
        let planned = done["planned_peak_bytes"].as_u64().unwrap();
        assert_eq!(done["allocated_peak_bytes"], planned);
        for step in steps {
            let taken = step["device_bytes"].as_u64().unwrap();
            assert!(taken <= planned);
            let process = step["card"]["process_bytes"].as_u64().unwrap();
            // Each of a few allocations is rounded up.
            let beside = process - CONTEXT_BYTES - OWN_BYTES - taken;
            assert!(beside < 4 << 10, "{beside} bytes beside {taken}");
        }
        let plan = computer.json_of(CARD, "plan --model @model --device cuda --seq 32").remove(0);
        assert_eq!(plan["device_overhead_bytes"], CONTEXT_BYTES + OWN_BYTES);
    }
}

/// What a card with room for everything does, one does that holds a part: what leaves it comes and goes on streams of
/// its own.
#[test]
fn pages_of_a_card_change_no_bit() {
    let computer = Computer::new();
    for method in ["full", "qlora"] {
        let words = format!("{TRAIN} --method {method} --steps 3 --grad-accum 2 --recompute on");
        computer.json(&format!("{words} --paged off --out @{method}"));
        let paged = computer.json(&format!("{words} --paged on --out @{method}-paged"));
        let crossed = |step: &&Value| step["paged_bytes"].as_u64().unwrap();
        assert!(steps(&paged).iter().all(|step| crossed(step) > 0), "{method}");
        let of = |run: &str| computer.checkpoint(run, 3);
        assert_eq!(of(method), of(&format!("{method}-paged")), "{method}");
    }
}

/// A card that is lost in the middle ends the run with what the driver says; what was saved goes on bit for bit.
#[test]
fn a_run_outlives_a_card_that_is_lost() {
    let computer = Computer::new();
    let words =
        format!("{TRAIN} --method qlora --steps 12 --save-every 2 --dropout 0.1 --paged on");
    computer.json(&format!("{words} --out @whole"));
    let sign = computer.place.path("lost-card");
    let card = format!("fails_with={}", sign.display());
    let mut run = computer.command(&card, &format!("{words} --out @lost --json"));
    let mut run = run.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    for line in BufReader::new(run.stdout.take().unwrap()).lines() {
        let event: Value = serde_json::from_str(&line.unwrap()).unwrap();
        if event["event"] == "step" && event["step"] == 3 {
            fs::write(&sign, "").unwrap();
        }
    }
    let output = run.wait_with_output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("CUDA_ERROR_LAUNCH_FAILED: unspecified launch failure"), "{error}");
    assert!(error.contains("start Nibble again and resume"), "{error}");
    assert!(computer.checkpoint("lost", 2).len() > 2);
    let events = computer.json("resume @lost");
    assert!(steps(&events)[0]["step"].as_u64().unwrap() > 2);
    assert_eq!(computer.checkpoint("whole", 12), computer.checkpoint("lost", 12));
}

/// A plan larger than what is free is refused before anything is made; the same where there is room for it is not.
#[test]
fn a_card_with_too_little_memory_is_told_before_the_run() {
    let computer = Computer::new();
    let words = format!("{TRAIN} --method full --recompute off --paged off --steps 1");
    // What the driver takes is known from here on.
    let whole = computer.json(&format!("{words} --out @whole"));
    let planned = whole.last().unwrap()["planned_peak_bytes"].as_u64().unwrap();
    let card = |bytes: u64| {
        format!("granule=512 bytes={}", RESERVED_BYTES + CONTEXT_BYTES + (2 << 20) + bytes)
    };
    let error = computer.error(&card(planned / 2), 2, &format!("{words} --out @run"));
    assert!(error.contains("the run needs") && error.contains("is available"), "{error}");
    assert!(!computer.place.path("run").exists());
    computer.json_of(&card(planned + 4096), &format!("{words} --out @run"));
}

#[test]
fn a_card_answers_and_evaluates() {
    let computer = Computer::new();
    computer.json(&format!("{TRAIN} --method lora --steps 2 --out @run"));
    // On the card and on the processor.
    let both = |words: &str| {
        let words = format!("{words} --adapter @run/checkpoints/step-000002 --compute f32");
        let card = computer.json(&format!("{words} --device cuda")).remove(0);
        (card, computer.place.json(&format!("{words} --device cpu")).remove(0))
    };
    let (card, processor) = both("generate --model @model --prompt 1 --max-tokens 3");
    assert_eq!(card["text"], processor["text"]);
    let (card, processor) = both("eval --model @model --data @data.jsonl");
    let [card, processor] = [card, processor].map(|report| report["loss"].as_f64().unwrap());
    // Sums in f32 in another order, of numbers near one.
    assert!((card - processor).abs() < 1e-4 * processor, "{card} and {processor}");
}
