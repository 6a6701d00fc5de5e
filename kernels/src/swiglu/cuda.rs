//! The activation on a card: a thread has four numbers.

use super::Swiglu;
use crate::{
    Cuda,
    cuda::{Launch, Parameters},
    memory::{DeviceSlice, Floats},
};

impl Swiglu for Cuda {
    fn swiglu(&mut self, gate: DeviceSlice<f32>, up: DeviceSlice<f32>, y: Floats) {
        let n = y.len();
        let mut call = self.call("activation");
        let (y, kernel) = match y {
            Floats::F32(y) => (call.write(y), "swiglu_forward_f32"),
            Floats::Bf16(y) => (call.write(y), "swiglu_forward_bf16"),
        };
        let parameters = Parameters::new()
            .address(call.read(gate.first(n)))
            .address(call.read(up.first(n)))
            .address(y)
            .u64(n as u64);
        let launch = Launch::covering(n.div_ceil(4), 256);
        // SAFETY: all have the length given.
        unsafe { call.launch(kernel, launch, parameters) };
    }

    fn swiglu_backward(
        &mut self,
        dy: DeviceSlice<f32>,
        gate_dgate: DeviceSlice<f32>,
        up_dup: DeviceSlice<f32>,
    ) {
        let n = dy.len();
        let mut call = self.call("activation backward");
        let parameters = Parameters::new()
            .address(call.read(dy))
            .address(call.write(gate_dgate.first(n)))
            .address(call.write(up_dup.first(n)))
            .u64(n as u64);
        let launch = Launch::covering(n.div_ceil(4), 256);
        // SAFETY: all have the length given.
        unsafe { call.launch("swiglu_backward", launch, parameters) };
    }
}
