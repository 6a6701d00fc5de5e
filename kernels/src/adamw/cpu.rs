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
    /// The new moments.
    #[inline(always)]
    fn moments<const FUSED: bool>(&self, g: f32, m: f32, v: f32) -> (f32, f32) {
        let g = g * self.gradient_scale;
        // As a step from m towards g, which is how PyTorch computes and rounds it.
        let m = multiply_add::<FUSED>(self.one_minus_beta1, g - m, m);
        let v = multiply_add::<FUSED>(self.one_minus_beta2 * g, g, v * self.beta2);
        (m, v)
    }

    /// The new parameter, by the new moments.
    #[inline(always)]
    fn parameter(&self, w: f32, m: f32, v: f32) -> f32 {
        let denominator = v.sqrt() / self.correction2_root + self.epsilon;
        w * self.decay - self.step_size * m / denominator
    }
}

/// `x`, or zero for one that is subnormal. A moment in f32 without a gradient would come to rest there, where an Intel
/// processor takes more than a hundred cycles for each operation.
#[inline(always)]
fn normal(x: f32) -> f32 {
    if x.abs() < f32::MIN_POSITIVE { 0.0 } else { x }
}

/// `a · b + c`, rounded once as PyTorch's vector code rounds it; without an instruction for that (`FUSED`) by
/// f64, in which the product is exact and the sum rounded to odd: so rounding it again is as rounding once
/// (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums", 2008).
#[inline(always)]
fn multiply_add<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FUSED {
        return a.mul_add(b, c);
    }
    let (product, c) = (f64::from(a) * f64::from(b), f64::from(c));
    let sum = product + c;
    // What the sum's rounding took away, exactly.
    let part = sum - product;
    let rest = (product - (sum - part)) + (c - part);
    // Of the two neighbours that the sum lies between, the odd one. (Of what is not finite the rest is none.)
    let bits = sum.to_bits();
    let is_even = bits & 1 == 0;
    let towards = if (rest > 0.0) == (sum > 0.0) { 1_u64 } else { u64::MAX };
    let moves = is_even & (rest.abs() > 0.0) & sum.is_finite();
    f64::from_bits(bits.wrapping_add(if moves { towards } else { 0 })) as f32
}

/// Elements that are updated at a time.
const RUN: usize = MOMENT_BLOCK;

/// How parameters are stored.
trait Stored: Float {
    /// Stores up to [`RUN`] updated numbers of a region, from element `first` on.
    fn store(updated: &[f32], seed: u64, first: usize, place: &mut [Self]);
}

impl Stored for f32 {
    #[inline(always)]
    fn store(updated: &[f32], _seed: u64, _first: usize, place: &mut [Self]) {
        place.copy_from_slice(updated);
    }
}

impl Stored for bf16 {
    #[inline(always)]
    fn store(updated: &[f32], seed: u64, first: usize, place: &mut [Self]) {
        /// Elements that share a random number, 16 bits each.
        const SHARING: usize = 4;
        let mut numbers = [0; RUN / SHARING + 1];
        for (i, number) in numbers.iter_mut().enumerate() {
            *number = hash(seed, (first / SHARING + i) as u64).to_le();
        }
        let draws: &[u16] = &bytemuck::cast_slice(&numbers)[first % SHARING..];
        for (place, (&updated, &draw)) in place.iter_mut().zip(updated.iter().zip(draws)) {
            *place = round_stochastically(updated, u16::from_le(draw));
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
        let mut updated = [0.0; RUN];
        for start in (0..n).step_by(RUN) {
            let run = start..(start + RUN).min(n);
            let (w, g) = (&mut w[run.clone()], &g[run.clone()]);
            let (m, v) = (&mut m[run.clone()], &mut v[run]);
            let updated = &mut updated[..w.len()];
            for i in 0..w.len() {
                let moments = factors.moments::<FUSED>(g[i].widen(), m[i], v[i]);
                (m[i], v[i]) = (normal(moments.0), normal(moments.1));
                updated[i] = factors.parameter(w[i].widen(), m[i], v[i]);
            }
            W::store(updated, factors.rounding_seed, first + start, w);
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
        unsafe { update_blocks::<W, G, Plain, FUSED>(factors, first, w, g, m, v) };
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
    unsafe { update_blocks::<W, G, Avx512, true>(factors, first, w, g, m, v) };
}

/// `first`: where in its region the first element stands.
///
/// # Safety
/// The processor must be one that `B` is for.
#[inline(always)]
unsafe fn update_blocks<W: Stored, G: Float, B: Parameters, const FUSED: bool>(
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
            update_block::<W, G, B, FUSED>(&factors, first, &mut w[block], &g[block], m, v, false);
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
        unsafe { update_block::<W, G, B, FUSED>(&factors, first, &mut w, &g, m, v, true) };
        w_rest.copy_from_slice(&w[..n]);
        m_rest.copy_from_slice(&m_codes[..n]);
        v_rest.copy_from_slice(&v_codes[..n]);
    }
}

/// How the parameters of a block are updated. Every way gives the same bits.
trait Parameters: Blocks {
    /// By new moments, none of which is infinite or no number.
    ///
    /// # Safety
    /// The processor must be one that this is for.
    unsafe fn update(
        factors: &Factors,
        m: &[f32; MOMENT_BLOCK],
        v: &[f32; MOMENT_BLOCK],
        w: &mut [f32; MOMENT_BLOCK],
    );
}

impl Parameters for Plain {
    #[inline(always)]
    unsafe fn update(
        factors: &Factors,
        m: &[f32; MOMENT_BLOCK],
        v: &[f32; MOMENT_BLOCK],
        w: &mut [f32; MOMENT_BLOCK],
    ) {
        for (w, (&m, &v)) in w.iter_mut().zip(m.iter().zip(v)) {
            *w = factors.parameter(*w, m, v);
        }
    }
}

/// A processor divides sixteen numbers in the time of sixteen multiplications. By multiplications of the
/// reciprocal, corrected by what they leave, the quotient is the same to the last bit (Markstein,
/// "Computation of elementary functions on the IBM RISC System/6000 processor", 1990), where nothing on the
/// way is too large, too small, or divided by a number whose bits are all ones.
#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{Avx512, Factors, MOMENT_BLOCK, Parameters};

    /// Numbers of a register.
    const LANES: usize = 16;

    /// The bits of a fraction, which lie below those of the exponent.
    const FRACTION: i32 = (1 << 23) - 1;

    /// The bits of 2ⁿ.
    const fn power(n: i32) -> i32 {
        (127 + n) << 23
    }

    /// Lanes whose magnitude is from 2^`lowest` on and below 2^`highest`.
    ///
    /// # Safety
    /// The processor must have AVX-512.
    #[inline(always)]
    unsafe fn between(x: __m512, lowest: i32, highest: i32) -> __mmask16 {
        // SAFETY: by the caller's promise.
        unsafe {
            let bits = _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(i32::MAX));
            let above = _mm512_sub_epi32(bits, _mm512_set1_epi32(power(lowest)));
            _mm512_cmplt_epu32_mask(above, _mm512_set1_epi32(power(highest) - power(lowest)))
        }
    }

    /// Lanes with a fraction of nothing but ones.
    ///
    /// # Safety
    /// As [`between`].
    #[inline(always)]
    unsafe fn are_ones(x: __m512) -> __mmask16 {
        // SAFETY: by the caller's promise.
        unsafe {
            let fraction = _mm512_set1_epi32(FRACTION);
            _mm512_cmpeq_epi32_mask(_mm512_and_si512(_mm512_castps_si512(x), fraction), fraction)
        }
    }

    /// `n / d` by the reciprocal of `d`.
    ///
    /// # Safety
    /// As [`between`].
    #[inline(always)]
    unsafe fn by_reciprocal(n: __m512, d: __m512, reciprocal: __m512) -> __m512 {
        // SAFETY: by the caller's promise.
        unsafe {
            // Within two units in the last place; within one; the nearest.
            let quotient = _mm512_mul_ps(n, reciprocal);
            let rest = _mm512_fnmadd_ps(d, quotient, n);
            let quotient = _mm512_fmadd_ps(rest, reciprocal, quotient);
            let rest = _mm512_fnmadd_ps(d, quotient, n);
            _mm512_fmadd_ps(rest, reciprocal, quotient)
        }
    }

    /// `n / d`.
    ///
    /// # Safety
    /// As [`between`].
    #[inline(always)]
    pub(super) unsafe fn quotient(n: __m512, d: __m512) -> __m512 {
        // SAFETY: by the caller's promise.
        unsafe {
            let is_usual = between(n, -100, 60) & between(d, -40, 20) & !are_ones(d);
            if is_usual != u16::MAX {
                return _mm512_div_ps(n, d);
            }
            let one = _mm512_set1_ps(1.0);
            // To 14 bits; to 27; to the last.
            let reciprocal = _mm512_rcp14_ps(d);
            let rest = _mm512_fnmadd_ps(d, reciprocal, one);
            let reciprocal = _mm512_fmadd_ps(rest, reciprocal, reciprocal);
            let rest = _mm512_fnmadd_ps(d, reciprocal, one);
            let reciprocal = _mm512_fmadd_ps(rest, reciprocal, reciprocal);
            by_reciprocal(n, d, reciprocal)
        }
    }

    impl Parameters for Avx512 {
        #[inline(always)]
        unsafe fn update(
            factors: &Factors,
            m: &[f32; MOMENT_BLOCK],
            v: &[f32; MOMENT_BLOCK],
            w: &mut [f32; MOMENT_BLOCK],
        ) {
            let moments = m.as_chunks::<LANES>().0.iter().zip(v.as_chunks::<LANES>().0);
            // SAFETY: by the caller's promise; every access is of 16 numbers of an array.
            unsafe {
                let root_factor = _mm512_set1_ps(factors.correction2_root);
                let reciprocal = _mm512_set1_ps(1.0 / factors.correction2_root);
                let is_usual = between(root_factor, -20, 1) & !are_ones(root_factor) == u16::MAX;
                for (w, (m, v)) in w.as_chunks_mut::<LANES>().0.iter_mut().zip(moments) {
                    let root = _mm512_sqrt_ps(_mm512_loadu_ps(v.as_ptr()));
                    // Of zero, or from 2⁻⁷⁵ to 2⁶⁴.
                    let root = if is_usual {
                        by_reciprocal(root, root_factor, reciprocal)
                    } else {
                        _mm512_div_ps(root, root_factor)
                    };
                    let denominator = _mm512_add_ps(root, _mm512_set1_ps(factors.epsilon));
                    let step = _mm512_mul_ps(
                        _mm512_set1_ps(factors.step_size),
                        _mm512_loadu_ps(m.as_ptr()),
                    );
                    let decayed =
                        _mm512_mul_ps(_mm512_loadu_ps(w.as_ptr()), _mm512_set1_ps(factors.decay));
                    let updated = _mm512_sub_ps(decayed, quotient(step, denominator));
                    _mm512_storeu_ps(w.as_mut_ptr(), updated);
                }
            }
        }
    }
}

/// A block of a moment: its code, the codes, the absmax.
type MomentBlock<'a> = (&'static DynamicCode, &'a mut [u8; MOMENT_BLOCK], &'a mut f32);

/// Updates one block; nothing is written before it is known that all can be.
///
/// # Safety
/// The processor must be one that `B` is for.
#[inline(always)]
unsafe fn update_block<W: Stored, G: Float, B: Parameters, const FUSED: bool>(
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
        (m[i], v[i]) = factors.moments::<FUSED>(g[i].widen(), m[i], v[i]);
    }
    let (m_largest, v_largest) = (largest_magnitude(&m), largest_magnitude(&v));
    if !(m_largest.is_finite() && v_largest.is_finite()) {
        return;
    }
    for (updated, w) in updated.iter_mut().zip(&*w) {
        *updated = w.widen();
    }
    // SAFETY: as above.
    unsafe {
        B::update(factors, &m, &v, &mut updated);
        *m_absmax = quantize_block::<B>(m_code, &m, m_largest, is_short, m_codes);
        *v_absmax = quantize_block::<B>(v_code, &v, v_largest, is_short, v_codes);
    }
    W::store(&updated, factors.rounding_seed, first, w);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;

    /// Numbers of many sizes.
    fn numbers(random: &mut Random, n: usize) -> Vec<f32> {
        random
            .normal(2 * n)
            .as_chunks::<2>()
            .0
            .iter()
            // Sixteen together are seldom beyond what is divided by multiplying.
            .map(|&[x, size]| x * (6.0 * size).exp2())
            .collect()
    }

    /// Of two odd numbers of 13 bits the product, where it has 25, lies half-way between two f32: the least that
    /// is added decides, which f64 does not hold beside it.
    #[test]
    fn multiplying_and_adding_rounds_once_without_an_instruction() {
        let mut n_halves = 0;
        for a in (4097_u32..8192).step_by(34) {
            for b in (4097_u32..8192).step_by(38) {
                let product = a * b;
                if product >= 1 << 25 {
                    continue;
                }
                n_halves += 1;
                for sign in [1.0_f32, -1.0] {
                    for (c, expected) in [(1e-9, product + 1), (-1e-9, product - 1)] {
                        let actual = multiply_add::<false>(sign * a as f32, b as f32, sign * c);
                        assert_eq!(actual, sign * expected as f32, "{sign} · {a} · {b} + {c}");
                    }
                }
            }
        }
        assert!(n_halves > 1000);
        for (a, b, c, expected) in [
            (f32::MAX, 2.0, 0.0, f32::INFINITY),
            (f32::MAX, 2.0, -f32::MAX, f32::MAX),
            (3.0, 5.0, -15.0, 0.0),
            (1e-30, 1e-15, 0.0, 1e-45),
            (f32::INFINITY, 1.0, 1.0, f32::INFINITY),
        ] {
            assert_eq!(multiply_add::<false>(a, b, c), expected, "{a:e} · {b:e} + {c:e}");
        }
        assert!(multiply_add::<false>(f32::INFINITY, 1.0, -f32::INFINITY).is_nan());
    }

    /// The product of 1 + 2⁻¹² with itself, 1 + 2⁻¹¹ + 2⁻²⁴, lies halfway between two f32 but for 2⁻⁸⁰, which
    /// f64 does not hold beside it.
    #[test]
    fn what_f64_rounds_away_decides_between_two_halves() {
        let a = 1.0 + (-12.0_f32).exp2();
        let c = (-80.0_f32).exp2();
        let above = 1.0 + (-11.0_f32).exp2() + (-23.0_f32).exp2();
        assert_eq!(multiply_add::<false>(a, a, c), above);
        assert_eq!(multiply_add::<false>(a, a, -c), 1.0 + (-11.0_f32).exp2());
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn quotients_are_those_of_a_division() {
        use std::arch::x86_64::*;

        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
        fn quotients(n: &[f32; 16], d: &[f32; 16]) -> [f32; 16] {
            let mut quotients = [0.0; 16];
            // SAFETY: 16 numbers of each are there; this function is compiled for AVX-512.
            unsafe {
                let (n, d) = (_mm512_loadu_ps(n.as_ptr()), _mm512_loadu_ps(d.as_ptr()));
                _mm512_storeu_ps(quotients.as_mut_ptr(), x86::quotient(n, d));
            }
            quotients
        }

        if Isa::best() < Isa::Avx512 {
            return;
        }
        let mut random = Random::new(2);
        let n = 1 << 18;
        let [numerators, denominators] = [0; 2].map(|_| numbers(&mut random, n));
        let specials = [
            0.0,
            -0.0,
            f32::INFINITY,
            f32::NAN,
            f32::MAX,
            f32::MIN_POSITIVE,
            1e-42,
            1.0_f32.next_down(),
            1.0,
            2.0_f32.next_down(),
        ];
        let mut pairs: Vec<_> = numerators.into_iter().zip(denominators).collect();
        // As near as numerators come to the border between two quotients: at the product of a denominator
        // with half a unit more than a quotient.
        let borders = pairs.iter().map(|&(n, d)| {
            let (quotient, d) = (n / d, d.abs());
            let unit = f64::from(quotient.next_up()) - f64::from(quotient);
            (((f64::from(quotient) + unit / 2.0) * f64::from(d)) as f32, d)
        });
        let borders: Vec<_> = borders.collect();
        pairs.extend(borders);
        // Sixteen alike, so that it is they that are told apart: fractions of nothing but ones, and both sides
        // of every border of what is divided by multiplying.
        let some: Vec<_> = pairs[..1 << 12].iter().map(|&(n, _)| n).collect();
        pairs.extend(some.iter().map(|&n| (n, 1.0_f32.next_down())));
        for size in [-101.0, -99.0, 59.0, 61.0_f32] {
            pairs.extend(some[..64].iter().map(|&n| (n.signum() * size.exp2() * 1.25, 3.0)));
        }
        for size in [-41.0, -39.0, 19.0, 21.0_f32] {
            pairs.extend(some[..64].iter().map(|&n| (n, size.exp2() * 1.75)));
        }
        pairs.extend(specials.iter().flat_map(|&n| specials.iter().map(move |&d| (n, d))));
        pairs.resize(pairs.len().next_multiple_of(16), (1.0, 3.0));
        for pairs in pairs.as_chunks::<16>().0 {
            // SAFETY: as just asked.
            let actual = unsafe { quotients(&pairs.map(|(n, _)| n), &pairs.map(|(_, d)| d)) };
            for (&(n, d), actual) in pairs.iter().zip(actual) {
                let expected = n / d;
                let is_alike = actual.to_bits() == expected.to_bits();
                assert!(
                    is_alike || actual.is_nan() && expected.is_nan(),
                    "{n:e} / {d:e}: {actual:e}"
                );
            }
        }
    }
}
