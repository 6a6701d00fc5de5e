//! Examples to tokens, and which of them are trained on.

use std::{
    fs::File,
    io::{BufWriter, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    thread,
};

use crate::{
    ChatTemplate, ColumnMapping, DataError, Dataset, Example, Format, MalformedLines, Message,
    OnProgress, Tokenizer, random::hash,
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

/// What is kept of examples, and trained.
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

/// The examples of a dataset in tokens, behind one another in a file without a name: a dataset may
/// be larger than the memory, and what it takes of it is in no plan.
#[derive(Debug)]
pub struct TokenizedDataset {
    /// The file that the examples were read from.
    pub source: Dataset,
    /// Examples that were cut.
    pub n_cut: usize,
    /// Examples of which nothing to train on was left.
    pub n_skipped: usize,
    /// Tokens that are trained on.
    pub n_trained: usize,
    /// Conversations that the chat template refuses, which are left out.
    pub refused: MalformedLines,
    tokens: File,
    /// Where it was made, for errors.
    folder: PathBuf,
    /// First token of each example, and the end of the last.
    starts: Vec<u64>,
    /// Tokens of each example that are trained on.
    n_trained_of: Vec<u32>,
    fingerprint: u64,
}

/// The bit of a stored token that tells whether it is trained on; ids are far below it.
pub(crate) const TRAINED: u32 = 1 << 31;

/// How examples become tokens.
#[derive(Clone, Copy, Debug)]
pub struct Encoder<'a> {
    /// The model's tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// The model's chat template.
    pub template: &'a ChatTemplate,
    /// What is kept and trained.
    pub options: TokenizeOptions,
    /// Threads that tokenize.
    pub n_threads: usize,
}

impl Encoder<'_> {
    /// Tokenizes one example: at least as much of it as the options keep, and all of a short one.
    ///
    /// # Errors
    /// When the tokenizer or the template fails.
    pub fn encode(&self, example: &Example) -> Result<EncodedExample, DataError> {
        encode_example(example, self.tokenizer, self.template, &self.options)
    }

    /// Tokenizes examples on all threads; the results are in their order.
    fn encode_all(&self, examples: &[(usize, Example)]) -> Vec<Result<EncodedExample, DataError>> {
        let share = examples.len().div_ceil(self.n_threads.max(1)).max(1);
        let encode_share = |examples: &[(usize, Example)]| -> Vec<_> {
            examples.iter().map(|(_, example)| self.encode(example)).collect()
        };
        thread::scope(|scope| {
            let start = |examples| {
                let work = move || encode_share(examples);
                // Where the system has no thread left, this one does the work.
                let thread = thread::Builder::new().spawn_scoped(scope, work);
                thread.map_err(|_| examples)
            };
            let threads: Vec<_> = examples.chunks(share).map(start).collect();
            let results = threads.into_iter().flat_map(|thread| match thread {
                Ok(thread) => {
                    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                }
                Err(examples) => encode_share(examples),
            });
            results.collect()
        })
    }
}

/// What is counted while examples are tokenized.
#[derive(Debug)]
pub(crate) struct Tally {
    /// The file that the examples were read from.
    pub(crate) source: Dataset,
    /// Examples that are trained on.
    pub(crate) n_examples: usize,
    /// Their tokens.
    pub(crate) n_tokens: usize,
    /// Those that are trained on.
    pub(crate) n_trained: usize,
    /// Examples that were cut.
    pub(crate) n_cut: usize,
    /// Examples of which nothing to train on was left.
    pub(crate) n_skipped: usize,
    /// Conversations that the chat template refuses.
    pub(crate) refused: MalformedLines,
}

/// What is done with each tokenized example: it gets the example, its tokens up to the cut, and how
/// many of them are trained on.
pub(crate) type OnEncoded<'a> =
    &'a mut dyn FnMut(&EncodedExample, usize, usize) -> Result<(), DataError>;

/// Gathers examples until they are worth the threads that tokenize them, and counts.
struct Tokenizing<'a> {
    encoder: Encoder<'a>,
    on_encoded: OnEncoded<'a>,
    pending: Vec<(usize, Example)>,
    pending_bytes: usize,
    tally: Tally,
    first_text: Option<String>,
}

impl Tokenizing<'_> {
    /// Takes an example, and tokenizes those before when they are enough.
    fn push(&mut self, line: usize, example: Example) -> Result<(), DataError> {
        /// Text that keeps every core busy for long beside the start of a thread.
        const ENOUGH_BYTES: usize = 1 << 20;
        self.pending_bytes += example.n_bytes();
        self.pending.push((line, example));
        if self.pending_bytes >= ENOUGH_BYTES { self.take_pending() } else { Ok(()) }
    }

    fn take_pending(&mut self) -> Result<(), DataError> {
        let pending = std::mem::take(&mut self.pending);
        self.pending_bytes = 0;
        for (result, (line, _)) in self.encoder.encode_all(&pending).into_iter().zip(pending) {
            match result {
                Ok(encoded) => {
                    self.take(&encoded)?;
                    self.first_text.get_or_insert(encoded.text);
                }
                Err(DataError::Template { reason }) => {
                    let error = format!("the chat template refuses it: {reason}");
                    self.tally.refused.push(line, error);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn take(&mut self, encoded: &EncodedExample) -> Result<(), DataError> {
        let n_tokens = encoded.ids.len().min(self.encoder.options.max_tokens);
        // The first token is predicted by nothing.
        let n_trained = encoded.trained[..n_tokens].iter().skip(1).filter(|&&t| t).count();
        let tally = &mut self.tally;
        tally.n_cut += usize::from(n_tokens < encoded.ids.len());
        if n_trained == 0 {
            tally.n_skipped += 1;
        } else {
            tally.n_examples += 1;
            tally.n_tokens += n_tokens;
            tally.n_trained += n_trained;
        }
        (self.on_encoded)(encoded, n_tokens, n_trained)
    }

    fn finish(mut self, source: Dataset) -> Result<Tally, DataError> {
        self.take_pending()?;
        let tally = Tally { source, ..self.tally };
        if let Some(first) = tally.refused.first().first()
            && 2 * tally.refused.len() > tally.source.n_examples
        {
            return Err(DataError::MostlyRefused {
                n_refused: tally.refused.len(),
                n_examples: tally.source.n_examples,
                line: first.line,
                reason: first.error.clone(),
            });
        }
        if tally.n_examples == 0 {
            let text = self.first_text.unwrap_or_default();
            let short: String = text.chars().take(200).collect();
            let example = format!("{short:?}");
            return Err(DataError::NothingTrained { example });
        }
        Ok(tally)
    }
}

/// Reads the file at `path` and tokenizes its examples, but for conversations that the template
/// refuses. `on_progress` is told how many bytes of the file are read, and may break it off.
///
/// # Errors
/// When the file cannot be read, the tokenizer fails, the template refuses most, or nothing would
/// be trained on; what `on_encoded` says; [`DataError::Cancelled`] when it was broken off.
pub(crate) fn tokenize(
    path: &Path,
    mapping: &ColumnMapping,
    encoder: Encoder<'_>,
    on_progress: OnProgress<'_>,
    on_encoded: OnEncoded<'_>,
) -> Result<Tally, DataError> {
    let tally = Tally {
        source: Dataset {
            format: Format::Text,
            n_examples: 0,
            malformed: MalformedLines::default(),
        },
        n_examples: 0,
        n_tokens: 0,
        n_trained: 0,
        n_cut: 0,
        n_skipped: 0,
        refused: MalformedLines::default(),
    };
    let (pending, first_text) = (Vec::new(), None);
    let mut tokenizing =
        Tokenizing { encoder, on_encoded, pending, pending_bytes: 0, tally, first_text };
    let on_example = &mut |line, example| tokenizing.push(line, example);
    let source = Dataset::read(path, mapping, on_progress, on_example)?;
    tokenizing.finish(source)
}

impl TokenizedDataset {
    /// Reads the file at `path` and tokenizes its examples, but for conversations that the template
    /// refuses. The tokens go to a file without a name in `folder` (`None`: the system's for what is
    /// temporary). `on_progress` is told how many bytes of the file are read, and may break it off.
    ///
    /// # Errors
    /// When the file cannot be read, the tokenizer fails, the template refuses most, nothing would
    /// be trained on, or the tokens find no room; [`DataError::Cancelled`] when it was broken off.
    pub fn read(
        path: &Path,
        mapping: &ColumnMapping,
        encoder: Encoder<'_>,
        folder: Option<&Path>,
        on_progress: OnProgress<'_>,
    ) -> Result<Self, DataError> {
        let tokens = match folder {
            Some(folder) => tempfile::tempfile_in(folder),
            None => tempfile::tempfile(),
        };
        let folder = folder.map_or_else(std::env::temp_dir, Path::to_owned);
        let failed = |source| DataError::Write { folder: folder.clone(), source };
        let mut tokens = BufWriter::with_capacity(1 << 20, tokens.map_err(failed)?);
        let mut words: Vec<u32> = Vec::new();
        let (mut starts, mut n_trained_of, mut fingerprint) = (vec![0], Vec::new(), 0);
        let mut write = |encoded: &EncodedExample, n_tokens: usize, n_trained: usize| {
            if n_trained == 0 {
                return Ok(());
            }
            fingerprint = hash(fingerprint, n_tokens as u64);
            words.clear();
            for (&id, &trained) in encoded.ids.iter().zip(&encoded.trained).take(n_tokens) {
                fingerprint = hash(fingerprint, u64::from(id) << 1 | u64::from(trained));
                words.push(if trained { id | TRAINED } else { id });
            }
            tokens.write_all(bytemuck::cast_slice(&words)).map_err(failed)?;
            n_trained_of.push(n_trained as u32);
            starts.push(starts.last().copied().unwrap_or(0) + n_tokens as u64);
            Ok(())
        };
        let tally = tokenize(path, mapping, encoder, on_progress, &mut write)?;
        let tokens = tokens.into_inner().map_err(|error| failed(error.into_error()))?;
        let Tally { source, n_cut, n_skipped, n_trained, refused, .. } = tally;
        Ok(Self {
            source,
            n_cut,
            n_skipped,
            n_trained,
            refused,
            tokens,
            folder,
            starts,
            n_trained_of,
            fingerprint,
        })
    }

    /// Examples that are trained on.
    pub fn len(&self) -> usize {
        self.n_trained_of.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tokens of all examples.
    pub fn n_tokens(&self) -> usize {
        self.starts.last().map_or(0, |&end| end as usize)
    }

    /// A number that tells these examples in these tokens, and what is trained of them, from
    /// others.
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// Tokens of one example.
    pub fn example_len(&self, index: usize) -> usize {
        (self.starts[index + 1] - self.starts[index]) as usize
    }

    /// Tokens of one example that are trained on.
    pub fn example_trained(&self, index: usize) -> usize {
        self.n_trained_of[index] as usize
    }

    /// Reads one example into `words`, as long as it: each is a token's id, with [`TRAINED`] where
    /// it is trained on.
    pub(crate) fn read_example(&self, index: usize, words: &mut [u32]) -> Result<(), DataError> {
        let start = self.starts[index] * size_of::<u32>() as u64;
        let mut tokens = &self.tokens;
        tokens
            .seek(SeekFrom::Start(start))
            .and_then(|_| tokens.read_exact(bytemuck::cast_slice_mut(words)))
            .map_err(|source| DataError::Read { path: self.folder.clone(), source })
    }
}

fn encode_example(
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
