//! Checks the app's configuration, and makes a permission of every command, so that a window has
//! those alone that its capability names.

/// Every command of the app.
const COMMANDS: [&str; 25] = [
    "startup",
    "save_preferences",
    "models",
    "open_model",
    "plan",
    "measure_page_rates",
    "inspect",
    "start_run",
    "resume_run",
    "repeat_settings",
    "control_run",
    "watch_run",
    "unwatch_run",
    "run_details",
    "runs",
    "open_run",
    "delete_run",
    "answer",
    "stop_answer",
    "export_run",
    "choose_folder",
    "choose_file",
    "show_in_folder",
    "pop_out",
    "close_window",
];

fn main() {
    let manifest = tauri_build::AppManifest::new().commands(&COMMANDS);
    let attributes = tauri_build::Attributes::new().app_manifest(manifest);
    if let Err(error) = tauri_build::try_build(attributes) {
        println!("cargo::error={error:#}");
    }
}
