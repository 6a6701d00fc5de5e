//! Where a run may compute, and what is said where it may not.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[allow(dead_code, reason = "other tests share more of it")]
mod common;

#[cfg(target_os = "linux")]
use std::{fs, process::Command};

use common::Place;

#[test]
fn the_processor_is_always_there_and_a_card_or_the_reason_why_not() {
    let place = Place::new();
    let devices = place.json("devices").remove(0);
    assert_eq!(devices["devices"][0]["id"], "cpu");
    assert!(devices["devices"][0]["total_bytes"].as_u64().unwrap() > 0);
    // No card is visible to this process.
    assert_eq!(devices["cuda"]["available"], false);
    let reason = devices["cuda"]["reason"].as_str().unwrap();
    let table = String::from_utf8(place.nibble("devices").stdout).unwrap();
    assert!(table.contains(&format!("cuda   not available: {reason}")), "{table}");
}

#[test]
fn a_card_that_is_not_there_is_refused_before_anything_is_made() {
    let place = Place::new();
    let train = "train --model @model --data @data.jsonl --out @run --seq 32 --steps 1";
    let reason = place.json("devices").remove(0)["cuda"]["reason"].as_str().unwrap().to_owned();
    for verb in [
        &format!("{train} --device cuda"),
        "plan --model @model --device cuda",
        "generate --model @model --prompt 1 --device cuda",
        "eval --model @model --data @data.jsonl --device cuda",
    ] {
        let error = place.error(2, verb);
        let reason = reason.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(error.contains(&reason), "{verb}: {error}");
    }
    assert!(!place.path("run").exists());
    // What a person expects who names none.
    place.json(train);
    let settings = std::fs::read_to_string(place.path("run/run.toml")).unwrap();
    assert!(settings.contains("device = \"cpu\""), "{settings}");
}

#[test]
fn a_card_that_is_not_there_can_be_planned_for() {
    let place = Place::new();
    let plan = "plan --model llama-2-13b --device cuda --compute bf16 --paged on";
    let report = place.json(&format!("{plan} --budget 12GiB")).remove(0);
    assert_eq!(report["device"], "cuda");
    assert_eq!(report["device_overhead_bytes"], serde_json::Value::Null);
    for method in report["methods"].as_array().unwrap() {
        // What leaves a card lies in the host's memory, and nobody has measured how fast it moves.
        assert_eq!(method["paging"]["resident"], "host");
        assert_eq!(method["paging"]["step_seconds"], serde_json::Value::Null);
        assert_eq!(method["page_file_bytes"], 0);
        let outside = &method["paging"];
        let of = |name: &str| outside[name].as_u64().unwrap();
        let outside = of("optimizer_bytes") + of("weights_bytes") + of("activations_bytes");
        let host_bytes = method["host_bytes"].as_u64().unwrap();
        assert!(
            host_bytes >= outside,
            "also 4-bit weights are copied from memory, not from a file"
        );
    }
    let output = place.nibble(&format!("{plan} --budget 12GiB"));
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(table.contains("comes on top"), "{table}");
}

/// A library of the driver's name, in a folder of its own that is looked in before any other.
#[cfg(target_os = "linux")]
fn reason_beside_a_library(source: &str) -> String {
    let place = Place::new();
    let code = place.path("library.rs");
    fs::write(&code, source).unwrap();
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
    let made = Command::new(rustc)
        .args(["--crate-type", "cdylib", "--crate-name", "library", "-C", "panic=abort", "-o"])
        .arg(place.path("libcuda.so"))
        .arg(&code)
        .status();
    assert!(made.unwrap().success());
    let mut nibble = place.command("devices --json");
    let output = nibble.env("LD_LIBRARY_PATH", place.path(".")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let devices: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    devices["cuda"]["reason"].as_str().unwrap().to_owned()
}

#[cfg(target_os = "linux")]
#[test]
fn what_only_has_the_drivers_name_is_no_driver() {
    let foreign = reason_beside_a_library("#[unsafe(no_mangle)] pub extern \"C\" fn cuddle() {}");
    assert!(foreign.contains("is not the driver's; take it out"), "{foreign}");
    // What the toolkit has to link programs against: every call says that it is a stub.
    let stub =
        "#[unsafe(no_mangle)] pub extern \"C\" fn cuDriverGetVersion(_: *mut i32) -> i32 { 34 }";
    let stub = reason_beside_a_library(stub);
    assert!(stub.contains("is not the driver's but a stub"), "{stub}");
}
