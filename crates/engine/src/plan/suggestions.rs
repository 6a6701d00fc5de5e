//! What would make a plan fit that does not.

use nibble_run::{Method, Paging, Recompute, SuggestedSettings, Suggestion};

use super::{Allowance, PlanSettings, Trainable, TrainingShape, choose, training_shape};
use crate::weights::WeightFormat;

/// The change that is nothing else: those that do not fit.
const RECOMPUTED: &str = "recompute activations";

/// The least changes, each by itself, after which a run of `shape`, which `settings` led to, fits
/// `budget_bytes`; the cheapest to the result first. Empty when none is enough alone and together.
pub fn suggestions(
    shape: &TrainingShape,
    budget_bytes: u64,
    settings: PlanSettings<'_>,
) -> Vec<Suggestion> {
    let asked = Allowance::of(settings, budget_bytes);
    let fits = |shape: &TrainingShape, allowance: Allowance| {
        let plan = choose(shape, allowance);
        (plan.peak_bytes() as u64 <= budget_bytes).then_some(plan)
    };
    let mut found = Vec::new();
    let mut offer = |mut change: String, shape: &TrainingShape, allowance: Allowance| {
        let fitting = fits(shape, allowance);
        if let Some(plan) = &fitting {
            // A change that brings recomputation with it says so.
            let brings = allowance.recompute != asked.recompute && change != RECOMPUTED;
            if brings && plan.shape().recomputed_layers() > 0 {
                change += ", recomputed";
            }
            let (peak_bytes, settings) = (plan.peak_bytes() as u64, settings_of(shape, allowance));
            found.push(Suggestion { change, peak_bytes, settings });
        }
        fitting.is_some()
    };
    // These two change no number of the result, only how long a step takes.
    if asked.paging == Paging::Off {
        let allowance = Allowance { paging: Paging::Auto, ..asked };
        offer("paging (automatic)".into(), shape, allowance);
    }
    let allowance = match asked.recompute {
        Recompute::Off => Allowance { recompute: Recompute::Auto, ..asked },
        Recompute::Auto | Recompute::On => asked,
    };
    if allowance != asked {
        offer(RECOMPUTED.into(), shape, allowance);
    }
    let fits = |shape: &TrainingShape| fits(shape, allowance).is_some();
    let mut offer = |change: String, shape: &TrainingShape| offer(change, shape, allowance);
    // Another method, with whatever precision it would have under these settings.
    let by = |method| training_shape(&shape.spec, method, settings).ok();
    for batch in halvings(shape.batch, 1) {
        if offer(format!("batch {batch}"), &TrainingShape { batch, ..shape.clone() }) {
            break;
        }
    }
    let least = TrainingShape { batch: 1, ..shape.clone() };
    // Where not even the shortest fits, no other needs to be planned.
    let shortest = halvings(shape.sequence, 64).last();
    let shortest = shortest.map(|sequence| TrainingShape { sequence, ..least.clone() });
    let some_fits = shortest.is_some_and(|shape| fits(&shape));
    for sequence in halvings(shape.sequence, 64).filter(|_| some_fits) {
        let change = if shape.batch > 1 {
            format!("sequence length {sequence} with batch 1")
        } else {
            format!("sequence length {sequence}")
        };
        if offer(change, &TrainingShape { sequence, ..least.clone() }) {
            break;
        }
    }
    let is_full = shape.trainable == Trainable::Everything;
    let cheaper: &[Method] = match (is_full, shape.weight_format) {
        (true, _) => &[Method::Lora, Method::Qlora],
        (false, WeightFormat::Nf4) => &[],
        (false, _) => &[Method::Qlora],
    };
    for (method, other) in cheaper.iter().filter_map(|&method| Some((method, by(method)?))) {
        let mut name = format!("method {}", method.name());
        if let (true, Trainable::Adapter { rank, .. }) = (is_full, &other.trainable) {
            name += &format!(" with rank {rank}");
        }
        if offer(name.clone(), &other) {
            break;
        }
        if method == Method::Qlora
            && let Some(least) = quantised_least(&other, &fits)
        {
            offer(format!("{name}, batch 1, sequence length {}", least.sequence), &least);
        }
    }
    found
}

/// The settings that lead to a shape and an allowance.
fn settings_of(shape: &TrainingShape, allowance: Allowance) -> SuggestedSettings {
    let (method, rank) = match (&shape.trainable, shape.weight_format) {
        (Trainable::Everything, _) => (Method::Full, None),
        (Trainable::Adapter { rank, .. }, WeightFormat::Nf4) => (Method::Qlora, Some(*rank)),
        (Trainable::Adapter { rank, .. }, _) => (Method::Lora, Some(*rank)),
    };
    let TrainingShape { batch, sequence, .. } = *shape;
    let Allowance { recompute, paging: paged, .. } = allowance;
    SuggestedSettings { method, batch, sequence, recompute, rank, paged }
}

/// The longest sequence, at batch 1, that fits.
fn quantised_least(
    shape: &TrainingShape,
    fits: &impl Fn(&TrainingShape) -> bool,
) -> Option<TrainingShape> {
    let least = TrainingShape { batch: 1, ..shape.clone() };
    std::iter::once(shape.sequence)
        .chain(halvings(shape.sequence, 64))
        .map(|sequence| TrainingShape { sequence, ..least.clone() })
        .find(|shape| fits(shape))
}

/// `value / 2`, `value / 4`, … down to `least`.
fn halvings(value: usize, least: usize) -> impl Iterator<Item = usize> {
    std::iter::successors(Some(value / 2), |half| Some(half / 2))
        .take_while(move |&half| half >= least.max(1))
}
