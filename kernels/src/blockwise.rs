//! Eight-bit block-wise quantisation with dynamic codes (Dettmers, "8-bit approximations for
//! parallelism in deep learning", 2015; Dettmers et al., "8-bit optimizers via block-wise
//! quantization", 2022), bit-identical to bitsandbytes.
//!
//! Each block of 256 numbers keeps its largest magnitude (absmax) and, for each number, the index of
//! the nearest of 256 fixed values to `x / absmax`; of two equally near, the lower.
//!
//! ```text
//! x[i] = code.values[codes[i]] · absmax[i / 256]
//! ```
//! What is quantised so, and where it is kept, is for the operations to say.

use std::sync::OnceLock;

/// Numbers that share one absmax.
pub const BLOCK: usize = 256;

/// An absmax below this counts as this in divisions, so that a block of zeros has no NaN.
pub(crate) const LEAST_ABSMAX: f32 = 1e-38;

/// Bits of a magnitude that do not tell its place in [`DynamicCode`]'s table: seven of the fraction
/// do, so that a place is narrower than the distance between two borders.
const PLACE_SHIFT: u32 = 16;
/// Those bits.
const LOWER_BITS: i32 = (1 << PLACE_SHIFT) - 1;
/// 2⁻²³, where the first place begins: all below is nearest to 0.
const FIRST_PLACE: i32 = (127 - 23) << 23;
/// Places from there to 2⁹. Beyond 1 all is nearest to the largest value; but a power of two spares
/// the look-up a comparison.
const N_PLACES: usize = 1 << 12;

/// Decades of a [`DynamicCode`]: powers of ten from −6 to 0.
const N_DECADES: usize = 7;

/// 256 values in [−1, 1], rising, and how to find the nearest.
#[derive(Debug)]
pub struct DynamicCode {
    values: [f32; 256],
    /// The index of 0.
    zero: i32,
    /// For each place of a magnitude: above, how many borders lie below the place; in the lower 16
    /// bits, what must be more than filled up by those of a magnitude for it to lie beyond the one
    /// border within the place. So one sum counts the borders below a magnitude.
    places: [i32; N_PLACES],
    /// Of each decade a line, `slope · magnitude + offset`. The least of them, rounded to a whole number, is
    /// how many borders lie below the magnitude, or one less.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    lines: [(f32, f32); N_DECADES],
    /// The border above so many of them; infinite above the last.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    borders: [f32; 256],
}

impl DynamicCode {
    /// For each exponent `e` from −6 to 0 there are as many values as `n_parts` says: the middles of
    /// so many equal parts of `[0.1, 1]`, times `10^e`, and their opposites if `signed`; and 0 and 1.
    /// Every operation is in f32, in the order that reproduces the published tables' bits.
    fn new(signed: bool, n_parts: impl Fn(i32) -> usize) -> Self {
        let mut values = [0.0_f32; 256];
        let mut lines = [(0.0, 0.0); N_DECADES];
        let (mut n, mut n_positive) = (0, 0);
        for (exponent, line) in (-6..=0).zip(&mut lines) {
            let n_parts = n_parts(exponent);
            let power = 10.0_f64.powi(exponent) as f32;
            let step = (1.0_f32 - 0.1) / n_parts as f32;
            // From the nearer end and with one rounding, as evenly spaced numbers are made there on
            // every processor that can multiply and add at once. It is the one to f32, as f64 holds all of
            // them: some systems' function for it, where the processor has no instruction, rounds twice.
            let edge = |i: usize| {
                let (start, n_steps) = if i < n_parts.div_ceil(2) {
                    (0.1_f32, i as f64)
                } else {
                    (1.0, -((n_parts - i) as f64))
                };
                (f64::from(step) * n_steps + f64::from(start)) as f32
            };
            for part in 0..n_parts {
                let middle = (edge(part) + edge(part + 1)) / 2.0;
                values[n] = power * middle;
                n += 1;
                if signed {
                    values[n] = -power * middle;
                    n += 1;
                }
            }
            // Borders of a decade lie evenly from its start on, the first of them a part behind it.
            let part = f64::from(power) * 0.9 / n_parts as f64;
            let start = f64::from(power) * 0.1;
            *line = ((1.0 / part) as f32, (f64::from(n_positive) - start / part) as f32);
            n_positive += n_parts as u32;
        }
        values[n] = 0.0;
        values[n + 1] = 1.0;
        values.sort_by(f32::total_cmp);
        let zero = values.partition_point(|&value| value < 0.0);
        let mut above = [f32::INFINITY; 256];
        for (above, border) in above.iter_mut().zip(borders(&values[zero..])) {
            *above = border;
        }
        let places = places(&values[zero..]);
        Self { values, zero: zero as i32, places, lines, borders: above }
    }

    /// The code for numbers of either sign: 127 values below 0, 0 at index 127, 128 above.
    pub fn signed() -> &'static Self {
        static CODE: OnceLock<DynamicCode> = OnceLock::new();
        CODE.get_or_init(|| Self::new(true, |exponent| 1 << (exponent + 6)))
    }

    /// The code for numbers that are never negative: 0 at index 0, 255 values above.
    pub fn unsigned() -> &'static Self {
        static CODE: OnceLock<DynamicCode> = OnceLock::new();
        CODE.get_or_init(|| Self::new(false, |exponent| 2 << (exponent + 6)))
    }

    /// The values, rising.
    pub fn values(&self) -> &[f32; 256] {
        &self.values
    }

    /// The index of 0.
    pub fn zero(&self) -> u8 {
        self.zero as u8
    }

    /// The index of the value nearest to `x` in [−1, 1], the lower of two equally near; of numbers
    /// beyond (by a rounding), that of the value at the end. Without a branch, a search or a
    /// comparison of floats: magnitudes rise with their bits.
    #[inline(always)]
    pub(crate) fn nearest(&self, x: f32) -> u8 {
        let sign = x.to_bits() as i32 >> 31;
        // One more below 0, where the lower of two is that of the larger magnitude.
        let magnitude = (x.to_bits() & !(1 << 31)) as i32 - sign;
        let above = (magnitude - FIRST_PLACE).max(0);
        let place = self.places[(above >> PLACE_SHIFT) as usize % N_PLACES];
        let n_borders = (place + (above & LOWER_BITS)) >> PLACE_SHIFT;
        // Upwards or downwards from 0, where there may be one value fewer.
        (self.zero + (n_borders ^ sign) - sign).max(0) as u8
    }
}

/// The table of [`DynamicCode::nearest`] for the values from 0 on. The border between two neighbours
/// is their middle, rounded, as it is in bitsandbytes.
fn places(values: &[f32]) -> [i32; N_PLACES] {
    let borders: Vec<i32> = borders(values).map(|border| border.to_bits() as i32).collect();
    std::array::from_fn(|place| {
        let start = FIRST_PLACE + ((place as i32) << PLACE_SHIFT);
        let n_below = borders.partition_point(|&border| border < start);
        let within = borders.get(n_below).map(|border| border - start);
        let within = within.filter(|&within| within <= LOWER_BITS).unwrap_or(LOWER_BITS);
        (n_below as i32) << PLACE_SHIFT | (LOWER_BITS - within)
    })
}

/// Where the nearest of two neighbours changes.
fn borders(values: &[f32]) -> impl Iterator<Item = f32> {
    values.windows(2).map(|pair| (pair[0] + pair[1]) / 2.0)
}

/// The largest magnitude of `values`; compared as whole numbers, which order magnitudes alike, and a
/// NaN above all.
#[inline(always)]
pub(crate) fn largest_magnitude<const N: usize>(values: &[f32; N]) -> f32 {
    let magnitude = |value: f32| (value.to_bits() & !(1 << 31)) as i32;
    f32::from_bits(values.iter().fold(0, |most, &value| most.max(magnitude(value))) as u32)
}

/// How blocks are coded and decoded: everywhere, or with a processor's own instructions. Every way gives
/// the same bits.
pub(crate) trait Blocks {
    /// The codes of a whole block whose numbers are multiplied by `factor`.
    ///
    /// # Safety
    /// The processor must be one that this is for.
    unsafe fn nearest(
        code: &DynamicCode,
        values: &[f32; BLOCK],
        factor: f32,
        codes: &mut [u8; BLOCK],
    );

    /// The numbers that `codes` stand for.
    ///
    /// # Safety
    /// As [`Blocks::nearest`].
    unsafe fn dequantize(
        code: &DynamicCode,
        codes: &[u8; BLOCK],
        absmax: f32,
        values: &mut [f32; BLOCK],
    );
}

/// Loops that the compiler turns into vector code.
pub(crate) struct Plain;

impl Blocks for Plain {
    #[inline(always)]
    unsafe fn nearest(
        code: &DynamicCode,
        values: &[f32; BLOCK],
        factor: f32,
        codes: &mut [u8; BLOCK],
    ) {
        for (coded, &value) in codes.iter_mut().zip(values) {
            *coded = code.nearest(value * factor);
        }
    }

    #[inline(always)]
    unsafe fn dequantize(
        code: &DynamicCode,
        codes: &[u8; BLOCK],
        absmax: f32,
        values: &mut [f32; BLOCK],
    ) {
        for (value, &coded) in values.iter_mut().zip(codes) {
            *value = code.values[usize::from(coded)] * absmax;
        }
    }
}

/// The codes of a block whose largest magnitude is `absmax`, and the absmax to keep.
///
/// `is_short`: whether the block is the short end of a tensor, filled up with zeros. The format's
/// one irregularity: a short block is divided by its absmax where a whole one is multiplied by the
/// reciprocal, and keeps the raised absmax.
///
/// # Safety
/// The processor must be one that `B` is for.
#[inline(always)]
pub(crate) unsafe fn quantize_block<B: Blocks>(
    code: &DynamicCode,
    values: &[f32; BLOCK],
    absmax: f32,
    is_short: bool,
    codes: &mut [u8; BLOCK],
) -> f32 {
    let raised = absmax.max(LEAST_ABSMAX);
    if is_short {
        for (coded, &value) in codes.iter_mut().zip(values) {
            *coded = code.nearest(value / raised);
        }
        return raised;
    }
    // SAFETY: by the caller's promise.
    unsafe { B::nearest(code, values, 1.0 / raised, codes) };
    absmax
}

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::Avx512;

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{BLOCK, Blocks, DynamicCode};

    /// With AVX-512: tables of 256 numbers are sixteen registers, in which a look-up takes a third of the time
    /// that it takes in memory. To be inlined in functions that are compiled for it.
    pub(crate) struct Avx512;

    /// Numbers of a register.
    const LANES: usize = 16;

    /// A table of `16 · REGISTERS` numbers.
    struct Table<const REGISTERS: usize>([__m512; REGISTERS]);

    impl<const REGISTERS: usize> Table<REGISTERS> {
        /// # Safety
        /// The processor must have AVX-512.
        #[inline(always)]
        unsafe fn new(numbers: &[f32; 256]) -> Self {
            // SAFETY: at most 256 numbers are read.
            unsafe {
                let mut registers = [_mm512_setzero_ps(); REGISTERS];
                for (register, numbers) in registers.iter_mut().zip(numbers.as_chunks::<LANES>().0)
                {
                    *register = _mm512_loadu_ps(numbers.as_ptr());
                }
                Self(registers)
            }
        }

        /// The numbers at `places`, of which the lowest bits count.
        ///
        /// # Safety
        /// The processor must have AVX-512.
        #[inline(always)]
        unsafe fn at(&self, places: __m512i) -> __m512 {
            // SAFETY: by the caller's promise.
            unsafe {
                // Of 32 each, by the lowest five bits; then by the others, one after another.
                let mut found = [_mm512_setzero_ps(); REGISTERS];
                let mut n = REGISTERS / 2;
                for (found, pair) in found.iter_mut().zip(self.0.as_chunks::<2>().0) {
                    *found = _mm512_permutex2var_ps(pair[0], places, pair[1]);
                }
                let mut bit = 32;
                while n > 1 {
                    let upper = _mm512_test_epi32_mask(places, _mm512_set1_epi32(bit));
                    n /= 2;
                    for i in 0..n {
                        found[i] = _mm512_mask_blend_ps(upper, found[2 * i], found[2 * i + 1]);
                    }
                    bit *= 2;
                }
                found[0]
            }
        }
    }

    /// # Safety
    /// The processor must have AVX-512.
    #[inline(always)]
    unsafe fn nearest<const REGISTERS: usize>(
        code: &DynamicCode,
        values: &[f32; BLOCK],
        factor: f32,
        codes: &mut [u8; BLOCK],
    ) {
        /// 1.5·2²³, whose unit in the last place is 1: adding it rounds to a whole number, which then
        /// stands in the lowest bits.
        const ROUNDING: f32 = 12_582_912.0;
        let (values, codes) = (values.as_chunks::<LANES>().0, codes.as_chunks_mut::<LANES>().0);
        // SAFETY: by the caller's promise; every access is of 16 numbers of an array.
        unsafe {
            let borders = Table::<REGISTERS>::new(&code.borders);
            let rounding = _mm512_set1_ps(ROUNDING);
            let base = _mm512_set1_epi32(ROUNDING.to_bits() as i32);
            let zero = _mm512_set1_epi32(code.zero);
            let one = _mm512_set1_epi32(1);
            for (values, codes) in values.iter().zip(codes) {
                let x = _mm512_mul_ps(_mm512_loadu_ps(values.as_ptr()), _mm512_set1_ps(factor));
                let bits = _mm512_castps_si512(x);
                let sign = _mm512_srai_epi32::<31>(bits);
                let magnitude = _mm512_and_si512(bits, _mm512_set1_epi32(i32::MAX));
                // One more below 0, as in the plain loop.
                let magnitude = _mm512_castsi512_ps(_mm512_sub_epi32(magnitude, sign));
                let line = |(slope, offset): (f32, f32)| {
                    _mm512_fmadd_ps(_mm512_set1_ps(slope), magnitude, _mm512_set1_ps(offset))
                };
                let [a, b, c, d, e, f, g] = code.lines;
                let least = _mm512_min_ps(
                    _mm512_min_ps(_mm512_min_ps(line(a), line(b)), _mm512_min_ps(line(c), line(d))),
                    _mm512_min_ps(_mm512_min_ps(line(e), line(f)), line(g)),
                );
                let fewest = _mm512_castps_si512(_mm512_add_ps(least, rounding));
                let lies_beyond = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(borders.at(fewest), magnitude);
                let fewest = _mm512_sub_epi32(fewest, base);
                let n_borders = _mm512_mask_add_epi32(fewest, lies_beyond, fewest, one);
                let turned = _mm512_sub_epi32(_mm512_xor_si512(n_borders, sign), sign);
                let index = _mm512_add_epi32(zero, turned);
                let index = _mm512_max_epi32(index, _mm512_setzero_si512());
                _mm_storeu_si128(codes.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(index));
            }
        }
    }

    impl Blocks for Avx512 {
        #[inline(always)]
        unsafe fn nearest(
            code: &DynamicCode,
            values: &[f32; BLOCK],
            factor: f32,
            codes: &mut [u8; BLOCK],
        ) {
            // SAFETY: by the caller's promise.
            unsafe {
                if code.zero > 0 {
                    // No more than 128 borders on either side of 0.
                    nearest::<8>(code, values, factor, codes);
                } else {
                    nearest::<16>(code, values, factor, codes);
                }
            }
        }

        #[inline(always)]
        unsafe fn dequantize(
            code: &DynamicCode,
            codes: &[u8; BLOCK],
            absmax: f32,
            values: &mut [f32; BLOCK],
        ) {
            let codes = codes.as_chunks::<LANES>().0;
            let values = values.as_chunks_mut::<LANES>().0;
            // SAFETY: by the caller's promise; every access is of 16 numbers of an array.
            unsafe {
                let table = Table::<16>::new(&code.values);
                for (codes, values) in codes.iter().zip(values) {
                    let codes = _mm512_cvtepu8_epi32(_mm_loadu_si128(codes.as_ptr().cast()));
                    let scaled = _mm512_mul_ps(table.at(codes), _mm512_set1_ps(absmax));
                    _mm512_storeu_ps(values.as_mut_ptr(), scaled);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn codes() -> [&'static DynamicCode; 2] {
        [DynamicCode::signed(), DynamicCode::unsigned()]
    }

    #[test]
    fn values_rise_between_both_ends() {
        for code in codes() {
            assert!(code.values.is_sorted_by(|a, b| a < b));
            assert_eq!((code.values[usize::from(code.zero())], code.values[255]), (0.0, 1.0));
            assert!(code.values[0] > -1.0);
        }
        assert_eq!((DynamicCode::signed().zero(), DynamicCode::unsigned().zero()), (127, 0));
        // But for 0 and 1, every signed value has its opposite.
        let signed = DynamicCode::signed().values;
        for i in 0..127 {
            assert_eq!(signed[i], -signed[254 - i]);
        }
    }

    /// The definition.
    fn by_counting(code: &DynamicCode, x: f32) -> u8 {
        borders(&code.values).filter(|&border| border < x).count() as u8
    }

    /// Runs `test` with every way that this processor has.
    macro_rules! every_way {
        ($test:ident) => {{
            // SAFETY: it is for every processor.
            unsafe { $test::<Plain>() };
            #[cfg(target_arch = "x86_64")]
            if crate::Isa::best() >= crate::Isa::Avx512 {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
                fn with_avx512() {
                    // SAFETY: this function is compiled for it.
                    unsafe { $test::<Avx512>() };
                }
                // SAFETY: as just asked.
                unsafe { with_avx512() };
            }
        }};
    }

    #[test]
    fn the_nearest_value_is_found_at_every_border_and_between() {
        every_way!(the_nearest_values_are_found);
    }

    #[inline(always)]
    unsafe fn the_nearest_values_are_found<B: Blocks>() {
        for code in codes() {
            let mut xs = vec![0.0, 1.0, 1.0_f32.next_up(), f32::MIN_POSITIVE, 1e-45, 1e-30];
            xs.extend(code.values);
            xs.extend(borders(&code.values).flat_map(|b| [b.next_down(), b, b.next_up()]));
            // Every place of the table, at its start, its end and within, and what lies before.
            for place in -300..N_PLACES as i32 - 1 {
                let start = FIRST_PLACE + (place << PLACE_SHIFT);
                xs.extend(
                    [0, 1, 0x5555, 0xaaaa, 0xffff].map(|at| f32::from_bits((start + at) as u32)),
                );
            }
            xs.retain(|x| x.abs() <= 1.0_f32.next_up());
            let xs: Vec<_> = xs.iter().flat_map(|&x| [x, -x]).collect();
            for xs in xs.chunks(BLOCK) {
                let mut values = [0.0; BLOCK];
                values[..xs.len()].copy_from_slice(xs);
                for factor in [1.0, 0.5] {
                    let mut nearest = [0; BLOCK];
                    // SAFETY: by the caller's promise.
                    unsafe { B::nearest(code, &values, factor, &mut nearest) };
                    for (x, nearest) in values.into_iter().zip(nearest) {
                        assert_eq!(nearest, by_counting(code, x * factor), "{x:e} · {factor}");
                    }
                }
            }
        }
    }

    /// So that a rounding of the sum does not matter.
    #[test]
    fn the_lines_have_room_on_either_side() {
        for code in codes() {
            let borders: Vec<_> = borders(&code.values[usize::from(code.zero())..]).collect();
            for n in 0..=borders.len() {
                let lowest = if n == 0 { 0.0 } else { borders[n - 1] };
                let highest = borders.get(n).copied().unwrap_or(1.0);
                for end in [lowest, highest] {
                    let lines = code.lines.iter().map(|&(slope, offset)| slope * end + offset);
                    let least = lines.fold(f32::INFINITY, f32::min);
                    // Rounded, n or n − 1, and never less than 0.
                    let (lowest, highest) = ((n as f32 - 1.4).max(-0.4), n as f32 + 0.4);
                    assert!(lowest < least && least < highest, "{n}: {least}");
                }
            }
        }
    }

    #[test]
    fn no_place_holds_two_borders() {
        for code in codes() {
            let places = borders(&code.values[usize::from(code.zero())..])
                .map(|border| border.to_bits() >> PLACE_SHIFT);
            assert!(places.is_sorted_by(|a, b| a < b));
        }
    }

    #[test]
    fn every_code_comes_back() {
        every_way!(codes_come_back);
    }

    #[inline(always)]
    unsafe fn codes_come_back<B: Blocks>() {
        for code in codes() {
            let codes: [u8; BLOCK] = std::array::from_fn(|i| i as u8);
            for absmax in [1.0, 3e-38, 1e-20, 0.3, 7e30] {
                let mut values = [0.0; BLOCK];
                // SAFETY: by the caller's promise.
                unsafe { B::dequantize(code, &codes, absmax, &mut values) };
                assert_eq!(values, code.values.map(|value| value * absmax));
                assert_eq!(largest_magnitude(&values), absmax);
                for is_short in [false, true] {
                    let mut again = [0; BLOCK];
                    // SAFETY: as above.
                    let kept =
                        unsafe { quantize_block::<B>(code, &values, absmax, is_short, &mut again) };
                    assert_eq!(kept, absmax);
                    assert_eq!(again, codes);
                }
            }
        }
    }
}
