//! The norm on a card: the chunks' sums come to the host, which adds them up.

use super::GradientNorm;
use crate::{
    Cuda,
    cuda::{Launch, Parameters, SCRATCH_BYTES},
    memory::Floats,
};

/// The most chunks of regions that are measured together.
const MAX_CHUNKS: usize = SCRATCH_BYTES / size_of::<f64>();
/// As many of them are shared by all regions; the others are for what a region has beside whole ones.
const SHARED_CHUNKS: usize = MAX_CHUNKS / 2;

impl GradientNorm for Cuda {
    /// Waits for all that was asked before, once for as many regions as a model has. 0 after a failure.
    fn squared_norm(&mut self, gradients: &[Floats]) -> f64 {
        gradients.chunks(MAX_CHUNKS - SHARED_CHUNKS).map(|some| self.norm_of(some)).sum()
    }
}

impl Cuda {
    /// Of regions whose chunks fit the scratch memory.
    fn norm_of(&mut self, gradients: &[Floats]) -> f64 {
        let n: usize = gradients.iter().map(Floats::len).sum();
        // What depends on nothing but the lengths; no number is in two of a thread's fours.
        let chunk = n.div_ceil(SHARED_CHUNKS).max(1 << 12).next_multiple_of(4);
        let mut first = 0;
        for gradient in gradients {
            // A call each, as one has room for the arguments of an operation and not of a model.
            let mut call = self.call("gradient norm");
            let n = gradient.len();
            let (values, kernel) = match *gradient {
                Floats::F32(values) => (call.read(values), "gradient_norm_chunks_f32"),
                Floats::Bf16(values) => (call.read(values), "gradient_norm_chunks_bf16"),
            };
            let n_chunks = n.div_ceil(chunk);
            let parameters = Parameters::new()
                .address(values)
                .address(call.scratch().plus(first * size_of::<f64>()))
                .u64(n as u64)
                .u64(chunk as u64);
            // SAFETY: the gradient has the length given, and the scratch memory room for every chunk.
            unsafe { call.launch(kernel, Launch::linear(n_chunks, 256), parameters) };
            first += n_chunks;
        }
        let mut sums = [0.0_f64; MAX_CHUNKS];
        let sums = &mut sums[..first];
        self.call("gradient norm").download_scratch(bytemuck::cast_slice_mut(sums));
        sums.iter().sum()
    }
}
