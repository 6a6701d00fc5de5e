//! The norm on a card: the chunks' sums come to the host, which adds them up.

use super::GradientNorm;
use crate::{
    Cuda,
    cuda::{Launch, Parameters, SCRATCH_BYTES},
    memory::DeviceSlice,
};

/// The most chunks.
const MAX_CHUNKS: usize = 1024;
const _: () = assert!(MAX_CHUNKS * size_of::<f64>() <= SCRATCH_BYTES);

impl GradientNorm for Cuda {
    /// Waits for all that was asked before. 0 after a failure.
    fn squared_norm(&mut self, gradient: DeviceSlice<f32>) -> f64 {
        let n = gradient.len();
        // The chunk depends on the length alone; no number is in two of a thread's fours.
        let chunk = n.div_ceil(MAX_CHUNKS).max(1 << 12).next_multiple_of(4);
        let n_chunks = n.div_ceil(chunk);
        let mut call = self.call("gradient norm");
        let parameters = Parameters::new()
            .address(call.read(gradient))
            .address(call.scratch())
            .u64(n as u64)
            .u64(chunk as u64);
        // SAFETY: the gradient has the length given, and the scratch memory room for every chunk.
        unsafe { call.launch("gradient_norm_chunks", Launch::linear(n_chunks, 256), parameters) };
        let mut sums = [0.0_f64; MAX_CHUNKS];
        let sums = &mut sums[..n_chunks];
        call.download_scratch(bytemuck::cast_slice_mut(sums));
        sums.iter().sum()
    }
}
