//! Dependencies point one way, as ARCHITECTURE.md draws them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{collections::BTreeMap, process::Command};

use serde_json::Value;

/// What each crate may depend on among ours, tests left aside.
const ALLOWED: [(&str, &[&str]); 10] = [
    ("nibble-simulator", &[]),
    ("nibble-kernels", &["nibble-simulator"]),
    ("nibble-run", &[]),
    ("nibble-data", &[]),
    ("nibble-engine", &["nibble-data", "nibble-kernels", "nibble-run"]),
    ("nibble-cli", &["nibble-data", "nibble-engine", "nibble-run"]),
    ("nibble-studio", &["nibble-data", "nibble-engine", "nibble-run"]),
    ("nibble-monitor", &["nibble-run"]),
    ("nibble-tests", &["nibble-data", "nibble-engine", "nibble-kernels", "nibble-run"]),
    ("xtask", &[]),
];

/// The only crate that may speak to a graphics card, and those that may open a window.
const RESERVED: [(&str, &[&str]); 4] = [
    ("cudarc", &["nibble-kernels"]),
    ("tauri", &["nibble-studio"]),
    ("eframe", &["nibble-monitor"]),
    ("clap", &["nibble-cli", "nibble-monitor"]),
];

#[test]
fn crates_depend_only_on_what_lies_below_them() {
    let output = Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()))
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let name = |package: &Value| package["name"].as_str().unwrap().to_owned();
    let ours: Vec<String> = packages.iter().map(name).collect();
    let allowed: BTreeMap<_, _> = ALLOWED.into_iter().collect();
    for package in packages {
        let crate_name = name(package);
        let below = allowed.get(crate_name.as_str());
        let below = below.unwrap_or_else(|| panic!("give {crate_name} a place in ALLOWED"));
        for dependency in package["dependencies"].as_array().unwrap() {
            let dependency_name = name(dependency);
            if dependency["kind"] != "dev" && ours.contains(&dependency_name) {
                assert!(below.contains(&&*dependency_name), "{crate_name} → {dependency_name}");
            }
            for (reserved, users) in RESERVED {
                assert!(
                    dependency_name != reserved || users.contains(&&*crate_name),
                    "{crate_name} → {dependency_name}"
                );
            }
        }
    }
}
