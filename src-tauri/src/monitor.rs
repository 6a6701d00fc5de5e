//! The monitor: a program of its own, which stays when this one ends.

use std::{
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::{error::CommandError, preferences::Theme};

/// How long a monitor is watched for an end that comes too soon to have shown anything.
const EARLY: Duration = Duration::from_millis(1500);

/// Opens the monitor of `run`.
///
/// # Errors
/// When it is not installed, or ends at once.
pub fn open(run: &Path, theme: Theme) -> Result<(), CommandError> {
    let name = format!("nibble-monitor{}", std::env::consts::EXE_SUFFIX);
    let program = std::env::current_exe().map_err(CommandError::defect)?.with_file_name(name);
    let theme = match theme {
        Theme::System => "system",
        Theme::Light => "light",
        Theme::Dark => "dark",
    };
    let mut command = Command::new(&program);
    command.arg(run).args(["--theme", theme]).stdin(Stdio::null()).stdout(Stdio::null());
    // What ends this program, such as Ctrl-C in its terminal, is not meant for the monitor.
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    #[cfg(windows)]
    {
        // CREATE_NO_WINDOW: a program without a terminal should not open one.
        std::os::windows::process::CommandExt::creation_flags(&mut command, 0x0800_0000);
    }
    let child = command.spawn().map_err(|error| {
        let message = format!("{} could not be started: {error}.", program.display());
        CommandError::new("no_monitor", message, "Install Nibble again, with its monitor.")
    })?;
    watch(child)
}

/// Sees that `child` does not end at once, and then waits for its end, whenever that is.
fn watch(mut child: Child) -> Result<(), CommandError> {
    let start = Instant::now();
    while start.elapsed() < EARLY {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return Ok(()),
            Ok(Some(status)) => {
                let message = format!("The monitor ended at once ({status}).");
                let hint = "It needs OpenGL: update the graphics driver, or watch the run here.";
                return Err(CommandError::new("monitor_ended", message, hint));
            }
            Ok(None) => thread::sleep(Duration::from_millis(50)),
            Err(error) => return Err(CommandError::defect(error)),
        }
    }
    // A program whose end nobody awaits stays in the system's list. Without a thread it does.
    let _ = thread::Builder::new().name("nibble-monitor".into()).spawn(move || child.wait());
    Ok(())
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn a_monitor_that_ends_at_once_is_told() {
        let failed = watch(Command::new("false").spawn().unwrap()).unwrap_err();
        assert_eq!(failed.code, "monitor_ended");
        let mut command = Command::new("sleep");
        watch(command.arg("2").spawn().unwrap()).unwrap();
    }
}
