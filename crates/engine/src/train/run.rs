//! A run: from settings to a trained adapter, on a background thread behind a handle.
//!
//! Events come out, commands go in; whoever shows the run needs nothing else. The run folder is
//! written as it goes, so that a run can be resumed after any end.

use std::{
    cell::Cell,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::mpsc::{self, Receiver, Sender},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use nibble_data::{
    BatchBuffers, BatchCounts, BatchPlan, ChatTemplate, Dataset, TokenizedDataset, Tokenizer,
};
use nibble_kernels::{Cpu, Memory, Paging, attention::Segment, random::hash};
use nibble_run::{Event, Explain, MetricsWriter, RunFolder, RunLock, RunSettings, read_metrics};
use serde::Deserialize;

use super::{
    TrainError,
    checkpoint::{self, RunState},
    initialise::initial_adapter,
    prepare::{self, Prepared, column_mapping, tokenize_options},
    schedule::LearningRate,
    trainer::{MicroBatch, Trainer},
};
use crate::{
    adapter::AdapterConfig,
    decoder::DropoutMask,
    devices::ResidentMemory,
    export::copy_companions,
    generate::{self, SamplingSettings},
    model::ModelError,
    optimizer::OptimizerConfig,
    report,
    residency::open_store,
    weights::{load::LoadProgress, place_weights},
};

/// What a running run can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
pub enum Command {
    /// Hold before the next step.
    Pause,
    /// Go on.
    Resume,
    /// Write a checkpoint and end.
    Stop,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// Steps done, of all sittings.
    pub n_steps: u64,
    /// The last step's mean loss.
    pub final_loss: f64,
    /// The last checkpoint; `None` where the run was stopped before there was one.
    pub checkpoint: Option<PathBuf>,
    /// Whether everything was done, as opposed to stopped before.
    pub complete: bool,
}

impl Outcome {
    /// Told to stop before the first step of a sitting: nothing has changed since `checkpoint`.
    fn stopped_while_loading(checkpoint: Option<PathBuf>) -> Result<Self, TrainError> {
        let state = match &checkpoint {
            Some(path) => checkpoint::read_state(path)?,
            None => RunState::new(0, f64::NAN, 0),
        };
        let RunState { step, loss, .. } = state;
        Ok(Self { n_steps: step, final_loss: loss, checkpoint, complete: false })
    }
}

/// A run on its thread.
#[derive(Debug)]
pub struct RunHandle {
    events: Receiver<Event>,
    commands: Sender<Command>,
    thread: JoinHandle<Result<Outcome, TrainError>>,
}

impl RunHandle {
    /// What happens, in order; ends when the run does.
    pub fn events(&self) -> &Receiver<Event> {
        &self.events
    }

    /// Tells the run something; a run that has ended does not hear it.
    pub fn send(&self, command: Command) {
        let _ = self.commands.send(command);
    }

    /// A way to send commands from elsewhere, such as a signal handler.
    pub fn commands(&self) -> Sender<Command> {
        self.commands.clone()
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// Whatever ended the run.
    pub fn join(self) -> Result<Outcome, TrainError> {
        drop(self.events);
        self.thread.join().unwrap_or(Err(TrainError::Panicked))
    }
}

/// Starts a new run in the folder `path`. Everything that can be wrong with the settings, the
/// model's shape or the memory is found before this returns, and before anything is loaded.
///
/// # Errors
/// What is wrong, and what to do; then no folder is left behind.
pub fn start(settings: RunSettings, path: &Path) -> Result<RunHandle, TrainError> {
    let prepared = prepare::prepare(settings)?;
    let folder = RunFolder::create(path, &prepared.settings)?;
    let lock = folder.lock().and_then(|lock| {
        folder.write_plan(&prepared.report())?;
        Ok(lock)
    });
    match lock {
        Ok(lock) => spawn(prepared, folder, lock, Begin::New),
        Err(error) => {
            folder.discard();
            Err(error.into())
        }
    }
}

/// Where a sitting of a run begins.
enum Begin {
    /// In a folder that this sitting made.
    New,
    /// At a checkpoint, or from the beginning where there is none yet.
    Again(Option<PathBuf>),
}

/// Goes on with the run in the folder `path` from its last whole checkpoint, or from the beginning
/// when it has none.
///
/// # Errors
/// As [`start`]; or when the run is complete, or is being trained already.
pub fn resume(path: &Path) -> Result<RunHandle, TrainError> {
    let folder = RunFolder::open(path)?;
    let lock = folder.lock()?;
    let prepared = prepare::prepare(folder.settings()?)?;
    let last = folder.checkpoints()?.pop();
    spawn(prepared, folder, lock, Begin::Again(last.map(|checkpoint| checkpoint.path)))
}

fn spawn(
    prepared: Prepared,
    folder: RunFolder,
    lock: RunLock,
    begin: Begin,
) -> Result<RunHandle, TrainError> {
    let (event_sender, events) = mpsc::channel();
    let (commands, command_receiver) = mpsc::channel();
    let thread = std::thread::Builder::new()
        .name("nibble-run".into())
        .spawn(move || {
            let link = Link {
                events: event_sender,
                commands: command_receiver,
                wants_pause: Cell::new(false),
                wants_stop: Cell::new(false),
            };
            let (is_new, checkpoint) = match begin {
                Begin::New => (true, None),
                Begin::Again(checkpoint) => (false, checkpoint),
            };
            match Run::open(prepared, folder.clone(), checkpoint.as_deref(), link) {
                Ok(mut run) => {
                    let result = run.run();
                    if let Err(error) = &result {
                        run.remember(error);
                    }
                    result
                }
                Err(error) => {
                    if matches!(error, TrainError::Model(ModelError::Cancelled)) {
                        return Outcome::stopped_while_loading(checkpoint);
                    }
                    drop(lock);
                    if is_new {
                        // The folder holds settings alone, and the same name should be free for
                        // the next try.
                        folder.discard();
                    }
                    Err(error)
                }
            }
        })
        .map_err(|error| TrainError::Threads(error.to_string()))?;
    Ok(RunHandle { events, commands, thread })
}

/// The thread's ends of the handle's channels.
struct Link {
    events: Sender<Event>,
    commands: Receiver<Command>,
    /// What the last of Pause and Resume asked for.
    wants_pause: Cell<bool>,
    /// Whether Stop has come; it is never taken back.
    wants_stop: Cell<bool>,
}

impl Link {
    fn emit(&self, event: Event) {
        // Nobody listening is no reason to stop: the run folder has everything.
        let _ = self.events.send(event);
    }

    fn hear(&self, command: Command) {
        match command {
            Command::Pause => self.wants_pause.set(true),
            Command::Resume => self.wants_pause.set(false),
            Command::Stop => self.wants_stop.set(true),
        }
    }

    /// Whether the run was told to stop. Asked within long work too, so that a person who wants to
    /// end a run never waits for more than a step.
    fn must_stop(&self) -> bool {
        while let Ok(command) = self.commands.try_recv() {
            self.hear(command);
        }
        self.wants_stop.get()
    }

    /// Takes the commands that have come; waits while paused. Returns whether to go on.
    fn goes_on(&self, metrics: &mut MetricsWriter) -> Result<bool, TrainError> {
        let mut tell = |event: Event| {
            metrics.write(&event)?;
            self.emit(event);
            Ok::<_, TrainError>(())
        };
        let mut paused = false;
        while !self.must_stop() {
            let wants_pause = self.wants_pause.get();
            if paused != wants_pause {
                tell(if wants_pause { Event::Paused } else { Event::Resumed })?;
                paused = wants_pause;
            }
            if !paused {
                return Ok(true);
            }
            match self.commands.recv() {
                Ok(command) => self.hear(command),
                // A paused run whose handle is gone can never be told to go on: it is saved.
                Err(_) => return Ok(false),
            }
        }
        Ok(false)
    }
}

/// A micro-batch on the host.
#[derive(Debug)]
struct HostBatch {
    ids: Vec<u32>,
    positions: Vec<u32>,
    segments: Vec<[u32; 4]>,
    target_rows: Vec<u32>,
    targets: Vec<u32>,
    counts: BatchCounts,
}

impl HostBatch {
    fn new(capacity: usize) -> Self {
        Self {
            ids: vec![0; capacity],
            positions: vec![0; capacity],
            segments: vec![[0; 4]; capacity],
            target_rows: vec![0; capacity],
            targets: vec![0; capacity],
            counts: BatchCounts::default(),
        }
    }

    fn fill(&mut self, plan: &mut BatchPlan, dataset: &TokenizedDataset, epoch: u64, index: usize) {
        let mut buffers = BatchBuffers {
            ids: &mut self.ids,
            positions: &mut self.positions,
            segments: &mut self.segments,
            target_rows: &mut self.target_rows,
            targets: &mut self.targets,
        };
        self.counts = plan.fill(dataset, epoch, index, &mut buffers);
    }

    fn view(&self) -> MicroBatch<'_> {
        let BatchCounts { n_tokens, n_segments, n_targets, longest_segment } = self.counts;
        // A segment is these four numbers in this order.
        let segments: &[Segment] = bytemuck::cast_slice(&self.segments[..n_segments]);
        MicroBatch {
            ids: &self.ids[..n_tokens],
            positions: &self.positions[..n_tokens],
            segments,
            target_rows: &self.target_rows[..n_targets],
            targets: &self.targets[..n_targets],
            max_segment: longest_segment,
        }
    }
}

/// A run on its thread.
struct Run {
    settings: RunSettings,
    folder: RunFolder,
    link: Link,
    metrics: MetricsWriter,
    trainer: Trainer<Cpu>,
    adapter: Option<AdapterConfig>,
    optimizer: OptimizerConfig,
    learning_rate: LearningRate,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    dataset: TokenizedDataset,
    training: BatchPlan,
    evaluation: Option<BatchPlan>,
    batch: HostBatch,
    steps_per_epoch: u64,
    state: RunState,
    memory: ResidentMemory,
    planned: Planned,
}

/// What the plan says, beside which the run says what it took.
#[derive(Clone, Copy, Debug)]
struct Planned {
    peak_bytes: u64,
    host_bytes: u64,
    page_file_bytes: u64,
}

impl Run {
    fn open(
        mut prepared: Prepared,
        folder: RunFolder,
        checkpoint: Option<&Path>,
        link: Link,
    ) -> Result<Self, TrainError> {
        let settings = prepared.settings.clone();
        let state = match checkpoint {
            Some(path) => checkpoint::read_state(path)?,
            None => RunState::new(0, f64::NAN, 0),
        };
        let tokenizer = Tokenizer::open(&settings.model)?;
        tokenizer.check_vocabulary(prepared.model.spec().vocabulary)?;
        let template = ChatTemplate::open(&settings.model, &tokenizer)?;
        let examples = Dataset::open(&settings.data, &column_mapping(&settings))?;
        let options = tokenize_options(&settings);
        let dataset = TokenizedDataset::build(&examples, &tokenizer, &template, &options)?;
        let mut warnings = warnings(&examples, &dataset);
        drop(examples);
        let data_fingerprint = dataset.fingerprint();
        if state.data_fingerprint.is_some_and(|before| before != data_fingerprint) {
            warnings.push(
                "the examples are not those that the run began with (the dataset, its columns, the \
                 tokenizer or the chat template has changed): it goes on with the new ones, and its \
                 result will not be that of an uninterrupted run"
                    .into(),
            );
        }
        let state = RunState { data_fingerprint: Some(data_fingerprint), ..state };

        let (training, held_out) = dataset.split(settings.eval_split, settings.seed);
        let rows = (settings.batch, settings.sequence);
        let plan = |examples: &[usize]| {
            BatchPlan::new(&dataset, examples, rows, settings.packing, settings.seed)
        };
        let training = plan(&training);
        let evaluation = (!held_out.is_empty()).then(|| plan(&held_out));
        let steps_per_epoch = training.len().div_ceil(settings.gradient_accumulation) as u64;
        let n_steps = settings
            .steps
            .unwrap_or_else(|| ((settings.epochs * steps_per_epoch as f64).ceil() as u64).max(1));
        let told = read_metrics(&folder.metrics())?;
        let is_done = told.iter().any(|event| matches!(event, Event::Done { .. }));
        // One that ended between its last step and its last word has that word still to say.
        if state.step > n_steps || state.step == n_steps && is_done {
            return Err(TrainError::Complete { path: folder.path().to_owned(), n_steps });
        }
        drop(told);
        let mut metrics = MetricsWriter::open(&folder, state.step)?;
        let total_bytes = prepared.model.n_stored_bytes() as u64;
        metrics.write(&Event::Loading { done_bytes: 0, total_bytes })?;
        for message in warnings {
            let event = Event::Warning { message };
            metrics.write(&event)?;
            link.emit(event);
        }

        let planned = Planned {
            peak_bytes: prepared.plan.peak_bytes() as u64,
            host_bytes: prepared.plan.host_bytes() as u64,
            page_file_bytes: prepared.plan.page_file_bytes() as u64,
        };
        let adapter = prepared.adapter_config();
        let page_file = folder.page_file();
        let trainer = open_trainer(&mut prepared, adapter.as_ref(), checkpoint, &page_file, &link)?;
        let learning_rate = LearningRate {
            peak: settings.learning_rate(),
            schedule: settings.schedule,
            n_warmup_steps: settings.warmup_steps,
            n_steps,
        };
        let mut run = Self {
            optimizer: prepared.optimizer(),
            batch: HostBatch::new(training.capacity()),
            memory: ResidentMemory::default(),
            settings,
            folder,
            link,
            metrics,
            trainer,
            adapter,
            learning_rate,
            tokenizer,
            template,
            dataset,
            training,
            evaluation,
            steps_per_epoch,
            state,
            planned,
        };
        run.report(Event::Ready {
            n_steps,
            step: state.step,
            n_examples: run.dataset.len() as u64,
            n_tokens: run.dataset.n_tokens() as u64,
            planned_peak_bytes: planned.peak_bytes,
        })?;
        Ok(run)
    }

    /// Every step, until the last or a command to stop.
    fn run(&mut self) -> Result<Outcome, TrainError> {
        let n_steps = self.learning_rate.n_steps;
        let due = |every: u64, step: u64| every > 0 && step.is_multiple_of(every);
        if self.state.step == 0 {
            self.sample()?;
        }
        let mut saved_step = self.state.step;
        while self.state.step < n_steps && self.link.goes_on(&mut self.metrics)? {
            self.step()?;
            let step = self.state.step;
            if due(self.settings.eval_every, step) && step < n_steps {
                self.evaluate()?;
            }
            if due(self.settings.samples.every, step) && step < n_steps {
                self.sample()?;
            }
            if due(self.settings.save_every, step) && step < n_steps {
                self.save()?;
                saved_step = step;
            }
        }
        // Before anything else: what was trained is safe, however long the rest takes.
        if saved_step < self.state.step {
            self.save()?;
        }
        let complete = self.state.step == n_steps && self.say_last_words()?;
        let step = self.state.step;
        let checkpoint = (step > 0).then(|| self.folder.checkpoint(step));
        if let Some(adapter) = checkpoint.clone() {
            let done = Event::Done {
                planned_peak_bytes: self.planned.peak_bytes,
                allocated_peak_bytes: self.trainer.allocated_bytes() as u64,
                planned_host_bytes: self.planned.host_bytes,
                planned_page_file_bytes: self.planned.page_file_bytes,
                allocated_outside_bytes: self.trainer.device().stored_bytes(),
                peak_rss_bytes: self.memory.peak_bytes(),
                steps: step,
                final_loss: self.state.loss,
                adapter,
            };
            if complete {
                self.report(done)?;
                if let Err(error) = report::write(&self.folder) {
                    // A run is no worse for a chart that could not be drawn.
                    let message = format!("the charts could not be drawn: {error}");
                    self.link.emit(Event::Warning { message });
                }
            } else {
                // Only an end that is the end is remembered as one.
                self.link.emit(done);
            }
        }
        Ok(Outcome { n_steps: step, final_loss: self.state.loss, checkpoint, complete })
    }

    /// Evaluates and samples the trained model, unless a sitting before did. Returns whether all is
    /// said: to stop now leaves it to the next sitting.
    fn say_last_words(&mut self) -> Result<bool, TrainError> {
        let last = self.state.step;
        let (mut n_evaluations, mut n_samples) = (0, 0);
        for event in read_metrics(&self.folder.metrics())? {
            match event {
                Event::Eval { step, .. } if step == last => n_evaluations += 1,
                Event::Sample { step, .. } if step == last => n_samples += 1,
                _ => {}
            }
        }
        Ok((n_evaluations > 0 || self.evaluate()?)
            && (n_samples >= self.settings.samples.prompts.len() || self.sample()?))
    }

    fn report(&mut self, event: Event) -> Result<(), TrainError> {
        self.metrics.write(&event)?;
        self.link.emit(event);
        Ok(())
    }

    /// Writes down what ended the run, for those who open its folder later.
    fn remember(&mut self, error: &TrainError) {
        let (message, hint) = error.explanation();
        let failed = Event::Failed { code: error.code().into(), message, hint };
        // A disk that is full takes no more lines; the handle tells the error in any case.
        let _ = self.metrics.write(&failed);
    }

    fn step(&mut self) -> Result<(), TrainError> {
        let start = Instant::now();
        let transferred_bytes = self.trainer.transferred_bytes();
        let step = self.state.step + 1;
        let (epoch, first) = (
            self.state.step / self.steps_per_epoch,
            (self.state.step % self.steps_per_epoch) as usize * self.settings.gradient_accumulation,
        );
        let last = (first + self.settings.gradient_accumulation).min(self.training.len());
        let n_targets: usize =
            (first..last).map(|index| self.training.micro_batch(epoch, index).n_targets).sum();
        self.trainer.clear_gradients();
        let (mut loss, mut n_tokens) = (0.0, 0);
        for index in first..last {
            self.batch.fill(&mut self.training, &self.dataset, epoch, index);
            n_tokens += self.batch.counts.n_tokens as u64;
            let dropout =
                self.adapter.as_ref().filter(|adapter| adapter.dropout > 0.0).map(|adapter| {
                    DropoutMask {
                        probability: adapter.dropout as f32,
                        seed: hash(hash(self.settings.seed, step), index as u64),
                    }
                });
            let weight = 1.0 / n_targets as f32;
            loss += self.trainer.accumulate(&self.batch.view(), weight, dropout)?;
        }
        loss /= n_targets as f64;
        let diverged = |what, value| TrainError::Diverged {
            what,
            value,
            step,
            learning_rate: self.learning_rate.peak,
        };
        if !loss.is_finite() {
            return Err(diverged("loss", loss));
        }
        let lr = self.learning_rate.at(step);
        let seed = hash(self.settings.seed, step);
        let grad_norm = self.trainer.update(&self.optimizer, lr, step, seed)?;
        if !grad_norm.is_finite() {
            return Err(diverged("gradient norm", grad_norm));
        }
        self.trainer.check_stores()?;
        let n_tokens_seen = self.state.n_tokens + n_tokens;
        self.state = RunState { step, loss, n_tokens: n_tokens_seen, ..self.state };
        let seconds = start.elapsed().max(Duration::from_nanos(1)).as_secs_f64();
        let host_bytes = self.memory.bytes();
        self.report(Event::Step {
            step,
            loss,
            lr,
            grad_norm,
            tokens: n_tokens,
            tokens_per_s: n_tokens as f64 / seconds,
            host_bytes,
            device_bytes: self.trainer.allocated_bytes() as u64,
            paged_bytes: self.trainer.transferred_bytes() - transferred_bytes,
        })
    }

    /// Measures the loss of the examples held out, if any are. Returns whether it was not asked to
    /// stop before.
    fn evaluate(&mut self) -> Result<bool, TrainError> {
        let Some(plan) = &mut self.evaluation else { return Ok(true) };
        let (mut loss, mut n_targets) = (0.0, 0);
        for index in 0..plan.len() {
            if self.link.must_stop() {
                return Ok(false);
            }
            self.batch.fill(plan, &self.dataset, 0, index);
            loss += self.trainer.evaluate(&self.batch.view())?;
            n_targets += self.batch.counts.n_targets as u64;
        }
        let loss = loss / n_targets.max(1) as f64;
        self.report(Event::Eval {
            step: self.state.step,
            loss,
            perplexity: loss.exp(),
            trained_tokens: n_targets,
        })?;
        Ok(true)
    }

    /// Answers every prompt, if there are any. Returns whether it was not asked to stop before.
    fn sample(&mut self) -> Result<bool, TrainError> {
        for index in 0..self.settings.samples.prompts.len() {
            let (device, decoder, layout) = self.trainer.parts();
            let Some(layout) = &layout.generation else { return Ok(true) };
            let link = &self.link;
            let samples = &self.settings.samples;
            let prompt = samples.prompts[index].clone();
            let sampling = SamplingSettings {
                temperature: samples.temperature,
                max_tokens: samples.max_tokens,
                seed: hash(self.settings.seed, self.state.step),
                ..SamplingSettings::default()
            };
            let mut text = String::new();
            let (_, stop) = generate::answer(
                (device, decoder, layout),
                &self.tokenizer,
                &self.template,
                &prompt,
                &sampling,
                |piece| {
                    text.push_str(piece);
                    !link.must_stop()
                },
            )?;
            if stop == generate::Stop::Asked {
                return Ok(false);
            }
            let step = self.state.step;
            self.report(Event::Sample { step, prompt, text: text.trim().to_owned() })?;
        }
        Ok(true)
    }

    fn save(&mut self) -> Result<(), TrainError> {
        let path = self.folder.checkpoint(self.state.step);
        checkpoint::write(&path, &mut self.trainer, self.adapter.as_ref(), &self.state)?;
        if self.adapter.is_none() {
            // Beside its configuration and tokenizer, a fully trained checkpoint is a model.
            copy_companions(&self.settings.model, None, &path)?;
        }
        self.report(Event::Checkpoint { step: self.state.step, path })?;
        self.folder.prune_checkpoints(self.settings.keep_checkpoints)?;
        Ok(())
    }
}

/// The model in memory, with the adapter, moments and (trained in full) weights of the checkpoint,
/// or those that a run begins with.
fn open_trainer(
    prepared: &mut Prepared,
    adapter: Option<&AdapterConfig>,
    checkpoint: Option<&Path>,
    page_file: &Path,
    link: &Link,
) -> Result<Trainer<Cpu>, TrainError> {
    let shape = prepared.plan.shape();
    let mut device =
        Cpu::new(shape.profile).map_err(|error| TrainError::Threads(error.to_string()))?;
    // Room that a run which was killed left taken is given back, whether this one pages or not.
    let _ = std::fs::remove_file(page_file);
    let store = open_store(&mut device, &prepared.plan, page_file)?;
    let (layout, paged) = (shape.weight_layout(), shape.paged_layers(store));
    let on_progress = &mut |progress: LoadProgress| {
        link.emit(Event::Loading {
            done_bytes: progress.done_bytes as u64,
            total_bytes: progress.total_bytes as u64,
        });
        match link.must_stop() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    };
    let weights = place_weights(&mut device, &prepared.model, layout, &paged, None, on_progress)?;
    let scale = adapter.map_or(1.0, AdapterConfig::scale);
    let mut trainer = Trainer::new(device, &mut prepared.plan, weights, scale, store)?;
    match checkpoint {
        Some(path) => {
            checkpoint::read(path, &mut trainer)?;
        }
        None => {
            if let (Some(adapter), Some(parameters)) =
                (trainer.decoder().adapter.clone(), trainer.layout().trainable.parameters)
            {
                let values = initial_adapter(&adapter.layout, prepared.settings.seed);
                trainer.device().upload(&values, parameters);
            }
        }
    }
    Ok(trainer)
}

/// What a person should know about a dataset that can be trained on.
fn warnings(examples: &Dataset, dataset: &TokenizedDataset) -> Vec<String> {
    let mut warnings = Vec::new();
    for (what, left_out) in
        [("cannot be read", &examples.malformed), ("cannot be used", &dataset.refused)]
    {
        if let Some(first) = left_out.first() {
            warnings.push(format!(
                "{} examples {what} and were left out; the first is line {}: {}",
                left_out.len(),
                first.line,
                first.error
            ));
        }
    }
    if dataset.n_cut > 0 {
        warnings.push(format!(
            "{} of {} examples are longer than the sequence length and were cut",
            dataset.n_cut,
            examples.examples.len()
        ));
    }
    if dataset.n_skipped > 0 {
        warnings.push(format!(
            "{} examples have nothing to train on (or it was cut off) and were left out",
            dataset.n_skipped
        ));
    }
    warnings
}
