//! What the window shows and says, through the eyes of a screen reader.

mod common;

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use common::{MIB, Window, eval, events, facts, ready, step};
use eframe::egui::{self, Key, Theme, ThemePreference, ViewportCommand, ViewportId, WindowLevel};
use egui_kittest::{
    Harness,
    kittest::{NodeT, Queryable},
};
use nibble_monitor::{
    app::{Choices, Monitor},
    charts::View,
    history::Facts,
    reader::{self, Message, Trouble},
};
use nibble_run::{Event, PagingPlan, Residence, RunFolder, RunSettings, RunState};

const SIZE: [f32; 2] = [960.0, 760.0];

/// Everything that is labelled, or a label.
fn said(harness: &Harness<'_, Monitor>) -> Vec<String> {
    let all = harness.query_all(egui_kittest::kittest::by());
    all.flat_map(|node| {
        let node = node.accesskit_node();
        [node.label(), node.value()].into_iter().flatten().collect::<Vec<_>>()
    })
    .collect()
}

fn assert_said(harness: &Harness<'_, Monitor>, text: &str) {
    let said = said(harness);
    assert!(said.iter().any(|line| line.contains(text)), "`{text}` is not among {said:#?}");
}

fn open(size: [f32; 2], theme: Theme) -> Window {
    Window::open(Harness::builder().with_size(size), theme)
}

fn trained(n: u64) -> Window {
    let mut window = open(SIZE, Theme::Light);
    window.facts().news(events(n), RunState::Training);
    window
}

#[test]
fn everything_that_is_shown_is_said() {
    let window = trained(200);
    for text in [
        "pirate with qlora",
        "Training",
        "starter  ·  2.9 M parameters  ·  QLoRA  ·  rank 16  ·  pirate.jsonl",
        "Step: 200 / 400",
        "Epoch: 1.50 / 3",
        "Time left: 23 s",
        "Loss, smoothed: 1.",
        "Held-out loss: 1.5209",
        "Tokens a second: 4,4",
        "Host memory: 47.9 MiB",
        "Steps done, in percent",
        "Memory plan: 32.0 MiB in all; weights 10.0 MiB, adapters 2.00 MiB",
        "Loss at step 200: each step 1.",
        "held-out 1.5209",
        "Memory at step 200: host 47.9 MiB, device 32.0 MiB, planned 32.0 MiB",
        "Tokens a second at step 200: each step 4,",
        "Learning rate at step 200: 1.07e−4",
        "Gradient norm at step 200: each step 0.8192, smoothed ",
    ] {
        assert_said(&window.harness, text);
    }
}

/// The same run in so little memory that states and weights visit it from a file.
fn paged_facts() -> Facts {
    let mut facts = facts();
    let plan = &mut facts.plan.as_mut().expect("a plan").methods[0];
    plan.categories.weights = 4 * MIB;
    plan.categories.optimizer = MIB;
    plan.peak_bytes = plan.categories.total();
    plan.page_file_bytes = 3 * MIB;
    plan.paging = Some(PagingPlan {
        resident: Residence::Disk,
        optimizer_bytes: 3 * MIB,
        weights_bytes: 8 * MIB,
        activations_bytes: 0,
        step_bytes: 22 * MIB,
        step_seconds: Some(0.02),
    });
    facts
}

/// A step of that run.
fn paged_step(number: u64) -> Event {
    let mut event = step(number);
    if let Event::Step { paged_bytes, tokens, tokens_per_s, .. } = &mut event {
        *paged_bytes = 22 * MIB;
        *tokens_per_s = 2.0 * *tokens as f64;
    }
    event
}

#[test]
fn what_is_paged_is_shown_with_its_place_and_its_traffic() {
    let mut window = open(SIZE, Theme::Dark);
    window.tell(Message::Facts(Box::new(paged_facts())));
    assert_said(&window.harness, "Page traffic: –");
    let events = std::iter::once(ready(400)).chain((1..=30).map(paged_step)).collect();
    window.news(events, RunState::Training);
    for text in [
        // Two steps a second.
        "Page traffic: 44.0 MiB/s",
        "paged weights 8.00 MiB, paged optimizer 3.00 MiB",
        "page file 3.00 MiB",
        "each step moves 22.0 MiB",
        "planned 23.0 MiB",
    ] {
        assert_said(&window.harness, text);
    }
    // A run that keeps everything on the device has nothing to say of it.
    assert!(!said(&trained(30).harness).iter().any(|line| line.contains("Page traffic")));
}

#[test]
fn every_state_has_a_name_and_a_way_on() {
    let mut window = trained(10);
    for (state, text) in [
        (RunState::Loading, "Loading"),
        (RunState::Paused, "Paused"),
        (RunState::Saving, "Saving"),
        (RunState::Stopped, "Stopped"),
        (RunState::Finished, "Finished"),
        (RunState::Interrupted, "It goes on from its last checkpoint with `nibble resume`."),
    ] {
        window.news(Vec::new(), state);
        assert_said(&window.harness, text);
    }
    let failed = Event::Failed {
        code: "diverged".into(),
        message: "the loss is no number".into(),
        hint: "lower the learning rate".into(),
    };
    let warning = Event::Warning { message: "3 examples were cut".into() };
    window.news(vec![failed, warning], RunState::Failed);
    for text in ["The loss is no number.", "Lower the learning rate.", "3 examples were cut."] {
        assert_said(&window.harness, text);
    }
}

#[test]
fn nothing_is_known_before_the_first_step() {
    let mut window = open(SIZE, Theme::Dark);
    window.harness.run();
    assert_said(&window.harness, "Opening the run…");
    window.facts();
    for text in ["Step: 0", "Epoch: –", "Time left: –", "Loss: no step yet"] {
        assert_said(&window.harness, text);
    }
    window.news(vec![ready(400)], RunState::Training);
    assert_said(&window.harness, "Step: 0 / 400");
}

#[test]
fn the_theme_can_be_chosen() {
    let mut window = trained(10);
    for (label, theme) in
        [("Dark theme", Theme::Dark), ("Light theme", Theme::Light), ("Dark theme", Theme::Dark)]
    {
        window.harness.get_by_label(label).click();
        window.harness.run();
        assert_eq!(window.harness.ctx.theme(), theme);
    }
    window.harness.get_by_label("Theme of the system").click();
    window.harness.run();
    let preference = window.harness.ctx.options(|options| options.theme_preference);
    assert_eq!(preference, ThemePreference::System);
}

#[test]
fn the_window_stays_on_top_if_wished() {
    let mut window = trained(10);
    for level in [WindowLevel::AlwaysOnTop, WindowLevel::Normal] {
        window.harness.get_by_label("Stay on top").click();
        let mut seen = Vec::new();
        for _ in 0..4 {
            window.harness.step();
            let output = &window.harness.output().viewport_output[&ViewportId::ROOT];
            seen.extend(output.commands.iter().cloned());
        }
        assert!(seen.contains(&ViewportCommand::WindowLevel(level)), "{seen:?}");
    }
}

#[test]
fn the_last_steps_can_be_looked_at_alone() {
    let mut window = trained(400);
    let all = window.harness.state().n_points();
    window.harness.get_by_label("Show the last 100 steps").click();
    window.harness.run();
    let last = window.harness.state().n_points();
    assert!(last < all / 2, "{last} of {all} points");
}

#[test]
fn charts_are_zoomed_and_moved_together() {
    let mut window = trained(400);
    let place = window.harness.get_by_label_contains("Loss at step 400").rect();
    window.harness.hover_at(place.center());
    window.harness.run();
    assert_said(&window.harness, "Loss at step 200");
    window.harness.event(egui::Event::Zoom(4.0));
    window.harness.run();
    // The pointer stays where it was; the edges come nearer, in every chart.
    let View::Between(low, high) = window.harness.state().view() else { panic!("not zoomed") };
    assert!((high - low - 399.0 / 4.0).abs() < 1.0, "{low} to {high}");
    assert_said(&window.harness, "Memory at step 200");
    window.harness.drag_at(place.center());
    window.harness.run();
    let quarter = egui::vec2(place.width() / 4.0, 0.0);
    window.harness.hover_at(place.center() - quarter);
    window.harness.run();
    window.harness.drop_at(place.center() - quarter);
    window.harness.run();
    let View::Between(moved, _) = window.harness.state().view() else { panic!("not zoomed") };
    assert!((moved - low - 100.0 / 4.0).abs() < 2.0, "from {low} to {moved}");
    window.harness.get_by_label("Show all steps").click();
    window.harness.run();
    assert_eq!(window.harness.state().view(), View::All);
}

#[test]
fn the_keyboard_reaches_everything() {
    let mut window = trained(200);
    let mut reached: Vec<String> = Vec::new();
    for _ in 0..16 {
        window.harness.key_press(Key::Tab);
        window.harness.run();
        let focused = window
            .harness
            .query_all(egui_kittest::kittest::by())
            .find(|node| node.accesskit_node().is_focused());
        reached.extend(focused.and_then(|node| node.accesskit_node().label()));
    }
    for text in ["Show all steps", "Light theme", "Stay on top", "Loss at", "Gradient norm at"] {
        assert!(reached.iter().any(|label| label.starts_with(text)), "{text}: {reached:#?}");
    }
}

#[test]
fn the_arrow_keys_read_a_chart() {
    let mut window = trained(200);
    window.harness.get_by_label_contains("Loss at step 200").focus();
    window.harness.run();
    window.harness.key_press(Key::ArrowLeft);
    window.harness.run();
    assert_said(&window.harness, "Loss at step 199");
    assert_said(&window.harness, "Gradient norm at step 199");
    window.harness.key_press(Key::Home);
    window.harness.run();
    assert_said(&window.harness, "Memory at step 1: ");
    window.harness.key_press(Key::End);
    window.harness.run();
    assert_said(&window.harness, "Loss at step 200");
}

#[test]
fn a_hundred_thousand_steps_are_drawn_in_as_many_points_as_the_screen_has_columns() {
    let mut window = open(SIZE, Theme::Dark);
    let events: Vec<_> = std::iter::once(ready(100_000)).chain((1..=100_000).map(step)).collect();
    window.facts().news(events, RunState::Training);
    assert_eq!(window.harness.state().n_steps(), 100_000);
    // Ten lines, none with more than two points a column of the whole window.
    let n_points = window.harness.state().n_points();
    assert!((1000..10 * (2 * SIZE[0] as usize + 2)).contains(&n_points), "{n_points} points");
    // One step more does not change that.
    window.news(vec![step(100_001)], RunState::Training);
    assert!(window.harness.state().n_points() < 10 * (2 * SIZE[0] as usize + 2));
    assert_said(&window.harness, "Step: 100,001 / 100,000");
}

#[test]
fn a_window_without_news_rests() {
    let mut window = trained(100);
    window.harness.run();
    let output = &window.harness.output().viewport_output[&ViewportId::ROOT];
    assert_eq!(output.repaint_delay, Duration::MAX);
}

#[test]
fn every_size_of_window_holds_every_chart() {
    for size in [[420.0, 320.0], [600.0, 900.0], [960.0, 760.0], [2560.0, 1440.0]] {
        let mut window = open(size, Theme::Light);
        window.facts().news(events(120), RunState::Training);
        for chart in
            ["Loss at", "Memory at", "Tokens a second at", "Learning rate at", "Gradient norm at"]
        {
            assert_said(&window.harness, chart);
        }
    }
}

#[test]
fn numbers_without_sense_are_survived() {
    let mut window = open(SIZE, Theme::Light);
    let bad = |number: u64, value: f64, bytes: u64| Event::Step {
        step: number,
        loss: value,
        lr: -value,
        grad_norm: value,
        tokens: bytes,
        tokens_per_s: value,
        host_bytes: bytes,
        device_bytes: 0,
        paged_bytes: 0,
        card: None,
    };
    window.facts();
    window.news(vec![ready(0), bad(0, 0.0, 0)], RunState::Training);
    window.news(vec![bad(1, f64::MAX, u64::MAX), eval(0), eval(0)], RunState::Training);
    window.news(vec![bad(2, f64::MIN, 1), bad(u64::MAX, 1e-300, 0)], RunState::Saving);
    window.news(vec![ready(u64::MAX), step(3)], RunState::Training);
    assert_eq!(window.harness.state().n_steps(), 4);
    // A run whose plan is damaged still has its charts.
    let mut facts = facts();
    facts.plan = Err("plan.json cannot be read".into());
    window.tell(Message::Facts(Box::new(facts)));
    assert_said(&window.harness, "No memory plan: plan.json cannot be read");
}

#[test]
fn trouble_is_shown_and_goes_away() {
    let mut window = open(SIZE, Theme::Light);
    let trouble =
        Trouble { message: "run.toml is of a newer Nibble".into(), hint: "update Nibble".into() };
    window.tell(Message::Trouble(trouble));
    assert_said(&window.harness, "Update Nibble.");
    window.facts().tell(Message::Mended);
    assert!(!said(&window.harness).iter().any(|line| line.contains("Update Nibble.")));
}

/// Draws until the window says `text`: the folder is read by a real thread.
fn wait_for(harness: &mut Harness<'_, Monitor>, text: &str) {
    let start = Instant::now();
    while !said(harness).iter().any(|line| line.contains(text)) {
        assert!(start.elapsed() < Duration::from_secs(20), "`{text}`: {:#?}", said(harness));
        std::thread::sleep(Duration::from_millis(20));
        harness.run();
    }
}

fn window_of(path: &Path) -> Harness<'static, Monitor> {
    let messages = reader::start(path, || ()).expect("a thread starts");
    Harness::builder()
        .with_size(SIZE)
        .build_eframe(|creation| Monitor::new(&creation.egui_ctx, messages, Choices::default()))
}

fn write(folder: &RunFolder, events: &[Event]) {
    let lines =
        events.iter().map(|event| serde_json::to_string(event).expect("an event is JSON") + "\n");
    fs::write(folder.metrics(), lines.collect::<String>()).expect("the disk takes it");
}

#[test]
fn a_folder_is_followed_through_growth_resume_damage_and_loss() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("followed");
    let folder = RunFolder::create(&path, &RunSettings::default()).unwrap();
    let mut harness = window_of(&path);
    wait_for(&mut harness, "Step: 0");
    wait_for(&mut harness, "No memory plan");
    folder.write_plan(&facts().plan.unwrap()).unwrap();
    wait_for(&mut harness, "Memory plan: 32.0 MiB in all");
    write(&folder, &events(20));
    wait_for(&mut harness, "Step: 20 / 400");
    // A line that is still being written waits for its end.
    let whole = fs::read_to_string(folder.metrics()).unwrap();
    let line = serde_json::to_string(&step(21)).unwrap();
    fs::write(folder.metrics(), whole.clone() + &line[..40]).unwrap();
    std::thread::sleep(Duration::from_millis(400));
    fs::write(folder.metrics(), whole + &line + "\n").unwrap();
    wait_for(&mut harness, "Step: 21 / 400");
    // A resumed run forgets what came after its checkpoint.
    write(&folder, &events(5));
    wait_for(&mut harness, "Step: 5 / 400");
    // A damaged folder keeps what was read, and says so.
    let settings = fs::read_to_string(folder.settings_file()).unwrap();
    fs::remove_file(folder.settings_file()).unwrap();
    wait_for(&mut harness, "is gone");
    wait_for(&mut harness, "Step: 5 / 400");
    fs::write(folder.settings_file(), settings).unwrap();
    write(&folder, &events(6));
    wait_for(&mut harness, "Step: 6 / 400");
}

#[test]
fn a_folder_of_a_newer_nibble_is_named_as_such() {
    let place = tempfile::tempdir().unwrap();
    fs::write(place.path().join("run.toml"), "format = 99").unwrap();
    let mut harness = window_of(place.path());
    wait_for(&mut harness, "Update Nibble to open it.");
    fs::write(place.path().join("run.toml"), "format = 1\nbatch = \"many\"").unwrap();
    wait_for(&mut harness, "cannot be read as settings");
    wait_for(&mut harness, "Mend the line, or start the run anew.");
}
