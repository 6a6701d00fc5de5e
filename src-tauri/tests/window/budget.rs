//! A run in less memory than it needs: chosen, seen and trained in the window.

use nibble_run::{Event, RunFolder, RunList, read_metrics};
use serde_json::{Value, json};

use crate::{
    app, drawn, id, is_state, nibble,
    webdriver::{KEY_END, KEY_HOME, Screen, Window},
};

/// Bytes that the panel shows for a method.
fn shown(window: &Window<'_>, method: &str) -> Option<u64> {
    let script = "return Number(document.querySelector(arguments[0])?.dataset.bytes);";
    window.run(script, &[json!(id(&format!("memory-{method}")))]).as_u64()
}

/// The plan of one method among those that the command line tells.
fn method(report: &Value, name: &str) -> Value {
    let methods = report["methods"].as_array().unwrap();
    methods.iter().find(|method| method["method"] == name).unwrap().clone()
}

/// Chooses one of many values.
fn choose(window: &Window<'_>, field: &str, value: &str) {
    window.click(&id(field));
    window.click(&id(&format!("{field}-{value}")));
}

#[test]
#[ignore = "needs Xvfb, WebKitWebDriver and a built page"]
fn what_decides_memory_behind_more_is_planned_as_the_command_line_does() {
    let home = tempfile::tempdir().unwrap();
    let screen = Screen::new(home.path());
    let window = screen.open(app());
    window.text(&id("page-new"), |text| text.contains("Nibble starter"));
    let startup = window.invoke("startup", json!({})).unwrap();
    let model = startup["starter"]["path"].as_str().unwrap();
    window.write(&id("prompt"), "");
    window.click(&id("method-full"));
    window.click(&id("more"));
    let shows = |changes: &[&str]| {
        let sizes = ["plan", "--model", model, "--batch", "4", "--seq", "256", "--rank", "16"];
        let bytes = method(&nibble(&[&sizes[..], changes].concat()), "full")["peak_bytes"].as_u64();
        let what = changes.join(" ");
        window.wait(&what, || (shown(&window, "full") == bytes).then_some(()));
        bytes
    };
    let in_f32 = shows(&[]);
    choose(&window, "optimizer", "adamw-8bit");
    let resident = shows(&["--optimizer", "adamw-8bit"]);
    choose(&window, "paged", "on");
    let paged = shows(&["--optimizer", "adamw-8bit", "--paged", "on"]);
    assert!(paged < resident && resident < in_f32);
    choose(&window, "paged", "off");
    assert_eq!(shows(&["--optimizer", "adamw-8bit", "--paged", "off"]), resident);
    choose(&window, "recompute", "on");
    let recomputed = ["--optimizer", "adamw-8bit", "--paged", "off", "--recompute", "on"];
    assert!(shows(&recomputed) < resident);
}

#[test]
#[ignore = "needs Xvfb, WebKitWebDriver and a built page"]
fn a_run_in_the_smallest_budget_is_planned_as_it_is_trained() {
    let home = tempfile::tempdir().unwrap();
    let screen = Screen::new(home.path());
    let window = screen.open(app());
    window.text(&id("page-new"), |text| text.contains("Nibble starter"));
    let startup = window.invoke("startup", json!({})).unwrap();
    let model = startup["starter"]["path"].as_str().unwrap();
    let plan = |more: &[&str]| {
        let sizes = ["plan", "--model", model, "--batch", "4", "--seq", "256", "--rank", "16"];
        nibble(&[&sizes[..], more].concat())
    };
    // The command line plans without samples.
    window.write(&id("prompt"), "");
    window.click(&id("method-full"));
    let free = method(&plan(&[]), "full");
    window
        .wait("the plan", || (shown(&window, "full") == free["peak_bytes"].as_u64()).then_some(()));

    // The least that any method could do with is too little for this one; one click finds its own.
    window.press(&id("budget-thumb"), KEY_HOME);
    window.click(&id("smallest-budget"));
    let least = free["smallest_bytes"].as_u64().unwrap();
    assert!(least < free["peak_bytes"].as_u64().unwrap());
    let budget = least.to_string();
    let planned = method(&plan(&["--budget", &budget]), "full");
    assert_eq!(planned["peak_bytes"].as_u64(), Some(least));
    window.wait("its plan", || (shown(&window, "full") == Some(least)).then_some(()));
    window.text(&id("paged-full-optimizer"), |_| true);
    window.text(&id("memory-full-outside"), |text| text.contains("disk"));
    window.text(&id("paging-words"), |text| text.contains("adds at most"));

    window.write(&id("steps"), "12");
    window.click(&id("train"));
    is_state(&window, "Finished");
    window.text(&id("paged-step"), |text| text.contains("iB"));
    window.text(&id("run-plan"), |text| text.contains("page file"));
    window.wait("the traffic", || (drawn(&window, "chart-traffic") > 100).then_some(()));

    let runs = startup["preferences"]["runs_folder"].as_str().unwrap();
    let run = RunList::default().list(runs.as_ref(), &[]).unwrap().remove(0);
    let folder = RunFolder::open(&run.path).unwrap();
    let events = read_metrics(&folder.metrics()).unwrap();
    let step_bytes = planned["paging"]["step_bytes"].as_u64().unwrap();
    let steps: Vec<u64> = events
        .iter()
        .filter_map(|event| match event {
            Event::Step { paged_bytes, .. } => Some(*paged_bytes),
            _ => None,
        })
        .collect();
    assert_eq!(steps, vec![step_bytes; 12]);
    let Some(Event::Done { allocated_peak_bytes, planned_page_file_bytes, .. }) = events.last()
    else {
        panic!("the run is not done: {:?}", events.last());
    };
    assert_eq!(*allocated_peak_bytes, least);
    assert_eq!(Some(*planned_page_file_bytes), planned["page_file_bytes"].as_u64());

    // Back to all that is free.
    window.click(&id("nav-new"));
    window.press(&id("budget-thumb"), KEY_END);
    window.text(&id("budget-value"), |text| text.contains("all that is free"));
    window
        .wait("the plan", || (shown(&window, "full") == free["peak_bytes"].as_u64()).then_some(()));
}
