//! Measures how long the window of a long run takes to draw, without the graphics card's part:
//! `cargo run --release -p nibble-monitor --example frame_time`.

use std::{sync::mpsc, time::Instant};

use eframe::egui::{Context, Pos2, RawInput, Rect, Vec2};
use nibble_monitor::{
    app::{Choices, Monitor},
    history::Facts,
    reader::Message,
};
use nibble_run::{Event, RunNews, RunSettings, RunState};

const N_STEPS: u64 = 100_000;
const N_FRAMES: usize = 200;

fn step(step: u64) -> Event {
    let wave = (step as f64 * 0.37).sin();
    Event::Step {
        step,
        loss: 2.0 + wave / 4.0,
        lr: 1e-4,
        grad_norm: 1.0 + wave / 2.0,
        tokens: 512,
        tokens_per_s: 4000.0 + 300.0 * wave,
        host_bytes: (50 << 20) + (step % 97) * 4096,
        device_bytes: 32 << 20,
        paged_bytes: 0,
        card: None,
    }
}

fn main() {
    let context = Context::default();
    let (messages, receiver) = mpsc::channel();
    let mut monitor = Monitor::new(&context, receiver, Choices::default());
    let facts = Facts {
        name: "long".into(),
        settings: RunSettings { steps: Some(2 * N_STEPS), ..RunSettings::default() },
        plan: Err("there is none".into()),
    };
    let news = |events| {
        Message::News(RunNews { reset: false, events, more: false, state: RunState::Training })
    };
    let sent = messages
        .send(Message::Facts(Box::new(facts)))
        .and_then(|()| messages.send(news((1..=N_STEPS).map(step).collect())));
    assert!(sent.is_ok(), "the window listens");
    let screen = Rect::from_min_size(Pos2::ZERO, Vec2::new(960.0, 760.0));
    let mut frame = |pointer: Option<Pos2>| {
        let start = Instant::now();
        let mut input = RawInput { screen_rect: Some(screen), ..RawInput::default() };
        input.events.extend(pointer.map(eframe::egui::Event::PointerMoved));
        let output = context.run_ui(input, |ui| monitor.frame(ui));
        let shapes = context.tessellate(output.shapes, output.pixels_per_point);
        std::hint::black_box(shapes);
        start.elapsed().as_secs_f64() * 1e3
    };
    println!("first frame, all {N_STEPS} steps new: {:.2} ms", frame(None));
    let mut median = |what: &str, prepare: &dyn Fn(usize) -> Option<Pos2>| {
        let mut times: Vec<f64> = (0..N_FRAMES).map(|i| frame(prepare(i))).collect();
        times.sort_by(f64::total_cmp);
        println!(
            "{what}: median {:.2} ms, worst {:.2} ms",
            times[N_FRAMES / 2],
            times[N_FRAMES - 1]
        );
    };
    median("the pointer moves over a chart", &|i| Some(Pos2::new(200.0 + i as f32, 260.0)));
    median("a step more in every frame", &|i| {
        // A window that is gone is measured as one without news.
        let _ = messages.send(news(vec![step(N_STEPS + 1 + i as u64)]));
        None
    });
}
