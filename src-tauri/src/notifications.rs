//! Tells the end of a run to a person who does not look at the window.

use std::sync::Arc;

use tauri::{AppHandle, Manager};
use tauri_plugin_notification::NotificationExt;

use crate::{
    closing::{MAIN, StaysOpen},
    state::{Studio, describe},
    training::Ended,
    tray,
};

/// What is done when a run ends.
pub fn on_end(app: AppHandle) -> impl FnOnce(Ended) + Send + 'static {
    move |ended| {
        let window = app.get_webview_window(MAIN);
        if window.is_some_and(|window| window.is_focused().unwrap_or(false)) {
            return;
        }
        let (title, text) = describe(&ended);
        // A system without notifications has none to miss.
        let _ = app.notification().builder().title(title).body(text).show();
        // Without a window the icon is all that is left.
        if app.state::<StaysOpen>().get() && !app.state::<Arc<Studio>>().trainings.any_active() {
            let _ = tray::rest(&app);
        }
    }
}
