//! A model that only reads and writes text: for the playground, the command line, and for holding
//! every export against the run it came from.

use std::path::{Path, PathBuf};

use nibble_data::{ChatTemplate, Message, StreamDecoder, Tokenizer};
use nibble_kernels::{
    Backend, Compute, Cpu, Cuda, DeviceProfile, memory::MemoryError, paging::PageError,
};
use nibble_run::size;

use super::{SamplingSettings, Stop, generate};
use crate::{
    adapter::{
        AdapterError,
        peft::{self, AdapterFolder},
    },
    decoder::{Adapter, Decoder, fill_rope_tables},
    devices::{self, OpenDeviceError, RunDevice},
    model::{ModelError, ModelSpec},
    plan::{GenerationShape, Regions, SessionLayout},
    weights::{
        EmbeddingFormat, ModelFolder, PagedLayers, PlacedWeights, WeightFormat, WeightLayout,
        load::unwatched, place_weights,
    },
};

/// Why no text could be written.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    /// The model.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The adapter.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// The tokenizer or the chat template.
    #[error(transparent)]
    Data(#[from] nibble_data::DataError),
    /// The device has no room, or failed.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The device is not there, or could not be opened.
    #[error(transparent)]
    Open(#[from] OpenDeviceError),
    /// A setting of the sampling has an impossible value.
    #[error("{name} is {value}; {rule}")]
    Setting {
        /// The setting.
        name: &'static str,
        /// Its value.
        value: f64,
        /// What it must be.
        rule: &'static str,
    },
    /// A page of the weights could not be moved.
    #[error(transparent)]
    Page(#[from] PageError),
    /// The next token could not be chosen.
    #[error(
        "no next token could be chosen ({0}); the model's output is not a number: its weights or the adapter are damaged"
    )]
    Sample(#[from] candle_core::Error),
    /// Too little memory.
    #[error(
        "writing text with this model needs {} and {} is available{}; choose a smaller model, NF4 weights or a shorter context{}",
        size(*needed_bytes), size(*available_bytes),
        if *is_cuda { " on the graphics card" } else { "" },
        if *is_cuda { ", or the processor (--device cpu)" } else { "" }
    )]
    DoesNotFit {
        /// The plan's peak.
        needed_bytes: u64,
        /// What there is.
        available_bytes: u64,
        /// Whether that is a card's memory.
        is_cuda: bool,
    },
}

impl GenerateError {
    /// Refuses what needs more than the device of `profile` has.
    pub(crate) fn check_fit(
        needed_bytes: u64,
        profile: &DeviceProfile,
    ) -> Result<(), GenerateError> {
        let available_bytes = devices::available_bytes(profile);
        if needed_bytes <= available_bytes {
            return Ok(());
        }
        Err(Self::DoesNotFit { needed_bytes, available_bytes, is_cuda: profile.is_cuda() })
    }
}

/// What to open.
#[derive(Clone, Debug)]
pub struct SessionSettings {
    /// The model's folder.
    pub model: PathBuf,
    /// A PEFT adapter folder.
    pub adapter: Option<PathBuf>,
    /// How the matrices are stored; `None`: as precise as the products.
    pub weight_format: Option<WeightFormat>,
    /// The most tokens of prompt and answer together.
    pub context: usize,
    /// The device.
    pub profile: DeviceProfile,
    /// Where quantised weights are kept; `None`: the user's cache folder.
    pub cache: Option<PathBuf>,
}

/// A model, open for reading and writing text.
#[derive(Debug)]
pub struct Session<B> {
    device: B,
    decoder: Decoder,
    layout: SessionLayout,
    adapter: Option<Adapter>,
    tokenizer: Tokenizer,
    template: ChatTemplate,
}

impl<B: RunDevice> Session<B> {
    /// Opens a model, and an adapter on it, on the device of the settings' profile.
    ///
    /// # Errors
    /// When a file is missing or damaged, the device cannot be opened, or its memory does not
    /// suffice.
    pub fn open(settings: &SessionSettings) -> Result<Self, GenerateError> {
        devices::meet(&settings.profile)?;
        let folder = ModelFolder::open(&settings.model)?;
        let config = settings.model.join("config.json");
        devices::check_model(&settings.profile, folder.spec(), &config)?;
        let tokenizer = Tokenizer::open(&settings.model)?;
        tokenizer.check_vocabulary(folder.spec().vocabulary)?;
        let template = ChatTemplate::open(&settings.model, &tokenizer)?;
        let spec = folder.spec().clone();
        let adapter =
            settings.adapter.as_deref().map(|path| AdapterFolder::open(path, &spec)).transpose()?;

        let plain = match settings.profile.compute {
            Compute::F32 => WeightFormat::F32,
            Compute::Bf16 => WeightFormat::Bf16,
        };
        let format = settings.weight_format.unwrap_or(plain);
        let weights =
            WeightLayout::with_embedding_format(&spec, format, EmbeddingFormat::beside(plain));
        let shape = GenerationShape {
            adapter: adapter.as_ref().map(|adapter| (adapter.config.rank, adapter.config.targets)),
            context: settings.context.min(spec.max_context).max(1),
            profile: settings.profile,
            spec: spec.clone(),
        };
        let mut regions = Regions::plan(|regions| SessionLayout::new(regions, &shape));
        let needed_bytes = (weights.n_bytes() as u64).saturating_add(regions.total_bytes() as u64);
        GenerateError::check_fit(needed_bytes, &settings.profile)?;
        let mut device = B::open(settings.profile)?;
        let cache = settings.cache.as_deref();
        let resident = PagedLayers::default();
        let PlacedWeights { weights, .. } =
            place_weights(&mut device, &folder, weights, &resident, cache, &mut unwatched)?;
        let arena = device.allocate(regions.total_bytes())?;
        let layout = regions.resolve(arena, |regions| SessionLayout::new(regions, &shape));
        fill_rope_tables(&mut device, &spec, layout.rope);
        let adapter = match (adapter, layout.adapter) {
            (Some(folder), Some(parameters)) => {
                folder.upload(&mut device, parameters)?;
                let scale = folder.config.scale();
                Some(Adapter { layout: folder.layout, parameters, scale })
            }
            _ => None,
        };
        let decoder = Decoder { spec, weights, rope: layout.rope, adapter: adapter.clone() };
        device.check().map_err(MemoryError::from)?;
        Ok(Self { device, decoder, layout, adapter, tokenizer, template })
    }
}

impl<B: Backend> Session<B> {
    /// The model's tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The model's shape.
    pub fn spec(&self) -> &ModelSpec {
        &self.decoder.spec
    }

    /// The device and the model, to read its weights.
    pub fn parts(&mut self) -> (&mut B, &Decoder) {
        (&mut self.device, &self.decoder)
    }

    /// Turns the adapter on or off, to compare the tuned model with its base.
    pub fn use_adapter(&mut self, on: bool) {
        self.decoder.adapter = self.adapter.clone().filter(|_| on);
    }

    /// Answers `prompt` as one message of a conversation, handing out text as it is written;
    /// `on_text` returns whether to go on. Gives the number of tokens written.
    ///
    /// # Errors
    /// When the template fails or no next token can be chosen.
    pub fn answer(
        &mut self,
        prompt: &str,
        sampling: &SamplingSettings,
        on_text: impl FnMut(&str) -> bool,
    ) -> Result<(usize, Stop), GenerateError> {
        let parts = (&mut self.device, &mut self.decoder, &self.layout.generation);
        answer(parts, &self.tokenizer, &self.template, prompt, sampling, on_text)
    }

    /// The logits of every token of `ids`, `[n, V]` row by row.
    ///
    /// # Errors
    /// When a page of the weights could not be moved, or the device failed.
    ///
    /// # Panics
    /// When `ids` are more than the context.
    pub fn logits(&mut self, ids: &[u32]) -> Result<Vec<f32>, GenerateError> {
        super::logits((&mut self.device, &mut self.decoder, &self.layout.generation), ids)
    }
}

/// A session on whichever device its settings name.
#[derive(Debug)]
pub enum AnySession {
    /// On the processor.
    Cpu(Session<Cpu>),
    /// On a card.
    Cuda(Session<Cuda>),
}

impl AnySession {
    /// As [`Session::open`].
    ///
    /// # Errors
    /// As there.
    pub fn open(settings: &SessionSettings) -> Result<Self, GenerateError> {
        if settings.profile.is_cuda() {
            Session::open(settings).map(Self::Cuda)
        } else {
            Session::open(settings).map(Self::Cpu)
        }
    }

    /// As [`Session::use_adapter`].
    pub fn use_adapter(&mut self, on: bool) {
        match self {
            Self::Cpu(session) => session.use_adapter(on),
            Self::Cuda(session) => session.use_adapter(on),
        }
    }

    /// As [`Session::answer`].
    ///
    /// # Errors
    /// As there.
    pub fn answer(
        &mut self,
        prompt: &str,
        sampling: &SamplingSettings,
        on_text: impl FnMut(&str) -> bool,
    ) -> Result<(usize, Stop), GenerateError> {
        match self {
            Self::Cpu(session) => session.answer(prompt, sampling, on_text),
            Self::Cuda(session) => session.answer(prompt, sampling, on_text),
        }
    }
}

/// Answers `prompt` as one message of a conversation, over any model with generation buffers.
///
/// # Errors
/// When the template fails or no next token can be chosen.
pub fn answer<B: Backend>(
    parts: (&mut B, &mut Decoder, &crate::plan::GenerationLayout),
    tokenizer: &Tokenizer,
    template: &ChatTemplate,
    prompt: &str,
    sampling: &SamplingSettings,
    mut on_text: impl FnMut(&str) -> bool,
) -> Result<(usize, Stop), GenerateError> {
    let text = template.render(&[Message::user(prompt)], true)?;
    // A model's own template writes the special tokens itself.
    let ids = tokenizer.encode_prompt(&text, template.is_plain())?;
    let mut decoder = StreamDecoder::new(tokenizer);
    let mut n_tokens = 0;
    let mut failure = None;
    let stop = generate(parts, &ids, tokenizer.eos_ids(), sampling, |token| {
        n_tokens += 1;
        match decoder.push(token) {
            Ok(Some(text)) => on_text(&text),
            Ok(None) => true,
            Err(error) => {
                failure = Some(error);
                false
            }
        }
    })?;
    if let Some(error) = failure {
        return Err(error.into());
    }
    if let Some(rest) = decoder.finish()? {
        on_text(&rest);
    }
    Ok((n_tokens, stop))
}

/// Whether a folder holds an adapter.
pub fn is_adapter(folder: &Path) -> bool {
    folder.join(peft::ADAPTER_CONFIG).is_file()
}
