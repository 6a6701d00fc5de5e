//! The kernels' own code run on the processor by the simulator, which checks every access: how they
//! are tested where there is no card.

use nibble_simulator::{Kernel, Launch as Threads, Machine, Module};

use std::{
    cell::{Cell, RefCell},
    ptr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use super::{
    Cuda,
    code::{CodeArchive, Target},
    driver::{Address, Driver, Function, HostMemory, Launch, Moved, Parameters},
};
use crate::{
    arguments::Direction,
    device::{Capability, Compute, DeviceError},
};

impl Cuda {
    /// A device that is none: the kernels run in the simulator. Slow, and exact in what it checks.
    ///
    /// # Errors
    /// When the kernels' code cannot be read: this build is damaged.
    pub fn simulated(compute: Compute) -> Result<Self, DeviceError> {
        Self::simulated_as(Capability::OLDEST, compute)
    }

    /// The same of a compute capability.
    ///
    /// # Errors
    /// As [`Cuda::simulated`].
    pub(crate) fn simulated_as(
        capability: Capability,
        compute: Compute,
    ) -> Result<Self, DeviceError> {
        let failed = |error: &dyn std::fmt::Display| DeviceError::Failed {
            call: "load",
            reason: error.to_string(),
        };
        let read =
            |archive: &CodeArchive, target| archive.modules(target).map_err(|error| failed(&error));
        let mut modules = read(CodeArchive::embedded(), Target::Ptx)?;
        if Target::for_capability(capability.major, capability.minor) == Some(Target::Compute(90)) {
            for own in read(CodeArchive::simulated(), Target::Ptx90)? {
                modules.retain(|module| module.name != own.name);
                modules.push(own);
            }
        }
        let fails_after = NEXT_FAILS_AFTER.swap(0, Ordering::Relaxed);
        let n_left = Cell::new((fails_after > 0).then_some(fails_after));
        let driver = Simulated {
            capability,
            machine: Machine::new(),
            functions: Vec::new(),
            n_left,
            begun: RefCell::default(),
            n_begun: Cell::default(),
            first: Cell::default(),
        };
        Self::new(Box::new(driver), compute, &modules)
    }
}

/// Those whose code differs in what it does, and not only in how it was compiled.
#[cfg(test)]
pub(crate) const SIMULATED: [Capability; 2] =
    [Capability::OLDEST, Capability { major: 9, minor: 0 }];

/// Kernels that the next device does before it fails; 0: it does not.
static NEXT_FAILS_AFTER: AtomicU64 = AtomicU64::new(0);

/// Lets the next simulated device that is opened fail after `n_kernels`, for tests of what a failure
/// leaves.
pub fn fail_next_after(n_kernels: u64) {
    NEXT_FAILS_AFTER.store(n_kernels, Ordering::Relaxed);
}

#[derive(Debug)]
struct Simulated {
    capability: Capability,
    machine: Machine,
    functions: Vec<Arc<Kernel>>,
    /// Kernels that are still done; `None`: all.
    n_left: Cell<Option<u64>>,
    /// Transfers that were begun; they happen when they are waited for and not before, so that what
    /// does not wait shows.
    begun: RefCell<Vec<Begun>>,
    n_begun: Cell<u64>,
    /// Which direction goes first where nothing orders two transfers.
    first: Cell<Direction>,
}

#[derive(Debug)]
struct Begun {
    number: u64,
    host: *mut u8,
    device: Address,
    n_bytes: usize,
    direction: Direction,
    behind: Option<Moved>,
}

// SAFETY: the pointers are to memory of stores, which the device keeps other threads from.
unsafe impl Send for Begun {}

impl Simulated {
    fn begin(&self, begun: Begun) -> Moved {
        let number = self.n_begun.get() + 1;
        self.n_begun.set(number);
        self.begun.borrow_mut().push(Begun { number, ..begun });
        Moved(number)
    }

    /// The transfers up to the `last`. Loads and saves are apart but for what one is said to be behind: all of
    /// a direction come before all of the other, in turn either way, so that an order that nobody asked for
    /// shows.
    fn end(&self, last: u64) -> Result<(), DeviceError> {
        let mut begun = self.begun.borrow_mut();
        let n = begun.partition_point(|begun| begun.number <= last);
        let ended: Vec<_> = begun.drain(..n).collect();
        let first = self.first.get();
        let second = match first {
            Direction::Load => Direction::Save,
            Direction::Save => Direction::Load,
        };
        self.first.set(second);
        let of = |direction| ended.iter().filter(move |begun| begun.direction == direction);
        let mut others = of(second).peekable();
        for begun in of(first) {
            while let Some(other) =
                others.next_if(|other| Some(Moved(other.number)) <= begun.behind)
            {
                self.carry_out(other)?;
            }
            self.carry_out(begun)?;
        }
        others.try_for_each(|other| self.carry_out(other))
    }

    fn carry_out(&self, begun: &Begun) -> Result<(), DeviceError> {
        let Begun { host, device, n_bytes, direction, .. } = *begun;
        // SAFETY: whoever began it keeps the bytes until it was waited for.
        let bytes = unsafe { std::slice::from_raw_parts_mut(host, n_bytes) };
        let moved = match direction {
            Direction::Load => self.machine.write(device.0, bytes),
            Direction::Save => self.machine.read(device.0, bytes),
        };
        moved.map_err(|fault| failed("transfer")(&fault))
    }
}

fn failed(call: &'static str) -> impl Fn(&dyn std::fmt::Display) -> DeviceError {
    move |reason| DeviceError::Failed { call, reason: reason.to_string() }
}

impl Driver for Simulated {
    fn capability(&self) -> Capability {
        self.capability
    }

    fn allocate(&mut self, n_bytes: usize) -> Result<Address, DeviceError> {
        Ok(Address(self.machine.allocate(n_bytes)))
    }

    fn free(&mut self, address: Address) {
        self.machine.free(address.0);
    }

    fn load(&mut self, image: &[u8], kernels: &[String]) -> Result<Vec<Function>, DeviceError> {
        let failed = failed("load");
        let text = std::str::from_utf8(image).map_err(|error| failed(&error))?;
        let module = Module::parse(text).map_err(|error| failed(&error))?;
        let found = |name: &String| {
            let kernel = module.kernel(name).ok_or_else(|| failed(&format!("no {name}")))?;
            self.functions.push(kernel);
            Ok(Function(self.functions.len() as u32 - 1))
        };
        kernels.iter().map(found).collect()
    }

    unsafe fn launch(
        &self,
        function: Function,
        launch: Launch,
        parameters: &Parameters,
    ) -> Result<(), DeviceError> {
        if let Some(n_left) = self.n_left.get() {
            if n_left == 0 {
                return Err(failed("launch")(&"as the test asked for"));
            }
            self.n_left.set(Some(n_left - 1));
        }
        let kernel = &self.functions[function.0 as usize];
        let Launch { grid, block, shared_bytes } = launch;
        let threads = Threads { grid, block, dynamic_shared_bytes: shared_bytes };
        let done = self.machine.launch(kernel, threads, parameters.as_bytes());
        // A fault is a defect of a kernel, and shows at once.
        done.map(drop).map_err(|fault| panic!("{fault}"))
    }

    unsafe fn clear(&self, address: Address, n_bytes: usize) -> Result<(), DeviceError> {
        self.machine.write(address.0, &vec![0; n_bytes]).map_err(|fault| failed("clear")(&fault))
    }

    unsafe fn copy(
        &self,
        source: Address,
        destination: Address,
        n_bytes: usize,
    ) -> Result<(), DeviceError> {
        let mut bytes = vec![0; n_bytes];
        self.machine
            .read(source.0, &mut bytes)
            .and_then(|()| self.machine.write(destination.0, &bytes))
            .map_err(|fault| failed("copy")(&fault))
    }

    unsafe fn upload(&self, source: &[u8], destination: Address) -> Result<(), DeviceError> {
        self.machine.write(destination.0, source).map_err(|fault| failed("upload")(&fault))
    }

    unsafe fn download(&self, source: Address, destination: &mut [u8]) -> Result<(), DeviceError> {
        self.machine.read(source.0, destination).map_err(|fault| failed("download")(&fault))
    }

    fn synchronize(&self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn host_allocate(&mut self, n_bytes: usize) -> Result<HostMemory, DeviceError> {
        let start = Box::into_raw(vec![0_u8; n_bytes].into_boxed_slice()).cast();
        Ok(HostMemory { start, n_bytes })
    }

    fn host_free(&mut self, memory: HostMemory) {
        let bytes = ptr::slice_from_raw_parts_mut(memory.start, memory.n_bytes);
        // SAFETY: it is what `host_allocate` made a box into, and is freed once.
        drop(unsafe { Box::from_raw(bytes) });
    }

    unsafe fn begin_load(
        &self,
        source: *const u8,
        destination: Address,
        n_bytes: usize,
        behind: Option<Moved>,
    ) -> Result<Moved, DeviceError> {
        let (host, device, direction) = (source.cast_mut(), destination, Direction::Load);
        Ok(self.begin(Begun { number: 0, host, device, n_bytes, direction, behind }))
    }

    unsafe fn begin_save(
        &self,
        source: Address,
        destination: *mut u8,
        n_bytes: usize,
        behind: Option<Moved>,
    ) -> Result<Moved, DeviceError> {
        let (host, device, direction) = (destination, source, Direction::Save);
        Ok(self.begin(Begun { number: 0, host, device, n_bytes, direction, behind }))
    }

    fn let_wait(&self, moved: Moved) -> Result<(), DeviceError> {
        self.end(moved.0)
    }

    fn wait_for_transfers(&self) -> Result<(), DeviceError> {
        self.end(self.n_begun.get())
    }
}
