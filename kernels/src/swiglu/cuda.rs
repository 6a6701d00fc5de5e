//! The activation on a card: a thread has four numbers.

use super::{Pair, Swiglu};
use crate::{
    Cuda,
    cuda::{Launch, Parameters},
    memory::{DeviceSlice, Floats},
};

impl Swiglu for Cuda {
    fn swiglu(&mut self, gate: Floats, up: Floats, y: Floats) {
        let n = y.len();
        let pair = Pair::of(gate.first(n), up.first(n));
        let mut call = self.call("activation");
        let kernel = match (pair, y) {
            (Pair::F32(_), Floats::F32(_)) => "swiglu_forward_f32_to_f32",
            (Pair::F32(_), Floats::Bf16(_)) => "swiglu_forward_f32_to_bf16",
            (Pair::Bf16(_), Floats::F32(_)) => "swiglu_forward_bf16_to_f32",
            (Pair::Bf16(_), Floats::Bf16(_)) => "swiglu_forward_bf16_to_bf16",
        };
        let [gate, up] = match pair {
            Pair::F32(pair) => pair.map(|slice| call.read(slice)),
            Pair::Bf16(pair) => pair.map(|slice| call.read(slice)),
        };
        let y = call.write_floats(y);
        let parameters = Parameters::new().address(gate).address(up).address(y).u64(n as u64);
        let launch = Launch::covering(n.div_ceil(4), 256);
        // SAFETY: all have the length given.
        unsafe { call.launch(kernel, launch, parameters) };
    }

    fn swiglu_backward(&mut self, dy: DeviceSlice<f32>, gate_dgate: Floats, up_dup: Floats) {
        let n = dy.len();
        let pair = Pair::of(gate_dgate.first(n), up_dup.first(n));
        let mut call = self.call("activation backward");
        let dy = call.read(dy);
        let ([gate, up], kernel) = match pair {
            Pair::F32(pair) => (pair.map(|slice| call.write(slice)), "swiglu_backward_f32"),
            Pair::Bf16(pair) => (pair.map(|slice| call.write(slice)), "swiglu_backward_bf16"),
        };
        let parameters = Parameters::new().address(dy).address(gate).address(up).u64(n as u64);
        let launch = Launch::covering(n.div_ceil(4), 256);
        // SAFETY: all have the length given.
        unsafe { call.launch(kernel, launch, parameters) };
    }
}
