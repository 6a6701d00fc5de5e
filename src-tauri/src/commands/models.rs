//! What there is to begin with.

use std::path::PathBuf;

use nibble_engine::preview::ModelChoice;

use super::{App, work};
use crate::{
    error::CommandError,
    preferences::Preferences,
    state::{Startup, Studio},
};

/// What the page needs before it can show anything.
#[tauri::command]
pub async fn startup(app: App<'_>) -> Result<Startup, CommandError> {
    let app = app.inner().clone();
    work(move || app.startup()).await
}

/// Remembers what the person set.
#[tauri::command]
pub async fn save_preferences(app: App<'_>, preferences: Preferences) -> Result<(), CommandError> {
    let app = app.inner().clone();
    work(move || Studio::save_preferences(&app, preferences)).await
}

/// The models in the models' folder.
#[tauri::command]
pub async fn models(app: App<'_>) -> Result<Vec<ModelChoice>, CommandError> {
    let app = app.inner().clone();
    work(move || Ok(app.models())).await
}

/// A model in a folder.
#[tauri::command]
pub async fn open_model(path: PathBuf) -> Result<ModelChoice, CommandError> {
    work(move || Ok(ModelChoice::open(&path)?)).await
}
