//! The learning rate of each step.

use nibble_run::Schedule;

/// Warm-up and decay of the learning rate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LearningRate {
    /// The highest learning rate.
    pub peak: f64,
    /// How it falls after the warm-up.
    pub schedule: Schedule,
    /// Steps over which it rises from zero.
    pub n_warmup_steps: u64,
    /// Steps of the whole run.
    pub n_steps: u64,
}

impl LearningRate {
    /// The learning rate of `step`, counted from 1. The warm-up ends at `peak`; cosine and linear
    /// fall towards zero, which they would reach one step after the last.
    pub fn at(&self, step: u64) -> f64 {
        let done = step.saturating_sub(1);
        if done < self.n_warmup_steps {
            return self.peak * step as f64 / self.n_warmup_steps.max(1) as f64;
        }
        let n_decay = self.n_steps.saturating_sub(self.n_warmup_steps).max(1);
        let progress = ((done - self.n_warmup_steps) as f64 / n_decay as f64).min(1.0);
        self.peak
            * match self.schedule {
                Schedule::Constant => 1.0,
                Schedule::Linear => 1.0 - progress,
                Schedule::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_rises_to_its_peak_and_falls_towards_zero() {
        for schedule in [Schedule::Cosine, Schedule::Linear, Schedule::Constant] {
            let rate = LearningRate { peak: 1e-3, schedule, n_warmup_steps: 10, n_steps: 110 };
            assert_eq!(rate.at(1), 1e-4);
            assert_eq!(rate.at(10), 1e-3);
            assert_eq!(rate.at(11), 1e-3);
            let middle = rate.at(61) / 1e-3;
            let last = rate.at(110) / 1e-3;
            match schedule {
                Schedule::Constant => assert_eq!((middle, last), (1.0, 1.0)),
                _ => {
                    assert!((middle - 0.5).abs() < 1e-12, "{schedule:?}: {middle}");
                    assert!(last > 0.0 && last < 0.011, "{schedule:?}: {last}");
                }
            }
        }
    }

    #[test]
    fn a_run_shorter_than_its_warmup_has_a_rate() {
        let schedule = Schedule::Cosine;
        let rate = LearningRate { peak: 1.0, schedule, n_warmup_steps: 10, n_steps: 5 };
        assert_eq!(rate.at(5), 0.5);
        let rate = LearningRate { peak: 1.0, schedule, n_warmup_steps: 0, n_steps: 1 };
        assert_eq!(rate.at(1), 1.0);
    }
}
