//! The update on the processor.

use half::bf16;

use super::{
    AdamW, AdamWStep, MOMENT_BLOCK, Moments, QuantizedMoment, factors::Factors, first_moment_code,
    n_moment_blocks, second_moment_code,
};
use crate::{
    Cpu,
    blockwise::{Blocks, DynamicCode, Plain, largest_magnitude, quantize_block},
    cpu::{
        Access,
        float::Float,
        math::for_each_isa,
        parallel::{CHUNK, Output, Shared, for_each_part},
    },
    memory::{DeviceSlice, Floats},
    random::hash,
};
#[cfg(target_arch = "x86_64")]
use crate::{Isa, blockwise::Avx512};

/// Elements of a task: of seven reads and writes each, so that a quarter of another operation's outweighs
/// handing it out, and an adapter's small matrices keep several cores busy.
const PART: usize = CHUNK / 4;
// A task begins at a block's start.
const _: () = assert!(PART.is_multiple_of(MOMENT_BLOCK));

impl Factors {
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

/// How parameters are stored.
trait Stored: Float {
    /// The stored form of an updated number; `draw` is 16 uniform bits.
    fn store(updated: f32, draw: u16) -> Self;
}

impl Stored for f32 {
    #[inline(always)]
    fn store(updated: f32, _draw: u16) -> Self {
        updated
    }
}

impl Stored for bf16 {
    #[inline(always)]
    fn store(updated: f32, draw: u16) -> Self {
        round_stochastically(updated, draw)
    }
}

/// The 16 bits for an element of a region.
#[inline(always)]
fn draw(seed: u64, element: usize) -> u16 {
    hash(seed, element as u64) as u16
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

for_each_isa! {
    /// `first`: where in its region the first element stands.
    fn update_f32<W: Stored, G: Float>(
        factors: Factors,
        first: usize,
        w: &mut [W],
        g: &[G],
        m: &mut [f32],
        v: &mut [f32],
    ) {
        let n = w.len();
        let (g, m, v) = (&g[..n], &mut m[..n], &mut v[..n]);
        for i in 0..n {
            let updated;
            (updated, m[i], v[i]) = factors.update(w[i].widen(), g[i].widen(), m[i], v[i]);
            w[i] = W::store(updated, draw(factors.rounding_seed, first + i));
        }
    }
}

/// A part of a moment in eight bits, which begins at a block's start.
struct MomentPart<'a> {
    code: &'static DynamicCode,
    codes: &'a mut [u8],
    absmax: &'a mut [f32],
}

for_each_isa! {
    /// [`update_blocks`] without instructions of its own.
    fn update_blockwise<W: Stored, G: Float>(
        factors: Factors,
        first: usize,
        w: &mut [W],
        g: &[G],
        m: MomentPart<'_>,
        v: MomentPart<'_>,
    ) {
        // SAFETY: it is for every processor.
        unsafe { update_blocks::<W, G, Plain>(factors, first, w, g, m, v) };
    }
}

/// [`update_blocks`] with those of AVX-512.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
fn update_blockwise_avx512<W: Stored, G: Float>(
    factors: Factors,
    first: usize,
    w: &mut [W],
    g: &[G],
    m: MomentPart<'_>,
    v: MomentPart<'_>,
) {
    // SAFETY: for processors that have what this function is compiled for.
    unsafe { update_blocks::<W, G, Avx512>(factors, first, w, g, m, v) };
}

/// `first`: where in its region the first element stands.
///
/// # Safety
/// The processor must be one that `B` is for.
#[inline(always)]
unsafe fn update_blocks<W: Stored, G: Float, B: Blocks>(
    factors: Factors,
    first: usize,
    w: &mut [W],
    g: &[G],
    m: MomentPart<'_>,
    v: MomentPart<'_>,
) {
    let (w, w_rest) = w.as_chunks_mut::<MOMENT_BLOCK>();
    let (g, g_rest) = g.as_chunks::<MOMENT_BLOCK>();
    let (m_codes, m_rest) = m.codes.as_chunks_mut::<MOMENT_BLOCK>();
    let (v_codes, v_rest) = v.codes.as_chunks_mut::<MOMENT_BLOCK>();
    let n_whole = w.len();
    for block in 0..n_whole {
        let m = (m.code, &mut m_codes[block], &mut m.absmax[block]);
        let v = (v.code, &mut v_codes[block], &mut v.absmax[block]);
        let first = first + block * MOMENT_BLOCK;
        // SAFETY: by the caller's promise.
        unsafe {
            update_block::<W, G, B>(&factors, first, &mut w[block], &g[block], m, v, false);
        }
    }
    if !w_rest.is_empty() {
        // Filled up with elements that are and stay zero.
        let n = w_rest.len();
        let (mut w, mut g) = ([W::zeroed(); MOMENT_BLOCK], [G::zeroed(); MOMENT_BLOCK]);
        let mut m_codes = [m.code.zero(); MOMENT_BLOCK];
        let mut v_codes = [v.code.zero(); MOMENT_BLOCK];
        w[..n].copy_from_slice(w_rest);
        g[..n].copy_from_slice(g_rest);
        m_codes[..n].copy_from_slice(m_rest);
        v_codes[..n].copy_from_slice(v_rest);
        let m = (m.code, &mut m_codes, &mut m.absmax[n_whole]);
        let v = (v.code, &mut v_codes, &mut v.absmax[n_whole]);
        let first = first + n_whole * MOMENT_BLOCK;
        // SAFETY: as above.
        unsafe { update_block::<W, G, B>(&factors, first, &mut w, &g, m, v, true) };
        w_rest.copy_from_slice(&w[..n]);
        m_rest.copy_from_slice(&m_codes[..n]);
        v_rest.copy_from_slice(&v_codes[..n]);
    }
}

/// A block of a moment: its code, the codes, the absmax.
type MomentBlock<'a> = (&'static DynamicCode, &'a mut [u8; MOMENT_BLOCK], &'a mut f32);

/// Updates one block; nothing is written before it is known that all can be.
///
/// # Safety
/// The processor must be one that `B` is for.
#[inline(always)]
unsafe fn update_block<W: Stored, G: Float, B: Blocks>(
    factors: &Factors,
    first: usize,
    w: &mut [W; MOMENT_BLOCK],
    g: &[G; MOMENT_BLOCK],
    (m_code, m_codes, m_absmax): MomentBlock<'_>,
    (v_code, v_codes, v_absmax): MomentBlock<'_>,
    is_short: bool,
) {
    let [mut updated, mut m, mut v] = [[0.0; MOMENT_BLOCK]; 3];
    // SAFETY: by the caller's promise.
    unsafe {
        B::dequantize(m_code, m_codes, *m_absmax, &mut m);
        B::dequantize(v_code, v_codes, *v_absmax, &mut v);
    }
    for i in 0..MOMENT_BLOCK {
        (updated[i], m[i], v[i]) = factors.update(w[i].widen(), g[i].widen(), m[i], v[i]);
    }
    let (m_largest, v_largest) = (largest_magnitude(&m), largest_magnitude(&v));
    if !(m_largest.is_finite() && v_largest.is_finite()) {
        return;
    }
    // SAFETY: as above.
    unsafe {
        *m_absmax = quantize_block::<B>(m_code, &m, m_largest, is_short, m_codes);
        *v_absmax = quantize_block::<B>(v_code, &v, v_largest, is_short, v_codes);
    }
    for i in 0..MOMENT_BLOCK {
        w[i] = W::store(updated[i], draw(factors.rounding_seed, first + i));
    }
}

impl AdamW for Cpu {
    fn adamw(&mut self, step: AdamWStep, parameters: Floats, gradient: Floats, moments: Moments) {
        match (parameters, gradient) {
            (Floats::F32(w), Floats::F32(g)) => self.update_stored(step, w, g, moments),
            (Floats::F32(w), Floats::Bf16(g)) => self.update_stored(step, w, g, moments),
            (Floats::Bf16(w), Floats::F32(g)) => self.update_stored(step, w, g, moments),
            (Floats::Bf16(w), Floats::Bf16(g)) => self.update_stored(step, w, g, moments),
        }
    }
}

impl Cpu {
    /// The update of parameters and gradients of either form.
    fn update_stored<W: Stored, G: Float>(
        &mut self,
        step: AdamWStep,
        w: DeviceSlice<W>,
        g: DeviceSlice<G>,
        moments: Moments,
    ) {
        let isa = self.isa();
        let factors = Factors::new(&step);
        let n = g.len();
        let mut access = self.access("adamw");
        let (w, g) = (access.write(w), access.read(g));
        assert_eq!(w.len(), n, "parameters for {n} gradients");
        let first_of = |task: usize| step.first_element + task * PART;
        match moments {
            Moments::F32 { first, second } => {
                let (m, v) = (access.write(first), access.write(second));
                for_each_part(access.pool(), (w, m, v), PART, |task, (w, m, v)| {
                    update_f32(isa, factors, first_of(task), w, &g[task * PART..], m, v);
                });
            }
            Moments::Blockwise8 { first, second } => {
                assert!(
                    step.first_element.is_multiple_of(MOMENT_BLOCK),
                    "{} is not the first element of a block",
                    step.first_element
                );
                let m = MomentPart::of(&mut access, first, first_moment_code());
                let v = MomentPart::of(&mut access, second, second_moment_code());
                for_each_part(access.pool(), (w, m, v), PART, |task, (w, m, v)| {
                    let g = &g[task * PART..][..w.len()];
                    #[cfg(target_arch = "x86_64")]
                    if isa >= Isa::Avx512 {
                        // SAFETY: the device was made with instructions that this processor has.
                        unsafe { update_blockwise_avx512(factors, first_of(task), w, g, m, v) };
                        return;
                    }
                    update_blockwise(isa, factors, first_of(task), w, g, m, v);
                });
            }
        }
    }
}

impl<'a> MomentPart<'a> {
    /// A whole moment.
    fn of(access: &mut Access<'a>, moment: QuantizedMoment, code: &'static DynamicCode) -> Self {
        let (codes, absmax) = (access.write(moment.codes), access.write(moment.absmax));
        assert_eq!(absmax.len(), n_moment_blocks(codes.len()), "blocks of a moment");
        Self { code, codes, absmax }
    }
}

impl<'a> Output for MomentPart<'a> {
    type Shared = (&'static DynamicCode, Shared<u8>, Shared<f32>);
    type Part = MomentPart<'a>;

    fn len(&self) -> usize {
        self.codes.len()
    }

    fn share(self) -> Self::Shared {
        (self.code, self.codes.share(), self.absmax.share())
    }

    unsafe fn part(
        &(code, ref codes, ref absmax): &Self::Shared,
        start: usize,
        len: usize,
    ) -> Self {
        assert!(start.is_multiple_of(MOMENT_BLOCK), "two parts in one block");
        // SAFETY: the caller's promise holds for the elements, and so for their blocks.
        unsafe {
            Self {
                code,
                codes: <&mut [u8]>::part(codes, start, len),
                absmax: <&mut [f32]>::part(absmax, start / MOMENT_BLOCK, n_moment_blocks(len)),
            }
        }
    }
}
