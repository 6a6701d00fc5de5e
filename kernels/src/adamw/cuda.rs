//! The update on a card.

use super::{
    AdamW, AdamWStep, MOMENT_BLOCK, Moments, QuantizedMoment, factors::Factors, n_moment_blocks,
};
use crate::{
    Cuda,
    cuda::{Address, Call, Launch, Parameters},
    memory::Floats,
};

const N_THREADS: u32 = 256;
/// Blocks of threads that share eight-bit moments, at most: enough for every multiprocessor of the
/// largest card many times over, and few enough that each fills its tables seldom.
const MAX_BLOCKWISE_LAUNCH: usize = 4096;
/// Blocks of a moment that a block of threads updates at a time, one a warp.
const MOMENT_BLOCKS_AT_A_TIME: usize = N_THREADS as usize / 32;

impl AdamW for Cuda {
    fn adamw(&mut self, step: AdamWStep, parameters: Floats, gradient: Floats, moments: Moments) {
        let n = gradient.len();
        assert_eq!(parameters.len(), n, "parameters for {n} gradients");
        let mut call = self.call("adamw");
        let (w, w_form) = match parameters {
            Floats::F32(w) => (call.write(w), "f32"),
            Floats::Bf16(w) => (call.write(w), "bf16"),
        };
        let (g, g_form) = match gradient {
            Floats::F32(g) => (call.read(g), "f32"),
            Floats::Bf16(g) => (call.read(g), "bf16"),
        };
        let arguments = Parameters::new().address(w).address(g);
        let (kernel, launch, arguments) = match moments {
            Moments::F32 { first, second } => {
                assert!(first.len() == n && second.len() == n, "moments for {n} gradients");
                let arguments = arguments.address(call.write(first)).address(call.write(second));
                // Four elements a thread.
                ("adamw", Launch::covering(n.div_ceil(4), N_THREADS), arguments)
            }
            Moments::Blockwise8 { first, second } => {
                assert!(
                    step.first_element.is_multiple_of(MOMENT_BLOCK),
                    "{} is not the first element of a block",
                    step.first_element
                );
                let [m_codes, m_absmax] = quantized(&mut call, first, n);
                let [v_codes, v_absmax] = quantized(&mut call, second, n);
                let arguments =
                    arguments.address(m_codes).address(m_absmax).address(v_codes).address(v_absmax);
                let n_blocks = n_moment_blocks(n).div_ceil(MOMENT_BLOCKS_AT_A_TIME);
                let launch = Launch::linear(n_blocks.min(MAX_BLOCKWISE_LAUNCH), N_THREADS);
                ("adamw_blockwise", launch, arguments)
            }
        };
        let kernel = format!("{kernel}_{w_form}_{g_form}");
        let arguments = with_factors(arguments.u64(n as u64), &step);
        // SAFETY: parameters, gradient and moments are all of `n` elements, as asserted.
        unsafe { call.launch(&kernel, launch, arguments) };
    }
}

/// The codes and the absmax of a moment of `n` elements.
fn quantized(call: &mut Call<'_>, moment: QuantizedMoment, n: usize) -> [Address; 2] {
    assert!(
        moment.codes.len() == n && moment.absmax.len() == n_moment_blocks(n),
        "a moment for {n} gradients"
    );
    [call.write(moment.codes), call.write(moment.absmax)]
}

/// `Factors` of `adamw.cu`, in its order.
fn with_factors(arguments: Parameters, step: &AdamWStep) -> Parameters {
    let Factors {
        gradient_scale,
        decay,
        one_minus_beta1,
        beta2,
        one_minus_beta2,
        step_size,
        correction2_root,
        epsilon,
        rounding_seed,
    } = Factors::new(step);
    arguments
        .u64(rounding_seed)
        .u64(step.first_element as u64)
        .f32(gradient_scale)
        .f32(decay)
        .f32(one_minus_beta1)
        .f32(beta2)
        .f32(one_minus_beta2)
        .f32(step_size)
        .f32(correction2_root)
        .f32(epsilon)
}
