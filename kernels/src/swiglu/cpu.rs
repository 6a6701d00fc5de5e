//! The activation on the processor.

use super::Swiglu;
use crate::{
    Cpu,
    cpu::{
        math::{for_each_isa, sigmoid},
        parallel::{CHUNK, for_each_part},
    },
    memory::DeviceSlice,
};

for_each_isa! {
    fn forward(gate: &[f32], up: &[f32], y: &mut [f32]) {
        let n = y.len();
        let (gate, up) = (&gate[..n], &up[..n]);
        for i in 0..n {
            y[i] = gate[i] * sigmoid::<FUSED>(gate[i]) * up[i];
        }
    }
}

for_each_isa! {
    fn backward(dy: &[f32], gate: &mut [f32], up: &mut [f32]) {
        let n = dy.len();
        let (gate, up) = (&mut gate[..n], &mut up[..n]);
        for i in 0..n {
            let share = sigmoid::<FUSED>(gate[i]);
            let silu = gate[i] * share;
            let dgate = dy[i] * up[i] * share * (1.0 + gate[i] * (1.0 - share));
            up[i] = dy[i] * silu;
            gate[i] = dgate;
        }
    }
}

impl Swiglu for Cpu {
    fn swiglu(&mut self, gate: DeviceSlice<f32>, up: DeviceSlice<f32>, y: DeviceSlice<f32>) {
        let isa = self.isa();
        let mut access = self.access("activation");
        let (gate, up) = (access.read(gate), access.read(up));
        let y = access.write(y);
        for_each_part(access.pool(), y, CHUNK, |task, y| {
            let at = task * CHUNK..task * CHUNK + y.len();
            forward(isa, &gate[at.clone()], &up[at], y);
        });
    }

    fn swiglu_backward(
        &mut self,
        dy: DeviceSlice<f32>,
        gate_dgate: DeviceSlice<f32>,
        up_dup: DeviceSlice<f32>,
    ) {
        let isa = self.isa();
        let mut access = self.access("activation backward");
        let dy = access.read(dy);
        let (gate, up) = (access.write(gate_dgate), access.write(up_dup));
        for_each_part(access.pool(), (gate, up), CHUNK, |task, (gate, up)| {
            backward(isa, &dy[task * CHUNK..][..gate.len()], gate, up);
        });
    }
}
