//! Dialogs, folders and windows of the system.

use std::path::PathBuf;

use tauri::{AppHandle, Wry};
use tauri_plugin_dialog::{DialogExt, FilePath};

use super::{App, work};
use crate::{
    closing::{self, CloseChoice},
    error::CommandError,
    monitor,
};

fn local(chosen: Option<FilePath>) -> Result<Option<PathBuf>, CommandError> {
    chosen.map(FilePath::into_path).transpose().map_err(|_| {
        let message = "That place is not on this computer.";
        CommandError::new("not_local", message, "Copy it to a folder of this computer first.")
    })
}

/// Lets the person choose a folder.
#[tauri::command]
pub async fn choose_folder(
    handle: AppHandle<Wry>,
    title: String,
) -> Result<Option<PathBuf>, CommandError> {
    work(move || local(handle.dialog().file().set_title(title).blocking_pick_folder())).await
}

/// Lets the person choose a file with one of `extensions`.
#[tauri::command]
pub async fn choose_file(
    handle: AppHandle<Wry>,
    title: String,
    extensions: Vec<String>,
) -> Result<Option<PathBuf>, CommandError> {
    work(move || {
        let extensions: Vec<&str> = extensions.iter().map(String::as_str).collect();
        let mut dialog = handle.dialog().file().set_title(title);
        if !extensions.is_empty() {
            dialog = dialog.add_filter(extensions.join(", "), &extensions);
        }
        local(dialog.blocking_pick_file())
    })
    .await
}

/// Shows a file or folder in the system's file manager.
#[tauri::command]
pub async fn show_in_folder(path: PathBuf) -> Result<(), CommandError> {
    work(move || {
        tauri_plugin_opener::reveal_item_in_dir(&path).map_err(|error| {
            let message = format!("{} could not be shown: {error}.", path.display());
            CommandError::new("not_shown", message, "Open the folder with your file manager.")
        })
    })
    .await
}

/// Opens the small native window that charts one run, in the theme of this one.
#[tauri::command]
pub async fn pop_out(app: App<'_>, run: PathBuf) -> Result<(), CommandError> {
    let app = app.inner().clone();
    work(move || monitor::open(&run, app.preferences().theme)).await
}

/// What to do with the runs when the window was asked to close.
#[tauri::command]
pub async fn close_window(handle: AppHandle<Wry>, choice: CloseChoice) -> Result<(), CommandError> {
    work(move || closing::close(&handle, choice)).await
}
