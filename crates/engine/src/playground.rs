//! The same prompt, answered by the model that a run began with and by what the run made of it.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use nibble_run::{Method, RunError, RunFolder, RunSettings, TrainingDevice};
use serde::Serialize;

use crate::{
    adapter::peft::ADAPTER_WEIGHTS,
    devices::{self, OpenDeviceError},
    generate::{AnySession, GenerateError, SamplingSettings, SessionSettings},
    train,
    weights::WeightFormat,
};

/// The least time between two pieces: often enough for the eye, seldom enough for a window.
const PIECE_INTERVAL: Duration = Duration::from_millis(50);

/// The context of prompt and answer together is at least this, where the model has it.
const LEAST_CONTEXT: usize = 1024;

/// What is asked, and of whom.
#[derive(Clone, Debug, PartialEq)]
pub struct Question {
    /// The run whose base and result answer.
    pub run: Option<PathBuf>,
    /// The model that answers alone, where there is no run.
    pub model: Option<PathBuf>,
    /// The checkpoint; `None`: the last.
    pub step: Option<u64>,
    /// What is asked.
    pub prompt: String,
    /// How tokens are chosen.
    pub sampling: SamplingSettings,
}

/// Who answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
pub enum Side {
    /// The model as it was.
    Base,
    /// The model as it was trained.
    Tuned,
}

/// A stretch of an answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
pub struct AnswerPiece {
    /// Who answers.
    pub side: Side,
    /// What follows the pieces before.
    pub text: String,
    /// Whether the answer is whole.
    pub done: bool,
    /// Tokens so far.
    pub tokens: usize,
    /// Tokens a second so far.
    pub tokens_per_s: f64,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum PlaygroundError {
    /// The run.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The model.
    #[error(transparent)]
    Generate(#[from] GenerateError),
    /// There is nothing to answer with yet.
    #[error("{run} has no such checkpoint; let it train until its first one, or stop and save it")]
    NoCheckpoint {
        /// The run.
        run: PathBuf,
    },
    /// Neither a run nor a model was chosen.
    #[error("nobody was asked; choose a run or a model")]
    Nobody,
}

/// Keeps the model that answered last open, for the next question.
#[derive(Debug, Default)]
pub struct Playground {
    open: Option<(Key, AnySession)>,
}

/// What an open model was opened from.
#[derive(Clone, Debug, PartialEq)]
struct Key {
    model: PathBuf,
    adapter: Option<(PathBuf, Option<SystemTime>)>,
    quantised: bool,
    context: usize,
}

impl Playground {
    /// Answers, the base first, handing out the answers piece by piece; `on_piece` returns whether
    /// to go on.
    ///
    /// # Errors
    /// When there is no such checkpoint, a file is damaged or the memory does not suffice.
    pub fn answer(
        &mut self,
        question: &Question,
        mut on_piece: impl FnMut(AnswerPiece) -> bool,
    ) -> Result<(), PlaygroundError> {
        let Some(run) = &question.run else {
            let model = question.model.clone().ok_or(PlaygroundError::Nobody)?;
            let (method, device) = (Method::Lora, devices::preferred());
            let settings = RunSettings { model, method, device, ..RunSettings::default() };
            let session = self.session(&settings, None, question)?;
            answer(session, Side::Base, question, &mut on_piece)?;
            return Ok(());
        };
        let folder = RunFolder::open(run)?;
        let settings = folder.settings()?;
        let checkpoint = folder
            .checkpoints()?
            .into_iter()
            .rfind(|checkpoint| question.step.is_none_or(|step| checkpoint.step == step))
            .ok_or_else(|| PlaygroundError::NoCheckpoint { run: run.clone() })?
            .path;
        if settings.method == Method::Full {
            let base = self.session(&settings, None, question)?;
            if answer(base, Side::Base, question, &mut on_piece)? {
                let tuned = RunSettings { model: checkpoint, ..settings };
                let tuned = self.session(&tuned, None, question)?;
                answer(tuned, Side::Tuned, question, &mut on_piece)?;
            }
            return Ok(());
        }
        let session = self.session(&settings, Some(&checkpoint), question)?;
        session.use_adapter(false);
        let goes_on = answer(session, Side::Base, question, &mut on_piece);
        session.use_adapter(true);
        if goes_on? {
            answer(session, Side::Tuned, question, &mut on_piece)?;
        }
        Ok(())
    }

    /// Gives the memory back.
    pub fn close(&mut self) {
        self.open = None;
    }

    /// The model of `settings` with the adapter at `adapter`, open: on their device, or on the
    /// processor where a card is not there any more or has no room for it beside what it does.
    fn session(
        &mut self,
        settings: &RunSettings,
        adapter: Option<&Path>,
        question: &Question,
    ) -> Result<&mut AnySession, GenerateError> {
        let context = question.sampling.max_tokens.saturating_mul(2).max(LEAST_CONTEXT);
        let modified = |path: &Path| fs::metadata(path.join(ADAPTER_WEIGHTS))?.modified();
        let key = Key {
            model: settings.model.clone(),
            adapter: adapter.map(|path| (path.to_owned(), modified(path).ok())),
            quantised: settings.method == Method::Qlora,
            context,
        };
        if self.open.as_ref().is_none_or(|(open, _)| *open != key) {
            // One model at a time.
            self.close();
        }
        let session = match self.open.take() {
            Some((_, session)) => session,
            None => {
                let on = |device| SessionSettings {
                    model: settings.model.clone(),
                    adapter: adapter.map(Path::to_owned),
                    weight_format: key.quantised.then_some(WeightFormat::Nf4),
                    context,
                    profile: devices::profile(
                        device,
                        settings.threads,
                        train::compute(settings.compute),
                    ),
                    cache: None,
                };
                match AnySession::open(&on(settings.device)) {
                    Err(
                        GenerateError::DoesNotFit { is_cuda: true, .. }
                        | GenerateError::Open(OpenDeviceError::Unavailable(_)),
                    ) => AnySession::open(&on(TrainingDevice::Cpu))?,
                    opened => opened?,
                }
            }
        };
        Ok(&mut self.open.insert((key, session)).1)
    }
}

/// Hands out one answer; returns whether `on_piece` wants to go on.
fn answer(
    session: &mut AnySession,
    side: Side,
    question: &Question,
    on_piece: &mut impl FnMut(AnswerPiece) -> bool,
) -> Result<bool, GenerateError> {
    let start = Instant::now();
    let rate =
        |tokens: usize| tokens as f64 / start.elapsed().max(Duration::from_nanos(1)).as_secs_f64();
    let mut last = start;
    let mut waiting = String::new();
    let mut n_pieces = 0;
    let mut goes_on = true;
    let (tokens, _) = session.answer(&question.prompt, &question.sampling, |text| {
        n_pieces += 1;
        waiting.push_str(text);
        if last.elapsed() >= PIECE_INTERVAL {
            last = Instant::now();
            let text = std::mem::take(&mut waiting);
            // A token mostly is a piece; the last word has the exact number.
            let (tokens, tokens_per_s) = (n_pieces, rate(n_pieces));
            goes_on = on_piece(AnswerPiece { side, text, done: false, tokens, tokens_per_s });
        }
        goes_on
    })?;
    let tokens_per_s = rate(tokens);
    let last = AnswerPiece { side, text: waiting, done: true, tokens, tokens_per_s };
    Ok(on_piece(last) && goes_on)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(playground: &mut Playground, question: &Question) -> (String, AnswerPiece) {
        let (mut text, mut last) = (String::new(), None);
        playground
            .answer(question, |piece| {
                text.push_str(&piece.text);
                last = Some(piece);
                true
            })
            .unwrap();
        (text, last.unwrap())
    }

    fn question() -> Question {
        Question {
            run: None,
            model: Some(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/starter")),
            step: None,
            prompt: "What color is the sky?".into(),
            sampling: SamplingSettings {
                temperature: 0.0,
                max_tokens: 12,
                ..SamplingSettings::default()
            },
        }
    }

    #[test]
    fn a_model_answers_alone_and_stays_open() {
        let mut playground = Playground::default();
        let (text, last) = ask(&mut playground, &question());
        assert!(text.contains("blue"), "{text}");
        assert_eq!((last.side, last.done), (Side::Base, true));
        assert!(playground.open.is_some());
        assert_eq!(ask(&mut playground, &question()).0, text);
        playground.close();
        assert!(playground.open.is_none());
    }

    #[test]
    fn a_run_without_checkpoints_says_so() {
        let place = tempfile::tempdir().unwrap();
        let run = place.path().join("run");
        RunFolder::create(&run, &RunSettings::default()).unwrap();
        let asked = Question { run: Some(run), ..question() };
        let error = Playground::default().answer(&asked, |_| true).unwrap_err();
        assert!(matches!(error, PlaygroundError::NoCheckpoint { .. }), "{error}");
        let nobody = Question { run: None, model: None, ..question() };
        let error = Playground::default().answer(&nobody, |_| true).unwrap_err();
        assert!(matches!(error, PlaygroundError::Nobody), "{error}");
    }
}
