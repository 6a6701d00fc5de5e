//! One training step on a device: losses and gradients of micro-batches, then the update.
//!
//! Memory is taken when a trainer is made: the base weights' block, the arena of its plan, and the
//! store of what is paged. A step allocates nothing. It knows nothing of files, threads or events.

use nibble_data::BatchBuffer;
use nibble_kernels::{
    Backend, DeviceError, DeviceSlice, FloatFormat, Floats, Gradient, MemoryError, Store,
    adamw::AdamWStep,
    attention::Segment,
    embedding::EmbeddingTable,
    linear::Weight,
    paging::{PageError, StoreId, StorePlace, Transferred},
};

use crate::{
    decoder::{
        Adapter, BackwardSlices, BaseWeights, Decoder, DropoutMask, Gradients, LossGradient,
        PassRows, StepGradients, Sweep, loss,
    },
    optimizer::{OptimizerConfig, OptimizerStates, Trained},
    plan::{BatchSlices, MemoryPlan, TrainingLayout, TrainingShape},
    residency::{LayerInputs, Stored},
};

/// One micro-batch on the host: whole sequences behind one another, no padding.
#[derive(Clone, Copy, Debug)]
pub struct MicroBatch<'a> {
    /// Token ids.
    pub ids: &'a [u32],
    /// Position of each token in its sequence.
    pub positions: &'a [u32],
    /// The sequences.
    pub segments: &'a [Segment],
    /// Rows whose next token is trained.
    pub target_rows: &'a [u32],
    /// That next token.
    pub targets: &'a [u32],
    /// The longest sequence.
    pub max_segment: usize,
}

impl<'a> MicroBatch<'a> {
    /// What is in `buffer`.
    pub fn of(buffer: &'a BatchBuffer) -> Self {
        // A segment is these four numbers in this order.
        let segments: &[Segment] = bytemuck::cast_slice(buffer.segments());
        Self {
            ids: buffer.ids(),
            positions: buffer.positions(),
            segments,
            target_rows: buffer.target_rows(),
            targets: buffer.targets(),
            max_segment: segments
                .iter()
                .map(|segment| segment.n_queries as usize)
                .max()
                .unwrap_or(0),
        }
    }

    /// Brings the micro-batch to the device.
    pub fn upload(&self, device: &mut impl Backend, slices: &BatchSlices) {
        device.upload(self.ids, slices.ids.first(self.ids.len()));
        device.upload(self.positions, slices.positions.first(self.positions.len()));
        device.upload(self.segments, slices.segments.first(self.segments.len()));
        device.upload(self.target_rows, slices.target_rows.first(self.target_rows.len()));
        device.upload(self.targets, slices.targets.first(self.targets.len()));
    }
}

/// What a step measured.
#[derive(Clone, Copy, Debug)]
pub struct StepMeasures {
    /// The summed loss of all micro-batches, in nats.
    pub loss: f64,
    /// The norm of the gradients before clipping.
    pub gradient_norm: f64,
}

/// A model being trained on a device.
#[derive(Debug)]
pub struct Trainer<B> {
    device: B,
    decoder: Decoder,
    shape: TrainingShape,
    layout: TrainingLayout,
    inputs: LayerInputs,
    states: OptimizerStates,
    gradients: Gradients,
    /// All of them, to be measured.
    gradient_regions: Vec<Floats>,
}

impl<B: Backend> Trainer<B> {
    /// A trainer for `plan` around base weights that already lie where they belong, and the store
    /// that [`crate::residency::open_store`] made for it. Takes the arena, and fills in the rotation
    /// tables; adapter and moments are zero.
    ///
    /// # Errors
    /// When the device has no room for the arena.
    pub fn new(
        mut device: B,
        plan: &mut MemoryPlan,
        mut weights: BaseWeights,
        adapter_scale: f32,
        store: Option<StoreId>,
    ) -> Result<Self, MemoryError> {
        let arena = device.allocate(plan.arena_bytes())?;
        let layout = plan.resolve(arena);
        let shape = plan.shape().clone();
        crate::decoder::fill_rope_tables(&mut device, &shape.spec, layout.rope);
        let adapter = shape
            .adapter_layout()
            .zip(layout.trainable.parameters)
            .map(|(layout, parameters)| Adapter { layout, parameters, scale: adapter_scale });
        let flat = layout.trainable.gradients;
        let gradients = if adapter.is_some() {
            Gradients::Adapter(flat.cast())
        } else {
            let layout = shape.gradient_layout();
            let weights = BaseWeights::whole(layout, flat.memory(), flat.offset());
            Gradients::Weights(Box::new(weights))
        };
        if let Some(window) = layout.weight_window {
            weights.open_window(window);
        }
        let base = store.map(|store| StorePlace { store, offset: plan.store_base() as u64 });
        let states_at = layout.trainable.states.outside.zip(base).map(|(region, base)| {
            StorePlace { offset: base.offset + region.offset as u64, ..base }
        });
        let decoder = Decoder { spec: shape.spec.clone(), weights, rope: layout.rope, adapter };
        Ok(Self {
            inputs: LayerInputs::new(layout.inputs.clone(), base),
            states: OptimizerStates::new(&shape, &layout.trainable.states, states_at),
            device,
            decoder,
            layout,
            gradient_regions: match shape.gradients {
                // What aligns the tensors is zero.
                FloatFormat::F32 => vec![flat.cast::<f32>().into()],
                FloatFormat::Bf16 => {
                    shape.trained_tensors().map(|tensor| tensor.gradient(flat)).collect()
                }
            },
            gradients,
            shape,
        })
    }

    /// The device.
    pub fn device(&mut self) -> &mut B {
        &mut self.device
    }

    /// The model.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// Handles to everything in the arena.
    pub fn layout(&self) -> &TrainingLayout {
        &self.layout
    }

    /// What the run's memory depends on.
    pub fn shape(&self) -> &TrainingShape {
        &self.shape
    }

    /// The device, the model and the layout, for reading and writing text between steps.
    pub fn parts(&mut self) -> (&mut B, &mut Decoder, &TrainingLayout) {
        (&mut self.device, &mut self.decoder, &self.layout)
    }

    /// The optimizer's states.
    pub fn states(&self) -> &OptimizerStates {
        &self.states
    }

    /// The summed loss of a micro-batch in nats, with nothing dropped and no gradients. Between steps: what a
    /// step under way has summed is lost.
    ///
    /// # Errors
    /// When a page could not be moved.
    pub fn evaluate(&mut self, batch: &MicroBatch<'_>) -> Result<f64, PageError> {
        let pass = self.upload(batch, None);
        self.forward(&pass, false)?;
        self.loss(batch, None, Store::Overwrite);
        self.inputs.leave(&mut self.device)?;
        Ok(self.loss_sum())
    }

    /// The loss of a micro-batch and its gradients, each target weighted by `target_weight`. They replace
    /// those of the step before with [`Store::Overwrite`], as those of a step's first micro-batch must, or
    /// else are added to the step's, unless gradients are in bf16. Nothing is waited for.
    ///
    /// # Errors
    /// When a page could not be moved; the step's gradients are then incomplete.
    pub fn accumulate(
        &mut self,
        batch: &MicroBatch<'_>,
        target_weight: f32,
        dropout: Option<DropoutMask>,
        store: Store,
    ) -> Result<(), PageError> {
        assert!(
            store == Store::Overwrite || self.shape.gradients == FloatFormat::F32,
            "gradients in bf16 are of one micro-batch"
        );
        let pass = self.upload(batch, dropout);
        self.forward(&pass, true)?;
        let (output, final_norm) = match &self.gradients {
            Gradients::Adapter(_) => (None, None),
            Gradients::Weights(weights) => {
                let Weight::F32(output) = weights.output() else {
                    unreachable!("the output matrix has its gradient in f32")
                };
                let gradient = |values| Some(Gradient { values, store });
                (gradient(output), gradient(weights.final_norm()))
            }
        };
        let residual = self.layout.residual_gradient;
        let gradient = LossGradient { scale: target_weight, residual, output, final_norm };
        self.loss(batch, Some(gradient), store);
        self.backward(&pass, store)?;
        self.inputs.leave(&mut self.device)
    }

    fn upload(&mut self, batch: &MicroBatch<'_>, dropout: Option<DropoutMask>) -> PassRows {
        let slices = &self.layout.batch;
        batch.upload(&mut self.device, slices);
        let n_rows = batch.ids.len();
        PassRows {
            n_rows,
            n_past: 0,
            positions: slices.positions.first(n_rows),
            segments: slices.segments.first(batch.segments.len()),
            max_segment: batch.max_segment,
            dropout,
        }
    }

    /// Every layer; their inputs are checkpointed if a backward pass follows.
    fn forward(&mut self, pass: &PassRows, is_training: bool) -> Result<(), PageError> {
        let (device, layout) = (&mut self.device, &self.layout);
        let ids = layout.batch.ids.first(pass.n_rows);
        let mut input = self.inputs.claim(device, 0)?;
        self.decoder.embed(device, ids, input);
        for (layer, slices) in layout.layers.iter().enumerate() {
            if is_training {
                self.inputs.save(device, layer)?;
            }
            self.decoder.weights.enter(device, layer, Sweep::Up)?;
            let output = self.inputs.claim(device, layer + 1)?;
            let workspace = layout.workspace;
            self.decoder.layer_forward(device, layer, pass, slices, input, Some(output), workspace);
            input = output;
        }
        Ok(())
    }

    fn loss(&mut self, batch: &MicroBatch<'_>, gradient: Option<LossGradient>, store: Store) {
        let layout = &self.layout;
        let n_targets = batch.targets.len();
        let counts = (batch.ids.len(), n_targets);
        let residual = self.inputs.last();
        let (device, slices) = (&mut self.device, &layout.loss);
        loss(&self.decoder, device, &layout.batch, slices, counts, residual, gradient, store);
    }

    /// What [`Self::loss`] has summed up; waits for it.
    fn loss_sum(&self) -> f64 {
        let mut sum = [0.0];
        self.device.download(self.layout.batch.loss_sum, &mut sum);
        sum[0]
    }

    fn backward(&mut self, pass: &PassRows, store: Store) -> Result<(), PageError> {
        let (device, layout) = (&mut self.device, &self.layout);
        let trains_embedding = matches!(self.gradients, Gradients::Weights(_));
        for (layer, slices) in layout.layers.iter().enumerate().rev() {
            self.decoder.weights.enter(device, layer, Sweep::Down)?;
            let input = self.inputs.bring(device, layer)?;
            let workspace = layout.workspace;
            if layer < self.shape.recomputed_layers() {
                self.decoder.layer_forward(device, layer, pass, slices, input, None, workspace);
            }
            let slices = BackwardSlices {
                layer: slices,
                gradients: &layout.layer_gradients,
                input,
                residual: layout.residual_gradient,
                wants_input_gradient: layer > 0 || trains_embedding,
                workspace,
            };
            let gradients = StepGradients { places: &self.gradients, store };
            self.decoder.layer_backward(device, layer, pass, &slices, &gradients);
        }
        if let Gradients::Weights(gradients) = &self.gradients
            && let EmbeddingTable::F32(dtable) = gradients.embedding()
        {
            // Of a table that is the output matrix as well, the loss has left its part.
            if store == Store::Overwrite && !gradients.layout.is_tied() {
                device.clear(dtable);
            }
            let width = self.shape.spec.hidden_width;
            let dy = layout.residual_gradient.first(pass.n_rows * width);
            let ids = layout.batch.ids.first(pass.n_rows);
            self.device.embedding_backward(width, ids, dy, dtable);
        }
        Ok(())
    }

    /// Updates the trained parameters from the step's gradients, unless its loss or their norm is not
    /// finite. The one place of a step where the host waits for the device.
    ///
    /// # Errors
    /// When a page could not be moved; the parameters are then those of no step.
    pub fn update(
        &mut self,
        config: &OptimizerConfig,
        learning_rate: f64,
        step: u64,
        seed: u64,
    ) -> Result<StepMeasures, PageError> {
        let trainable = self.layout.trainable;
        let norm = self.device.squared_norm(&self.gradient_regions).sqrt();
        // Whoever has the norm has waited for all that was asked before it.
        let measures = StepMeasures { loss: self.loss_sum(), gradient_norm: norm };
        if !measures.loss.is_finite() || !norm.is_finite() {
            return Ok(measures);
        }
        let gradient_scale = match config.clip_norm {
            // The small constant is the reference implementation's guard against a zero norm.
            Some(limit) => (limit / (norm + 1e-6)).min(1.0) as f32,
            None => 1.0,
        };
        let update = AdamWStep {
            learning_rate,
            beta1: config.beta1,
            beta2: config.beta2,
            epsilon: config.epsilon,
            weight_decay: config.weight_decay,
            step,
            gradient_scale,
            rounding_seed: seed,
            first_element: 0,
        };
        let trained = match trainable.parameters {
            Some(parameters) => Trained::Adapter(parameters),
            None => Trained::Weights(&mut self.decoder.weights),
        };
        self.states.update(&mut self.device, update, trainable.gradients, trained)?;
        Ok(measures)
    }

    /// Copies bytes of the run to the host, wherever they are.
    ///
    /// # Errors
    /// When their store cannot be read.
    pub fn read(&mut self, stored: Stored, bytes: &mut [u8]) -> Result<(), PageError> {
        stored.read(&mut self.device, bytes)
    }

    /// Replaces bytes of the run, wherever they are.
    ///
    /// # Errors
    /// When their store cannot be written.
    pub fn write(&mut self, stored: Stored, bytes: &[u8]) -> Result<(), PageError> {
        stored.write(&mut self.device, bytes)
    }

    /// Looks whether everything outside the device is still there.
    ///
    /// # Errors
    /// When another program removed or cut short a file.
    pub fn check_stores(&self) -> Result<(), PageError> {
        self.device.check_stores()
    }

    /// Whether the device did all that it was asked, as far as is known. To be asked before anything
    /// that it computed is kept.
    ///
    /// # Errors
    /// What failed first.
    pub fn check_device(&self) -> Result<(), DeviceError> {
        self.device.check()
    }

    /// Bytes that crossed between stores and the device until now.
    pub fn transferred(&self) -> Transferred {
        self.device.transferred()
    }

    /// Bytes taken outside the device, without files that were there before.
    pub fn stored_bytes(&self) -> u64 {
        self.device.stored_bytes()
    }

    /// Copies `slice` to the host.
    pub fn download<T: nibble_kernels::Element>(&self, slice: DeviceSlice<T>, values: &mut [T]) {
        self.device.download(slice, values);
    }

    /// Bytes taken from the device: the base weights and the arena. None are ever given back before
    /// the end, so that this is also the most there were.
    pub fn allocated_bytes(&self) -> usize {
        self.device.allocated_bytes()
    }
}
