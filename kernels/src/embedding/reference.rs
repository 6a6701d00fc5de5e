//! Gather and scatter-add, one row at a time.

/// `y`.
pub fn forward<T: Copy>(width: usize, ids: &[u32], table: &[T]) -> Vec<T> {
    ids.iter().flat_map(|&id| &table[id as usize * width..][..width]).copied().collect()
}

/// `dtable`, in the order of the tokens.
pub fn backward(width: usize, ids: &[u32], dy: &[f32], dtable: &mut [f32]) {
    for (row, &id) in ids.iter().enumerate() {
        for column in 0..width {
            dtable[id as usize * width + column] += dy[row * width + column];
        }
    }
}
