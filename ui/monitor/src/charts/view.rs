//! Where one looks: which steps, how high, and the step under the cursor.

/// Which steps are shown.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum View {
    /// All of them.
    #[default]
    All,
    /// So many of the last.
    Last(u64),
    /// A stretch that was moved or zoomed to.
    Between(f64, f64),
}

impl View {
    /// A stretch that was moved or zoomed to, kept within the steps.
    pub fn between((low, high): (f64, f64), steps: &[f64]) -> Self {
        let (first, last) = Self::All.range(steps);
        let width = high - low;
        if width >= last - first {
            return Self::All;
        }
        let low = low.min(last - width).max(first);
        Self::Between(low, low + width)
    }

    /// The stretch of steps, never empty.
    pub fn range(self, steps: &[f64]) -> (f64, f64) {
        let (first, last) = match (steps.first(), steps.last()) {
            (Some(&first), Some(&last)) => (first, last),
            _ => (0.0, 1.0),
        };
        let (low, high) = match self {
            Self::All => (first, last),
            Self::Last(n) => (first.max(last - n as f64 + 1.0), last),
            Self::Between(low, high) => (low, high),
        };
        if high > low { (low, high) } else { (low - 0.5, low + 0.5) }
    }
}

/// The step that is nearest to `x`.
pub fn nearest(steps: &[f64], x: f64) -> Option<f64> {
    let after = steps.partition_point(|&step| step < x);
    let candidates = steps.get(after.saturating_sub(1)..steps.len().min(after + 1))?;
    candidates.iter().copied().min_by(|a, b| (a - x).abs().total_cmp(&(b - x).abs()))
}

/// From the lowest to the highest of what is shown, and a little room.
pub fn height_range(values: impl Iterator<Item = f64>, from_zero: bool) -> (f64, f64) {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
        (low.min(value), high.max(value))
    });
    if low > high {
        return (0.0, 1.0);
    }
    let low = if from_zero { low.min(0.0) } else { low };
    let room = ((high - low) * 0.08).max(high.abs().max(low.abs()) * 1e-3).max(1e-12);
    (if from_zero && low == 0.0 { 0.0 } else { low - room }, high + room)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_is_never_empty() {
        let steps: Vec<f64> = (1..=60).map(f64::from).collect();
        assert_eq!(View::All.range(&steps), (1.0, 60.0));
        assert_eq!(View::Last(10).range(&steps), (51.0, 60.0));
        assert_eq!(View::Last(1000).range(&steps), (1.0, 60.0));
        for view in [View::All, View::Last(0), View::Between(3.0, 3.0)] {
            for steps in [&steps[..1], &[]] {
                let (low, high) = view.range(steps);
                assert!(low < high, "{view:?} of {steps:?}");
            }
        }
    }

    #[test]
    fn a_stretch_stays_within_the_steps() {
        let steps: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(View::between((-20.0, 20.0), &steps), View::Between(1.0, 41.0));
        assert_eq!(View::between((90.0, 130.0), &steps), View::Between(60.0, 100.0));
        assert_eq!(View::between((10.0, 20.0), &steps), View::Between(10.0, 20.0));
        assert_eq!(View::between((0.0, 200.0), &steps), View::All);
        assert_eq!(View::between((5.0, 6.0), &[]), View::All);
    }

    #[test]
    fn heights_hold_every_value_and_are_never_empty() {
        for values in [&[][..], &[0.0], &[5.0, 5.0], &[-1.0, 3.0], &[1e30, -1e30]] {
            for from_zero in [false, true] {
                let (low, high) = height_range(values.iter().copied(), from_zero);
                assert!(low < high, "{values:?}");
                assert!(values.iter().all(|value| (low..=high).contains(value)), "{values:?}");
            }
        }
        assert_eq!(height_range([2.0, 4.0].into_iter(), true).0, 0.0);
    }

    #[test]
    fn the_cursor_stands_on_a_step() {
        let steps = [1.0, 2.0, 10.0];
        for (x, step) in [(-5.0, 1.0), (1.4, 1.0), (7.0, 10.0), (99.0, 10.0)] {
            assert_eq!(nearest(&steps, x), Some(step), "{x}");
        }
        assert_eq!(nearest(&[], 1.0), None);
    }
}
