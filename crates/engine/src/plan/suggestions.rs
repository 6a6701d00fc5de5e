//! What would make a plan fit that does not.

use nibble_run::{Method, SuggestedSettings, Suggestion};

use super::{MemoryPlan, Trainable, TrainingShape};
use crate::weights::{EmbeddingFormat, WeightFormat};

/// The least changes, each by itself, after which a run of `shape` fits `budget_bytes`; the
/// cheapest to the result first. Empty when none is enough alone and together.
pub fn suggestions(shape: &TrainingShape, budget_bytes: u64) -> Vec<Suggestion> {
    let fits = |shape: &TrainingShape| {
        let peak_bytes = MemoryPlan::new(shape.clone()).peak_bytes() as u64;
        (peak_bytes <= budget_bytes).then_some(peak_bytes)
    };
    let mut found = Vec::new();
    let mut offer = |change: String, shape: &TrainingShape| {
        let fitting = fits(shape);
        if let Some(peak_bytes) = fitting {
            found.push(Suggestion { change, peak_bytes, settings: settings_of(shape) });
        }
        fitting.is_some()
    };
    let quantised = |shape: &TrainingShape| {
        matches!(shape.trainable, Trainable::Adapter { .. })
            .then(|| TrainingShape { weight_format: WeightFormat::Nf4, ..shape.clone() })
            .filter(|_| shape.weight_format != WeightFormat::Nf4)
    };
    if !shape.recompute {
        offer("recompute activations".into(), &TrainingShape { recompute: true, ..shape.clone() });
    }
    let least = TrainingShape { recompute: true, ..shape.clone() };
    for batch in halvings(shape.batch, 1) {
        if offer(format!("batch {batch}"), &TrainingShape { batch, ..least.clone() }) {
            break;
        }
    }
    let least = TrainingShape { batch: 1, ..least };
    for sequence in halvings(shape.sequence, 64) {
        let change = if shape.batch > 1 {
            format!("sequence length {sequence} with batch 1")
        } else {
            format!("sequence length {sequence}")
        };
        if offer(change, &TrainingShape { sequence, ..least.clone() }) {
            break;
        }
    }
    if let Some(quantised) = quantised(shape)
        && !offer("method qlora".into(), &quantised)
        && let Some(least) = quantised_least(&quantised, &fits)
    {
        offer(format!("method qlora, batch 1, sequence length {}", least.sequence), &least);
    }
    if shape.trainable == Trainable::Everything {
        for (method, weight_format) in [("lora", WeightFormat::Bf16), ("qlora", WeightFormat::Nf4)]
        {
            let adapter = TrainingShape {
                trainable: Trainable::Adapter {
                    targets: crate::adapter::Targets::all_linear(),
                    rank: 16,
                    dropout: false,
                },
                weight_format,
                embedding_format: EmbeddingFormat::Bf16,
                ..shape.clone()
            };
            if offer(format!("method {method} with rank 16"), &adapter) {
                break;
            }
            if method == "qlora"
                && let Some(least) = quantised_least(&adapter, &fits)
            {
                let sequence = least.sequence;
                offer(
                    format!("method qlora with rank 16, batch 1, sequence length {sequence}"),
                    &least,
                );
            }
        }
    }
    found
}

/// The settings that a shape came from.
fn settings_of(shape: &TrainingShape) -> SuggestedSettings {
    let (method, rank) = match (&shape.trainable, shape.weight_format) {
        (Trainable::Everything, _) => (Method::Full, None),
        (Trainable::Adapter { rank, .. }, WeightFormat::Nf4) => (Method::Qlora, Some(*rank)),
        (Trainable::Adapter { rank, .. }, _) => (Method::Lora, Some(*rank)),
    };
    let TrainingShape { batch, sequence, recompute, .. } = *shape;
    SuggestedSettings { method, batch, sequence, recompute, rank }
}

/// The longest sequence, at batch 1 and with recomputation, that fits.
fn quantised_least(
    shape: &TrainingShape,
    fits: &impl Fn(&TrainingShape) -> Option<u64>,
) -> Option<TrainingShape> {
    let least = TrainingShape { recompute: true, batch: 1, ..shape.clone() };
    std::iter::once(shape.sequence)
        .chain(halvings(shape.sequence, 64))
        .map(|sequence| TrainingShape { sequence, ..least.clone() })
        .find(|shape| fits(shape).is_some())
}

/// `value / 2`, `value / 4`, … down to `least`.
fn halvings(value: usize, least: usize) -> impl Iterator<Item = usize> {
    std::iter::successors(Some(value / 2), |half| Some(half / 2))
        .take_while(move |&half| half >= least.max(1))
}
