//! `train` and `resume`: settings in, progress out.

use std::{path::Path, time::Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use nibble_engine::{
    devices::{self, OpenDeviceError},
    model::ModelError,
    train::{self, Command, Elsewhere, Outcome, RunHandle, TrainError},
};
use nibble_run::{
    CardReadings, Columns, ComputePrecision, Event, Method, Optimizer, Paging, Recompute, RunError,
    RunSettings, Schedule, TrainOn, TrainingDevice, WeightPrecision, read_settings,
};

use crate::{
    Failure,
    arguments::{
        ComputeArgument, DataArguments, DeviceArgument, MethodArgument, OptimizerArgument,
        PagedArgument, RecomputeArgument, ResumeArguments, ScheduleArgument, SizeArguments,
        TrainArguments, TrainOnArgument, WeightsArgument,
    },
    output::say,
    profile, show,
};

/// `nibble train`.
pub fn train(arguments: &TrainArguments, json: bool) -> Result<(), Failure> {
    let settings = settings(arguments)?;
    let start = if arguments.profile { train::start_profiled } else { train::start };
    let run = start(settings, &arguments.out).map_err(failure)?;
    follow(run, &arguments.out, json)
}

/// `nibble resume`.
pub fn resume(arguments: &ResumeArguments, json: bool) -> Result<(), Failure> {
    let elsewhere = Elsewhere {
        device: arguments.device.map(|named| device(Some(named))),
        budget_bytes: arguments.budget,
    };
    let run = train::resume(&arguments.run, elsewhere).map_err(failure)?;
    follow(run, &arguments.run, json)
}

/// What a person can mend is bad input; the rest are failures.
pub fn failure(error: TrainError) -> Failure {
    match error {
        TrainError::Run(RunError::Write { .. })
        | TrainError::Model(ModelError::Write { .. } | ModelError::NoSpace { .. }) => {
            Failure::running(error)
        }
        TrainError::Data(error) => Failure::data(error),
        TrainError::Generate(error) => Failure::session(error),
        TrainError::Run(_)
        | TrainError::Model(_)
        | TrainError::Plan(_)
        | TrainError::Open(OpenDeviceError::Unavailable(_))
        | TrainError::NotDownloaded { .. }
        | TrainError::Complete { .. } => Failure::input(error),
        _ => Failure::running(error),
    }
}

/// The sizes that were given, over those of `settings`; not the device.
pub fn apply_sizes(settings: &mut RunSettings, sizes: &SizeArguments) {
    fn set<T: Clone>(slot: &mut T, value: &Option<T>) {
        if let Some(value) = value {
            *slot = value.clone();
        }
    }
    set(&mut settings.sequence, &sizes.seq);
    set(&mut settings.batch, &sizes.batch);
    set(&mut settings.lora.rank, &sizes.rank);
    set(&mut settings.lora.targets, &sizes.targets);
    settings.budget_bytes = sizes.budget.or(settings.budget_bytes);
    settings.threads = sizes.threads.or(settings.threads);
    if let Some(recompute) = sizes.recompute {
        settings.recompute = match recompute {
            RecomputeArgument::Auto => Recompute::Auto,
            RecomputeArgument::On => Recompute::On,
            RecomputeArgument::Off => Recompute::Off,
        };
    }
    if let Some(paged) = sizes.paged {
        settings.paged = match paged {
            PagedArgument::Auto => Paging::Auto,
            PagedArgument::On => Paging::On,
            PagedArgument::Off => Paging::Off,
        };
    }
    if let Some(optimizer) = sizes.optimizer {
        settings.optimizer = match optimizer {
            OptimizerArgument::Adamw => Optimizer::AdamW,
            OptimizerArgument::Adamw8bit => Optimizer::AdamW8bit,
        };
    }
    if let Some(compute) = sizes.compute {
        settings.compute = precision(compute);
    }
    if let Some(weights) = sizes.weights {
        settings.weights = match weights {
            WeightsArgument::Auto => WeightPrecision::Auto,
            WeightsArgument::Bf16 => WeightPrecision::Bf16,
            WeightsArgument::F32 => WeightPrecision::F32,
        };
    }
}

/// The device that was named. To look for cards takes a moment, and is left where none is wanted.
pub fn device(named: Option<DeviceArgument>) -> TrainingDevice {
    match named {
        None | Some(DeviceArgument::Auto) => devices::preferred(),
        Some(DeviceArgument::Cpu) => TrainingDevice::Cpu,
        Some(DeviceArgument::Cuda) => TrainingDevice::Cuda,
    }
}

/// The method that was named.
pub fn method(named: MethodArgument) -> Method {
    match named {
        MethodArgument::Full => Method::Full,
        MethodArgument::Lora => Method::Lora,
        MethodArgument::Qlora => Method::Qlora,
    }
}

/// The precision that was named.
pub fn precision(compute: ComputeArgument) -> ComputePrecision {
    match compute {
        ComputeArgument::Auto => ComputePrecision::Auto,
        ComputeArgument::Bf16 => ComputePrecision::Bf16,
        ComputeArgument::F32 => ComputePrecision::F32,
    }
}

/// The columns that were named, and what is trained on, over those of `settings`.
pub fn apply_columns(settings: &mut RunSettings, columns: &DataArguments) {
    let given = columns.clone();
    let Columns { text, prompt, completion, messages } = &mut settings.columns;
    for (slot, value) in [
        (text, given.text_column),
        (prompt, given.prompt_column),
        (completion, given.completion_column),
        (messages, given.messages_column),
    ] {
        *slot = value.or(slot.take());
    }
    match columns.train_on {
        Some(TrainOnArgument::Completions) => settings.train_on = TrainOn::Completions,
        Some(TrainOnArgument::Everything) => settings.train_on = TrainOn::Everything,
        None => {}
    }
}

fn settings(arguments: &TrainArguments) -> Result<RunSettings, Failure> {
    let mut settings = match &arguments.config {
        Some(path) => read_settings(path).map_err(Failure::input)?,
        None => RunSettings::default(),
    };
    let absolute = |path: &Path| {
        // A run can be resumed from anywhere.
        std::path::absolute(path).map_err(Failure::input)
    };
    if let Some(model) = &arguments.model {
        // An id of the catalog is no path; the engine says what to do with it.
        settings.model = if model.exists() { absolute(model)? } else { model.clone() };
    }
    if let Some(data) = &arguments.data {
        settings.data = absolute(data)?;
    }
    if let Some(named) = arguments.method {
        settings.method = method(named);
    }
    if let Some(schedule) = arguments.schedule {
        settings.schedule = match schedule {
            ScheduleArgument::Cosine => Schedule::Cosine,
            ScheduleArgument::Linear => Schedule::Linear,
            ScheduleArgument::Constant => Schedule::Constant,
        };
    }
    apply_sizes(&mut settings, &arguments.sizes);
    // A file of settings has named one.
    if arguments.sizes.device.is_some() || arguments.config.is_none() {
        settings.device = device(arguments.sizes.device);
    }
    apply_columns(&mut settings, &arguments.columns);
    if let Some(epochs) = arguments.epochs {
        settings.epochs = epochs;
        settings.steps = None;
    }
    settings.steps = arguments.steps.or(settings.steps);
    settings.learning_rate = arguments.lr.or(settings.learning_rate);
    settings.lora.rslora |= arguments.rslora;
    settings.packing &= !arguments.no_packing;
    let numbers: [(&mut f64, Option<f64>); 5] = [
        (&mut settings.lora.alpha, arguments.alpha),
        (&mut settings.lora.dropout, arguments.dropout),
        (&mut settings.weight_decay, arguments.weight_decay),
        (&mut settings.clip_norm, arguments.clip_norm),
        (&mut settings.eval_split, arguments.eval_split),
    ];
    for (slot, value) in numbers {
        *slot = value.unwrap_or(*slot);
    }
    let counts: [(&mut u64, Option<u64>); 5] = [
        (&mut settings.warmup_steps, arguments.warmup),
        (&mut settings.seed, arguments.seed),
        (&mut settings.eval_every, arguments.eval_every),
        (&mut settings.save_every, arguments.save_every),
        (&mut settings.samples.every, arguments.sample_every),
    ];
    for (slot, value) in counts {
        *slot = value.unwrap_or(*slot);
    }
    settings.gradient_accumulation = arguments.grad_accum.unwrap_or(settings.gradient_accumulation);
    if !arguments.sample.is_empty() {
        settings.samples.prompts.clone_from(&arguments.sample);
    }
    Ok(settings)
}

/// Shows a run until it ends; Ctrl-C saves and ends it.
fn follow(run: RunHandle, folder: &Path, json: bool) -> Result<(), Failure> {
    let commands = run.commands();
    // The second handler of one process is refused; the first one still works.
    let _ = ctrlc::set_handler(move || {
        let _ = commands.send(Command::Stop);
    });
    let mut screen = Screen::new();
    for event in run.events() {
        if json {
            match serde_json::to_string(&event) {
                Ok(line) => say!("{line}"),
                Err(error) => return Err(Failure::running(error)),
            }
        } else {
            screen.show(&event);
        }
    }
    screen.finish();
    let outcome = run.join().map_err(failure)?;
    if !json {
        conclude(&outcome, folder);
    }
    Ok(())
}

fn conclude(outcome: &Outcome, folder: &Path) {
    let Outcome { n_steps, checkpoint, complete, .. } = outcome;
    match checkpoint {
        Some(checkpoint) if *complete => {
            say!("\nTrained {n_steps} steps. The result is in {}", checkpoint.display());
            say!("Charts: {}", folder.join("report").join("report.html").display());
            say!("Export it with: nibble export {} --to FOLDER", folder.display());
            return;
        }
        Some(checkpoint) => {
            say!("\nStopped after {n_steps} steps; saved in {}", checkpoint.display());
        }
        None => say!("\nStopped before the first step"),
    }
    say!("Go on with: nibble resume {}", folder.display());
}

/// The terminal: a bar for loading, then one for training.
struct Screen {
    bar: ProgressBar,
    loading: bool,
    first_step: Option<(u64, Instant)>,
    n_steps: u64,
}

impl Screen {
    fn new() -> Self {
        Self { bar: ProgressBar::hidden(), loading: false, first_step: None, n_steps: 0 }
    }

    fn show(&mut self, event: &Event) {
        match event {
            Event::Loading { done_bytes, total_bytes } => {
                if !self.loading {
                    self.loading = true;
                    self.bar = bar(*total_bytes, "Loading  {bar:32} {percent}%  {eta} left");
                }
                self.bar.set_position(*done_bytes);
            }
            Event::Ready { n_steps, step, n_examples, n_tokens, planned_peak_bytes } => {
                self.bar.finish_and_clear();
                say!(
                    "{} examples, {} tokens; {} of memory planned",
                    show::count(*n_examples),
                    show::count(*n_tokens),
                    show::bytes(*planned_peak_bytes)
                );
                self.bar = bar(*n_steps, "Step {pos}/{len} {bar:24} {msg}");
                self.bar.set_position(*step);
                self.n_steps = *n_steps;
                self.first_step = Some((*step, Instant::now()));
            }
            Event::Step { step, loss, tokens_per_s, host_bytes, device_bytes, card, .. } => {
                let left = self.first_step.map_or(String::new(), |(first, start)| {
                    let done = step.saturating_sub(first).max(1);
                    let per_step = start.elapsed().as_secs_f64() / done as f64;
                    let seconds = per_step * self.n_steps.saturating_sub(*step) as f64;
                    format!("  {} left", duration(seconds))
                });
                // Of a card what the run has taken there; the processor's memory is the process's.
                let memory = match card {
                    Some(CardReadings { temperature_celsius: Some(celsius), .. }) => {
                        format!("{} on the card, {celsius:.0} °C", show::bytes(*device_bytes))
                    }
                    Some(_) => format!("{} on the card", show::bytes(*device_bytes)),
                    None => show::bytes(*host_bytes),
                };
                let message = format!("loss {loss:.4}  {tokens_per_s:.0} tokens/s  {memory}{left}");
                if self.bar.is_hidden() && is_milestone(*step, self.n_steps) {
                    say!("Step {step}/{} {message}", self.n_steps);
                }
                self.bar.set_message(message);
                self.bar.set_position(*step);
            }
            Event::Eval { step, loss, perplexity, .. } => self.line(&format!(
                "Evaluation after step {step}: loss {loss:.4}, perplexity {perplexity:.2}"
            )),
            Event::Checkpoint { step, path } => {
                self.line(&format!("Saved step {step} in {}", path.display()));
            }
            Event::Sample { step, prompt, text } => {
                let when = if *step == 0 {
                    "Before training".to_owned()
                } else {
                    format!("After step {step}")
                };
                self.line(&format!("{when}\n  > {prompt}\n  {}", text.replace('\n', "\n  ")));
            }
            Event::Warning { message } => self.line(&format!("Note: {message}")),
            Event::Profile {
                steps,
                seconds,
                operations,
                product_flops_per_s,
                copy_bytes_per_s,
            } => {
                self.bar.finish();
                let ceilings = (*product_flops_per_s, *copy_bytes_per_s);
                profile::show(*steps, *seconds, operations, ceilings);
            }
            // The error itself follows.
            Event::Failed { .. } => {}
            Event::Paused => self.line("Paused"),
            Event::Resumed => self.line("Going on"),
            Event::Done {
                planned_peak_bytes,
                allocated_peak_bytes,
                allocated_outside_bytes,
                peak_rss_bytes,
                ..
            } => {
                self.bar.finish();
                say!(
                    "Memory: {} planned, {} allocated; {} the most the process held",
                    show::bytes(*planned_peak_bytes),
                    show::bytes(*allocated_peak_bytes),
                    show::bytes(*peak_rss_bytes)
                );
                if *allocated_outside_bytes > 0 {
                    say!("Paged: {} outside", show::bytes(*allocated_outside_bytes));
                }
            }
        }
    }

    fn line(&self, text: &str) {
        // Above the bar where there is one; a pipe has none and would lose the line.
        if self.bar.is_hidden() {
            say!("{text}");
        } else {
            self.bar.suspend(|| say!("{text}"));
        }
    }

    fn finish(&self) {
        self.bar.abandon();
    }
}

/// Whether a step is told where there is no terminal to draw a bar in: the first, and each that
/// completes another tenth of the run.
fn is_milestone(step: u64, n_steps: u64) -> bool {
    let tenths = |step: u64| u128::from(step) * 10 / u128::from(n_steps.max(1));
    step == 1 || tenths(step) > tenths(step.saturating_sub(1))
}

fn bar(length: u64, template: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(length), ProgressDrawTarget::stderr());
    // The template is a constant of this file; a wrong one would show the plain bar.
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("━╸ "));
    }
    bar
}

fn duration(seconds: f64) -> String {
    let seconds = seconds.round() as u64;
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{}:{:02} min", seconds / 60, seconds % 60),
        _ => format!("{}:{:02} h", seconds / 3600, seconds / 60 % 60),
    }
}
