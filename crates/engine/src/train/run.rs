//! A run: from settings to a trained adapter. The run folder is written as it goes, so that a run
//! can be resumed after any end.

use std::{
    ops::ControlFlow,
    path::Path,
    time::{Duration, Instant},
};

use nibble_data::{BatchBuffer, BatchPlan, ChatTemplate, Encoder, TokenizedDataset, Tokenizer};
use nibble_kernels::{DeviceError, OperationProfile, Store, paging::StoreId, random::hash};
use nibble_run::{
    CardReadings, Event, Explain, MetricsWriter, OperationTime, RunError, RunFolder, RunSettings,
    read_metrics, size,
};

use super::{
    TrainError,
    checkpoint::{self, CheckpointError, RunState},
    handle::{Link, Outcome},
    initialise::initial_adapter,
    prepare::{Prepared, column_mapping, tokenize_options},
    schedule::LearningRate,
    trainer::{MicroBatch, Trainer},
};
use crate::{
    adapter::AdapterConfig,
    decoder::DropoutMask,
    devices::{self, ResidentMemory, RunDevice},
    export::copy_companions,
    generate::{self, SamplingSettings},
    model::ModelError,
    optimizer::OptimizerConfig,
    report,
    residency::open_store,
    weights::{PlacedWeights, load::LoadProgress, place_weights},
};

/// The steps whose operations are timed.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Watched {
    /// Whether a step was done before.
    has_begun: bool,
    n_steps: u64,
    time: Duration,
}

/// The least time between two looks at a card: often enough for a chart, too seldom to slow steps.
const READINGS_INTERVAL: Duration = Duration::from_millis(500);

/// A run on its thread.
pub(super) struct Run<B> {
    settings: RunSettings,
    folder: RunFolder,
    link: Link,
    metrics: MetricsWriter,
    pub(super) trainer: Trainer<B>,
    adapter: Option<AdapterConfig>,
    optimizer: OptimizerConfig,
    learning_rate: LearningRate,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    dataset: TokenizedDataset,
    training: BatchPlan,
    evaluation: Option<BatchPlan>,
    batch: BatchBuffer,
    steps_per_epoch: u64,
    state: RunState,
    memory: ResidentMemory,
    /// What the card said last, and when.
    card: Option<(Instant, CardReadings)>,
    planned: Planned,
    /// What a profile is made of, if one is wanted.
    pub(super) watched: Option<Watched>,
}

/// What the plan says, beside which the run says what it took.
#[derive(Clone, Copy, Debug)]
struct Planned {
    peak_bytes: u64,
    host_bytes: u64,
    page_file_bytes: u64,
}

impl<B: RunDevice> Run<B> {
    /// Everything of a run in memory, at its checkpoint.
    pub(super) fn open(
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
        if prepared.is_full() && !folder.model().is_dir() {
            keep_companions(&settings.model, &folder.model())?;
        }
        let page_file = folder.page_file();
        let (device, store) = open_device::<B>(&prepared, &page_file)?;
        let profile = prepared.plan.shape().profile;
        let n_threads = settings.threads.unwrap_or_else(|| profile.n_threads());
        let encoder = Encoder {
            tokenizer: &tokenizer,
            template: &template,
            options: tokenize_options(&settings),
            n_threads,
        };
        // Reading the dataset is the first part of loading, the model the second.
        let data_bytes = std::fs::metadata(&settings.data).map_or(0, |metadata| metadata.len());
        let total_bytes = data_bytes + prepared.model.n_stored_bytes() as u64;
        let columns = column_mapping(&settings);
        let place = Some(folder.path());
        let dataset =
            TokenizedDataset::read(&settings.data, &columns, encoder, place, &mut |done_bytes| {
                link.load(done_bytes.min(data_bytes), total_bytes)
            })?;
        let mut warnings = warnings(&dataset);
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
        let on_progress = &mut |progress: LoadProgress| {
            link.load(data_bytes + progress.done_bytes as u64, total_bytes)
        };
        let place = (device, store);
        let (trainer, uncached) =
            open_trainer(&mut prepared, place, adapter.as_ref(), checkpoint, on_progress)?;
        let learning_rate = LearningRate {
            peak: settings.learning_rate(),
            schedule: settings.schedule,
            n_warmup_steps: settings.warmup_steps,
            n_steps,
        };
        let mut run = Self {
            optimizer: prepared.optimizer(),
            batch: BatchBuffer::new(training.capacity()),
            memory: ResidentMemory::default(),
            card: None,
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
            watched: None,
        };
        if let Some(error) = uncached {
            let message = format!("the quantised weights are not kept for the next start: {error}");
            run.report(Event::Warning { message })?;
        }
        run.check_space()?;
        run.trainer.check_device()?;
        run.report(Event::Ready {
            n_steps,
            step: state.step,
            n_examples: run.dataset.len() as u64,
            n_tokens: run.dataset.n_tokens() as u64,
            planned_peak_bytes: planned.peak_bytes,
        })?;
        Ok(run)
    }

    /// Refuses to begin where not even the next checkpoint finds room on the disk, and warns where
    /// not all that are kept will: after hours of training either costs more than now.
    fn check_space(&mut self) -> Result<(), TrainError> {
        let (save_every, keep) = (self.settings.save_every, self.settings.keep_checkpoints as u64);
        let (step, n_steps) = (self.state.step, self.learning_rate.n_steps);
        let n_saves = |step: u64| step.checked_div(save_every).unwrap_or(0);
        // The last one is written whatever its number.
        let n_to_come = n_saves(n_steps.saturating_sub(1)).saturating_sub(n_saves(step)) + 1;
        let path = self.folder.path().to_owned();
        let n_now = self.folder.checkpoints()?.len() as u64;
        let all = n_now + n_to_come;
        // Before an old one goes a new one is whole.
        let n_most = if keep == 0 { all } else { all.min(keep.saturating_add(1)) };
        let each_bytes = checkpoint::n_bytes(&self.trainer);
        // Where the system cannot say, writing will tell.
        let available_bytes = fs4::available_space(&path).unwrap_or(u64::MAX);
        if step < n_steps && each_bytes > available_bytes {
            let needed_bytes = each_bytes;
            return Err(CheckpointError::NoSpace { path, needed_bytes, available_bytes }.into());
        }
        let needed_bytes = n_most.saturating_sub(n_now).saturating_mul(each_bytes);
        if needed_bytes > available_bytes {
            let message = format!(
                "the checkpoints of this run will take another {} and {} is free on its disk; \
                 save less often (--save-every), keep fewer (keep_checkpoints in run.toml), or \
                 free some space",
                size(needed_bytes),
                size(available_bytes)
            );
            self.report(Event::Warning { message })?;
        }
        Ok(())
    }

    /// Every step, until the last or a command to stop. A device that failed is the cause of whatever
    /// else went wrong: what it computed since, or did not move, means nothing.
    pub(super) fn run(&mut self) -> Result<Outcome, TrainError> {
        let result = self.run_steps();
        match self.trainer.check_device() {
            Err(cause) if result.is_err() => Err(cause.into()),
            _ => result,
        }
    }

    fn run_steps(&mut self) -> Result<Outcome, TrainError> {
        let n_steps = self.learning_rate.n_steps;
        let due = |every: u64, step: u64| every > 0 && step.is_multiple_of(every);
        if self.state.step == 0 {
            self.sample(0)?;
        }
        let mut saved_step = self.state.step;
        while self.state.step < n_steps && self.link.goes_on(&mut self.metrics)? {
            self.step()?;
            let step = self.state.step;
            if due(self.settings.eval_every, step) && step < n_steps {
                self.evaluate()?;
            }
            if due(self.settings.samples.every, step) && step < n_steps {
                self.sample(0)?;
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
                allocated_outside_bytes: self.trainer.stored_bytes(),
                peak_rss_bytes: self.memory.peak_bytes(),
                steps: step,
                final_loss: self.state.loss,
                adapter,
            };
            // Measured when what the run itself took is known.
            if let Some(profile) = self.profile() {
                self.link.emit(profile);
            }
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

    /// Where the time of the watched steps went.
    fn profile(&mut self) -> Option<Event> {
        let Watched { n_steps, time, .. } = self.watched?;
        let device = self.trainer.device();
        let ceilings = device.ceilings();
        let operation = |operation: &OperationProfile| OperationTime {
            name: operation.name.into(),
            calls: operation.n_calls,
            seconds: operation.time.as_secs_f64(),
            flops: operation.n_flops,
            bytes: operation.n_bytes,
        };
        Some(Event::Profile {
            steps: n_steps,
            seconds: time.as_secs_f64(),
            operations: device.profiled().iter().map(operation).collect(),
            product_flops_per_s: ceilings.product_flops_per_s,
            copy_bytes_per_s: ceilings.copy_bytes_per_s,
        })
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
        Ok((n_evaluations > 0 || self.evaluate()?) && self.sample(n_samples)?)
    }

    fn report(&mut self, event: Event) -> Result<(), TrainError> {
        self.metrics.write(&event)?;
        self.link.emit(event);
        Ok(())
    }

    /// Writes down what ended the run, for those who open its folder later.
    pub(super) fn remember(&mut self, error: &TrainError) {
        let (message, hint) = error.explanation();
        let failed = Event::Failed { code: error.code().into(), message, hint };
        // A disk that is full takes no more lines; the handle tells the error in any case.
        let _ = self.metrics.write(&failed);
    }

    fn step(&mut self) -> Result<(), TrainError> {
        if let Some(watched) = &mut self.watched {
            // The first step of a sitting meets its memory for the first time.
            self.trainer.device().profile_operations(watched.has_begun);
        }
        let start = Instant::now();
        let transferred = self.trainer.transferred();
        let step = self.state.step + 1;
        let (epoch, first) = (
            self.state.step / self.steps_per_epoch,
            (self.state.step % self.steps_per_epoch) as usize * self.settings.gradient_accumulation,
        );
        let last = (first + self.settings.gradient_accumulation).min(self.training.len());
        let n_targets: usize =
            (first..last).map(|index| self.training.micro_batch(epoch, index).n_targets).sum();
        let mut n_tokens = 0;
        for index in first..last {
            self.training.fill(&self.dataset, epoch, index, &mut self.batch)?;
            n_tokens += self.batch.ids().len() as u64;
            let dropout =
                self.adapter.as_ref().filter(|adapter| adapter.dropout > 0.0).map(|adapter| {
                    DropoutMask {
                        probability: adapter.dropout as f32,
                        seed: hash(hash(self.settings.seed, step), index as u64),
                    }
                });
            let weight = 1.0 / n_targets as f32;
            let store = if index == first { Store::Overwrite } else { Store::Accumulate };
            let batch = MicroBatch::of(&self.batch);
            self.trainer.accumulate(&batch, weight, dropout, store)?;
        }
        let lr = self.learning_rate.at(step);
        let seed = hash(self.settings.seed, step);
        // The update writes every page of what it changes: a file that was disturbed before could look
        // whole after it.
        self.trainer.check_stores()?;
        let measures = self.trainer.update(&self.optimizer, lr, step, seed)?;
        self.trainer.check_device()?;
        let (loss, grad_norm) = (measures.loss / n_targets as f64, measures.gradient_norm);
        let diverged = |what, value| TrainError::Diverged {
            what,
            value,
            step,
            learning_rate: self.learning_rate.peak,
        };
        if !loss.is_finite() && step == 1 {
            return Err(TrainError::DamagedModel { value: loss });
        }
        if !loss.is_finite() {
            return Err(diverged("loss", loss));
        }
        if !grad_norm.is_finite() {
            return Err(diverged("gradient norm", grad_norm));
        }
        self.trainer.check_stores()?;
        let n_tokens_seen = self.state.n_tokens + n_tokens;
        self.state = RunState { step, loss, n_tokens: n_tokens_seen, ..self.state };
        let time = start.elapsed().max(Duration::from_nanos(1));
        if let Some(watched) = &mut self.watched {
            if watched.has_begun {
                watched.n_steps += 1;
                watched.time += time;
            }
            watched.has_begun = true;
            // What is evaluated and sampled in between is none of a step's.
            self.trainer.device().profile_operations(false);
        }
        let seconds = time.as_secs_f64();
        let host_bytes = self.memory.bytes();
        let card = self.card();
        self.report(Event::Step {
            step,
            loss,
            lr,
            grad_norm,
            tokens: n_tokens,
            tokens_per_s: n_tokens as f64 / seconds,
            host_bytes,
            device_bytes: self.trainer.allocated_bytes() as u64,
            paged_bytes: (self.trainer.transferred() - transferred).bytes(),
            card,
        })
    }

    /// What the card says of itself, if one computes.
    fn card(&mut self) -> Option<CardReadings> {
        if self.card.is_none_or(|(when, _)| when.elapsed() >= READINGS_INTERVAL) {
            self.card = self.trainer.device().readings().map(|card| (Instant::now(), card));
        }
        self.card.map(|(_, card)| card)
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
            plan.fill(&self.dataset, 0, index, &mut self.batch)?;
            loss += self.trainer.evaluate(&MicroBatch::of(&self.batch))?;
            n_targets += self.batch.targets().len() as u64;
        }
        self.trainer.check_device()?;
        let loss = loss / n_targets.max(1) as f64;
        self.report(Event::Eval {
            step: self.state.step,
            loss,
            perplexity: loss.exp(),
            trained_tokens: n_targets,
        })?;
        Ok(true)
    }

    /// Answers every prompt from the `first` on, if there are any. Returns whether it was not asked to
    /// stop before.
    fn sample(&mut self, first: usize) -> Result<bool, TrainError> {
        for index in first..self.settings.samples.prompts.len() {
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
        let (adapter, base) = (self.adapter.as_ref(), self.folder.model());
        checkpoint::write(&path, &mut self.trainer, adapter, &base, &self.state)?;
        self.report(Event::Checkpoint { step: self.state.step, path })?;
        self.folder.prune_checkpoints(self.settings.keep_checkpoints)?;
        Ok(())
    }
}

/// The device, and the room of what does not stay on it, taken before anything that takes long.
fn open_device<B: RunDevice>(
    prepared: &Prepared,
    page_file: &Path,
) -> Result<(B, Option<StoreId>), TrainError> {
    let profile = prepared.plan.shape().profile;
    let mut device = B::open(profile)?;
    if profile.is_cuda() {
        // What other programs took since the plan was made is missed before anything is loaded.
        let free_bytes = devices::available_bytes(&profile) as usize;
        let free_bytes = device.allowed_bytes().map_or(free_bytes, |bytes| bytes.min(free_bytes));
        let needed_bytes = prepared.plan.peak_bytes();
        if needed_bytes > free_bytes {
            return Err(DeviceError::OutOfMemory { needed_bytes, free_bytes }.into());
        }
    }
    // Room that a run which was killed left taken is given back, whether this one pages or not.
    let _ = std::fs::remove_file(page_file);
    let store = open_store(&mut device, &prepared.plan, page_file)?;
    Ok((device, store))
}

/// Copies the model's configuration and tokenizer to `kept`, whole or not at all.
fn keep_companions(model: &Path, kept: &Path) -> Result<(), TrainError> {
    let failed = |source| RunError::Write { path: kept.to_owned(), source };
    let unfinished = kept.with_extension("tmp");
    let _ = std::fs::remove_dir_all(&unfinished);
    std::fs::create_dir_all(&unfinished).map_err(failed)?;
    copy_companions(model, None, &unfinished).map_err(CheckpointError::from)?;
    std::fs::rename(&unfinished, kept).map_err(failed)?;
    Ok(())
}

/// The model in memory, with the adapter, moments and (trained in full) weights of the checkpoint,
/// or those that a run begins with; and why quantised weights are not kept for the next start.
fn open_trainer<B: RunDevice>(
    prepared: &mut Prepared,
    (mut device, store): (B, Option<StoreId>),
    adapter: Option<&AdapterConfig>,
    checkpoint: Option<&Path>,
    on_progress: &mut dyn FnMut(LoadProgress) -> ControlFlow<()>,
) -> Result<(Trainer<B>, Option<ModelError>), TrainError> {
    let shape = prepared.plan.shape();
    let (layout, paged) = (shape.weight_layout(), shape.paged_layers(store));
    let PlacedWeights { weights, uncached } =
        place_weights(&mut device, &prepared.model, layout, &paged, None, on_progress)?;
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
                let device = trainer.device();
                initial_adapter(&adapter.layout, prepared.settings.seed, |tensor, values| {
                    device.upload(values, parameters.slice(tensor.range()));
                });
            }
        }
    }
    Ok((trainer, uncached))
}

/// What a person should know about a dataset that can be trained on.
fn warnings(dataset: &TokenizedDataset) -> Vec<String> {
    let mut warnings = Vec::new();
    let source = &dataset.source;
    for (what, left_out) in
        [("cannot be read", &source.malformed), ("cannot be used", &dataset.refused)]
    {
        if let Some(first) = left_out.first().first() {
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
            dataset.n_cut, source.n_examples
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
