//! Elementary functions and loops that the compiler turns into vector code.

use super::float::Float;

/// `a · b + c`, rounded once where `FUSED`: where there is an instruction for that.
#[inline(always)]
pub(crate) fn multiply_add<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FUSED { a.mul_add(b, c) } else { a * b + c }
}

/// e^x, accurate to about two units in the last place; below −87.3 in the few bits that subnormal
/// numbers have, 0 below −104, infinite above 88.7.
///
/// `x = n·ln 2 + r`, `|r| ≤ ln 2 / 2`; `e^r` by its Taylor polynomial of degree 7, whose remainder
/// at the ends is `0.347⁸ / 8! ≈ 5e-9`, under a tenth of an f32 unit; `2ⁿ` by its exponent bits, in
/// two factors so that results near either limit stay exact. Branch-free, so that loops vectorise.
/// `FUSED` as [`for_each_isa`] says.
#[inline(always)]
pub(crate) fn exp<const FUSED: bool>(x: f32) -> f32 {
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    /// 1.5·2²³, whose unit in the last place is 1: adding it rounds to a whole number, ties to
    /// even, which then stands in the lowest bits. No instruction set lacks that.
    const ROUNDING: f32 = 12_582_912.0;
    /// Where half of the least number above zero begins.
    const LEAST: f32 = -104.0;
    // Beyond these the result is 0 or infinite; NaN passes through `clamp`.
    let clamped = x.clamp(LEAST, 89.0);
    let shifted = multiply_add::<FUSED>(clamped, std::f32::consts::LOG2_E, ROUNDING);
    let n = shifted - ROUNDING;
    let r = multiply_add::<FUSED>(-n, LN2_HIGH, clamped);
    let r = multiply_add::<FUSED>(-n, LN2_LOW, r);
    let mut p = 1.0 / 5040.0;
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = multiply_add::<FUSED>(p, r, coefficient);
    }
    // In −151..=129; of a NaN anything, which comes back through `p`.
    let n = (shifted.to_bits() as i32).wrapping_sub(ROUNDING.to_bits() as i32);
    let half = n >> 1;
    let power = |n: i32| f32::from_bits((n.wrapping_add(127) << 23) as u32);
    // A product with zero, where one that becomes too small for a number would take a processor a hundred cycles.
    let rest = if x < LEAST { 0.0 } else { power(n.wrapping_sub(half)) };
    p * power(half) * rest
}

/// 2^x, accurate to about one unit in the last place from −126 on; 0 below −126.5, 2^127 above that. Half the work of
/// [`exp`].
///
/// `x = n + r`, `|r| ≤ ½`; `2^r` by the polynomial of degree 6 whose largest relative error there is the least that
/// one with 1 at 0 can have, 2e-9 before its coefficients were rounded; `2ⁿ` by its exponent bits. `FUSED` as
/// [`for_each_isa`] says.
#[inline(always)]
pub(crate) fn exp2<const FUSED: bool>(x: f32) -> f32 {
    /// 1.5·2²³, as in [`exp`], and what an exponent's bits are more than it.
    const ROUNDING: f32 = 12_582_912.0 + 127.0;
    // NaN passes; the exponent's bits of −127 are those of zero.
    let x = x.clamp(-127.0, 127.0);
    let shifted = x + ROUNDING;
    let r = x - (shifted - ROUNDING);
    let mut p = 1.535_336_3e-4;
    for coefficient in
        [1.339_887_5e-3, 9.618_437e-3, 5.550_332_4e-2, 2.402_264_8e-1, 6.931_472e-1, 1.0]
    {
        p = multiply_add::<FUSED>(p, r, coefficient);
    }
    // All but the lowest bits of `n + 127` leave.
    let power = f32::from_bits(shifted.to_bits() << 23);
    p * power
}

/// 1 / (1 + e^−x).
#[inline(always)]
pub(crate) fn sigmoid<const FUSED: bool>(x: f32) -> f32 {
    1.0 / (1.0 + exp::<FUSED>(-x))
}

/// Running sums of one row. As many for every instruction set, so that all add in one order.
pub(crate) const LANES: usize = 16;

/// The sum of the running sums.
#[inline(always)]
pub(crate) fn add_up(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// The sum of `term(i)` for `i < n`, in running sums.
#[inline(always)]
pub(crate) fn sum(n: usize, term: impl Fn(usize) -> f32) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let whole = n / LANES * LANES;
    let mut i = 0;
    while i < whole {
        for (lane, sum) in lanes.iter_mut().enumerate() {
            *sum += term(i + lane);
        }
        i += LANES;
    }
    while i < n {
        lanes[i - whole] += term(i);
        i += 1;
    }
    add_up(lanes)
}

/// The sum of products of two rows of one length.
#[inline(always)]
pub(crate) fn dot<A: Float, B: Float>(a: &[A], b: &[B]) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a.iter().zip(b) {
        for lane in 0..LANES {
            lanes[lane] += a[lane].widen() * b[lane].widen();
        }
    }
    for (lane, (a, b)) in lanes.iter_mut().zip(a_rest.iter().zip(b_rest)) {
        *lane += a.widen() * b.widen();
    }
    add_up(lanes)
}

/// The sum of products of three rows of one length.
#[inline(always)]
pub(crate) fn dot_of_three<T: Float>(a: &[f32], b: &[f32], c: &[T]) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let (a, a_rest) = a.as_chunks::<LANES>();
    let (b, b_rest) = b.as_chunks::<LANES>();
    let (c, c_rest) = c.as_chunks::<LANES>();
    for ((a, b), c) in a.iter().zip(b).zip(c) {
        for lane in 0..LANES {
            lanes[lane] += a[lane] * b[lane] * c[lane].widen();
        }
    }
    for (lane, ((a, b), c)) in lanes.iter_mut().zip(a_rest.iter().zip(b_rest).zip(c_rest)) {
        *lane += a * b * c.widen();
    }
    add_up(lanes)
}

/// Defines `fn name(isa, args)` that runs `body` compiled for each instruction set: plain loops,
/// vectorised by the compiler with the registers that the processor really has. `name` may have
/// parameters, `<T: Bound>`. Within `body`, `FUSED` tells whether a multiplication and an addition are one
/// instruction.
macro_rules! for_each_isa {
    (
        $(#[$doc:meta])*
        $visibility:vis fn $name:ident $(<$($generic:ident: $bound:path),+>)?(
            $($argument:ident: $type:ty),* $(,)?
        ) $body:block
    ) => {
        $(#[$doc])*
        #[allow(clippy::too_many_arguments)]
        $visibility fn $name$(<$($generic: $bound),+>)?(isa: $crate::Isa, $($argument: $type),*) {
            #[inline(always)]
            #[allow(clippy::too_many_arguments)]
            fn body<const FUSED: bool $($(, $generic: $bound)+)?>($($argument: $type),*) $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma")]
                #[allow(clippy::too_many_arguments)]
                fn avx2$(<$($generic: $bound),+>)?($($argument: $type),*) {
                    body::<true $($(, $generic)+)?>($($argument),*);
                }
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
                #[allow(clippy::too_many_arguments)]
                fn avx512$(<$($generic: $bound),+>)?($($argument: $type),*) {
                    body::<true $($(, $generic)+)?>($($argument),*);
                }
                match isa {
                    $crate::Isa::Portable => {}
                    // SAFETY: the device was made with instructions that this processor has.
                    $crate::Isa::Avx2 => return unsafe { avx2($($argument),*) },
                    $crate::Isa::Avx512 | $crate::Isa::Avx512Bf16 | $crate::Isa::Amx => {
                        // SAFETY: as above.
                        return unsafe { avx512($($argument),*) };
                    }
                }
            }
            let _ = isa;
            body::<false $($(, $generic)+)?>($($argument),*);
        }
    };
}
pub(crate) use for_each_isa;

#[cfg(test)]
mod tests {
    use super::*;

    for_each_isa! {
        fn exp_of_each(values: &mut [f32]) {
            for value in values {
                *value = exp::<FUSED>(*value);
            }
        }
    }

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        let arguments: Vec<_> = (-8_700_000..8_860_000).map(|i| i as f32 * 1e-5).collect();
        for isa in crate::Isa::available() {
            let mut results = arguments.clone();
            exp_of_each(isa, &mut results);
            for (x, actual) in arguments.iter().zip(results) {
                let expected = f64::from(*x).exp();
                let nearest = expected as f32;
                if nearest >= f32::MIN_POSITIVE {
                    let unit = f64::from(nearest.next_up()) - f64::from(nearest);
                    let error = (f64::from(actual) - expected).abs() / unit;
                    assert!(error <= 2.0, "{isa}: exp({x}) = {actual}, {error} units off");
                }
            }
        }
    }

    #[test]
    fn exp_keeps_its_limits() {
        for isa in crate::Isa::available() {
            let (large, nan) = (f32::INFINITY, f32::NAN);
            let mut values = [0.0, -105.0, -large, 89.0, large, nan, -nan];
            exp_of_each(isa, &mut values);
            assert_eq!(values[..5], [1.0, 0.0, 0.0, large, large], "{isa}");
            assert!(values[5..].iter().all(|value| value.is_nan()), "{isa}: {values:?}");
            // Subnormal results have few bits, but rise.
            let mut small: Vec<_> = (0..170).map(|i| -104.0 + i as f32 * 0.1).collect();
            exp_of_each(isa, &mut small);
            assert!(small.is_sorted(), "{isa}");
        }
    }

    for_each_isa! {
        fn exp2_of_each(values: &mut [f32]) {
            for value in values {
                *value = exp2::<FUSED>(*value);
            }
        }
    }

    #[test]
    fn exp2_is_within_two_units_in_the_last_place() {
        let arguments: Vec<_> = (-12_600_000..12_700_000).map(|i| i as f32 * 1e-5).collect();
        for isa in crate::Isa::available() {
            let mut results = arguments.clone();
            exp2_of_each(isa, &mut results);
            for (x, actual) in arguments.iter().zip(results) {
                let expected = f64::from(*x).exp2();
                let nearest = expected as f32;
                let unit = f64::from(nearest.next_up()) - f64::from(nearest);
                let error = (f64::from(actual) - expected).abs() / unit;
                assert!(error <= 2.0, "{isa}: 2^{x} = {actual}, {error} units off");
            }
            let (large, nan) = (f32::INFINITY, f32::NAN);
            let least = f32::MIN_POSITIVE;
            let mut values = [0.0, -126.0, -126.6, -300.0, -1e30, -large, 128.0, large, nan, -nan];
            exp2_of_each(isa, &mut values);
            let most = 127.0_f32.exp2();
            assert_eq!(values[..8], [1.0, least, 0.0, 0.0, 0.0, 0.0, most, most], "{isa}");
            assert!(values[8..].iter().all(|value| value.is_nan()), "{isa}: {values:?}");
        }
    }

    #[test]
    fn sums_of_products_take_every_term_once() {
        // Whole numbers, so that every order gives the same sum.
        for n in [0, 1, 15, 16, 17, 33, 160] {
            let a: Vec<_> = (0..n).map(|i| (i % 7) as f32).collect();
            let b: Vec<_> = (0..n).map(|i| (i % 5) as f32 - 2.0).collect();
            let c: Vec<_> = (0..n).map(|i| (i % 3) as f32 + 1.0).collect();
            let two: f32 = (0..n).map(|i| a[i] * b[i]).sum();
            let three: f32 = (0..n).map(|i| a[i] * b[i] * c[i]).sum();
            assert_eq!((dot(&a, &b), sum(n, |i| a[i] * b[i])), (two, two));
            assert_eq!(dot_of_three(&a, &b, &c), three);
        }
    }
}
