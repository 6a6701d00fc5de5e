//! Random numbers that depend on a seed and a place alone.

/// A number for every seed and index (SplitMix64's finaliser).
pub fn hash(seed: u64, index: u64) -> u64 {
    let mut z = seed ^ index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Fisher and Yates' shuffle.
pub fn shuffle(values: &mut [usize], seed: u64) {
    for i in (1..values.len()).rev() {
        // 128-bit multiplication maps the draw to 0..=i without a bias that matters.
        let draw = (u128::from(hash(seed, i as u64)) * (i as u128 + 1)) >> 64;
        values.swap(i, draw as usize);
    }
}
