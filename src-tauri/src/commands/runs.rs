//! Runs: start, watch, control, list, delete.

use std::path::PathBuf;

use nibble_engine::train::Command;
use nibble_run::{RunSettings, RunSummary, TrainingDevice};
use tauri::{AppHandle, ipc::Channel};

use super::{App, work};
use crate::{error::CommandError, notifications, state::RunDetails, watching::RunUpdate};

/// Starts a run in a new folder.
#[tauri::command]
pub async fn start_run(
    handle: AppHandle,
    app: App<'_>,
    settings: RunSettings,
    name: Option<String>,
) -> Result<PathBuf, CommandError> {
    let app = app.inner().clone();
    let on_end = notifications::on_end(handle);
    work(move || app.start_run(settings, name.as_deref(), on_end)).await
}

/// Goes on with a run, on another device than before if one is named.
#[tauri::command]
pub async fn resume_run(
    handle: AppHandle,
    app: App<'_>,
    run: PathBuf,
    device: Option<TrainingDevice>,
) -> Result<(), CommandError> {
    let app = app.inner().clone();
    let on_end = notifications::on_end(handle);
    work(move || app.resume_run(&run, device, on_end)).await
}

/// The settings of a run, to begin another with.
#[tauri::command]
pub async fn repeat_settings(app: App<'_>, run: PathBuf) -> Result<RunSettings, CommandError> {
    let app = app.inner().clone();
    work(move || app.repeat_settings(&run)).await
}

/// Pauses, resumes or stops a run.
#[tauri::command]
pub async fn control_run(app: App<'_>, run: PathBuf, command: Command) -> Result<(), CommandError> {
    let app = app.inner().clone();
    work(move || app.control_run(&run, command)).await
}

/// Sends what happened and happens to a run; returns the number to end that with.
#[tauri::command]
pub async fn watch_run(
    app: App<'_>,
    run: PathBuf,
    channel: Channel<RunUpdate>,
) -> Result<u32, CommandError> {
    let app = app.inner().clone();
    let send = move |update| channel.send(update).is_ok();
    work(move || app.watches.start(&run, app.trainings.clone(), send)).await
}

/// Ends that.
#[tauri::command]
pub async fn unwatch_run(app: App<'_>, watch: u32) -> Result<(), CommandError> {
    app.watches.end(watch);
    Ok(())
}

/// A run with its settings and plan.
#[tauri::command]
pub async fn run_details(app: App<'_>, run: PathBuf) -> Result<RunDetails, CommandError> {
    let app = app.inner().clone();
    work(move || app.run_details(&run)).await
}

/// Every known run.
#[tauri::command]
pub async fn runs(app: App<'_>) -> Result<Vec<RunSummary>, CommandError> {
    let app = app.inner().clone();
    work(move || app.runs()).await
}

/// Adds a run from elsewhere to the list.
#[tauri::command]
pub async fn open_run(app: App<'_>, path: PathBuf) -> Result<RunSummary, CommandError> {
    let app = app.inner().clone();
    work(move || app.open_run(&path)).await
}

/// Moves a run to the system's trash.
#[tauri::command]
pub async fn delete_run(app: App<'_>, path: PathBuf) -> Result<(), CommandError> {
    let app = app.inner().clone();
    work(move || {
        app.release_run(&path)?;
        trash::delete(&path).map_err(|error| {
            let message = format!("{} could not be moved to the trash: {error}.", path.display());
            CommandError::new("not_deleted", message, "Delete the folder with your file manager.")
        })
    })
    .await
}
