//! The norm on the processor.

use super::GradientNorm;
use crate::{
    Cpu,
    cpu::{float::Float, math::for_each_isa, parallel::for_each_part},
    memory::{DeviceSlice, Floats},
};

/// Sums of a level; with the chunks of the next, enough for any buffer at little stack.
const N_SUMS: usize = 256;

impl GradientNorm for Cpu {
    fn squared_norm(&mut self, gradients: &[Floats]) -> f64 {
        let norms = gradients.iter().map(|gradient| match *gradient {
            Floats::F32(values) => self.squared_norm_of(values),
            Floats::Bf16(values) => self.squared_norm_of(values),
        });
        norms.sum()
    }
}

impl Cpu {
    /// Of one region.
    fn squared_norm_of<T: Float>(&mut self, gradient: DeviceSlice<T>) -> f64 {
        let isa = self.isa();
        let mut access = self.access("gradient norm");
        let gradient = access.read(gradient);
        // The chunk depends on the length alone; the sums are on the stack.
        let chunk = gradient.len().div_ceil(N_SUMS).max(1 << 12);
        let mut sums = [0.0_f64; N_SUMS];
        let n_chunks = gradient.len().div_ceil(chunk);
        for_each_part(access.pool(), &mut sums[..n_chunks], 1, |task, sum| {
            let part = &gradient[task * chunk..];
            squared(isa, &part[..chunk.min(part.len())], &mut sum[0]);
        });
        sums.iter().sum()
    }
}

for_each_isa! {
    /// `sum = Σ x²` in f64.
    fn squared<T: Float>(values: &[T], sum: &mut f64) {
        /// Running sums: more than the latency of an addition needs.
        const LANES: usize = 32;
        let mut lanes = [0.0_f64; LANES];
        let (chunks, rest) = values.as_chunks::<LANES>();
        for chunk in chunks {
            for (lane, &x) in lanes.iter_mut().zip(chunk) {
                let x = f64::from(x.widen());
                *lane += x * x;
            }
        }
        let rest: f64 = rest.iter().map(|&x| f64::from(x.widen()) * f64::from(x.widen())).sum();
        *sum = lanes.iter().sum::<f64>() + rest;
    }
}
