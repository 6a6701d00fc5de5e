//! Embeddings on a card. The gradient of an id is summed where it comes first.

use super::{Embedding, EmbeddingTable};
use crate::{
    Cuda,
    cuda::{Launch, Parameters},
    memory::DeviceSlice,
};

/// Threads of a block of the gradient, each with four columns.
const N_THREADS: u32 = 128;

impl Embedding for Cuda {
    fn embedding(
        &mut self,
        width: usize,
        ids: DeviceSlice<u32>,
        table: EmbeddingTable,
        y: DeviceSlice<f32>,
    ) {
        let n = ids.len();
        let mut call = self.call("embedding");
        let (kernel, n_numbers, table) = match table {
            EmbeddingTable::F32(table) => ("embedding_forward_f32", table.len(), call.read(table)),
            EmbeddingTable::Bf16(table) => {
                ("embedding_forward_bf16", table.len(), call.read(table))
            }
        };
        let parameters = Parameters::new()
            .address(call.read(ids))
            .address(table)
            .address(call.write(y.first(n * width)))
            .extent(n)
            .extent(n_numbers / width.max(1))
            .extent(width);
        let launch = Launch::by_rows(n, width.div_ceil(4));
        // SAFETY: `y` was cut to the extents; rows beyond those of the table are not read.
        unsafe { call.launch(kernel, launch, parameters) };
    }

    fn embedding_backward(
        &mut self,
        width: usize,
        ids: DeviceSlice<u32>,
        dy: DeviceSlice<f32>,
        dtable: DeviceSlice<f32>,
    ) {
        let n = ids.len();
        let mut call = self.call("embedding backward");
        let parameters = Parameters::new()
            .address(call.read(ids))
            .address(call.read(dy.first(n * width)))
            .address(call.write(dtable))
            .extent(n)
            .extent(dtable.len() / width.max(1))
            .extent(width);
        let n_parts = width.div_ceil(4 * N_THREADS as usize);
        let launch = Launch {
            grid: [n as u32, n_parts as u32, 1],
            block: [N_THREADS, 1, 1],
            shared_bytes: 0,
        };
        // SAFETY: `dy` was cut to the extents; rows beyond those of the table are not changed.
        unsafe { call.launch("embedding_backward", launch, parameters) };
    }
}
