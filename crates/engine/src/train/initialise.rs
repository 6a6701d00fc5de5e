//! The adapter that a run begins with.

use crate::adapter::{AdapterLayout, Factor};

/// A is uniform within ±1/√n_in (He et al., 2015, for the slope √5, as PEFT does), B is zero: the
/// pair begins as nothing.
pub fn initial_adapter(layout: &AdapterLayout, seed: u64) -> Vec<f32> {
    let mut parameters = vec![0.0; layout.len()];
    for tensor in layout.tensors().filter(|tensor| tensor.factor == Factor::A) {
        let bound = 1.0 / (tensor.shape[1] as f64).sqrt();
        let values = &mut parameters[tensor.start..tensor.start + tensor.n_elements()];
        for (i, value) in values.iter_mut().enumerate() {
            let uniform =
                (hash(seed, (tensor.start + i) as u64) >> 11) as f64 / (1_u64 << 53) as f64;
            *value = ((2.0 * uniform - 1.0) * bound) as f32;
        }
    }
    parameters
}

/// A number for every seed and index (SplitMix64's finaliser).
pub fn hash(seed: u64, index: u64) -> u64 {
    let mut z = seed ^ index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
