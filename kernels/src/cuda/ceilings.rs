//! What the card could do at most, measured now: to hold operations against.
//!
//! Timed from the host, whose share of each run is some microseconds of milliseconds.

use std::time::Duration;

use super::{Address, Cuda, Launch, Moved, Parameters};
use crate::{cpu::ceilings::fastest, device::DeviceError};

/// Time given to each measurement.
const MEASUREMENT: Duration = Duration::from_millis(100);

/// Threads of a block in `ceilings.cu`.
const N_THREADS: u32 = 256;
const N_WARPS: usize = N_THREADS as usize / 32;
/// Sums of a warp there.
const N_TILES: usize = 8;
/// Multiplications and additions of one product of tiles of 16 × 16 and 16 × 8.
const FLOPS_OF_TILES: f64 = 2.0 * 16.0 * 16.0 * 8.0;
/// Bytes that a block copies there.
const COPIED_BY_BLOCK: usize = 4 * 16 * N_THREADS as usize;

impl Cuda {
    /// Multiplications and additions a second in products of bf16 numbers summed in f32, with the
    /// instruction that the kernels use, on registers alone or, on 9.0, on shared memory. The fastest of
    /// several runs. 0 when the card fails or has no memory left.
    pub fn product_flops_per_s(&mut self) -> f64 {
        // Many times as many blocks as a card runs at once, so that the last ones weigh little, and
        // some 20 ms of the fastest cards of 2025.
        self.products_per_s(1 << 12, 1 << 12)
    }

    /// With `n_steps` a multiple of four.
    fn products_per_s(&mut self, n_blocks: usize, n_steps: usize) -> f64 {
        let n_warps = n_blocks * N_WARPS;
        self.with_memory(n_warps * size_of::<f32>(), |cuda, totals| {
            let parameters = Parameters::new().address(totals).extent(n_steps);
            // SAFETY: there is room for a total of every warp.
            let secs = unsafe { cuda.secs("ceilings_products", n_blocks, parameters) }?;
            Some((n_warps * n_steps * N_TILES) as f64 * FLOPS_OF_TILES / secs)
        })
        .unwrap_or(0.0)
    }

    /// Bytes a second that a kernel moves from one place in the card's memory to another, too large
    /// for its cache if there is as much memory left; read and written bytes both count. 0 when the
    /// card fails or has no memory left.
    pub fn copy_bytes_per_s(&mut self) -> f64 {
        let sizes = [256, 128, 64, 32].map(|mebibytes| mebibytes << 20);
        sizes.into_iter().find_map(|n_bytes| self.copied_bytes_per_s(n_bytes)).unwrap_or(0.0)
    }

    /// With copies of `n_bytes`, a multiple of [`COPIED_BY_BLOCK`].
    fn copied_bytes_per_s(&mut self, n_bytes: usize) -> Option<f64> {
        debug_assert!(n_bytes.is_multiple_of(COPIED_BY_BLOCK), "{n_bytes} bytes");
        self.with_memory(2 * n_bytes, |cuda, source| {
            let parameters = Parameters::new().address(source).address(source.plus(n_bytes));
            // SAFETY: either half is what the blocks copy.
            let secs =
                unsafe { cuda.secs("ceilings_copy", n_bytes / COPIED_BY_BLOCK, parameters) }?;
            Some(2.0 * n_bytes as f64 / secs)
        })
    }

    /// Bytes a second that move from the host's pinned memory to the card, and from the card to it, as pages
    /// do. 0 when the card fails or there is no memory left.
    pub fn host_copy_bytes_per_s(&mut self) -> [f64; 2] {
        // Some milliseconds, beside which the start of a transfer does not count.
        self.host_copied_bytes_per_s(64 << 20).unwrap_or_default()
    }

    fn host_copied_bytes_per_s(&mut self, n_bytes: usize) -> Option<[f64; 2]> {
        let host = self.driver.host_allocate(n_bytes).ok()?;
        let found = self.take(n_bytes).ok().and_then(|address| {
            let driver = &*self.driver;
            let copied = |begin: &dyn Fn() -> Result<Moved, DeviceError>| {
                let secs = fastest(MEASUREMENT, || {
                    self.failure.keep(|| begin().and_then(|_| driver.wait_for_transfers()));
                });
                self.failure.get().is_none().then_some(n_bytes as f64 / secs)
            };
            // SAFETY: either place is as long, and each transfer is waited for before the next.
            let load = || unsafe { driver.begin_load(host.start, address, n_bytes, None) };
            // SAFETY: as above.
            let save = || unsafe { driver.begin_save(address, host.start, n_bytes, None) };
            let rates = copied(&load).zip(copied(&save));
            self.driver.free(address);
            rates.map(|(load, save)| [load, save])
        });
        self.driver.host_free(host);
        found
    }

    /// What `measure` finds with `n_bytes` of cleared memory, which are given back; none when there
    /// are not as many.
    fn with_memory(
        &mut self,
        n_bytes: usize,
        measure: impl FnOnce(&Self, Address) -> Option<f64>,
    ) -> Option<f64> {
        let address = self.take(n_bytes).ok()?;
        let found = measure(self, address);
        self.driver.free(address);
        found
    }

    /// Seconds of the fastest of several runs of `kernel`; none when the card fails.
    ///
    /// # Safety
    /// As [`super::Driver::launch`].
    unsafe fn secs(&self, kernel: &str, n_blocks: usize, parameters: Parameters) -> Option<f64> {
        let &function = self.functions.get(kernel)?;
        let launch = Launch::linear(n_blocks, N_THREADS);
        let secs = fastest(MEASUREMENT, || {
            self.failure.keep(|| {
                // SAFETY: as the caller promises.
                unsafe { self.driver.launch(function, launch, &parameters) }?;
                self.driver.synchronize()
            });
        });
        self.failure.get().is_none().then_some(secs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Compute, cuda::SIMULATED};

    #[test]
    fn all_measurements_run_and_leave_no_memory() {
        for capability in SIMULATED {
            let mut cuda = Cuda::simulated_as(capability, Compute::Bf16).unwrap();
            assert!(cuda.products_per_s(2, 8) > 0.0);
            crate::Memory::check(&cuda).unwrap();
        }
        let mut cuda = Cuda::simulated(Compute::Bf16).unwrap();
        assert!(cuda.copied_bytes_per_s(3 * COPIED_BY_BLOCK).is_some_and(|rate| rate > 0.0));
        let rates = cuda.host_copied_bytes_per_s(3 * COPIED_BY_BLOCK).unwrap();
        assert!(rates.iter().all(|rate| *rate > 0.0), "{rates:?}");
        assert_eq!(crate::Memory::allocated_bytes(&cuda), 0);
        crate::Memory::check(&cuda).unwrap();
    }

    #[test]
    fn every_byte_is_copied() {
        let cuda = &mut Cuda::simulated(Compute::Bf16).unwrap();
        let n_bytes = 2 * COPIED_BY_BLOCK;
        let bytes: Vec<u8> = (0..n_bytes).map(|i| (i / 16 % 251) as u8).collect();
        let mut copied = vec![0; n_bytes];
        cuda.with_memory(2 * n_bytes, |cuda, source| {
            let target = source.plus(n_bytes);
            let parameters = Parameters::new().address(source).address(target);
            // SAFETY: either half is what the blocks copy, and as long as what is moved.
            unsafe {
                cuda.driver.upload(&bytes, source).unwrap();
                cuda.secs("ceilings_copy", 2, parameters)?;
                cuda.driver.download(target, &mut copied).unwrap();
            }
            None
        });
        assert!(copied == bytes);
    }
}
