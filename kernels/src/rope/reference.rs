//! Rotation as its formula reads, one pair at a time; every result goes through `round`.

use super::Rotation;

/// `x` `[T, n_heads, head_size]`, turned.
pub fn rotate(
    (n_heads, head_size): (usize, usize),
    rotation: Rotation,
    positions: &[u32],
    (cos, sin): (&[f32], &[f32]),
    x: &[f32],
    round: impl Fn(f64) -> f64,
) -> Vec<f64> {
    let half = head_size / 2;
    let mut y = vec![0.0; x.len()];
    for (row, &position) in positions.iter().enumerate() {
        for head in 0..n_heads {
            for i in 0..half {
                let low = (row * n_heads + head) * head_size + i;
                let (a, b) = (f64::from(x[low]), f64::from(x[low + half]));
                let angle = position as usize * half + i;
                let cos = f64::from(cos[angle]);
                let sin = match rotation {
                    Rotation::Forward => f64::from(sin[angle]),
                    Rotation::Backward => -f64::from(sin[angle]),
                };
                y[low] = round(round(a * cos) - round(b * sin));
                y[low + half] = round(round(b * cos) + round(a * sin));
            }
        }
    }
    y
}
