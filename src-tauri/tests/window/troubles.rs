//! What goes wrong is said where it happened, the app stays up, and nothing that was saved is lost.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use nibble_run::{RunFolder, RunList, RunState};
use serde_json::{Value, json};

use crate::{
    app, id, is_state,
    screen::Desktop,
    step,
    webdriver::{self, Screen, Window},
};

/// Waits for the error `code` in the part of the page that `place` selects.
fn told(window: &Window<'_>, place: &str, code: &str) -> String {
    let note = format!("{place} [data-testid='error'][data-code='{code}']");
    window.text(&note, |text| !text.is_empty())
}

fn section(title: &str) -> String {
    format!("section[aria-labelledby='{title}']")
}

/// Waits until no error is told any more.
fn all_is_well(window: &Window<'_>) {
    let script = "return document.querySelectorAll(\"[data-testid='error']\").length;";
    window.wait("the errors to go", || (window.run(script, &[]) == 0).then_some(()));
}

#[test]
#[ignore = "needs Xvfb, WebKitWebDriver and a built page"]
fn what_people_bring_is_answered_where_they_brought_it() {
    let home = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = home.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let screen = Screen::new(home.path());
    let window = screen.open(app());
    window.text(&id("sample-text"), |text| !text.is_empty());

    // A folder that is no model.
    let photo = file("holidays/beach.jpg", "");
    let holidays = Path::new(&photo).parent().unwrap().display().to_string();
    window.write(&id("model-folder"), &holidays);
    let said = told(&window, &section("model-title"), "model_unreadable");
    assert!(said.contains(&holidays), "{said}");

    // A dataset of a kind that nobody knows.
    let startup = window.invoke("startup", json!({})).unwrap();
    let starter = startup["starter"]["path"].as_str().unwrap();
    window.write(&id("model-folder"), starter);
    all_is_well(&window);
    window.click(&id("dataset-own"));
    window.write(&id("data-file"), &file("data.jsonl", "{\"foo\": 1}\n{\"foo\": 2}\n"));
    told(&window, &section("data-title"), "columns_unknown");
    let off = format!("{}[disabled]", id("train"));
    window.text(&off, |_| true);
    window.click("[data-testid^='dataset-'][data-testid$='pirate.jsonl']");
    all_is_well(&window);

    // A folder that cannot be written: below a file, which every system refuses to every user.
    let runs = PathBuf::from(file("occupied", "")).join("runs").display().to_string();
    let before = startup["preferences"]["runs_folder"].as_str().unwrap().to_owned();
    window.click(&id("nav-settings"));
    window.write(&id("runs-folder"), &runs);
    window.click(&id("nav-new"));
    window.click(&id("train"));
    told(&window, "aside", "run_unwritable");
    window.click(&id("nav-settings"));
    window.write(&id("runs-folder"), &before);

    // A run of a newer Nibble.
    let newer = file("newer/run.toml", "format = 99\n");
    let newer = Path::new(&newer).parent().unwrap().display().to_string();
    window.click(&id("nav-runs"));
    window.write(&id("open-run"), &newer);
    let said = told(&window, &id("page-runs"), "run_newer");
    assert!(said.contains("pdate Nibble"), "{said}");

    // After all that, the app does what it is for.
    window.click(&id("nav-new"));
    window.write(&id("steps"), "4");
    window.click(&id("train"));
    is_state(&window, "Finished");

    // An export goes over nothing that is somebody's, and says where it cannot write.
    window.click(&id("nav-export"));
    let export = |to: &str| {
        window.write(&id("to"), to);
        window.click(&id("export"));
    };
    export(&holidays);
    let said = told(&window, &id("page-export"), "folder_not_empty");
    assert!(said.contains(&holidays), "{said}");
    assert!(Path::new(&photo).is_file());
    let below_a_file = home.path().join("occupied").join("adapter").display().to_string();
    export(&below_a_file);
    told(&window, &id("page-export"), "export_unwritable");
    let good = home.path().join("good");
    export(&good.display().to_string());
    window.text(&format!("{}[data-verified='true']", id("exported")), |_| true);
    assert!(good.join("adapter_model.safetensors").is_file());
}

#[test]
#[ignore = "needs Xvfb, WebKitWebDriver and a built page"]
fn a_disk_that_fills_ends_the_run_and_nothing_else() {
    const N_STEPS: u64 = 25;
    let home = tempfile::tempdir().unwrap();
    let screen = Screen::new(home.path());
    let run = {
        let window = screen.open(app());
        let run = start_run(&window, N_STEPS);
        window.invoke("control_run", json!({ "run": run, "command": "stop" })).unwrap();
        window.wait("the end", || (state_of(&run) == RunState::Stopped).then_some(()));
        run
    };
    let checkpoints = RunFolder::open(&run).unwrap().checkpoints().unwrap();
    let saved = checkpoints.last().unwrap().path.join("optimizer.safetensors");
    let before = fs::read(&saved).unwrap();
    // A limit on the size of files stands in for a full disk: the system refuses to write more.
    let limited = home.path().join("limited");
    let script =
        format!("#!/bin/sh\ntrap '' XFSZ\nulimit -f 1024\nexec {} \"$@\"\n", app().display());
    fs::write(&limited, script).unwrap();
    fs::set_permissions(&limited, fs::Permissions::from_mode(0o755)).unwrap();
    {
        let window = screen.open(&limited);
        window.click(&id("nav-runs"));
        window.click(&format!("{} .link", id("runs")));
        window.click(&id("resume"));
        is_state(&window, "Failed");
        let said = told(&window, &id("page-run"), "checkpoint_unwritable");
        assert!(said.contains("space"), "{said}");
        // The app is still there, and so is everything that it says.
        window.click(&id("nav-new"));
        window.text(&id("sample-text"), |text| !text.is_empty());
    }
    assert_eq!(fs::read(&saved).unwrap(), before);
    let window = screen.open(app());
    window.click(&id("nav-runs"));
    window.click(&format!("{} .link", id("runs")));
    window.click(&id("resume"));
    is_state(&window, "Finished");
    assert_eq!(step(&window), N_STEPS);
}

/// Starts a run that lasts.
fn start_long(window: &Window<'_>) -> PathBuf {
    start_run(window, 100_000)
}

/// Starts a run, and waits for its first step.
pub fn start_run(window: &Window<'_>, n_steps: u64) -> PathBuf {
    start_run_with(window, &[("steps", json!(n_steps))])
}

/// The same with these settings beside those of a first run.
pub fn start_run_with(window: &Window<'_>, changes: &[(&str, Value)]) -> PathBuf {
    let startup = window.wait("the app", || window.invoke("startup", json!({})).ok());
    let mut settings = startup["defaults"].clone();
    for (name, value) in changes {
        settings[*name] = value.clone();
    }
    let run = window.invoke("start_run", json!({ "settings": settings, "name": "long" })).unwrap();
    let run = PathBuf::from(run.as_str().unwrap());
    let mut list = RunList::default();
    window.wait("a step", || (list.summary(&run).ok()?.steps > 0).then_some(()));
    run
}

pub fn state_of(run: &Path) -> RunState {
    RunList::default().summary(run).unwrap().state
}

/// Answers the question that closing the window asks. The click comes after the script has returned:
/// an answer may take the page away, and with it what the driver is waiting for.
pub fn answer(window: &Window<'_>, answer: &str) {
    let script = "const button = [...document.querySelectorAll('[role=dialog] button')]
        .find((button) => button.textContent.trim() === arguments[0]);
        if (button) setTimeout(() => button.click());
        return Boolean(button);";
    assert_eq!(window.run(script, &[json!(answer)]), true, "no such answer: {answer}");
}

#[test]
#[ignore = "needs Xvfb, WebKitWebDriver and a built page"]
fn closing_the_window_asks_and_does_what_is_answered() {
    let home = tempfile::tempdir().unwrap();
    let screen = Screen::new(home.path());
    let desktop = Desktop::new(screen.display());
    let window = screen.open(app());
    let run = start_long(&window);
    let own = webdriver::wait("the window", || desktop.find(|title| title == "Nibble"));
    let question = "[role='dialog']";
    let is_asked = || {
        let script = "return document.querySelectorAll(arguments[0]).length;";
        window.run(script, &[json!(question)]) == 1
    };

    desktop.close(own);
    window.text(question, |text| text.contains("still training"));
    // Asked twice, it asks once.
    desktop.close(own);
    assert!(is_asked());
    answer(&window, "Cancel");
    window.wait("the question to go", || (!is_asked()).then_some(()));
    assert_eq!(state_of(&run), RunState::Training);

    desktop.close(own);
    window.text(question, |_| true);
    answer(&window, "Stop and save");
    webdriver::wait("the end", || (state_of(&run) == RunState::Stopped).then_some(()));
    webdriver::wait("the window to go", || {
        desktop.find(|title| title == "Nibble").is_none().then_some(())
    });
}

#[test]
#[ignore = "needs Xvfb, WebKitWebDriver, OpenGL and a built page"]
fn the_monitor_stays_when_the_window_goes() {
    let home = tempfile::tempdir().unwrap();
    let screen = Screen::new(home.path());
    let desktop = Desktop::new(screen.display());
    let window = screen.open(app());
    window.write(&id("steps"), "100000");
    window.click(&id("train"));
    is_state(&window, "Training");
    window.click(&id("pop-out"));
    let title = |title: &str| title.ends_with("· Nibble");
    let monitor = webdriver::wait("the monitor", || desktop.find(title));
    window.click(&id("stop"));
    is_state(&window, "Stopped and saved");
    drop(window);
    webdriver::wait("the window to go", || {
        desktop.find(|title| title == "Nibble").is_none().then_some(())
    });
    // It has followed the run to its end.
    webdriver::wait("its word for it", || {
        desktop.find(|title| title.starts_with("Stopped") && title.ends_with("· Nibble"))
    });
    desktop.close(monitor);
    webdriver::wait("the monitor to go", || desktop.find(title).is_none().then_some(()));
}

#[test]
#[ignore = "needs Xvfb, WebKitWebDriver and a built page"]
fn runs_of_the_command_line_are_shown_while_they_train() {
    let home = tempfile::tempdir().unwrap();
    let screen = Screen::new(home.path());
    let window = screen.open(app());
    let startup = window.wait("the app", || window.invoke("startup", json!({})).ok());
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let out = home.path().join("elsewhere");
    let mut train = Command::new(app().with_file_name("nibble"))
        .args(["train", "--json", "--steps", "100000", "--seq", "64", "--model"])
        .arg(text(&startup["starter"]["path"]))
        .arg("--data")
        .arg(text(&startup["datasets"][0]["path"]))
        .arg("--out")
        .arg(&out)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    webdriver::wait("its folder", || out.join("metrics.jsonl").is_file().then_some(()));
    window.click(&id("nav-runs"));
    window.write(&id("open-run"), &out.display().to_string());
    is_state(&window, "Training");
    let seen = window.wait("a step", || Some(step(&window)).filter(|&step| step > 0));
    window.wait("more steps", || (step(&window) > seen).then_some(()));
    // It is stopped where it was started, and says so here.
    window.click(&id("pause"));
    let said = told(&window, &id("page-run"), "run_not_active");
    assert!(said.contains("where it was started"), "{said}");
    let interrupt = Command::new("kill").args(["-INT", &train.id().to_string()]).status();
    assert!(interrupt.unwrap().success());
    train.wait().unwrap();
    is_state(&window, "Stopped and saved");
}
