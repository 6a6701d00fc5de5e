//! Every setting of a run, as `run.toml` keeps it.

use std::path::PathBuf;

use serde::{Deserialize, Deserializer, Serialize, de::Error};

use crate::RunError;

/// The format of `run.toml` that this crate writes.
pub const FORMAT: u32 = 1;

/// What is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
pub enum Method {
    /// Every weight.
    Full,
    /// A low-rank adapter beside plain weights.
    Lora,
    /// A low-rank adapter beside NF4 weights.
    Qlora,
}

impl Method {
    /// Its name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Lora => "lora",
            Self::Qlora => "qlora",
        }
    }

    /// The learning rate unless another is set: what each method's authors train with.
    pub const fn default_learning_rate(self) -> f64 {
        match self {
            Self::Full => 2e-5,
            Self::Lora | Self::Qlora => 2e-4,
        }
    }
}

/// How the learning rate falls after the warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
pub enum Schedule {
    /// Along half a cosine wave.
    #[default]
    Cosine,
    /// Along a line.
    Linear,
    /// Not at all.
    Constant,
}

/// The precision of matrix products.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
pub enum ComputePrecision {
    /// bf16 where the hardware multiplies it, f32 elsewhere.
    #[default]
    Auto,
    /// Inputs in bf16, sums in f32.
    Bf16,
    /// Inputs and sums in f32.
    F32,
}

/// The precision of weights that are not quantised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
pub enum WeightPrecision {
    /// f32 when trained, else as precise as the products.
    #[default]
    Auto,
    /// Two bytes a weight; of one that is trained, a layer's gradients too, in steps of one micro-batch.
    Bf16,
    /// Four bytes a weight.
    F32,
}

/// The device that computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
pub enum TrainingDevice {
    /// The processor.
    #[default]
    Cpu,
    /// An NVIDIA graphics card: the first that can be computed with.
    Cuda,
}

impl TrainingDevice {
    /// As the command line and files name it.
    pub fn id(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
        }
    }
}

/// Whether regions may live outside the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
pub enum Paging {
    /// As little as fits the budget.
    #[default]
    Auto,
    /// Everything that can.
    On,
    /// Nothing.
    Off,
}

/// Whether activations are computed again in the backward pass instead of kept: up to three eighths more
/// work, for a fraction of the memory. The result is the same, bit for bit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
pub enum Recompute {
    /// Kept of as many layers as there is room for within the budget, and within half of the memory that
    /// is free, or seven eighths of a card's. Nothing is paged for it.
    #[default]
    Auto,
    /// Always computed again.
    On,
    /// Always kept.
    Off,
}

impl<'de> Deserialize<'de> for Recompute {
    /// The setting's name; or a flag, as it was stored once.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Stored {
            Flag(bool),
            Name(String),
        }
        match Stored::deserialize(deserializer)? {
            Stored::Flag(true) => Ok(Self::On),
            Stored::Flag(false) => Ok(Self::Off),
            Stored::Name(name) => match name.as_str() {
                "auto" => Ok(Self::Auto),
                "on" => Ok(Self::On),
                "off" => Ok(Self::Off),
                other => Err(D::Error::unknown_variant(other, &["auto", "on", "off"])),
            },
        }
    }
}

/// How the optimizer keeps its states.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
pub enum Optimizer {
    /// AdamW with states in f32: eight bytes for each trained number.
    #[default]
    #[serde(rename = "adamw")]
    AdamW,
    /// AdamW with states in 8 bits, block by block: two bytes for each trained number.
    #[serde(rename = "adamw-8bit")]
    AdamW8bit,
}

/// Which tokens the loss counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
pub enum TrainOn {
    /// Completions and the assistant's turns; whole texts where there is neither.
    #[default]
    Completions,
    /// Every token.
    Everything,
}

/// Which columns of the dataset hold what, where they are not recognised by themselves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS), ts(optional_fields = nullable))]
pub struct Columns {
    /// Column of whole texts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Column of prompts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// Column of completions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completion: Option<String>,
    /// Column of conversations.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub messages: Option<String>,
}

/// The adapter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
pub struct LoraSettings {
    /// R, rows of A and columns of B.
    pub rank: usize,
    /// Numerator of the factor alpha / R on every pair.
    pub alpha: f64,
    /// Share of the pairs' inputs dropped in training.
    pub dropout: f64,
    /// Linear layers with a pair: `all-linear`, or names such as `q_proj`.
    pub targets: Vec<String>,
    /// Whether the factor is alpha / √R, which keeps large ranks stable.
    pub rslora: bool,
}

impl Default for LoraSettings {
    fn default() -> Self {
        Self {
            rank: 16,
            alpha: 32.0,
            dropout: 0.0,
            targets: vec!["all-linear".into()],
            rslora: false,
        }
    }
}

/// Samples written while training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
pub struct SampleSettings {
    /// What is asked, before the first step, every so often and at the end.
    pub prompts: Vec<String>,
    /// Steps between samples; 0: only before and after.
    pub every: u64,
    /// The most tokens of an answer.
    pub max_tokens: usize,
    /// 0: always the likeliest token.
    pub temperature: f64,
}

impl Default for SampleSettings {
    fn default() -> Self {
        Self { prompts: Vec::new(), every: 0, max_tokens: 64, temperature: 0.0 }
    }
}

/// Every setting of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS), ts(optional_fields = nullable))]
pub struct RunSettings {
    /// Format of this file.
    pub format: u32,
    /// Folder of the model.
    pub model: PathBuf,
    /// File of the dataset.
    pub data: PathBuf,
    /// What is trained.
    pub method: Method,
    /// Optimizer steps; `None`: as `epochs` says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<u64>,
    /// Passes over the dataset, when `steps` is not set.
    pub epochs: f64,
    /// The longest example, in tokens; longer ones are cut.
    pub sequence: usize,
    /// Rows of `sequence` tokens in a micro-batch.
    pub batch: usize,
    /// Micro-batches in an optimizer step.
    pub gradient_accumulation: usize,
    /// Whether short examples share a row.
    pub packing: bool,
    /// Share of the examples held out for evaluation.
    pub eval_split: f64,
    /// Steps between evaluations; 0: only at the end.
    pub eval_every: u64,
    /// Steps between checkpoints; 0: only at the end.
    pub save_every: u64,
    /// Checkpoints kept; older ones are deleted. 0: all.
    pub keep_checkpoints: usize,
    /// The highest learning rate; `None`: as the method's authors train.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub learning_rate: Option<f64>,
    /// How the learning rate falls.
    pub schedule: Schedule,
    /// Steps over which it rises.
    pub warmup_steps: u64,
    /// Decoupled weight decay; norms and biases are spared.
    pub weight_decay: f64,
    /// The largest gradient norm; 0: any.
    pub clip_norm: f64,
    /// How the optimizer keeps its states.
    pub optimizer: Optimizer,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decides shuffling, initial adapters and dropout.
    pub seed: u64,
    /// Which tokens the loss counts.
    pub train_on: TrainOn,
    /// Whether activations are computed again in the backward pass instead of kept.
    pub recompute: Recompute,
    /// What computes.
    pub device: TrainingDevice,
    /// Precision of products.
    pub compute: ComputePrecision,
    /// Precision of weights that are not quantised.
    pub weights: WeightPrecision,
    /// Worker threads; `None`: one a core.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads: Option<usize>,
    /// The most memory to use, in bytes; `None`: what other programs leave.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget_bytes: Option<u64>,
    /// Whether regions may live outside the device.
    pub paged: Paging,
    /// Columns of the dataset.
    pub columns: Columns,
    /// The adapter.
    pub lora: LoraSettings,
    /// Samples.
    pub samples: SampleSettings,
}

impl Default for RunSettings {
    fn default() -> Self {
        Self {
            format: FORMAT,
            model: PathBuf::new(),
            data: PathBuf::new(),
            method: Method::Qlora,
            steps: None,
            epochs: 1.0,
            sequence: 512,
            batch: 1,
            gradient_accumulation: 1,
            packing: true,
            eval_split: 0.0,
            eval_every: 0,
            save_every: 100,
            keep_checkpoints: 3,
            learning_rate: None,
            schedule: Schedule::Cosine,
            warmup_steps: 0,
            weight_decay: 0.01,
            clip_norm: 1.0,
            optimizer: Optimizer::AdamW,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            seed: 0,
            train_on: TrainOn::Completions,
            recompute: Recompute::Auto,
            device: TrainingDevice::Cpu,
            compute: ComputePrecision::Auto,
            weights: WeightPrecision::Auto,
            threads: None,
            budget_bytes: None,
            paged: Paging::Auto,
            columns: Columns::default(),
            lora: LoraSettings::default(),
            samples: SampleSettings::default(),
        }
    }
}

/// Tokens of a micro-batch: beyond what any memory holds the activations of, and within what every
/// offset of a plan can count.
const MOST_BATCH_TOKENS: usize = 1 << 24;

/// More threads than any machine's cores only cost memory.
const MOST_THREADS: usize = 1024;

impl RunSettings {
    /// The highest learning rate.
    pub fn learning_rate(&self) -> f64 {
        self.learning_rate.unwrap_or(self.method.default_learning_rate())
    }

    /// Refuses impossible values.
    ///
    /// # Errors
    /// The first setting that is impossible, and what it must be.
    pub fn check(&self) -> Result<(), RunError> {
        let positive = "it must be a number above 0";
        let share = "it must be a number from 0 to below 1";
        let whole = "it must be 1 or more";
        let rules: [(&'static str, f64, bool, &'static str); 19] = [
            (
                "sequence",
                self.sequence as f64,
                (2..=MOST_BATCH_TOKENS).contains(&self.sequence),
                "it must be from 2 to 16,777,216",
            ),
            ("batch", self.batch as f64, self.batch > 0, whole),
            (
                "batch",
                self.batch as f64,
                self.batch.saturating_mul(self.sequence) <= MOST_BATCH_TOKENS,
                "with the sequence length it must make at most 16,777,216 tokens",
            ),
            (
                "threads",
                self.threads.unwrap_or(1) as f64,
                self.threads.is_none_or(|threads| (1..=MOST_THREADS).contains(&threads)),
                "it must be from 1 to 1024",
            ),
            (
                "gradient_accumulation",
                self.gradient_accumulation as f64,
                self.gradient_accumulation > 0,
                whole,
            ),
            ("steps", self.steps.unwrap_or(1) as f64, self.steps != Some(0), whole),
            ("epochs", self.epochs, self.epochs > 0.0 && self.epochs.is_finite(), positive),
            (
                "learning_rate",
                self.learning_rate(),
                self.learning_rate() > 0.0 && self.learning_rate().is_finite(),
                positive,
            ),
            ("eval_split", self.eval_split, (0.0..1.0).contains(&self.eval_split), share),
            ("beta1", self.beta1, (0.0..1.0).contains(&self.beta1), share),
            ("beta2", self.beta2, (0.0..1.0).contains(&self.beta2), share),
            ("epsilon", self.epsilon, self.epsilon > 0.0 && self.epsilon.is_finite(), positive),
            (
                "weight_decay",
                self.weight_decay,
                self.weight_decay >= 0.0 && self.weight_decay.is_finite(),
                "it must be 0 or more",
            ),
            (
                "clip_norm",
                self.clip_norm,
                self.clip_norm >= 0.0 && self.clip_norm.is_finite(),
                "it must be 0 (off) or more",
            ),
            (
                "lora.rank",
                self.lora.rank as f64,
                (1..=4096).contains(&self.lora.rank),
                "it must be from 1 to 4096",
            ),
            (
                "lora.alpha",
                self.lora.alpha,
                self.lora.alpha > 0.0 && self.lora.alpha.is_finite(),
                positive,
            ),
            ("lora.dropout", self.lora.dropout, (0.0..1.0).contains(&self.lora.dropout), share),
            (
                "samples.temperature",
                self.samples.temperature,
                self.samples.temperature >= 0.0 && self.samples.temperature.is_finite(),
                "it must be 0 (always the likeliest token) or more",
            ),
            (
                "samples.max_tokens",
                self.samples.max_tokens as f64,
                self.samples.max_tokens > 0,
                whole,
            ),
        ];
        for (name, value, holds, rule) in rules {
            if !holds {
                return Err(RunError::Setting { name, value: value.to_string(), rule });
            }
        }
        if self.method != Method::Full && self.lora.targets.is_empty() {
            let rule = "name at least one linear layer, or `all-linear`";
            return Err(RunError::Setting { name: "lora.targets", value: "empty".into(), rule });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_of_before_there_were_cards_goes_on_where_it_was() {
        assert_eq!(read("").device, TrainingDevice::Cpu);
        for device in [TrainingDevice::Cpu, TrainingDevice::Cuda] {
            assert_eq!(read(&format!("device = \"{}\"", device.id())).device, device);
        }
    }

    /// The settings that `line` of a run.toml leads to.
    fn read(line: &str) -> RunSettings {
        toml::from_str(&format!("format = {FORMAT}\n{line}\n")).unwrap()
    }

    #[test]
    fn a_flag_of_before_is_read_as_the_setting_that_it_became() {
        for (line, expected) in [
            ("", Recompute::Auto),
            ("recompute = true", Recompute::On),
            ("recompute = false", Recompute::Off),
            ("recompute = \"auto\"", Recompute::Auto),
            ("recompute = \"off\"", Recompute::Off),
        ] {
            let settings = read(line);
            assert_eq!(settings.recompute, expected, "{line}");
            let stored = toml::to_string(&settings).unwrap();
            assert_eq!(toml::from_str::<RunSettings>(&stored).unwrap(), settings);
        }
    }
}
