//! The norm on a card: the chunks' sums come to the host, which adds them up.

use super::GradientNorm;
use crate::{
    Cuda,
    cuda::{Launch, Parameters, SCRATCH_BYTES},
    memory::Floats,
};

/// The most chunks of all regions.
const MAX_CHUNKS: usize = SCRATCH_BYTES / size_of::<f64>();
/// The most chunks of a region.
const MOST_OF_ONE: usize = 1024;
const _: () = assert!(MOST_OF_ONE <= MAX_CHUNKS);

impl GradientNorm for Cuda {
    /// Waits for all that was asked before. 0 after a failure.
    fn squared_norm(&mut self, gradients: &[Floats]) -> f64 {
        // What depends on nothing but a region's length; no number is in two of a thread's fours.
        let chunk = |n: usize| n.div_ceil(MOST_OF_ONE).max(1 << 12).next_multiple_of(4);
        let n_chunks = |gradient: &Floats| gradient.len().div_ceil(chunk(gradient.len()));
        let mut norm = 0.0;
        let mut rest = gradients;
        while !rest.is_empty() {
            // As many regions as have room for their chunks; the host waits once for all of them.
            let mut total = 0;
            let fit = rest.iter().take_while(|gradient| {
                total += n_chunks(gradient);
                total <= MAX_CHUNKS
            });
            let (now, later) = rest.split_at(fit.count());
            norm += self.norm_of(now, chunk);
            rest = later;
        }
        norm
    }
}

impl Cuda {
    /// Of regions whose chunks fit the scratch memory.
    fn norm_of(&mut self, gradients: &[Floats], chunk: impl Fn(usize) -> usize) -> f64 {
        let mut call = self.call("gradient norm");
        let mut sums = [0.0_f64; MAX_CHUNKS];
        let mut first = 0;
        for gradient in gradients {
            let (gradient, n, kernel) = match *gradient {
                Floats::F32(values) => {
                    (call.read(values), values.len(), "gradient_norm_chunks_f32")
                }
                Floats::Bf16(values) => {
                    (call.read(values), values.len(), "gradient_norm_chunks_bf16")
                }
            };
            let n_chunks = n.div_ceil(chunk(n));
            let parameters = Parameters::new()
                .address(gradient)
                .address(call.scratch().plus(first * size_of::<f64>()))
                .u64(n as u64)
                .u64(chunk(n) as u64);
            // SAFETY: the gradient has the length given, and the scratch memory room for every chunk.
            unsafe { call.launch(kernel, Launch::linear(n_chunks, 256), parameters) };
            first += n_chunks;
        }
        let sums = &mut sums[..first];
        call.download_scratch(bytemuck::cast_slice_mut(sums));
        sums.iter().sum()
    }
}
