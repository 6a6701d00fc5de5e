//! The three products on the processor, each one call of the packed product with its operands
//! turned the right way.

use super::{Linear, LinearShape, Weight, few_rows_bytes};
use crate::{
    Compute, Cpu,
    cpu::{
        Access,
        gemm::{self, Extents, Layout, Nf4Values, Operand, Values},
        parallel::for_each_part,
        pool::Pool,
    },
    memory::{DeviceSlice, Floats, Gradient, Store, WeightGradient},
};

/// A weight `[n_out, n_in]` as an operand: along k in `layout`.
pub(crate) fn operand<'a>(
    access: &mut Access<'a>,
    weight: Weight,
    shape: LinearShape,
    layout: Layout,
) -> Operand<'a> {
    let values = match weight {
        Weight::F32(values) => Values::F32(access.read(values)),
        Weight::Bf16(values) => Values::Bf16(access.read(values)),
        Weight::Nf4(weight) => Values::Nf4(Nf4Values {
            n_elements: shape.n_out * shape.n_in,
            codes: access.read(weight.codes),
            absmax_codes: access.read(weight.absmax_codes),
            absmax_scales: access.read(weight.absmax_scales),
            absmax_offset: access.read(weight.absmax_offset)[0],
        }),
    };
    Operand { values, layout, stride: shape.n_in }
}

/// Adds a bias to every row.
fn add_bias(pool: &Pool, bias: Option<&[f32]>, y: &mut [f32]) {
    let Some(bias) = bias else { return };
    for_each_part(pool, y, bias.len(), |_, row| {
        for (y, bias) in row.iter_mut().zip(bias) {
            *y += bias;
        }
    });
}

impl Linear for Cpu {
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
        let mut access = self.access("product");
        let LinearShape { n_rows, n_in, n_out } = shape;
        let place = access.place();
        let x = access.read_floats(x);
        let weight = operand(&mut access, weight, shape, Layout::Depth);
        let bias = bias.map(|bias| &access.read(bias)[..n_out]);
        let y = access.write(y);
        let extents = Extents { m: n_rows, n: n_out, k: n_in };
        access.count_product(n_rows, n_out, n_in);
        let few = few_rows_bytes(shape);
        let scratch = access.write(workspace.first(few).cast::<f32>());
        if !gemm::few_rows(place, extents, x, weight, store, y, scratch) {
            let rest = workspace.slice(few..workspace.len()).cast::<u32>();
            let x = Operand { values: x, layout: Layout::Depth, stride: n_in };
            gemm::multiply(place, extents, 1.0, x, weight, store, y, access.write(rest));
        }
        add_bias(place.pool, bias, &mut y[..n_rows * n_out]);
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
        let mut access = self.access("input gradient");
        let LinearShape { n_rows, n_in, n_out } = shape;
        let place = access.place();
        let dy = Operand { values: access.read_floats(dy), layout: Layout::Depth, stride: n_out };
        let weight = operand(&mut access, weight, shape, Layout::Lanes);
        let extents = Extents { m: n_rows, n: n_in, k: n_out };
        access.count_product(n_rows, n_in, n_out);
        let (dx, workspace) = (access.write(dx), access.write(workspace.cast()));
        gemm::multiply(place, extents, 1.0, dy, weight, store, dx, workspace);
    }

    fn linear_weight_gradient(
        &mut self,
        shape: LinearShape,
        x: Floats,
        dy: Floats,
        dweight: WeightGradient,
        workspace: DeviceSlice<u8>,
    ) {
        let mut access = self.access("weight gradient");
        let LinearShape { n_rows, n_in, n_out } = shape;
        let place = access.place();
        let dy = Operand { values: access.read_floats(dy), layout: Layout::Lanes, stride: n_out };
        let x = Operand { values: access.read_floats(x), layout: Layout::Lanes, stride: n_in };
        let extents = Extents { m: n_out, n: n_in, k: n_rows };
        access.count_product(n_out, n_in, n_rows);
        let workspace = access.write(workspace.cast());
        match dweight {
            WeightGradient::F32(Gradient { values, store }) => {
                let dweight = access.write(values);
                gemm::multiply(place, extents, 1.0, dy, x, store, dweight, workspace);
            }
            WeightGradient::Bf16(values) => {
                gemm::multiply_rounded(place, extents, dy, x, access.write(values), workspace);
            }
        }
    }

    fn linear_bias_gradient(&mut self, n_rows: usize, n_out: usize, dy: Floats, dbias: Gradient) {
        /// Columns of a task: a cache line.
        const COLUMNS: usize = 16;
        let mut access = self.access("bias gradient");
        let dy = access.read_floats(dy.first(n_rows * n_out));
        let isa = access.place().isa;
        let Gradient { values, store } = dbias;
        let dbias = &mut access.write(values)[..n_out];
        for_each_part(access.pool(), dbias, COLUMNS, |task, sums| {
            if store == Store::Overwrite {
                sums.fill(0.0);
            }
            let mut run = [0.0; COLUMNS];
            for row in 0..n_rows {
                let run = &mut run[..sums.len()];
                let terms = dy.expand(isa, Compute::F32, row * n_out + task * COLUMNS, run);
                for (sum, term) in sums.iter_mut().zip(terms) {
                    *sum += term;
                }
            }
        });
    }
}
