//! What the system must have beside Rust and Node.js, on Linux: checked, and installed where apt
//! does that.

use std::process::{Command, Stdio};

use crate::Error;

/// Something that is there when a program is on the PATH and, asked something, says yes; and the
/// Debian package that brings it.
struct Need {
    program: &'static str,
    question: &'static [&'static str],
    package: &'static str,
}

impl Need {
    fn is_met(&self) -> bool {
        if self.question.is_empty() {
            let path = std::env::var_os("PATH").unwrap_or_default();
            return std::env::split_paths(&path).any(|folder| folder.join(self.program).is_file());
        }
        succeeds(self.program, self.question)
    }
}

/// To build the window.
const BUILD: [Need; 3] = [
    Need { program: "cc", question: &[], package: "build-essential" },
    Need { program: "pkg-config", question: &[], package: "pkg-config" },
    Need {
        program: "pkg-config",
        question: &["--exists", "webkit2gtk-4.1"],
        package: "libwebkit2gtk-4.1-dev",
    },
];

/// To test it: a screen that nobody sees, a desktop's bus and icons, and two browsers' drivers.
const TEST: [Need; 5] = [
    Need { program: "Xvfb", question: &[], package: "xvfb" },
    Need { program: "WebKitWebDriver", question: &[], package: "webkit2gtk-driver" },
    Need { program: "chromium", question: &[], package: "chromium" },
    Need { program: "dbus-daemon", question: &[], package: "dbus-daemon" },
    Need {
        program: "sh",
        question: &["-c", "/sbin/ldconfig -p | grep -q ayatana-appindicator3.so"],
        package: "libayatana-appindicator3-1",
    },
];

/// Whether `program` starts and ends well.
pub fn succeeds(program: &str, arguments: &[&str]) -> bool {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

fn missing(needs: &[Need]) -> Vec<&'static str> {
    needs.iter().filter(|need| !need.is_met()).map(|need| need.package).collect()
}

/// Brings what the window needs, and what its tests need where they are to run.
///
/// # Errors
/// When something is missing that cannot be installed from here; it says what.
pub fn prepare(with_tests: bool) -> Result<(), Error> {
    if !cfg!(target_os = "linux") {
        return Ok(());
    }
    let mut packages = missing(&BUILD);
    if with_tests {
        packages.extend(missing(&TEST));
    }
    if packages.is_empty() {
        return Ok(());
    }
    if succeeds("apt-get", &["--version"]) {
        println!("Installing {}", packages.join(" "));
        for arguments in [&["update"][..], &["install", "--yes", "--no-install-recommends"]] {
            // Root needs no sudo; others are not asked for a password in the middle of a build.
            let mut words = vec!["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "--quiet=2"];
            words.extend(arguments);
            if arguments[0] == "install" {
                words.extend(&packages);
            }
            if !succeeds(words[0], &words[1..]) {
                words.insert(0, "--non-interactive");
                succeeds("sudo", &words);
            }
        }
        packages.retain(|package| {
            BUILD.iter().chain(&TEST).any(|need| need.package == *package && !need.is_met())
        });
    }
    if packages.is_empty() { Ok(()) } else { Err(Error::Missing { packages }) }
}

/// Whether the system lets a person mount a disk that nobody else sees.
pub fn may_mount() -> bool {
    let mount = "mount -t tmpfs -o size=1m none /mnt";
    succeeds("unshare", &["--user", "--map-root-user", "--mount", "sh", "-c", mount])
}

/// Whether there is a screen to open a window on.
pub fn has_display() -> bool {
    let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    !cfg!(target_os = "linux") || is_set("DISPLAY") || is_set("WAYLAND_DISPLAY")
}
