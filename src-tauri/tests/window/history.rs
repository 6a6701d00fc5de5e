//! Runs that were: laid over each other, repeated, asked at any checkpoint, thrown away.

use std::{fs, thread, time::Duration};

use nibble_run::{RunFolder, RunState};
use serde_json::{Value, json};

use crate::{
    app, drawn, id, is_state, step,
    troubles::{answer, start_run_with, state_of},
    webdriver::{Screen, Window},
};

/// Clicks the button with that text, or that label, in a row of the runs.
fn press(window: &Window<'_>, run: &str, button: &str) {
    let script = "const [run, name] = arguments;
        const row = [...document.querySelectorAll('[data-testid=runs] tbody tr')]
            .find((row) => row.textContent.includes(run));
        const button = [...(row?.querySelectorAll('button, input') ?? [])]
            .find((button) => button.textContent.trim() === name || button.type === name);
        button?.click();
        return Boolean(button);";
    window
        .wait(button, || (window.run(script, &[json!(run), json!(button)]) == true).then_some(()));
}

#[test]
#[ignore = "needs Xvfb, WebKitWebDriver and a built page"]
fn runs_are_laid_over_each_other_repeated_and_thrown_away() {
    let home = tempfile::tempdir().unwrap();
    let screen = Screen::new(home.path());
    let window = screen.open(app());
    for name in ["first", "second"] {
        window.click(&id("nav-new"));
        window.write(&id("steps"), "6");
        window.click(&id("more"));
        window.write(&id("name"), name);
        window.click(&id("more"));
        window.click(&id("train"));
        window.text(&id("run-name"), |text| text.contains(name));
        is_state(&window, "Finished");
    }
    window.click(&id("nav-runs"));
    for name in ["first", "second"] {
        press(&window, name, "checkbox");
    }
    window.wait("both curves", || (drawn(&window, "overlay") > 100).then_some(()));

    // Repeated with a change, everything else is as it was.
    press(&window, "first", "Repeat");
    window.text(&id("page-new"), |_| true);
    let value = |name: &str| {
        window.run("return document.querySelector(arguments[0]).value;", &[json!(id(name))])
    };
    window.wait("its settings", || (value("steps") == "6").then_some(()));
    window.write(&id("steps"), "8");
    window.click(&id("train"));
    is_state(&window, "Finished");
    assert_eq!(step(&window), 8);

    // To the trash, after a question.
    let startup = window.invoke("startup", json!({})).unwrap();
    let runs = startup["preferences"]["runs_folder"].as_str().unwrap().to_owned();
    let doomed = fs::read_dir(&runs)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.to_string_lossy().ends_with("second"))
        .unwrap();
    window.click(&id("nav-runs"));
    press(&window, "second", "Delete");
    window.text("[role='dialog']", |text| text.contains("trash"));
    answer(&window, "Cancel");
    assert!(doomed.is_dir());
    press(&window, "second", "Delete");
    window.text("[role='dialog']", |text| text.contains("trash"));
    answer(&window, "Move to the trash");
    window.wait("it to go", || (!doomed.exists()).then_some(()));
    let trash = home.path().join("xdg_data_home").join("Trash").join("files");
    let kept = trash.join(doomed.file_name().unwrap());
    assert!(RunFolder::open(&kept).is_ok(), "{} is no run", kept.display());
}

#[test]
#[ignore = "needs Xvfb, WebKitWebDriver and a built page"]
fn any_checkpoint_answers_while_the_run_trains() {
    let home = tempfile::tempdir().unwrap();
    let screen = Screen::new(home.path());
    let window = screen.open(app());
    // None of its checkpoints makes room for another while it is asked.
    let changes = [("steps", json!(100_000)), ("keep_checkpoints", json!(0))];
    let run = start_run_with(&window, &changes);
    let folder = RunFolder::open(&run).unwrap();
    window.wait("two checkpoints", || (folder.checkpoints().ok()?.len() >= 2).then_some(()));
    window.click(&id("nav-playground"));
    window.write(&id("question"), "What color is the sky?");
    let asked = |window: &Window<'_>| {
        window.click(&id("ask"));
        window.text(&id("answer-tuned"), |text| !text.trim().is_empty());
        window.text(&id("ask"), |_| true);
    };
    asked(&window);
    let checkpoint = folder.checkpoints().unwrap()[0].step;
    window.click(&id("checkpoint"));
    window.click(&id(&format!("checkpoint-{checkpoint}")));
    asked(&window);
    // It trained on all the while, and does still.
    assert_eq!(state_of(&run), RunState::Training);
    let details = || window.invoke("run_details", json!({ "run": run })).unwrap();
    let steps = |details: Value| details["summary"]["steps"].as_u64().unwrap();
    let before = steps(details());
    thread::sleep(Duration::from_secs(1));
    window.wait("more steps", || (steps(details()) > before).then_some(()));
}
