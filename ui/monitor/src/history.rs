//! What happened in a run so far, as columns that charts can draw.

use nibble_run::{CardReadings, Event, PlanReport, RunSettings};

/// Beyond this a number cannot be placed on a screen, and says nothing anyhow.
const LARGEST: f64 = 1e30;
/// Share of the steps so far over which averages are taken.
const AVERAGED_SHARE: f64 = 1.0 / 20.0;
/// Steps from whose duration the time left is told.
const N_TIMED_STEPS: usize = 50;

/// Values over steps, which rise.
#[derive(Clone, Debug, Default)]
pub struct Points {
    /// Steps.
    pub steps: Vec<f64>,
    /// Values.
    pub values: Vec<f64>,
}

/// What a run was told and planned before it began.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The folder's name.
    pub name: String,
    /// Every setting.
    pub settings: RunSettings,
    /// The memory plan, or why it cannot be read.
    pub plan: Result<PlanReport, String>,
}

/// The last words of a run that failed.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    /// What happened.
    pub message: String,
    /// What to do.
    pub hint: String,
}

/// What happened so far. Columns have a value for each of `steps`.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// Numbers of the steps, rising.
    pub steps: Vec<f64>,
    /// Loss.
    pub loss: Vec<f64>,
    /// Loss, averaged.
    pub smooth_loss: Vec<f64>,
    /// Learning rate.
    pub learning_rate: Vec<f64>,
    /// Gradient norm before clipping.
    pub gradient_norm: Vec<f64>,
    /// The same, averaged.
    pub smooth_gradient_norm: Vec<f64>,
    /// Tokens a second.
    pub throughput: Vec<f64>,
    /// Tokens a second, averaged.
    pub smooth_throughput: Vec<f64>,
    /// Resident memory of the process.
    pub host_bytes: Vec<f64>,
    /// Memory taken from the device.
    pub device_bytes: Vec<f64>,
    /// Memory in use on a card by all programs, as it says.
    pub card_bytes: Points,
    /// What a card said last.
    pub card: Option<CardReadings>,
    /// Bytes a second between the device and what lies outside it.
    pub page_traffic: Vec<f64>,
    /// The same, averaged.
    pub smooth_page_traffic: Vec<f64>,
    /// Loss on the held-out examples.
    pub eval: Points,
    /// Steps of the whole run, once it is known.
    pub n_steps: Option<u64>,
    /// Bytes of the model read, and to read, before the first step.
    pub loading: Option<(u64, u64)>,
    /// What the person should know, the latest last.
    pub warnings: Vec<String>,
    /// Why the run ended, if it failed.
    pub failure: Option<Failure>,
    /// Changes with every news, so that what was drawn from it can be kept until then.
    pub version: u64,
    /// Tokens of one pass over the dataset.
    n_dataset_tokens: u64,
    n_tokens: u64,
    seconds: Vec<f32>,
}

impl History {
    /// Adds what is new; `reset` forgets everything before.
    pub fn add(&mut self, reset: bool, events: &[Event]) {
        if reset {
            *self = Self { version: self.version, ..Self::default() };
        }
        self.version += 1;
        events.iter().for_each(|event| self.add_event(event));
        smooth(&self.loss, &mut self.smooth_loss);
        smooth(&self.gradient_norm, &mut self.smooth_gradient_norm);
        smooth(&self.throughput, &mut self.smooth_throughput);
        smooth(&self.page_traffic, &mut self.smooth_page_traffic);
    }

    fn add_event(&mut self, event: &Event) {
        match event {
            Event::Loading { done_bytes, total_bytes } => {
                self.loading = Some((*done_bytes, *total_bytes));
            }
            Event::Ready { n_steps, n_tokens, .. } => {
                self.n_steps = Some(*n_steps);
                self.n_dataset_tokens = *n_tokens;
            }
            Event::Step {
                step,
                loss,
                lr,
                grad_norm,
                tokens,
                tokens_per_s,
                host_bytes,
                device_bytes,
                paged_bytes,
                card,
                ..
            } => {
                let step = *step as f64;
                // A file that somebody edited may go back; a line chart cannot.
                if self.steps.last().is_some_and(|&last| step <= last) {
                    return;
                }
                let value = |value: f64| value.clamp(-LARGEST, LARGEST);
                self.steps.push(step);
                self.loss.push(value(*loss));
                self.learning_rate.push(value(*lr));
                self.gradient_norm.push(value(*grad_norm));
                self.throughput.push(value(*tokens_per_s));
                self.host_bytes.push(*host_bytes as f64);
                self.device_bytes.push(*device_bytes as f64);
                if let Some(used_bytes) = card.as_ref().and_then(|card| card.used_bytes) {
                    self.card_bytes.steps.push(step);
                    self.card_bytes.values.push(used_bytes as f64);
                }
                self.card = *card;
                self.n_tokens = self.n_tokens.saturating_add(*tokens);
                let seconds = *tokens as f64 / tokens_per_s;
                self.seconds.push(if seconds.is_finite() { seconds as f32 } else { 0.0 });
                let traffic = *paged_bytes as f64 / seconds;
                self.page_traffic.push(if traffic.is_finite() { value(traffic) } else { 0.0 });
            }
            Event::Eval { step, loss, .. } => {
                let step = *step as f64;
                if self.eval.steps.last().is_none_or(|&last| step > last) {
                    self.eval.steps.push(step);
                    self.eval.values.push(loss.clamp(-LARGEST, LARGEST));
                }
            }
            Event::Warning { message } => self.warnings.push(message.clone()),
            Event::Failed { message, hint, .. } => {
                self.failure = Some(Failure { message: message.clone(), hint: hint.clone() });
            }
            Event::Checkpoint { .. }
            | Event::Sample { .. }
            | Event::Paused
            | Event::Profile { .. }
            | Event::Resumed
            | Event::Done { .. } => {}
        }
    }

    /// Steps done.
    pub fn step(&self) -> u64 {
        self.steps.last().map_or(0, |&step| step as u64)
    }

    /// Steps of the whole run, as far as is known.
    pub fn n_steps(&self, settings: &RunSettings) -> Option<u64> {
        self.n_steps.or(settings.steps)
    }

    /// Passes over the dataset done, and to do, as far as they are known.
    pub fn epochs(&self, settings: &RunSettings) -> Option<(f64, Option<f64>)> {
        match (settings.steps, self.n_steps) {
            (None, Some(n_steps)) if n_steps > 0 => {
                let done = self.step() as f64 / n_steps as f64 * settings.epochs;
                Some((done, Some(settings.epochs)))
            }
            _ => {
                let trained = self.n_dataset_tokens as f64 * (1.0 - settings.eval_split);
                (trained >= 1.0).then(|| (self.n_tokens as f64 / trained, None))
            }
        }
    }

    /// Seconds that the steps took, without what was done between them.
    pub fn seconds_trained(&self) -> f64 {
        self.seconds.iter().copied().map(f64::from).sum()
    }

    /// Seconds until the last step, at the pace of the last steps.
    pub fn seconds_left(&self, settings: &RunSettings) -> Option<f64> {
        let n_left = self.n_steps(settings)?.checked_sub(self.step())?;
        let timed = &self.seconds[self.seconds.len().saturating_sub(N_TIMED_STEPS)..];
        let mean = timed.iter().copied().map(f64::from).sum::<f64>() / timed.len() as f64;
        mean.is_finite().then_some(mean * n_left as f64)
    }
}

/// An exponential average over a share of the steps, without the pull of its first value: the same
/// as in the report.
fn smooth(values: &[f64], smooth: &mut Vec<f64>) {
    let keep = 1.0 - 1.0 / (values.len() as f64 * AVERAGED_SHARE).max(1.0);
    let (mut sum, mut weight) = (0.0, 0.0);
    smooth.clear();
    smooth.extend(values.iter().map(|value| {
        sum = keep * sum + (1.0 - keep) * value;
        weight = keep * weight + (1.0 - keep);
        sum / weight
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(step: u64, loss: f64) -> Event {
        Event::Step {
            step,
            loss,
            lr: 1e-4,
            grad_norm: 1.0,
            tokens: 500,
            tokens_per_s: 1000.0,
            host_bytes: 1,
            device_bytes: 2,
            paged_bytes: 0,
            card: None,
        }
    }

    fn ready(n_steps: u64) -> Event {
        Event::Ready { n_steps, step: 0, n_examples: 9, n_tokens: 1000, planned_peak_bytes: 1 }
    }

    #[test]
    fn progress_is_told_in_steps_epochs_and_seconds() {
        let mut history = History::default();
        history.add(true, &[ready(10), step(1, 2.0), step(2, 1.0)]);
        let by_epochs = RunSettings { epochs: 5.0, ..RunSettings::default() };
        assert_eq!(history.epochs(&by_epochs), Some((1.0, Some(5.0))));
        assert_eq!(history.seconds_left(&by_epochs), Some(4.0));
        let by_steps = RunSettings { steps: Some(4), ..RunSettings::default() };
        assert_eq!(history.epochs(&by_steps), Some((1.0, None)));
        // Before anything is known, nothing is said.
        let new = History::default();
        assert_eq!(new.epochs(&by_epochs), None);
        assert_eq!(new.seconds_left(&by_steps), None);
        assert_eq!(new.n_steps(&by_steps), Some(4));
    }

    #[test]
    fn pages_are_told_by_the_second() {
        let mut history = History::default();
        let mut paged = step(1, 1.0);
        if let Event::Step { paged_bytes, .. } = &mut paged {
            *paged_bytes = 3 << 20;
        }
        history.add(true, &[paged]);
        // 500 tokens at 1,000 a second.
        assert_eq!(history.page_traffic, [f64::from(6 << 20)]);
        assert_eq!(history.smooth_page_traffic, history.page_traffic);
    }

    #[test]
    fn a_card_tells_of_itself() {
        let mut history = History::default();
        let mut on_card = step(2, 1.0);
        let said = CardReadings {
            used_bytes: Some(5 << 30),
            process_bytes: None,
            temperature_celsius: Some(61.0),
            power_watts: Some(182.4),
        };
        if let Event::Step { card, .. } = &mut on_card {
            *card = Some(said);
        }
        history.add(true, &[step(1, 1.0), on_card]);
        assert_eq!(history.card, Some(said));
        assert_eq!(history.card_bytes.steps, [2.0]);
        assert_eq!(history.card_bytes.values, [(5_u64 << 30) as f64]);
    }

    #[test]
    fn a_reset_forgets_and_steps_never_go_back() {
        let mut history = History::default();
        history.add(true, &[step(1, 1.0), step(2, 2.0), step(2, 9.0), step(1, 9.0)]);
        assert_eq!(history.loss, [1.0, 2.0]);
        let version = history.version;
        history.add(true, &[step(1, 5.0)]);
        assert_eq!(
            (history.loss.as_slice(), history.smooth_loss.as_slice()),
            (&[5.0][..], &[5.0][..])
        );
        assert!(history.version > version);
    }

    #[test]
    fn numbers_without_sense_do_no_harm() {
        let mut history = History::default();
        let mut bad = step(1, f64::MAX);
        if let Event::Step { tokens_per_s, .. } = &mut bad {
            *tokens_per_s = 0.0;
        }
        history.add(true, &[ready(0), bad, step(u64::MAX, -f64::MAX)]);
        assert_eq!(history.loss, [LARGEST, -LARGEST]);
        assert_eq!(history.seconds_left(&RunSettings::default()), None);
    }
}
