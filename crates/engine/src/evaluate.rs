//! The loss of a model, with or without an adapter, on a dataset.

use std::{ops::ControlFlow, path::PathBuf};

use nibble_data::{
    BatchBuffer, BatchPlan, ChatTemplate, ColumnMapping, Encoder, TokenizeOptions,
    TokenizedDataset, Tokenizer,
};
use nibble_kernels::{
    Backend, Compute, DeviceSlice, FloatFormat, MemoryError, Store, attention::Segment,
};
use serde::Serialize;

use crate::{
    adapter::peft::AdapterFolder,
    decoder::{Adapter, Decoder, PassRows, fill_rope_tables, loss},
    devices::{self, RunDevice, on_device},
    generate::{GenerateError, SessionSettings},
    model::ModelSpec,
    optimizer::StateFormat,
    plan::{EvaluationLayout, Regions, Residency, Trainable, TrainingShape},
    train::MicroBatch,
    weights::{
        EmbeddingFormat, ModelFolder, PagedLayers, PlacedWeights, WeightFormat, WeightLayout,
        load::unwatched, place_weights,
    },
};

/// What to measure.
#[derive(Clone, Debug)]
pub struct EvaluateSettings {
    /// The model; `context` holds the longest example.
    pub session: SessionSettings,
    /// The dataset.
    pub data: PathBuf,
    /// Columns named by hand.
    pub columns: ColumnMapping,
    /// How examples become tokens.
    pub tokenize: TokenizeOptions,
}

/// A measured loss.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Evaluation {
    /// Mean cross-entropy per trained token, in nats.
    pub loss: f64,
    /// `exp(loss)`.
    pub perplexity: f64,
    /// Tokens it is the mean of.
    pub trained_tokens: u64,
    /// Examples that were cut because they are longer than asked for or than the model reads.
    pub cut: usize,
}

/// Measures the loss of a model on a dataset, on the device of the session's profile.
///
/// # Errors
/// When a file is missing or damaged, the device cannot be opened, fails, or its memory does not
/// suffice.
pub fn evaluate(settings: &EvaluateSettings) -> Result<Evaluation, GenerateError> {
    on_device!(settings.session.profile, Device => evaluate_on::<Device>(settings))
}

fn evaluate_on<B: RunDevice>(settings: &EvaluateSettings) -> Result<Evaluation, GenerateError> {
    // All that can be wrong is found before the weights are loaded.
    devices::meet(&settings.session.profile)?;
    let model = &settings.session.model;
    let folder = ModelFolder::open(model)?;
    let spec = folder.spec();
    devices::check_model(&settings.session.profile, spec, &model.join("config.json"))?;
    let tokenizer = Tokenizer::open(model)?;
    tokenizer.check_vocabulary(spec.vocabulary)?;
    let template = ChatTemplate::open(model, &tokenizer)?;
    let max_tokens = settings.tokenize.max_tokens.min(spec.max_context);
    let options = TokenizeOptions { max_tokens, ..settings.tokenize };
    let n_threads = settings.session.profile.n_threads();
    let encoder = Encoder { tokenizer: &tokenizer, template: &template, options, n_threads };
    let unwatched = &mut |_| ControlFlow::Continue(());
    let (data, columns) = (&settings.data, &settings.columns);
    let dataset = TokenizedDataset::read(data, columns, encoder, None, unwatched)?;
    let mut evaluator = Evaluator::<B>::open(&settings.session)?;
    let everything: Vec<usize> = (0..dataset.len()).collect();
    let rows = (1, max_tokens);
    let mut plan = BatchPlan::new(&dataset, &everything, rows, true, 0);
    let mut batch = BatchBuffer::new(plan.capacity());
    let (mut total, mut n_targets) = (0.0, 0);
    for index in 0..plan.len() {
        plan.fill(&dataset, 0, index, &mut batch)?;
        total += evaluator.loss(&MicroBatch::of(&batch))?;
        n_targets += batch.targets().len() as u64;
    }
    let loss = total / n_targets.max(1) as f64;
    let cut = dataset.n_cut;
    Ok(Evaluation { loss, perplexity: loss.exp(), trained_tokens: n_targets, cut })
}

/// A model that only measures losses.
#[derive(Debug)]
pub struct Evaluator<B> {
    device: B,
    decoder: Decoder,
    layout: EvaluationLayout,
}

impl<B: RunDevice> Evaluator<B> {
    /// Opens a model, and an adapter on it, for examples of up to `settings.context` tokens.
    ///
    /// # Errors
    /// When a file is missing or damaged, the device cannot be opened, or its memory does not
    /// suffice.
    pub fn open(settings: &SessionSettings) -> Result<Self, GenerateError> {
        let folder = ModelFolder::open(&settings.model)?;
        let spec = folder.spec().clone();
        let adapter =
            settings.adapter.as_deref().map(|path| AdapterFolder::open(path, &spec)).transpose()?;
        let plain = match settings.profile.compute {
            Compute::F32 => WeightFormat::F32,
            Compute::Bf16 => WeightFormat::Bf16,
        };
        let shape = TrainingShape {
            weight_format: settings.weight_format.unwrap_or(plain),
            embedding_format: EmbeddingFormat::beside(plain),
            trainable: match &adapter {
                Some(adapter) => Trainable::Adapter {
                    targets: adapter.config.targets,
                    rank: adapter.config.rank,
                    dropout: false,
                },
                None => Trainable::Everything,
            },
            sequence: settings.context.min(spec.max_context).max(1),
            batch: 1,
            kept_layers: 0,
            sample_tokens: 0,
            gradients: FloatFormat::F32,
            states: StateFormat::F32,
            residency: Residency::default(),
            profile: settings.profile,
            spec,
        };
        let mut regions = Regions::plan(|regions| EvaluationLayout::new(regions, &shape));
        let layout = shape.weight_layout();
        let needed_bytes = (layout.n_bytes() as u64).saturating_add(regions.total_bytes() as u64);
        GenerateError::check_fit(needed_bytes, &settings.profile)?;
        let device = B::open(settings.profile)?;
        Self::place(device, &folder, layout, settings, adapter, shape, &mut regions)
    }

    fn place(
        mut device: B,
        folder: &ModelFolder,
        layout: WeightLayout,
        settings: &SessionSettings,
        adapter: Option<AdapterFolder>,
        shape: TrainingShape,
        regions: &mut Regions,
    ) -> Result<Self, GenerateError> {
        let cache = settings.cache.as_deref();
        let resident = PagedLayers::default();
        let PlacedWeights { weights, .. } =
            place_weights(&mut device, folder, layout, &resident, cache, &mut unwatched)?;
        let arena = device.allocate(regions.total_bytes())?;
        let layout = regions.resolve(arena, |regions| EvaluationLayout::new(regions, &shape));
        let spec: &ModelSpec = &shape.spec;
        fill_rope_tables(&mut device, spec, layout.rope);
        let adapter = match (adapter, layout.adapter) {
            (Some(folder), Some(parameters)) => {
                folder.upload(&mut device, parameters)?;
                let scale = folder.config.scale();
                Some(Adapter { layout: folder.layout, parameters, scale })
            }
            _ => None,
        };
        let decoder = Decoder { spec: shape.spec, weights, rope: layout.rope, adapter };
        Ok(Self { device, decoder, layout })
    }
}

impl<B: Backend> Evaluator<B> {
    /// The summed loss of a micro-batch, in nats.
    ///
    /// # Errors
    /// When the device failed.
    pub fn loss(&mut self, batch: &MicroBatch<'_>) -> Result<f64, MemoryError> {
        let (device, layout) = (&mut self.device, &self.layout);
        let n_rows = batch.ids.len();
        let segments: DeviceSlice<Segment> = layout.batch.segments.first(batch.segments.len());
        batch.upload(device, &layout.batch);
        let pass = PassRows {
            n_rows,
            n_past: 0,
            positions: layout.batch.positions.first(n_rows),
            segments,
            max_segment: batch.max_segment,
            dropout: None,
        };
        self.decoder.embed(device, layout.batch.ids.first(n_rows), layout.residuals[0]);
        let n_layers = self.decoder.spec.n_layers;
        for layer in 0..n_layers {
            let (input, output) = (layout.residuals[layer % 2], layout.residuals[(layer + 1) % 2]);
            let (slices, workspace) = (&layout.layer, layout.workspace);
            self.decoder.layer_forward(
                device,
                layer,
                &pass,
                slices,
                input,
                Some(output),
                workspace,
            );
        }
        let residual = layout.residuals[n_layers % 2];
        let counts = (n_rows, batch.targets.len());
        let (batch, slices, store) = (&layout.batch, &layout.loss, Store::Overwrite);
        loss(&self.decoder, device, batch, slices, counts, residual, None, store);
        let mut sum = [0.0];
        device.download(batch.loss_sum, &mut sum);
        device.check()?;
        Ok(sum[0])
    }
}
