//! The format by its definition: every distance measured, the least taken.

use super::{ABSMAX_GROUP, BLOCK, LEVELS, dynamic_code};

/// The index of the value nearest to `x` in a rising table; the lower of two equally near.
fn nearest(table: &[f32], x: f64) -> usize {
    let distance = |index: usize| (f64::from(table[index]) - x).abs();
    (0..table.len())
        .fold(0, |best, index| if distance(index) < distance(best) { index } else { best })
}

/// The largest magnitude of each `len` values.
pub fn largest(values: &[f32], len: usize) -> Vec<f32> {
    values.chunks(len).map(|part| part.iter().fold(0.0, |most, x| x.abs().max(most))).collect()
}

/// The level of each number, and how far its share of the block's absmax lies from the nearest
/// border between two levels.
pub fn levels(values: &[f32]) -> Vec<(usize, f64)> {
    let scales = largest(values, BLOCK);
    let share = |(i, &x): (usize, &f32)| match f64::from(scales[i / BLOCK]) {
        0.0 => 0.0,
        absmax => f64::from(x) / absmax,
    };
    values.iter().enumerate().map(share).map(|share| classify(&LEVELS, share)).collect()
}

/// The dynamic code of each absmax, and the distance from a border as in [`levels`].
pub fn absmax_codes(absmax: &[f32], offset: f32) -> Vec<(usize, f64)> {
    let centred: Vec<f32> = absmax.iter().map(|a| a - offset).collect();
    let scales = largest(&centred, ABSMAX_GROUP);
    let share = |(i, &x): (usize, &f32)| match f64::from(scales[i / ABSMAX_GROUP]) {
        0.0 => 0.0,
        scale => f64::from(x) / scale,
    };
    centred.iter().enumerate().map(share).map(|share| classify(dynamic_code(), share)).collect()
}

fn classify(table: &[f32], share: f64) -> (usize, f64) {
    let border = |pair: &[f32]| (f64::from(pair[0]) + f64::from(pair[1])) / 2.0;
    let distances = table.windows(2).map(|pair| (share - border(pair)).abs());
    (nearest(table, share), distances.fold(f64::MAX, f64::min))
}
