//! The playground.

use std::path::PathBuf;

use nibble_engine::{
    generate::SamplingSettings,
    playground::{AnswerPiece, Question},
};
use serde::Deserialize;
use tauri::ipc::Channel;
use ts_rs::TS;

use super::{App, work};
use crate::error::CommandError;

/// What is asked, and of whom.
#[derive(Clone, Debug, Deserialize, TS)]
pub struct AnswerRequest {
    /// The run whose base and result answer.
    pub run: Option<PathBuf>,
    /// The model that answers alone, where there is no run.
    pub model: Option<PathBuf>,
    /// The checkpoint; `None`: the last.
    pub step: Option<u64>,
    /// What is asked.
    pub prompt: String,
    /// 0: always the likeliest token.
    pub temperature: f64,
    /// Keeps the fewest tokens whose probabilities sum to this.
    pub top_p: f64,
    /// The most tokens of an answer.
    pub max_tokens: usize,
    /// Seeds the choice of tokens.
    pub seed: u64,
}

impl From<AnswerRequest> for Question {
    fn from(request: AnswerRequest) -> Self {
        let AnswerRequest { run, model, step, prompt, .. } = request;
        let AnswerRequest { temperature, top_p, max_tokens, seed, .. } = request;
        let sampling = SamplingSettings { temperature, top_p, seed, max_tokens };
        Self { run, model, step, prompt, sampling }
    }
}

/// Answers piece by piece, and returns when all is said.
#[tauri::command]
pub async fn answer(
    app: App<'_>,
    request: AnswerRequest,
    channel: Channel<AnswerPiece>,
) -> Result<(), CommandError> {
    let app = app.inner().clone();
    work(move || app.answer(&request.into(), |piece| channel.send(piece).is_ok())).await
}

/// Ends the answer of the moment.
#[tauri::command]
pub async fn stop_answer(app: App<'_>) -> Result<(), CommandError> {
    app.stop_answer();
    Ok(())
}
