//! Closing the window while a run trains: it asks once, and nothing is lost.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use serde::Deserialize;
use tauri::{AppHandle, Emitter, Manager, WebviewWindowBuilder, Window, WindowEvent};
use ts_rs::TS;

use crate::{error::CommandError, state::Studio, tray};

/// The window's label, here and in its capability.
pub const MAIN: &str = "main";

/// The event that asks the page to ask the person; it says whether there is a tray to train on in.
const CLOSE_REQUESTED: &str = "close-requested";

/// What to do with the runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, TS)]
#[serde(rename_all = "lowercase")]
pub enum CloseChoice {
    /// Train on without the window.
    Keep,
    /// Stop and save, then end.
    Stop,
    /// Keep the window.
    Cancel,
}

/// Whether the app stays when it has no window.
#[derive(Debug, Default)]
pub struct StaysOpen(AtomicBool);

impl StaysOpen {
    /// Whether it does.
    pub fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Keeps the window open until the page has asked, when a run trains.
pub fn on_window_event(window: &Window, event: &WindowEvent) {
    if let WindowEvent::CloseRequested { api, .. } = event
        && window.state::<Arc<Studio>>().trainings.any_active()
        // A page that cannot be asked must not keep the window from closing.
        && window.emit(CLOSE_REQUESTED, tray::has_place()).is_ok()
    {
        api.prevent_close();
    }
}

/// Does what the person chose.
///
/// # Errors
/// When the system refuses.
pub fn close(app: &AppHandle, choice: CloseChoice) -> Result<(), CommandError> {
    match choice {
        CloseChoice::Cancel => Ok(()),
        CloseChoice::Stop => {
            app.state::<Arc<Studio>>().trainings.stop_all();
            app.exit(0);
            Ok(())
        }
        CloseChoice::Keep => {
            let Some(window) = app.get_webview_window(MAIN) else { return Ok(()) };
            if tray::show(app) {
                app.state::<StaysOpen>().0.store(true, Ordering::Relaxed);
                // Destroyed, not hidden: its memory goes to the training.
                window.destroy().map_err(CommandError::defect)
            } else {
                // Without a tray there would be no way back to a window that is gone.
                window.minimize().map_err(CommandError::defect)
            }
        }
    }
}

/// Opens the window from a handler of the system's events, in which Windows could not make one: the
/// handler would wait for what only comes after it.
pub fn reopen(app: &AppHandle) {
    let app = app.clone();
    std::thread::spawn(move || {
        if let Err(error) = open(&app) {
            eprintln!("the window could not be opened: {error}");
        }
    });
}

/// Opens the window, or brings it to the front.
///
/// # Errors
/// When the system refuses.
pub fn open(app: &AppHandle) -> tauri::Result<()> {
    app.state::<StaysOpen>().0.store(false, Ordering::Relaxed);
    tray::hide(app);
    if let Some(window) = app.get_webview_window(MAIN) {
        window.unminimize()?;
        return window.set_focus();
    }
    let windows = &app.config().app.windows;
    for config in windows.iter().filter(|window| window.label == MAIN) {
        WebviewWindowBuilder::from_config(app, config)?.build()?;
    }
    Ok(())
}
