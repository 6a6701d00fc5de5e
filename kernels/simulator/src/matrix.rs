//! Products of tiles, whose numbers lie spread over the lanes of a warp (PTX ISA, "Matrix fragments
//! for mma.m16n8k16 with floating point type"), and operands of a group's products in shared memory
//! ("Asynchronous warpgroup level matrix instructions", "Matrix descriptor").

use half::{bf16, f16};

use crate::{
    Fault,
    warp::{LANES, Lanes},
};

/// Depth of one product.
pub const DEPTH: usize = 16;

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

/// `d += rows · columns` for a warp's 16 rows of a product of a group, in the order of [`multiply`]: of each eight
/// columns four registers.
pub fn add_product(d: &mut [Lanes], rows: &[[f32; DEPTH]], columns: &[[f32; DEPTH]]) {
    for (i, register) in d.iter_mut().enumerate() {
        for (lane, sum) in register.iter_mut().enumerate() {
            let row = &rows[lane / 4 + 8 * (i % 4 / 2)];
            let column = &columns[8 * (i / 4) + 2 * (lane % 4) + i % 2];
            let start = f32::from_bits(*sum as u32);
            let added = row.iter().zip(column).fold(start, |sum, (a, b)| sum + a * b);
            *sum = u64::from(added.to_bits());
        }
    }
}

/// Where the numbers of an operand lie in shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operand {
    start: u64,
    /// From one part of a side as long as a row to the next, where k lies across rows.
    of_parts: u64,
    /// From eight rows to the next eight.
    of_eight_rows: u64,
    row_bytes: u64,
    is_across: bool,
}

impl Operand {
    /// What a descriptor says.
    pub fn new(descriptor: u64, is_across: bool) -> Result<Self, Fault> {
        let field = |first_bit: u32| (descriptor >> first_bit & 0x3fff) << 4;
        let refused = |what: &str| Err(Fault::new(format!("the operand {descriptor:#x} {what}")));
        let row_bytes = match descriptor >> 62 {
            1 => 128,
            2 => 64,
            3 => 32,
            _ => return refused("is of rows that do not change places, which are not understood"),
        };
        let start = field(0);
        if descriptor >> 49 & 7 != 0 {
            return refused("begins within a pattern, which is not understood");
        }
        // At the pattern; with k along its rows also further on in the first, if it has sixteen numbers more.
        let into_pattern = start % (8 * row_bytes);
        let most = if is_across { 0 } else { row_bytes - 2 * DEPTH as u64 };
        if into_pattern > most {
            return refused("does not begin where its pattern does");
        }
        Ok(Self { start, of_parts: field(16), of_eight_rows: field(32), row_bytes, is_across })
    }

    /// Of the number at `side` of its rows or columns and at `k`.
    fn address(&self, side: usize, k: usize) -> u64 {
        let (side, k) = (side as u64, k as u64);
        let Self { start, of_parts, of_eight_rows, row_bytes, is_across } = *self;
        let of_row = row_bytes / 2;
        let place = if is_across {
            side / of_row * of_parts + side % of_row * 2 + k / 8 * of_eight_rows + k % 8 * row_bytes
        } else {
            side / 8 * of_eight_rows + side % 8 * row_bytes + 2 * k
        };
        let straight = start + place;
        // Chunks of 16 bytes change places by the number of their row.
        straight ^ (straight >> 7 & (row_bytes / 16 - 1)) << 4
    }

    /// The words of `n` of its rows or columns from `first` on; of each its address, and the sides and depths of the
    /// two numbers in it, from `first`.
    fn words(&self, first: usize, n: usize) -> impl Iterator<Item = (u64, [(usize, usize); 2])> {
        let operand = *self;
        (0..n * DEPTH).step_by(2).map(move |at| {
            let two = [at, at + 1].map(|at| {
                if operand.is_across { (at % n, at / n) } else { (at / DEPTH, at % DEPTH) }
            });
            let (side, k) = two[0];
            (operand.address(first + side, k), two)
        })
    }

    /// The addresses of its words.
    pub fn addresses(&self, first: usize, n: usize) -> impl Iterator<Item = u64> {
        self.words(first, n).map(|(address, _)| address)
    }

    /// Its numbers, by side, with the word at each address.
    pub fn numbers(
        &self,
        (first, n): (usize, usize),
        mut word: impl FnMut(u64) -> Result<u32, Fault>,
    ) -> Result<Vec<[f32; DEPTH]>, Fault> {
        let mut numbers = vec![[0.0; DEPTH]; n];
        for (address, two) in self.words(first, n) {
            let word = word(address)?;
            for ((side, k), bits) in two.into_iter().zip([word as u16, (word >> 16) as u16]) {
                numbers[side][k] = bf16::from_bits(bits).to_f32();
            }
        }
        Ok(numbers)
    }
}
