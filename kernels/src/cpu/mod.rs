//! The processor as a [`Backend`](crate::Backend): its memory blocks and its thread pool.
//!
//! Operations reach memory through [`Cpu::access`], the one place where a [`DeviceSlice`] becomes
//! a Rust slice.

pub(crate) mod gemm;
pub(crate) mod math;
pub(crate) mod parallel;

use std::ops::Range;

use memmap2::{MmapMut, MmapRaw};

use crate::{
    device::{Compute, DeviceKind, DeviceProfile, Isa},
    memory::{DeviceSlice, Element, MappedFile, Memory, MemoryError, MemoryId},
};

/// One block of memory.
#[derive(Debug)]
enum Block {
    /// Anonymous pages, zero until written. Kept raw: no reference to the whole block ever exists,
    /// only the slices that an operation takes of it.
    Owned(MmapRaw),
    /// A file's pages.
    Mapped(MappedFile),
}

impl Block {
    fn as_ptr(&self) -> *const u8 {
        match self {
            Self::Owned(map) => map.as_ptr(),
            Self::Mapped(file) => file.as_ptr(),
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Owned(map) => map.len(),
            Self::Mapped(file) => file.len(),
        }
    }
}

/// The processor: memory, threads, and the vector instructions to use.
#[derive(Debug)]
pub struct Cpu {
    blocks: Vec<Block>,
    pool: rayon::ThreadPool,
    isa: Isa,
    compute: Compute,
    n_threads: usize,
}

impl Cpu {
    /// A CPU device as `profile` describes it, with no memory yet. Instructions that this processor
    /// lacks are replaced by the best it has.
    ///
    /// # Errors
    /// When the system refuses to start the threads.
    pub fn new(profile: DeviceProfile) -> Result<Self, rayon::ThreadPoolBuildError> {
        let DeviceKind::Cpu { isa, n_threads } = profile.kind;
        let isa = isa.min(Isa::best());
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(n_threads)
            .thread_name(|index| format!("nibble-{index}"))
            .build()?;
        Ok(Self { blocks: Vec::new(), pool, isa, compute: profile.compute, n_threads })
    }

    /// The vector instructions in use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// The precision of matrix products.
    pub fn compute(&self) -> Compute {
        self.compute
    }

    /// The number of worker threads.
    pub fn n_threads(&self) -> usize {
        self.n_threads
    }

    /// Starts resolving one operation's arguments.
    pub(crate) fn access(&mut self) -> Access<'_> {
        Access {
            isa: self.isa,
            compute: self.compute,
            blocks: &self.blocks,
            pool: &self.pool,
            taken: [(); MAX_ARGUMENTS].map(|()| None),
            n_taken: 0,
        }
    }
}

/// The most slices one operation takes.
const MAX_ARGUMENTS: usize = 24;

/// The arguments of one operation, from handles to Rust slices.
///
/// Keeps what was handed out and refuses an output that overlaps anything else, so that no two
/// live slices alias. It holds the device for the operation's whole life; on the stack, because a
/// training step does not allocate.
pub(crate) struct Access<'a> {
    isa: Isa,
    compute: Compute,
    blocks: &'a [Block],
    pool: &'a rayon::ThreadPool,
    taken: [Option<Taken>; MAX_ARGUMENTS],
    n_taken: usize,
}

struct Taken {
    memory: MemoryId,
    bytes: Range<usize>,
    writable: bool,
}

impl<'a> Access<'a> {
    /// The threads to run on.
    pub(crate) fn pool(&self) -> &'a rayon::ThreadPool {
        self.pool
    }

    /// Where a matrix product runs.
    pub(crate) fn place(&self) -> gemm::Place<'a> {
        gemm::Place { pool: self.pool, isa: self.isa, compute: self.compute }
    }

    /// An input.
    pub(crate) fn read<T: Element>(&mut self, slice: DeviceSlice<T>) -> &'a [T] {
        self.take(slice, false);
        let bytes = self.blocks[slice.memory().0 as usize].as_ptr();
        // SAFETY: `take` checked that the range lies inside the block and overlaps no output handed
        // out in this operation. The block outlives 'a, cannot be freed or handed out again while
        // this value's borrow of the device lives, and is aligned to a page, so that the slice's
        // checked offset is aligned for T. T is plain old data.
        unsafe { std::slice::from_raw_parts(bytes.add(slice.offset()).cast(), slice.len()) }
    }

    /// An output (or an argument changed in place).
    pub(crate) fn write<T: Element>(&mut self, slice: DeviceSlice<T>) -> &'a mut [T] {
        self.take(slice, true);
        let Block::Owned(map) = &self.blocks[slice.memory().0 as usize] else {
            panic!("{slice:?} is in a read-only block");
        };
        // SAFETY: as in `read`; and `take` checked that it overlaps nothing else handed out, so the
        // reference is unique. The device is mutably borrowed for 'a, so that nobody else can reach
        // the block; its pages are private, writable memory, which nothing else in Rust refers to.
        unsafe {
            std::slice::from_raw_parts_mut(map.as_mut_ptr().add(slice.offset()).cast(), slice.len())
        }
    }

    fn take<T: Element>(&mut self, slice: DeviceSlice<T>, writable: bool) {
        let (memory, bytes) = (slice.memory(), slice.byte_range());
        let block_bytes = self.blocks[memory.0 as usize].len();
        assert!(bytes.end <= block_bytes, "{slice:?} leaves its block of {block_bytes} bytes");
        for other in self.taken[..self.n_taken].iter().flatten() {
            let overlap = other.memory == memory
                && other.bytes.start < bytes.end
                && bytes.start < other.bytes.end;
            assert!(
                !(overlap && (writable || other.writable)),
                "{slice:?} overlaps another argument at bytes {:?}",
                other.bytes
            );
        }
        self.taken[self.n_taken] = Some(Taken { memory, bytes, writable });
        self.n_taken += 1;
    }
}

impl Memory for Cpu {
    fn profile(&self) -> DeviceProfile {
        DeviceProfile {
            kind: DeviceKind::Cpu { isa: self.isa, n_threads: self.n_threads },
            compute: self.compute,
        }
    }

    fn allocate(&mut self, n_bytes: usize) -> Result<MemoryId, MemoryError> {
        // The system refuses an empty mapping; an empty plan is no error.
        let map = MmapMut::map_anon(n_bytes.max(1))
            .map_err(|source| MemoryError::Allocate { bytes: n_bytes, source })?;
        Ok(self.push(Block::Owned(map.into())))
    }

    fn adopt(&mut self, file: MappedFile) -> Result<MemoryId, MemoryError> {
        Ok(self.push(Block::Mapped(file)))
    }

    fn upload<T: Element>(&mut self, source: &[T], destination: DeviceSlice<T>) {
        self.access().write(destination).copy_from_slice(source);
    }

    fn download<T: Element>(&self, source: DeviceSlice<T>, destination: &mut [T]) {
        let block = &self.blocks[source.memory().0 as usize];
        assert!(source.byte_range().end <= block.len(), "{source:?} leaves its block");
        // SAFETY: the range lies inside the block; nothing writes to it while `self` is borrowed,
        // because every writer borrows the device mutably; `new` checked the alignment.
        let elements = unsafe {
            std::slice::from_raw_parts(block.as_ptr().add(source.offset()).cast(), source.len())
        };
        destination.copy_from_slice(elements);
    }

    fn clear<T: Element>(&mut self, slice: DeviceSlice<T>) {
        self.access().write(slice).fill(T::zeroed());
    }

    fn copy<T: Element>(&mut self, source: DeviceSlice<T>, destination: DeviceSlice<T>) {
        let mut access = self.access();
        let source = access.read(source);
        access.write(destination).copy_from_slice(source);
    }
}

impl Cpu {
    fn push(&mut self, block: Block) -> MemoryId {
        self.blocks.push(block);
        MemoryId(self.blocks.len() as u32 - 1)
    }
}
