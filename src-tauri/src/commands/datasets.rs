//! How a dataset would be read.

use std::path::PathBuf;

use nibble_data::Inspection;
use nibble_engine::preview;
use nibble_run::RunSettings;
use serde::Deserialize;
use ts_rs::TS;

use super::work;
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

/// The dataset as it would be trained on.
#[tauri::command]
pub async fn inspect(request: InspectRequest) -> Result<Inspection, CommandError> {
    let InspectRequest { model, settings, limit } = request;
    work(move || Ok(preview::inspect(&model, &settings, limit)?)).await
}
