//! The small icon that a training without a window leaves on the screen.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::{Arc, mpsc},
};

use tauri::{
    AppHandle, Manager,
    menu::{Menu, MenuItem},
    tray::TrayIconBuilder,
};

use crate::{closing, state::Studio};

const ID: &str = "training";
const OPEN: &str = "open";
const QUIT: &str = "quit";

/// Shows the icon; false where the system has no place for one. Not to be called on the window's
/// own thread, which makes the icon.
pub fn show(app: &AppHandle) -> bool {
    if !has_place() {
        return false;
    }
    let (sender, receiver) = mpsc::channel();
    let handle = app.clone();
    let asked = app.run_on_main_thread(move || {
        // On Linux the icon's library is loaded at this moment, and its absence is a panic.
        let built = catch_unwind(AssertUnwindSafe(|| build(&handle)));
        let _ = sender.send(matches!(built, Ok(Ok(()))));
    });
    asked.is_ok() && receiver.recv().unwrap_or(false)
}

/// Whether there can be a place for icons: on Linux they are shown over the session's bus.
fn has_place() -> bool {
    let in_runtime_folder = || {
        let folder = std::env::var_os("XDG_RUNTIME_DIR")?;
        Path::new(&folder).join("bus").exists().then_some(())
    };
    !cfg!(target_os = "linux")
        || std::env::var_os("DBUS_SESSION_BUS_ADDRESS").is_some()
        || in_runtime_folder().is_some()
}

fn build(app: &AppHandle) -> tauri::Result<()> {
    let open = MenuItem::with_id(app, OPEN, "Open Nibble", true, None::<&str>)?;
    let quit = MenuItem::with_id(app, QUIT, "Stop, save and quit", true, None::<&str>)?;
    let menu = Menu::with_items(app, &[&open, &quit])?;
    let mut tray = TrayIconBuilder::with_id(ID)
        .menu(&menu)
        .tooltip("Nibble is training")
        .on_menu_event(|app, event| match event.id().as_ref() {
            OPEN => {
                if let Err(error) = closing::open(app) {
                    eprintln!("the window could not be opened: {error}");
                }
            }
            QUIT => {
                let app = app.clone();
                // Saving takes seconds, in which the icon should still answer.
                std::thread::spawn(move || {
                    app.state::<Arc<Studio>>().trainings.stop_all();
                    app.exit(0);
                });
            }
            _ => {}
        });
    if let Some(icon) = app.default_window_icon() {
        tray = tray.icon(icon.clone());
    }
    tray.build(app).map(drop)
}

/// Takes the icon away.
pub fn hide(app: &AppHandle) {
    drop(app.remove_tray_by_id(ID));
}
