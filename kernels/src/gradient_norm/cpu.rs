//! The norm on the processor.

use super::GradientNorm;
use crate::{Cpu, cpu::parallel::for_each_part, memory::DeviceSlice};

/// Sums of a level; with the chunks of the next, enough for any buffer at little stack.
const N_SUMS: usize = 256;

impl GradientNorm for Cpu {
    fn squared_norm(&mut self, gradient: DeviceSlice<f32>) -> f64 {
        let mut access = self.access("gradient norm");
        let gradient = access.read(gradient);
        // The chunk depends on the length alone; the sums are on the stack.
        let chunk = gradient.len().div_ceil(N_SUMS).max(1 << 12);
        let mut sums = [0.0_f64; N_SUMS];
        let n_chunks = gradient.len().div_ceil(chunk);
        for_each_part(access.pool(), &mut sums[..n_chunks], 1, |task, sum| {
            let part = &gradient[task * chunk..];
            sum[0] = squared(&part[..chunk.min(part.len())]);
        });
        sums.iter().sum()
    }
}

/// Σ x² in f64, in eight running sums.
fn squared(values: &[f32]) -> f64 {
    let mut lanes = [0.0_f64; 8];
    let chunks = values.chunks_exact(8);
    let rest: f64 = chunks.remainder().iter().map(|&x| f64::from(x) * f64::from(x)).sum();
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane += f64::from(x) * f64::from(x);
        }
    }
    lanes.iter().sum::<f64>() + rest
}
