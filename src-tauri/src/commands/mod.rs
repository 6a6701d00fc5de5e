//! The page's commands: each is one call.

pub mod answers;
pub mod datasets;
pub mod exports;
pub mod models;
pub mod plans;
pub mod runs;
pub mod windows;

use std::sync::Arc;

use crate::{error::CommandError, state::Studio};

/// The app's state as Tauri hands it out.
pub type App<'a> = tauri::State<'a, Arc<Studio>>;

/// Does `work` beside the window's own thread; a panic in it is an error like others.
async fn work<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, CommandError> + Send + 'static,
) -> Result<T, CommandError> {
    let done = tauri::async_runtime::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(CommandError::defect(error)))
}
