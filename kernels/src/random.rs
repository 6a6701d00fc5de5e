//! Random numbers without a state: a number for every seed and index, so that any part of a run can
//! be done again, in any order and on any number of threads.
//!
//! SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014): a
//! counter that grows by an odd constant, scrambled.

const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

#[inline(always)]
const fn scramble(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The number of `seed` at `index`.
#[inline(always)]
pub const fn hash(seed: u64, index: u64) -> u64 {
    scramble(seed.wrapping_add(index.wrapping_add(1).wrapping_mul(STEP)))
}

/// The same numbers one after another.
#[derive(Clone, Debug)]
pub struct Sequence(u64);

impl Sequence {
    /// The sequence of `seed`.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    #[allow(clippy::should_implement_trait, reason = "an endless sequence has no end to tell of")]
    pub const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(STEP);
        scramble(self.0)
    }
}

/// A number of 64 random bits as one from 0 to below 1, in 53 bits.
#[inline(always)]
pub const fn uniform(bits: u64) -> f64 {
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}

/// Which inputs of a low-rank pair are dropped.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// The share of inputs set to zero, in `[0, 1)`.
    pub probability: f32,
    /// Chooses the mask: one value for each micro-batch, layer and matrix.
    pub seed: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_published_generator() {
        // The first outputs for seed 1234567, as Vigna's reference implementation gives them.
        let expected = [
            6_457_827_717_110_365_317,
            3_203_168_211_198_807_973,
            9_817_491_932_198_370_423,
            4_593_380_528_125_082_431,
            16_408_922_859_458_223_821,
        ];
        let mut sequence = Sequence::new(1_234_567);
        for (index, expected) in expected.into_iter().enumerate() {
            assert_eq!(sequence.next(), expected);
            assert_eq!(hash(1_234_567, index as u64), expected);
        }
        assert_eq!(uniform(u64::MAX), 1.0 - (0.5_f64).powi(53));
    }
}
