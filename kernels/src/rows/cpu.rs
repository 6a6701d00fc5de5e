//! Sums and moves on the processor.

use super::Rows;
use crate::{
    Cpu,
    cpu::parallel::{CHUNK, for_each_part, rows_per_task},
    memory::DeviceSlice,
};

impl Rows for Cpu {
    fn add(&mut self, x: DeviceSlice<f32>, y: DeviceSlice<f32>) {
        let mut access = self.access("add");
        let x = access.read(x);
        let y = access.write(y);
        for_each_part(access.pool(), y, CHUNK, |task, y| {
            for (y, x) in y.iter_mut().zip(&x[task * CHUNK..]) {
                *y += x;
            }
        });
    }

    fn gather_rows(
        &mut self,
        width: usize,
        index: DeviceSlice<u32>,
        x: DeviceSlice<f32>,
        y: DeviceSlice<f32>,
    ) {
        let mut access = self.access("gather rows");
        let (index, x) = (access.read(index), access.read(x));
        let y = &mut access.write(y)[..index.len() * width];
        let n_rows = rows_per_task(width);
        for_each_part(access.pool(), y, n_rows * width, |task, y| {
            for (y, &row) in y.chunks_exact_mut(width).zip(&index[task * n_rows..]) {
                y.copy_from_slice(&x[row as usize * width..(row as usize + 1) * width]);
            }
        });
    }

    fn scatter_rows(
        &mut self,
        width: usize,
        index: DeviceSlice<u32>,
        x: DeviceSlice<f32>,
        y: DeviceSlice<f32>,
    ) {
        let mut access = self.access("scatter rows");
        let (index, x) = (access.read(index), access.read(x));
        let y = access.write(y);
        for_each_part(access.pool(), &mut *y, CHUNK, |_, y| y.fill(0.0));
        for (x, &row) in x.chunks_exact(width).zip(index) {
            y[row as usize * width..(row as usize + 1) * width].copy_from_slice(x);
        }
    }
}
