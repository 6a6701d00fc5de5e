//! The three products on a card.

use super::{Linear, LinearShape, Weight};
use crate::{
    Cuda,
    cuda::{
        Launch, Parameters,
        product::{self, Activation, Matrix, Product, Staging, Turn},
    },
    memory::{DeviceSlice, FloatFormat, Floats, Gradient, Store, WeightGradient},
};

/// Bytes of workspace that any of the three products needs: the activation as it is staged, its gradient
/// where it is, and the products' own.
pub(super) fn workspace_bytes(shape: LinearShape, gradient: FloatFormat) -> usize {
    let LinearShape { n_rows, n_in, n_out } = shape;
    product::staged_bytes(n_rows, n_in)
        .saturating_add(product::input_bytes(n_rows, n_out, gradient))
        .saturating_add(product::workspace_bytes(&[
            (n_rows, n_out, n_in),
            (n_rows, n_in, n_out),
            (n_out, n_in, n_rows),
        ]))
}

/// Bytes of workspace that the gradient of the weight needs: either activation where it is staged, and the
/// product's own.
pub(super) fn weight_gradient_workspace_bytes(
    shape: LinearShape,
    [x, dy]: [FloatFormat; 2],
) -> usize {
    let LinearShape { n_rows, n_in, n_out } = shape;
    product::input_bytes(n_rows, n_in, x)
        .saturating_add(product::input_bytes(n_rows, n_out, dy))
        .saturating_add(product::workspace_bytes(&[(n_out, n_in, n_rows)]))
}

/// A plain product; what is beside it is set by the caller.
pub(crate) fn plain(
    (m, n, k): (usize, usize, usize),
    a: (Matrix, Turn),
    b: (Matrix, Turn),
    store: Store,
    c: crate::cuda::Address,
) -> Product {
    let (scale, low_rank, dropout, bias) = (1.0, None, None, None);
    let (onto, is_rounded, rounded) = (None, false, None);
    Product { m, n, k, a, b, scale, low_rank, dropout, bias, store, onto, c, is_rounded, rounded }
}

impl Linear for Cuda {
    fn linear(
        &mut self,
        shape: LinearShape,
        x: Floats,
        weight: Weight,
        bias: Option<DeviceSlice<f32>>,
        store: Store,
        y: DeviceSlice<f32>,
        workspace: DeviceSlice<u8>,
    ) {
        let LinearShape { n_rows, n_in, n_out } = shape;
        let mut call = self.call("product");
        let x = Activation::new(&mut call, x.first(n_rows * n_in));
        let weight = Matrix::weight(&mut call, weight, n_out, n_in);
        let bias = bias.map(|bias| call.read(bias.first(n_out)));
        let y = call.write(y.first(n_rows * n_out));
        let mut staging = Staging::new(&mut call, workspace);
        let x = staging.input(&call, x, (n_rows, n_in), None);
        let extents = (n_rows, n_out, n_in);
        let product = plain(extents, (x, Turn::Along), (weight, Turn::Along), store, y);
        // SAFETY: every argument was cut to these extents.
        unsafe { Product { bias, ..product }.multiply(&mut call, &staging) };
    }

    fn linear_input_gradient(
        &mut self,
        shape: LinearShape,
        dy: Floats,
        weight: Weight,
        store: Store,
        dx: DeviceSlice<f32>,
        workspace: DeviceSlice<u8>,
    ) {
        let LinearShape { n_rows, n_in, n_out } = shape;
        let mut call = self.call("input gradient");
        let dy = Activation::new(&mut call, dy.first(n_rows * n_out));
        let weight = Matrix::weight(&mut call, weight, n_out, n_in);
        let dx = call.write(dx.first(n_rows * n_in));
        let mut staging = Staging::new(&mut call, workspace);
        let dy = staging.input(&call, dy, (n_rows, n_out), None);
        let extents = (n_rows, n_in, n_out);
        let product = plain(extents, (dy, Turn::Along), (weight, Turn::Across), store, dx);
        // SAFETY: every argument was cut to these extents.
        unsafe { product.multiply(&mut call, &staging) };
    }

    fn linear_weight_gradient(
        &mut self,
        shape: LinearShape,
        x: Floats,
        dy: Floats,
        dweight: WeightGradient,
        workspace: DeviceSlice<u8>,
    ) {
        let LinearShape { n_rows, n_in, n_out } = shape;
        let mut call = self.call("weight gradient");
        let x = Activation::new(&mut call, x.first(n_rows * n_in));
        let dy = Activation::new(&mut call, dy.first(n_rows * n_out));
        let n = n_out * n_in;
        let (dweight, store, is_rounded) = match dweight {
            WeightGradient::F32(Gradient { values, store }) => {
                (call.write(values.first(n)), store, false)
            }
            WeightGradient::Bf16(values) => (call.write(values.first(n)), Store::Overwrite, true),
        };
        let mut staging = Staging::new(&mut call, workspace);
        let x = staging.input(&call, x, (n_rows, n_in), None);
        let dy = staging.input(&call, dy, (n_rows, n_out), None);
        let extents = (n_out, n_in, n_rows);
        let product = plain(extents, (dy, Turn::Across), (x, Turn::Across), store, dweight);
        // SAFETY: every argument was cut to these extents.
        unsafe { Product { is_rounded, ..product }.multiply(&mut call, &staging) };
    }

    fn linear_bias_gradient(&mut self, n_rows: usize, n_out: usize, dy: Floats, dbias: Gradient) {
        let mut call = self.call("bias gradient");
        let parameters = Parameters::new()
            .address(call.read_floats(dy.first(n_rows * n_out)))
            .address(call.write(dbias.values.first(n_out)))
            .extent(n_rows)
            .extent(n_out)
            .u32(u32::from(dbias.store == Store::Accumulate));
        let launch = Launch::covering(n_out, 64);
        let kernel = format!("linear_bias_gradient_{}", dy.format().name());
        // SAFETY: both arguments were cut to these extents.
        unsafe { call.launch(&kernel, launch, parameters) };
    }
}
