//! Runs PTX, the code of NVIDIA's cards, on the processor, so that kernels can be tested where there
//! is no card, under checks that a card has not.
//!
//! Blocks run on the machine's cores, in any order; the warps of a block one after the other, each as
//! far as the next barrier; the lanes of a warp together, those with the least to go first. What the
//! compiler makes of ordinary kernels for compute capability 8.0 is understood, and products of groups of
//! warps in bf16 (9.0) from shared memory; everything else is refused when it is met (PTX ISA 8.7 says what
//! each instruction means).
//!
//! A [`Fault`] is: an access beside what was allocated or not aligned; two warps that touch one word of
//! shared memory between two barriers, or two blocks one word or byte of global memory, where one of them
//! writes; two lanes that write different numbers to one place in one instruction; shared memory that is
//! read before anything is written there; an asynchronous copy to what may still be read, one that is
//! read or written before it was waited for, one that nobody waits for; a product of groups whose operands or
//! sums are written before it was waited for, one that nobody waits for, one that reads what was not shown to
//! it, and warps of a group that multiply different operands; a barrier that not all lanes of a warp reach
//! together; a loop without an end.
//!
//! What it cannot show: time; warps of one block that race in global memory; sums of groups that are read
//! before they were waited for, which are then what they were before, and those that are written between
//! `wgmma.fence` and their first product; the hardware's order of summing inside a product of tiles, which is
//! not specified (here: one after the other, in f32); approximate functions are those of the host, which are
//! closer than the card's.

mod decode;
mod execute;
mod instruction;
mod matrix;
mod memory;
mod parse;
mod warp;

use std::fmt;

pub use execute::{Launch, Statistics};
pub use memory::Machine;
pub use parse::{Kernel, Module, ParseError};

/// Where and why a kernel was stopped.
#[derive(Clone, Debug, thiserror::Error)]
pub struct Fault {
    /// What is wrong.
    pub what: String,
    /// Where: kernel, block, warp and line; empty for an access from the host.
    pub place: String,
}

impl Fault {
    fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), place: String::new() }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        if self.place.is_empty() { Ok(()) } else { write!(f, " ({})", self.place) }
    }
}

#[cfg(test)]
mod tests;
