//! The small icon that a training without a window leaves on the screen.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, mpsc},
};

use tauri::{
    AppHandle, Manager, Wry,
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

/// Whether the screen has a place for icons. On Linux many have none, and an icon that nobody shows
/// would leave a training without a window.
#[cfg(target_os = "linux")]
pub fn has_place() -> bool {
    let is_watched = || {
        let connection = zbus::blocking::Connection::session()?;
        let bus = zbus::blocking::fdo::DBusProxy::new(&connection)?;
        zbus::Result::Ok(bus.name_has_owner("org.kde.StatusNotifierWatcher".try_into()?)?)
    };
    is_watched().unwrap_or(false)
}

/// Whether the screen has a place for icons.
#[cfg(not(target_os = "linux"))]
pub fn has_place() -> bool {
    true
}

fn menu(app: &AppHandle, quit: &str) -> tauri::Result<Menu<Wry>> {
    let open = MenuItem::with_id(app, OPEN, "Open Nibble", true, None::<&str>)?;
    let quit = MenuItem::with_id(app, QUIT, quit, true, None::<&str>)?;
    Menu::with_items(app, &[&open, &quit])
}

fn build(app: &AppHandle) -> tauri::Result<()> {
    let mut tray = TrayIconBuilder::with_id(ID)
        .menu(&menu(app, "Stop, save and quit")?)
        .tooltip("Nibble is training")
        .on_menu_event(|app, event| match event.id().as_ref() {
            OPEN => closing::reopen(app),
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

/// Says that nothing trains any more. The app stays: some desktops take a notification away with the
/// program that showed it, and a person who comes back finds the icon.
///
/// # Errors
/// When the system refuses.
pub fn rest(app: &AppHandle) -> tauri::Result<()> {
    let Some(tray) = app.tray_by_id(ID) else { return Ok(()) };
    tray.set_tooltip(Some("Nibble has finished training"))?;
    tray.set_menu(Some(menu(app, "Quit")?))
}

/// Takes the icon away.
pub fn hide(app: &AppHandle) {
    drop(app.remove_tray_by_id(ID));
}
