//! Rotation on a card.

use super::{Rope, Rotation};
use crate::{
    Cuda,
    cuda::{Launch, Parameters},
    memory::{DeviceSlice, Floats},
};

impl Rope for Cuda {
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
        let (n_rows, half) = (positions.len(), head_size / 2);
        let sign = match rotation {
            Rotation::Forward => 1.0,
            Rotation::Backward => -1.0,
        };
        let mut call = self.call("rotation");
        let parameters = Parameters::new()
            .address(call.read(positions))
            .address(call.read(cos))
            .address(call.read(sin))
            .address(call.write_floats(x.first(n_rows * n_heads * head_size)))
            .f32(sign)
            .extent(n_rows)
            .extent(n_heads)
            .extent(half)
            .extent(cos.len().min(sin.len()) / half.max(1));
        let launch = Launch::by_rows(n_rows, n_heads * half.div_ceil(4));
        let kernel = format!("rope_rotate_{}", x.format().name());
        // SAFETY: `x` was cut to the extents; positions beyond the tables are not looked up.
        unsafe { call.launch(&kernel, launch, parameters) };
    }
}
