//! After the first step the heap does not grow.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(unsafe_code, reason = "counting what the allocator does means being one")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    path::Path,
    sync::atomic::{AtomicIsize, Ordering},
};

use nibble_engine::{
    train::{self, OptimizerConfig},
    weights::WeightFormat,
};
use nibble_kernels::Store;
use nibble_run::{Event, RunSettings};
use nibble_tests::{Sequences, Setup, golden, open_trainer};

struct Counting;

static LIVE_BYTES: AtomicIsize = AtomicIsize::new(0);

// SAFETY: every call goes to the system's allocator with its arguments unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE_BYTES.fetch_add(layout.size() as isize, Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE_BYTES.fetch_sub(layout.size() as isize, Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Both in one test: another that ran beside it would be counted too.
#[test]
fn steps_after_the_first_leave_the_heap_as_it_was() {
    a_trainer();
    a_run();
}

fn a_trainer() {
    for (weight_format, with_adapter, kept_layers) in
        [(WeightFormat::F32, false, 0), (WeightFormat::Bf16, true, 1), (WeightFormat::Nf4, true, 2)]
    {
        let mut sequences = Sequences::default();
        let ids: Vec<u32> = (1..30).collect();
        let labels: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
        sequences.push(&ids, &labels);
        let n_rows = ids.len();
        let setup = Setup { weight_format, with_adapter, kept_layers, n_rows, ..Setup::default() };
        let folder = golden().join("families").join("llama");
        let (mut trainer, _) = open_trainer(&folder, setup);
        let optimizer = OptimizerConfig {
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.01,
            clip_norm: Some(1.0),
        };
        let mut step = |number| {
            trainer.accumulate(&sequences.batch(), 1.0 / 28.0, None, Store::Overwrite).unwrap();
            trainer.update(&optimizer, 1e-3, number, 0).unwrap();
        };
        step(1);
        let after_first = LIVE_BYTES.load(Ordering::SeqCst);
        for number in 2..=40 {
            step(number);
        }
        let grown = LIVE_BYTES.load(Ordering::SeqCst) - after_first;
        // The thread pool's queue hands tasks over in blocks of 64 and may hold one more of them.
        assert!(grown <= 2048, "the heap grew by {grown} bytes in 39 steps");
    }
}

/// With everything around a step: batches, events, metrics, measured memory, a second epoch.
fn a_run() {
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets");
    let folder = tempfile::tempdir().unwrap();
    let settings = RunSettings {
        model: assets.join("starter"),
        data: assets.join("datasets").join("pirate.jsonl"),
        steps: Some(120),
        sequence: 64,
        batch: 4,
        save_every: 50,
        ..RunSettings::default()
    };
    let run = train::start(settings, &folder.path().join("run")).unwrap();
    let mut steady = Vec::with_capacity(120);
    let mut n_steps = 0;
    for event in run.events() {
        if let Event::Step { step, .. } = event {
            n_steps += 1;
            // The event of a step that a checkpoint follows races with what that holds for a moment.
            if step > 1 && !matches!(step, 50 | 100 | 120) {
                steady.push(LIVE_BYTES.load(Ordering::SeqCst));
            }
        }
    }
    assert!(run.join().unwrap().complete);
    assert_eq!(n_steps, 120);
    // What the measuring of memory holds for a moment may be seen: a few pages of the system's files.
    let (first, most) = (steady[0], steady.iter().max().unwrap());
    println!("{} bytes after the second step, {} at most later", first, most);
    assert!(most - first <= 64 << 10, "the heap grew from {first} to {most} bytes");
}
