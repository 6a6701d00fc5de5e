//! What a person sees of a dataset before training on it.

use serde::{Deserialize, Serialize};

use crate::{
    ChatTemplate, DataError, Dataset, Format, MalformedLine, TokenizeOptions, TokenizedDataset,
    Tokenizer, encode_example,
};

/// A line that cannot be read.
pub type InspectedLine = MalformedLine;

/// A dataset as it would be trained on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
pub struct Inspection {
    /// What the examples look like.
    pub format: Format,
    /// Examples that are trained on.
    pub examples: usize,
    /// Their tokens.
    pub tokens: usize,
    /// Tokens that the loss counts.
    pub trained_tokens: usize,
    /// Examples that were cut.
    pub cut: usize,
    /// Examples of which nothing to train on is left.
    pub skipped: usize,
    /// Lines that cannot be read, or that the chat template refuses.
    pub malformed: Vec<InspectedLine>,
    /// The first examples.
    pub samples: Vec<InspectedSample>,
}

/// One example as it would be trained on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
pub struct InspectedSample {
    /// The rendered text.
    pub text: String,
    /// Its tokens, up to the cut.
    pub ids: Vec<u32>,
    /// Whether the loss counts each.
    pub trained: Vec<bool>,
    /// The text of each token.
    pub pieces: Vec<String>,
}

/// Looks at `dataset` as training with `options` would, with its first `n_samples` examples.
///
/// # Errors
/// When the tokenizer or the template fails, or nothing would be trained on.
pub fn inspect(
    dataset: &Dataset,
    tokenizer: &Tokenizer,
    template: &ChatTemplate,
    options: &TokenizeOptions,
    n_samples: usize,
) -> Result<Inspection, DataError> {
    let tokenized = TokenizedDataset::build(dataset, tokenizer, template, options)?;
    let samples = dataset
        .examples
        .iter()
        .map(|example| encode_example(example, tokenizer, template, options))
        .filter(|encoded| !matches!(encoded, Err(DataError::Template { .. })))
        .take(n_samples)
        .map(|encoded| {
            let mut encoded = encoded?;
            encoded.ids.truncate(options.max_tokens);
            encoded.trained.truncate(options.max_tokens);
            let pieces = encoded
                .ids
                .iter()
                .map(|&id| tokenizer.decode(&[id], false))
                .collect::<Result<_, _>>()?;
            let crate::EncodedExample { text, ids, trained } = encoded;
            Ok(InspectedSample { text, ids, trained, pieces })
        })
        .collect::<Result<_, DataError>>()?;
    let mut malformed = [dataset.malformed.as_slice(), &tokenized.refused].concat();
    malformed.sort_by_key(|malformed| malformed.line);
    Ok(Inspection {
        format: dataset.format,
        examples: tokenized.len(),
        tokens: tokenized.n_tokens(),
        trained_tokens: tokenized.n_trained,
        cut: tokenized.n_cut,
        skipped: tokenized.n_skipped,
        malformed,
        samples,
    })
}
