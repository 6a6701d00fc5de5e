//! How fast AdamW updates a large buffer, with moments of either form, beside a plain copy.
//!
//! ```text
//! cargo run --release -p nibble-kernels --example adamw_rate [-- n_threads]
//! ```
//! The fastest of several runs, as whatever else the machine does can only slow one down. Bytes are
//! those the update must read and write: each of gradient, parameters and moments once.

mod inputs;

use std::time::Duration;

use half::bf16;
use inputs::{place, values};
use nibble_kernels::{
    Cpu, DeviceKind, DeviceProfile, Floats, Isa, Memory, MemoryError,
    adamw::{AdamW, AdamWStep, Moments, QuantizedMoment, n_moment_blocks},
    cpu::ceilings,
};

/// Time given to each measurement.
const MEASUREMENT: Duration = Duration::from_secs(2);

/// Elements: far more than caches hold.
const N: usize = 1 << 24;

const STEP: AdamWStep = AdamWStep {
    learning_rate: 1e-4,
    beta1: 0.9,
    beta2: 0.999,
    epsilon: 1e-8,
    weight_decay: 0.01,
    step: 10,
    gradient_scale: 0.5,
    rounding_seed: 1,
    first_element: 0,
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let n_threads = match std::env::args().nth(1) {
        Some(n_threads) => n_threads.parse()?,
        None => std::thread::available_parallelism()?.get(),
    };
    println!("{N} elements, {n_threads} threads; million elements/s and GB/s");
    println!(
        "{:<14} {:<12} {:<12} {:>12} {:>8}",
        "", "parameters", "moments", "elements/s", "GB/s"
    );
    for isa in Isa::available() {
        measure(DeviceProfile {
            kind: DeviceKind::Cpu { isa, n_threads },
            compute: isa.natural_compute(),
        })?;
    }
    Ok(())
}

/// Prints the rows of one path.
fn measure(profile: DeviceProfile) -> Result<(), Box<dyn std::error::Error>> {
    let mut device = Cpu::new(profile)?;
    let isa = device.isa();
    let values = values(N);
    let g = place(&mut device, &values)?;
    let w = place(&mut device, &values)?;
    let rounded: Vec<_> = values.iter().map(|&value| bf16::from_f32(value)).collect();
    let w_bf16 = place(&mut device, &rounded)?;
    let zeros = vec![0.0; N];
    let (first, second) = (place(&mut device, &zeros)?, place(&mut device, &zeros)?);
    let mut quantized = || -> Result<_, MemoryError> {
        let codes = place(&mut device, &vec![0; N])?;
        let absmax = place(&mut device, &vec![0.0; n_moment_blocks(N)])?;
        Ok(QuantizedMoment { codes, absmax })
    };
    let (first8, second8) = (quantized()?, quantized()?);
    let parameters = [("f32", 8.0, Floats::F32(w)), ("bf16", 4.0, Floats::Bf16(w_bf16))];
    let moments = [
        ("f32", 16.0, Moments::F32 { first, second }),
        ("8-bit", 4.0 + 4.0 / 64.0, Moments::Blockwise8 { first: first8, second: second8 }),
    ];
    for (parameter_name, parameter_bytes, parameters) in parameters {
        for (moment_name, moment_bytes, moments) in moments {
            let secs = ceilings::fastest(MEASUREMENT, || {
                device.adamw(STEP, parameters, g.into(), moments)
            });
            let rate = N as f64 / secs;
            let bytes = rate * (4.0 + parameter_bytes + moment_bytes);
            println!(
                "{:<14} {parameter_name:<12} {moment_name:<12} {:>12.0} {:>8.1}",
                isa.to_string(),
                rate / 1e6,
                bytes / 1e9
            );
        }
    }
    let secs = ceilings::fastest(MEASUREMENT, || device.copy(g, w));
    println!("{:<14} copy on one thread {:>27.1}", isa.to_string(), 8.0 * N as f64 / secs / 1e9);
    Ok(())
}
