//! One training step on a device: losses and gradients of micro-batches, then the update.
//!
//! The trainer allocates twice, when it is made: the base weights' block and the arena of its plan.
//! A step allocates nothing. It knows nothing of files, threads or events.

use nibble_kernels::{
    Backend, DeviceSlice, MemoryError,
    adamw::{AdamWStep, Moments, Parameters},
    attention::Segment,
    embedding::EmbeddingTable,
    linear::Weight,
};

use crate::{
    decoder::{
        Adapter, BackwardSlices, BaseWeights, Decoder, DropoutMask, Gradients, LossGradient,
        PassRows, loss,
    },
    plan::{BatchSlices, MemoryPlan, TrainingLayout, TrainingShape},
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

impl MicroBatch<'_> {
    /// Brings the micro-batch to the device.
    pub fn upload(&self, device: &mut impl Backend, slices: &BatchSlices) {
        device.upload(self.ids, slices.ids.first(self.ids.len()));
        device.upload(self.positions, slices.positions.first(self.positions.len()));
        device.upload(self.segments, slices.segments.first(self.segments.len()));
        device.upload(self.target_rows, slices.target_rows.first(self.target_rows.len()));
        device.upload(self.targets, slices.targets.first(self.targets.len()));
    }
}

/// The optimizer's constants.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OptimizerConfig {
    /// β₁.
    pub beta1: f64,
    /// β₂.
    pub beta2: f64,
    /// ε.
    pub epsilon: f64,
    /// Decoupled weight decay; norms and biases are spared.
    pub weight_decay: f64,
    /// The largest gradient norm, above which the gradient is scaled down; `None`: any.
    pub clip_norm: Option<f64>,
}

/// A model being trained on a device.
#[derive(Debug)]
pub struct Trainer<B> {
    device: B,
    decoder: Decoder,
    shape: TrainingShape,
    layout: TrainingLayout,
    gradients: Gradients,
    /// Losses of one micro-batch on their way to the host.
    losses: Vec<f32>,
    allocated_bytes: usize,
}

impl<B: Backend> Trainer<B> {
    /// A trainer for `plan` around base weights that already lie in `device`. Takes the arena, and
    /// fills in the rotation tables; adapter and moments are zero.
    ///
    /// # Errors
    /// When the device has no room for the arena.
    pub fn new(
        mut device: B,
        plan: &mut MemoryPlan,
        weights: BaseWeights,
        adapter_scale: f32,
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
            Gradients::Adapter(flat)
        } else {
            Gradients::Weights(BaseWeights {
                layout: shape.gradient_layout(),
                memory: flat.memory(),
                offset: flat.offset(),
            })
        };
        let decoder = Decoder { spec: shape.spec.clone(), weights, rope: layout.rope, adapter };
        Ok(Self {
            losses: vec![0.0; shape.n_rows()],
            allocated_bytes: plan.peak_bytes(),
            device,
            decoder,
            shape,
            layout,
            gradients,
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
    pub fn parts(&mut self) -> (&mut B, &Decoder, &TrainingLayout) {
        (&mut self.device, &self.decoder, &self.layout)
    }

    /// Forgets the gradients of the step before.
    pub fn clear_gradients(&mut self) {
        self.device.clear(self.layout.trainable.gradients);
    }

    /// The summed loss of a micro-batch in nats, with nothing dropped and no gradients.
    pub fn evaluate(&mut self, batch: &MicroBatch<'_>) -> f64 {
        let pass = self.upload(batch, None);
        self.forward(&pass);
        self.loss(batch, None)
    }

    /// The summed loss of a micro-batch in nats; its gradients, each target weighted by
    /// `target_weight`, are added to the step's.
    pub fn accumulate(
        &mut self,
        batch: &MicroBatch<'_>,
        target_weight: f32,
        dropout: Option<DropoutMask>,
    ) -> f64 {
        let pass = self.upload(batch, dropout);
        self.forward(&pass);
        let (output, final_norm) = match &self.gradients {
            Gradients::Adapter(_) => (None, None),
            Gradients::Weights(weights) => {
                let Weight::F32(output) = weights.output() else {
                    unreachable!("gradients are laid out in f32")
                };
                (Some(output), Some(weights.final_norm()))
            }
        };
        let residual = self.layout.residual_gradient;
        let gradient = LossGradient { scale: target_weight, residual, output, final_norm };
        let loss = self.loss(batch, Some(gradient));
        self.backward(&pass);
        loss
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

    fn forward(&mut self, pass: &PassRows) {
        let layout = &self.layout;
        let ids = layout.batch.ids.first(pass.n_rows);
        self.decoder.embed(&mut self.device, ids, layout.residuals[0]);
        for (layer, slices) in layout.layers.iter().enumerate() {
            let (input, output) = (layout.residuals[layer], layout.residuals[layer + 1]);
            let workspace = layout.workspace;
            let device = &mut self.device;
            self.decoder.layer_forward(device, layer, pass, slices, input, Some(output), workspace);
        }
    }

    fn loss(&mut self, batch: &MicroBatch<'_>, gradient: Option<LossGradient>) -> f64 {
        let layout = &self.layout;
        let n_targets = batch.targets.len();
        let counts = (batch.ids.len(), n_targets);
        let residual = layout.residuals[self.shape.spec.n_layers];
        let (device, slices) = (&mut self.device, &layout.loss);
        loss(&self.decoder, device, &layout.batch, slices, counts, residual, gradient);
        let losses = &mut self.losses[..n_targets];
        self.device.download(layout.batch.losses.first(n_targets), losses);
        losses.iter().map(|&loss| f64::from(loss)).sum()
    }

    fn backward(&mut self, pass: &PassRows) {
        let layout = &self.layout;
        let trains_embedding = matches!(self.gradients, Gradients::Weights(_));
        for (layer, slices) in layout.layers.iter().enumerate().rev() {
            let input = layout.residuals[layer];
            let workspace = layout.workspace;
            if self.shape.recompute {
                let device = &mut self.device;
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
            self.decoder.layer_backward(&mut self.device, layer, pass, &slices, &self.gradients);
        }
        if let Gradients::Weights(gradients) = &self.gradients
            && let EmbeddingTable::F32(dtable) = gradients.embedding()
        {
            let width = self.shape.spec.hidden_width;
            let dy = layout.residual_gradient.first(pass.n_rows * width);
            let ids = layout.batch.ids.first(pass.n_rows);
            self.device.embedding_backward(width, ids, dy, dtable);
        }
    }

    /// Updates the trained parameters from the step's gradients, and returns the gradients' norm
    /// before clipping. When that is not finite nothing is changed.
    pub fn update(
        &mut self,
        config: &OptimizerConfig,
        learning_rate: f64,
        step: u64,
        seed: u64,
    ) -> f64 {
        let trainable = self.layout.trainable;
        let norm = self.device.squared_norm(trainable.gradients).sqrt();
        if !norm.is_finite() {
            return norm;
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
        match (&self.gradients, trainable.parameters) {
            (Gradients::Adapter(_), Some(parameters)) => self.device.adamw(
                update,
                Parameters::F32(parameters),
                trainable.gradients,
                Moments::F32 { first: trainable.first_moments, second: trainable.second_moments },
            ),
            _ => self.update_weights(update),
        }
        norm
    }

    /// The update of full fine-tuning, tensor by tensor, since norms and biases do not decay.
    fn update_weights(&mut self, update: AdamWStep) {
        let trainable = self.layout.trainable;
        let layout = self.shape.gradient_layout();
        let weights = self.decoder.weights.tensors();
        // Both layouts list the same tensors in the same order; only their formats differ.
        for (index, ((_, weight), place)) in weights.zip(layout.tensors()).enumerate() {
            let [gradient, first, second] =
                [trainable.gradients, trainable.first_moments, trainable.second_moments].map(
                    |flat| match place.weight(flat.memory(), flat.offset()) {
                        Weight::F32(slice) => slice,
                        _ => unreachable!("gradients and moments are laid out in f32"),
                    },
                );
            let parameters = match weight {
                Weight::F32(slice) => Parameters::F32(slice),
                Weight::Bf16(slice) => Parameters::Bf16(slice),
                Weight::Nf4(_) => unreachable!("quantised weights are not trained"),
            };
            let weight_decay = if place.role.is_matrix() { update.weight_decay } else { 0.0 };
            // Another draw of the rounding for every tensor.
            let rounding_seed = update.rounding_seed.wrapping_add((index as u64) << 32);
            let update = AdamWStep { weight_decay, rounding_seed, ..update };
            self.device.adamw(update, parameters, gradient, Moments::F32 { first, second });
        }
    }

    /// Copies `slice` to the host.
    pub fn download<T: nibble_kernels::Element>(&self, slice: DeviceSlice<T>, values: &mut [T]) {
        self.device.download(slice, values);
    }

    /// Bytes taken from the device: the base weights and the arena.
    pub fn allocated_bytes(&self) -> usize {
        self.allocated_bytes
    }
}
