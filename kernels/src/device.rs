//! What a device can do, as far as it changes sizes or numbers, and why it did not.

use std::fmt;

#[cfg(target_arch = "x86_64")]
use crate::amx;

/// The precision of matrix products. Everything else is always f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Compute {
    /// Inputs rounded to bf16 (nearest even), products accumulated in f32.
    Bf16,
    /// Inputs and accumulation in f32.
    F32,
}

/// The widest vector instructions that a CPU path may use, in rising order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Isa {
    /// Plain Rust, which the compiler vectorises for the target's baseline (SSE2, NEON).
    Portable,
    /// AVX2 with FMA.
    Avx2,
    /// AVX-512 F, BW, DQ, VL.
    Avx512,
    /// AVX-512 with `vdpbf16ps`.
    Avx512Bf16,
    /// The same with AMX, registers that hold matrices of bf16.
    Amx,
}

impl Isa {
    /// Every path this processor can run, slowest first.
    pub fn available() -> Vec<Self> {
        let mut available = vec![Self::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                available.push(Self::Avx2);
                if is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                {
                    available.push(Self::Avx512);
                    if is_x86_feature_detected!("avx512bf16") {
                        available.push(Self::Avx512Bf16);
                        if amx::is_available() {
                            available.push(Self::Amx);
                        }
                    }
                }
            }
        }
        available
    }

    /// The fastest path this processor can run.
    pub fn best() -> Self {
        Self::available().last().copied().unwrap_or(Self::Portable)
    }

    /// The precision that is fastest on this path: bf16 only where the hardware multiplies it.
    pub fn natural_compute(self) -> Compute {
        if self >= Self::Avx512Bf16 { Compute::Bf16 } else { Compute::F32 }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Portable => "portable",
            Self::Avx2 => "AVX2",
            Self::Avx512 => "AVX-512",
            Self::Avx512Bf16 => "AVX-512 BF16",
            Self::Amx => "AMX",
        })
    }
}

/// Which implementation runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DeviceKind {
    /// The processor; `n_threads` sizes the workspaces, never the results.
    Cpu {
        /// The widest vector instructions to use.
        isa: Isa,
        /// Worker threads.
        n_threads: usize,
    },
    /// An NVIDIA card. Sizes and results depend on nothing else of it.
    Cuda {
        /// What its multiprocessors can do.
        capability: Capability,
    },
}

/// A card's compute capability, as NVIDIA numbers them: 8.6 is an RTX 30.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Capability {
    /// The generation.
    pub major: u32,
    /// Which of its chips.
    pub minor: u32,
}

impl Capability {
    /// The oldest that the kernels are made for: the first with bf16 products and asynchronous copies.
    pub const OLDEST: Self = Self { major: 8, minor: 0 };
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// All that a plan needs to know of a device: with it, every workspace's size can be computed
/// without the device being opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DeviceProfile {
    /// Which implementation runs.
    pub kind: DeviceKind,
    /// The precision of matrix products.
    pub compute: Compute,
}

impl DeviceProfile {
    /// This machine's processor on its fastest path, one thread a logical core.
    pub fn native_cpu() -> Self {
        let isa = Isa::best();
        let n_threads = std::thread::available_parallelism().map_or(1, |n| n.get());
        Self { kind: DeviceKind::Cpu { isa, n_threads }, compute: isa.natural_compute() }
    }

    /// A card of this capability, in the precision it is fastest in.
    pub fn cuda(capability: Capability) -> Self {
        Self { kind: DeviceKind::Cuda { capability }, compute: Compute::Bf16 }
    }

    /// Whether operations run on a card.
    pub fn is_cuda(&self) -> bool {
        matches!(self.kind, DeviceKind::Cuda { .. })
    }

    /// Threads for what the processor does: all of its operations, or what is beside a card's.
    pub fn n_threads(&self) -> usize {
        match self.kind {
            DeviceKind::Cpu { n_threads, .. } => n_threads,
            DeviceKind::Cuda { .. } => std::thread::available_parallelism().map_or(1, |n| n.get()),
        }
    }

    /// The same device with another precision.
    pub fn with_compute(self, compute: Compute) -> Self {
        Self { compute, ..self }
    }
}

/// Why a card did not do what it was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DeviceError {
    /// There is not that much memory left.
    #[error(
        "the graphics card has {} MiB free and {} MiB were asked for, {} MiB too few; close programs that use the card (browsers, games, other trainings), or set a smaller budget",
        free_bytes >> 20,
        needed_bytes.div_ceil(1 << 20),
        needed_bytes.saturating_sub(*free_bytes).div_ceil(1 << 20)
    )]
    OutOfMemory {
        /// Bytes that were asked for.
        needed_bytes: usize,
        /// Bytes that were free.
        free_bytes: usize,
    },
    /// The driver reports a failure; nothing more can be done with the card in this process.
    #[error(
        "the graphics card failed ({call}: {reason}); the last checkpoint is whole: start Nibble again and resume the run from it, and restart the computer if the card fails again"
    )]
    Failed {
        /// What was asked of the driver.
        call: &'static str,
        /// Its answer.
        reason: String,
    },
}
