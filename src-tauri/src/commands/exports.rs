//! What a run made, for other programs.

use std::path::PathBuf;

use nibble_engine::export::{ExportFormat, ExportProgress, ExportReport, export};
use serde::Deserialize;
use tauri::ipc::Channel;
use ts_rs::TS;

use super::work;
use crate::error::CommandError;

/// What to write, and where.
#[derive(Clone, Debug, Deserialize, TS)]
pub struct ExportRequest {
    /// The run folder.
    pub run: PathBuf,
    /// The checkpoint; `None`: the last.
    pub step: Option<u64>,
    /// The folder to write.
    pub to: PathBuf,
    /// What to write.
    pub format: ExportFormat,
}

/// Exports, reads back and compares, and tells how far it is.
#[tauri::command]
pub async fn export_run(
    request: ExportRequest,
    channel: Channel<ExportProgress>,
) -> Result<ExportReport, CommandError> {
    let ExportRequest { run, step, to, format } = request;
    // A page that is gone does not undo what the person asked for.
    let mut tell = move |progress| drop(channel.send(progress));
    work(move || Ok(export(&run, step, &to, format, &mut tell)?)).await
}
