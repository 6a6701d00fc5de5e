//! The layer and its pair on a card. In bf16 the pair's second product is a few more steps of the
//! layer's; in f32 it is one of its own.

use super::{Adapter, Lora, LoraPair, LoraShape};
use crate::{
    Compute, Cuda, DeviceProfile,
    cuda::product::{self, LowRank, Matrix, Product, Staging, Turn},
    linear::{Weight, cuda::plain},
    memory::{DeviceSlice, Store},
};

/// Bytes of workspace that either direction needs: what is staged of the backward pass (`x`, `xa`, `dy`,
/// `dxa`), and the products' own. In f32 only what is dropped from is.
pub(super) fn workspace_bytes(_: &DeviceProfile, shape: LoraShape, dropout: bool) -> usize {
    let LoraShape { n_rows, n_in, n_out, rank } = shape;
    let dropped = if dropout { product::f32_bytes(n_rows.saturating_mul(n_in)) } else { 0 };
    let parts = [
        // A second x, dropped from; in f32 at most.
        dropped,
        product::staged_bytes(n_rows, n_in),
        product::staged_bytes(n_rows, n_out),
        // xa, dxa, and dxa before it is staged.
        product::staged_bytes(n_rows, rank),
        product::staged_bytes(n_rows, rank),
        product::f32_bytes(n_rows.saturating_mul(rank)),
        product::workspace_bytes(&[
            (n_rows, n_out),
            (n_rows, n_in),
            (n_rows, rank),
            (n_out, rank),
            (rank, n_in),
            (n_out, n_in),
        ]),
    ];
    parts.into_iter().fold(0, usize::saturating_add)
}

impl Lora for Cuda {
    fn adapted_linear(
        &mut self,
        shape: LoraShape,
        x: DeviceSlice<f32>,
        weight: Weight,
        bias: Option<DeviceSlice<f32>>,
        adapter: Adapter,
        store: Store,
        y: DeviceSlice<f32>,
        workspace: DeviceSlice<u8>,
    ) {
        let LoraShape { n_rows, n_in, n_out, rank } = shape;
        let Adapter { pair, scale, dropout, xa } = adapter;
        let mut call = self.call("product with pair");
        let x = call.read(x.first(n_rows * n_in));
        let weight = Matrix::weight(&mut call, weight, n_out, n_in);
        let bias = bias.map(|bias| call.read(bias.first(n_out)));
        let a = Matrix::f32(call.read(pair.a.first(rank * n_in)), n_in);
        let b = Matrix::f32(call.read(pair.b.first(n_out * rank)), rank);
        let xa = call.write(xa.first(n_rows * rank));
        let y = call.write(y.first(n_rows * n_out));
        let mut staging = Staging::new(&mut call, workspace);

        let rows = staging.operand(&call, x, (n_rows, n_in), None);
        let dropped = match dropout {
            Some(_) => staging.operand(&call, x, (n_rows, n_in), dropout),
            None => rows,
        };
        let (along, overwrite) = (Turn::Along, Store::Overwrite);
        let through_a =
            plain((n_rows, rank, n_in), (dropped, along), (a, along), overwrite, xa);
        let layer = plain((n_rows, n_out, n_in), (rows, along), (weight, along), store, y);
        let layer = Product { bias, ..layer };
        // SAFETY: every argument was cut to these extents.
        unsafe {
            through_a.multiply(&mut call, &staging);
            let xa = staging.operand(&call, xa, (n_rows, rank), None);
            if call.compute() == Compute::Bf16 {
                let low_rank = Some(LowRank { rank, a: xa, b, scale });
                Product { low_rank, ..layer }.multiply(&mut call, &staging);
                return;
            }
            layer.multiply(&mut call, &staging);
            let store = Store::Accumulate;
            let pair = plain((n_rows, n_out, rank), (xa, along), (b, along), store, y);
            Product { scale, ..pair }.multiply(&mut call, &staging);
        }
    }

    fn adapted_linear_backward(
        &mut self,
        shape: LoraShape,
        x: DeviceSlice<f32>,
        weight: Weight,
        adapter: Adapter,
        dy: DeviceSlice<f32>,
        gradient: LoraPair,
        store: Store,
        dx: Option<DeviceSlice<f32>>,
        workspace: DeviceSlice<u8>,
    ) {
        let LoraShape { n_rows, n_in, n_out, rank } = shape;
        let Adapter { pair, scale, dropout, xa } = adapter;
        let mut call = self.call("product with pair, backward");
        let x = call.read(x.first(n_rows * n_in));
        let a = Matrix::f32(call.read(pair.a.first(rank * n_in)), n_in);
        let b = Matrix::f32(call.read(pair.b.first(n_out * rank)), rank);
        let xa = call.read(xa.first(n_rows * rank));
        let dy = call.read(dy.first(n_rows * n_out));
        let da = call.write(gradient.a.first(rank * n_in));
        let db = call.write(gradient.b.first(n_out * rank));
        let mut staging = Staging::new(&mut call, workspace);
        let dxa = staging.take(n_rows * rank * size_of::<f32>());
        let dropped = staging.operand(&call, x, (n_rows, n_in), dropout);
        let dy = staging.operand(&call, dy, (n_rows, n_out), None);
        let xa = staging.operand(&call, xa, (n_rows, rank), None);
        let (along, across) = (Turn::Along, Turn::Across);
        let (overwrite, accumulate) = (Store::Overwrite, Store::Accumulate);

        let through_b = plain((n_rows, rank, n_out), (dy, along), (b, across), overwrite, dxa);
        let of_b = plain((n_out, rank, n_rows), (dy, across), (xa, across), accumulate, db);
        // SAFETY: every argument was cut to these extents.
        let dxa = unsafe {
            Product { scale, ..through_b }.multiply(&mut call, &staging);
            Product { scale, ..of_b }.multiply(&mut call, &staging);
            let dxa = staging.operand(&call, dxa, (n_rows, rank), None);
            plain((rank, n_in, n_rows), (dxa, across), (dropped, across), accumulate, da)
                .multiply(&mut call, &staging);
            dxa
        };

        let Some(dx) = dx else { return };
        let weight = Matrix::weight(&mut call, weight, n_out, n_in);
        let dx = call.write(dx.first(n_rows * n_in));
        let layer = plain((n_rows, n_in, n_out), (dy, along), (weight, across), store, dx);
        // SAFETY: every argument was cut to these extents.
        unsafe {
            if call.compute() == Compute::Bf16 && dropout.is_none() {
                let low_rank = Some(LowRank { rank, a: dxa, b: a, scale: 1.0 });
                Product { low_rank, ..layer }.multiply(&mut call, &staging);
                return;
            }
            layer.multiply(&mut call, &staging);
            // A mask falls between this product and the sum.
            let pair = plain((n_rows, n_in, rank), (dxa, along), (a, across), accumulate, dx);
            Product { dropout, ..pair }.multiply(&mut call, &staging);
        }
    }
}
