//! `nibble-monitor RUN`: a window that charts a run while it trains, or after.

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, ValueEnum};
use eframe::{
    NativeOptions,
    egui::{ThemePreference, ViewportBuilder, WindowLevel},
};
use nibble_monitor::{
    app::{Choices, Monitor},
    reader,
};
use nibble_run::{RunError, RunFolder};

/// The window's picture in the list of windows.
const ICON: &[u8] = include_bytes!("../../../assets/icons/128x128.png");

/// Charts a run while it trains, or after: loss, memory, speed.
#[derive(Debug, Parser)]
#[command(name = "nibble-monitor", version)]
struct Arguments {
    /// Folder of the run: the one that was named with `nibble train --out`
    run: PathBuf,
    /// Colours of the window
    #[arg(long, value_enum, default_value_t = ThemeName::System)]
    theme: ThemeName,
    /// Keep the window above all others
    #[arg(long)]
    on_top: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ThemeName {
    System,
    Light,
    Dark,
}

impl From<ThemeName> for ThemePreference {
    fn from(name: ThemeName) -> Self {
        match name {
            ThemeName::System => Self::System,
            ThemeName::Light => Self::Light,
            ThemeName::Dark => Self::Dark,
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // A folder that is no run is a slip of the hand. One that is damaged, or of a newer Nibble, is
    // shown as such, because it can be mended while the window is open.
    if let Err(error @ RunError::NoRun { .. }) = RunFolder::open(&arguments.run) {
        eprintln!("error: {error}");
        return ExitCode::from(2);
    }
    let level = if arguments.on_top { WindowLevel::AlwaysOnTop } else { WindowLevel::Normal };
    // A window without a picture is no worse a window.
    let icon = eframe::icon_data::from_png_bytes(ICON).unwrap_or_default();
    let viewport = ViewportBuilder::default()
        .with_icon(icon)
        .with_title("Nibble")
        .with_app_id("nibble-monitor")
        .with_inner_size([960.0, 760.0])
        .with_min_inner_size([420.0, 320.0])
        .with_window_level(level);
    let options = NativeOptions { viewport, ..NativeOptions::default() };
    let choices = Choices { theme: arguments.theme.into(), on_top: arguments.on_top };
    let run = arguments.run;
    let result = eframe::run_native(
        "nibble-monitor",
        options,
        Box::new(move |creation| {
            let context = creation.egui_ctx.clone();
            let messages = reader::start(&run, move || context.request_repaint())?;
            Ok(Box::new(Monitor::new(&creation.egui_ctx, messages, choices)))
        }),
    );
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!(
                "error: no window could be opened: {error}; on a machine without a screen, `nibble \
                 train` writes the charts into the run's folder `report`"
            );
            ExitCode::FAILURE
        }
    }
}
