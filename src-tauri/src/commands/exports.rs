//! What a run made, for other programs.

use std::path::PathBuf;

use nibble_engine::export::{ExportFormat, ExportReport, export};
use serde::Deserialize;
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

/// Exports, reads back and compares.
#[tauri::command]
pub async fn export_run(request: ExportRequest) -> Result<ExportReport, CommandError> {
    let ExportRequest { run, step, to, format } = request;
    work(move || Ok(export(&run, step, &to, format)?)).await
}
