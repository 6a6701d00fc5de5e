//! Numbers as they are stored, which loops read and write in f32.

use half::bf16;

use super::math::for_each_isa;
use crate::{Compute, Element, Isa};

/// A number as it is stored.
pub(crate) trait Float: Element {
    /// The number in f32.
    fn widen(self) -> f32;

    /// As products in `compute` see it.
    fn seen(self, compute: Compute) -> f32;

    /// The nearest to a number, of two equally near the even.
    fn nearest(value: f32) -> Self;

    /// The nearest to each number of a row. (On AVX-512 BF16 the instruction flushes denormal numbers, as does
    /// the one that multiplies.)
    fn store_row(isa: Isa, row: &[f32], place: &mut [Self]);
}

impl Float for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }

    #[inline(always)]
    fn seen(self, compute: Compute) -> f32 {
        match compute {
            Compute::F32 => self,
            Compute::Bf16 => bf16::nearest(self).widen(),
        }
    }

    #[inline(always)]
    fn nearest(value: f32) -> Self {
        value
    }

    #[inline]
    fn store_row(_: Isa, row: &[f32], place: &mut [Self]) {
        place.copy_from_slice(row);
    }
}

impl Float for bf16 {
    /// Without a branch for NaN.
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    #[inline(always)]
    fn seen(self, _: Compute) -> f32 {
        self.widen()
    }

    #[inline(always)]
    fn nearest(value: f32) -> Self {
        Self::from_bits(bf16_bits(value) as u16)
    }

    #[inline]
    fn store_row(isa: Isa, row: &[f32], place: &mut [Self]) {
        round_row(isa, row, place);
    }
}

/// Rounded to bf16 (nearest even), as bits.
#[inline(always)]
pub(crate) fn bf16_bits(value: f32) -> u32 {
    let bits = value.to_bits();
    // A NaN must not round to infinity; its bits may wrap here and are not used then.
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    if value.is_nan() { (bits >> 16) | 0x40 } else { rounded }
}

fn round_row(isa: Isa, row: &[f32], rounded: &mut [bf16]) {
    let mut done = 0;
    #[cfg(target_arch = "x86_64")]
    if isa >= Isa::Avx512Bf16 {
        // SAFETY: the device was made with instructions that this processor has.
        done = unsafe { x86::round_row(row, rounded) };
    }
    if done < row.len() {
        round_numbers(isa, &row[done..], &mut rounded[done..]);
    }
}

for_each_isa! {
    fn round_numbers(numbers: &[f32], rounded: &mut [bf16]) {
        for (rounded, &number) in rounded.iter_mut().zip(numbers) {
            *rounded = bf16::from_bits(bf16_bits(number) as u16);
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use half::bf16;

    /// Rounds whole vectors; returns how many numbers that were.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub fn round_row(row: &[f32], rounded: &mut [bf16]) -> usize {
        let (row, rounded) = (row.as_chunks::<32>().0, rounded.as_chunks_mut::<32>().0);
        for (row, rounded) in row.iter().zip(rounded) {
            // SAFETY: 32 elements are read and written, which are there; bits of one vector type are valid
            // for another.
            unsafe {
                let low = _mm512_loadu_ps(row.as_ptr());
                let high = _mm512_loadu_ps(row.as_ptr().add(16));
                let both: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(high, low));
                _mm512_storeu_si512(rounded.as_mut_ptr().cast(), both);
            }
        }
        row.len() * 32
    }
}
