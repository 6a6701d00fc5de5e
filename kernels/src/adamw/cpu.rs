//! The update on the processor.

use half::bf16;
use rayon::prelude::*;

use super::{AdamW, AdamWStep, Parameters};
use crate::{
    Cpu,
    cpu::{math::for_each_isa, parallel::CHUNK},
    memory::DeviceSlice,
};

/// The numbers of a step, rounded once.
#[derive(Clone, Copy)]
struct Factors {
    gradient_scale: f32,
    decay: f32,
    one_minus_beta1: f32,
    beta2: f32,
    one_minus_beta2: f32,
    step_size: f32,
    correction2_root: f32,
    epsilon: f32,
}

impl Factors {
    fn new(step: &AdamWStep) -> Self {
        let t = step.step as f64;
        let correction1 = 1.0 - step.beta1.powf(t);
        let correction2 = 1.0 - step.beta2.powf(t);
        Self {
            gradient_scale: step.gradient_scale,
            decay: (1.0 - step.learning_rate * step.weight_decay) as f32,
            one_minus_beta1: (1.0 - step.beta1) as f32,
            beta2: step.beta2 as f32,
            one_minus_beta2: (1.0 - step.beta2) as f32,
            step_size: (step.learning_rate / correction1) as f32,
            correction2_root: correction2.sqrt() as f32,
            epsilon: step.epsilon as f32,
        }
    }

    /// The new parameter and moments.
    #[inline(always)]
    fn update(&self, w: f32, g: f32, m: f32, v: f32) -> (f32, f32, f32) {
        let g = g * self.gradient_scale;
        let w = w * self.decay;
        // As a step from m towards g, which is how the reference rounds it.
        let m = m + self.one_minus_beta1 * (g - m);
        let v = v * self.beta2 + self.one_minus_beta2 * g * g;
        let denominator = v.sqrt() / self.correction2_root + self.epsilon;
        (w - self.step_size * (m / denominator), m, v)
    }
}

for_each_isa! {
    fn update_f32(factors: Factors, w: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32]) {
        let n = w.len();
        let (g, m, v) = (&g[..n], &mut m[..n], &mut v[..n]);
        for i in 0..n {
            (w[i], m[i], v[i]) = factors.update(w[i], g[i], m[i], v[i]);
        }
    }
}

for_each_isa! {
    fn update_bf16(
        factors: Factors,
        draw: (u64, usize),
        w: &mut [bf16],
        g: &[f32],
        m: &mut [f32],
        v: &mut [f32],
    ) {
        let (seed, start) = draw;
        let n = w.len();
        let (g, m, v) = (&g[..n], &mut m[..n], &mut v[..n]);
        for i in 0..n {
            let updated;
            (updated, m[i], v[i]) = factors.update(w[i].to_f32(), g[i], m[i], v[i]);
            w[i] = round_stochastically(updated, hash(seed, (start + i) as u64) as u16);
        }
    }
}

/// Up with the probability of the remainder: `draw` is uniform over the discarded 16 bits.
#[inline(always)]
fn round_stochastically(value: f32, draw: u16) -> bf16 {
    if !value.is_finite() {
        return bf16::from_f32(value);
    }
    let bits = value.to_bits().saturating_add(u32::from(draw));
    let rounded = bf16::from_bits((bits >> 16) as u16);
    // The largest numbers must not round up to infinity.
    if rounded.is_finite() { rounded } else { bf16::from_f32(value) }
}

/// SplitMix64's finaliser over seed and index.
#[inline(always)]
fn hash(seed: u64, index: u64) -> u64 {
    let mut z = seed ^ index.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl AdamW for Cpu {
    fn adamw(
        &mut self,
        step: AdamWStep,
        parameters: Parameters,
        gradient: DeviceSlice<f32>,
        first_moment: DeviceSlice<f32>,
        second_moment: DeviceSlice<f32>,
    ) {
        let isa = self.isa();
        let factors = Factors::new(&step);
        let mut access = self.access();
        let g = access.read(gradient);
        let (m, v) = (access.write(first_moment), access.write(second_moment));
        let rest = (g.par_chunks(CHUNK), m.par_chunks_mut(CHUNK), v.par_chunks_mut(CHUNK));
        match parameters {
            Parameters::F32(w) => {
                let w = access.write(w);
                access.pool().install(|| {
                    (w.par_chunks_mut(CHUNK), rest.0, rest.1, rest.2)
                        .into_par_iter()
                        .for_each(|(w, g, m, v)| update_f32(isa, factors, w, g, m, v));
                });
            }
            Parameters::Bf16(w) => {
                let w = access.write(w);
                access.pool().install(|| {
                    (w.par_chunks_mut(CHUNK), rest.0, rest.1, rest.2)
                        .into_par_iter()
                        .enumerate()
                        .for_each(|(task, (w, g, m, v))| {
                            let draw = (step.rounding_seed, task * CHUNK);
                            update_bf16(isa, factors, draw, w, g, m, v);
                        });
                });
            }
        }
    }
}
