//! The layers and their pairs on a card, one layer after another. In bf16 the pair's second product is a
//! few more steps of its layer's; in f32 it is one of its own.

use super::{Adapter, Layer, LayerBackward, LayerWidth, Layers, LayersShape};
use crate::{
    Compute, Cuda,
    cuda::product::{self, Activation, LowRank, Matrix, Product, Staging, Turn},
    linear::cuda::plain,
    memory::{DeviceSlice, FloatFormat, Floats, Store},
};

/// Bytes of workspace that either direction needs: what is staged of `x` for all, of the backward pass of
/// one layer (`x` dropped from, `xa`, `dy`, `dxa`), and the products' own. What is in bf16 already is not
/// staged, and of f32 products only what is dropped from is.
pub(super) fn workspace_bytes(
    shape: LayersShape,
    layers: &[LayerWidth],
    input: FloatFormat,
    dropout: bool,
) -> usize {
    let LayersShape { n_rows, n_in, rank } = shape;
    let dropped = if dropout { product::f32_bytes(n_rows.saturating_mul(n_in)) } else { 0 };
    let of_layer = |layer: &LayerWidth| {
        let LayerWidth { n_out, gradient, .. } = *layer;
        [
            // A second x, dropped from; in f32 at most.
            dropped,
            product::input_bytes(n_rows, n_out, gradient),
            // xa, dxa, and dxa before it is staged.
            product::staged_bytes(n_rows, rank),
            product::staged_bytes(n_rows, rank),
            product::f32_bytes(n_rows.saturating_mul(rank)),
            product::workspace_bytes(&[
                (n_rows, n_out, n_in),
                (n_rows, n_in, n_out),
                (n_rows, rank, n_in),
                (n_rows, rank, n_out),
                // Where a mask falls between a pair and the sum.
                (n_rows, n_in, rank),
                (n_out, rank, n_rows),
                (rank, n_in, n_rows),
            ]),
        ]
        .into_iter()
        .fold(0, usize::saturating_add)
    };
    let most = layers.iter().map(of_layer).max().unwrap_or(0);
    product::input_bytes(n_rows, n_in, input).saturating_add(most)
}

impl Layers for Cuda {
    fn layers(
        &mut self,
        shape: LayersShape,
        x: Floats,
        layers: &[Layer],
        workspace: DeviceSlice<u8>,
    ) {
        let LayersShape { n_rows, n_in, rank } = shape;
        let mut call = self.call("linear layers");
        let x = Activation::new(&mut call, x.first(n_rows * n_in));
        let mut staging = Staging::new(&mut call, workspace);
        let rows = staging.input(&call, x, (n_rows, n_in), None);
        let (along, overwrite) = (Turn::Along, Store::Overwrite);
        for layer in layers {
            let Layer { weight, bias, ref adapter, n_out, residual, y } = *layer;
            let weight = Matrix::weight(&mut call, weight, n_out, n_in);
            let bias = bias.map(|bias| call.read(bias.first(n_out)));
            let onto = residual.map(|residual| call.read(residual.first(n_rows * n_out)));
            let is_rounded = y.format() == FloatFormat::Bf16;
            assert!(
                !is_rounded || call.compute() == Compute::Bf16,
                "an output that was to be in f32"
            );
            let y = call.write_floats(y.first(n_rows * n_out));
            let extents = (n_rows, n_out, n_in);
            let layer = plain(extents, (rows, along), (weight, along), overwrite, y);
            let layer = Product { bias, onto, is_rounded, ..layer };
            let Some(Adapter { pair, scale, dropout, xa }) = *adapter else {
                // SAFETY: every argument was cut to these extents.
                unsafe { layer.multiply(&mut call, &staging) };
                continue;
            };
            let a = Matrix::f32(call.read(pair.a.first(rank * n_in)), n_in);
            let b = Matrix::f32(call.read(pair.b.first(n_out * rank)), rank);
            let xa = call.write(xa.first(n_rows * rank));
            // What is staged for one layer makes room for the next one's.
            let mut staging = staging.rest();
            let dropped = match dropout {
                Some(_) => staging.input(&call, x, (n_rows, n_in), dropout),
                None => rows,
            };
            let between = staging.between(&call, (n_rows, rank));
            let extents = (n_rows, rank, n_in);
            let through_a = plain(extents, (dropped, along), (a, along), overwrite, xa);
            let rounded = between.map(|matrix| matrix.values);
            // SAFETY: every argument was cut to these extents.
            unsafe {
                Product { rounded, ..through_a }.multiply(&mut call, &staging);
                let xa = match between {
                    Some(xa) => xa,
                    None => staging.operand(&call, xa, (n_rows, rank), None),
                };
                if call.compute() == Compute::Bf16 {
                    let low_rank = Some(LowRank { rank, a: xa, b, scale });
                    Product { low_rank, ..layer }.multiply(&mut call, &staging);
                    continue;
                }
                layer.multiply(&mut call, &staging);
                let store = Store::Accumulate;
                let pair = plain((n_rows, n_out, rank), (xa, along), (b, along), store, y);
                Product { scale, ..pair }.multiply(&mut call, &staging);
            }
        }
    }

    fn layers_backward(
        &mut self,
        shape: LayersShape,
        x: Floats,
        layers: &[LayerBackward],
        gradients: Store,
        dx: Option<(DeviceSlice<f32>, Store)>,
        workspace: DeviceSlice<u8>,
    ) {
        let LayersShape { n_rows, n_in, rank } = shape;
        let (along, across) = (Turn::Along, Turn::Across);
        let (overwrite, accumulate) = (Store::Overwrite, Store::Accumulate);
        let mut call = self.call("linear layers, backward");
        let mut dx = dx.map(|(dx, store)| (call.write(dx.first(n_rows * n_in)), store));
        let mut staging = Staging::new(&mut call, workspace);
        let mut pairs = layers.iter().filter_map(|layer| layer.adapter.as_ref());
        // Without a pair nothing of it is left.
        let x = pairs.clone().next().map(|_| Activation::new(&mut call, x.first(n_rows * n_in)));
        let shared = pairs.any(|(adapter, _)| adapter.dropout.is_none());
        let rows = x.filter(|_| shared).map(|x| staging.input(&call, x, (n_rows, n_in), None));
        for layer in layers {
            let LayerBackward { weight, ref adapter, n_out, dy } = *layer;
            let dy = Activation::new(&mut call, dy.first(n_rows * n_out));
            // What is staged for one layer makes room for the next one's.
            let mut staging = staging.rest();
            let dy = staging.input(&call, dy, (n_rows, n_out), None);
            let mut low_rank = None;
            if let (Some((Adapter { pair, scale, dropout, xa }, gradient)), Some(x)) = (*adapter, x)
            {
                let a = Matrix::f32(call.read(pair.a.first(rank * n_in)), n_in);
                let b = Matrix::f32(call.read(pair.b.first(n_out * rank)), rank);
                let xa = call.read(xa.first(n_rows * rank));
                let da = call.write(gradient.a.first(rank * n_in));
                let db = call.write(gradient.b.first(n_out * rank));
                let between = staging.between(&call, (n_rows, rank));
                let dxa = match between {
                    Some(dxa) => dxa.values,
                    None => staging.take(n_rows * rank * size_of::<f32>()),
                };
                let is_rounded = between.is_some();
                let x = match rows.filter(|_| dropout.is_none()) {
                    Some(rows) => rows,
                    None => staging.input(&call, x, (n_rows, n_in), dropout),
                };
                let xa = staging.operand(&call, xa, (n_rows, rank), None);
                let extents = (n_rows, rank, n_out);
                let through_b = plain(extents, (dy, along), (b, across), overwrite, dxa);
                let extents = (n_out, rank, n_rows);
                let of_b = plain(extents, (dy, across), (xa, across), gradients, db);
                // SAFETY: every argument was cut to these extents.
                let dxa = unsafe {
                    Product { scale, is_rounded, ..through_b }.multiply(&mut call, &staging);
                    Product { scale, ..of_b }.multiply(&mut call, &staging);
                    let dxa = match between {
                        Some(dxa) => dxa,
                        None => staging.operand(&call, dxa, (n_rows, rank), None),
                    };
                    plain((rank, n_in, n_rows), (dxa, across), (x, across), gradients, da)
                        .multiply(&mut call, &staging);
                    dxa
                };
                low_rank = Some((LowRank { rank, a: dxa, b: a, scale: 1.0 }, dropout));
            }

            let Some((dx, store)) = &mut dx else { continue };
            let weight = Matrix::weight(&mut call, weight, n_out, n_in);
            let layer = plain((n_rows, n_in, n_out), (dy, along), (weight, across), *store, *dx);
            *store = accumulate;
            // SAFETY: every argument was cut to these extents.
            unsafe {
                match low_rank {
                    None => layer.multiply(&mut call, &staging),
                    Some((low_rank, None)) if call.compute() == Compute::Bf16 => {
                        let low_rank = Some(low_rank);
                        Product { low_rank, ..layer }.multiply(&mut call, &staging);
                    }
                    Some((LowRank { a: dxa, b: a, .. }, dropout)) => {
                        layer.multiply(&mut call, &staging);
                        // A mask falls between this product and the sum.
                        let extents = (n_rows, n_in, rank);
                        let pair = plain(extents, (dxa, along), (a, across), accumulate, *dx);
                        Product { dropout, ..pair }.multiply(&mut call, &staging);
                    }
                }
            }
        }
    }
}
