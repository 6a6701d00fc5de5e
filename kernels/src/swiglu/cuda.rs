//! The activation on a card: a thread has four numbers.

use super::{Swiglu, same_format};
use crate::{
    Cuda,
    cuda::{Launch, Parameters},
    memory::{DeviceSlice, Floats},
};

impl Swiglu for Cuda {
    fn swiglu(&mut self, gate: Floats, up: Floats, y: Floats) {
        let n = y.len();
        let (from, to) = (same_format(gate, up).name(), y.format().name());
        let mut call = self.call("activation");
        let (gate, up) = (call.read_floats(gate.first(n)), call.read_floats(up.first(n)));
        let y = call.write_floats(y);
        let parameters = Parameters::new().address(gate).address(up).address(y).u64(n as u64);
        let launch = Launch::covering(n.div_ceil(4), 256);
        let kernel = format!("swiglu_forward_{from}_to_{to}");
        // SAFETY: all have the length given.
        unsafe { call.launch(&kernel, launch, parameters) };
    }

    fn swiglu_backward(&mut self, dy: DeviceSlice<f32>, gate_dgate: Floats, up_dup: Floats) {
        let n = dy.len();
        let kernel = format!("swiglu_backward_{}", same_format(gate_dgate, up_dup).name());
        let mut call = self.call("activation backward");
        let dy = call.read(dy);
        let gate = call.write_floats(gate_dgate.first(n));
        let up = call.write_floats(up_dup.first(n));
        let parameters = Parameters::new().address(dy).address(gate).address(up).u64(n as u64);
        let launch = Launch::covering(n.div_ceil(4), 256);
        // SAFETY: all have the length given.
        unsafe { call.launch(&kernel, launch, parameters) };
    }
}
