//! The activation on the processor.

use super::Swiglu;
use crate::{
    Cpu,
    cpu::{
        float::Float,
        math::{for_each_isa, sigmoid},
        parallel::{CHUNK, for_each_part},
    },
    memory::{DeviceSlice, Floats},
};

/// Numbers that are stored together.
const RUN: usize = 256;

for_each_isa! {
    fn forward<T: Float>(gate: &[T], up: &[T], y: &mut [f32]) {
        let n = y.len();
        let (gate, up) = (&gate[..n], &up[..n]);
        for i in 0..n {
            let value = gate[i].widen();
            y[i] = value * sigmoid::<FUSED>(value) * up[i].widen();
        }
    }
}

for_each_isa! {
    fn backward<T: Float>(dy: &[f32], gate: &[T], up: &[T], dgate: &mut [f32], dup: &mut [f32]) {
        let n = dy.len();
        let (gate, up, dgate, dup) = (&gate[..n], &up[..n], &mut dgate[..n], &mut dup[..n]);
        for i in 0..n {
            let (value, factor) = (gate[i].widen(), up[i].widen());
            let share = sigmoid::<FUSED>(value);
            let silu = value * share;
            dgate[i] = dy[i] * factor * share * (1.0 + value * (1.0 - share));
            dup[i] = dy[i] * silu;
        }
    }
}

impl Cpu {
    fn activate<I: Float, O: Float>(&mut self, [gate, up]: [DeviceSlice<I>; 2], y: DeviceSlice<O>) {
        let isa = self.isa();
        let mut access = self.access("activation");
        let y = access.write(y);
        let (gate, up) = (&access.read(gate)[..y.len()], &access.read(up)[..y.len()]);
        for_each_part(access.pool(), y, CHUNK, |task, y| {
            let inputs = gate[task * CHUNK..].chunks(RUN).zip(up[task * CHUNK..].chunks(RUN));
            let mut run = [0.0; RUN];
            for (y, (gate, up)) in y.chunks_mut(RUN).zip(inputs) {
                let run = &mut run[..y.len()];
                forward(isa, gate, up, run);
                O::store_row(isa, run, y);
            }
        });
    }

    fn activate_backward<T: Float>(
        &mut self,
        dy: DeviceSlice<f32>,
        [gate, up]: [DeviceSlice<T>; 2],
    ) {
        let isa = self.isa();
        let mut access = self.access("activation backward");
        let dy = access.read(dy);
        let gate = &mut access.write(gate)[..dy.len()];
        let up = &mut access.write(up)[..dy.len()];
        for_each_part(access.pool(), (gate, up), CHUNK, |task, (gate, up)| {
            let (mut dgate, mut dup) = ([0.0; RUN], [0.0; RUN]);
            let places = gate.chunks_mut(RUN).zip(up.chunks_mut(RUN));
            for ((gate, up), dy) in places.zip(dy[task * CHUNK..].chunks(RUN)) {
                backward(isa, &dy[..gate.len()], gate, up, &mut dgate, &mut dup);
                T::store_row(isa, &dgate[..gate.len()], gate);
                T::store_row(isa, &dup[..up.len()], up);
            }
        });
    }
}

impl Swiglu for Cpu {
    fn swiglu(&mut self, gate: Floats, up: Floats, y: Floats) {
        use Floats::{Bf16, F32};
        match (gate, up, y) {
            (F32(gate), F32(up), F32(y)) => self.activate([gate, up], y),
            (F32(gate), F32(up), Bf16(y)) => self.activate([gate, up], y),
            (Bf16(gate), Bf16(up), F32(y)) => self.activate([gate, up], y),
            (Bf16(gate), Bf16(up), Bf16(y)) => self.activate([gate, up], y),
            (gate, up, _) => panic!("{gate:?} and {up:?} in different formats"),
        }
    }

    fn swiglu_backward(&mut self, dy: DeviceSlice<f32>, gate_dgate: Floats, up_dup: Floats) {
        match (gate_dgate, up_dup) {
            (Floats::F32(gate), Floats::F32(up)) => self.activate_backward(dy, [gate, up]),
            (Floats::Bf16(gate), Floats::Bf16(up)) => self.activate_backward(dy, [gate, up]),
            (gate, up) => panic!("{gate:?} and {up:?} in different formats"),
        }
    }
}
