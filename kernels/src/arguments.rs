//! What an operation was handed, on any device: no output may overlap anything else, nor what a
//! transfer moves meanwhile.

use std::ops::Range;

use crate::memory::{DeviceSlice, Element, MemoryId};

/// The most slices one operation takes.
const MAX_ARGUMENTS: usize = 48;

/// Which way a page moves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Direction {
    /// From the store into the block.
    #[default]
    Load,
    /// From the block into the store.
    Save,
}

/// A transfer between a store and a block that was begun and not yet waited for.
#[derive(Debug)]
pub(crate) struct InFlight {
    pub number: u64,
    pub memory: MemoryId,
    pub bytes: Range<usize>,
    pub direction: Direction,
}

impl InFlight {
    /// Panics when `bytes` of `memory`, about to be read or written, are under way.
    pub fn check(&self, memory: MemoryId, bytes: &Range<usize>, writable: bool) {
        let overlap = self.memory == memory && do_overlap(&self.bytes, bytes);
        assert!(
            !(overlap && (writable || self.direction == Direction::Load)),
            "bytes {bytes:?} are used while a transfer of {:?} is under way",
            self.bytes
        );
    }
}

/// Whether two ranges have something in common.
pub(crate) fn do_overlap<T: PartialOrd>(a: &Range<T>, b: &Range<T>) -> bool {
    a.start < b.end && b.start < a.end
}

/// The slices of one operation so far; on the stack, because a training step does not allocate.
pub(crate) struct Arguments {
    taken: [Option<Taken>; MAX_ARGUMENTS],
    n_taken: usize,
}

struct Taken {
    memory: MemoryId,
    bytes: Range<usize>,
    writable: bool,
}

impl Default for Arguments {
    fn default() -> Self {
        Self { taken: [(); MAX_ARGUMENTS].map(|()| None), n_taken: 0 }
    }
}

impl Arguments {
    /// Adds an argument.
    ///
    /// # Panics
    /// When it overlaps another one of which either is written, or bytes that are under way.
    pub fn take<T: Element>(
        &mut self,
        slice: DeviceSlice<T>,
        writable: bool,
        in_flight: &[InFlight],
    ) {
        let (memory, bytes) = (slice.memory(), slice.byte_range());
        for other in self.taken[..self.n_taken].iter().flatten() {
            let overlap = other.memory == memory && do_overlap(&other.bytes, &bytes);
            assert!(
                !(overlap && (writable || other.writable)),
                "{slice:?} overlaps another argument at bytes {:?}",
                other.bytes
            );
        }
        in_flight.iter().for_each(|transfer| transfer.check(memory, &bytes, writable));
        self.taken[self.n_taken] = Some(Taken { memory, bytes, writable });
        self.n_taken += 1;
    }
}
