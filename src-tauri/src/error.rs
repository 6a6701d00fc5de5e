//! Errors as the page gets them.

use nibble_engine::{
    export::ExportError, generate::GenerateError, model::ModelError, playground::PlaygroundError,
    train::TrainError,
};
use nibble_run::{Explain, RunError};
use serde::Serialize;
use ts_rs::TS;

/// What happened, and what to do; the page shows it beside what caused it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, TS, thiserror::Error)]
#[error("{message}")]
pub struct CommandError {
    /// Which error, in a form that does not change with the wording.
    pub code: String,
    /// What happened, and where.
    pub message: String,
    /// What to do; may be empty.
    pub hint: String,
}

impl CommandError {
    /// An error of the shell itself.
    pub fn new(code: &str, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { code: code.into(), message: message.into(), hint: hint.into() }
    }

    /// What the engine says.
    pub fn explained(error: &impl Explain) -> Self {
        let (message, hint) = error.explanation();
        Self::new(error.code(), sentence(&message), sentence(&hint))
    }

    /// Something that should not happen.
    pub fn defect(what: impl std::fmt::Display) -> Self {
        let hint = "This is a defect of Nibble: please report what you did. Runs are not harmed.";
        Self::new("defect", sentence(&what.to_string()), hint)
    }
}

/// With a capital letter and a full stop.
fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    let Some(first) = letters.next() else { return String::new() };
    // A path keeps its letters.
    let is_word = text.split_whitespace().next().is_some_and(|word| {
        word.chars().all(|letter| letter.is_alphabetic() && !letter.is_uppercase())
    });
    let mut sentence = String::new();
    if is_word {
        sentence.extend(first.to_uppercase());
    } else {
        sentence.push(first);
    }
    sentence.push_str(letters.as_str());
    if !sentence.ends_with(['.', '?', '!']) {
        sentence.push('.');
    }
    sentence
}

macro_rules! explained {
    ($($error:ty),*) => {
        $(impl From<$error> for CommandError {
            fn from(error: $error) -> Self {
                Self::explained(&error)
            }
        })*
    };
}

explained!(ExportError, GenerateError, ModelError, PlaygroundError, RunError, TrainError);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_say_what_happened_and_what_to_do() {
        let error = CommandError::from(RunError::NoRun { path: "/tmp/x".into() });
        assert_eq!(error.code, "no_run");
        assert_eq!(error.message, "/tmp/x is no run folder: it has no run.toml.");
        assert_eq!(error.hint, "Choose the folder that holds run.toml.");
        let (id, repository) = ("llama-2-7b".into(), "meta-llama/Llama-2-7b-hf".into());
        let error = CommandError::from(TrainError::NotDownloaded { id, repository });
        assert_eq!(error.code, "not_downloaded");
        assert!(error.hint.starts_with("Download meta-llama"), "{}", error.hint);
        assert!(!error.hint.contains("--"), "{}", error.hint);
    }
}
