//! Where an axis is marked: round values in the unit in which they are written.

use egui_plot::GridMark;

/// At most about `n_marks` marks at round multiples of `unit` within `bounds`.
pub fn marks(bounds: (f64, f64), unit: f64, n_marks: f64) -> Vec<GridMark> {
    let (low, high) = bounds;
    let span = (high - low) / unit;
    if !(span.is_finite() && span > 0.0) {
        return Vec::new();
    }
    let step_size = unit * round_step(span / n_marks.max(1.0));
    let first = (low / step_size).ceil();
    let n = ((high / step_size).floor() - first).clamp(-1.0, 1000.0) as i64 + 1;
    (0..n).map(|i| GridMark { value: (first + i as f64) * step_size, step_size }).collect()
}

/// Marks of whole numbers.
pub fn whole_marks(bounds: (f64, f64), n_marks: f64) -> Vec<GridMark> {
    // Fewer marks than asked for, where a mark for each would fall between two numbers.
    marks(bounds, 1.0, n_marks.min((bounds.1 - bounds.0).max(1.0)))
}

/// The smallest of 1, 2, 5, 10, ... (at any power of ten) that is not below `step`.
fn round_step(step: f64) -> f64 {
    let power = 10_f64.powf(step.log10().floor());
    let factor = step / power;
    // A little more room, so that what is round already stays so.
    let round = [1.0, 2.0, 5.0].into_iter().find(|round| factor <= round * 1.000_001);
    power * round.unwrap_or(10.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(bounds: (f64, f64), unit: f64, n: f64) -> Vec<f64> {
        marks(bounds, unit, n).iter().map(|mark| mark.value / unit).collect()
    }

    #[test]
    fn marks_are_round_in_their_unit() {
        assert_eq!(values((0.0, 60.0), 1.0, 4.0), [0.0, 20.0, 40.0, 60.0]);
        assert_eq!(values((0.0, 33.0 * 1_048_576.0), 1_048_576.0, 4.0), [0.0, 10.0, 20.0, 30.0]);
        assert_eq!(values((3.9, 7.5), 1.0, 4.0), [4.0, 5.0, 6.0, 7.0]);
        let whole: Vec<_> = whole_marks((1.0, 3.0), 8.0).iter().map(|mark| mark.value).collect();
        assert_eq!(whole, [1.0, 2.0, 3.0]);
    }

    #[test]
    fn impossible_bounds_have_no_marks() {
        for bounds in [(1.0, 1.0), (2.0, 1.0), (f64::NAN, 1.0), (0.0, f64::INFINITY)] {
            assert!(marks(bounds, 1.0, 5.0).is_empty(), "{bounds:?}");
        }
    }
}
