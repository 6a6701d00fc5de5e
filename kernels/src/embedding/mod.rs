//! Token embeddings.
//!
//! ```text
//! forward:   y[t, :] = weight[id[t], :]
//! backward:  dweight[id[t], :] += dy[t, :]      summed in the order of t
//! ```

mod cpu;
mod cuda;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

use half::bf16;

use crate::memory::{DeviceSlice, Memory};

/// An embedding table `[V, D]`. Never quantised.
#[derive(Clone, Copy, Debug)]
pub enum EmbeddingTable {
    /// Four bytes a number.
    F32(DeviceSlice<f32>),
    /// Two bytes a number.
    Bf16(DeviceSlice<bf16>),
}

/// A gather of rows, and its gradient.
pub trait Embedding: Memory {
    /// `y[t, :] = table[ids[t], :]` for every row of `ids`.
    ///
    /// `ids` `[T]` each below V; `y` `[T, width]` `=`.
    fn embedding(
        &mut self,
        width: usize,
        ids: DeviceSlice<u32>,
        table: EmbeddingTable,
        y: DeviceSlice<f32>,
    );

    /// `dtable[ids[t], :] += dy[t, :]`.
    ///
    /// `dy` `[T, width]`; `dtable` `[V, width]` `+=`.
    fn embedding_backward(
        &mut self,
        width: usize,
        ids: DeviceSlice<u32>,
        dy: DeviceSlice<f32>,
        dtable: DeviceSlice<f32>,
    );
}
