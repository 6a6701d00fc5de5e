//! The three products, naively, in any arithmetic.

use half::bf16;

use super::LinearShape;
use crate::Compute;

/// Values as the products see them.
pub fn rounded(values: &[f32], compute: Compute) -> Vec<f32> {
    match compute {
        Compute::F32 => values.to_vec(),
        Compute::Bf16 => values.iter().map(|&value| bf16::from_f32(value).to_f32()).collect(),
    }
}

/// `C[i, j] = Σ_k a(i, k) · b(k, j)` in f64, and in f32 summed in order.
pub fn product(
    (m, n, k): (usize, usize, usize),
    a: impl Fn(usize, usize) -> f32,
    b: impl Fn(usize, usize) -> f32,
) -> (Vec<f64>, Vec<f32>) {
    let mut exact = Vec::with_capacity(m * n);
    let mut plain = Vec::with_capacity(m * n);
    for i in 0..m {
        for j in 0..n {
            exact.push((0..k).map(|k| f64::from(a(i, k)) * f64::from(b(k, j))).sum());
            plain.push((0..k).fold(0.0, |sum, k| sum + a(i, k) * b(k, j)));
        }
    }
    (exact, plain)
}

/// `x · Wᵀ`.
pub fn forward(shape: LinearShape, x: &[f32], w: &[f32]) -> (Vec<f64>, Vec<f32>) {
    let LinearShape { n_rows, n_in, n_out } = shape;
    product((n_rows, n_out, n_in), |i, k| x[i * n_in + k], |k, j| w[j * n_in + k])
}

/// `dy · W`.
pub fn input_gradient(shape: LinearShape, dy: &[f32], w: &[f32]) -> (Vec<f64>, Vec<f32>) {
    let LinearShape { n_rows, n_in, n_out } = shape;
    product((n_rows, n_in, n_out), |i, k| dy[i * n_out + k], |k, j| w[k * n_in + j])
}

/// `dyᵀ · x`.
pub fn weight_gradient(shape: LinearShape, x: &[f32], dy: &[f32]) -> (Vec<f64>, Vec<f32>) {
    let LinearShape { n_rows, n_in, n_out } = shape;
    product((n_out, n_in, n_rows), |i, k| dy[k * n_out + i], |k, j| x[k * n_in + j])
}
