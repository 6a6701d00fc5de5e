//! What is dropped on its way into a pair's product.

use super::math::for_each_isa;
use crate::{
    Isa,
    random::{Dropout, hash},
};

impl Dropout {
    /// Drops elements of `run`, whose first has the index `start`, and scales up the others.
    pub(crate) fn apply(self, isa: Isa, start: usize, run: &mut [f32]) {
        // Kept when a uniform 32-bit draw is not below the threshold.
        let threshold = (f64::from(self.probability) * 4_294_967_296.0) as u64;
        drop_below(isa, threshold, 1.0 / (1.0 - self.probability), self.seed, start, run);
    }
}

for_each_isa! {
    fn drop_below(threshold: u64, factor: f32, seed: u64, start: usize, run: &mut [f32]) {
        for (i, value) in run.iter_mut().enumerate() {
            let draw = u64::from(draw(seed, (start + i) as u64));
            *value = if draw < threshold { 0.0 } else { *value * factor };
        }
    }
}

/// A uniform 32-bit number for every seed and index.
#[inline(always)]
fn draw(seed: u64, index: u64) -> u32 {
    (hash(seed, index) >> 32) as u32
}
