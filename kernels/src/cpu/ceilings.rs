//! What the processor could do at most, measured now: to hold operations against.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use super::{parallel::for_each_part, pool::Pool};
use crate::device::{Compute, DeviceKind, DeviceProfile, Isa};

/// Time given to each measurement.
const MEASUREMENT: Duration = Duration::from_millis(100);

/// Multiplications and additions a second, on registers alone, on all threads of `profile` at once,
/// with the instructions and in the precision that it names. The fastest of several runs, as
/// whatever else the machine does can only slow one down. 0 when the threads cannot be started.
pub fn product_flops_per_s(profile: DeviceProfile) -> f64 {
    const STEPS: usize = 100_000;
    let DeviceKind::Cpu { isa, n_threads } = profile.kind else { return 0.0 };
    let isa = isa.min(Isa::best());
    let Ok(pool) = Pool::new(n_threads) else { return 0.0 };
    let secs =
        fastest(MEASUREMENT, || pool.run(n_threads, |_, _| registers(isa, profile.compute, STEPS)));
    let per_step = match (isa, profile.compute) {
        (Isa::Amx, Compute::Bf16) => N_TILES * 16 * 16 * 64,
        (Isa::Avx512Bf16, Compute::Bf16) => N_SUMS * 64,
        (Isa::Avx512 | Isa::Avx512Bf16 | Isa::Amx, _) => N_SUMS * 32,
        (Isa::Avx2, _) => N_SUMS * 16,
        (Isa::Portable, _) => N_SUMS * 8,
    };
    (n_threads * STEPS * per_step) as f64 / secs
}

/// Bytes a second that `n_threads` threads move from one place in memory to another, too large for
/// most caches; read and written bytes both count. 0 when the threads cannot be started.
pub fn copy_bytes_per_s(n_threads: usize) -> f64 {
    const LEN: usize = 1 << 26;
    let Ok(pool) = Pool::new(n_threads) else { return 0.0 };
    let (source, mut target) = (vec![1_u8; LEN], vec![0_u8; LEN]);
    let part = 1 << 20;
    let secs = fastest(MEASUREMENT, || {
        for_each_part(&pool, &mut target[..], part, |task, target| {
            target.copy_from_slice(&source[task * part..][..target.len()]);
        });
        black_box(&target);
    });
    2.0 * LEN as f64 / secs
}

/// Seconds of the fastest of several runs of work, as many as `time` allows, after one that warms up.
pub fn fastest(time: Duration, mut run: impl FnMut()) -> f64 {
    run();
    let begin = Instant::now();
    let mut fastest = f64::INFINITY;
    while begin.elapsed() < time {
        let start = Instant::now();
        run();
        fastest = fastest.min(start.elapsed().as_secs_f64());
    }
    fastest
}

/// Independent sums: more than the instruction's latency times its rate, fewer than registers.
const N_SUMS: usize = 12;

/// Independent sums of matrices, of which a register each holds one.
const N_TILES: usize = 4;

/// `steps` rounds of [`N_SUMS`] multiply-and-adds of whole vectors, or of [`N_TILES`] of matrices.
fn registers(isa: Isa, compute: Compute, steps: usize) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::*;

        use crate::amx::Tiles;

        /// Pairs of bf16.
        #[target_feature(enable = "avx512f,avx512bf16")]
        fn avx512_bf16(steps: usize) {
            let mut sums = black_box([_mm512_setzero_ps(); N_SUMS]);
            let one = black_box(_mm512_set1_epi32(0x3f80_3f80));
            // SAFETY: any bits are bf16 numbers.
            let one: __m512bh = unsafe { std::mem::transmute(one) };
            for _ in 0..steps {
                for sum in &mut sums {
                    *sum = _mm512_dpbf16_ps(*sum, one, one);
                }
            }
            black_box(sums);
        }
        #[target_feature(enable = "avx512f")]
        fn avx512(steps: usize) {
            let mut sums = black_box([_mm512_setzero_ps(); N_SUMS]);
            let one = black_box(_mm512_set1_ps(1.0));
            for _ in 0..steps {
                for sum in &mut sums {
                    *sum = _mm512_fmadd_ps(one, one, *sum);
                }
            }
            black_box(sums);
        }
        #[target_feature(enable = "avx2,fma")]
        fn avx2(steps: usize) {
            let mut sums = black_box([_mm256_setzero_ps(); N_SUMS]);
            let one = black_box(_mm256_set1_ps(1.0));
            for _ in 0..steps {
                for sum in &mut sums {
                    *sum = _mm256_fmadd_ps(one, one, *sum);
                }
            }
            black_box(sums);
        }
        /// Products of whole registers.
        fn amx(steps: usize) {
            // SAFETY: the caller found AMX on this processor, and the registers are configured.
            unsafe {
                let _tiles = Tiles::configure();
                std::arch::asm!(
                    "2:",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    "tdpbf16ps tmm3, tmm5, tmm7",
                    "dec {steps}",
                    "jnz 2b",
                    steps = inout(reg) steps => _,
                    options(nomem, nostack),
                );
            }
        }
        match (isa, compute) {
            (Isa::Amx, Compute::Bf16) => return amx(steps),
            // SAFETY: `Isa::best` found the instructions on this processor.
            (Isa::Avx512Bf16, Compute::Bf16) => return unsafe { avx512_bf16(steps) },
            // SAFETY: as above.
            (Isa::Avx512 | Isa::Avx512Bf16 | Isa::Amx, _) => return unsafe { avx512(steps) },
            // SAFETY: as above.
            (Isa::Avx2, _) => return unsafe { avx2(steps) },
            (Isa::Portable, _) => {}
        }
    }
    let _ = (isa, compute);
    let mut sums = black_box([[0.0_f32; 4]; N_SUMS]);
    let one = black_box([1.0_f32; 4]);
    for _ in 0..steps {
        for sum in &mut sums {
            for (sum, one) in sum.iter_mut().zip(one) {
                *sum += one * one;
            }
        }
    }
    black_box(sums);
}
