//! Sums and moves on a card.

use super::Rows;
use crate::{
    Cuda,
    cuda::{Launch, Parameters},
    memory::DeviceSlice,
};

impl Rows for Cuda {
    fn add(&mut self, x: DeviceSlice<f32>, y: DeviceSlice<f32>) {
        let mut call = self.call("add");
        let parameters = Parameters::new()
            .address(call.read(x.first(y.len())))
            .address(call.write(y))
            .u64(y.len() as u64);
        let launch = Launch::covering(y.len().div_ceil(4), 256);
        // SAFETY: both have the length given.
        unsafe { call.launch("rows_add", launch, parameters) };
    }

    fn gather_rows(
        &mut self,
        width: usize,
        index: DeviceSlice<u32>,
        x: DeviceSlice<f32>,
        y: DeviceSlice<f32>,
    ) {
        let n = index.len();
        let mut call = self.call("gather rows");
        let parameters = Parameters::new()
            .address(call.read(index))
            .address(call.read(x))
            .address(call.write(y.first(n * width)))
            .extent(n)
            .extent(x.len() / width.max(1))
            .extent(width);
        let launch = Launch::by_rows(n, width.div_ceil(4));
        // SAFETY: `y` was cut to the extents; rows beyond those of `x` are not read.
        unsafe { call.launch("rows_gather", launch, parameters) };
    }

    fn scatter_rows(
        &mut self,
        width: usize,
        index: DeviceSlice<u32>,
        x: DeviceSlice<f32>,
        y: DeviceSlice<f32>,
    ) {
        let n = index.len();
        let mut call = self.call("scatter rows");
        let from = call.read(x.first(n * width));
        let to = call.write(y);
        let parameters = Parameters::new()
            .address(call.read(index))
            .address(from)
            .address(to)
            .extent(n)
            .extent(y.len() / width.max(1))
            .extent(width);
        let launch = Launch::by_rows(n, width.div_ceil(4));
        // SAFETY: all of `y` is cleared; `x` was cut to the extents, and rows beyond those of `y` are
        // not written.
        unsafe {
            call.clear(to, y.n_bytes());
            call.launch("rows_scatter", launch, parameters);
        }
    }
}
