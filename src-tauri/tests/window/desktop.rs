//! A run that was kept when the window went: it trains behind an icon, and tells its end.

use nibble_run::RunState;

use crate::{
    app,
    bus::{Bus, Icon},
    screen::Desktop,
    troubles::{answer, start_run, state_of},
    webdriver::{Screen, Window, wait},
};

/// Closes the window and keeps its run; the icon that is left.
fn keep(window: &Window<'_>, desktop: &Desktop, bus: &Bus) -> Icon {
    let own = wait("the window", || desktop.find(|title| title == "Nibble"));
    desktop.close(own);
    window.text("[role='dialog']", |text| text.contains("from an icon in the tray"));
    answer(window, "Keep training");
    let icon = bus.icon();
    wait("the window to go", || desktop.find(|title| title == "Nibble").is_none().then_some(()));
    icon
}

#[test]
#[ignore = "needs Xvfb, WebKitWebDriver, a bus and a built page"]
fn a_kept_run_tells_its_end_and_leaves_the_icon() {
    let home = tempfile::tempdir().unwrap();
    let bus = Bus::new();
    let screen = Screen::within(home.path(), bus.variable());
    let desktop = Desktop::new(screen.display());
    let window = screen.open(app());
    let run = start_run(&window, 60);
    let icon = keep(&window, &desktop, &bus);
    assert_eq!(state_of(&run), RunState::Training);
    let (title, text) = bus.notice();
    assert_eq!(title, "Training finished");
    assert_eq!(text, run.file_name().unwrap().to_string_lossy());
    assert_eq!(state_of(&run), RunState::Finished);
    assert!(bus.is_shown(&icon));
    bus.choose(&icon, "Quit");
    wait("the app to end", || (!bus.is_running(&icon)).then_some(()));
}

#[test]
#[ignore = "needs Xvfb, WebKitWebDriver, a bus and a built page"]
fn the_icon_brings_the_window_back() {
    let home = tempfile::tempdir().unwrap();
    let bus = Bus::new();
    let screen = Screen::within(home.path(), bus.variable());
    let desktop = Desktop::new(screen.display());
    let window = screen.open(app());
    let run = start_run(&window, 100_000);
    let icon = keep(&window, &desktop, &bus);
    bus.choose(&icon, "Open Nibble");
    wait("the window", || desktop.find(|title| title == "Nibble"));
    wait("the icon to go", || (!bus.is_shown(&icon)).then_some(()));
    assert_eq!(state_of(&run), RunState::Training);
}

#[test]
#[ignore = "needs Xvfb, WebKitWebDriver, a bus and a built page"]
fn the_icon_stops_and_saves() {
    let home = tempfile::tempdir().unwrap();
    let bus = Bus::new();
    let screen = Screen::within(home.path(), bus.variable());
    let desktop = Desktop::new(screen.display());
    let window = screen.open(app());
    let run = start_run(&window, 100_000);
    let icon = keep(&window, &desktop, &bus);
    bus.choose(&icon, "Stop, save and quit");
    wait("the app to end", || (!bus.is_running(&icon)).then_some(()));
    assert_eq!(state_of(&run), RunState::Stopped);
}
