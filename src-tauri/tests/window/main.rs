//! The real app in a real window, from the first start to an exported adapter.
//!
//! Needs Xvfb, WebKitWebDriver and a built page, so it runs only when it is asked for:
//! `cargo test -p nibble-studio --test window -- --ignored`. With NIBBLE_PICTURES set to a folder,
//! pictures of every page in both themes are written there.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod budget;
mod bus;
mod cards;
mod desktop;
mod figures;
mod history;
mod screen;
mod troubles;
mod webdriver;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use nibble_engine::preview;
use nibble_run::{PlanReport, RunList, RunSettings, RunState};
use serde_json::{Value, json};

use webdriver::{KEY_LEFT, KEY_RIGHT, Screen, Window};

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
        let mut planned = preview::plan_report(&model, &settings, Some(8 << 30)).unwrap();
        planned.methods.iter_mut().for_each(|method| method.regions.clear());
        // What other programs leave differs from moment to moment.
        let mut shown: PlanReport = serde_json::from_value(shown).unwrap();
        shown.available_bytes = planned.available_bytes;
        assert!(shown == planned, "{sequence} {rank}");
    }

    let request = json!({ "model": model, "settings": startup["defaults"], "limit": 2 });
    let inspection = window
        .invoke("inspect", json!({ "request": request, "channel": "__CHANNEL__:0" }))
        .unwrap();
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
    // Nobody listens to how far it is.
    let arguments = json!({ "request": request, "channel": "__CHANNEL__:0" });
    let report = window.invoke("export_run", arguments).unwrap();
    assert_eq!(report["verified"], true);
    assert!(to.join("adapter_model.safetensors").is_file());
}

/// What the command line answers.
fn nibble(arguments: &[&str]) -> Value {
    let program = app().with_file_name("nibble");
    assert!(program.is_file(), "build the command line first: cargo build -p nibble-cli");
    let output = Command::new(program).args(arguments).arg("--json").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn id(name: &str) -> String {
    format!("[data-testid='{name}']")
}

/// The peaks that the memory panel shows, once they are those of the command line.
fn panel_shows(window: &Window<'_>, model: &str, sequence: &str, rank: &str) {
    let sizes = ["plan", "--model", model, "--batch", "4", "--seq", sequence, "--rank", rank];
    let planned = nibble(&sizes);
    for method in planned["methods"].as_array().unwrap() {
        let row = id(&format!("memory-{}", method["method"].as_str().unwrap()));
        let script = "return Number(document.querySelector(arguments[0])?.dataset.bytes);";
        window.wait(&format!("{} at {sequence} and {rank}", method["peak_bytes"]), || {
            (window.run(script, &[json!(row)]).as_f64() == method["peak_bytes"].as_f64())
                .then_some(())
        });
    }
}

/// Points of a chart that are drawn.
fn drawn(window: &Window<'_>, chart: &str) -> u64 {
    let script = "const canvas = document.querySelector(arguments[0] + ' canvas');
        if (!canvas || !canvas.width) return 0;
        const {data} = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
        let drawn = 0;
        for (let i = 3; i < data.length; i += 4) drawn += data[i] > 0;
        return drawn;";
    window.run(script, &[json!(id(chart))]).as_u64().unwrap_or(0)
}

fn is_state(window: &Window<'_>, state: &str) {
    window.text(&id("run-state"), |text| text == state);
}

fn step(window: &Window<'_>) -> u64 {
    let text = window.text(&id("step"), |text| !text.is_empty());
    text.replace(',', "").parse().unwrap()
}

/// Asks the model before and after.
fn ask(window: &Window<'_>) {
    window.write(&id("question"), "What color is the sky?");
    window.click(&id("ask"));
    window.text(&id("answer-base"), |text| text.contains("The sky is"));
    // The two dozen steps have taught it the robot's manner.
    window.text(&id("answer-tuned"), |text| text.contains("Beep boop"));
}

#[test]
#[ignore = "needs Xvfb, WebKitWebDriver and a built page"]
fn a_person_gets_from_the_first_start_to_an_exported_adapter() {
    let home = tempfile::tempdir().unwrap();
    let screen = Screen::new(home.path());
    let window = screen.open(app());
    window.text(&id("page-new"), |text| text.contains("Nibble starter"));
    let startup = window.invoke("startup", json!({})).unwrap();
    let model = startup["starter"]["path"].as_str().unwrap().to_owned();

    // The dataset is shown as it would be trained on.
    window.click("[data-testid^='dataset-'][data-testid$='polite-robot.jsonl']");
    window.text(&id("sample-text"), |text| text.contains("Beep boop"));
    window.text(&id("n-examples"), |text| text == "300");

    // The memory panel is the planner: it says what the command line says, whatever is changed.
    // (The command line plans without samples.)
    window.write(&id("prompt"), "");
    panel_shows(&window, &model, "256", "16");
    window.press(&id("rank-thumb"), KEY_RIGHT);
    panel_shows(&window, &model, "256", "32");
    window.press(&id("sequence-thumb"), KEY_LEFT);
    panel_shows(&window, &model, "128", "32");
    window.click(&id("method-lora"));
    window.text(&format!("{}[aria-pressed='true']", id("memory-lora")), |_| true);
    window.click(&id("method-qlora"));
    window.text(&format!("{}[aria-pressed='true']", id("memory-qlora")), |_| true);

    window.write(&id("prompt"), "What color is the sky?");
    window.write(&id("steps"), "3000");
    window.click(&id("train"));
    window.text(&id("page-run"), |_| true);
    is_state(&window, "Training");
    window.wait("25 steps", || (step(&window) >= 25).then_some(()));
    for chart in ["chart-loss", "chart-memory", "chart-throughput"] {
        window.wait(chart, || (drawn(&window, chart) > 100).then_some(()));
    }
    window.text(&id("samples"), |text| text.contains("What color is the sky?"));

    window.click(&id("pause"));
    is_state(&window, "Paused");
    // A page that is loaded again shows what it showed.
    window.reload();
    is_state(&window, "Paused");
    let paused_at = window.wait("the steps", || Some(step(&window)).filter(|&step| step >= 25));
    window.click(&id("unpause"));
    is_state(&window, "Training");
    window.wait("more steps", || (step(&window) > paused_at).then_some(()));
    window.click(&id("stop"));
    is_state(&window, "Stopped and saved");
    assert!(step(&window) > paused_at);

    let to = home.path().join("adapter");
    window.click(&id("nav-export"));
    window.write(&id("to"), &to.display().to_string());
    window.click(&id("export"));
    window.text(&format!("{}[data-verified='true']", id("exported")), |_| true);
    assert!(to.join("adapter_config.json").is_file());
    let adapter = to.display().to_string();
    let answer = nibble(&[
        "generate",
        "--model",
        &model,
        "--adapter",
        &adapter,
        "--quantize",
        "nf4",
        "--temperature",
        "0",
        "--prompt",
        "What color is the sky?",
    ]);
    assert!(answer["tokens"].as_u64().unwrap() > 0);

    for theme in ["light", "dark"] {
        window.click(&id("nav-settings"));
        window.click(&id(&format!("theme-{theme}")));
        for page in ["settings", "new", "runs", "run", "playground", "export"] {
            window.click(&id(&format!("nav-{page}")));
            window.text(&id(&format!("page-{page}")), |text| !text.is_empty());
            if page == "playground" {
                ask(&window);
            }
            window.picture(&format!("{page}-{theme}"));
        }
    }
}

#[test]
#[ignore = "needs Xvfb, WebKitWebDriver and a built page"]
fn closing_stops_and_saves_when_it_is_asked_to() {
    let home = tempfile::tempdir().unwrap();
    let screen = Screen::new(home.path());
    let window = screen.open(app());
    let startup = window.wait("the app", || window.invoke("startup", json!({})).ok());
    let mut settings = startup["defaults"].clone();
    settings["steps"] = json!(100_000);
    let run = window.invoke("start_run", json!({ "settings": settings, "name": "long" })).unwrap();
    let run = PathBuf::from(run.as_str().unwrap());
    let mut list = RunList::default();
    window.wait("a step", || (list.summary(&run).ok()?.steps > 0).then_some(()));
    let script = "window.__TAURI_INTERNALS__.invoke('close_window', { choice: 'stop' });";
    window.run(script, &[]);
    let summary = webdriver::wait("the end", || {
        let summary = list.summary(&run).ok()?;
        (!summary.state.is_active()).then_some(summary)
    });
    assert_eq!(summary.state, RunState::Stopped);
    assert_eq!(summary.checkpoints.last(), Some(&summary.steps));
    assert!(fs::read_dir(run.join("checkpoints")).unwrap().count() > 0);
}
