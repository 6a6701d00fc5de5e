//! What the backend asks of whatever runs its kernels: a card's driver, or the simulator of the tests.
//!
//! Work is queued in the order in which it is asked for and runs behind the caller; what the host
//! reads waits for it.

use std::fmt;

use crate::device::{Capability, DeviceError};

/// A place in the device's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Address(pub u64);

impl Address {
    /// No place: an argument that is not wanted.
    pub const NULL: Self = Self(0);

    /// `n_bytes` further on.
    pub fn plus(self, n_bytes: usize) -> Self {
        Self(self.0 + n_bytes as u64)
    }
}

/// A kernel that was loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Function(pub u32);

/// How many threads run a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Launch {
    /// Blocks in x, y and z; the last two below 65,536.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Shared memory beside what the kernel declares itself, at most
    /// [`MAX_SHARED_BYTES`](crate::cuda::MAX_SHARED_BYTES).
    pub shared_bytes: u32,
}

impl Launch {
    /// `n_blocks` blocks of `n_threads` threads.
    pub fn linear(n_blocks: usize, n_threads: u32) -> Self {
        Self { grid: [n_blocks as u32, 1, 1], block: [n_threads, 1, 1], shared_bytes: 0 }
    }

    /// As many blocks of `n_threads` threads as `n_items` take, one item a thread.
    pub fn covering(n_items: usize, n_threads: u32) -> Self {
        Self::linear(n_items.div_ceil(n_threads as usize), n_threads)
    }

    /// A thread for each of the `n_items` of each of `n_rows` rows, 256 a block: rows in y of the block
    /// and in x of the grid, items the other way round, because only x of the grid may be long.
    pub fn by_rows(n_rows: usize, n_items: usize) -> Self {
        let n_across = n_items.next_power_of_two().min(32);
        let n_down = 256 / n_across;
        let grid = [n_rows.div_ceil(n_down) as u32, n_items.div_ceil(n_across) as u32, 1];
        Self { grid, block: [n_across as u32, n_down as u32, 1], shared_bytes: 0 }
    }

    /// With this much shared memory.
    pub fn with_shared_bytes(self, shared_bytes: usize) -> Self {
        Self { shared_bytes: shared_bytes as u32, ..self }
    }
}

/// The arguments of a kernel, laid out as it declares them: each at its natural alignment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Parameters {
    bytes: [u8; Self::MAX_BYTES],
    len: usize,
}

impl Parameters {
    const MAX_BYTES: usize = 512;

    /// None yet.
    pub fn new() -> Self {
        Self { bytes: [0; Self::MAX_BYTES], len: 0 }
    }

    fn push<const N: usize>(mut self, bytes: [u8; N]) -> Self {
        let start = self.len.next_multiple_of(N);
        self.bytes[start..start + N].copy_from_slice(&bytes);
        self.len = start + N;
        self
    }

    /// A pointer.
    pub fn address(self, address: Address) -> Self {
        self.push(address.0.to_ne_bytes())
    }

    /// An extent or a number of rows.
    ///
    /// # Panics
    /// When it does not fit: no tensor has that many.
    pub fn extent(self, extent: usize) -> Self {
        self.u32(u32::try_from(extent).unwrap_or_else(|_| panic!("an extent of {extent}")))
    }

    /// A 32-bit number.
    pub fn u32(self, value: u32) -> Self {
        self.push(value.to_ne_bytes())
    }

    /// A 64-bit number, such as a number of elements.
    pub fn u64(self, value: u64) -> Self {
        self.push(value.to_ne_bytes())
    }

    /// A real number.
    pub fn f32(self, value: f32) -> Self {
        self.push(value.to_ne_bytes())
    }

    /// All of them.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// Memory of the host that the device copies to and from by itself.
#[derive(Debug)]
pub(crate) struct HostMemory {
    /// Its first byte.
    pub start: *mut u8,
    /// Its length.
    pub n_bytes: usize,
}

// SAFETY: the bytes are no thread's own; the device they belong to is one thread's at a time.
unsafe impl Send for HostMemory {}

/// A transfer that was begun. Later ones are larger; those of one direction end in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moved(pub u64);

/// Memory, kernels, and the queue that both are used through.
pub(crate) trait Driver: fmt::Debug + Send {
    /// What the card's multiprocessors can do.
    fn capability(&self) -> Capability;

    /// Bytes that this process may still take, as far as the driver says.
    fn free_bytes(&self) -> Option<usize> {
        None
    }

    /// Takes `n_bytes` (at least one), not cleared.
    fn allocate(&mut self, n_bytes: usize) -> Result<Address, DeviceError>;

    /// Gives back what [`Driver::allocate`] took, when all queued work is done.
    fn free(&mut self, address: Address);

    /// Loads a module's compiled code and finds `kernels` in it.
    fn load(&mut self, image: &[u8], kernels: &[String]) -> Result<Vec<Function>, DeviceError>;

    /// Queues a kernel.
    ///
    /// # Safety
    /// `parameters` are those that the kernel declares; every address in them leads to memory of
    /// this driver that is long enough for what the kernel does there.
    unsafe fn launch(
        &self,
        function: Function,
        launch: Launch,
        parameters: &Parameters,
    ) -> Result<(), DeviceError>;

    /// Queues zeros.
    ///
    /// # Safety
    /// `n_bytes` from `address` on are memory of this driver; as for the two copies below.
    unsafe fn clear(&self, address: Address, n_bytes: usize) -> Result<(), DeviceError>;

    /// Queues a copy within the device.
    ///
    /// # Safety
    /// As [`Driver::clear`], for both.
    unsafe fn copy(
        &self,
        source: Address,
        destination: Address,
        n_bytes: usize,
    ) -> Result<(), DeviceError>;

    /// Copies from the host behind all queued work; `source` may be changed afterwards, but what is short may not
    /// have arrived yet.
    ///
    /// # Safety
    /// As [`Driver::clear`].
    unsafe fn upload(&self, source: &[u8], destination: Address) -> Result<(), DeviceError>;

    /// Copies to the host, when all queued work is done.
    ///
    /// # Safety
    /// As [`Driver::clear`].
    unsafe fn download(&self, source: Address, destination: &mut [u8]) -> Result<(), DeviceError>;

    /// Waits for all queued work.
    fn synchronize(&self) -> Result<(), DeviceError>;

    /// The same, and asks all the while: a thread that sleeps until then wakes up late, which a short operation
    /// that is timed would pay for.
    fn watch(&self) -> Result<(), DeviceError> {
        self.synchronize()
    }

    /// Takes `n_bytes` zeros of the host's memory, pinned.
    fn host_allocate(&mut self, n_bytes: usize) -> Result<HostMemory, DeviceError>;

    /// Gives back what [`Driver::host_allocate`] took, when all transfers are done.
    fn host_free(&mut self, memory: HostMemory);

    /// Begins to copy from pinned memory to the device, behind the work that is queued, the loads that were
    /// begun and the save `behind`, beside other saves and work that is queued later.
    ///
    /// # Safety
    /// `source` and `destination` lead to as many bytes, which nothing else reaches until the transfer
    /// was waited for, but transfers that it is behind.
    unsafe fn begin_load(
        &self,
        source: *const u8,
        destination: Address,
        n_bytes: usize,
        behind: Option<Moved>,
    ) -> Result<Moved, DeviceError>;

    /// Begins to copy from the device to pinned memory, likewise behind saves and the load `behind`.
    ///
    /// # Safety
    /// As [`Driver::begin_load`], but that the device may read `source` meanwhile.
    unsafe fn begin_save(
        &self,
        source: Address,
        destination: *mut u8,
        n_bytes: usize,
        behind: Option<Moved>,
    ) -> Result<Moved, DeviceError>;

    /// Work that is queued from now on waits for `moved` and all transfers before it; the host does not.
    fn let_wait(&self, moved: Moved) -> Result<(), DeviceError>;

    /// The host waits for all transfers.
    fn wait_for_transfers(&self) -> Result<(), DeviceError>;
}
