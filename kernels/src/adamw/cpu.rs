//! The update on the processor.

use half::bf16;
use rayon::prelude::*;

use super::{AdamW, AdamWStep, Parameters};
use crate::{
    Cpu,
    cpu::{math::for_each_isa, parallel::CHUNK},
    memory::DeviceSlice,
    random::hash,
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
        // As a step from m towards g, which is how PyTorch computes and rounds it.
        let m = multiply_add(self.one_minus_beta1, g - m, m);
        let v = multiply_add(self.one_minus_beta2 * g, g, v * self.beta2);
        let denominator = v.sqrt() / self.correction2_root + self.epsilon;
        (w - self.step_size * m / denominator, m, v)
    }
}

/// `a · b + c`, rounded once as PyTorch's vector code rounds it, by f64 (in which the product is
/// exact): the same on processors with and without an instruction for it.
#[inline(always)]
fn multiply_add(a: f32, b: f32, c: f32) -> f32 {
    (f64::from(a) * f64::from(b) + f64::from(c)) as f32
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
            (updated, m[i], v[i]) = factors.update(widen(w[i]), g[i], m[i], v[i]);
            w[i] = round_stochastically(updated, hash(seed, (start + i) as u64) as u16);
        }
    }
}

/// Up with the probability of the remainder: `draw` is uniform over the discarded 16 bits.
/// Branch-free, so that the loop vectorises.
#[inline(always)]
fn round_stochastically(value: f32, draw: u16) -> bf16 {
    /// The exponent of what is not finite.
    const NOT_FINITE: u32 = 0x7f80;
    let bits = value.to_bits();
    let raised = bits.wrapping_add(u32::from(draw)) >> 16;
    // The largest numbers must not round up to infinity, nor what is not finite change its kind; a
    // NaN keeps its upper bits and is a NaN still, for hardware sets the first of them.
    let leaves = raised & NOT_FINITE == NOT_FINITE;
    bf16::from_bits(if leaves { bits >> 16 } else { raised } as u16)
}

/// The same number, without a branch for NaN.
#[inline(always)]
fn widen(value: bf16) -> f32 {
    f32::from_bits(u32::from(value.to_bits()) << 16)
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
