//! Fifty AdamW steps against torch: full, LoRA and QLoRA, step by step.

use nibble_kernels::Cpu;
use nibble_tests::{Setup, f32_profile, trajectories};

#[test]
fn every_step_is_that_of_torch() {
    trajectories::check::<Cpu>(f32_profile(Setup::default().n_threads), 50);
}
