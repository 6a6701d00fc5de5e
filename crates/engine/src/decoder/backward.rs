//! The backward pass of one layer.

use nibble_kernels::{Backend, DeviceSlice, Floats, Gradient, Store, rope::Rotation};

use super::{
    Decoder,
    forward::PassRows,
    rows,
    weights::{BaseWeights, ProductInput, Projected},
};
use crate::{
    model::Projection,
    plan::{LayerGradientSlices, LayerSlices, attention_shape},
    weights::LayerTensor,
};

/// Where the gradients of the trained parameters lie.
#[derive(Clone, Debug)]
pub enum Gradients {
    /// The flat buffer of the adapter.
    Adapter(DeviceSlice<f32>),
    /// Every weight, by the layout of gradients.
    Weights(Box<BaseWeights>),
}

/// The gradients of a step on the way through one of its micro-batches.
#[derive(Clone, Copy, Debug)]
pub struct StepGradients<'a> {
    /// Where they lie.
    pub places: &'a Gradients,
    /// Whether they replace what the step before left, or are added to earlier micro-batches'.
    pub store: Store,
}

impl StepGradients<'_> {
    fn norm(&self, layer: usize, norm: LayerTensor) -> Option<Gradient> {
        let Gradients::Weights(weights) = self.places else { return None };
        let values = weights.vector(layer, norm)?;
        Some(Gradient { values, store: self.store })
    }
}

/// What the backward pass of a layer reads and writes.
#[derive(Clone, Copy, Debug)]
pub struct BackwardSlices<'a> {
    /// Activations that the forward pass left; `gate` and `up` are overwritten, and what is made again.
    pub layer: &'a LayerSlices,
    /// Gradients inside the layer.
    pub gradients: &'a LayerGradientSlices,
    /// The residual stream before the layer.
    pub input: DeviceSlice<f32>,
    /// Gradient of the residual stream: after the layer on entry, before it on return.
    pub residual: DeviceSlice<f32>,
    /// Whether the gradient before the layer is wanted.
    pub wants_input_gradient: bool,
    /// Workspace of the operations.
    pub workspace: DeviceSlice<u8>,
}

impl Decoder {
    /// Passes the residual stream's gradient back through `layer`.
    pub fn layer_backward(
        &self,
        device: &mut impl Backend,
        layer: usize,
        pass: &PassRows,
        slices: &BackwardSlices<'_>,
        gradients: &StepGradients<'_>,
    ) {
        let spec = &self.spec;
        let n_rows = pass.n_rows;
        let workspace = slices.workspace;
        let saved = slices.layer.first_rows(spec, n_rows);
        let cut = |slice, width| rows(slice, n_rows, width);
        let (query_width, key_width) = (spec.query_width(), spec.kv_width());
        let residual = cut(slices.residual, spec.hidden_width);
        let low_rank = saved.low_rank;
        let input_of =
            |x| ProductInput { layer, x, low_rank, n_rows, dropout: pass.dropout, workspace };
        let back = |device: &mut _, x, projections: &[Projected], dx: Option<_>| {
            let dx = dx.map(|dx| (dx, Store::Overwrite));
            self.project_backward(device, input_of(x), projections, gradients, dx);
        };
        // Inputs of products are made again where they are read.
        let reads = |projections: &[Projection]| self.trains(gradients, layer, projections);

        // Feed-forward block.
        if reads(&[Projection::Down]) {
            device.swiglu(saved.gate, saved.up, saved.activated);
        }
        let dactivated = cut(slices.gradients.activated, spec.ffn_width);
        back(device, saved.activated, &[(Projection::Down, residual.into())], Some(dactivated));
        device.swiglu_backward(dactivated, saved.gate, saved.up);
        let dnormed = cut(slices.gradients.feed_forward_normed, spec.hidden_width);
        let normed = saved.feed_forward_normed;
        if reads(&[Projection::Gate, Projection::Up]) {
            self.layer_norm(device, (layer, LayerTensor::PostAttentionNorm), saved.middle, normed);
        }
        let products = [(Projection::Gate, saved.gate), (Projection::Up, saved.up)];
        back(device, normed, &products, Some(dnormed));
        self.norm_backward(
            device,
            (layer, LayerTensor::PostAttentionNorm),
            (saved.middle, dnormed, residual),
            gradients,
            workspace,
        );

        // Attention block.
        let dattention = cut(slices.gradients.attention, query_width);
        let products = [(Projection::Output, residual.into())];
        back(device, saved.attention, &products, Some(dattention));
        let of_keys = |matrix: Floats| matrix.first(n_rows * key_width);
        let (query, key) = (saved.query, of_keys(saved.key));
        if saved.query_raw.is_some() {
            // In a place that all layers share, which others have used since.
            self.norm_heads(device, layer, &saved, key);
            self.rotate(device, pass, Rotation::Forward, spec.n_heads, query);
            self.rotate(device, pass, Rotation::Forward, spec.n_kv_heads, key);
        }
        let dquery = cut(slices.gradients.query, query_width);
        let dkey = cut(slices.gradients.key, key_width);
        let dvalue = cut(slices.gradients.value, key_width);
        device.attention_backward(
            attention_shape(spec, layer, n_rows, n_rows, pass.max_segment),
            pass.segments,
            query,
            key,
            of_keys(saved.value),
            saved.attention,
            saved.log_sum_exp,
            dattention,
            dquery,
            dkey,
            dvalue,
            workspace,
        );
        for (raw, norm, n_heads, gradient) in [
            (saved.query_raw, LayerTensor::QueryNorm, spec.n_heads, dquery),
            (saved.key_raw, LayerTensor::KeyNorm, spec.n_kv_heads, dkey),
        ] {
            self.rotate(device, pass, Rotation::Backward, n_heads, gradient.into());
            if let (Some(raw), Some(weight)) = (raw, self.weights.vector(layer, norm)) {
                device.rms_norm_backward_in_place(
                    self.head_norm_shape(raw),
                    raw,
                    weight,
                    gradient,
                    gradients.norm(layer, norm),
                    workspace,
                );
            }
        }
        let dnormed = cut(slices.gradients.input_normed, spec.hidden_width);
        let wanted = slices.wants_input_gradient.then_some(dnormed);
        let normed = saved.input_normed;
        let input = cut(slices.input, spec.hidden_width);
        if reads(&[Projection::Query, Projection::Key, Projection::Value]) {
            self.layer_norm(device, (layer, LayerTensor::InputNorm), input, normed);
        }
        let products = [
            (Projection::Query, dquery.into()),
            (Projection::Key, dkey.into()),
            (Projection::Value, dvalue.into()),
        ];
        back(device, normed, &products, wanted);
        if slices.wants_input_gradient {
            self.norm_backward(
                device,
                (layer, LayerTensor::InputNorm),
                (input, dnormed, residual),
                gradients,
                workspace,
            );
        }
    }

    fn norm_backward(
        &self,
        device: &mut impl Backend,
        (layer, norm): (usize, LayerTensor),
        (x, dy, dx): (DeviceSlice<f32>, DeviceSlice<f32>, DeviceSlice<f32>),
        gradients: &StepGradients<'_>,
        workspace: DeviceSlice<u8>,
    ) {
        if let Some(weight) = self.weights.vector(layer, norm) {
            let dweight = gradients.norm(layer, norm);
            device.rms_norm_backward(
                self.norm_shape(x),
                x.into(),
                weight,
                dy,
                dx,
                dweight,
                workspace,
            );
        }
    }
}
