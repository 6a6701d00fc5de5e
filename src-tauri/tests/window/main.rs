//! The real app in a real window, from the first start to an exported adapter.
//!
//! Needs Xvfb, WebKitWebDriver and a built page, so it runs only when it is asked for:
//! `cargo test -p nibble-studio --test window -- --ignored`. With NIBBLE_PICTURES set to a folder,
//! pictures of every page in both themes are written there.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod webdriver;

use std::path::{Path, PathBuf};

use nibble_engine::preview;
use nibble_run::RunSettings;
use serde_json::{Value, json};

use webdriver::{Screen, Window};

fn app() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_nibble-studio"))
}

#[test]
#[ignore = "needs Xvfb, WebKitWebDriver and a built page"]
fn commands_answer_in_the_window_as_the_engine_does() {
    let home = tempfile::tempdir().unwrap();
    let screen = Screen::new(home.path());
    let window = screen.open(app());
    let startup = window.wait("the app", || window.invoke("startup", json!({})).ok());
    let model = startup["starter"]["path"].as_str().unwrap().to_owned();
    assert!(Path::new(startup["preferences"]["runs_folder"].as_str().unwrap()).is_absolute());

    for (sequence, rank) in [(256, 16), (128, 16), (256, 64)] {
        let mut settings = startup["defaults"].clone();
        settings["sequence"] = json!(sequence);
        settings["lora"]["rank"] = json!(rank);
        let request = json!({ "model": model, "settings": settings, "budget_bytes": 8_u64 << 30 });
        let shown = window.invoke("plan", json!({ "request": request })).unwrap();
        let settings: RunSettings = serde_json::from_value(settings).unwrap();
        let planned = preview::plan_report(&model, &settings, Some(8 << 30)).unwrap();
        assert_eq!(shown, serde_json::to_value(planned).unwrap());
    }

    let request = json!({ "model": model, "settings": startup["defaults"], "limit": 2 });
    let inspection = window.invoke("inspect", json!({ "request": request })).unwrap();
    assert_eq!(inspection["examples"], 300);

    // What the capability does not name is refused.
    let refused = window.invoke("plugin:dialog|open", json!({ "options": {} })).unwrap_err();
    assert!(refused.to_string().contains("not allowed"), "{refused}");
    let error = window.invoke("open_model", json!({ "path": "/nowhere" })).unwrap_err();
    assert_eq!(error["code"], "model_unreadable");

    let mut settings = startup["defaults"].clone();
    settings["steps"] = json!(6);
    let run = window.invoke("start_run", json!({ "settings": settings, "name": null })).unwrap();
    let state = |window: &Window<'_>| {
        let details = window.invoke("run_details", json!({ "run": run })).unwrap();
        details["summary"]["state"].clone()
    };
    window.wait("the end", || (state(&window) == "finished").then_some(()));
    let to: PathBuf = home.path().join("adapter");
    let request = json!({ "run": run, "step": Value::Null, "to": to, "format": "adapter" });
    let report = window.invoke("export_run", json!({ "request": request })).unwrap();
    assert_eq!(report["verified"], true);
    assert!(to.join("adapter_model.safetensors").is_file());
    window.picture("window");
}
