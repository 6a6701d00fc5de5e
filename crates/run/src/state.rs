//! What a run is doing, from its events alone.

use serde::{Deserialize, Serialize};

use crate::Event;

/// What a run is doing, or how it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
pub enum RunState {
    /// The model is being read.
    Loading,
    /// Steps are done.
    Training,
    /// It holds between two steps.
    Paused,
    /// The last steps are done, and it is being evaluated and written.
    Saving,
    /// Every step is done.
    Finished,
    /// It was told to stop, and is saved.
    Stopped,
    /// An error ended it.
    Failed,
    /// It ended without a word; it can go on from its last checkpoint.
    Interrupted,
}

impl RunState {
    /// Whether a process is at work on the run.
    pub const fn is_active(self) -> bool {
        matches!(self, Self::Loading | Self::Training | Self::Paused | Self::Saving)
    }
}

/// What the events so far add up to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Progress {
    /// Steps done.
    pub step: u64,
    /// Steps of the whole run, once it is known.
    pub n_steps: Option<u64>,
    /// The last step's loss.
    pub loss: Option<f64>,
    /// The most memory that the process held.
    pub peak_bytes: Option<u64>,
    saved_step: u64,
    sitting: Sitting,
}

/// Where the present or last sitting of a run is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Sitting {
    #[default]
    Loading,
    Training,
    Paused,
    Done,
    Failed,
}

impl Progress {
    /// Adds one event.
    pub fn add(&mut self, event: &Event) {
        match event {
            Event::Loading { .. } => self.sitting = Sitting::Loading,
            Event::Ready { n_steps, .. } => {
                self.n_steps = Some(*n_steps);
                self.sitting = Sitting::Training;
            }
            Event::Step { step, loss, host_bytes, .. } => {
                self.step = *step;
                self.loss = Some(*loss);
                self.peak_bytes = self.peak_bytes.max(Some(*host_bytes));
                self.sitting = Sitting::Training;
            }
            Event::Checkpoint { step, .. } => self.saved_step = *step,
            Event::Paused => self.sitting = Sitting::Paused,
            Event::Resumed => self.sitting = Sitting::Training,
            Event::Done { peak_rss_bytes, .. } => {
                self.peak_bytes = self.peak_bytes.max(Some(*peak_rss_bytes));
                self.sitting = Sitting::Done;
            }
            Event::Failed { .. } => self.sitting = Sitting::Failed,
            Event::Eval { .. }
            | Event::Sample { .. }
            | Event::Warning { .. }
            | Event::Profile { .. } => {}
        }
    }

    /// The state of the run, given whether some process is at work on it.
    pub fn state(&self, is_active: bool) -> RunState {
        match (self.sitting, is_active) {
            (Sitting::Done, _) => RunState::Finished,
            (Sitting::Failed, _) => RunState::Failed,
            (Sitting::Loading, true) => RunState::Loading,
            (Sitting::Paused, true) => RunState::Paused,
            (Sitting::Training, true) if self.n_steps == Some(self.step) => RunState::Saving,
            (Sitting::Training, true) => RunState::Training,
            // The last thing that a run does when it is told to stop is to write a checkpoint.
            (_, false) if self.step > 0 && self.saved_step == self.step => RunState::Stopped,
            (_, false) => RunState::Interrupted,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{checkpoint, done, failed, ready, step};

    #[test]
    fn events_tell_the_state() {
        let loading = Event::Loading { done_bytes: 0, total_bytes: 10 };
        let cases: [(&[Event], RunState, RunState); 9] = [
            (&[], RunState::Loading, RunState::Interrupted),
            (std::slice::from_ref(&loading), RunState::Loading, RunState::Interrupted),
            (&[ready(3)], RunState::Training, RunState::Interrupted),
            (&[ready(3), step(1)], RunState::Training, RunState::Interrupted),
            (&[ready(3), step(1), Event::Paused], RunState::Paused, RunState::Interrupted),
            (&[ready(3), step(1), checkpoint(1)], RunState::Training, RunState::Stopped),
            (
                &[ready(3), step(1), checkpoint(1), step(2), step(3)],
                RunState::Saving,
                RunState::Interrupted,
            ),
            (&[ready(1), step(1), checkpoint(1), done(1)], RunState::Finished, RunState::Finished),
            (&[ready(3), step(1), failed()], RunState::Failed, RunState::Failed),
        ];
        for (events, active, ended) in cases {
            let mut progress = Progress::default();
            events.iter().for_each(|event| progress.add(event));
            assert_eq!(progress.state(true), active, "{events:?}");
            assert_eq!(progress.state(false), ended, "{events:?}");
        }
        // A run that goes on after a pause and a stop loads again first.
        let mut progress = Progress::default();
        for event in [ready(3), step(1), Event::Paused, loading] {
            progress.add(&event);
        }
        assert_eq!(progress.state(true), RunState::Loading);
    }
}
