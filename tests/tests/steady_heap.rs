//! After the first step the heap does not grow.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(unsafe_code, reason = "counting what the allocator does means being one")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicIsize, Ordering},
};

use nibble_engine::{train::OptimizerConfig, weights::WeightFormat};
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

#[test]
fn steps_after_the_first_leave_the_heap_as_it_was() {
    for (weight_format, with_adapter) in
        [(WeightFormat::F32, false), (WeightFormat::Bf16, true), (WeightFormat::Nf4, true)]
    {
        let mut sequences = Sequences::default();
        let ids: Vec<u32> = (1..30).collect();
        let labels: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
        sequences.push(&ids, &labels);
        let setup =
            Setup { weight_format, with_adapter, recompute: true, n_threads: 2, n_rows: ids.len() };
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
            trainer.clear_gradients();
            trainer.accumulate(&sequences.batch(), 1.0 / 28.0, None);
            trainer.update(&optimizer, 1e-3, number, 0);
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
