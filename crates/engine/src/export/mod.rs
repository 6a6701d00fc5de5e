//! From a run to files that other programs load, each read back and held against the run before
//! success is reported.

mod merge;
mod second_opinion;
mod unfinished;

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
};

use candle_core::Tensor;
use half::{bf16, f16};
use nibble_kernels::{Backend, Compute, Cpu, DeviceSlice, Memory};
use nibble_run::{Method, RunFolder};
use safetensors::Dtype;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use self::{merge::Merger, unfinished::Unfinished};
use crate::{
    adapter::{AdapterError, peft},
    devices,
    files::{SafetensorsWriter, TensorEntry},
    generate::{GenerateError, Session, SessionSettings},
    model::{ModelError, ModelSpec, Projection},
    weights::{LayerTensor, ModelFolder, StoredType, TensorRole, WeightFormat},
};

/// Weights of a whole model, where they are in one file.
pub(crate) const MODEL_WEIGHTS: &str = "model.safetensors";

/// What to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
pub enum ExportFormat {
    /// A PEFT adapter folder.
    Adapter,
    /// A whole model: the base weights with the adapter added in.
    Merged,
}

/// What was written, and how it was checked.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
pub struct ExportReport {
    /// The folder.
    pub path: PathBuf,
    /// Whether it was read back and gave the run's logits.
    pub verified: bool,
    /// The largest difference to the run's logits, over every token of the probe.
    pub max_abs_logit_diff: f64,
    /// The same of the second implementation, where it knows the model and the memory suffices.
    pub second_max_abs_logit_diff: Option<f64>,
}

/// What an export is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
pub enum ExportStage {
    /// The run's model is opened, and computes the logits to compare with.
    Opening,
    /// The files are written.
    Writing,
    /// They are read back and compared.
    Checking,
}

/// How far an export has come.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
pub struct ExportProgress {
    /// What is being done.
    pub stage: ExportStage,
    /// The share of the stage's values that are done, from 0 to 1; `None` where that is not known.
    pub share: Option<f64>,
}

impl From<ExportStage> for ExportProgress {
    fn from(stage: ExportStage) -> Self {
        Self { stage, share: None }
    }
}

/// Why nothing was exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The run folder.
    #[error(transparent)]
    Run(#[from] nibble_run::RunError),
    /// There is nothing to export yet.
    #[error("{run} has no checkpoint yet; let it train on, or resume it")]
    NoCheckpoint {
        /// The run folder.
        run: PathBuf,
    },
    /// There is no checkpoint of the step that was asked for.
    #[error("{run} has no checkpoint of step {step}; it has those of {}", list(steps))]
    NoSuchStep {
        /// The run folder.
        run: PathBuf,
        /// The step.
        step: u64,
        /// Those that there are.
        steps: Vec<u64>,
    },
    /// A format that the run's method does not have.
    #[error("this run trained every weight, so there is no adapter; export it as `merged`")]
    NoAdapter,
    /// The place is taken.
    #[error("{path} already exists and is not empty; choose another folder")]
    Exists {
        /// The folder.
        path: PathBuf,
    },
    /// A file could not be written.
    #[error("could not write {path}: {source}; check the free space and the folder's permissions")]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The model or adapter could not be opened.
    #[error(transparent)]
    Open(#[from] GenerateError),
    /// The adapter's files.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// What was written does not compute what the run computes.
    #[error(
        "the export differs from the run by {difference} in its logits where {limit} is the most that rounding explains; nothing was left at {path}. Please report this with the model's name"
    )]
    Differs {
        /// Where it would have been.
        path: PathBuf,
        /// The largest difference.
        difference: f64,
        /// The most that rounding explains.
        limit: f64,
    },
}

fn list(steps: &[u64]) -> String {
    steps.iter().map(|step| format!("step {step}")).collect::<Vec<_>>().join(", ")
}

/// Tokens of the probe: enough for every layer's attention to mix, few enough to take seconds.
const PROBE_TOKENS: usize = 24;

/// A model file is split above this size, as most hubs ask.
const SHARD_BYTES: u64 = 5_000_000_000;

/// Exports the checkpoint of `step` (or the last) of the run at `run` to the folder `to`, and tells
/// `on_progress` how far it has come.
///
/// # Errors
/// When the run has no such checkpoint, the folder cannot be written, or what was written does not
/// give the run's logits; then nothing is left behind.
pub fn export(
    run: &Path,
    step: Option<u64>,
    to: &Path,
    format: ExportFormat,
    on_progress: &mut dyn FnMut(ExportProgress),
) -> Result<ExportReport, ExportError> {
    let folder = RunFolder::open(run)?;
    let settings = folder.settings()?;
    let checkpoints = folder.checkpoints()?;
    let checkpoint = match (checkpoints.last(), step) {
        (None, _) => return Err(ExportError::NoCheckpoint { run: run.to_owned() }),
        (Some(last), None) => last.path.clone(),
        (Some(_), Some(step)) => {
            let of_step = checkpoints.iter().find(|checkpoint| checkpoint.step == step);
            let no_such_step = || ExportError::NoSuchStep {
                run: run.to_owned(),
                step,
                steps: checkpoints.iter().map(|checkpoint| checkpoint.step).collect(),
            };
            of_step.ok_or_else(no_such_step)?.path.clone()
        }
    };
    if settings.method == Method::Full && format == ExportFormat::Adapter {
        return Err(ExportError::NoAdapter);
    }
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| ExportError::Write { path, source }
    };
    if fs::read_dir(to).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(ExportError::Exists { path: to.to_owned() });
    }
    let unfinished = Unfinished::beside(to).map_err(failed(to))?;
    on_progress(ExportStage::Opening.into());
    let source = Source::open(&settings, &checkpoint)?;
    let report = match format {
        ExportFormat::Adapter => {
            export_adapter(source, &checkpoint, unfinished.path(), on_progress)
        }
        ExportFormat::Merged => export_merged(source, unfinished.path(), on_progress),
    }?;
    unfinished.finish(to).map_err(failed(to))?;
    Ok(ExportReport { path: to.to_owned(), ..report })
}

/// The run's model as it was trained, in f32 products, and its logits of the probe.
struct Source {
    /// The model that the run began with.
    base: PathBuf,
    settings: SessionSettings,
    session: Session<Cpu>,
    probe: Vec<u32>,
    logits: Vec<f32>,
}

impl Source {
    fn open(settings: &nibble_run::RunSettings, checkpoint: &Path) -> Result<Self, ExportError> {
        let full = settings.method == Method::Full;
        let base = settings.model.clone();
        let settings = SessionSettings {
            model: if full { checkpoint.to_owned() } else { settings.model.clone() },
            adapter: (!full).then(|| checkpoint.to_owned()),
            weight_format: (settings.method == Method::Qlora).then_some(WeightFormat::Nf4),
            context: PROBE_TOKENS,
            profile: devices::cpu_profile(settings.threads, Some(Compute::F32)),
            cache: None,
        };
        let mut session = Session::open(&settings)?;
        let probe = probe(session.spec());
        let logits = session.logits(&probe)?;
        Ok(Self { base, settings, session, probe, logits })
    }
}

/// Token ids spread over the vocabulary.
fn probe(spec: &ModelSpec) -> Vec<u32> {
    let n_tokens = PROBE_TOKENS.min(spec.max_context);
    // Steps of the golden ratio visit a range evenly at any length.
    let step = spec.vocabulary as f64 * 0.618_033_988_749_894_9;
    (1..=n_tokens).map(|i| ((i as f64 * step) as usize % spec.vocabulary) as u32).collect()
}

fn export_adapter(
    mut source: Source,
    checkpoint: &Path,
    folder: &Path,
    on_progress: &mut dyn FnMut(ExportProgress),
) -> Result<ExportReport, ExportError> {
    on_progress(ExportStage::Writing.into());
    for file in [peft::ADAPTER_WEIGHTS, peft::ADAPTER_CONFIG] {
        let path = folder.join(file);
        fs::copy(checkpoint.join(file), &path)
            .map_err(|source| ExportError::Write { path, source })?;
    }
    on_progress(ExportStage::Checking.into());
    let tensors = source.candle_tensors()?;
    let second = source.second_opinion(tensors);
    let settings = SessionSettings { adapter: Some(folder.to_owned()), ..source.settings };
    // One model at a time: the run's own session makes room for the reloaded one.
    drop(source.session);
    let reloaded = Session::<Cpu>::open(&settings)?.logits(&source.probe)?;
    // The same numbers through the same products: any difference is a defect.
    verify(folder, &source.logits, &reloaded, 0.0, second)
}

fn export_merged(
    mut source: Source,
    folder: &Path,
    on_progress: &mut dyn FnMut(ExportProgress),
) -> Result<ExportReport, ExportError> {
    // Weights trained in f32 leave in the precision that they came in; where the base is gone, in
    // that of the checkpoint.
    let model = ModelFolder::open(&source.base)
        .or_else(|_| ModelFolder::open(&source.settings.model))
        .map_err(GenerateError::from)?;
    let dtype =
        match model.stored_type(TensorRole::Layer(0, LayerTensor::Matrix(Projection::Query))) {
            StoredType::F32 => Dtype::F32,
            StoredType::F16 => Dtype::F16,
            StoredType::Bf16 => Dtype::BF16,
        };
    write_merged(&mut source.session, dtype, folder, on_progress)?;
    copy_companions(model.path(), Some(dtype), folder)?;
    on_progress(ExportStage::Checking.into());
    let spec = source.session.spec().clone();
    let tensors = source.candle_tensors()?;
    let second = source.second_opinion(tensors);
    let settings = SessionSettings {
        model: folder.to_owned(),
        adapter: None,
        weight_format: Some(WeightFormat::F32),
        ..source.settings
    };
    drop(source.session);
    let reloaded = Session::<Cpu>::open(&settings)?.logits(&source.probe)?;
    verify(folder, &source.logits, &reloaded, rounding_limit(&spec, dtype, &source.logits), second)
}

/// The most that rounding explains, of every matrix to `dtype` and of the sums of its products.
///
/// A product of K terms errs, relative to its size, by about half a unit of `dtype` for the matrix
/// and by √K halves of a unit of f32 for a sum in another order (with the adapter added in, the
/// merged model sums differently from the run). The errors of the 7 products of every layer and of
/// the output add up in quadrature; and the largest of M normally distributed errors is about
/// √(2 ln M) of their deviation.
fn rounding_limit(spec: &ModelSpec, dtype: Dtype, logits: &[f32]) -> f64 {
    let unit = match dtype {
        Dtype::BF16 => 2.0_f64.powi(-8),
        Dtype::F16 => 2.0_f64.powi(-11),
        _ => f64::from(f32::EPSILON),
    };
    let n_terms = spec.hidden_width.max(spec.ffn_width) as f64;
    let of_one_product = 0.5 * (unit + n_terms.sqrt() * f64::from(f32::EPSILON));
    let n_products = (7 * spec.n_layers + 1) as f64;
    let scale = logits.iter().fold(0.0_f64, |most, &logit| most.max(f64::from(logit.abs())));
    let largest = (2.0 * (logits.len().max(2) as f64).ln()).sqrt();
    largest * of_one_product * n_products.sqrt() * scale
}

fn verify(
    folder: &Path,
    expected: &[f32],
    actual: &[f32],
    limit: f64,
    second: Option<f64>,
) -> Result<ExportReport, ExportError> {
    let difference = max_abs_difference(expected, actual);
    if difference.is_nan() || difference > limit {
        return Err(ExportError::Differs { path: folder.to_owned(), difference, limit });
    }
    Ok(ExportReport {
        path: folder.to_owned(),
        verified: true,
        max_abs_logit_diff: difference,
        second_max_abs_logit_diff: second,
    })
}

fn max_abs_difference(expected: &[f32], actual: &[f32]) -> f64 {
    expected.iter().zip(actual).fold(0.0, |most: f64, (&a, &b)| {
        let difference = (f64::from(a) - f64::from(b)).abs();
        if difference.is_nan() { f64::NAN } else { most.max(difference) }
    })
}

impl Source {
    /// Every merged tensor for candle, or `None` when they would not fit into the memory.
    fn candle_tensors(&mut self) -> Result<Option<HashMap<String, Tensor>>, ExportError> {
        // Candle holds the weights in f32 and a working copy of the largest.
        let needed_bytes = self.session.spec().n_parameters() as u64 * 4 * 5 / 4;
        if needed_bytes > devices::host_available_bytes() {
            return Ok(None);
        }
        let (device, decoder) = self.session.parts();
        let merger = Merger::new(device, decoder).map_err(GenerateError::from)?;
        let mut tensors = HashMap::new();
        merger
            .for_each(device, decoder, |tensor, device, dense| {
                let mut values = vec![0.0_f32; dense.len()];
                device.download(dense, &mut values);
                let shape = tensor.shape.to_vec();
                let values = Tensor::from_vec(values, shape, &candle_core::Device::Cpu)?;
                tensors.insert(tensor.role.name(), values);
                Ok::<_, candle_core::Error>(())
            })
            .map_err(GenerateError::from)?;
        Ok(Some(tensors))
    }

    /// The largest difference between candle's logits of the last token and the run's.
    fn second_opinion(&self, tensors: Option<HashMap<String, Tensor>>) -> Option<f64> {
        let spec = self.session.spec();
        // A second opinion that cannot be had is reported as absent, not as a failed export.
        let logits = second_opinion::last_logits(spec, tensors?, &self.probe).ok()??;
        let last = &self.logits[self.logits.len() - spec.vocabulary..];
        Some(max_abs_difference(last, &logits))
    }
}

fn write_merged(
    session: &mut Session<Cpu>,
    dtype: Dtype,
    folder: &Path,
    on_progress: &mut dyn FnMut(ExportProgress),
) -> Result<(), ExportError> {
    let (device, decoder) = session.parts();
    let total_values = decoder.spec.n_parameters().max(1);
    let mut done_values = 0;
    let entries: Vec<_> = (decoder.weights.layout.tensors())
        .map(|tensor| TensorEntry { name: tensor.role.name(), dtype, shape: tensor.shape.to_vec() })
        .collect();
    let shards = shards(entries);
    let file = |index: usize| match shards.len() {
        1 => MODEL_WEIGHTS.to_owned(),
        n => format!("model-{:05}-of-{n:05}.safetensors", index + 1),
    };
    let failed = |path: PathBuf| move |source| ExportError::Write { path, source };
    let merger = Merger::new(device, decoder).map_err(GenerateError::from)?;
    let mut shard = 0;
    let mut n_written = 0;
    let mut writer = None;
    merger.for_each(device, decoder, |_, device, dense| {
        let path = folder.join(file(shard));
        let open = match writer.take() {
            Some(writer) => writer,
            None => {
                SafetensorsWriter::create(&path, &shards[shard]).map_err(failed(path.clone()))?
            }
        };
        let written = write_tensor(open, dtype, device, dense).map_err(failed(path.clone()))?;
        done_values += dense.len();
        let share = Some((done_values as f64 / total_values as f64).min(1.0));
        on_progress(ExportProgress { stage: ExportStage::Writing, share });
        n_written += 1;
        if n_written == shards[shard].len() {
            written.finish().map_err(failed(path))?;
            (shard, n_written) = (shard + 1, 0);
        } else {
            writer = Some(written);
        }
        Ok::<_, ExportError>(())
    })?;
    if shards.len() > 1 {
        let mut map = Map::new();
        for (index, entries) in shards.iter().enumerate() {
            for entry in entries {
                map.insert(entry.name.clone(), json!(file(index)));
            }
        }
        let total: u64 = shards.iter().flatten().map(TensorEntry::n_bytes).sum();
        let index = json!({ "metadata": { "total_size": total }, "weight_map": map });
        let path = folder.join("model.safetensors.index.json");
        fs::write(&path, format!("{index:#}\n")).map_err(failed(path))?;
    }
    Ok(())
}

/// Splits `entries`, in their order, into files of at most [`SHARD_BYTES`].
fn shards(entries: Vec<TensorEntry>) -> Vec<Vec<TensorEntry>> {
    let mut shards: Vec<Vec<TensorEntry>> = vec![Vec::new()];
    let mut n_bytes = 0;
    for entry in entries {
        if n_bytes > 0 && n_bytes + entry.n_bytes() > SHARD_BYTES {
            shards.push(Vec::new());
            n_bytes = 0;
        }
        n_bytes += entry.n_bytes();
        if let Some(shard) = shards.last_mut() {
            shard.push(entry);
        }
    }
    shards
}

fn write_tensor<B: Backend>(
    mut writer: SafetensorsWriter,
    dtype: Dtype,
    device: &B,
    dense: DeviceSlice<f32>,
) -> io::Result<SafetensorsWriter> {
    const CHUNK: usize = 1 << 20;
    let mut values = vec![0.0_f32; dense.len().min(CHUNK)];
    let mut start = 0;
    while start < dense.len() {
        let end = (start + CHUNK).min(dense.len());
        let values = &mut values[..end - start];
        device.download(dense.slice(start..end), values);
        match dtype {
            Dtype::BF16 => {
                let rounded: Vec<_> = values.iter().map(|&value| bf16::from_f32(value)).collect();
                writer.write_values(&rounded)?;
            }
            Dtype::F16 => {
                let rounded: Vec<_> = values.iter().map(|&value| f16::from_f32(value)).collect();
                writer.write_values(&rounded)?;
            }
            _ => writer.write_values(values)?,
        }
        start = end;
    }
    Ok(writer)
}

/// The configuration, with the number type if another was written, and every tokenizer file.
pub(crate) fn copy_companions(
    model: &Path,
    dtype: Option<Dtype>,
    folder: &Path,
) -> Result<(), ExportError> {
    let failed = |path: PathBuf| move |source| ExportError::Write { path, source };
    let path = model.join("config.json");
    let text = fs::read_to_string(&path)
        .map_err(|source| ModelError::Read { path: path.clone(), source })
        .map_err(GenerateError::from)?;
    let mut config: Value = serde_json::from_str(&text)
        .map_err(|source| ModelError::Json { path, source })
        .map_err(GenerateError::from)?;
    if let Some(config) = config.as_object_mut()
        && let Some(dtype) = dtype
    {
        let name = match dtype {
            Dtype::BF16 => "bfloat16",
            Dtype::F16 => "float16",
            _ => "float32",
        };
        // A quantised base has become plain numbers.
        config.remove("quantization_config");
        let key = if config.contains_key("dtype") { "dtype" } else { "torch_dtype" };
        config.insert(key.into(), json!(name));
    }
    let path = folder.join("config.json");
    fs::write(&path, format!("{config:#}\n")).map_err(failed(path))?;
    for file in [
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "merges.txt",
        "chat_template.jinja",
        "generation_config.json",
    ] {
        let (from, path) = (model.join(file), folder.join(file));
        if from.is_file() {
            // A copy of its bytes alone: one that may not be written could not be replaced.
            let copy = || io::copy(&mut fs::File::open(&from)?, &mut fs::File::create(&path)?);
            copy().map_err(failed(path.clone()))?;
        }
    }
    Ok(())
}
