//! Embeddings on the processor. The gradient is cut by columns, so that each sum over tokens is
//! one task's, in their order.

use super::{Embedding, EmbeddingTable};
use crate::{
    Cpu,
    cpu::parallel::{Shared, for_each_part, for_each_task, rows_per_task},
    memory::DeviceSlice,
};

impl Embedding for Cpu {
    fn embedding(
        &mut self,
        width: usize,
        ids: DeviceSlice<u32>,
        table: EmbeddingTable,
        y: DeviceSlice<f32>,
    ) {
        let mut access = self.access("embedding");
        let ids = access.read(ids);
        let y = &mut access.write(y)[..ids.len() * width];
        let n_rows = rows_per_task(width);
        let row = |id: u32| id as usize * width..(id as usize + 1) * width;
        match table {
            EmbeddingTable::F32(table) => {
                let table = access.read_some(table, y.len());
                for_each_part(access.pool(), y, n_rows * width, |task, y| {
                    for (y, &id) in y.chunks_exact_mut(width).zip(&ids[task * n_rows..]) {
                        y.copy_from_slice(&table[row(id)]);
                    }
                });
            }
            EmbeddingTable::Bf16(table) => {
                let table = access.read_some(table, y.len());
                for_each_part(access.pool(), y, n_rows * width, |task, y| {
                    for (y, &id) in y.chunks_exact_mut(width).zip(&ids[task * n_rows..]) {
                        for (y, value) in y.iter_mut().zip(&table[row(id)]) {
                            *y = value.to_f32();
                        }
                    }
                });
            }
        }
    }

    fn embedding_backward(
        &mut self,
        width: usize,
        ids: DeviceSlice<u32>,
        dy: DeviceSlice<f32>,
        dtable: DeviceSlice<f32>,
    ) {
        /// Columns of a task: a few cache lines.
        const COLUMNS: usize = 64;

        let mut access = self.access("embedding backward");
        let ids = access.read(ids);
        let dy = &access.read(dy)[..ids.len() * width];
        let dtable = access.write_some(dtable, dy.len());
        let n_rows = dtable.len() / width;
        assert!(ids.iter().all(|&id| (id as usize) < n_rows), "a token id beyond the table");
        let table = Shared::new(dtable);
        for_each_task(access.pool(), width.div_ceil(COLUMNS), |task| {
            let columns = task * COLUMNS..((task + 1) * COLUMNS).min(width);
            for (row, &id) in ids.iter().enumerate() {
                let start = id as usize * width + columns.start;
                // SAFETY: the part is in this task's columns, which no other task touches; and
                // `dtable` outlives the tasks.
                let sums = unsafe { table.slice(start, columns.len()) };
                let terms = &dy[row * width + columns.start..row * width + columns.end];
                for (sum, term) in sums.iter_mut().zip(terms) {
                    *sum += term;
                }
            }
        });
    }
}
