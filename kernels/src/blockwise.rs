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
}

impl DynamicCode {
    /// For each exponent `e` from −6 to 0 there are as many values as `n_parts` says: the middles of
    /// so many equal parts of `[0.1, 1]`, times `10^e`, and their opposites if `signed`; and 0 and 1.
    /// Every operation is in f32, in the order that reproduces the published tables' bits.
    fn new(signed: bool, n_parts: impl Fn(i32) -> usize) -> Self {
        let mut values = [0.0_f32; 256];
        let mut n = 0;
        for exponent in -6..=0 {
            let n_parts = n_parts(exponent);
            let power = 10.0_f64.powi(exponent) as f32;
            let step = (1.0_f32 - 0.1) / n_parts as f32;
            // From the nearer end and with one rounding, as evenly spaced numbers are made there on
            // every processor that can multiply and add at once.
            let edge = |i: usize| {
                if i < n_parts.div_ceil(2) {
                    step.mul_add(i as f32, 0.1)
                } else {
                    (-step).mul_add((n_parts - i) as f32, 1.0)
                }
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
        }
        values[n] = 0.0;
        values[n + 1] = 1.0;
        values.sort_by(f32::total_cmp);
        let zero = values.partition_point(|&value| value < 0.0);
        Self { values, zero: zero as i32, places: places(&values[zero..]) }
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

/// The codes of a block whose largest magnitude is `absmax`, and the absmax to keep.
///
/// `is_short`: whether the block is the short end of a tensor, filled up with zeros. The format's
/// one irregularity: a short block is divided by its absmax where a whole one is multiplied by the
/// reciprocal, and keeps the raised absmax.
#[inline(always)]
pub(crate) fn quantize_block(
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
    let inverse = 1.0 / raised;
    for (coded, &value) in codes.iter_mut().zip(values) {
        *coded = code.nearest(value * inverse);
    }
    absmax
}

/// The numbers that `codes` stand for.
#[inline(always)]
pub(crate) fn dequantize_block(
    code: &DynamicCode,
    codes: &[u8; BLOCK],
    absmax: f32,
    values: &mut [f32; BLOCK],
) {
    for (value, &coded) in values.iter_mut().zip(codes) {
        *value = code.values[usize::from(coded)] * absmax;
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

    #[test]
    fn the_nearest_value_is_found_at_every_border_and_between() {
        for code in codes() {
            let mut xs = vec![0.0, 1.0, 1.0_f32.next_up(), f32::MIN_POSITIVE, 1e-45];
            xs.extend(code.values);
            xs.extend(borders(&code.values).flat_map(|b| [b.next_down(), b, b.next_up()]));
            // Every place of the table, at its start, its end and within, and what lies before.
            for place in -1..N_PLACES as i32 - 1 {
                let start = FIRST_PLACE + (place << PLACE_SHIFT);
                xs.extend(
                    [0, 1, 0x5555, 0xaaaa, 0xffff].map(|at| f32::from_bits((start + at) as u32)),
                );
            }
            for x in xs.iter().flat_map(|&x| [x, -x]) {
                assert_eq!(code.nearest(x), by_counting(code, x), "{x:e}");
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
        for code in codes() {
            let codes: [u8; BLOCK] = std::array::from_fn(|i| i as u8);
            for absmax in [1.0, 3e-38, 1e-20, 0.3, 7e30] {
                let mut values = [0.0; BLOCK];
                dequantize_block(code, &codes, absmax, &mut values);
                assert_eq!(largest_magnitude(&values), absmax);
                for is_short in [false, true] {
                    let mut again = [0; BLOCK];
                    assert_eq!(quantize_block(code, &values, absmax, is_short, &mut again), absmax);
                    assert_eq!(again, codes);
                }
            }
        }
    }
}
