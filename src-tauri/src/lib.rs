//! The desktop app: a thin shell over the engine. Commands are one call each; what they call is
//! in the engine, in the run folder's crate, or in [`state`], which knows of no window.
//!
//! ```text
//! page ── commands ── state::Studio ── engine
//!   └─────── channel ─── watching ──── run folder
//! ```

pub mod built_in;
mod closing;
mod commands;
mod dropping;
pub mod error;
mod monitor;
mod notifications;
pub mod preferences;
pub mod state;
pub mod training;
mod tray;
#[cfg(test)]
mod types;
pub mod watching;

use std::sync::Arc;

use nibble_engine::devices;
use tauri::{
    App, DragDropEvent, Emitter, Manager, RunEvent, Window, WindowEvent, webview::PageLoadEvent,
};

use crate::{
    built_in::BuiltIn,
    closing::StaysOpen,
    dropping::Dropped,
    preferences::{MemoryFile, Preferences, Theme},
    state::Studio,
};

/// The event that tells the page what was dropped on it.
const FILES_DROPPED: &str = "files-dropped";

/// The event that tells the page whether something is held over it.
const FILES_HELD: &str = "files-held";

/// Runs the app until its end.
pub fn run() {
    let mut builder = tauri::Builder::default();
    // A test's app is not the one that the person may have open.
    if std::env::var_os("TAURI_AUTOMATION").is_none() {
        builder = builder.plugin(tauri_plugin_single_instance::init(|app, _, _| {
            closing::reopen(app);
        }));
    }
    let app = builder
        .plugin(tauri_plugin_dialog::init())
        .plugin(tauri_plugin_notification::init())
        .plugin(tauri_plugin_opener::init())
        // An error that is handed back would be a panic, which nobody sees on Windows.
        .setup(|app| set_up(app).map_err(|error| give_up(&error)))
        .on_window_event(on_window_event)
        .on_page_load(|webview, payload| {
            if matches!(payload.event(), PageLoadEvent::Started) {
                let studio = webview.state::<Arc<Studio>>();
                studio.watches.stop_all();
                studio.stop_answer();
            }
        })
        .invoke_handler(tauri::generate_handler![
            commands::models::startup,
            commands::models::save_preferences,
            commands::models::models,
            commands::models::open_model,
            commands::plans::plan,
            commands::plans::measure_page_rates,
            commands::datasets::inspect,
            commands::runs::start_run,
            commands::runs::resume_run,
            commands::runs::repeat_settings,
            commands::runs::control_run,
            commands::runs::watch_run,
            commands::runs::unwatch_run,
            commands::runs::run_details,
            commands::runs::runs,
            commands::runs::open_run,
            commands::runs::delete_run,
            commands::answers::answer,
            commands::answers::stop_answer,
            commands::exports::export_run,
            commands::windows::choose_folder,
            commands::windows::choose_file,
            commands::windows::show_in_folder,
            commands::windows::pop_out,
            commands::windows::close_window,
        ])
        .build(tauri::generate_context!());
    match app {
        Ok(app) => app.run(|app, event| {
            if let RunEvent::ExitRequested { code: None, api, .. } = event
                && app.state::<StaysOpen>().get()
            {
                api.prevent_exit();
            }
        }),
        Err(error) => give_up(&error),
    }
}

/// Says why the app does not start, where a person sees it, and ends.
fn give_up(error: &tauri::Error) -> ! {
    let reason = if cfg!(windows) && tauri::webview_version().is_err() {
        "Nibble's window needs Microsoft's WebView2 Runtime, which is not installed. Get it from \
         https://developer.microsoft.com/microsoft-edge/webview2 and start Nibble again."
            .to_owned()
    } else if matches!(error, tauri::Error::UnknownPath) {
        "Nibble found no folder of this user for runs and settings; is there a home folder (HOME)?"
            .to_owned()
    } else {
        format!("Nibble could not open its window: {error}")
    };
    eprintln!("error: {reason}");
    // A program with a window has no terminal there.
    #[cfg(windows)]
    rfd::MessageDialog::new()
        .set_level(rfd::MessageLevel::Error)
        .set_title("Nibble")
        .set_description(&reason)
        .show();
    std::process::exit(1);
}

/// Finds the built-in files and what the app remembers.
fn set_up(app: &App) -> tauri::Result<()> {
    let paths = app.path();
    let built_in = BuiltIn::find(paths.resource_dir().ok().as_deref());
    let home = paths.document_dir().or_else(|_| paths.home_dir())?.join("Nibble");
    let defaults = Preferences {
        theme: Theme::System,
        runs_folder: home.join("runs"),
        models_folder: home.join("models"),
        device: devices::preferred().id().into(),
    };
    let memory = MemoryFile::open(paths.app_data_dir()?.join("preferences.json"), defaults);
    app.manage(Arc::new(Studio::new(built_in, memory)));
    app.manage(StaysOpen::default());
    // Only now: a page asks for all of this as soon as it is there.
    closing::open(app.handle())
}

fn on_window_event(window: &Window, event: &WindowEvent) {
    if let WindowEvent::DragDrop(event) = event {
        // A page that is loading misses a drop, as it would miss a click.
        let _ = match event {
            DragDropEvent::Enter { .. } => window.emit(FILES_HELD, true),
            DragDropEvent::Drop { paths, .. } => {
                let dropped: Vec<_> = paths.iter().map(|path| Dropped::at(path)).collect();
                window.emit(FILES_HELD, false).and_then(|()| window.emit(FILES_DROPPED, dropped))
            }
            DragDropEvent::Leave => window.emit(FILES_HELD, false),
            _ => Ok(()),
        };
    }
    closing::on_window_event(window, event);
}
