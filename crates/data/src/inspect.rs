//! What a person sees of a dataset before training on it.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{
    ColumnMapping, DataError, EncodedExample, Encoder, Format, MalformedLine, MalformedLines,
    OnProgress, Tokenizer, tokenize::tokenize,
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
    pub n_malformed: usize,
    /// The first of them.
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

/// Looks at the file at `path` as training with `encoder` would, with its first `n_samples` examples.
/// `on_progress` is told how many bytes of the file are read, and may break it off.
///
/// # Errors
/// When the file cannot be read, the tokenizer or the template fails, or nothing would be trained
/// on; [`DataError::Cancelled`] when it was broken off.
pub fn inspect(
    path: &Path,
    mapping: &ColumnMapping,
    encoder: Encoder<'_>,
    n_samples: usize,
    on_progress: OnProgress<'_>,
) -> Result<Inspection, DataError> {
    let mut samples = Vec::new();
    let mut show = |encoded: &EncodedExample, n_tokens: usize, _: usize| {
        if samples.len() < n_samples {
            samples.push(InspectedSample::new(encoded, n_tokens, encoder.tokenizer)?);
        }
        Ok(())
    };
    let tally = tokenize(path, mapping, encoder, on_progress, &mut show)?;
    let (unreadable, refused) = (&tally.source.malformed, &tally.refused);
    let mut malformed = [unreadable.first(), refused.first()].concat();
    malformed.sort_by_key(|malformed| malformed.line);
    // Of each kind the first are remembered: those that come first of both.
    malformed.truncate(MalformedLines::REMEMBERED);
    Ok(Inspection {
        format: tally.source.format,
        examples: tally.n_examples,
        tokens: tally.n_tokens,
        trained_tokens: tally.n_trained,
        cut: tally.n_cut,
        skipped: tally.n_skipped,
        n_malformed: unreadable.len() + refused.len(),
        malformed,
        samples,
    })
}

impl InspectedSample {
    fn new(
        encoded: &EncodedExample,
        n_tokens: usize,
        tokenizer: &Tokenizer,
    ) -> Result<Self, DataError> {
        let ids = encoded.ids[..n_tokens].to_vec();
        let pieces = ids.iter().map(|&id| tokenizer.decode(&[id], false));
        Ok(Self {
            text: encoded.text.clone(),
            pieces: pieces.collect::<Result<_, _>>()?,
            trained: encoded.trained[..n_tokens].to_vec(),
            ids,
        })
    }
}
