//! Global memory: allocations with room between them that nobody owns, and who touched which word
//! within a launch.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, OnceLock, PoisonError, RwLock,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
};

use crate::Fault;

/// Where each space begins in addresses that say their space themselves.
pub const SHARED_BASE: u64 = 1 << 40;
pub const LOCAL_BASE: u64 = 2 << 40;
pub const CONSTANT_BASE: u64 = 3 << 40;
const GLOBAL_BASE: u64 = 16 << 40;

/// What allocations begin at.
const ALIGNMENT: u64 = 512;
/// The least room between them: addresses cost nothing.
const ROOM: u64 = 1 << 32;

/// A block of global memory.
#[derive(Debug)]
pub struct Allocation {
    pub start: u64,
    n_bytes: usize,
    words: Box<[AtomicU32]>,
    of_words: Touches,
    /// Of the bytes of words that are touched in parts, once there are any.
    of_bytes: OnceLock<Touches>,
}

/// Which block of which launch wrote a word or byte last, and read it: [`Touch`].
#[derive(Debug)]
struct Touches {
    writers: Box<[AtomicU64]>,
    readers: Box<[AtomicU64]>,
}

impl Touches {
    fn new(n: usize) -> Self {
        let none = || (0..n).map(|_| AtomicU64::new(0)).collect();
        Self { writers: none(), readers: none() }
    }

    fn is_written_by_another(&self, at: usize, touch: Touch) -> bool {
        touch.is_of_another_block(self.writers[at].load(Relaxed))
    }

    fn is_touched_by_another(&self, at: usize, touch: Touch) -> bool {
        self.is_written_by_another(at, touch)
            || touch.is_of_another_block(self.readers[at].load(Relaxed))
    }

    /// Whether what is read here was written by another block.
    fn read(&self, at: usize, touch: Touch) -> bool {
        let before = self.readers[at].load(Relaxed);
        if before != touch.0 {
            let reader = if touch.is_of_another_block(before) { touch.several() } else { touch.0 };
            self.readers[at].store(reader, Relaxed);
        }
        self.is_written_by_another(at, touch)
    }

    /// Whether another block reads or writes what is written here.
    fn write(&self, at: usize, touch: Touch) -> bool {
        let before = self.writers[at].swap(touch.0, Relaxed);
        touch.is_of_another_block(before)
            || touch.is_of_another_block(self.readers[at].load(Relaxed))
    }
}

/// A block of a launch: the launch's number in the upper half, the block's and one in the lower.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Touch(u64);

impl Touch {
    pub fn new(launch: u32, block: u32) -> Self {
        Self((u64::from(launch) << 32) | (u64::from(block) + 1))
    }

    fn is_of_another_block(self, other: u64) -> bool {
        other >> 32 == self.0 >> 32 && other != self.0
    }

    /// Stands for several blocks of this one's launch.
    fn several(self) -> u64 {
        self.0 | 0xffff_ffff
    }
}

impl Allocation {
    fn new(start: u64, n_bytes: usize) -> Self {
        let n_words = n_bytes.div_ceil(4);
        let words = (0..n_words).map(|_| AtomicU32::new(0)).collect();
        let (of_words, of_bytes) = (Touches::new(n_words), OnceLock::new());
        Self { start, n_bytes, words, of_words, of_bytes }
    }

    fn of_bytes(&self) -> &Touches {
        self.of_bytes.get_or_init(|| Touches::new(self.n_bytes.next_multiple_of(4)))
    }

    pub fn contains(&self, address: u64, n_bytes: usize) -> bool {
        address >= self.start && address - self.start + n_bytes as u64 <= self.n_bytes as u64
    }

    /// The number of at most eight bytes at an aligned address inside.
    pub fn load(&self, address: u64, n_bytes: usize) -> u64 {
        let offset = (address - self.start) as usize;
        let word = |at: usize| u64::from(self.words[at].load(Relaxed));
        match n_bytes {
            8 => word(offset / 4) | word(offset / 4 + 1) << 32,
            4 => word(offset / 4),
            _ => word(offset / 4) >> (8 * (offset % 4)) & ((1 << (8 * n_bytes)) - 1),
        }
    }

    pub fn store(&self, address: u64, n_bytes: usize, value: u64) {
        let offset = (address - self.start) as usize;
        let at = offset / 4;
        match n_bytes {
            8 => {
                self.words[at].store(value as u32, Relaxed);
                self.words[at + 1].store((value >> 32) as u32, Relaxed);
            }
            4 => self.words[at].store(value as u32, Relaxed),
            _ => {
                let shift = 8 * (offset % 4);
                let mask = ((1_u32 << (8 * n_bytes)) - 1) << shift;
                let placed = (value as u32) << shift & mask;
                // Other blocks may write the word's other bytes.
                let _ = self.words[at]
                    .fetch_update(Relaxed, Relaxed, |word| Some(word & !mask | placed));
            }
        }
    }

    /// Whether what `touch` reads here was written by another block.
    pub fn reads_from_another(&self, address: u64, n_bytes: usize, touch: Touch) -> bool {
        let first = (address - self.start) as usize;
        if n_bytes < 4 {
            let of_bytes = self.of_bytes();
            let written =
                (first..first + n_bytes).fold(false, |any, at| of_bytes.read(at, touch) | any);
            return written || self.of_words.is_written_by_another(first / 4, touch);
        }
        let words = first / 4..(first + n_bytes) / 4;
        words.fold(false, |any, at| self.of_words.read(at, touch) | any)
            || self.of_bytes.get().is_some_and(|of_bytes| {
                (first..first + n_bytes).any(|at| of_bytes.is_written_by_another(at, touch))
            })
    }

    /// Whether another block reads or writes what `touch` writes here.
    pub fn writes_over_another(&self, address: u64, n_bytes: usize, touch: Touch) -> bool {
        let first = (address - self.start) as usize;
        if n_bytes < 4 {
            let of_bytes = self.of_bytes();
            let touched =
                (first..first + n_bytes).fold(false, |any, at| of_bytes.write(at, touch) | any);
            return touched || self.of_words.is_touched_by_another(first / 4, touch);
        }
        let words = first / 4..(first + n_bytes) / 4;
        words.fold(false, |any, at| self.of_words.write(at, touch) | any)
            || self.of_bytes.get().is_some_and(|of_bytes| {
                (first..first + n_bytes).any(|at| of_bytes.is_touched_by_another(at, touch))
            })
    }
}

/// A card's memory.
#[derive(Debug, Default)]
pub struct Machine {
    memory: RwLock<Memory>,
    launches: AtomicU32,
}

#[derive(Debug, Default)]
struct Memory {
    allocations: BTreeMap<u64, Arc<Allocation>>,
    next: u64,
}

impl Machine {
    /// One with no memory taken.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes `n_bytes` zeros; returns their address.
    pub fn allocate(&self, n_bytes: usize) -> u64 {
        let mut memory = self.memory.write().unwrap_or_else(PoisonError::into_inner);
        let start = GLOBAL_BASE + memory.next;
        memory.next += (n_bytes as u64).next_multiple_of(ALIGNMENT) + ROOM;
        memory.allocations.insert(start, Arc::new(Allocation::new(start, n_bytes)));
        start
    }

    /// Gives back what [`Machine::allocate`] took.
    pub fn free(&self, address: u64) {
        let mut memory = self.memory.write().unwrap_or_else(PoisonError::into_inner);
        memory.allocations.remove(&address);
    }

    /// Writes bytes from the host.
    ///
    /// # Errors
    /// When they are not all inside one allocation.
    pub fn write(&self, address: u64, bytes: &[u8]) -> Result<(), Fault> {
        let allocation = self.inside(address, bytes.len())?;
        let mut at = address;
        let mut rest = bytes;
        while !rest.is_empty() {
            let is_word = at.is_multiple_of(4) && rest.len() >= 4;
            let (part, after) = rest.split_at(if is_word { 4 } else { 1 });
            let value = part.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte));
            allocation.store(at, part.len(), value);
            at += part.len() as u64;
            rest = after;
        }
        Ok(())
    }

    /// Reads bytes to the host.
    ///
    /// # Errors
    /// When they are not all inside one allocation.
    pub fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), Fault> {
        let allocation = self.inside(address, bytes.len())?;
        for (at, byte) in (address..).zip(bytes) {
            *byte = allocation.load(at, 1) as u8;
        }
        Ok(())
    }

    fn inside(&self, address: u64, n_bytes: usize) -> Result<Arc<Allocation>, Fault> {
        let memory = self.memory.read().unwrap_or_else(PoisonError::into_inner);
        let found = memory.allocations.range(..=address).next_back();
        found
            .filter(|(_, allocation)| allocation.contains(address, n_bytes))
            .map(|(_, allocation)| Arc::clone(allocation))
            .ok_or_else(|| {
                Fault::new(format!("{n_bytes} bytes at {address:#x} were not allocated"))
            })
    }

    /// Everything that is allocated, by address.
    pub(crate) fn allocations(&self) -> Vec<Arc<Allocation>> {
        let memory = self.memory.read().unwrap_or_else(PoisonError::into_inner);
        memory.allocations.values().cloned().collect()
    }

    pub(crate) fn next_launch(&self) -> u32 {
        self.launches.fetch_add(1, Relaxed) + 1
    }
}
