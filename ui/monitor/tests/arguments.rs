//! The program's arguments, and what it says when they are wrong.

use std::{
    path::Path,
    process::{Command, Output},
};

fn monitor(arguments: &[&str]) -> Output {
    let program = env!("CARGO_BIN_EXE_nibble-monitor");
    // Without a screen: what is tested here ends before a window opens.
    let mut command = Command::new(program);
    command.args(arguments).env_remove("DISPLAY").env_remove("WAYLAND_DISPLAY");
    command.output().expect("the program starts")
}

#[test]
fn a_bad_argument_is_named_and_ends_with_2() {
    let empty = tempfile::tempdir().unwrap();
    let empty = empty.path().to_string_lossy();
    for (arguments, message) in [
        (&["nowhere"][..], "nowhere is no run folder: it has no run.toml; give the folder"),
        (&[&empty], "is no run folder"),
        (&[], "RUN"),
        (&["nowhere", "--theme", "purple"], "purple"),
        (&["nowhere", "--unknown"], "--unknown"),
    ] {
        let output = monitor(arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(said.contains(message), "{arguments:?}: {said}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_machine_without_a_screen_is_told_what_to_do() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("run");
    nibble_run::RunFolder::create(&path, &nibble_run::RunSettings::default()).unwrap();
    let shown = path.to_string_lossy();
    let output = monitor(&[&shown]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("no window could be opened"), "{said}");
    assert!(Path::new(&path).exists());
}
