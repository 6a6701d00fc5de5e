//! The regions of measuring a loss: a forward pass that leaves nothing behind.

use nibble_kernels::{DeviceSlice, FloatFormat, attention};
use nibble_run::Category;

use super::{
    generation::forward_slices,
    moments::Moments,
    regions::Regions,
    shape::{Trainable, TrainingShape},
    training::{
        BatchSlices, LayerSlices, LossSlices, RopeTables, area, batch, layer_workspace_bytes, loss,
        rope_tables,
    },
};

/// Handles to everything that measuring a loss uses, beside the weights.
#[derive(Clone, Debug)]
pub struct EvaluationLayout {
    /// The adapter's parameters, if there is one.
    pub adapter: Option<DeviceSlice<f32>>,
    /// Rotation tables.
    pub rope: RopeTables,
    /// Inputs and losses.
    pub batch: BatchSlices,
    /// The residual stream before and after a layer, in turn.
    pub residuals: [DeviceSlice<f32>; 2],
    /// Activations of one layer.
    pub layer: LayerSlices,
    /// Loss.
    pub loss: LossSlices,
    /// Workspace of the operations of a layer.
    pub workspace: DeviceSlice<u8>,
}

impl EvaluationLayout {
    /// Asks `regions` for everything that measuring the loss of a model of `shape` uses.
    pub fn new(regions: &mut Regions, shape: &TrainingShape) -> Self {
        let spec = &shape.spec;
        let adapter = shape.adapter_layout().map(|layout| {
            regions.region("adapter", Category::Adapters, layout.len(), Moments::ALWAYS)
        });
        let rope = rope_tables(regions, spec, shape.sequence);
        let batch = batch(regions, shape.n_rows());
        let moments = Moments::pass();
        let mut floats = |name: &'static str, width, format| {
            let len = (area(shape.n_rows(), width), format);
            regions.floats(name, Category::Activations, len, moments)
        };
        let mut rows = |name, width| floats(name, width, FloatFormat::F32).into_f32();
        let residuals = ["residual.even", "residual.odd"].map(|name| rows(name, spec.hidden_width));
        let format = attention::input_format(shape.profile.compute);
        let keys_and_values = ["key", "value"].map(|name| floats(name, spec.kv_width(), format));
        let adapter_shape = match shape.trainable {
            Trainable::Adapter { rank, targets, .. } => Some((rank, targets)),
            Trainable::Everything => None,
        };
        let layer =
            forward_slices(spec, &shape.profile, adapter_shape, keys_and_values, &mut floats);
        let loss = loss(regions, shape);
        let bytes = layer_workspace_bytes(shape, false);
        let workspace =
            regions.region("workspace.layers", Category::Workspace, bytes, Moments::layers());
        Self { adapter, rope, batch, residuals, layer, loss, workspace }
    }
}
