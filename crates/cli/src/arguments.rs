//! What can be said on the command line, with its help.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Fine-tune language models on the computer you have.
#[derive(Debug, Parser)]
#[command(
    name = "nibble",
    version,
    max_term_width = 100,
    after_help = "Examples:
  nibble plan --model llama-3.2-1b --seq 1024
  nibble inspect --model ./my-model --data questions.jsonl
  nibble train --model ./my-model --data questions.jsonl --out runs/first
  nibble export runs/first --to ./my-adapter

A model is a folder with config.json, safetensors and tokenizer.json, as published on model hubs."
)]
pub struct Arguments {
    /// Print JSON and nothing else (train: one object a line).
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// List what this computer can train on, with total and free memory.
    Devices,
    /// Show what full fine-tuning, LoRA and QLoRA would cost in memory, before anything is loaded.
    Plan(PlanArguments),
    /// Show how a dataset would be read: its format, its tokens, and which of them are trained on.
    Inspect(InspectArguments),
    /// Train, and write a run folder.
    Train(Box<TrainArguments>),
    /// Go on with a run that was stopped or killed, bit for bit.
    Resume(ResumeArguments),
    /// Write what a run trained to a folder that other programs load, and verify it.
    Export(ExportArguments),
    /// Answer a prompt.
    Generate(GenerateArguments),
    /// Measure the loss on a dataset.
    Eval(EvalArguments),
    /// Measure how fast this computer is, and where the time of a training step goes.
    Bench(BenchArguments),
}

/// What is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum MethodArgument {
    /// Every weight.
    Full,
    /// A small adapter beside plain weights.
    Lora,
    /// A small adapter beside 4-bit weights.
    Qlora,
}

/// The precision of matrix products.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ComputeArgument {
    /// bf16 where the device multiplies it, f32 elsewhere.
    Auto,
    /// Inputs in bf16, sums in f32.
    Bf16,
    /// Everything in f32.
    F32,
}

/// The precision of weights that are not quantised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum WeightsArgument {
    /// f32 when trained, else as precise as the products.
    Auto,
    /// Two bytes a weight; a layer's gradients too, in steps of one micro-batch.
    Bf16,
    /// Four bytes a weight.
    F32,
}

/// How the learning rate falls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ScheduleArgument {
    /// Along half a cosine wave.
    Cosine,
    /// Along a line.
    Linear,
    /// Not at all.
    Constant,
}

/// Whether memory may be paged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PagedArgument {
    /// As little as fits the budget.
    Auto,
    /// Everything that can be.
    On,
    /// Nothing.
    Off,
}

/// Whether activations are computed twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RecomputeArgument {
    /// Kept of as many layers as fit --budget and half of the free memory, of a card seven eighths.
    Auto,
    /// Always computed again: least memory.
    On,
    /// Always kept: fastest.
    Off,
}

/// How the optimizer keeps its states.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OptimizerArgument {
    /// In f32: eight bytes for each trained number.
    Adamw,
    /// In 8 bits, block by block: two bytes for each trained number.
    #[value(name = "adamw-8bit")]
    Adamw8bit,
}

/// Which tokens the loss counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TrainOnArgument {
    /// Completions and the assistant's turns.
    Completions,
    /// Every token.
    Everything,
}

/// Where to compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DeviceArgument {
    /// The graphics card if there is one that can, else the processor.
    Auto,
    /// The processor.
    Cpu,
    /// The first NVIDIA graphics card that can.
    Cuda,
}

/// What decides a run's memory.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Sizes and memory")]
pub struct SizeArguments {
    /// Tokens of the longest example; longer ones are cut [default: 512].
    #[arg(long, value_name = "TOKENS")]
    pub seq: Option<usize>,
    /// Rows of --seq tokens in a micro-batch [default: 1].
    #[arg(long, value_name = "ROWS")]
    pub batch: Option<usize>,
    /// Rank of the adapter [default: 16].
    #[arg(long, value_name = "R")]
    pub rank: Option<usize>,
    /// Layers with an adapter: all-linear, or names such as q_proj,v_proj
    /// [default: all-linear].
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    pub targets: Option<Vec<String>>,
    /// The most memory to use, such as 8GiB; otherwise what other programs leave.
    #[arg(long, value_parser = parse_bytes, value_name = "BYTES")]
    pub budget: Option<u64>,
    /// Where to compute [default: auto].
    #[arg(long, value_enum)]
    pub device: Option<DeviceArgument>,
    /// What may lie outside the device and visit it page by page [default: auto].
    #[arg(long, value_enum)]
    pub paged: Option<PagedArgument>,
    /// How the optimizer keeps its states [default: adamw].
    #[arg(long, value_enum)]
    pub optimizer: Option<OptimizerArgument>,
    /// Precision of matrix products.
    #[arg(long, value_enum)]
    pub compute: Option<ComputeArgument>,
    /// Precision of weights that are not quantised.
    #[arg(long, value_enum)]
    pub weights: Option<WeightsArgument>,
    /// Whether activations are computed twice instead of kept [default: auto].
    #[arg(long, value_enum)]
    pub recompute: Option<RecomputeArgument>,
    /// Threads that compute; otherwise one a core.
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
}

/// Arguments of `plan`.
#[derive(Clone, Debug, Args)]
pub struct PlanArguments {
    /// A model's folder, or an id of the catalog such as llama-2-13b.
    #[arg(long, value_name = "FOLDER|ID")]
    pub model: String,
    /// Sizes.
    #[command(flatten)]
    pub sizes: SizeArguments,
}

/// A dataset and how to read it.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Dataset")]
pub struct DataArguments {
    /// Column of whole texts, when it is not recognised.
    #[arg(long, value_name = "NAME")]
    pub text_column: Option<String>,
    /// Column of prompts.
    #[arg(long, value_name = "NAME")]
    pub prompt_column: Option<String>,
    /// Column of completions.
    #[arg(long, value_name = "NAME")]
    pub completion_column: Option<String>,
    /// Column of conversations.
    #[arg(long, value_name = "NAME")]
    pub messages_column: Option<String>,
    /// Which tokens the loss counts.
    #[arg(long, value_enum)]
    pub train_on: Option<TrainOnArgument>,
}

/// Arguments of `inspect`.
#[derive(Clone, Debug, Args)]
pub struct InspectArguments {
    /// The model's folder, for its tokenizer and chat template.
    #[arg(long, value_name = "FOLDER")]
    pub model: PathBuf,
    /// The dataset: JSON lines, JSON or plain text.
    #[arg(long, value_name = "FILE")]
    pub data: PathBuf,
    /// Examples to show.
    #[arg(long, default_value_t = 3, value_name = "N")]
    pub limit: usize,
    /// Tokens of the longest example.
    #[arg(long, default_value_t = 512, value_name = "TOKENS")]
    pub seq: usize,
    /// Columns.
    #[command(flatten)]
    pub columns: DataArguments,
}

/// Arguments of `train`.
#[derive(Clone, Debug, Args)]
pub struct TrainArguments {
    /// Take every setting from a run.toml; other flags change single ones.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The model's folder.
    #[arg(long, value_name = "FOLDER", required_unless_present = "config")]
    pub model: Option<PathBuf>,
    /// The dataset: JSON lines, JSON or plain text.
    #[arg(long, value_name = "FILE", required_unless_present = "config")]
    pub data: Option<PathBuf>,
    /// Where the run folder is made.
    #[arg(long, value_name = "FOLDER")]
    pub out: PathBuf,
    /// Show where the time of the steps went: every operation, beside what the machine could do.
    #[arg(long)]
    pub profile: bool,
    /// What is trained [default: qlora].
    #[arg(long, value_enum)]
    pub method: Option<MethodArgument>,
    /// Optimizer steps.
    #[arg(long, value_name = "N", conflicts_with = "epochs")]
    pub steps: Option<u64>,
    /// Passes over the dataset [default: 1].
    #[arg(long, value_name = "X")]
    pub epochs: Option<f64>,
    /// Sizes.
    #[command(flatten)]
    pub sizes: SizeArguments,
    /// Micro-batches in an optimizer step [default: 1].
    #[arg(long, value_name = "N", help_heading = "Optimizer")]
    pub grad_accum: Option<usize>,
    /// Strength of the adapter: its output is scaled by alpha / rank [default: 32].
    #[arg(long, value_name = "A", help_heading = "Adapter")]
    pub alpha: Option<f64>,
    /// Share of the adapter's inputs dropped in training.
    #[arg(long, value_name = "P", help_heading = "Adapter")]
    pub dropout: Option<f64>,
    /// Scale by alpha / √rank instead.
    #[arg(long, help_heading = "Adapter")]
    pub rslora: bool,
    /// The highest learning rate [default: 2e-4 for adapters, 2e-5 in full].
    #[arg(long, value_name = "X", help_heading = "Optimizer")]
    pub lr: Option<f64>,
    /// How the learning rate falls [default: cosine].
    #[arg(long, value_enum, help_heading = "Optimizer")]
    pub schedule: Option<ScheduleArgument>,
    /// Steps over which the learning rate rises.
    #[arg(long, value_name = "N", help_heading = "Optimizer")]
    pub warmup: Option<u64>,
    /// Weight decay [default: 0.01].
    #[arg(long, value_name = "X", help_heading = "Optimizer")]
    pub weight_decay: Option<f64>,
    /// The largest gradient norm; 0: any [default: 1].
    #[arg(long, value_name = "X", help_heading = "Optimizer")]
    pub clip_norm: Option<f64>,
    /// Decides shuffling, the first adapter and dropout [default: 0].
    #[arg(long, value_name = "N", help_heading = "Optimizer")]
    pub seed: Option<u64>,
    /// Share of the examples held out for evaluation [default: 0].
    #[arg(long, value_name = "X", help_heading = "Evaluation and checkpoints")]
    pub eval_split: Option<f64>,
    /// Steps between evaluations; 0: only at the end.
    #[arg(long, value_name = "N", help_heading = "Evaluation and checkpoints")]
    pub eval_every: Option<u64>,
    /// Steps between checkpoints; 0: only at the end [default: 100].
    #[arg(long, value_name = "N", help_heading = "Evaluation and checkpoints")]
    pub save_every: Option<u64>,
    /// One example a row, instead of as many as fit.
    #[arg(long, help_heading = "Dataset")]
    pub no_packing: bool,
    /// A prompt to answer before and after training (and every --sample-every steps); repeatable.
    #[arg(long, value_name = "TEXT", help_heading = "Samples")]
    pub sample: Vec<String>,
    /// Steps between samples; 0: only before and after.
    #[arg(long, value_name = "N", help_heading = "Samples")]
    pub sample_every: Option<u64>,
    /// Columns.
    #[command(flatten)]
    pub columns: DataArguments,
}

/// Arguments of `bench`.
#[derive(Clone, Debug, Args)]
pub struct BenchArguments {
    /// A model's folder, of which a few steps are trained on numbers and thrown away; without one, the device
    /// alone is measured.
    #[arg(long, value_name = "FOLDER")]
    pub model: Option<PathBuf>,
    /// What is trained [default: qlora].
    #[arg(long, value_enum)]
    pub method: Option<MethodArgument>,
    /// Optimizer steps; the first warms up and does not count.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u64).range(2..))]
    pub steps: u64,
    /// Sizes.
    #[command(flatten)]
    pub sizes: SizeArguments,
}

/// Arguments of `resume`.
#[derive(Clone, Debug, Args)]
pub struct ResumeArguments {
    /// The run folder.
    #[arg(value_name = "RUN")]
    pub run: PathBuf,
    /// Where to compute this time, instead of where the run's settings say; another device rounds otherwise, so
    /// that the numbers are no longer the same to the last bit.
    #[arg(long, value_enum)]
    pub device: Option<DeviceArgument>,
    /// The most memory to use this time, instead of what the run's settings say; the numbers are the same.
    #[arg(long, value_parser = parse_bytes, value_name = "BYTES")]
    pub budget: Option<u64>,
}

/// What to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FormatArgument {
    /// A PEFT adapter folder.
    Adapter,
    /// A whole model with the adapter added in.
    Merged,
}

/// Arguments of `export`.
#[derive(Clone, Debug, Args)]
pub struct ExportArguments {
    /// The run folder.
    #[arg(value_name = "RUN")]
    pub run: PathBuf,
    /// The folder to write.
    #[arg(long, value_name = "FOLDER")]
    pub to: PathBuf,
    /// What to write.
    #[arg(long, value_enum, default_value = "adapter")]
    pub format: FormatArgument,
    /// Export the checkpoint of this step instead of the last.
    #[arg(long, value_name = "N")]
    pub step: Option<u64>,
}

/// How weights are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum QuantizeArgument {
    /// 4-bit normal floats, as in QLoRA.
    Nf4,
}

/// Arguments of `generate`.
#[derive(Clone, Debug, Args)]
pub struct GenerateArguments {
    /// The model's folder.
    #[arg(long, value_name = "FOLDER")]
    pub model: PathBuf,
    /// A PEFT adapter folder.
    #[arg(long, value_name = "FOLDER")]
    pub adapter: Option<PathBuf>,
    /// What to answer.
    #[arg(long, value_name = "TEXT")]
    pub prompt: String,
    /// 0: always the likeliest token.
    #[arg(long, default_value_t = 0.7, value_name = "X")]
    pub temperature: f64,
    /// Keep the fewest tokens whose probabilities sum to this.
    #[arg(long, default_value_t = 0.9, value_name = "P")]
    pub top_p: f64,
    /// The most tokens of the answer.
    #[arg(long, default_value_t = 256, value_name = "N")]
    pub max_tokens: usize,
    /// Seeds the choice of tokens.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub seed: u64,
    /// How weights are stored.
    #[arg(long, value_enum)]
    pub quantize: Option<QuantizeArgument>,
    /// Precision of matrix products.
    #[arg(long, value_enum, default_value = "auto")]
    pub compute: ComputeArgument,
    /// Where to compute.
    #[arg(long, value_enum, default_value = "auto")]
    pub device: DeviceArgument,
}

/// Arguments of `eval`.
#[derive(Clone, Debug, Args)]
pub struct EvalArguments {
    /// The model's folder.
    #[arg(long, value_name = "FOLDER")]
    pub model: PathBuf,
    /// A PEFT adapter folder.
    #[arg(long, value_name = "FOLDER")]
    pub adapter: Option<PathBuf>,
    /// The dataset.
    #[arg(long, value_name = "FILE")]
    pub data: PathBuf,
    /// How weights are stored.
    #[arg(long, value_enum)]
    pub quantize: Option<QuantizeArgument>,
    /// Precision of matrix products.
    #[arg(long, value_enum, default_value = "auto")]
    pub compute: ComputeArgument,
    /// Where to compute.
    #[arg(long, value_enum, default_value = "auto")]
    pub device: DeviceArgument,
    /// Tokens of the longest example; longer ones are cut [default: 512].
    #[arg(long, default_value_t = 512, value_name = "TOKENS")]
    pub seq: usize,
    /// Columns.
    #[command(flatten)]
    pub columns: DataArguments,
}

/// `8GiB`, `512 MiB`, `8GB`, `8000000000`.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let wrong = || format!("`{text}` is no size; write it like 8GiB, 512MiB or 6.5GB");
    let number: f64 = number.parse().map_err(|_| wrong())?;
    let factor: f64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "k" | "kb" => 1e3,
        "kib" => 1024.0,
        "m" | "mb" => 1e6,
        "mib" => 1024.0 * 1024.0,
        "g" | "gb" => 1e9,
        "gib" => 1024.0 * 1024.0 * 1024.0,
        _ => return Err(wrong()),
    };
    Ok((number * factor) as u64)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn sizes_are_read_in_every_usual_unit() {
        for (text, bytes) in [
            ("8GiB", Ok(8 << 30)),
            ("512 mib", Ok(512 << 20)),
            ("6.5GB", Ok(6_500_000_000)),
            ("1024", Ok(1024)),
            ("lots", Err(())),
            ("3 apples", Err(())),
            ("", Err(())),
        ] {
            assert_eq!(parse_bytes(text).map_err(|_| ()), bytes, "{text}");
        }
    }
}
