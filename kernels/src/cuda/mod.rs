//! A graphics card as a [`Backend`](crate::Backend): its memory blocks and its kernels.
//!
//! What is asked is queued and runs behind the caller. A card that fails does so once: the failure
//! is kept, what is asked afterwards is not done, and [`Memory::check`] tells.
//!
//! Operations reach memory through [`Cuda::call`], the one place where a [`DeviceSlice`] becomes an
//! address. The backend knows no driver: [`driver::Driver`] is a card's, or the simulator of the tests.

mod cards;
mod ceilings;
pub mod code;
pub(crate) mod driver;
mod nvidia;
pub(crate) mod product;
#[cfg(any(test, feature = "simulator"))]
mod simulated;
#[cfg(any(test, feature = "compiler"))]
pub mod sources;

use std::{
    collections::HashMap,
    ops::Range,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

pub use cards::{Card, CardMeter, OpenError, Readings, Unavailable, cards};
pub(crate) use driver::{Address, Launch, Moved, Parameters};
use driver::{Driver, Function, HostMemory};
#[cfg(test)]
pub(crate) use simulated::SIMULATED;
#[cfg(any(test, feature = "simulator"))]
pub use simulated::fail_next_after;

use crate::{
    arguments::{Arguments, InFlight},
    device::{Compute, DeviceError, DeviceKind, DeviceProfile},
    memory::{DeviceSlice, Element, Floats, MappedFile, Memory, MemoryError, MemoryId, ReadAhead},
    paging::{Moving, PageFile, Transferred},
    profile::{self, OperationProfile, Profile},
};

/// The most shared memory that a block may ask for, on the least of the supported cards (8.6, 8.9,
/// 12.0: 99 KiB; CUDA C++ Programming Guide, "Technical specifications per compute capability").
pub const MAX_SHARED_BYTES: usize = 99 << 10;

/// Memory that every device takes for itself, and that is no plan's: for results that go to the host
/// at once, such as the sums of the gradient norm.
pub const SCRATCH_BYTES: usize = 64 << 10;

/// One block of memory.
#[derive(Debug)]
struct Block {
    address: Address,
    /// Which offsets belong to it, in rising order, and where each run begins in the memory.
    runs: Box<[(Range<usize>, usize)]>,
    is_read_only: bool,
}

impl Block {
    fn n_bytes(&self) -> usize {
        self.runs.iter().map(|(run, _)| run.len()).sum()
    }

    /// Where `bytes` lie, if all of them are its own.
    fn address(&self, bytes: &Range<usize>) -> Option<Address> {
        let next = self.runs.partition_point(|(run, _)| run.end < bytes.end);
        let (run, start) = self.runs.get(next)?;
        (run.start <= bytes.start && bytes.end <= run.end)
            .then(|| self.address.plus(start + bytes.start - run.start))
    }
}

/// Where pages lie.
#[derive(Debug)]
pub(crate) enum Store {
    /// Pinned memory.
    Host(HostMemory),
    /// A file.
    File(PageFile),
}

impl Store {
    /// Its length.
    pub fn n_bytes(&self) -> u64 {
        match self {
            Self::Host(memory) => memory.n_bytes as u64,
            Self::File(file) => file.n_bytes(),
        }
    }
}

/// What went wrong first, if anything did.
#[derive(Debug, Default)]
pub(crate) struct Failure(Mutex<Option<DeviceError>>);

impl Failure {
    /// It.
    pub fn get(&self) -> Option<DeviceError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Does `work` unless something failed before; keeps its failure.
    pub fn keep<T>(&self, work: impl FnOnce() -> Result<T, DeviceError>) -> Option<T> {
        let mut first = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if first.is_some() {
            return None;
        }
        work().map_err(|error| *first = Some(error)).ok()
    }
}

/// A card: memory and kernels. Beside the blocks it takes [`SCRATCH_BYTES`], whatever runs on it.
#[derive(Debug)]
pub struct Cuda {
    pub(crate) driver: Box<dyn Driver>,
    functions: HashMap<String, Function>,
    scratch: Address,
    blocks: Vec<Block>,
    pub(crate) in_flight: Vec<InFlight>,
    pub(crate) stores: Vec<Store>,
    /// Of each of those in flight, what a card alone needs to know.
    pub(crate) moving: Vec<Moving>,
    pub(crate) last_transfer: u64,
    pub(crate) transferred: Transferred,
    compute: Compute,
    /// Whether its code has groups of warps multiply.
    has_group_products: bool,
    /// Operations of one launch, where one may be several.
    pub(crate) launch_flops: f64,
    pub(crate) failure: Failure,
    profile: Option<Profile>,
    is_profiling: bool,
    /// Counts this device among the open ones.
    _open: Open,
}

/// One of the devices that are open in this process.
#[derive(Debug)]
struct Open;

static N_OPEN: AtomicUsize = AtomicUsize::new(0);

impl Open {
    fn new() -> Self {
        N_OPEN.fetch_add(1, Ordering::Relaxed);
        Self
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        N_OPEN.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Operations that the slowest card does well within two seconds, after which Windows resets one that is still at
/// work on one launch.
pub(crate) fn launch_flops(compute: Compute) -> f64 {
    match compute {
        Compute::Bf16 => 2e12,
        Compute::F32 => 5e10,
    }
}

/// Devices that are open in this process: a driver takes memory for the first of a card, beside what
/// is allocated.
pub fn n_open() -> usize {
    N_OPEN.load(Ordering::Relaxed)
}

impl Cuda {
    /// A device on `driver` with every kernel of `modules` (names and code) loaded.
    fn new(
        mut driver: Box<dyn Driver>,
        compute: Compute,
        modules: &[code::Module],
    ) -> Result<Self, DeviceError> {
        let mut functions = HashMap::new();
        for module in modules {
            let found = driver.load(&module.image, &module.kernels)?;
            functions.extend(module.kernels.iter().cloned().zip(found));
        }
        let scratch = driver.allocate(SCRATCH_BYTES)?;
        Ok(Self {
            driver,
            has_group_products: functions.contains_key(product::KERNEL_WITH_GROUP_PRODUCTS),
            functions,
            scratch,
            blocks: Vec::new(),
            in_flight: Vec::with_capacity(16),
            stores: Vec::new(),
            moving: Vec::with_capacity(16),
            last_transfer: 0,
            transferred: Transferred::default(),
            compute,
            launch_flops: launch_flops(compute),
            failure: Failure::default(),
            profile: None,
            is_profiling: false,
            _open: Open::new(),
        })
    }

    /// The precision of matrix products.
    pub fn compute(&self) -> Compute {
        self.compute
    }

    /// Bytes of the card that this process may still take, as far as its driver says: where Windows shares a card
    /// among programs, less than is free on it.
    pub fn free_bytes(&self) -> Option<usize> {
        self.driver.free_bytes()
    }

    /// Counts and times operations from now on, or no longer; what was counted stays. Each operation
    /// is then waited for, which is slower than to let them queue.
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
    pub(crate) fn call(&mut self, operation: &'static str) -> Call<'_> {
        Call {
            timing: self
                .profile
                .as_mut()
                .filter(|_| self.is_profiling)
                .map(|profile| profile::Call::begin(profile, operation)),
            compute: self.compute,
            has_group_products: self.has_group_products,
            launch_flops: self.launch_flops,
            driver: &*self.driver,
            functions: &self.functions,
            scratch: self.scratch,
            blocks: &self.blocks,
            in_flight: &self.in_flight,
            failure: &self.failure,
            arguments: Arguments::default(),
        }
    }

    /// Where bytes lie that may be written.
    ///
    /// # Panics
    /// When they leave their block, or it is only read.
    pub(crate) fn owned_address(&self, slice: DeviceSlice<u8>) -> Address {
        let block = &self.blocks[slice.memory().0 as usize];
        assert!(!block.is_read_only, "{slice:?} is in a read-only block");
        block.address(&slice.byte_range()).unwrap_or_else(|| {
            panic!("{slice:?} leaves its block of {} bytes", block.n_bytes());
        })
    }

    fn push(&mut self, block: Block) -> MemoryId {
        self.blocks.push(block);
        MemoryId(self.blocks.len() as u32 - 1)
    }

    fn take(&mut self, n_bytes: usize) -> Result<Address, MemoryError> {
        let driver = &mut self.driver;
        // An empty block is one too; the driver refuses to clear nothing.
        let n_bytes = n_bytes.max(1);
        let taken = driver.allocate(n_bytes).and_then(|address| {
            // SAFETY: just taken.
            unsafe { driver.clear(address, n_bytes) }.map(|()| address)
        });
        Ok(taken?)
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        // One that failed has nothing under way any more.
        let _ = self.driver.wait_for_transfers();
        for store in self.stores.drain(..) {
            if let Store::Host(memory) = store {
                self.driver.host_free(memory);
            }
        }
        let blocks = self.blocks.iter().map(|block| block.address);
        for address in blocks.chain([self.scratch]) {
            self.driver.free(address);
        }
    }
}

/// One call of an operation: its arguments, from handles to addresses, and its kernels.
///
/// Refuses an output that overlaps anything else of the same operation.
pub(crate) struct Call<'a> {
    /// Where the call is counted, if it is.
    timing: Option<profile::Call<'a>>,
    compute: Compute,
    has_group_products: bool,
    launch_flops: f64,
    driver: &'a dyn Driver,
    functions: &'a HashMap<String, Function>,
    scratch: Address,
    blocks: &'a [Block],
    in_flight: &'a [InFlight],
    failure: &'a Failure,
    arguments: Arguments,
}

impl Call<'_> {
    /// The precision of matrix products.
    pub fn compute(&self) -> Compute {
        self.compute
    }

    /// Whether groups of warps multiply, as the code for 9.0 has them.
    pub fn has_group_products(&self) -> bool {
        self.has_group_products
    }

    /// Operations of one launch, where one may be several.
    pub fn launch_flops(&self) -> f64 {
        self.launch_flops
    }

    /// Counts the multiplications and additions of a matrix product of these extents.
    pub fn count_product(&mut self, m: usize, n: usize, k: usize) {
        self.count_flops(|| 2.0 * m as f64 * n as f64 * k as f64);
    }

    /// Counts multiplications and additions, which are found only if somebody wants to know.
    pub fn count_flops(&mut self, n_flops: impl FnOnce() -> f64) {
        if let Some(timing) = &mut self.timing {
            timing.count_flops(n_flops());
        }
    }

    /// An input.
    pub fn read<T: Element>(&mut self, slice: DeviceSlice<T>) -> Address {
        self.take(slice, false)
    }

    /// An output (or an argument changed in place).
    pub fn write<T: Element>(&mut self, slice: DeviceSlice<T>) -> Address {
        self.take(slice, true)
    }

    /// As [`Call::read`], of either format.
    pub fn read_floats(&mut self, floats: Floats) -> Address {
        match floats {
            Floats::F32(slice) => self.read(slice),
            Floats::Bf16(slice) => self.read(slice),
        }
    }

    /// As [`Call::write`], of either format.
    pub fn write_floats(&mut self, floats: Floats) -> Address {
        match floats {
            Floats::F32(slice) => self.write(slice),
            Floats::Bf16(slice) => self.write(slice),
        }
    }

    fn take<T: Element>(&mut self, slice: DeviceSlice<T>, writable: bool) -> Address {
        let block = &self.blocks[slice.memory().0 as usize];
        let Some(address) = block.address(&slice.byte_range()) else {
            panic!("{slice:?} leaves its block of {} bytes", block.n_bytes());
        };
        assert!(!(writable && block.is_read_only), "{slice:?} is in a read-only block");
        self.arguments.take(slice, writable, self.in_flight);
        if let Some(timing) = &mut self.timing {
            timing.count_bytes(slice.n_bytes());
        }
        address
    }

    /// The device's own [`SCRATCH_BYTES`], which hold nothing from one operation to the next.
    pub fn scratch(&self) -> Address {
        self.scratch
    }

    /// Copies the first bytes of the scratch memory to the host, when all queued work is done. Zeros
    /// after a failure.
    ///
    /// # Panics
    /// When there are not as many.
    pub fn download_scratch(&self, destination: &mut [u8]) {
        assert!(destination.len() <= SCRATCH_BYTES, "{} bytes", destination.len());
        if destination.is_empty() {
            return;
        }
        // SAFETY: no more than there are, as just checked.
        let done = || unsafe { self.driver.download(self.scratch, destination) };
        if self.failure.keep(done).is_none() {
            destination.fill(0);
        }
    }

    /// Queues `kernel`. A launch without blocks or threads is nothing to do.
    ///
    /// # Safety
    /// `parameters` are those that the kernel declares, in its order; every address in them is that
    /// of an argument of this call, or of the scratch memory, long enough for what the kernel does
    /// there.
    pub unsafe fn launch(&self, kernel: &str, launch: Launch, parameters: Parameters) {
        if launch.grid.contains(&0) || launch.block.contains(&0) {
            return;
        }
        let Some(&function) = self.functions.get(kernel) else {
            panic!("no kernel is called {kernel}");
        };
        // SAFETY: as the caller promises; blocks live as long as the driver's queue.
        self.failure.keep(|| unsafe { self.driver.launch(function, launch, &parameters) });
    }

    /// Queues zeros for `n_bytes` of an argument.
    ///
    /// # Safety
    /// `address` is that of an output of this call with at least `n_bytes`.
    pub unsafe fn clear(&self, address: Address, n_bytes: usize) {
        if n_bytes > 0 {
            // SAFETY: as the caller promises.
            self.failure.keep(|| unsafe { self.driver.clear(address, n_bytes) });
        }
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        if self.timing.is_some() {
            self.failure.keep(|| self.driver.watch());
        }
    }
}

impl Memory for Cuda {
    fn profile(&self) -> DeviceProfile {
        let kind = DeviceKind::Cuda { capability: self.driver.capability() };
        DeviceProfile { kind, compute: self.compute }
    }

    fn allocate(&mut self, n_bytes: usize) -> Result<MemoryId, MemoryError> {
        let address = self.take(n_bytes)?;
        let runs = Box::new([(0..n_bytes, 0)]);
        Ok(self.push(Block { address, runs, is_read_only: false }))
    }

    fn adopt(&mut self, file: MappedFile, used: &[Range<usize>]) -> Result<MemoryId, MemoryError> {
        assert!(
            used.last().is_none_or(|run| run.end <= file.len())
                && used.iter().all(|run| run.start < run.end)
                && used.is_sorted_by(|run, next| run.end < next.start),
            "{used:?} of a file of {} bytes",
            file.len()
        );
        /// Bytes that are brought from the disk, and leave the host's memory again, at a time.
        const PART: usize = 64 << 20;
        /// Parts that are brought while those before them go to the card.
        const PARTS_AHEAD: usize = 4;
        let mut n_bytes = 0;
        let runs: Box<[_]> = used
            .iter()
            .map(|run| {
                let start = n_bytes;
                n_bytes += run.len();
                (run.clone(), start)
            })
            .collect();
        let address = self.take(n_bytes)?;
        fn parts(run: &Range<usize>) -> impl Iterator<Item = Range<usize>> + use<> {
            let end = run.end;
            run.clone().step_by(PART).map(move |first| first..(first + PART).min(end))
        }
        std::thread::scope(|scope| {
            let all = runs.iter().flat_map(|(run, _)| parts(run));
            let ahead = ReadAhead::begin(scope, PARTS_AHEAD, all, |part| file.expect(part));
            for (run, start) in &runs {
                for part in parts(run) {
                    let destination = address.plus(start + part.start - run.start);
                    // SAFETY: inside the memory just taken.
                    unsafe { self.driver.upload(&file[part.clone()], destination) }?;
                    file.release(part);
                    ahead.was_read();
                }
            }
            Ok::<_, DeviceError>(())
        })?;
        Ok(self.push(Block { address, runs, is_read_only: true }))
    }

    fn allocated_bytes(&self) -> usize {
        self.blocks.iter().map(Block::n_bytes).sum()
    }

    fn check(&self) -> Result<(), DeviceError> {
        self.failure.get().map_or(Ok(()), Err)
    }

    fn upload<T: Element>(&mut self, source: &[T], destination: DeviceSlice<T>) {
        assert_eq!(source.len(), destination.len(), "{destination:?}");
        let mut call = self.call("upload");
        let address = call.write(destination);
        if !source.is_empty() {
            let bytes = bytemuck::cast_slice(source);
            // SAFETY: `write` checked the place, and the lengths are the same.
            call.failure.keep(|| unsafe { call.driver.upload(bytes, address) });
        }
    }

    /// Zeros after a failure.
    fn download<T: Element>(&self, source: DeviceSlice<T>, destination: &mut [T]) {
        assert_eq!(source.len(), destination.len(), "{source:?}");
        let block = &self.blocks[source.memory().0 as usize];
        let Some(address) = block.address(&source.byte_range()) else {
            panic!("{source:?} leaves its block of {} bytes", block.n_bytes());
        };
        for transfer in &self.in_flight {
            transfer.check(source.memory(), &source.byte_range(), false);
        }
        if destination.is_empty() {
            return;
        }
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(destination);
        // SAFETY: inside the block, as just checked, and the lengths are the same.
        if self.failure.keep(|| unsafe { self.driver.download(address, bytes) }).is_none() {
            bytes.fill(0);
        }
    }

    fn clear<T: Element>(&mut self, slice: DeviceSlice<T>) {
        let mut call = self.call("clear");
        let address = call.write(slice);
        // SAFETY: `write` checked the place.
        unsafe { call.clear(address, slice.n_bytes()) };
    }

    fn copy<T: Element>(&mut self, source: DeviceSlice<T>, destination: DeviceSlice<T>) {
        assert_eq!(source.len(), destination.len(), "{source:?} to {destination:?}");
        let mut call = self.call("copy");
        let (from, to) = (call.read(source), call.write(destination));
        if !source.is_empty() {
            // SAFETY: `read` and `write` checked the places, and the lengths are the same.
            call.failure.keep(|| unsafe { call.driver.copy(from, to, source.n_bytes()) });
        }
    }
}
