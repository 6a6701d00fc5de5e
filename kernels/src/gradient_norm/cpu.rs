//! The norm on the processor.

use super::GradientNorm;
use crate::{
    Cpu,
    cpu::{math::for_each_isa, parallel::for_each_part},
    memory::DeviceSlice,
};

/// Sums of a level; with the chunks of the next, enough for any buffer at little stack.
const N_SUMS: usize = 256;

impl GradientNorm for Cpu {
    fn squared_norm(&mut self, gradient: DeviceSlice<f32>) -> f64 {
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
    fn squared(values: &[f32], sum: &mut f64) {
        /// Running sums: more than the latency of an addition needs.
        const LANES: usize = 32;
        let mut lanes = [0.0_f64; LANES];
        let (chunks, rest) = values.as_chunks::<LANES>();
        for chunk in chunks {
            for (lane, &x) in lanes.iter_mut().zip(chunk) {
                *lane += f64::from(x) * f64::from(x);
            }
        }
        let rest: f64 = rest.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
        *sum = lanes.iter().sum::<f64>() + rest;
    }
}
