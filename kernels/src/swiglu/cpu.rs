//! The activation on the processor.

use half::bf16;

use super::Swiglu;
use crate::{
    Cpu, Isa,
    cpu::{
        gemm::round_row,
        math::{for_each_isa, sigmoid},
        parallel::{CHUNK, for_each_part},
    },
    memory::{DeviceSlice, Floats},
};

/// Numbers that are rounded together.
const RUN: usize = 1024;

for_each_isa! {
    fn forward(gate: &[f32], up: &[f32], y: &mut [f32]) {
        let n = y.len();
        let (gate, up) = (&gate[..n], &up[..n]);
        for i in 0..n {
            y[i] = gate[i] * sigmoid::<FUSED>(gate[i]) * up[i];
        }
    }
}

/// The same, rounded.
fn rounded(isa: Isa, gate: &[f32], up: &[f32], y: &mut [bf16]) {
    let mut run = [0.0; RUN];
    let inputs = gate.chunks(RUN).zip(up.chunks(RUN));
    for (y, (gate, up)) in y.chunks_mut(RUN).zip(inputs) {
        let run = &mut run[..y.len()];
        forward(isa, gate, up, run);
        round_row(isa, run, y);
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
    fn swiglu(&mut self, gate: DeviceSlice<f32>, up: DeviceSlice<f32>, y: Floats) {
        let isa = self.isa();
        let mut access = self.access("activation");
        let (gate, up) = (access.read(gate), access.read(up));
        let at = |task: usize, n: usize| task * CHUNK..task * CHUNK + n;
        match y {
            Floats::F32(y) => {
                let y = access.write(y);
                for_each_part(access.pool(), y, CHUNK, |task, y| {
                    let at = at(task, y.len());
                    forward(isa, &gate[at.clone()], &up[at], y);
                });
            }
            Floats::Bf16(y) => {
                let y = access.write(y);
                for_each_part(access.pool(), y, CHUNK, |task, y| {
                    let at = at(task, y.len());
                    rounded(isa, &gate[at.clone()], &up[at], y);
                });
            }
        }
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
