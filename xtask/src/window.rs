//! The page and the app around it: built, tested and opened.

use std::{path::PathBuf, process::Command};

use crate::{Error, cargo, root, run};

/// The app's crate, which needs a built page and, on Linux, WebKit.
pub const CRATE: &str = "nibble-studio";

fn page() -> PathBuf {
    root().join("ui").join("studio")
}

/// What npm is called.
const NPM: &str = if cfg!(windows) { "npm.cmd" } else { "npm" };

fn succeeds(program: &str, arguments: &[&str]) -> bool {
    Command::new(program).args(arguments).output().is_ok_and(|output| output.status.success())
}

/// Why the window cannot be built here, if it cannot.
pub fn obstacle() -> Option<&'static str> {
    if !page().join("package.json").is_file() {
        return Some("ui/studio is not in this checkout");
    }
    if !succeeds(NPM, &["--version"]) {
        return Some("npm is not installed; get Node.js from https://nodejs.org");
    }
    let webkit = ["--exists", "webkit2gtk-4.1"];
    if cfg!(target_os = "linux") && !succeeds("pkg-config", &webkit) {
        return Some("WebKit is not installed; on Debian: apt install libwebkit2gtk-4.1-dev");
    }
    None
}

fn npm(what: &str, arguments: &[&str]) -> Result<(), Error> {
    run(what, Command::new(NPM).arg("--prefix").arg(page()).args(arguments))
}

/// Builds the page that the app embeds.
pub fn build_page() -> Result<(), Error> {
    if !page().join("node_modules").is_dir() {
        npm("fetching the page's libraries", &["ci"])?;
    }
    npm("building the page", &["run", "build"])
}

/// Holds the page against its own tests.
pub fn test_page() -> Result<(), Error> {
    npm("checking the page", &["run", "check"])?;
    npm("a test of the page", &["test"])
}

/// Builds everything and opens the window.
pub fn open() -> Result<(), Error> {
    build_page()?;
    let monitor = ["build", "--release", "--package", "nibble-monitor"];
    cargo("building the monitor", &monitor)?;
    cargo("the window", &["run", "--release", "--package", CRATE])
}
