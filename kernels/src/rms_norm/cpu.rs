//! Normalisation on the processor: rows in parallel, the weight's gradient in partial sums.

use super::{RmsNorm, RmsNormShape, partial_rows};
use crate::{
    Cpu, Isa,
    cpu::{
        float::Float,
        math::{dot, dot_of_three, for_each_isa},
        parallel::{Shared, for_each_part, for_each_task, rows_per_task},
        pool::Pool,
    },
    memory::{DeviceSlice, Floats, Gradient, Store},
};

for_each_isa! {
    fn forward_rows<I: Float, O: Float>(x: &[I], weight: &[f32], epsilon: f32, y: &mut [O]) {
        let width = weight.len();
        for (x, y) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)) {
            let rstd = inverse_deviation(x, epsilon);
            for i in 0..width {
                y[i] = O::nearest(x[i].widen() * rstd * weight[i]);
            }
        }
    }
}

for_each_isa! {
    /// `dx` is added to where `accumulate`, else written over `dy`, which it is then the same as.
    fn backward_rows<T: Float>(
        x: &[T],
        weight: &[f32],
        epsilon: f32,
        dy: Option<&[f32]>,
        dx: &mut [f32],
        dweight: Option<&mut [f32]>,
    ) {
        let width = weight.len();
        let mut dweight = dweight;
        for (row, x) in x.chunks_exact(width).enumerate() {
            let at = row * width..(row + 1) * width;
            let dx = &mut dx[at.clone()];
            let rstd = inverse_deviation(x, epsilon);
            let projection = match dy {
                Some(dy) => dot_of_three(weight, &dy[at.clone()], x),
                None => dot_of_three(weight, dx, x),
            };
            let along = projection * rstd * rstd / width as f32;
            if let Some(dweight) = dweight.as_deref_mut() {
                let dy: &[f32] = match dy {
                    Some(dy) => &dy[at.clone()],
                    None => dx,
                };
                for i in 0..width {
                    dweight[i] += dy[i] * x[i].widen() * rstd;
                }
            }
            match dy {
                Some(dy) => {
                    let dy = &dy[at];
                    for i in 0..width {
                        dx[i] += rstd * (weight[i] * dy[i] - x[i].widen() * along);
                    }
                }
                None => {
                    for i in 0..width {
                        dx[i] = rstd * (weight[i] * dx[i] - x[i].widen() * along);
                    }
                }
            }
        }
    }
}

#[inline(always)]
fn inverse_deviation<T: Float>(x: &[T], epsilon: f32) -> f32 {
    1.0 / (dot(x, x) / x.len() as f32 + epsilon).sqrt()
}

impl Cpu {
    fn normalize<I: Float, O: Float>(
        &mut self,
        shape: RmsNormShape,
        x: DeviceSlice<I>,
        weight: DeviceSlice<f32>,
        y: DeviceSlice<O>,
    ) {
        let isa = self.isa();
        let mut access = self.access("norm");
        let len = shape.n_rows * shape.width;
        let x = &access.read(x)[..len];
        let weight = &access.read(weight)[..shape.width];
        let part = rows_per_task(shape.width) * shape.width;
        let y = &mut access.write(y)[..len];
        for_each_part(access.pool(), y, part, |task, y| {
            let x = &x[task * part..task * part + y.len()];
            forward_rows(isa, x, weight, shape.epsilon, y);
        });
    }

    /// Without `dy`, that is what stands in the place of `dx`.
    fn normalize_backward<T: Float>(
        &mut self,
        shape: RmsNormShape,
        x: DeviceSlice<T>,
        weight: DeviceSlice<f32>,
        (dy, dx): (Option<DeviceSlice<f32>>, DeviceSlice<f32>),
        dweight: Option<Gradient>,
        workspace: DeviceSlice<u8>,
    ) {
        let isa = self.isa();
        let mut access = self.access("norm backward");
        let len = shape.n_rows * shape.width;
        let x = &access.read(x)[..len];
        let weight = &access.read(weight)[..shape.width];
        let dy = dy.map(|dy| &access.read(dy)[..len]);
        let dx = &mut access.write(dx)[..len];
        let sums = dweight.map(|Gradient { values, store }| {
            let partials = access.write(workspace.first(sums_bytes(shape)).cast());
            (&mut access.write(values)[..shape.width], store, partials)
        });
        backward(isa, access.pool(), shape, (x, weight), dy, dx, sums);
    }
}

impl RmsNorm for Cpu {
    fn rms_norm(&mut self, shape: RmsNormShape, x: Floats, weight: DeviceSlice<f32>, y: Floats) {
        match (x, y) {
            (Floats::F32(x), Floats::F32(y)) => self.normalize(shape, x, weight, y),
            (Floats::F32(x), Floats::Bf16(y)) => self.normalize(shape, x, weight, y),
            (Floats::Bf16(x), Floats::F32(y)) => self.normalize(shape, x, weight, y),
            (Floats::Bf16(x), Floats::Bf16(y)) => self.normalize(shape, x, weight, y),
        }
    }

    fn rms_norm_backward(
        &mut self,
        shape: RmsNormShape,
        x: Floats,
        weight: DeviceSlice<f32>,
        dy: DeviceSlice<f32>,
        dx: DeviceSlice<f32>,
        dweight: Option<Gradient>,
        workspace: DeviceSlice<u8>,
    ) {
        let dy = (Some(dy), dx);
        match x {
            Floats::F32(x) => self.normalize_backward(shape, x, weight, dy, dweight, workspace),
            Floats::Bf16(x) => self.normalize_backward(shape, x, weight, dy, dweight, workspace),
        }
    }

    fn rms_norm_backward_in_place(
        &mut self,
        shape: RmsNormShape,
        x: Floats,
        weight: DeviceSlice<f32>,
        dy_dx: DeviceSlice<f32>,
        dweight: Option<Gradient>,
        workspace: DeviceSlice<u8>,
    ) {
        let dy = (None, dy_dx);
        match x {
            Floats::F32(x) => self.normalize_backward(shape, x, weight, dy, dweight, workspace),
            Floats::Bf16(x) => self.normalize_backward(shape, x, weight, dy, dweight, workspace),
        }
    }
}

fn sums_bytes(shape: RmsNormShape) -> usize {
    super::n_partials(shape) * shape.width * size_of::<f32>()
}

fn backward<T: Float>(
    isa: Isa,
    pool: &Pool,
    shape: RmsNormShape,
    (x, weight): (&[T], &[f32]),
    dy: Option<&[f32]>,
    dx: &mut [f32],
    sums: Option<(&mut [f32], Store, &mut [f32])>,
) {
    let (width, epsilon) = (shape.width, shape.epsilon);
    match sums {
        None => {
            let part = rows_per_task(width) * width;
            for_each_part(pool, dx, part, |task, dx| {
                let at = task * part..task * part + dx.len();
                let dy = dy.map(|dy| &dy[at.clone()]);
                backward_rows(isa, &x[at], weight, epsilon, dy, dx, None);
            });
        }
        Some((dweight, store, partials)) => {
            let part = partial_rows(width) * width;
            let n = dx.len();
            let (shared_dx, shared_partials) = (Shared::new(dx), Shared::new(partials));
            for_each_task(pool, n.div_ceil(part), |task| {
                let at = task * part..((task + 1) * part).min(n);
                // SAFETY: each task has its own rows, and its own partial sum.
                let (dx, partial) = unsafe {
                    (
                        shared_dx.slice(at.start, at.len()),
                        shared_partials.slice(task * width, width),
                    )
                };
                let dy = dy.map(|dy| &dy[at.clone()]);
                partial.fill(0.0);
                backward_rows(isa, &x[at], weight, epsilon, dy, dx, Some(partial));
            });
            if store == Store::Overwrite {
                dweight.fill(0.0);
            }
            for partial in partials.chunks_exact(width) {
                for (sum, term) in dweight.iter_mut().zip(partial) {
                    *sum += term;
                }
            }
        }
    }
}
