//! Pictures of the window, held against those in `tests/snapshots`.
//!
//! `cargo test -p nibble-monitor --features snapshots`; with `UPDATE_SNAPSHOTS=true` they are drawn
//! anew. Drawn by Vulkan: on machines without a graphics card that is Mesa's lavapipe. To stay small
//! they are kept in 255 colours: `convert NEW.png -dither None -colors 255 PNG8:OLD.png`.
#![cfg(feature = "snapshots")]

mod common;

use common::{Window, events};
use eframe::egui::Theme;
use egui_kittest::{Harness, SnapshotOptions};
use nibble_monitor::reader::{Message, Trouble};
use nibble_run::{Event, RunState};

/// How far a colour may be from its own, of those few that are kept, and how many pixels may be
/// farther: other drawing libraries smooth edges in another way.
const COLOR_DISTANCE: f32 = 5.0;
const N_EDGE_PIXELS: usize = 1500;

fn window(size: [f32; 2], theme: Theme) -> Window {
    Window::open(Harness::builder().with_size(size).wgpu(), theme)
}

fn assert_looks_like(window: &mut Window, name: &str) {
    let options = SnapshotOptions::new().threshold(COLOR_DISTANCE).max_failed_pixels(N_EDGE_PIXELS);
    window.harness.snapshot_options(name, &options);
}

#[test]
fn a_run_that_trains() {
    let mut window = window([960.0, 760.0], Theme::Light);
    window.facts().news(events(310), RunState::Training);
    assert_looks_like(&mut window, "training-light");
}

#[test]
fn a_run_that_trains_in_the_dark() {
    let mut window = window([960.0, 760.0], Theme::Dark);
    window.facts().news(events(310), RunState::Training);
    assert_looks_like(&mut window, "training-dark");
}

#[test]
fn a_narrow_window() {
    let mut window = window([420.0, 900.0], Theme::Dark);
    window.facts().news(events(400), RunState::Finished);
    assert_looks_like(&mut window, "narrow-dark");
}

#[test]
fn a_run_that_failed() {
    let mut window = window([960.0, 760.0], Theme::Light);
    let failed = Event::Failed {
        code: "diverged".into(),
        message: "the loss became NaN at step 121".into(),
        hint: "Try a learning rate of 2e-5, more warm-up steps, or clip the gradient to 1.".into(),
    };
    window.facts().news(events(120), RunState::Training);
    window.news(vec![failed], RunState::Failed);
    assert_looks_like(&mut window, "failed-light");
}

#[test]
fn a_folder_that_cannot_be_opened() {
    let mut window = window([640.0, 360.0], Theme::Light);
    window.tell(Message::Trouble(Trouble {
        message: "runs/pirate/run.toml was written by a newer Nibble (format 9, this one knows 1)"
            .into(),
        hint: "update Nibble to open it".into(),
    }));
    assert_looks_like(&mut window, "newer-light");
}
