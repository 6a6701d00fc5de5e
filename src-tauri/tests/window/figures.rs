//! What the window costs: printed for `cargo xtask bench window`, held to nothing here.

use std::{
    env, fs,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use serde_json::json;

use crate::{app, id, webdriver::Screen};

/// The app as people run it, where `cargo xtask bench window` has built it.
fn measured_app() -> PathBuf {
    env::var_os("NIBBLE_STUDIO").map_or_else(|| app().to_owned(), PathBuf::from)
}

/// Memory of the app and of the processes of its web view, in bytes; what they share counts once.
fn memory_bytes() -> u64 {
    let proportional = |id: &str| -> Option<u64> {
        let text = fs::read_to_string(format!("/proc/{id}/smaps_rollup")).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
    };
    let ours = |name: &str| name.starts_with("nibble-studio") || name.starts_with("WebKit");
    fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| {
            let id = entry.ok()?.file_name().into_string().ok()?;
            let name = fs::read_to_string(format!("/proc/{id}/comm")).ok()?;
            (ours(&name) && !name.starts_with("WebKitWebDriver")).then(|| proportional(&id))?
        })
        .sum::<u64>()
        * 1024
}

#[test]
#[ignore = "measures; run by `cargo xtask bench window`"]
fn figures() {
    let home = tempfile::tempdir().unwrap();
    let screen = Screen::new(home.path());
    let before = memory_bytes();
    let mut starts = Vec::new();
    for _ in 0..5 {
        let start = Instant::now();
        let window = screen.open(&measured_app());
        window.text(&id("memory-qlora-total"), |text| text.contains("MiB"));
        starts.push(start.elapsed());
        drop(window);
        thread::sleep(Duration::from_secs(1));
    }
    starts.sort();
    println!("start to a plan on the page: {:.2} s (median of 5)", starts[2].as_secs_f64());

    let window = screen.open(&measured_app());
    window.text(&id("memory-qlora-total"), |text| text.contains("MiB"));
    thread::sleep(Duration::from_secs(5));
    println!("memory when idle: {} MB", (memory_bytes() - before) / 1_000_000);

    let script = "const [panel, thumb] = arguments;
        window.delays = [];
        const bytes = () => document.querySelector(panel).dataset.bytes;
        let asked = 0, before = bytes();
        new MutationObserver(() => {
            if (asked && bytes() !== before) { window.delays.push(performance.now() - asked); asked = 0; }
        }).observe(document.body, { subtree: true, attributes: true });
        let n = 0;
        setInterval(() => {
            before = bytes();
            asked = performance.now();
            const key = n++ % 2 ? 'ArrowLeft' : 'ArrowRight';
            const press = new KeyboardEvent('keydown', { key, bubbles: true });
            document.querySelector(thumb).dispatchEvent(press);
        }, 100);";
    window.run(script, &[json!(id("memory-qlora")), json!(id("rank-thumb"))]);
    let delays = window.wait("40 delays", || {
        let delays = window.run("return window.delays;", &[]);
        (delays.as_array()?.len() >= 40).then_some(delays)
    });
    let mut delays: Vec<f64> =
        delays.as_array().unwrap().iter().map(|delay| delay.as_f64().unwrap()).collect();
    delays.sort_by(f64::total_cmp);
    let middle = delays[delays.len() / 2];
    println!("a key to the memory panel: {middle:.1} ms (median of {})", delays.len());
}
