//! How a dataset would be read.

use std::path::PathBuf;

use nibble_data::Inspection;
use nibble_run::RunSettings;
use serde::Deserialize;
use tauri::ipc::Channel;
use ts_rs::TS;

use super::{App, work};
use crate::error::CommandError;

/// What to look at.
#[derive(Clone, Debug, Deserialize, TS)]
pub struct InspectRequest {
    /// The model's folder, for its tokenizer and chat template.
    pub model: PathBuf,
    /// The dataset, its columns, and the longest example.
    pub settings: RunSettings,
    /// Examples to show.
    pub limit: usize,
}

/// The dataset as it would be trained on. The channel tells the share of it that is read; the next
/// look ends this one.
#[tauri::command]
pub async fn inspect(
    app: App<'_>,
    request: InspectRequest,
    channel: Channel<f64>,
) -> Result<Inspection, CommandError> {
    let app = app.inner().clone();
    let InspectRequest { model, settings, limit } = request;
    // A page that is gone waits for nothing.
    let tell = move |share| channel.send(share).is_ok();
    work(move || app.inspect(&model, &settings, limit, tell)).await
}
