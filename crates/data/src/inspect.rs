//! What a person sees of a dataset before training on it.

use std::{ops::ControlFlow, path::Path};

use serde::{Deserialize, Serialize};

use crate::{
    ColumnMapping, DataError, Dataset, EncodedExample, Encoder, Format, MalformedLine,
    TokenizedDataset,
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

/// Looks at the file at `path` as training with `encoder` would, with its first `n_samples` examples.
///
/// # Errors
/// When the file cannot be read, the tokenizer or the template fails, or nothing would be trained
/// on.
pub fn inspect(
    path: &Path,
    mapping: &ColumnMapping,
    encoder: Encoder<'_>,
    n_samples: usize,
) -> Result<Inspection, DataError> {
    let unwatched = &mut |_| ControlFlow::Continue(());
    let tokenized = TokenizedDataset::read(path, mapping, encoder, None, unwatched)?;
    let mut samples = Vec::new();
    if n_samples > 0 {
        Dataset::read(path, mapping, &mut |_, example, _| {
            match encoder.encode(&example) {
                Ok(encoded) => samples.push(InspectedSample::new(encoded, &encoder)?),
                // It is counted with the malformed lines.
                Err(DataError::Template { .. }) => {}
                Err(error) => return Err(error),
            }
            let is_enough = samples.len() == n_samples;
            Ok(if is_enough { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
    }
    let mut malformed = [tokenized.source.malformed.as_slice(), &tokenized.refused].concat();
    malformed.sort_by_key(|malformed| malformed.line);
    Ok(Inspection {
        format: tokenized.source.format,
        examples: tokenized.len(),
        tokens: tokenized.n_tokens(),
        trained_tokens: tokenized.n_trained,
        cut: tokenized.n_cut,
        skipped: tokenized.n_skipped,
        malformed,
        samples,
    })
}

impl InspectedSample {
    fn new(encoded: EncodedExample, encoder: &Encoder<'_>) -> Result<Self, DataError> {
        let EncodedExample { text, mut ids, mut trained } = encoded;
        ids.truncate(encoder.options.max_tokens);
        trained.truncate(encoder.options.max_tokens);
        let pieces = ids.iter().map(|&id| encoder.tokenizer.decode(&[id], false));
        let pieces = pieces.collect::<Result<_, _>>()?;
        Ok(Self { text, ids, trained, pieces })
    }
}
