//! The dense values of every matrix, with the adapter added in.

use nibble_kernels::{
    Backend, DeviceSlice, Gradient, MemoryError, Store,
    linear::{self, LinearShape, Weight},
};
use nibble_run::Category;

use crate::{
    decoder::Decoder,
    model::{ModelSpec, Projection},
    plan::{Moments, Regions},
    weights::{LayerTensor, TensorPlace, TensorRole},
};

/// Buffers for one matrix at a time.
#[derive(Debug)]
pub struct Merger {
    dense: DeviceSlice<f32>,
    /// Bᵀ `[R, n_out]`, times the adapter's factor.
    b_transposed: DeviceSlice<f32>,
    workspace: DeviceSlice<u8>,
}

impl Merger {
    /// Takes the buffers for `decoder`'s largest matrix from `device`.
    ///
    /// # Errors
    /// When there is no room.
    pub fn new(device: &mut impl Backend, decoder: &Decoder) -> Result<Self, MemoryError> {
        let profile = device.profile();
        let rank = decoder.adapter.as_ref().map_or(0, |adapter| adapter.layout.rank);
        let layout = |regions: &mut Regions| {
            let spec = &decoder.spec;
            let shapes = Projection::ALL.map(|projection| spec.projection_shape(projection));
            let most = |of: fn([usize; 2]) -> usize| shapes.into_iter().map(of).max().unwrap_or(0);
            let workspace = shapes.map(|[n_out, n_in]| {
                linear::workspace_bytes(&profile, LinearShape { n_rows: rank, n_in, n_out })
            });
            let workspace = workspace.into_iter().max().unwrap_or(0);
            let (always, category) = (Moments::ALWAYS, Category::Workspace);
            Self {
                dense: regions.region(
                    "merge.dense",
                    category,
                    most(|[n_out, n_in]| n_out * n_in).max(table_len(spec)),
                    always,
                ),
                b_transposed: regions.region(
                    "merge.b_transposed",
                    category,
                    rank * most(|[n_out, _]| n_out),
                    always,
                ),
                workspace: regions.region("merge.workspace", category, workspace, always),
            }
        };
        let mut regions = Regions::plan(layout);
        let memory = device.allocate(regions.total_bytes())?;
        Ok(regions.resolve(memory, layout))
    }

    /// Every tensor of `decoder` in f32, with the adapter added where there is one, one after the
    /// other; `on_tensor` gets the tensor, the device and the place of its values.
    ///
    /// # Errors
    /// Whatever `on_tensor` returns.
    pub fn for_each<B: Backend, E>(
        &self,
        device: &mut B,
        decoder: &Decoder,
        mut on_tensor: impl FnMut(&TensorPlace, &B, DeviceSlice<f32>) -> Result<(), E>,
    ) -> Result<(), E> {
        for (tensor, weight) in decoder.weights.tensors() {
            let len = tensor.shape.n_elements();
            let dense = self.dense.first(len);
            match weight {
                Weight::F32(slice) => device.copy(slice, dense),
                Weight::Bf16(slice) => {
                    let mut values = vec![half::bf16::ZERO; len];
                    device.download(slice, &mut values);
                    let values: Vec<f32> = values.into_iter().map(f32::from).collect();
                    device.upload(&values, dense);
                }
                Weight::Nf4(weight) => device.nf4_dequantize(weight, dense),
            }
            if let (Some(adapter), TensorRole::Layer(layer, LayerTensor::Matrix(projection))) =
                (&decoder.adapter, tensor.role)
                && let Some(pair) = adapter.pair(layer, projection)
            {
                let [n_out, n_in] = decoder.spec.projection_shape(projection);
                let rank = adapter.layout.rank;
                let mut b = vec![0.0_f32; n_out * rank];
                device.download(pair.b, &mut b);
                let mut transposed = vec![0.0_f32; rank * n_out];
                for (out, row) in b.chunks_exact(rank).enumerate() {
                    for (r, value) in row.iter().enumerate() {
                        transposed[r * n_out + out] = value * adapter.scale;
                    }
                }
                let b_transposed = self.b_transposed.first(rank * n_out);
                device.upload(&transposed, b_transposed);
                // W += (scale·Bᵀ)ᵀ · A, the same product as a weight's gradient over R rows.
                let shape = LinearShape { n_rows: rank, n_in, n_out };
                let dense = Gradient { values: dense, store: Store::Accumulate };
                let (a, workspace) = (pair.a.into(), self.workspace);
                device.linear_weight_gradient(
                    shape,
                    a,
                    b_transposed.into(),
                    dense.into(),
                    workspace,
                );
            }
            on_tensor(&tensor, device, dense)?;
        }
        Ok(())
    }
}

fn table_len(spec: &ModelSpec) -> usize {
    spec.vocabulary * spec.hidden_width
}
