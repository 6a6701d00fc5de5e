//! What the measurements read.

use half::bf16;
use nibble_kernels::{Cpu, DeviceSlice, Element, FloatFormat, Floats, Memory, MemoryError};

/// Puts `values` into a block of their own.
pub fn place<T: Element>(device: &mut Cpu, values: &[T]) -> Result<DeviceSlice<T>, MemoryError> {
    let slice = DeviceSlice::new(device.allocate(size_of_val(values))?, 0, values.len());
    device.upload(values, slice);
    Ok(slice)
}

/// The same in a format.
#[allow(dead_code, reason = "not every measurement reads activations")]
pub fn place_in(
    device: &mut Cpu,
    values: &[f32],
    format: FloatFormat,
) -> Result<Floats, MemoryError> {
    match format {
        FloatFormat::F32 => Ok(place(device, values)?.into()),
        FloatFormat::Bf16 => {
            let rounded: Vec<_> = values.iter().copied().map(bf16::from_f32).collect();
            Ok(place(device, &rounded)?.into())
        }
    }
}

/// Numbers in [-1, 1) without a pattern; a linear congruence (Knuth).
pub fn values(n: usize) -> Vec<f32> {
    let mut state = 1_u64;
    (0..n)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}
