//! The page and the app around it: built, tested and opened.

use std::{path::PathBuf, process::Command};

use crate::{
    Error, WHOLE, cargo, dist, release_folder, root, run,
    system::{self, succeeds},
};

/// The app's crate, which needs a built page and, on Linux, WebKit.
pub const CRATE: &str = "nibble-studio";

fn page() -> PathBuf {
    root().join("ui").join("studio")
}

/// What npm is called.
const NPM: &str = if cfg!(windows) { "npm.cmd" } else { "npm" };

/// Brings Node's libraries and what the system must have.
///
/// # Errors
/// When something is missing that cannot be installed from here.
pub fn prepare(with_tests: bool) -> Result<(), Error> {
    if !succeeds(NPM, &["--version"]) {
        return Err(Error::Missing { packages: vec!["Node.js (https://nodejs.org)"] });
    }
    system::prepare(with_tests)?;
    // npm notes what it has installed; a lock file that is newer asks for something else.
    let modified = |path: PathBuf| path.metadata().and_then(|metadata| metadata.modified()).ok();
    let installed = modified(page().join("node_modules").join(".package-lock.json"));
    if installed.is_none() || installed < modified(page().join("package-lock.json")) {
        npm("fetching the page's libraries", &["ci", "--no-audit", "--no-fund"])?;
    }
    Ok(())
}

fn npm(what: &str, arguments: &[&str]) -> Result<(), Error> {
    run(what, Command::new(NPM).arg("--prefix").arg(page()).args(arguments))
}

/// Builds the page that the app embeds.
///
/// # Errors
/// When it does not build.
pub fn build_page() -> Result<(), Error> {
    npm("building the page", &["run", "build"])
}

/// Holds the page against its own tests, by itself and in a browser.
///
/// # Errors
/// When one fails.
pub fn test_page() -> Result<(), Error> {
    npm("checking the page", &["run", "check"])?;
    npm("a test of the page", &["test"])?;
    npm("a test of the page in a browser", &["run", "browser"])
}

/// Drives the real app in a real window, on a screen that nobody sees.
///
/// # Errors
/// When a test fails.
pub fn test_window() -> Result<(), Error> {
    if !cfg!(target_os = "linux") {
        return Ok(());
    }
    // The command line and the monitor, which the window is held against, are there: the workspace's
    // tests have built them. The workspace again, since a package alone would have its dependencies
    // built with other features, which takes longer than the test.
    let test = ["--test", "window", "--", "--ignored", "--test-threads=1", "--skip", "figures"];
    cargo("a test of the window", &[&["test"], &WHOLE[..], &test].concat())
}

/// All that people run: the command line, the app and the monitor.
pub const PROGRAMS: [&str; 3] = ["nibble", "nibble-studio", "nibble-monitor"];

/// Builds the page and every program, to be used.
///
/// # Errors
/// When something does not build.
pub fn build_programs() -> Result<(), Error> {
    build_page()?;
    let packages = ["--package", "nibble-cli", "--package", CRATE, "--package", "nibble-monitor"];
    cargo("building the programs", &[&["build", "--release"], &packages[..]].concat())
}

/// What the windows cost: starting, memory, size, frames.
///
/// # Errors
/// When something does not build.
pub fn bench() -> Result<(), Error> {
    prepare(true)?;
    dist::dist()?;
    for name in PROGRAMS {
        let path = program(name);
        let metadata =
            path.metadata().map_err(|source| Error::File { path: path.clone(), source })?;
        println!("{name}: {:.1} MB", metadata.len() as f64 / 1e6);
    }
    npm("measuring the page", &["run", "measure"])?;
    // The tests are those of every day; what they measure is what people run.
    let figures = ["--test", "window", "--", "--ignored", "--nocapture", "figures"];
    let mut measure = Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()));
    measure.args([&["test"], &WHOLE[..], &figures].concat()).env("NIBBLE_STUDIO", program(CRATE));
    run("measuring the window", &mut measure)?;
    let frames = ["run", "--release", "--package", "nibble-monitor", "--example", "frame_time"];
    cargo("measuring the monitor", &frames)
}

/// Builds everything and opens the window.
///
/// # Errors
/// When it does not build.
pub fn open() -> Result<(), Error> {
    // All at once: a package alone would have what it shares with the others built again, with
    // other features.
    build_programs()?;
    run("the window", &mut Command::new(program(CRATE)))
}

/// A built program, to be used.
fn program(name: &str) -> PathBuf {
    release_folder().join(format!("{name}{}", std::env::consts::EXE_SUFFIX))
}
