//! The moves, one row at a time.

/// `y[i, :] = x[index[i], :]`.
pub fn gather(width: usize, index: &[u32], x: &[f32]) -> Vec<f32> {
    index.iter().flat_map(|&row| &x[row as usize * width..][..width]).copied().collect()
}

/// `y[index[i], :] = x[i, :]` in `n_rows` rows of zeros.
pub fn scatter(width: usize, index: &[u32], x: &[f32], n_rows: usize) -> Vec<f32> {
    let mut y = vec![0.0; n_rows * width];
    for (i, &row) in index.iter().enumerate() {
        y[row as usize * width..][..width].copy_from_slice(&x[i * width..][..width]);
    }
    y
}
