//! What a kernel takes of a multiprocessor, as its machine code tells: for tests.

use super::{CodeArchive, Target};

/// Of a multiprocessor of a gaming card (CUDA C++ Programming Guide, "Compute Capabilities": 8.6, 8.9, 12.0).
const REGISTERS: usize = 65_536;
const SHARED_BYTES: usize = 100 << 10;
/// What the system takes of it for each block.
const SYSTEM_BYTES: usize = 1 << 10;
/// A warp's registers are given in such pieces.
const REGISTER_UNIT: usize = 256;
const WARP: usize = 32;

/// The generations of gaming cards that have code of their own.
pub(crate) const GAMING_CARDS: [Target; 3] =
    [Target::Compute(86), Target::Compute(89), Target::Compute(120)];

#[derive(Debug)]
pub(crate) struct Kernel {
    pub target: Target,
    pub name: String,
    /// Of a thread.
    pub n_registers: usize,
    /// That the kernel has of its own, beside what a launch gives it.
    pub shared_bytes: usize,
}

impl Kernel {
    /// How many blocks there is room for, of a launch with so much shared memory.
    pub fn blocks_of_multiprocessor(&self, n_threads: usize, shared_bytes: usize) -> usize {
        let of_warp = (self.n_registers * WARP).next_multiple_of(REGISTER_UNIT);
        let by_registers = REGISTERS / (of_warp * n_threads / WARP);
        by_registers.min(SHARED_BYTES / (self.shared_bytes + shared_bytes + SYSTEM_BYTES))
    }
}

/// All kernels, as they are compiled for each generation of gaming cards.
pub(crate) fn kernels_of_gaming_cards() -> Vec<Kernel> {
    let mut kernels = Vec::new();
    for target in GAMING_CARDS {
        for module in CodeArchive::embedded().modules(target).unwrap() {
            for name in module.kernels {
                let n_registers = n_registers(&module.image, &name)
                    .unwrap_or_else(|| panic!("{name} for {target}: no number of registers"));
                assert!((1..=255).contains(&n_registers), "{name} for {target}: {n_registers}");
                let own = section(&module.image, &format!(".nv.shared.{name}"));
                let own = own.map_or(0, |[_, size, _]| size);
                // Code of later generations counts the system's share itself, where it has any.
                let system =
                    if own > 0 && target == Target::Compute(120) { SYSTEM_BYTES } else { 0 };
                assert!(own >= system, "{name} for {target}: {own}");
                let shared_bytes = own - system;
                kernels.push(Kernel { target, name, n_registers, shared_bytes });
            }
        }
    }
    kernels
}

fn number(bytes: &[u8], at: usize, n_bytes: usize) -> usize {
    bytes[at..at + n_bytes].iter().rev().fold(0, |sum, &byte| sum << 8 | usize::from(byte))
}

/// An ELF file's section of this name (System V ABI, "Sections"): offset, size and information.
fn section(image: &[u8], wanted: &str) -> Option<[usize; 3]> {
    let number = |at, n_bytes| number(image, at, n_bytes);
    let (start, size, n) = (number(0x28, 8), number(0x3a, 2), number(0x3c, 2));
    let header = |i: usize| start + i * size;
    let names = number(header(number(0x3e, 2)) + 0x18, 8);
    let found = (0..n).map(header).find(|&header| {
        let name = &image[names + number(header, 4)..];
        name.starts_with(wanted.as_bytes()) && name[wanted.len()] == 0
    })?;
    Some([number(found + 0x18, 8), number(found + 0x20, 8), number(found + 0x2c, 4)])
}

/// An attribute (0x2f, with four bytes of symbol and of number) of the file's information, whose symbol the
/// code's section names.
fn n_registers(image: &[u8], kernel: &str) -> Option<usize> {
    let [_, _, symbol] = section(image, &format!(".text.{kernel}"))?;
    let [start, size, _] = section(image, ".nv.info")?;
    let information = &image[start..start + size];
    let mut at = 0;
    while at + 4 <= size {
        let (form, attribute) = (information[at], information[at + 1]);
        let n_bytes = if form == 4 { number(information, at + 2, 2) } else { 0 };
        let is_ours = attribute == 0x2f && n_bytes == 8;
        if is_ours && number(information, at + 4, 4) == symbol & 0xff_ffff {
            return Some(number(information, at + 8, 4));
        }
        at += 4 + n_bytes;
    }
    None
}
