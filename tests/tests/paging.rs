//! A run whose optimizer, weights and activations visit the device is the run in which they stay.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;

use nibble_engine::{
    plan::{Allowance, MemoryPlan, Outside, Residency, TrainingShape, choose, smallest_bytes},
    train::checkpoint,
    weights::WeightFormat,
};
use nibble_kernels::{Cpu, Paging as _, Store};
use nibble_run::{Paging, Recompute};
use nibble_tests::paging::{
    N_LAYERS, OPTIMIZER, accumulate, methods_in_both, model, n_batches, open, run, sequences, step,
};

/// So high a rank that the states take several pages.
const RANK: usize = 512;

/// Each kind alone and in part, in turn in both places outside; the two that move in every layer
/// together; and all of them, in part and in whole, in both places.
fn residencies(shape: &TrainingShape) -> Vec<Residency> {
    let n_pages = shape.state_layout().n_pages();
    let (optimizer, layers, inputs) = (1, 2, 4);
    let everything = optimizer | layers | inputs;
    [
        (optimizer, false, Outside::Disk),
        (layers, false, Outside::Host),
        (inputs, false, Outside::Disk),
        (layers | inputs, true, Outside::Host),
        (everything, false, Outside::Host),
        (everything, true, Outside::Host),
        (everything, true, Outside::Disk),
    ]
    .map(|(kinds, whole, outside)| {
        let count = |kind: usize, n: usize| match (kinds & kind, whole) {
            (0, _) => 0,
            (_, true) => n,
            (_, false) => n.div_ceil(2),
        };
        Residency {
            optimizer_pages: count(optimizer, n_pages),
            layers: count(layers, N_LAYERS),
            inputs: count(inputs, N_LAYERS),
            outside,
        }
    })
    .to_vec()
}

#[test]
fn paged_runs_are_bit_for_bit_the_unpaged_one() {
    let model = model();
    for (name, shape) in methods_in_both(model.files.spec(), RANK) {
        let n_pages = shape.state_layout().n_pages();
        assert!(n_pages >= 3, "{name}: {n_pages} pages show nothing");
        let mut resident = open::<Cpu>(&model, &shape, Residency::default());
        let expected = run(&mut resident, 1..=3);
        assert_eq!(resident.transferred().bytes(), 0);
        for residency in residencies(&shape) {
            let mut paged = open::<Cpu>(&model, &shape, residency);
            let actual = run(&mut paged, 1..=3);
            assert!(actual == expected, "{name}: {residency:?}");
            assert!(paged.transferred().bytes() > 0);
        }
    }
}

/// With dropout, evaluations between steps and several micro-batches; and as many bytes as planned.
#[test]
fn runs_are_bit_for_bit_the_same_however_many_layers_keep_their_activations() {
    let model = model();
    for (name, shape) in methods_in_both(model.files.spec(), 8) {
        let runs = [0, 1, 3, N_LAYERS - 1, N_LAYERS].map(|kept_layers| {
            let shape = TrainingShape { kept_layers, ..shape.clone() };
            let mut trainer = open::<Cpu>(&model, &shape, Residency::default());
            let plan = MemoryPlan::new(trainer.shape().clone());
            assert_eq!(trainer.allocated_bytes(), plan.peak_bytes(), "{name} {kept_layers}");
            (kept_layers, run(&mut trainer, 1..=3))
        });
        let (_, expected) = &runs[0];
        for (kept_layers, actual) in &runs {
            assert!(actual == expected, "{name}: {kept_layers}");
        }
    }
}

#[test]
fn what_is_planned_is_allocated_and_crosses() {
    let model = model();
    for (name, shape) in methods_in_both(model.files.spec(), RANK) {
        let whole = MemoryPlan::new(shape.clone());
        for residency in residencies(&shape) {
            let mut trainer = open::<Cpu>(&model, &shape, residency);
            let plan = MemoryPlan::new(trainer.shape().clone());
            assert_eq!(trainer.allocated_bytes(), plan.peak_bytes(), "{name} {residency:?}");
            let outside = plan.paged_bytes();
            let image =
                if shape.weight_format == WeightFormat::Nf4 && residency.outside == Outside::Disk {
                    outside.weights
                } else {
                    0
                };
            let store = outside.optimizer + outside.weights + outside.activations - image;
            // The store's regions begin on pages.
            let slack = 4096 * (2 + N_LAYERS as u64);
            assert!((store..store + slack).contains(&(plan.store_bytes() as u64)));
            assert_eq!(
                trainer.device().stored_bytes(),
                plan.store_bytes() as u64,
                "{name} {residency:?}"
            );
            let states = |plan: &MemoryPlan| plan.category_bytes().optimizer;
            assert_eq!(states(&plan) + outside.optimizer, states(&whole));

            step(&mut trainer, 1);
            let before = trainer.transferred();
            accumulate(&mut trainer, 2);
            let accumulated = trainer.transferred();
            trainer.update(&OPTIMIZER, 1e-2, 2, 10).unwrap();
            let crossed = [accumulated - before, trainer.transferred() - accumulated];
            let [forward, backward, update] = plan.phase_transfers(n_batches(&shape));
            assert_eq!(crossed, [forward + backward, update], "{name} {residency:?}");
        }
    }
}

#[test]
fn a_checkpoint_does_not_know_where_things_were() {
    let model = model();
    let folder = tempfile::tempdir().unwrap();
    for (name, shape) in methods_in_both(model.files.spec(), RANK) {
        let mut resident = open::<Cpu>(&model, &shape, Residency::default());
        let expected = run(&mut resident, 1..=4);
        let residency = residencies(&shape).pop().unwrap();
        for (before, after) in
            [(residency, Residency::default()), (Residency::default(), residency)]
        {
            let path = folder.path().join("step-000002");
            let mut first = open::<Cpu>(&model, &shape, before);
            run(&mut first, 1..=2);
            let config = first.decoder().adapter.as_ref().map(|adapter| {
                nibble_engine::adapter::AdapterConfig {
                    rank: adapter.layout.rank,
                    alpha: 16.0,
                    rslora: false,
                    dropout: 0.1,
                    targets: adapter.layout.targets,
                    base_model: "model".into(),
                }
            });
            let state = checkpoint::RunState::new(2, 1.0, 10);
            checkpoint::write(&path, &mut first, config.as_ref(), model.files.path(), &state)
                .unwrap();
            // What a step that was cut short leaves in the store is not there afterwards.
            step(&mut first, 3);
            drop(first);
            let mut second = open::<Cpu>(&model, &shape, after);
            checkpoint::read(&path, &mut second).unwrap();
            let resumed = run(&mut second, 3..=4);
            assert!(resumed == expected[2..], "{name}: from {before:?} to {after:?}");
        }
    }
}

#[test]
fn the_least_is_paged_that_fits() {
    let model = model();
    for (name, shape) in methods_in_both(model.files.spec(), RANK) {
        let whole = MemoryPlan::new(shape.clone()).peak_bytes() as u64;
        let within = |budget_bytes| Allowance {
            budget_bytes,
            spare_bytes: 0,
            recompute: Recompute::On,
            paging: Paging::Auto,
        };
        let unlimited = choose(&shape, within(whole));
        assert!(unlimited.shape().residency.is_resident(), "{name}");
        let mut last = Residency::default();
        for percent in (1..100).rev() {
            let budget = whole * percent / 100;
            let plan = choose(&shape, within(budget));
            let residency = plan.shape().residency;
            if plan.peak_bytes() as u64 > budget {
                // Even everything that can leave is not enough, and the least is said.
                assert!(residency.is_resident());
                let least = smallest_bytes(&plan, within(budget));
                assert!(least > budget, "{name}: {least} in {budget}");
                let plan = choose(&shape, within(least));
                assert_eq!(plan.peak_bytes() as u64, least, "{name}");
                break;
            }
            // In order: the optimizer first, then weights, then inputs.
            assert!(residency.optimizer_pages >= last.optimizer_pages.min(1), "{name} {percent}");
            if residency.inputs > 0 {
                assert_eq!(residency.layers, N_LAYERS, "{name} {percent}");
            }
            // Paging less of the last kind would not fit.
            let mut less = residency;
            let last_kind = [&mut less.inputs, &mut less.layers, &mut less.optimizer_pages]
                .into_iter()
                .find(|count| **count > 0);
            if let Some(count) = last_kind {
                *count -= 1;
                // Fewer than a window's pages take as much room as none.
                if *count > 2 {
                    let less = MemoryPlan::new(TrainingShape { residency: less, ..shape.clone() });
                    assert!(less.peak_bytes() as u64 > budget, "{name} {percent}");
                }
            }
            last = residency;
        }
        assert!(!last.is_resident(), "{name}: nothing was ever paged");
    }
}

#[test]
fn a_page_file_that_another_program_takes_away_ends_the_step_with_an_error() {
    let model = model();
    let (_, shape) = methods_in_both(model.files.spec(), RANK).remove(0);
    let residency = Residency { layers: N_LAYERS, ..Residency::default() };
    let mut trainer = open::<Cpu>(&model, &shape, residency);
    step(&mut trainer, 1);
    assert!(trainer.check_stores().is_ok());
    let path = model.folder.path().join("pages.bin");
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(4096).unwrap();
    assert!(trainer.check_stores().is_err());
    let error = trainer
        .accumulate(&sequences()[0].batch(), 1.0, None, Store::Overwrite)
        .unwrap_err()
        .to_string();
    assert!(error.contains("page file") && error.contains("resume"), "{error}");
}
