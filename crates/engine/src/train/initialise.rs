//! The adapter that a run begins with.

use nibble_kernels::random::{hash, uniform};

use crate::adapter::{AdapterLayout, AdapterTensor, Factor};

/// A is uniform within ±1/√n_in (He et al., 2015, for the slope √5, as PEFT does), B is zero: the
/// pair begins as nothing.
///
/// One matrix is in memory at a time, which `place` is handed.
pub fn initial_adapter(
    layout: &AdapterLayout,
    seed: u64,
    mut place: impl FnMut(&AdapterTensor, &[f32]),
) {
    let mut values = Vec::new();
    for tensor in layout.tensors() {
        values.clear();
        values.resize(tensor.n_elements(), 0.0);
        if tensor.factor == Factor::A {
            let bound = 1.0 / (tensor.shape[1] as f64).sqrt();
            for (i, value) in values.iter_mut().enumerate() {
                let uniform = uniform(hash(seed, (tensor.start + i) as u64));
                *value = ((2.0 * uniform - 1.0) * bound) as f32;
            }
        }
        place(&tensor, &values);
    }
}
