//! Arithmetic on registers' bits.

use half::{bf16, f16};

use super::Lanes;
use crate::instruction::{Convert, Rounding, Type};

pub fn truncate(value: u64, bits: u32) -> u64 {
    if bits >= 64 { value } else { value & ((1 << bits) - 1) }
}

/// The lowest `bits` as a signed number, in 64 bits.
fn widen_signed(value: u64, bits: u32) -> u64 {
    ((value << (64 - bits)) as i64 >> (64 - bits)) as u64
}

/// A loaded signed number as a register of at least 32 bits holds it.
pub fn sign_extend(value: u64, bits: u32) -> u64 {
    if bits >= 32 { value } else { truncate(widen_signed(value, bits), 32) }
}

/// A whole number of type `ty` in 64 bits.
pub fn extend(ty: Type, value: u64) -> u64 {
    if ty.is_signed() { widen_signed(value, ty.bits()) } else { truncate(value, ty.bits()) }
}

pub fn map_f32(a: &Lanes, f: impl Fn(f32) -> f32) -> Lanes {
    a.map(|a| f(f32::from_bits(a as u32)).to_bits().into())
}

pub fn map_f64(a: &Lanes, f: impl Fn(f64) -> f64) -> Lanes {
    a.map(|a| f(f64::from_bits(a)).to_bits())
}

pub fn map_integer(ty: Type, a: &Lanes, f: impl Fn(u64) -> u64) -> Lanes {
    a.map(|a| truncate(f(extend(ty, a)), ty.bits()))
}

pub fn zip_f32(a: &Lanes, b: &Lanes, f: impl Fn(f32, f32) -> f32) -> Lanes {
    let of = |value: u64| f32::from_bits(value as u32);
    std::array::from_fn(|i| f(of(a[i]), of(b[i])).to_bits().into())
}

pub fn zip_f64(a: &Lanes, b: &Lanes, f: impl Fn(f64, f64) -> f64) -> Lanes {
    std::array::from_fn(|i| f(f64::from_bits(a[i]), f64::from_bits(b[i])).to_bits())
}

pub fn zip_integers(ty: Type, a: &Lanes, b: &Lanes, f: impl Fn(u64, u64) -> u64) -> Lanes {
    std::array::from_fn(|i| truncate(f(extend(ty, a[i]), extend(ty, b[i])), ty.bits()))
}

/// `exact` as an f32, rounded as asked.
pub fn round_f32(exact: f64, how: Rounding) -> f32 {
    let near = exact as f32;
    let error = f64::from(near) - exact;
    let towards = match how {
        Rounding::Nearest => return near,
        Rounding::Down => f32::NEG_INFINITY,
        Rounding::Up => f32::INFINITY,
        Rounding::Zero if exact < 0.0 => f32::INFINITY,
        Rounding::Zero => f32::NEG_INFINITY,
    };
    match towards {
        towards if towards < 0.0 && error > 0.0 => near.next_down(),
        towards if towards > 0.0 && error < 0.0 => near.next_up(),
        _ => near,
    }
}

fn round_whole(value: f64, how: Rounding) -> f64 {
    match how {
        Rounding::Nearest => value.round_ties_even(),
        Rounding::Zero => value.trunc(),
        Rounding::Down => value.floor(),
        Rounding::Up => value.ceil(),
    }
}

/// The value of a float of type `ty`.
fn float(ty: Type, value: u64) -> f64 {
    match ty {
        Type::F16 => f16::from_bits(value as u16).to_f64(),
        Type::Bf16 => bf16::from_bits(value as u16).to_f64(),
        Type::F32 => f64::from(f32::from_bits(value as u32)),
        _ => f64::from_bits(value),
    }
}

/// `value` as the bits of a float of type `ty`. From an f32 or a narrower number it is exact, so that it
/// is rounded once.
fn to_float(ty: Type, value: f64, how: Rounding) -> Option<u64> {
    match ty {
        Type::F64 => Some(value.to_bits()),
        Type::F32 => Some(round_f32(value, how).to_bits().into()),
        Type::Bf16 if how == Rounding::Nearest => {
            Some(bf16::from_f32(value as f32).to_bits().into())
        }
        Type::F16 if how == Rounding::Nearest => Some(f16::from_f64(value).to_bits().into()),
        _ => None,
    }
}

/// `cvt`, where it is understood.
pub fn convert(to: Type, from: Type, how: Convert, a: &Lanes) -> Option<Lanes> {
    let mut result = [0; super::LANES];
    for (result, &a) in result.iter_mut().zip(a) {
        *result = match (from.is_float(), to.is_float()) {
            (true, true) => {
                let mut value = float(from, a);
                if how.to_whole {
                    value = round_whole(value, how.rounding);
                }
                if how.saturates {
                    value = if value.is_nan() { 0.0 } else { value.clamp(0.0, 1.0) };
                }
                let rounding = if how.to_whole { Rounding::Nearest } else { how.rounding };
                to_float(to, value, rounding)?
            }
            (true, false) => {
                let value = round_whole(float(from, a), how.rounding);
                // Numbers beyond the ends become the ends, and what is none 0.
                let whole = match to {
                    Type::Signed(64) => value as i64 as u64,
                    Type::Signed(bits) => {
                        let end = 2_f64.powi(bits as i32 - 1);
                        value.clamp(-end, end - 1.0) as i64 as u64
                    }
                    Type::Unsigned(64) => value as u64,
                    Type::Unsigned(bits) => value.clamp(0.0, 2_f64.powi(bits as i32) - 1.0) as u64,
                    _ => return None,
                };
                truncate(whole, to.bits())
            }
            (false, true) => {
                let wide = extend(from, a);
                match to {
                    // Rounded once, from all of its bits.
                    Type::F32 if how.rounding == Rounding::Nearest && from.is_signed() => {
                        (wide as i64 as f32).to_bits().into()
                    }
                    Type::F32 if how.rounding == Rounding::Nearest => {
                        (wide as f32).to_bits().into()
                    }
                    _ => {
                        let value = if from.is_signed() { wide as i64 as f64 } else { wide as f64 };
                        to_float(to, value, how.rounding)?
                    }
                }
            }
            (false, false) if how.saturates => return None,
            // A register of 32 bits may hold a narrower number.
            (false, false) => {
                truncate(extend(from, a), to.bits().max(if to.is_signed() { 32 } else { 0 }))
            }
        };
    }
    Some(result)
}

pub fn insert_bits(bits: u32, from: u64, into: u64, start: u64, len: u64) -> u64 {
    let (start, len) = ((start & 255) as u32, (len & 255) as u32);
    if start >= bits || len == 0 {
        return into;
    }
    let mask = truncate(u64::MAX, len.min(64)) << start;
    truncate(into & !mask | from << start & mask, bits)
}

pub fn extract_bits(ty: Type, value: u64, start: u64, len: u64) -> u64 {
    let (start, len) = ((start & 255) as u32, (len & 255) as u32);
    if len == 0 {
        return 0;
    }
    let value = extend(ty, value);
    let shifted = if ty.is_signed() {
        (value as i64 >> start.min(63)) as u64
    } else {
        value.checked_shr(start).unwrap_or(0)
    };
    let len = len.min(ty.bits());
    let field = if ty.is_signed() { widen_signed(shifted, len) } else { truncate(shifted, len) };
    truncate(field, ty.bits())
}

/// Any four of eight bytes (`prmt` in its usual mode).
pub fn permute(a: u64, b: u64, selector: u64) -> u64 {
    let bytes = (b << 32 | a & 0xffff_ffff).to_le_bytes();
    (0..4).fold(0, |result, i| {
        let chosen = selector >> (4 * i);
        let byte = bytes[(chosen & 7) as usize];
        let byte = if chosen & 8 == 0 { byte } else { (byte as i8 >> 7) as u8 };
        result | u64::from(byte) << (8 * i)
    })
}
