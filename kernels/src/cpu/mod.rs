//! The processor as a [`Backend`](crate::Backend): its memory blocks and its thread pool.
//!
//! Operations reach memory through [`Cpu::access`], the one place where a [`DeviceSlice`] becomes
//! a Rust slice.

pub mod ceilings;
mod dropout;
pub(crate) mod float;
pub(crate) mod gemm;
pub(crate) mod math;
mod mover;
pub(crate) mod parallel;
pub(crate) mod pool;

use std::{io, ops::Range, sync::Arc};

use memmap2::{MmapMut, MmapRaw};

use gemm::{Target, Values};
use pool::Pool;

use crate::{
    arguments::{Arguments, Direction, InFlight},
    device::{Compute, DeviceKind, DeviceProfile, Isa},
    memory::{DeviceSlice, Element, Floats, MappedFile, Memory, MemoryError, MemoryId},
    paging::{PageError, PageFile, Paging, StoreId, StorePlace, Transfer, Transferred},
    profile::{Call, OperationProfile, Profile},
};
use mover::{Mover, Store};

/// One block of memory.
#[derive(Debug)]
enum Block {
    /// Anonymous pages, zero until written. Kept raw: no reference to the whole block ever exists,
    /// only the slices that an operation takes of it.
    Owned(MmapRaw),
    /// A file's pages, and which of its bytes belong to the block, in rising order.
    Mapped { file: MappedFile, used: Box<[Range<usize>]> },
}

impl Block {
    fn as_ptr(&self) -> *const u8 {
        match self {
            Self::Owned(map) => map.as_ptr(),
            Self::Mapped { file, .. } => file.as_ptr(),
        }
    }

    /// Its bytes.
    fn n_bytes(&self) -> usize {
        match self {
            Self::Owned(map) => map.len(),
            Self::Mapped { used, .. } => used.iter().map(Range::len).sum(),
        }
    }

    /// Whether all of `bytes` are its own.
    fn contains(&self, bytes: &Range<usize>) -> bool {
        match self {
            Self::Owned(map) => bytes.end <= map.len(),
            Self::Mapped { used, .. } => {
                let next = used.partition_point(|run| run.end < bytes.end);
                used.get(next).is_some_and(|run| run.start <= bytes.start && bytes.end <= run.end)
            }
        }
    }
}

/// The processor: memory, threads, and the vector instructions to use.
#[derive(Debug)]
pub struct Cpu {
    /// Before the blocks, since it must end before they do.
    mover: Option<Mover>,
    in_flight: Vec<InFlight>,
    stores: Vec<Arc<Store>>,
    transferred: Transferred,
    blocks: Vec<Block>,
    pool: Pool,
    isa: Isa,
    compute: Compute,
    profile: Option<Profile>,
    is_profiling: bool,
}

impl Cpu {
    /// A CPU device as `profile` describes it, with no memory yet. Instructions that this processor
    /// lacks are replaced by the best it has.
    ///
    /// # Errors
    /// When the system refuses to start the threads.
    pub fn new(profile: DeviceProfile) -> io::Result<Self> {
        let DeviceKind::Cpu { isa, n_threads } = profile.kind else {
            panic!("{profile:?} is no processor");
        };
        let isa = isa.min(Isa::best());
        Ok(Self {
            mover: None,
            in_flight: Vec::with_capacity(16),
            stores: Vec::new(),
            transferred: Transferred::default(),
            blocks: Vec::new(),
            pool: Pool::new(n_threads)?,
            isa,
            compute: profile.compute,
            profile: None,
            is_profiling: false,
        })
    }

    /// The vector instructions in use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// The precision of matrix products.
    pub fn compute(&self) -> Compute {
        self.compute
    }

    /// The number of threads that operations run on, the calling one among them.
    pub fn n_threads(&self) -> usize {
        self.pool.n_threads()
    }

    /// Counts and times operations from now on, or no longer; what was counted stays.
    pub fn profile_operations(&mut self, on: bool) {
        self.is_profiling = on;
        if on {
            self.profile.get_or_insert_with(Profile::new);
        }
    }

    /// What was counted so far.
    pub fn profiled(&self) -> &[OperationProfile] {
        self.profile.as_ref().map_or(&[], Profile::operations)
    }

    /// Starts resolving the arguments of one call of `operation`.
    pub(crate) fn access(&mut self, operation: &'static str) -> Access<'_> {
        Access {
            call: self
                .profile
                .as_mut()
                .filter(|_| self.is_profiling)
                .map(|profile| Call::begin(profile, operation)),
            isa: self.isa,
            compute: self.compute,
            blocks: &self.blocks,
            in_flight: &self.in_flight,
            pool: &self.pool,
            arguments: Arguments::default(),
        }
    }
}

/// The arguments of one operation, from handles to Rust slices.
///
/// Keeps what was handed out ([`Arguments`]), so that no two live slices alias. It holds the device
/// for the operation's whole life; on the stack, because a training step does not allocate.
pub(crate) struct Access<'a> {
    /// Where the call is counted, if it is.
    call: Option<Call<'a>>,
    isa: Isa,
    compute: Compute,
    blocks: &'a [Block],
    in_flight: &'a [InFlight],
    pool: &'a Pool,
    arguments: Arguments,
}

impl<'a> Access<'a> {
    /// Counts the multiplications and additions of a matrix product of these extents.
    pub(crate) fn count_product(&mut self, m: usize, n: usize, k: usize) {
        self.count_flops(|| 2.0 * m as f64 * n as f64 * k as f64);
    }

    /// Counts multiplications and additions, which are found only if somebody wants to know.
    pub(crate) fn count_flops(&mut self, n_flops: impl FnOnce() -> f64) {
        if let Some(call) = &mut self.call {
            call.count_flops(n_flops());
        }
    }

    /// The threads to run on.
    pub(crate) fn pool(&self) -> &'a Pool {
        self.pool
    }

    /// Where a matrix product runs.
    pub(crate) fn place(&self) -> gemm::Place<'a> {
        gemm::Place { pool: self.pool, isa: self.isa, compute: self.compute }
    }

    /// An input.
    pub(crate) fn read<T: Element>(&mut self, slice: DeviceSlice<T>) -> &'a [T] {
        self.read_some(slice, slice.len())
    }

    /// An input of which only `n_used` elements are read.
    pub(crate) fn read_some<T: Element>(
        &mut self,
        slice: DeviceSlice<T>,
        n_used: usize,
    ) -> &'a [T] {
        self.take(slice, n_used, false);
        let bytes = self.blocks[slice.memory().0 as usize].as_ptr();
        // SAFETY: `take` checked that the range lies inside the block and overlaps no output handed
        // out in this operation, nor what a transfer writes meanwhile. The block outlives 'a, cannot be freed or handed out again while
        // this value's borrow of the device lives, and is aligned to a page, so that the slice's
        // checked offset is aligned for T. T is plain old data.
        unsafe { std::slice::from_raw_parts(bytes.add(slice.offset()).cast(), slice.len()) }
    }

    /// An output (or an argument changed in place).
    pub(crate) fn write<T: Element>(&mut self, slice: DeviceSlice<T>) -> &'a mut [T] {
        self.write_some(slice, slice.len())
    }

    /// An output of which only `n_used` elements are written.
    pub(crate) fn write_some<T: Element>(
        &mut self,
        slice: DeviceSlice<T>,
        n_used: usize,
    ) -> &'a mut [T] {
        self.take(slice, n_used, true);
        let Block::Owned(map) = &self.blocks[slice.memory().0 as usize] else {
            panic!("{slice:?} is in a read-only block");
        };
        // SAFETY: as in `read`; and `take` checked that it overlaps nothing else handed out, nor what a
        // transfer reads or writes meanwhile, so the reference is unique. The device is mutably borrowed for 'a, so that nobody else can reach
        // the block; its pages are private, writable memory, which nothing else in Rust refers to.
        unsafe {
            std::slice::from_raw_parts_mut(map.as_mut_ptr().add(slice.offset()).cast(), slice.len())
        }
    }

    /// As [`Access::read`], of either format.
    pub(crate) fn read_floats(&mut self, floats: Floats) -> Values<'a> {
        match floats {
            Floats::F32(slice) => Values::F32(self.read(slice)),
            Floats::Bf16(slice) => Values::Bf16(self.read(slice)),
        }
    }

    /// As [`Access::write`], of either format.
    pub(crate) fn write_floats(&mut self, floats: Floats) -> Target<'a> {
        match floats {
            Floats::F32(slice) => Target::F32(self.write(slice)),
            Floats::Bf16(slice) => Target::Bf16(self.write(slice)),
        }
    }

    fn take<T: Element>(&mut self, slice: DeviceSlice<T>, n_used: usize, writable: bool) {
        let (memory, bytes) = (slice.memory(), slice.byte_range());
        let block = &self.blocks[memory.0 as usize];
        let n_bytes = block.n_bytes();
        assert!(block.contains(&bytes), "{slice:?} leaves its block of {n_bytes} bytes");
        self.arguments.take(slice, writable, self.in_flight);
        if let Some(call) = &mut self.call {
            call.count_bytes(n_used.min(slice.len()) * size_of::<T>());
        }
    }
}

/// Anonymous pages, large ones where the system gives them: rows of a matrix lie further apart than
/// a small page, and a core remembers only so many. The system refuses an empty mapping; an empty
/// plan is no error.
fn zeros(n_bytes: usize) -> io::Result<MmapRaw> {
    let map = MmapMut::map_anon(n_bytes.max(1))?;
    // A system without them is only slower.
    #[cfg(target_os = "linux")]
    let _ = map.advise(memmap2::Advice::HugePage);
    Ok(map.into())
}

impl Memory for Cpu {
    fn profile(&self) -> DeviceProfile {
        DeviceProfile {
            kind: DeviceKind::Cpu { isa: self.isa, n_threads: self.n_threads() },
            compute: self.compute,
        }
    }

    fn allocate(&mut self, n_bytes: usize) -> Result<MemoryId, MemoryError> {
        let map =
            zeros(n_bytes).map_err(|source| MemoryError::Allocate { bytes: n_bytes, source })?;
        Ok(self.push(Block::Owned(map)))
    }

    fn adopt(&mut self, file: MappedFile, used: &[Range<usize>]) -> Result<MemoryId, MemoryError> {
        assert!(
            used.last().is_none_or(|run| run.end <= file.len())
                && used.iter().all(|run| run.start < run.end)
                && used.is_sorted_by(|run, next| run.end < next.start),
            "{used:?} of a file of {} bytes",
            file.len()
        );
        Ok(self.push(Block::Mapped { file, used: used.into() }))
    }

    fn allocated_bytes(&self) -> usize {
        self.blocks.iter().map(Block::n_bytes).sum()
    }

    fn upload<T: Element>(&mut self, source: &[T], destination: DeviceSlice<T>) {
        self.access("upload").write(destination).copy_from_slice(source);
    }

    fn download<T: Element>(&self, source: DeviceSlice<T>, destination: &mut [T]) {
        let block = &self.blocks[source.memory().0 as usize];
        assert!(block.contains(&source.byte_range()), "{source:?} leaves its block");
        for transfer in &self.in_flight {
            transfer.check(source.memory(), &source.byte_range(), false);
        }
        // SAFETY: the range lies inside the block; nothing writes to it while `self` is borrowed:
        // operations borrow the device mutably, and no transfer is under way there. `new` checked the
        // alignment.
        let elements = unsafe {
            std::slice::from_raw_parts(block.as_ptr().add(source.offset()).cast(), source.len())
        };
        destination.copy_from_slice(elements);
    }

    fn clear<T: Element>(&mut self, slice: DeviceSlice<T>) {
        self.access("clear").write(slice).fill(T::zeroed());
    }

    fn copy<T: Element>(&mut self, source: DeviceSlice<T>, destination: DeviceSlice<T>) {
        let mut access = self.access("copy");
        let source = access.read(source);
        access.write(destination).copy_from_slice(source);
    }
}

impl Cpu {
    fn push(&mut self, block: Block) -> MemoryId {
        self.blocks.push(block);
        MemoryId(self.blocks.len() as u32 - 1)
    }

    fn push_store(&mut self, store: Store) -> StoreId {
        self.stores.push(Arc::new(store));
        StoreId(self.stores.len() as u32 - 1)
    }

    /// The store, once `n_bytes` from `place` on are known to lie inside it.
    fn store(&self, place: StorePlace, n_bytes: usize) -> &Arc<Store> {
        let store = &self.stores[place.store.0 as usize];
        let end = place.offset.checked_add(n_bytes as u64);
        assert!(
            end.is_some_and(|end| end <= store.n_bytes()),
            "{n_bytes} bytes at {place:?} leave their store of {} bytes",
            store.n_bytes()
        );
        store
    }

    fn transfer(
        &mut self,
        direction: Direction,
        place: StorePlace,
        slice: DeviceSlice<u8>,
    ) -> Result<Transfer, PageError> {
        let (memory, bytes) = (slice.memory(), slice.byte_range());
        let block = &self.blocks[memory.0 as usize];
        let n_bytes = block.n_bytes();
        assert!(block.contains(&bytes), "{slice:?} leaves its block of {n_bytes} bytes");
        let Block::Owned(map) = block else { panic!("{slice:?} is in a read-only block") };
        // SAFETY: inside the block, as just checked.
        let start = unsafe { map.as_mut_ptr().add(slice.offset()) };
        let store = Arc::clone(self.store(place, slice.len()));
        let mover = match &mut self.mover {
            Some(mover) => mover,
            none => none.insert(Mover::start()?),
        };
        // SAFETY: the block lives until after the mover has ended. `in_flight` keeps operations and
        // downloads away from the bytes until the transfer was waited for, and other transfers come
        // one after the other. The store's bytes are inside it; `read_store` and `write_store`, the
        // only others that reach them, wait for every transfer first.
        let number = unsafe { mover.add(direction, &store, place.offset, start, slice.len()) };
        self.in_flight.push(InFlight { number, memory, bytes, direction });
        self.transferred.count(direction, slice.len());
        Ok(Transfer(number))
    }

    fn wait_for_all(&mut self) -> Result<(), PageError> {
        let ended = self.mover.as_ref().map_or(Ok(()), Mover::wait_for_all);
        self.in_flight.clear();
        ended
    }
}

impl Paging for Cpu {
    fn host_store(&mut self, n_bytes: usize) -> Result<StoreId, PageError> {
        let map = zeros(n_bytes)
            .map_err(|source| PageError::HostMemory { n_bytes, source: Arc::new(source) })?;
        Ok(self.push_store(Store::Host(map)))
    }

    fn file_store(&mut self, file: PageFile) -> StoreId {
        self.push_store(Store::File(file))
    }

    fn load(
        &mut self,
        source: StorePlace,
        destination: DeviceSlice<u8>,
    ) -> Result<Transfer, PageError> {
        self.transfer(Direction::Load, source, destination)
    }

    fn save(
        &mut self,
        source: DeviceSlice<u8>,
        destination: StorePlace,
    ) -> Result<Transfer, PageError> {
        self.transfer(Direction::Save, destination, source)
    }

    fn wait(&mut self, transfer: Transfer) -> Result<(), PageError> {
        let ended = self.mover.as_ref().map_or(Ok(()), |mover| mover.wait(transfer.0));
        self.in_flight.retain(|other| other.number > transfer.0);
        ended
    }

    fn read_store(&mut self, source: StorePlace, bytes: &mut [u8]) -> Result<(), PageError> {
        self.wait_for_all()?;
        // SAFETY: inside the store, as `store` checks; no transfer is under way, and none begins
        // while the device is borrowed.
        unsafe { self.store(source, bytes.len()).read(source.offset, bytes) }
    }

    fn write_store(&mut self, destination: StorePlace, bytes: &[u8]) -> Result<(), PageError> {
        self.wait_for_all()?;
        // SAFETY: as in `read_store`.
        unsafe { self.store(destination, bytes.len()).write(destination.offset, bytes) }
    }

    fn check_stores(&self) -> Result<(), PageError> {
        self.stores.iter().try_for_each(|store| match &**store {
            Store::File(file) => file.check(),
            Store::Host(_) => Ok(()),
        })
    }

    fn stored_bytes(&self) -> u64 {
        let own = |store: &&Arc<Store>| match &***store {
            Store::Host(_) => true,
            Store::File(file) => file.is_temporary(),
        };
        self.stores.iter().filter(own).map(|store| store.n_bytes()).sum()
    }

    fn transferred(&self) -> Transferred {
        self.transferred
    }
}
