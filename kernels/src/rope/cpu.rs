//! Rotation on the processor: rows in parallel.

use super::{Rope, Rotation};
use crate::{
    Cpu,
    cpu::{
        float::Float,
        math::for_each_isa,
        parallel::{for_each_part, rows_per_task},
    },
    memory::{DeviceSlice, Floats},
};

/// Pairs that are rotated together: half a head is often no more, too few for what the compiler makes of a loop.
const LANES: usize = 16;

for_each_isa! {
    fn rotate_row<T: Float>(heads: &mut [T], cos: &[f32], sin: &[f32], sign: f32) {
        let half = cos.len();
        let (cos, cos_rest) = cos.as_chunks::<LANES>();
        let (sin, sin_rest) = sin.as_chunks::<LANES>();
        for head in heads.chunks_exact_mut(2 * half) {
            let (low, high) = head.split_at_mut(half);
            let (low, low_rest) = low.as_chunks_mut::<LANES>();
            let (high, high_rest) = high.as_chunks_mut::<LANES>();
            let pairs = low.iter_mut().zip(high).zip(cos.iter().zip(sin));
            for ((low, high), (cos, sin)) in pairs {
                rotate_lanes(low, high, cos, sin, sign);
            }
            rotate_lanes(low_rest, high_rest, cos_rest, sin_rest, sign);
        }
    }
}

#[inline(always)]
fn rotate_lanes<T: Float>(low: &mut [T], high: &mut [T], cos: &[f32], sin: &[f32], sign: f32) {
    let n = low.len();
    let (high, cos, sin) = (&mut high[..n], &cos[..n], &sin[..n]);
    for i in 0..n {
        let (a, b) = (low[i].widen(), high[i].widen());
        let (cos, sin) = (cos[i], sin[i] * sign);
        low[i] = T::nearest(a * cos - b * sin);
        high[i] = T::nearest(b * cos + a * sin);
    }
}

impl Cpu {
    fn rotate<T: Float>(
        &mut self,
        (n_heads, head_size): (usize, usize),
        rotation: Rotation,
        positions: DeviceSlice<u32>,
        [cos, sin]: [DeviceSlice<f32>; 2],
        x: DeviceSlice<T>,
    ) {
        let isa = self.isa();
        let (width, half) = (n_heads * head_size, head_size / 2);
        let mut access = self.access("rotation");
        let positions = access.read(positions);
        let n_used = positions.len() * half;
        let (cos, sin) = (access.read_some(cos, n_used), access.read_some(sin, n_used));
        let x = &mut access.write(x)[..positions.len() * width];
        let sign = match rotation {
            Rotation::Forward => 1.0,
            Rotation::Backward => -1.0,
        };
        let n_rows = rows_per_task(width);
        for_each_part(access.pool(), x, n_rows * width, |task, x| {
            let positions = &positions[task * n_rows..];
            for (row, &position) in x.chunks_exact_mut(width).zip(positions) {
                let at = position as usize * half..(position as usize + 1) * half;
                rotate_row(isa, row, &cos[at.clone()], &sin[at], sign);
            }
        });
    }
}

impl Rope for Cpu {
    fn rope(
        &mut self,
        n_heads: usize,
        head_size: usize,
        rotation: Rotation,
        positions: DeviceSlice<u32>,
        cos: DeviceSlice<f32>,
        sin: DeviceSlice<f32>,
        x: Floats,
    ) {
        let (heads, tables) = ((n_heads, head_size), [cos, sin]);
        match x {
            Floats::F32(x) => self.rotate(heads, rotation, positions, tables, x),
            Floats::Bf16(x) => self.rotate(heads, rotation, positions, tables, x),
        }
    }
}
