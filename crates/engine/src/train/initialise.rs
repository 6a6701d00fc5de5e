//! The adapter that a run begins with.

use nibble_kernels::random::{hash, uniform};

use crate::adapter::{AdapterLayout, Factor};

/// A is uniform within ±1/√n_in (He et al., 2015, for the slope √5, as PEFT does), B is zero: the
/// pair begins as nothing.
pub fn initial_adapter(layout: &AdapterLayout, seed: u64) -> Vec<f32> {
    let mut parameters = vec![0.0; layout.len()];
    for tensor in layout.tensors().filter(|tensor| tensor.factor == Factor::A) {
        let bound = 1.0 / (tensor.shape[1] as f64).sqrt();
        let values = &mut parameters[tensor.start..tensor.start + tensor.n_elements()];
        for (i, value) in values.iter_mut().enumerate() {
            let uniform = uniform(hash(seed, (tensor.start + i) as u64));
            *value = ((2.0 * uniform - 1.0) * bound) as f32;
        }
    }
    parameters
}
