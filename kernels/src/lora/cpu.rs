//! The pair on the processor: five skinny products, with the dropout applied on the way in.

use super::{Dropout, Lora, LoraPair, LoraShape, PRODUCT_ROWS};
use crate::{
    Cpu, Isa,
    cpu::{
        gemm::{self, Extents, Layout, Operand, Values},
        math::for_each_isa,
        parallel::for_each_part,
    },
    memory::{DeviceSlice, Store},
    random::hash,
};

impl Dropout {
    /// Drops elements of `run`, whose first has the index `start`, and scales up the others.
    pub(crate) fn apply(self, isa: Isa, start: usize, run: &mut [f32]) {
        // Kept when a uniform 32-bit draw is not below the threshold.
        let threshold = (f64::from(self.probability) * 4_294_967_296.0) as u64;
        drop_below(isa, threshold, 1.0 / (1.0 - self.probability), self.seed, start, run);
    }
}

for_each_isa! {
    fn drop_below(threshold: u64, factor: f32, seed: u64, start: usize, run: &mut [f32]) {
        for (i, value) in run.iter_mut().enumerate() {
            let draw = u64::from(draw(seed, (start + i) as u64));
            *value = if draw < threshold { 0.0 } else { *value * factor };
        }
    }
}

/// A uniform 32-bit number for every seed and index.
#[inline(always)]
fn draw(seed: u64, index: u64) -> u32 {
    (hash(seed, index) >> 32) as u32
}

/// `x` as it enters the pair.
fn dropped(x: &[f32], dropout: Option<Dropout>) -> Values<'_> {
    match dropout {
        Some(dropout) => Values::Dropped(x, dropout),
        None => Values::F32(x),
    }
}

impl Lora for Cpu {
    fn lora(
        &mut self,
        shape: LoraShape,
        scale: f32,
        dropout: Option<Dropout>,
        x: DeviceSlice<f32>,
        pair: LoraPair,
        xa: DeviceSlice<f32>,
        y: DeviceSlice<f32>,
        workspace: DeviceSlice<u8>,
    ) {
        let LoraShape { n_rows, n_in, n_out, rank } = shape;
        let mut access = self.access("pair");
        let place = access.place();
        let x = dropped(access.read(x), dropout);
        let x = Operand { values: x, layout: Layout::Depth, stride: n_in };
        let a = Operand::f32(access.read(pair.a), Layout::Depth, n_in);
        let b = Operand::f32(access.read(pair.b), Layout::Depth, rank);
        let (xa, y) = (access.write(xa), access.write(y));
        let workspace = access.write(workspace.cast());
        access.count_product(n_rows, rank, n_in + n_out);
        let extents = Extents { m: n_rows, n: rank, k: n_in };
        gemm::multiply(place, extents, 1.0, x, a, Store::Overwrite, xa, workspace);
        let xa = Operand::f32(xa, Layout::Depth, rank);
        let extents = Extents { m: n_rows, n: n_out, k: rank };
        gemm::multiply(place, extents, scale, xa, b, Store::Accumulate, y, workspace);
    }

    fn lora_backward(
        &mut self,
        shape: LoraShape,
        scale: f32,
        dropout: Option<Dropout>,
        x: DeviceSlice<f32>,
        xa: DeviceSlice<f32>,
        dy: DeviceSlice<f32>,
        pair: LoraPair,
        gradient: LoraPair,
        dx: Option<DeviceSlice<f32>>,
        workspace: DeviceSlice<u8>,
    ) {
        let LoraShape { n_rows, n_in, n_out, rank } = shape;
        let mut access = self.access("pair backward");
        let place = access.place();
        let accumulate = Store::Accumulate;
        access.count_product(n_rows, rank, 2 * n_out + n_in + if dx.is_some() { n_in } else { 0 });
        let parts = super::parts(shape, dropout.is_some());
        let dxa = access.write(workspace.slice(parts.dxa.clone()).cast::<f32>());
        let product = access.write(workspace.slice(parts.product.clone()).cast::<f32>());
        let rest = access.write(workspace.slice(parts.product.end..workspace.len()).cast());
        let x = dropped(access.read(x), dropout);
        let (xa, dy) = (access.read(xa), access.read(dy));
        let (a, b) = (access.read(pair.a), access.read(pair.b));
        let (da, db) = (access.write(gradient.a), access.write(gradient.b));

        let extents = Extents { m: n_rows, n: rank, k: n_out };
        let dy_rows = Operand::f32(dy, Layout::Depth, n_out);
        let b_columns = Operand::f32(b, Layout::Lanes, rank);
        gemm::multiply(place, extents, scale, dy_rows, b_columns, Store::Overwrite, dxa, rest);
        let dxa = &*dxa;

        let extents = Extents { m: n_out, n: rank, k: n_rows };
        let dy_columns = Operand::f32(dy, Layout::Lanes, n_out);
        let xa_columns = Operand::f32(xa, Layout::Lanes, rank);
        gemm::multiply(place, extents, scale, dy_columns, xa_columns, accumulate, db, rest);

        let extents = Extents { m: rank, n: n_in, k: n_rows };
        let dxa_columns = Operand::f32(dxa, Layout::Lanes, rank);
        let x_columns = Operand { values: x, layout: Layout::Lanes, stride: n_in };
        gemm::multiply(place, extents, 1.0, dxa_columns, x_columns, accumulate, da, rest);

        let Some(dx) = dx else { return };
        let dx = access.write(dx);
        let a_columns = Operand::f32(a, Layout::Lanes, n_in);
        let Some(dropout) = dropout else {
            let extents = Extents { m: n_rows, n: n_in, k: rank };
            let dxa_rows = Operand::f32(dxa, Layout::Depth, rank);
            gemm::multiply(place, extents, 1.0, dxa_rows, a_columns, accumulate, dx, rest);
            return;
        };
        // The mask falls between the product and the sum, so the product needs a place of its own.
        for first in (0..n_rows).step_by(PRODUCT_ROWS) {
            let m = PRODUCT_ROWS.min(n_rows - first);
            let extents = Extents { m, n: n_in, k: rank };
            let dxa_rows = Operand::f32(&dxa[first * rank..], Layout::Depth, rank);
            let store = Store::Overwrite;
            gemm::multiply(place, extents, 1.0, dxa_rows, a_columns, store, product, rest);
            for_each_part(place.pool, &mut product[..m * n_in], n_in, |row, product| {
                dropout.apply(place.isa, (first + row) * n_in, product);
            });
            let product = &product[..m * n_in];
            let dx = &mut dx[first * n_in..(first + m) * n_in];
            for_each_part(place.pool, dx, n_in, |row, dx| {
                for (dx, product) in dx.iter_mut().zip(&product[row * n_in..]) {
                    *dx += product;
                }
            });
        }
    }
}
