//! The program with a card: through the interface of NVIDIA's driver and instruments, behind which is the simulator.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[allow(dead_code, reason = "other tests share more of it")]
mod common;

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::OnceLock,
};

use common::{Place, files};
use serde_json::Value;

const TRAIN: &str =
    "train --model @model --data @data.jsonl --device cuda --seq 32 --batch 2 --rank 4 --lr 1e-3";

/// What the driver takes of the simulated card beside what it hands out, and in what it does.
const CONTEXT_BYTES: u64 = 256 << 20;
const GRANULE: u64 = 2 << 20;

/// The libraries, built as the tests themselves are.
fn library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let mut cargo = Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()));
        cargo.args(["build", "--quiet", "--workspace", "--features", "nibble-tests/simulator"]);
        cargo.args(["--example", "simulated_driver"]).current_dir(env!("CARGO_MANIFEST_DIR"));
        assert!(cargo.status().unwrap().success());
        let program = Path::new(env!("CARGO_BIN_EXE_nibble"));
        program.with_file_name("examples").join("libsimulated_driver.so")
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
    fn nibble(&self, card: &str, arguments: &str) -> Output {
        let mut command = self.place.command(arguments);
        command.env("CUDA_VISIBLE_DEVICES", "0").env("NIBBLE_SIMULATED_CARD", card);
        command.env("LD_LIBRARY_PATH", self.place.path("driver")).output().unwrap()
    }

    fn json(&self, arguments: &str) -> Vec<Value> {
        let output = self.nibble("", &format!("{arguments} --json"));
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
    assert_eq!(
        (&card["total_bytes"], &card["free_bytes"]),
        (&card["total_bytes"], &(8_u64 << 30).into())
    );
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

/// What a run says that it takes is what the driver and its instruments say that it has; and the next knows what the
/// driver takes beside it.
#[test]
fn a_run_takes_of_a_card_what_it_planned() {
    let computer = Computer::new();
    for method in ["full", "lora", "qlora"] {
        let words = format!("{TRAIN} --method {method} --steps 4 --out @{method}");
        let events = computer.json(&words);
        let steps = steps(&events);
        let loss = |step: &Value| step["loss"].as_f64().unwrap();
        assert!(loss(steps[3]) < loss(steps[0]), "{method}: {steps:?}");
        let done = events.last().unwrap();
        assert_eq!(done["planned_peak_bytes"], done["allocated_peak_bytes"]);
        for step in steps {
            let taken = step["device_bytes"].as_u64().unwrap();
            let card = &step["card"];
            let process = card["process_bytes"].as_u64().unwrap();
            assert_eq!(card["used_bytes"], card["process_bytes"]);
            // Each of a few allocations is rounded up.
            let most = CONTEXT_BYTES + taken + 8 * GRANULE;
            assert!((CONTEXT_BYTES + taken..most).contains(&process), "{process} for {taken}");
        }
        let plan = computer.json("plan --model @model --device cuda --seq 32").remove(0);
        // Its context, and the little that a device has for itself.
        assert_eq!(plan["device_overhead_bytes"], CONTEXT_BYTES + GRANULE);
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
    let words = format!("{TRAIN} --method qlora --steps 6 --save-every 2 --dropout 0.1 --paged on");
    computer.json(&format!("{words} --out @whole"));
    let error = computer.error("fails_after=1200", 1, &format!("{words} --out @lost"));
    assert!(error.contains("CUDA_ERROR_LAUNCH_FAILED: unspecified launch failure"), "{error}");
    let saved = fs::read_dir(computer.place.path("lost").join("checkpoints")).unwrap().count();
    assert!(saved > 0 && computer.checkpoint("lost", 2).len() > 2, "{saved}");
    let events = computer.json("resume @lost");
    assert!(steps(&events)[0]["step"].as_u64().unwrap() > 2);
    assert_eq!(computer.checkpoint("whole", 6), computer.checkpoint("lost", 6));
}

/// A plan larger than what is free is refused before anything is made; the same without a limit fits.
#[test]
fn a_card_with_too_little_memory_is_told_before_the_run() {
    let computer = Computer::new();
    let small = format!("bytes={}", CONTEXT_BYTES + (1 << 20));
    // What the driver takes is known from here on.
    computer.json(&format!("{TRAIN} --method lora --steps 1 --out @first"));
    let words = format!("{TRAIN} --method full --paged off --steps 1 --out @run");
    let error = computer.error(&small, 2, &words);
    assert!(error.contains("MiB") || error.contains("KiB"), "{error}");
    assert!(!computer.place.path("run").exists());
}

#[test]
fn a_card_answers_and_evaluates() {
    let computer = Computer::new();
    computer.json(&format!("{TRAIN} --method lora --steps 2 --out @run"));
    let adapter = "--adapter @run/checkpoints/step-000002 --device cuda --compute f32";
    let words = "generate --model @model --prompt 1 --max-tokens 3";
    let generated = computer.json(&format!("{words} {adapter}")).remove(0);
    assert_eq!(
        generated["text"],
        computer
            .place
            .json(&format!("{words} --adapter @run/checkpoints/step-000002 --compute f32"))
            .remove(0)["text"]
    );
    let eval = "eval --model @model --data @data.jsonl";
    let card = computer.json(&format!("{eval} {adapter}")).remove(0)["loss"].as_f64().unwrap();
    assert!(card.is_finite() && card > 0.0);
}
