//! The model's tokenizer and its special tokens.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

use crate::DataError;

/// The first byte of a piece of text, and the one behind its last.
pub type ByteSpan = (usize, usize);

/// A tokenizer with what its model's files say about it.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    n_tokens: usize,
    bos: Option<String>,
    eos: Option<String>,
    eos_ids: Vec<u32>,
    bos_id: Option<u32>,
}

impl Tokenizer {
    /// Opens the tokenizer in a model's folder.
    ///
    /// # Errors
    /// When there is none, or it is damaged.
    pub fn open(folder: &Path) -> Result<Self, DataError> {
        let path = folder.join("tokenizer.json");
        if !path.is_file() {
            return Err(DataError::NoTokenizer { folder: folder.to_owned() });
        }
        let inner = tokenizers::Tokenizer::from_file(&path).map_err(|error| {
            DataError::Tokenizer { path: path.clone(), reason: error.to_string() }
        })?;
        let config = read_json(&folder.join("tokenizer_config.json"))?;
        let special = read_json(&folder.join("special_tokens_map.json"))?;
        // A token is written as its text, or as an object that holds it.
        let named = |name: &str| {
            [&config, &special].into_iter().find_map(|file| match file.get(name)? {
                Value::String(token) => Some(token.clone()),
                Value::Object(token) => token.get("content")?.as_str().map(str::to_owned),
                _ => None,
            })
        };
        let (bos, eos) = (named("bos_token"), named("eos_token"));
        let mut eos_ids: Vec<u32> =
            eos.iter().filter_map(|token| inner.token_to_id(token)).collect();
        for file in ["generation_config.json", "config.json"] {
            let ids = read_json(&folder.join(file))?;
            let ids = match ids.get("eos_token_id") {
                Some(Value::Array(ids)) => ids.clone(),
                Some(id) => vec![id.clone()],
                None => Vec::new(),
            };
            for id in ids.iter().filter_map(Value::as_u64).filter_map(|id| u32::try_from(id).ok()) {
                if !eos_ids.contains(&id) {
                    eos_ids.push(id);
                }
            }
        }
        let n_tokens =
            inner.get_vocab(true).values().max().map_or(0, |&largest| largest as usize + 1);
        // Ids of a configuration that belong to no token would never be seen or be out of range.
        eos_ids.retain(|&id| inner.id_to_token(id).is_some());
        let bos_id = bos.as_ref().and_then(|token| inner.token_to_id(token));
        let eos = eos.or_else(|| eos_ids.first().and_then(|&id| inner.id_to_token(id)));
        Ok(Self { inner, n_tokens, bos, eos, eos_ids, bos_id })
    }

    /// One more than the largest id.
    pub fn n_tokens(&self) -> usize {
        self.n_tokens
    }

    /// Ids that end a text; the first is the one that training appends.
    pub fn eos_ids(&self) -> &[u32] {
        &self.eos_ids
    }

    /// The id that begins a text, in models that have one.
    pub fn bos_id(&self) -> Option<u32> {
        self.bos_id
    }

    /// The token that begins a text, as it is written in templates.
    pub fn bos_token(&self) -> Option<&str> {
        self.bos.as_deref()
    }

    /// The token that ends a text, as it is written in templates.
    pub fn eos_token(&self) -> Option<&str> {
        self.eos.as_deref()
    }

    /// Refuses a tokenizer with ids beyond the model's embedding. Fewer are normal: embeddings are
    /// rounded up.
    ///
    /// # Errors
    /// When the model knows fewer tokens.
    pub fn check_vocabulary(&self, n_model_tokens: usize) -> Result<(), DataError> {
        if self.n_tokens > n_model_tokens {
            return Err(DataError::Vocabulary { n_tokens: self.n_tokens, n_model_tokens });
        }
        Ok(())
    }

    /// The ids of a text. Special tokens inside it are recognised; `add_special_tokens` decides
    /// whether those that the model begins and ends with are added.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, DataError> {
        self.encode_with_offsets(text, add_special_tokens).map(|(ids, _)| ids)
    }

    /// The ids of a text, and the bytes of the text that each stands for; added tokens stand for
    /// none.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn encode_with_offsets(
        &self,
        text: &str,
        add_special_tokens: bool,
    ) -> Result<(Vec<u32>, Vec<ByteSpan>), DataError> {
        let encoding = self
            .inner
            .encode(text, add_special_tokens)
            .map_err(|error| DataError::Encode { reason: error.to_string() })?;
        Ok((encoding.get_ids().to_vec(), encoding.get_offsets().to_vec()))
    }

    /// As [`Self::encode_with_offsets`], of no more of the text than what its first `max_tokens`
    /// tokens take and some behind them: a tokenizer holds a hundred bytes and more for each byte of
    /// a text, and of a whole book in one example only the beginning is used.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn encode_beginning(
        &self,
        text: &str,
        add_special_tokens: bool,
        max_tokens: usize,
    ) -> Result<(Vec<u32>, Vec<ByteSpan>), DataError> {
        // Tokens next to a cut may differ from those of the whole text; these are beyond what is
        // used.
        const MARGIN_TOKENS: usize = 256;
        let enough = max_tokens.saturating_add(MARGIN_TOKENS);
        let mut n_bytes = enough.saturating_mul(8);
        while let Some(end) = word_end(text, n_bytes) {
            let (ids, offsets) = self.encode_with_offsets(&text[..end], add_special_tokens)?;
            if ids.len() >= enough {
                return Ok((ids, offsets));
            }
            n_bytes = n_bytes.saturating_mul(2);
        }
        self.encode_with_offsets(text, add_special_tokens)
    }

    /// The ids of a text that the model is to go on with: with the tokens that it begins a text
    /// with where `add_special_tokens` says so, and without those that would end it.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn encode_prompt(
        &self,
        text: &str,
        add_special_tokens: bool,
    ) -> Result<Vec<u32>, DataError> {
        let (mut ids, offsets) = self.encode_with_offsets(text, add_special_tokens)?;
        // Added tokens stand for no text.
        let n_with_text = offsets.iter().rposition(|(start, end)| start < end).map(|last| last + 1);
        if let Some(n_with_text) = n_with_text {
            ids.truncate(n_with_text);
        }
        Ok(ids)
    }

    /// The text of ids.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String, DataError> {
        self.inner
            .decode(ids, skip_special_tokens)
            .map_err(|error| DataError::Encode { reason: error.to_string() })
    }
}

/// The end of the first word that ends at byte `start` of `text` or behind it (in a script without
/// spaces, of a character near there); `None` where the text ends before.
fn word_end(text: &str, start: usize) -> Option<usize> {
    const LONGEST_WORD: usize = 4096;
    let start = (start..text.len()).find(|&at| text.is_char_boundary(at))?;
    let near = &text[start..];
    let near = near.char_indices().take_while(|(at, _)| *at < LONGEST_WORD);
    let end = near.zip(text[start..].chars().skip(1)).find_map(|((at, before), after)| {
        let at = start + at + before.len_utf8();
        (!before.is_whitespace() && after.is_whitespace()).then_some(at)
    });
    Some(end.unwrap_or(start))
}

/// The JSON object in a file; an empty one when there is no file.
pub(crate) fn read_json(path: &Path) -> Result<Value, DataError> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Value::Null),
        Err(source) => return Err(DataError::Read { path: path.to_owned(), source }),
    };
    serde_json::from_str(&text)
        .map_err(|error| DataError::Json { path: PathBuf::from(path), reason: error.to_string() })
}

/// Turns tokens into text as they come. A token may be a part of a character, and a word's form
/// may depend on its neighbours: text is handed out once more tokens cannot change it.
#[derive(Debug)]
pub struct StreamDecoder<'a> {
    tokenizer: &'a Tokenizer,
    ids: Vec<u32>,
    /// Tokens before this are handed out, but kept for their neighbours.
    start: usize,
    /// Tokens before this are handed out.
    done: usize,
}

impl<'a> StreamDecoder<'a> {
    /// Nothing yet.
    pub fn new(tokenizer: &'a Tokenizer) -> Self {
        Self { tokenizer, ids: Vec::new(), start: 0, done: 0 }
    }

    /// Adds a token; the text that is now certain, if any.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn push(&mut self, id: u32) -> Result<Option<String>, DataError> {
        self.ids.push(id);
        let before = self.tokenizer.decode(&self.ids[self.start..self.done], true)?;
        let now = self.tokenizer.decode(&self.ids[self.start..], true)?;
        // The replacement character stands for the beginning of a character.
        if now.len() <= before.len() || now.ends_with('\u{fffd}') {
            return Ok(None);
        }
        let Some(text) = now.get(before.len()..) else { return Ok(None) };
        self.start = self.done;
        self.done = self.ids.len();
        Ok(Some(text.to_owned()))
    }

    /// What is left at the end.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn finish(self) -> Result<Option<String>, DataError> {
        let before = self.tokenizer.decode(&self.ids[self.start..self.done], true)?;
        let now = self.tokenizer.decode(&self.ids[self.start..], true)?;
        Ok(now.get(before.len()..).filter(|text| !text.is_empty()).map(str::to_owned))
    }
}
