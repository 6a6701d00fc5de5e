//! The forward pass and the loss.

use nibble_kernels::{
    Backend, DeviceSlice, Floats, Gradient, Store,
    attention::Segment,
    output_loss::OutputLossGradient,
    output_loss::OutputLossShape,
    rms_norm::RmsNormShape,
    rope::{self, Rotation},
};

use super::{Decoder, DropoutMask, rows, weights::ProductInput};
use crate::{
    model::{ModelSpec, Projection},
    plan::{BatchSlices, LayerSlices, LossSlices, RopeTables, attention_shape},
    weights::LayerTensor,
};

/// The rows that pass through the model together.
#[derive(Clone, Copy, Debug)]
pub struct PassRows {
    /// How many.
    pub n_rows: usize,
    /// Rows of keys and values that were there before (generation); 0 in training.
    pub n_past: usize,
    /// Position of each row in its segment.
    pub positions: DeviceSlice<u32>,
    /// Which rows belong together; exactly the segments in use.
    pub segments: DeviceSlice<Segment>,
    /// The most queries of any segment.
    pub max_segment: usize,
    /// Elements dropped before the pairs, in training with dropout.
    pub dropout: Option<DropoutMask>,
}

impl Decoder {
    /// The rows' embeddings into `residual` `=`.
    pub fn embed(
        &self,
        device: &mut impl Backend,
        ids: DeviceSlice<u32>,
        residual: DeviceSlice<f32>,
    ) {
        let width = self.spec.hidden_width;
        let residual = rows(residual, ids.len(), width);
        device.embedding(width, ids, self.weights.embedding(), residual);
    }

    /// One layer: `output = layer(input)`, leaving in `slices` what the backward pass reads.
    /// Without `output`, only rebuilds that, and skips the activation and the down product, whose results
    /// it is not.
    pub fn layer_forward(
        &self,
        device: &mut impl Backend,
        layer: usize,
        pass: &PassRows,
        slices: &LayerSlices,
        input: DeviceSlice<f32>,
        output: Option<DeviceSlice<f32>>,
        workspace: DeviceSlice<u8>,
    ) {
        let spec = &self.spec;
        let n_rows = pass.n_rows;
        let slices = slices.first_rows(spec, n_rows);
        let input = rows(input, n_rows, spec.hidden_width);
        let low_rank = slices.low_rank;
        let input_of =
            |x| ProductInput { layer, x, low_rank, n_rows, dropout: pass.dropout, workspace };
        let key_width = spec.kv_width();
        let fresh = pass.n_past * key_width..(pass.n_past + n_rows) * key_width;
        let (key, value) = (slices.key.slice(fresh.clone()), slices.value.slice(fresh));

        self.layer_norm(device, (layer, LayerTensor::InputNorm), input, slices.input_normed);
        let normed = slices.input_normed;
        let products = [
            (Projection::Query, slices.query_raw.unwrap_or(slices.query)),
            (Projection::Key, slices.key_raw.unwrap_or(key)),
            (Projection::Value, value),
        ];
        self.project(device, input_of(normed), &products, None);
        self.norm_heads(device, layer, &slices, key);
        self.rotate(device, pass, Rotation::Forward, spec.n_heads, slices.query);
        self.rotate(device, pass, Rotation::Forward, spec.n_kv_heads, key);

        let n_key_rows = pass.n_past + n_rows;
        device.attention(
            attention_shape(spec, layer, n_rows, n_key_rows, pass.max_segment),
            pass.segments,
            slices.query,
            slices.key.first(n_key_rows * key_width),
            slices.value.first(n_key_rows * key_width),
            slices.attention,
            slices.log_sum_exp,
            workspace,
        );
        let products = [(Projection::Output, slices.middle.into())];
        self.project(device, input_of(slices.attention), &products, Some(input));

        let normed = slices.feed_forward_normed;
        self.layer_norm(device, (layer, LayerTensor::PostAttentionNorm), slices.middle, normed);
        let products = [(Projection::Gate, slices.gate), (Projection::Up, slices.up)];
        self.project(device, input_of(normed), &products, None);
        if let Some(output) = output {
            let output = rows(output, n_rows, spec.hidden_width);
            device.swiglu(slices.gate, slices.up, slices.activated);
            let products = [(Projection::Down, output.into())];
            self.project(device, input_of(slices.activated), &products, Some(slices.middle));
        }
    }

    pub(super) fn layer_norm(
        &self,
        device: &mut impl Backend,
        (layer, norm): (usize, LayerTensor),
        x: DeviceSlice<f32>,
        y: Floats,
    ) {
        if let Some(weight) = self.weights.vector(layer, norm) {
            device.rms_norm(self.norm_shape(x), x.into(), weight, y);
        }
    }

    /// Queries, and keys into `key`, through their norms, in models that have them.
    pub(super) fn norm_heads(
        &self,
        device: &mut impl Backend,
        layer: usize,
        slices: &LayerSlices,
        key: Floats,
    ) {
        for (raw, norm, normed) in [
            (slices.query_raw, LayerTensor::QueryNorm, slices.query),
            (slices.key_raw, LayerTensor::KeyNorm, key),
        ] {
            if let (Some(raw), Some(weight)) = (raw, self.weights.vector(layer, norm)) {
                device.rms_norm(self.head_norm_shape(raw), raw, weight, normed);
            }
        }
    }

    pub(super) fn norm_shape(&self, x: DeviceSlice<f32>) -> RmsNormShape {
        let width = self.spec.hidden_width;
        RmsNormShape { n_rows: x.len() / width, width, epsilon: self.spec.rms_epsilon as f32 }
    }

    pub(super) fn head_norm_shape(&self, x: Floats) -> RmsNormShape {
        let width = self.spec.head_size;
        RmsNormShape { n_rows: x.len() / width, width, epsilon: self.spec.rms_epsilon as f32 }
    }

    pub(super) fn rotate(
        &self,
        device: &mut impl Backend,
        pass: &PassRows,
        rotation: Rotation,
        n_heads: usize,
        x: Floats,
    ) {
        let positions = pass.positions.first(pass.n_rows);
        let (cos, sin) = (self.rope.cos, self.rope.sin);
        device.rope(n_heads, self.spec.head_size, rotation, positions, cos, sin, x);
    }

    /// The logits of the last of `n_rows` rows of `residual`, through the last normalisation.
    pub fn last_logits(
        &self,
        device: &mut impl Backend,
        residual: DeviceSlice<f32>,
        n_rows: usize,
        normed: DeviceSlice<f32>,
        logits: DeviceSlice<f32>,
        workspace: DeviceSlice<u8>,
    ) {
        let width = self.spec.hidden_width;
        let last = residual.slice((n_rows - 1) * width..n_rows * width);
        device.rms_norm(
            self.norm_shape(last),
            last.into(),
            self.weights.final_norm(),
            normed.into(),
        );
        let shape = nibble_kernels::linear::LinearShape {
            n_rows: 1,
            n_in: width,
            n_out: self.spec.vocabulary,
        };
        let (weight, store) = (self.weights.output(), Store::Overwrite);
        device.linear(shape, normed.into(), weight, None, store, logits, workspace);
    }
}

/// The gradients that [`loss`] is asked for.
#[derive(Clone, Copy, Debug)]
pub struct LossGradient {
    /// One over the trained tokens of the whole step.
    pub scale: f32,
    /// Gradient of the residual stream `[T, D]` `=`.
    pub residual: DeviceSlice<f32>,
    /// Of the output matrix, when it is trained.
    pub output: Option<Gradient>,
    /// Of the last normalisation's weight, when it is trained.
    pub final_norm: Option<Gradient>,
}

/// The cross-entropy of the `n_targets` trained rows, its sum into `batch.loss_sum` by `store`, and its
/// gradients.
/// Rows on which nothing is trained never meet the output matrix.
pub fn loss(
    decoder: &Decoder,
    device: &mut impl Backend,
    batch: &BatchSlices,
    slices: &LossSlices,
    (n_rows, n_targets): (usize, usize),
    residual: DeviceSlice<f32>,
    gradient: Option<LossGradient>,
    store: Store,
) {
    let spec = &decoder.spec;
    let width = spec.hidden_width;
    let target_rows = batch.target_rows.first(n_targets);
    let gathered = rows(slices.gathered, n_targets, width);
    let normed = rows(slices.normed, n_targets, width);
    let dx = rows(slices.gradient, n_targets, width);
    device.gather_rows(width, target_rows, rows(residual, n_rows, width), gathered);
    let norm = decoder.weights.final_norm();
    device.rms_norm(decoder.norm_shape(gathered), gathered.into(), norm, normed.into());
    let shape = OutputLossShape {
        n_rows: n_targets,
        width,
        vocabulary: spec.vocabulary,
        chunk_rows: nibble_kernels::output_loss::default_chunk_rows(spec.vocabulary),
    };
    let losses = batch.losses.first(n_targets);
    device.output_loss(
        shape,
        normed,
        decoder.weights.output(),
        batch.targets.first(n_targets),
        losses,
        gradient.map(|gradient| OutputLossGradient {
            scale: gradient.scale,
            dx,
            dweight: gradient.output,
        }),
        slices.workspace,
    );
    device.sum_losses(losses, batch.loss_sum, store);
    if let Some(gradient) = gradient {
        device.rms_norm_backward_in_place(
            decoder.norm_shape(gathered),
            gathered.into(),
            norm,
            dx,
            gradient.final_norm,
            slices.workspace,
        );
        device.scatter_rows(width, target_rows, dx, rows(gradient.residual, n_rows, width));
    }
}

/// Computes the rotation tables of `spec` on the host and brings them to the device.
pub fn fill_rope_tables(device: &mut impl Backend, spec: &ModelSpec, tables: RopeTables) {
    let n_positions = tables.cos.len() / (spec.head_size / 2).max(1);
    let (cos, sin) = rope::tables(spec.rope_scaling, spec.rope_base, spec.head_size, n_positions);
    device.upload(&cos, tables.cos);
    device.upload(&sin, tables.sin);
}
