//! What instructions of one, two and three operands compute, and comparisons.

use super::{LANES, Lanes, lanes_of, numbers};
use crate::{
    Fault,
    instruction::{Binary, EQUAL, GREATER, LESS, Rounding, Ternary, Type, UNORDERED, Unary},
};

pub fn unary(what: Unary, ty: Type, a: &Lanes) -> Result<Lanes, Fault> {
    use numbers::{map_f32, map_f64, map_integer};
    Ok(match (what, ty) {
        (Unary::Negate, Type::F32) => a.map(|a| a ^ 1 << 31),
        (Unary::Negate, Type::F64) => a.map(|a| a ^ 1 << 63),
        (Unary::Absolute, Type::F32) => a.map(|a| a & !(1 << 31)),
        (Unary::Absolute, Type::F64) => a.map(|a| a & !(1 << 63)),
        (Unary::Reciprocal, Type::F32) => map_f32(a, |a| 1.0 / a),
        (Unary::Reciprocal, Type::F64) => map_f64(a, |a| 1.0 / a),
        (Unary::Root, Type::F32) => map_f32(a, f32::sqrt),
        (Unary::Root, Type::F64) => map_f64(a, f64::sqrt),
        (Unary::InverseRoot, Type::F32) => map_f32(a, |a| (1.0 / f64::from(a).sqrt()) as f32),
        (Unary::Exponential2, Type::F32) => map_f32(a, f32::exp2),
        (Unary::Logarithm2, Type::F32) => map_f32(a, f32::log2),
        (Unary::Sine, Type::F32) => map_f32(a, f32::sin),
        (Unary::Cosine, Type::F32) => map_f32(a, f32::cos),
        (Unary::HyperbolicTangent, Type::F32) => map_f32(a, f32::tanh),
        (Unary::Not, Type::Predicate) => a.map(|a| u64::from(a == 0)),
        (Unary::Negate, _) => map_integer(ty, a, u64::wrapping_neg),
        (Unary::Absolute, _) => map_integer(ty, a, |a| (a as i64).unsigned_abs()),
        (Unary::Not, _) => map_integer(ty, a, |a| !a),
        (Unary::CountOnes, _) => a.map(|a| a.count_ones().into()),
        (Unary::CountZeros, _) => {
            a.map(|a| u64::from(a.leading_zeros()) - (64 - u64::from(ty.bits())))
        }
        (Unary::Reverse, _) => a.map(|a| a.reverse_bits() >> (64 - ty.bits())),
        (Unary::FindHighest { as_shift }, Type::Unsigned(bits)) => {
            a.map(|a| match a.checked_ilog2() {
                None => 0xffff_ffff,
                Some(at) if as_shift => u64::from(bits - 1 - at),
                Some(at) => at.into(),
            })
        }
        _ => return Err(Fault::new("this instruction is not understood for its type")),
    })
}

pub fn binary(what: Binary, ty: Type, a: &Lanes, b: &Lanes, mask: u32) -> Result<Lanes, Fault> {
    use numbers::{round_f32, zip_f32, zip_f64, zip_integers};
    let near = |rounding: Rounding| rounding == Rounding::Nearest;
    Ok(match (what, ty) {
        (Binary::Add(rounding), Type::F32) if near(rounding) => zip_f32(a, b, |a, b| a + b),
        (Binary::Subtract(rounding), Type::F32) if near(rounding) => zip_f32(a, b, |a, b| a - b),
        (Binary::Multiply(rounding), Type::F32) if near(rounding) => zip_f32(a, b, |a, b| a * b),
        (Binary::Add(how), Type::F32) => {
            zip_f32(a, b, |a, b| round_f32(f64::from(a) + f64::from(b), how))
        }
        (Binary::Subtract(how), Type::F32) => {
            zip_f32(a, b, |a, b| round_f32(f64::from(a) - f64::from(b), how))
        }
        (Binary::Multiply(how), Type::F32) => {
            zip_f32(a, b, |a, b| round_f32(f64::from(a) * f64::from(b), how))
        }
        (Binary::Divide, Type::F32) => zip_f32(a, b, |a, b| a / b),
        (Binary::Minimum { keeps_nan }, Type::F32) => {
            zip_f32(
                a,
                b,
                |a, b| {
                    if keeps_nan && (a.is_nan() || b.is_nan()) { f32::NAN } else { a.min(b) }
                },
            )
        }
        (Binary::Maximum { keeps_nan }, Type::F32) => {
            zip_f32(
                a,
                b,
                |a, b| {
                    if keeps_nan && (a.is_nan() || b.is_nan()) { f32::NAN } else { a.max(b) }
                },
            )
        }
        (Binary::Add(how), Type::F64) if near(how) => zip_f64(a, b, |a, b| a + b),
        (Binary::Subtract(how), Type::F64) if near(how) => zip_f64(a, b, |a, b| a - b),
        (Binary::Multiply(how), Type::F64) if near(how) => zip_f64(a, b, |a, b| a * b),
        (Binary::Divide, Type::F64) => zip_f64(a, b, |a, b| a / b),
        (Binary::Minimum { .. }, Type::F64) => zip_f64(a, b, f64::min),
        (Binary::Maximum { .. }, Type::F64) => zip_f64(a, b, f64::max),
        (Binary::And, _) => std::array::from_fn(|i| a[i] & b[i]),
        (Binary::Or, _) => std::array::from_fn(|i| a[i] | b[i]),
        (Binary::Xor, _) => std::array::from_fn(|i| a[i] ^ b[i]),
        (_, Type::F16 | Type::Bf16 | Type::F32 | Type::F64 | Type::Predicate) => {
            return Err(Fault::new("this instruction is not understood for its type"));
        }
        (Binary::Add(_), _) => zip_integers(ty, a, b, u64::wrapping_add),
        (Binary::Subtract(_), _) => zip_integers(ty, a, b, u64::wrapping_sub),
        (Binary::Multiply(_), _) => zip_integers(ty, a, b, u64::wrapping_mul),
        (Binary::MultiplyWide, _) => {
            let wide = Type::Unsigned(2 * ty.bits());
            let extended = |value| numbers::extend(ty, value);
            std::array::from_fn(|i| {
                numbers::truncate(extended(a[i]).wrapping_mul(extended(b[i])), wide.bits())
            })
        }
        (Binary::MultiplyHigh, _) => zip_integers(ty, a, b, |a, b| {
            let product = if ty.is_signed() {
                i128::from(a as i64) * i128::from(b as i64)
            } else {
                (u128::from(a) * u128::from(b)) as i128
            };
            (product >> ty.bits()) as u64
        }),
        (Binary::Divide | Binary::Remainder, _) => {
            if lanes_of(mask).any(|lane| b[lane] == 0) {
                return Err(Fault::new("a division by zero"));
            }
            let divides = what == Binary::Divide;
            zip_integers(ty, a, b, |a, b| match (ty.is_signed(), divides) {
                _ if b == 0 => 0,
                (true, true) => (a as i64).wrapping_div(b as i64) as u64,
                (true, false) => (a as i64).wrapping_rem(b as i64) as u64,
                (false, true) => a / b,
                (false, false) => a % b,
            })
        }
        (Binary::Minimum { .. }, _) => zip_integers(ty, a, b, |a, b| {
            if ty.is_signed() { (a as i64).min(b as i64) as u64 } else { a.min(b) }
        }),
        (Binary::Maximum { .. }, _) => zip_integers(ty, a, b, |a, b| {
            if ty.is_signed() { (a as i64).max(b as i64) as u64 } else { a.max(b) }
        }),
        // Shifts are by 32 bits, and as far as there are bits.
        (Binary::ShiftLeft, _) => std::array::from_fn(|i| {
            let shift = b[i] as u32;
            if shift >= ty.bits() { 0 } else { numbers::truncate(a[i] << shift, ty.bits()) }
        }),
        (Binary::ShiftRight, _) => std::array::from_fn(|i| {
            let shift = (b[i] as u32).min(ty.bits());
            let value = numbers::extend(ty, a[i]);
            let shifted = if ty.is_signed() {
                (value as i64 >> shift.min(63)) as u64
            } else {
                value.checked_shr(shift).unwrap_or(0)
            };
            numbers::truncate(shifted, ty.bits())
        }),
    })
}

pub fn ternary(what: Ternary, ty: Type, a: &Lanes, b: &Lanes, c: &Lanes) -> Result<Lanes, Fault> {
    use numbers::{extend, round_f32, truncate};
    let bits = ty.bits();
    let f32s = |f: &dyn Fn(f32, f32, f32) -> f32| {
        let of = |value: u64| f32::from_bits(value as u32);
        std::array::from_fn(|i| f(of(a[i]), of(b[i]), of(c[i])).to_bits().into())
    };
    Ok(match (what, ty) {
        (Ternary::Fused(Rounding::Nearest), Type::F32) => {
            let of = |value: u64| f32::from_bits(value as u32);
            std::array::from_fn(|i| of(a[i]).mul_add(of(b[i]), of(c[i])).to_bits().into())
        }
        // The product is exact in f64; its sum is rounded there first, which only matters where it
        // lies within the last of 53 bits of a number of 24.
        (Ternary::Fused(how), Type::F32) => {
            f32s(&|a, b, c| round_f32(f64::from(a).mul_add(f64::from(b), f64::from(c)), how))
        }
        (Ternary::Fused(Rounding::Nearest), Type::F64) => std::array::from_fn(|i| {
            f64::from_bits(a[i]).mul_add(f64::from_bits(b[i]), f64::from_bits(c[i])).to_bits()
        }),
        (Ternary::MultiplyAdd, _) => {
            std::array::from_fn(|i| truncate(a[i].wrapping_mul(b[i]).wrapping_add(c[i]), bits))
        }
        (Ternary::MultiplyAddWide, _) => std::array::from_fn(|i| {
            let product = extend(ty, a[i]).wrapping_mul(extend(ty, b[i]));
            truncate(product.wrapping_add(c[i]), 2 * bits)
        }),
        (Ternary::Logic(table), _) => std::array::from_fn(|i| {
            let mut result = 0;
            for row in (0..8).filter(|row| table >> row & 1 == 1) {
                let side = |value: u64, bit: u32| if row >> bit & 1 == 1 { value } else { !value };
                result |= side(a[i], 2) & side(b[i], 1) & side(c[i], 0);
            }
            truncate(result, bits)
        }),
        (Ternary::ExtractBits, _) => {
            std::array::from_fn(|i| numbers::extract_bits(ty, a[i], b[i], c[i]))
        }
        (Ternary::Permute, _) => std::array::from_fn(|i| numbers::permute(a[i], b[i], c[i])),
        (Ternary::FunnelLeft { wraps }, _) => std::array::from_fn(|i| {
            let shift = if wraps { c[i] & 31 } else { c[i].min(32) };
            let both = b[i] << 32 | a[i];
            ((both << shift) >> 32) & 0xffff_ffff
        }),
        (Ternary::FunnelRight { wraps }, _) => std::array::from_fn(|i| {
            let shift = if wraps { c[i] & 31 } else { c[i].min(32) };
            let both = b[i] << 32 | a[i];
            both >> shift & 0xffff_ffff
        }),
        _ => return Err(Fault::new("this instruction is not understood for its type")),
    })
}

pub fn compare(ty: Type, a: &Lanes, b: &Lanes) -> [u8; LANES] {
    use std::cmp::Ordering;
    let outcome = |ordering: Option<Ordering>| match ordering {
        Some(Ordering::Less) => LESS,
        Some(Ordering::Equal) => EQUAL,
        Some(Ordering::Greater) => GREATER,
        None => UNORDERED,
    };
    std::array::from_fn(|i| {
        outcome(match ty {
            Type::F32 => f32::from_bits(a[i] as u32).partial_cmp(&f32::from_bits(b[i] as u32)),
            Type::F64 => f64::from_bits(a[i]).partial_cmp(&f64::from_bits(b[i])),
            Type::Signed(_) => {
                Some((numbers::extend(ty, a[i]) as i64).cmp(&(numbers::extend(ty, b[i]) as i64)))
            }
            _ => Some(numbers::extend(ty, a[i]).cmp(&numbers::extend(ty, b[i]))),
        })
    })
}
