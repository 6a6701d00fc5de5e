//! The sum in order.

/// `Σ g²`, with Neumaier's compensation, so that its own roundings do not show.
pub fn squared_norm(gradient: &[f32]) -> f64 {
    let (mut sum, mut lost) = (0.0_f64, 0.0);
    for &g in gradient {
        let term = f64::from(g) * f64::from(g);
        let next = sum + term;
        lost += if sum >= term { (sum - next) + term } else { (term - next) + sum };
        sum = next;
    }
    sum + lost
}
