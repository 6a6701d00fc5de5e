//! The layer and its pair on the processor: what the pair shares with the layer's products is
//! multiplied beside them, and the dropout is applied on the way in.

use super::{Adapter, Dropout, Lora, LoraPair, LoraShape, PRODUCT_ROWS};
use crate::{
    Cpu, Isa,
    cpu::{
        gemm::{self, Extents, Layout, LowRank, Operand, Values},
        math::for_each_isa,
        parallel::for_each_part,
    },
    linear::{Linear, LinearShape, Weight, cpu::{add_bias, operand as linear_operand}},
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
        let layer = LinearShape { n_rows, n_in, n_out };
        // So few rows are not packed, nor worth sharing.
        let apart = gemm::is_few_rows(n_rows);
        if apart {
            self.linear(layer, x, weight, bias, store, y, workspace);
        }
        let mut access = self.access("product with pair");
        let place = access.place();
        let x = access.read(x);
        let a = Operand::f32(access.read(pair.a), Layout::Depth, n_in);
        let b = Operand::f32(access.read(pair.b), Layout::Depth, rank);
        let (xa, y) = (access.write(xa), access.write(y));
        let scratch = access.write(workspace.cast());
        access.count_product(n_rows, rank, n_in + n_out);
        let through_a = Extents { m: n_rows, n: rank, k: n_in };
        if apart || dropout.is_some() {
            let x = Operand { values: dropped(x, dropout), layout: Layout::Depth, stride: n_in };
            gemm::multiply(place, through_a, 1.0, x, a, None, Store::Overwrite, xa, scratch);
        }
        if apart {
            let xa = Operand::f32(xa, Layout::Depth, rank);
            let extents = Extents { m: n_rows, n: n_out, k: rank };
            gemm::multiply(place, extents, scale, xa, b, None, Store::Accumulate, y, scratch);
            return;
        }
        let weight = linear_operand(&mut access, weight, layer, Layout::Depth);
        let bias = bias.map(|bias| &access.read(bias)[..n_out]);
        let beside = LowRank {
            rank,
            down: dropout.is_none().then_some((a, 1.0)),
            through: xa,
            up: Some((b, scale)),
        };
        access.count_product(n_rows, n_out, n_in);
        let extents = Extents { m: n_rows, n: n_out, k: n_in };
        let x = Operand::f32(x, Layout::Depth, n_in);
        gemm::multiply(place, extents, 1.0, x, weight, Some(beside), store, y, scratch);
        add_bias(place.pool, bias, &mut y[..n_rows * n_out]);
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
        /// Columns of dBᵀ that a task turns.
        const COLUMNS: usize = 256;
        let LoraShape { n_rows, n_in, n_out, rank } = shape;
        let Adapter { pair, scale, dropout, xa } = adapter;
        let layer = LinearShape { n_rows, n_in, n_out };
        let mut access = self.access("product with pair, backward");
        let place = access.place();
        let parts = super::parts(shape, dropout.is_some());
        let dxa = access.write(workspace.slice(parts.dxa.clone()).cast::<f32>());
        let dbt = access.write(workspace.slice(parts.dbt.clone()).cast::<f32>());
        let product = access.write(workspace.slice(parts.product.clone()).cast::<f32>());
        let scratch = access.write(workspace.slice(parts.product.end..workspace.len()).cast());
        let x = dropped(access.read(x), dropout);
        let (xa, dy) = (access.read(xa), access.read(dy));
        let (a, b) = (access.read(pair.a), access.read(pair.b));
        let (da, db) = (access.write(gradient.a), access.write(gradient.b));
        let mut dx = dx.map(|dx| access.write(dx));
        let a = Operand::f32(a, Layout::Lanes, n_in);
        let b = Operand::f32(b, Layout::Lanes, rank);
        let dy_rows = Operand::f32(dy, Layout::Depth, n_out);
        access.count_product(n_rows, rank, 2 * n_out + n_in);

        if let Some(dx) = dx.as_deref_mut() {
            access.count_product(n_rows, n_in, n_out + rank);
            let weight = linear_operand(&mut access, weight, layer, Layout::Lanes);
            let beside = LowRank {
                rank,
                down: Some((b, scale)),
                through: &mut *dxa,
                // A mask falls between that product and the sum.
                up: dropout.is_none().then_some((a, 1.0)),
            };
            let extents = Extents { m: n_rows, n: n_in, k: n_out };
            gemm::multiply(place, extents, 1.0, dy_rows, weight, Some(beside), store, dx, scratch);
        } else {
            let extents = Extents { m: n_rows, n: rank, k: n_out };
            let store = Store::Overwrite;
            gemm::multiply(place, extents, scale, dy_rows, b, None, store, dxa, scratch);
        }
        let dxa = &*dxa;

        // As dBᵀ, like dA: the longer side of each is then what is packed once and passed over.
        let extents = Extents { m: rank, n: n_out, k: n_rows };
        let xa_columns = Operand::f32(xa, Layout::Lanes, rank);
        let dy_columns = Operand::f32(dy, Layout::Lanes, n_out);
        let store = Store::Overwrite;
        gemm::multiply(place, extents, scale, xa_columns, dy_columns, None, store, dbt, scratch);
        for_each_part(place.pool, &mut db[..n_out * rank], COLUMNS * rank, |task, db| {
            for (row, db) in db.chunks_exact_mut(rank).enumerate() {
                let column = dbt[task * COLUMNS + row..].iter().step_by(n_out);
                for (db, sum) in db.iter_mut().zip(column) {
                    *db += sum;
                }
            }
        });

        let extents = Extents { m: rank, n: n_in, k: n_rows };
        let dxa_columns = Operand::f32(dxa, Layout::Lanes, rank);
        let x_columns = Operand { values: x, layout: Layout::Lanes, stride: n_in };
        let store = Store::Accumulate;
        gemm::multiply(place, extents, 1.0, dxa_columns, x_columns, None, store, da, scratch);

        let (Some(dx), Some(dropout)) = (dx, dropout) else { return };
        for first in (0..n_rows).step_by(PRODUCT_ROWS) {
            let m = PRODUCT_ROWS.min(n_rows - first);
            let extents = Extents { m, n: n_in, k: rank };
            let dxa_rows = Operand::f32(&dxa[first * rank..], Layout::Depth, rank);
            let store = Store::Overwrite;
            gemm::multiply(place, extents, 1.0, dxa_rows, a, None, store, product, scratch);
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
