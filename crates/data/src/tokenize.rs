//! Examples to tokens, and which of them are trained on.

use crate::{
    ChatTemplate, DataError, Dataset, Example, MalformedLine, Message, Tokenizer, batches::hash,
};

/// Which tokens the loss counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TrainOn {
    /// Completions and the assistant's turns; whole texts where there is neither.
    #[default]
    Completions,
    /// Every token.
    Everything,
}

/// How examples become tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenizeOptions {
    /// The longest example; the rest is cut off.
    pub max_tokens: usize,
    /// Which tokens the loss counts.
    pub train_on: TrainOn,
}

/// One example in tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedExample {
    /// The text that was tokenized.
    pub text: String,
    /// Its tokens.
    pub ids: Vec<u32>,
    /// Whether each is trained on.
    pub trained: Vec<bool>,
}

/// The examples of a dataset in tokens, behind one another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenizedDataset {
    ids: Vec<u32>,
    trained: Vec<bool>,
    /// First token of each example, and the end of the last.
    starts: Vec<usize>,
    /// Examples that were cut.
    pub n_cut: usize,
    /// Examples of which nothing to train on was left.
    pub n_skipped: usize,
    /// Tokens that are trained on.
    pub n_trained: usize,
    /// Conversations that the chat template refuses, which are left out.
    pub refused: Vec<MalformedLine>,
}

impl TokenizedDataset {
    /// Tokenizes every example of `dataset`, but for conversations that the template refuses.
    ///
    /// # Errors
    /// When the tokenizer fails, the template refuses most, or nothing would be trained on.
    pub fn build(
        dataset: &Dataset,
        tokenizer: &Tokenizer,
        template: &ChatTemplate,
        options: &TokenizeOptions,
    ) -> Result<Self, DataError> {
        let mut tokenized = Self { starts: vec![0], ..Self::default() };
        let mut first_text = None;
        for (example, &line) in dataset.examples.iter().zip(&dataset.lines) {
            match encode_example(example, tokenizer, template, options) {
                Ok(encoded) => {
                    tokenized.push(&encoded, options.max_tokens);
                    first_text.get_or_insert(encoded.text);
                }
                Err(DataError::Template { reason }) => {
                    let error = format!("the chat template refuses it: {reason}");
                    tokenized.refused.push(MalformedLine { line, error });
                }
                Err(error) => return Err(error),
            }
        }
        if let Some(first) = tokenized.refused.first()
            && 2 * tokenized.refused.len() > dataset.examples.len()
        {
            return Err(DataError::MostlyRefused {
                n_refused: tokenized.refused.len(),
                n_examples: dataset.examples.len(),
                line: first.line,
                reason: first.error.clone(),
            });
        }
        if tokenized.is_empty() {
            let text = first_text.unwrap_or_default();
            let short: String = text.chars().take(200).collect();
            let example = format!("{short:?}");
            return Err(DataError::NothingTrained { example });
        }
        Ok(tokenized)
    }

    fn push(&mut self, encoded: &EncodedExample, max_tokens: usize) {
        let n_tokens = encoded.ids.len().min(max_tokens);
        self.n_cut += usize::from(n_tokens < encoded.ids.len());
        // The first token is predicted by nothing.
        let n_trained = encoded.trained[..n_tokens].iter().skip(1).filter(|&&t| t).count();
        if n_trained == 0 {
            self.n_skipped += 1;
            return;
        }
        self.n_trained += n_trained;
        self.ids.extend_from_slice(&encoded.ids[..n_tokens]);
        self.trained.extend_from_slice(&encoded.trained[..n_tokens]);
        self.starts.push(self.ids.len());
    }

    /// Examples that are trained on.
    pub fn len(&self) -> usize {
        self.starts.len().saturating_sub(1)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tokens of all examples.
    pub fn n_tokens(&self) -> usize {
        self.ids.len()
    }

    /// A number that tells these examples in these tokens, and what is trained of them, from
    /// others.
    pub fn fingerprint(&self) -> u64 {
        let mut fingerprint = 0;
        for index in 0..self.len() {
            let (ids, trained) = self.example(index);
            fingerprint = hash(fingerprint, ids.len() as u64);
            for (&id, &trained) in ids.iter().zip(trained) {
                fingerprint = hash(fingerprint, u64::from(id) << 1 | u64::from(trained));
            }
        }
        fingerprint
    }

    /// Tokens of one example.
    pub fn example_len(&self, index: usize) -> usize {
        self.starts[index + 1] - self.starts[index]
    }

    /// Tokens of one example, and whether each is trained on.
    pub fn example(&self, index: usize) -> (&[u32], &[bool]) {
        let range = self.starts[index]..self.starts[index + 1];
        (&self.ids[range.clone()], &self.trained[range])
    }

    /// Tokens of one example that are trained on.
    pub fn example_trained(&self, index: usize) -> usize {
        self.example(index).1.iter().skip(1).filter(|&&trained| trained).count()
    }
}

/// Tokenizes one example: at least as much of it as `options` keep, and all of a short one.
///
/// # Errors
/// When the tokenizer or the template fails.
pub fn encode_example(
    example: &Example,
    tokenizer: &Tokenizer,
    template: &ChatTemplate,
    options: &TokenizeOptions,
) -> Result<EncodedExample, DataError> {
    let TokenizeOptions { max_tokens, train_on } = *options;
    let (text, spans, written_by_template) = match example {
        Example::Text(text) => (text.clone(), vec![(0, text.len())], false),
        Example::Completion { prompt, completion } => {
            let spans = vec![(prompt.len(), prompt.len() + completion.len())];
            (format!("{prompt}{completion}"), spans, false)
        }
        Example::Messages(messages) => {
            let (text, spans) = conversation(messages, template)?;
            (text, spans, !template.is_plain())
        }
    };
    // A model's own template writes the special tokens itself.
    let (mut ids, offsets) = tokenizer.encode_beginning(&text, !written_by_template, max_tokens)?;
    let mut trained: Vec<bool> = offsets
        .iter()
        .map(|&(start, end)| {
            // A token belongs to the span that its last byte lies in; one that straddles the
            // border from the prompt is trained, or the completion's beginning would not be.
            train_on == TrainOn::Everything
                || start < end && spans.iter().any(|&(from, to)| end > from && end <= to)
        })
        .collect();
    if let Some(&eos) = tokenizer.eos_ids().first() {
        let ends = |id: &u32| tokenizer.eos_ids().contains(id);
        match ids.iter().rposition(ends) {
            // White space may follow the template's end of turn.
            Some(last) if trained_tail_is_blank(&text, &offsets, last) => {
                let was_assistants = match example {
                    Example::Messages(messages) => {
                        messages.last().is_some_and(|message| message.role == "assistant")
                    }
                    _ => true,
                };
                trained[last] |= was_assistants;
            }
            // Without an end a model never learns to stop.
            _ => {
                let answered = match example {
                    Example::Messages(messages) => {
                        messages.last().is_some_and(|message| message.role == "assistant")
                    }
                    _ => true,
                };
                if answered {
                    ids.push(eos);
                    trained.push(true);
                }
            }
        }
    }
    Ok(EncodedExample { text, ids, trained })
}

/// Whether nothing but white space follows token `last`.
fn trained_tail_is_blank(text: &str, offsets: &[(usize, usize)], last: usize) -> bool {
    let end = offsets[last].1;
    // An added token stands for no text; it is an end if it is the last token.
    if offsets[last].0 == end {
        return last + 1 == offsets.len();
    }
    text.get(end..).is_some_and(|rest| rest.trim().is_empty())
}

/// The text of a conversation, and the bytes of the assistant's turns, each with what ends it.
///
/// A turn is what rendering adds when the message is added to a conversation whose prompt for it
/// is already open. Templates that write earlier turns differently once later ones follow (such as
/// those that drop old reasoning) have no such text for them: then the message's own words are
/// looked up in the whole.
fn conversation(
    messages: &[Message],
    template: &ChatTemplate,
) -> Result<(String, Vec<(usize, usize)>), DataError> {
    let text = template.render(messages, false)?;
    let mut spans = Vec::new();
    let mut from = 0;
    for (i, message) in messages.iter().enumerate() {
        if message.role != "assistant" {
            continue;
        }
        // A template may refuse to end, or to begin, in the middle.
        let before = template.render(&messages[..i], true).ok();
        let after = template.render(&messages[..=i], false).ok();
        let stable = before.zip(after).filter(|(before, after)| {
            before.len() >= from
                && after.len() > before.len()
                && after.starts_with(before.as_str())
                && text.starts_with(after.trim_end())
        });
        let span = match stable {
            Some((before, after)) => {
                // White space behind the end of the turn belongs to the next one.
                let end = before.len().max(after.trim_end().len());
                Some((before.len(), end))
            }
            None => {
                let words = message.content.trim();
                text.get(from..)
                    .and_then(|rest| rest.find(words))
                    .map(|at| (from + at, from + at + words.len()))
            }
        };
        if let Some(span) = span {
            from = span.1;
            spans.push(span);
        }
    }
    Ok((text, spans))
}
