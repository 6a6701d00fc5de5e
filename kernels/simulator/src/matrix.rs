//! Products of tiles, whose numbers lie spread over the lanes of a warp (PTX ISA, "Matrix fragments
//! for mma.m16n8k16 with floating point type").

use half::{bf16, f16};

use crate::warp::{LANES, Lanes};

/// d = a · b + c for 16 × 16, 16 × 8 and 16 × 8 numbers, summed along k one by one in f32.
pub fn multiply(is_bf16: bool, a: [Lanes; 4], b: [Lanes; 2], c: [Lanes; 4]) -> [Lanes; 4] {
    let widen = |bits: u64| {
        let bits = bits as u16;
        if is_bf16 { bf16::from_bits(bits).to_f32() } else { f16::from_bits(bits).to_f32() }
    };
    let (mut rows, mut columns) = ([[0_f32; 16]; 16], [[0_f32; 16]; 8]);
    for lane in 0..LANES {
        let (group, place) = (lane / 4, 2 * (lane % 4));
        for (i, part) in a.iter().enumerate() {
            let (row, column) = (group + 8 * (i % 2), place + 8 * (i / 2));
            rows[row][column] = widen(part[lane]);
            rows[row][column + 1] = widen(part[lane] >> 16);
        }
        for (i, part) in b.iter().enumerate() {
            let row = place + 8 * i;
            columns[group][row] = widen(part[lane]);
            columns[group][row + 1] = widen(part[lane] >> 16);
        }
    }
    let mut d = [[0; LANES]; 4];
    for lane in 0..LANES {
        let (group, place) = (lane / 4, 2 * (lane % 4));
        for i in 0..4 {
            let (row, column) = (&rows[group + 8 * (i / 2)], &columns[place + i % 2]);
            let start = f32::from_bits(c[i][lane] as u32);
            let sum = row.iter().zip(column).fold(start, |sum, (a, b)| sum + a * b);
            d[i][lane] = u64::from(sum.to_bits());
        }
    }
    d
}
