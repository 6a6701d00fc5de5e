//! Writing text: a prompt through the model in chunks, then one token at a time over a key-value
//! cache. Works on any layout that has generation buffers, a training run's included.

mod session;

use candle_transformers::generation::{LogitsProcessor, Sampling};
use nibble_kernels::{Backend, MemoryError, attention::Segment, paging::PageError};

pub use session::{AnySession, GenerateError, Session, SessionSettings, answer, is_adapter};

use crate::{
    decoder::{Decoder, PassRows, Sweep},
    plan::{GenerationLayout, LayerSlices},
};

/// How the next token is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplingSettings {
    /// Flattens (above 1) or sharpens (below 1) the distribution; 0 takes the likeliest token.
    pub temperature: f64,
    /// Keeps the fewest tokens whose probabilities sum to this.
    pub top_p: f64,
    /// Seeds the choice.
    pub seed: u64,
    /// The most tokens of the answer.
    pub max_tokens: usize,
}

impl Default for SamplingSettings {
    fn default() -> Self {
        Self { temperature: 0.7, top_p: 0.9, seed: 0, max_tokens: 256 }
    }
}

impl SamplingSettings {
    /// Refuses impossible values.
    ///
    /// # Errors
    /// The first setting that is impossible, and what it must be.
    pub fn check(&self) -> Result<(), GenerateError> {
        let Self { temperature, top_p, max_tokens, .. } = *self;
        let rules = [
            (
                "temperature",
                temperature,
                temperature >= 0.0 && temperature.is_finite(),
                "it must be 0 (always the likeliest token) or more",
            ),
            (
                "top-p",
                top_p,
                top_p > 0.0 && top_p <= 1.0,
                "it must be above 0 and at most 1 (all tokens)",
            ),
            ("max-tokens", max_tokens as f64, max_tokens > 0, "it must be 1 or more"),
        ];
        match rules.into_iter().find(|(.., holds, _)| !holds) {
            Some((name, value, _, rule)) => Err(GenerateError::Setting { name, value, rule }),
            None => Ok(()),
        }
    }
}

/// Why a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The model wrote an end-of-text token.
    EndOfText,
    /// The answer reached its limit.
    MaxTokens,
    /// Prompt and answer filled the context.
    ContextFull,
    /// The receiver of the tokens asked to stop.
    Asked,
}

/// Writes an answer to `prompt`, handing each token to `on_token` as it is made; `on_token` returns
/// whether to go on. End-of-text tokens are not handed out.
///
/// A prompt longer than the context keeps its end, which is what the answer continues.
///
/// # Errors
/// When a setting is impossible, no next token can be chosen, a page of the weights could not be
/// moved, or the device failed.
pub fn generate<B: Backend>(
    (device, decoder, layout): (&mut B, &mut Decoder, &GenerationLayout),
    prompt: &[u32],
    end_of_text: &[u32],
    settings: &SamplingSettings,
    mut on_token: impl FnMut(u32) -> bool,
) -> Result<Stop, GenerateError> {
    settings.check()?;
    let sampling = if settings.temperature <= 0.0 {
        Sampling::ArgMax
    } else {
        Sampling::TopP { p: settings.top_p, temperature: settings.temperature }
    };
    let mut sampler = LogitsProcessor::from_sampling(settings.seed, sampling);
    let vocabulary = decoder.spec.vocabulary;
    let mut logits = vec![0.0_f32; vocabulary];
    let room = layout.context.saturating_sub(1);
    let prompt = &prompt[prompt.len().saturating_sub(room)..];
    let Some((&last, _)) = prompt.split_last() else { return Ok(Stop::EndOfText) };
    let chunk_rows = layout.ids.len().max(1);

    let mut n_past = 0;
    let mut n_rows = 0;
    for chunk in prompt.chunks(chunk_rows) {
        n_past += n_rows;
        n_rows = chunk.len();
        pass(device, decoder, layout, chunk, n_past)?;
    }
    let mut token = last;
    for n_written in 0.. {
        if n_written == settings.max_tokens {
            return Ok(Stop::MaxTokens);
        }
        if n_written > 0 {
            n_past += n_rows;
            n_rows = 1;
            if n_past == layout.context {
                return Ok(Stop::ContextFull);
            }
            pass(device, decoder, layout, &[token], n_past)?;
        }
        let residual = layout.residuals[decoder.spec.n_layers % 2];
        decoder.last_logits(
            device,
            residual,
            n_rows,
            layout.normed,
            layout.logits,
            layout.workspace,
        );
        device.download(layout.logits, &mut logits);
        // A device that failed leaves zeros, which would be a token like any other.
        device.check().map_err(MemoryError::from)?;
        let distribution =
            candle_core::Tensor::from_slice(&logits, vocabulary, &candle_core::Device::Cpu)?;
        token = sampler.sample(&distribution)?;
        if end_of_text.contains(&token) {
            return Ok(Stop::EndOfText);
        }
        if !on_token(token) {
            return Ok(Stop::Asked);
        }
    }
    Ok(Stop::MaxTokens)
}

/// `ids` through every layer, behind `n_past` tokens whose keys and values are in the cache.
fn pass<B: Backend>(
    device: &mut B,
    decoder: &mut Decoder,
    layout: &GenerationLayout,
    ids: &[u32],
    n_past: usize,
) -> Result<(), PageError> {
    let n_rows = ids.len();
    let positions = layout.positions.first(n_rows);
    for row in 0..n_rows {
        device.upload(&[(n_past + row) as u32], positions.slice(row..row + 1));
    }
    let segment = Segment {
        query_start: 0,
        n_queries: n_rows as u32,
        key_start: 0,
        n_keys: (n_past + n_rows) as u32,
    };
    device.upload(&[segment], layout.segment);
    let tokens = layout.ids.first(n_rows);
    device.upload(ids, tokens);
    let rows = PassRows {
        n_rows,
        n_past,
        positions,
        segments: layout.segment,
        max_segment: n_rows,
        dropout: None,
    };
    decoder.embed(device, tokens, layout.residuals[0]);
    for (layer, &[key, value]) in layout.cache.iter().enumerate() {
        let slices = LayerSlices { key, value, ..layout.layer };
        let (input, output) = (layout.residuals[layer % 2], layout.residuals[(layer + 1) % 2]);
        let workspace = layout.workspace;
        decoder.weights.enter(device, layer, Sweep::Up)?;
        decoder.layer_forward(device, layer, &rows, &slices, input, Some(output), workspace);
    }
    Ok(())
}

/// The logits of every token of `ids`, `[n, V]` row by row.
///
/// # Errors
/// When a page of the weights could not be moved, or the device failed.
///
/// # Panics
/// When `ids` are more than the context.
pub fn logits<B: Backend>(
    (device, decoder, layout): (&mut B, &mut Decoder, &GenerationLayout),
    ids: &[u32],
) -> Result<Vec<f32>, GenerateError> {
    assert!(ids.len() <= layout.context, "{} tokens in {}", ids.len(), layout.context);
    let vocabulary = decoder.spec.vocabulary;
    let mut logits = vec![0.0; ids.len() * vocabulary];
    let mut n_past = 0;
    for chunk in ids.chunks(layout.ids.len().max(1)) {
        pass(device, decoder, layout, chunk, n_past)?;
        let residual = layout.residuals[decoder.spec.n_layers % 2];
        for row in 0..chunk.len() {
            let (normed, workspace) = (layout.normed, layout.workspace);
            decoder.last_logits(device, residual, row + 1, normed, layout.logits, workspace);
            let start = (n_past + row) * vocabulary;
            device.download(layout.logits, &mut logits[start..start + vocabulary]);
        }
        n_past += chunk.len();
    }
    device.check().map_err(MemoryError::from)?;
    Ok(logits)
}
