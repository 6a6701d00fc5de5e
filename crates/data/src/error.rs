//! What can be wrong with a dataset, a tokenizer or a chat template.

use std::{io, path::PathBuf};

/// What happened, where, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// A file could not be read.
    #[error("could not read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The tokens could not be put aside.
    #[error(
        "could not write the dataset's tokens to a temporary file in {folder}: {source}; free some space there"
    )]
    Write {
        /// Where the file is.
        folder: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Whoever asked for it wants it no more.
    #[error("the reading of the dataset was broken off")]
    Cancelled,
    /// The model has no tokenizer.
    #[error(
        "there is no tokenizer.json in {folder}; download it with the model (models with only a tokenizer.model must be converted with transformers first)"
    )]
    NoTokenizer {
        /// The model's folder.
        folder: PathBuf,
    },
    /// A tokenizer's file is damaged.
    #[error("{path} cannot be read as a tokenizer: {reason}; download it again")]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The tokenizer knows tokens that the model does not.
    #[error(
        "the tokenizer has {n_tokens} tokens and the model only {n_model_tokens}; they do not belong together: use the tokenizer.json that came with the model"
    )]
    Vocabulary {
        /// Tokens of the tokenizer.
        n_tokens: usize,
        /// Rows of the model's embedding.
        n_model_tokens: usize,
    },
    /// A text could not be tokenized.
    #[error("a text could not be tokenized: {reason}")]
    Encode {
        /// What is wrong.
        reason: String,
    },
    /// The chat template fails.
    #[error(
        "the model's chat template fails: {reason}; the template is in the model's folder (chat_template.jinja or tokenizer_config.json)"
    )]
    Template {
        /// What is wrong, and with which conversation.
        reason: String,
    },
    /// The file holds no examples.
    #[error(
        "{path} holds no examples; it should have one JSON object a line, such as {{\"prompt\": \"…\", \"completion\": \"…\"}}"
    )]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// The file is text in another encoding.
    #[error("{path} is {encoding} text; save it as UTF-8 and choose it again")]
    Encoding {
        /// The file.
        path: PathBuf,
        /// What it is.
        encoding: &'static str,
    },
    /// The columns are none that are known.
    #[error(
        "{path} has the columns {found}; known are: text; prompt and completion; instruction, input and output; messages; conversations. Name yours with --text-column, --prompt-column and --completion-column, or --messages-column"
    )]
    UnknownColumns {
        /// The file.
        path: PathBuf,
        /// The columns of the first example.
        found: String,
    },
    /// Columns were named where there are none.
    #[error(
        "{path} is plain text, which has no columns; leave the names of columns out, or choose a file with one JSON object a line"
    )]
    NoColumns {
        /// The file.
        path: PathBuf,
    },
    /// Most lines cannot be read.
    #[error(
        "{n_malformed} of {n_lines} examples in {path} cannot be read; the first is line {line}: {reason}. A dataset is a file with one JSON object a line, a JSON list of objects, or plain text (.txt)"
    )]
    MostlyMalformed {
        /// The file.
        path: PathBuf,
        /// How many.
        n_malformed: usize,
        /// Of how many.
        n_lines: usize,
        /// The first of them.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// The whole file is no JSON.
    #[error("{path} is no JSON: {reason}; mend it, or get the file again")]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong, with line and column.
        reason: String,
    },
    /// The chat template refuses most conversations.
    #[error(
        "the model's chat template refuses {n_refused} of {n_examples} conversations; the first is line {line}: {reason}. Change the conversations to what the template takes, or use a model with another template"
    )]
    MostlyRefused {
        /// How many.
        n_refused: usize,
        /// Of how many.
        n_examples: usize,
        /// Where the first of them is.
        line: usize,
        /// What the template says.
        reason: String,
    },
    /// No token would be trained on.
    #[error(
        "no token of any example would be trained on: there are no completions or assistant turns, or all were cut off. The first example is: {example}. Train on everything with --train-on everything, or choose a longer --seq"
    )]
    NothingTrained {
        /// The beginning of the first example.
        example: String,
    },
}
