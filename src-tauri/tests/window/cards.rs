//! The window beside a card: the simulator behind the libraries of NVIDIA's driver.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
};

use serde_json::json;

use crate::{app, drawn, id, is_state, step, troubles::start_run_with, webdriver::Screen};

/// The app as it starts on a computer with a card, which is described as the simulated driver reads it. The workspace's
/// tests have built that driver.
fn app_with_card(home: &Path, card: &str) -> PathBuf {
    let driver = app().with_file_name("examples").join("libsimulated_driver.so");
    assert!(driver.is_file(), "`cargo build --workspace --examples` makes {}", driver.display());
    let libraries = home.join("driver");
    fs::create_dir(&libraries).unwrap();
    for name in ["libcuda.so", "libnvidia-ml.so.1"] {
        symlink(&driver, libraries.join(name)).unwrap();
    }
    let program = home.join("with-card");
    let script = format!(
        "#!/bin/sh\nexport CUDA_VISIBLE_DEVICES=0 NIBBLE_SIMULATED_CARD='{card}'\n\
         export LD_LIBRARY_PATH='{}'\nexec '{}' \"$@\"\n",
        libraries.display(),
        app().display()
    );
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    program
}

#[test]
#[ignore = "needs Xvfb, WebKitWebDriver and a built page"]
fn a_card_is_used_and_a_run_goes_on_without_it_when_it_is_lost() {
    const N_STEPS: u64 = 40;
    let home = tempfile::tempdir().unwrap();
    let screen = Screen::new(home.path());
    let sign = home.path().join("lost-card");
    let card = format!("fails_with={}", sign.display());
    let window = screen.open(&app_with_card(home.path(), &card));
    window.text(&id("memory-panel"), |text| text.contains("Free on this card"));
    window.text(&id("card"), |text| text.contains("7.94 GiB"));
    window.click(&id("nav-settings"));
    window.text(&id("page-settings"), |text| text.contains("Simulated card"));
    window.picture("card-settings");
    window.click(&id("nav-new"));
    window.picture("card-new");
    start_run_with(
        &window,
        &[("steps", json!(N_STEPS)), ("sequence", json!(32)), ("save_every", json!(1))],
    );
    window.click(&id("nav-runs"));
    window.click(&format!("{} .link", id("runs")));
    window.wait("3 steps", || (step(&window) >= 3).then_some(()));
    for chart in ["chart-memory", "chart-temperature"] {
        window.wait(chart, || (drawn(&window, chart) > 100).then_some(()));
    }
    fs::write(&sign, "").unwrap();
    is_state(&window, "Failed");
    let note = format!("{} [data-testid='error'][data-code='card_failed']", id("page-run"));
    let said = window.text(&note, |text| !text.is_empty());
    assert!(said.contains("unspecified launch failure"), "{said}");
    let reached = step(&window);
    assert!((3..N_STEPS).contains(&reached), "{reached}");
    window.picture("card-lost");
    // The driver has no card for this process any more, whatever becomes of the card.
    fs::remove_file(&sign).unwrap();
    window.click(&id("resume"));
    window.text(&note, |text| text.contains("cuCtxCreate"));
    window.click(&id("resume-here"));
    is_state(&window, "Finished");
    assert_eq!(step(&window), N_STEPS);
    window.picture("card-resumed");
}
