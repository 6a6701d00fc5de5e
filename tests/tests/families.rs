//! Every family against transformers and peft: logits, losses and gradients of tiny random models,
//! within twice the error that torch's own f32 has against f64, and in bf16 its own bf16.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{collections::BTreeMap, path::PathBuf};

use half::bf16;
use nibble_engine::{adapter::AdapterLayout, generate, model::Projection, train::Trainer};
use nibble_kernels::{Compute, Cpu, FloatFormat, Floats, Store};
use nibble_tests::{
    Sequences, Setup, f32_profile, golden, golden_json, golden_tensors, open_trainer,
    open_trainer_on, paging::OPTIMIZER, rms,
};
use serde_json::Value;

const FAMILIES: [&str; 6] =
    ["llama", "llama-tied-sharded", "llama-yarn", "mistral", "qwen2", "qwen3"];

#[derive(Clone)]
struct Family {
    name: &'static str,
    folder: PathBuf,
    expected: BTreeMap<String, Vec<f64>>,
    errors: Value,
    sequences: Sequences,
    /// Ids of each sequence.
    ids: Vec<Vec<u32>>,
}

fn families() -> impl Iterator<Item = Family> {
    FAMILIES.into_iter().map(|name| {
        let folder = golden().join("families").join(name);
        let expected = golden_tensors(&folder.join("expected.safetensors"));
        let errors = golden_json(&folder.join("errors.json"));
        let mut sequences = Sequences::default();
        let mut ids = Vec::new();
        let mut start = 0;
        for length in &expected["segment_lengths"] {
            let range = start..start + *length as usize;
            let of = |name: &str| expected[name][range.clone()].to_vec();
            let segment: Vec<u32> = of("input_ids").iter().map(|&id| id as u32).collect();
            let labels: Vec<i64> = of("labels").iter().map(|&label| label as i64).collect();
            sequences.push(&segment, &labels);
            ids.push(segment);
            start = range.end;
        }
        Family { name, folder, expected, errors, sequences, ids }
    })
}

/// Each with products in f32, and in bf16.
fn in_both(families: impl Iterator<Item = Family>) -> impl Iterator<Item = (Family, Compute)> {
    families.flat_map(|family| [Compute::F32, Compute::Bf16].map(|c| (family.clone(), c)))
}

impl Family {
    fn setup(&self, with_adapter: bool) -> Setup {
        Setup { with_adapter, n_rows: self.sequences.ids.len(), ..Setup::default() }
    }

    fn check(&self, compute: Compute, name: &str, actual: &[f32]) {
        let error = rms(actual, &self.expected[name]);
        let torch = match compute {
            Compute::F32 => &self.errors[name]["rms"],
            Compute::Bf16 => &self.errors[name]["rms_in_bf16"],
        };
        let torch = torch.as_f64().unwrap();
        // A tensor that torch happens to hit exactly still has numbers that round: allowed is a
        // quarter of an f32's unit in the last place of its root mean square.
        let size = self.errors[name]["exact_rms"].as_f64().unwrap();
        let limit = (2.0 * torch).max(0.25 * f64::from(f32::EPSILON) * size);
        assert!(error <= limit, "{} {name} in {compute:?}: {error:e} beyond {limit:e}", self.name);
    }

    /// A trainer whose products are in `compute`, and its adapter's layout.
    fn open(&self, setup: Setup, compute: Compute) -> (Trainer<Cpu>, Option<AdapterLayout>) {
        let profile = f32_profile(setup.n_threads).with_compute(compute);
        let (trainer, adapter) = open_trainer_on(&self.folder, setup, profile);
        (trainer, adapter.map(|(_, layout)| layout))
    }
}

#[test]
fn logits_are_those_of_transformers_and_peft() {
    for (family, compute) in in_both(families()) {
        for (with_adapter, name) in [(false, "logits"), (true, "adapter.logits")] {
            let (mut trainer, _) = family.open(family.setup(with_adapter), compute);
            let mut logits = Vec::new();
            for ids in &family.ids {
                let (device, decoder, layout) = trainer.parts();
                let layout = layout.generation.as_ref().unwrap();
                logits.extend(generate::logits((device, decoder, layout), ids).unwrap());
            }
            family.check(compute, name, &logits);
        }
    }
}

#[test]
fn losses_of_packed_sequences_are_those_of_separate_ones() {
    for family in families() {
        for (with_adapter, name) in [(false, "loss"), (true, "adapter.loss")] {
            let (mut trainer, _) = open_trainer(&family.folder, family.setup(with_adapter));
            let total = trainer.evaluate(&family.sequences.batch()).unwrap();
            let loss = total / family.sequences.targets.len() as f64;
            let expected = family.expected[name][0];
            // A scalar has no spread to measure: each of its terms is f32, correct to a few units.
            let limit = 4.0 * f64::from(f32::EPSILON) * expected;
            assert!((loss - expected).abs() <= limit, "{} {name}: {loss} {expected}", family.name);
        }
    }
}

#[test]
fn adapter_gradients_are_those_of_peft() {
    for (family, compute) in in_both(families()) {
        let mut bits: Option<Vec<u32>> = None;
        // Computing activations twice or keeping them, of some layers or all, on any threads, changes no bit.
        for (kept_layers, n_threads) in [(0, 1), (0, 2), (1, 2), (2, 3)] {
            let setup = Setup { kept_layers, n_threads, ..family.setup(true) };
            let (mut trainer, adapter) = family.open(setup, compute);
            let layout = adapter.unwrap();
            let weight = 1.0 / family.sequences.targets.len() as f32;
            trainer.accumulate(&family.sequences.batch(), weight, None, Store::Overwrite).unwrap();
            let gradients = trainer.layout().trainable.gradients.cast::<f32>();
            let mut values = vec![0.0; gradients.len()];
            trainer.download(gradients, &mut values);
            for tensor in layout.tensors() {
                let path = tensor.projection.path();
                let factor = format!("lora_{:?}", tensor.factor);
                let name = format!(
                    "adapter.gradient.model.layers.{}.{path}.{factor}.weight",
                    tensor.layer
                );
                let range = tensor.start..tensor.start + tensor.n_elements();
                family.check(compute, &name, &values[range]);
            }
            let now: Vec<u32> = values.into_iter().map(f32::to_bits).collect();
            assert!(bits.get_or_insert_with(|| now.clone()) == &now, "{} {setup:?}", family.name);
        }
    }
}

#[test]
fn weight_gradients_are_those_of_transformers() {
    let has_gradients = |family: &Family| ["llama", "qwen2", "qwen3"].contains(&family.name);
    for (family, compute) in in_both(families().filter(has_gradients)) {
        let (mut trainer, _) = family.open(family.setup(false), compute);
        let weight = 1.0 / family.sequences.targets.len() as f32;
        trainer.accumulate(&family.sequences.batch(), weight, None, Store::Overwrite).unwrap();
        let flat = trainer.layout().trainable.gradients;
        let layout = trainer.shape().gradient_layout();
        let mut n_checked = 0;
        for place in layout.tensors() {
            let nibble_kernels::linear::Weight::F32(slice) =
                place.weight(flat.memory(), flat.offset())
            else {
                panic!("gradients are f32")
            };
            let mut values = vec![0.0; slice.len()];
            trainer.download(slice, &mut values);
            family.check(compute, &format!("gradient.{}", place.role.name()), &values);
            n_checked += 1;
        }
        let in_file = family.expected.keys().filter(|name| name.starts_with("gradient.")).count();
        assert_eq!(n_checked, in_file, "{}", family.name);
    }
}

/// The layers' matrices alone have them in bf16; and their norm is that of all together.
#[test]
fn weight_gradients_in_bf16_are_rounded_once() {
    for family in families() {
        let (mut of_f32, mut rounded) = (Vec::new(), Vec::new());
        let (mut n_rounded, mut n_matrices, mut norms) = (0, 0, Vec::new());
        for format in [FloatFormat::F32, FloatFormat::Bf16] {
            let setup = Setup { gradients: format, ..family.setup(false) };
            let (mut trainer, _) = open_trainer(&family.folder, setup);
            for _ in 0..2 {
                let batch = family.sequences.batch();
                trainer.accumulate(&batch, 0.25, None, Store::Overwrite).unwrap();
            }
            let all = trainer.layout().trainable.gradients;
            n_matrices = Projection::ALL.len() * trainer.shape().spec.n_layers;
            for tensor in trainer.shape().trained_tensors() {
                match tensor.gradient(all) {
                    Floats::F32(slice) => {
                        let mut values = vec![0.0; slice.len()];
                        trainer.download(slice, &mut values);
                        if format == FloatFormat::F32 { &mut of_f32 } else { &mut rounded }
                            .push(values);
                    }
                    Floats::Bf16(slice) => {
                        let mut values = vec![bf16::ZERO; slice.len()];
                        trainer.download(slice, &mut values);
                        rounded.push(values.into_iter().map(f32::from).collect());
                        // What it must be.
                        for value in &mut of_f32[rounded.len() - 1] {
                            *value = bf16::from_f32(*value).into();
                        }
                        n_rounded += 1;
                    }
                }
            }
            norms.push(trainer.update(&OPTIMIZER, 1e-3, 1, 1).unwrap().gradient_norm);
        }
        assert!(of_f32 == rounded, "{}", family.name);
        assert_eq!(n_rounded, n_matrices, "{}", family.name);
        let squares = rounded.iter().flatten().map(|&g| f64::from(g) * f64::from(g));
        let expected = squares.sum::<f64>().sqrt();
        let n = rounded.iter().map(Vec::len).sum::<usize>() as f64;
        assert!((norms[1] - expected).abs() <= n * f64::EPSILON * expected, "{}", family.name);
        assert!(norms[0] != norms[1]);
    }
}

/// A step's first micro-batch writes over what the step before left, whatever that had seen; later ones
/// are added; and one in which nothing is trained has a gradient of zero.
#[test]
fn gradients_are_those_of_the_step_alone() {
    for family in families() {
        for with_adapter in [false, true] {
            let trainer = || open_trainer(&family.folder, family.setup(with_adapter)).0;
            let gradients = |trainer: &Trainer<Cpu>| {
                let gradients = trainer.layout().trainable.gradients.cast::<f32>();
                let mut values = vec![0.0; gradients.len()];
                trainer.download(gradients, &mut values);
                values
            };
            let mut other = Sequences::default();
            let ids: Vec<u32> = family.sequences.ids.iter().rev().copied().collect();
            let labels: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
            other.push(&ids, &labels);
            let mut untrained = Sequences::default();
            untrained.push(&ids, &vec![-1; ids.len()]);
            let accumulate = |trainer: &mut Trainer<Cpu>, sequences: &Sequences, store| {
                trainer.accumulate(&sequences.batch(), 0.25, None, store).unwrap();
            };

            // Losses are those of all micro-batches of a step and of nothing else.
            let mut summed = trainer();
            let [one, two] = [&family.sequences, &other]
                .map(|sequences| summed.evaluate(&sequences.batch()).unwrap());
            accumulate(&mut summed, &family.sequences, Store::Overwrite);
            accumulate(&mut summed, &untrained, Store::Accumulate);
            accumulate(&mut summed, &other, Store::Accumulate);
            let loss = summed.update(&OPTIMIZER, 1e-3, 1, 1).unwrap().loss;
            assert_eq!(loss, one + two, "{}, {with_adapter}", family.name);

            let mut fresh = trainer();
            accumulate(&mut fresh, &family.sequences, Store::Overwrite);
            let mut used = trainer();
            accumulate(&mut used, &other, Store::Overwrite);
            let of_other = gradients(&used);
            accumulate(&mut used, &other, Store::Accumulate);
            accumulate(&mut used, &family.sequences, Store::Overwrite);
            let alone = gradients(&fresh);
            assert!(gradients(&used) == alone, "{}, {with_adapter}", family.name);

            accumulate(&mut used, &untrained, Store::Accumulate);
            assert!(gradients(&used) == alone, "{}, {with_adapter}", family.name);
            accumulate(&mut used, &other, Store::Accumulate);
            // Products are added as a whole, rows of an embedding and of a norm's gradient one by one.
            let largest = alone.iter().chain(&of_other).fold(0.0_f32, |a, b| a.max(b.abs()));
            let limit = (ids.len() + 1) as f32 * f32::EPSILON * largest;
            for (sum, (a, b)) in gradients(&used).iter().zip(alone.iter().zip(&of_other)) {
                let error = (sum - (a + b)).abs();
                assert!(error <= limit, "{}: {error:e} beyond {limit:e}", family.name);
            }

            accumulate(&mut used, &untrained, Store::Overwrite);
            let all_zero = gradients(&used).iter().all(|&value| value == 0.0);
            assert!(all_zero, "{}, {with_adapter}", family.name);
        }
    }
}
