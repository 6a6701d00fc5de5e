//! NVIDIA's driver, which is found at run time: nothing of CUDA is needed to build, and a program with
//! this in it starts on a computer without a card.
//!
//! A device has a context of its own, which is destroyed with it, so that all of its memory returns to
//! other programs. Work goes to one stream; pages come on a second one and go on a third. Contexts belong to threads and
//! devices move between them, so that every call makes the context its thread's.

use std::{
    ffi::{CString, c_void},
    ptr,
    sync::{Mutex, PoisonError},
};

use cudarc::driver::{
    DriverError,
    result::{self, stream::StreamKind},
    sys::{
        self, CUdevice_attribute_enum as Attribute, CUfunction_attribute_enum as FunctionAttribute,
    },
};

use super::{
    Cuda, MAX_SHARED_BYTES,
    cards::{self, OpenError, Unavailable},
    code::{CodeArchive, Target},
    driver::{Address, Driver, Function, HostMemory, Launch, Moved, Parameters},
};
use crate::{
    arguments::Direction,
    device::{Capability, Compute, DeviceError},
};

impl Cuda {
    /// The card of this number, among those of [`cards::cards`], with the kernels made for it.
    ///
    /// # Errors
    /// When there is no such card that can, it fails, or this program's kernels are damaged.
    pub fn open(index: usize, compute: Compute) -> Result<Self, OpenError> {
        Self::open_with(index, compute, None)
    }

    /// The same with the code of a target, or else the card's own.
    fn open_with(
        index: usize,
        compute: Compute,
        target: Option<Target>,
    ) -> Result<Self, OpenError> {
        let card = cards::cards()?
            .into_iter()
            .find(|card| card.index == index)
            .ok_or(Unavailable::NoSuchCard { index })?;
        let capability = card.capability;
        let own = Target::for_capability(capability.major, capability.minor)
            .ok_or(Unavailable::CardTooOld { name: card.name, capability })?;
        let modules = CodeArchive::embedded().modules(target.unwrap_or(own))?;
        let driver = Nvidia::open(index as i32, capability)?;
        Ok(Self::new(Box::new(driver), compute, &modules)?)
    }
}

/// What the driver said of a call that failed.
pub(super) fn failed(call: &'static str) -> impl Fn(DriverError) -> DeviceError {
    move |error| {
        let text = |answer: Result<&std::ffi::CStr, DriverError>| {
            answer.map_or_else(
                |_| "no description".into(),
                |text| text.to_string_lossy().into_owned(),
            )
        };
        let reason = format!("{}: {}", text(error.error_name()), text(error.error_string()));
        DeviceError::Failed { call, reason }
    }
}

/// Events that are not in use, and one for each transfer that was begun and not waited for.
#[derive(Debug, Default)]
struct Events {
    spare: Vec<sys::CUevent>,
    moving: Vec<Moving>,
    last: u64,
}

/// The end of a transfer.
#[derive(Clone, Copy, Debug)]
struct Moving {
    number: u64,
    direction: Direction,
    event: sys::CUevent,
}

/// Pinned memory through which little is brought to the card: what was written there is on its way when the
/// caller goes on.
#[derive(Debug)]
struct Uploads {
    memory: *mut u8,
    parts: Parts,
    /// Of each part, the end of what the card read of it when it was left last.
    read: [sys::CUevent; N_PARTS],
}

/// Parts of [`Uploads`].
const N_PARTS: usize = 8;

/// Bytes of one; whatever is longer is waited for.
const PART_BYTES: usize = 128 << 10;

/// Parts that are filled one after another, and then again.
#[derive(Debug, Default)]
struct Parts {
    part: usize,
    used: usize,
}

/// A part was left for another.
#[derive(Clone, Copy, Debug)]
struct Turn {
    left: usize,
    entered: usize,
}

impl Parts {
    /// Alignment of a place.
    const ALIGNMENT: usize = 64;

    /// Where the next `len` bytes go, no more than a part has. With a turn, what was written to the part that
    /// is entered must have been read.
    fn take(&mut self, len: usize) -> (usize, Option<Turn>) {
        assert!(len <= PART_BYTES, "{len} bytes");
        let mut turn = None;
        if self.used + len > PART_BYTES {
            let left = self.part;
            *self = Self { part: (left + 1) % N_PARTS, used: 0 };
            turn = Some(Turn { left, entered: self.part });
        }
        let start = self.part * PART_BYTES + self.used;
        self.used = (self.used + len).next_multiple_of(Self::ALIGNMENT);
        (start, turn)
    }
}

#[derive(Debug)]
struct Nvidia {
    context: sys::CUcontext,
    capability: Capability,
    /// Work, in the order in which it is asked for.
    stream: sys::CUstream,
    /// Pages that come.
    loads: sys::CUstream,
    /// Pages that go: a card copies in both directions at once.
    saves: sys::CUstream,
    modules: Vec<sys::CUmodule>,
    functions: Vec<sys::CUfunction>,
    events: Mutex<Events>,
    uploads: Mutex<Uploads>,
}

// SAFETY: the handles and the pinned memory are the driver's, which may be used from any thread whose context is
// the device's; every call sees to that first. Nothing of it is shared between threads.
unsafe impl Send for Nvidia {}

impl Nvidia {
    fn open(index: i32, capability: Capability) -> Result<Self, DeviceError> {
        let device = result::device::get(index).map_err(failed("cuDeviceGet"))?;
        let mut context = ptr::null_mut();
        // Waiting threads sleep, as the processor has other things to do beside a card.
        let flags = sys::CUctx_flags_enum::CU_CTX_SCHED_BLOCKING_SYNC as u32;
        // SAFETY: the device is one of this driver; `context` is a place for a handle.
        unsafe { sys::cuCtxCreate_v2(&mut context, flags, device) }
            .result()
            .map_err(failed("cuCtxCreate"))?;
        let mut this = Self {
            context,
            capability,
            stream: ptr::null_mut(),
            loads: ptr::null_mut(),
            saves: ptr::null_mut(),
            modules: Vec::new(),
            functions: Vec::new(),
            events: Mutex::default(),
            uploads: Mutex::new(Uploads {
                memory: ptr::null_mut(),
                parts: Parts::default(),
                read: [ptr::null_mut(); N_PARTS],
            }),
        };
        let stream =
            || result::stream::create(StreamKind::NonBlocking).map_err(failed("cuStreamCreate"));
        this.stream = stream()?;
        this.loads = stream()?;
        this.saves = stream()?;
        let memory = this.host_allocate(N_PARTS * PART_BYTES)?.start;
        let uploads = this.uploads.get_mut().unwrap_or_else(PoisonError::into_inner);
        uploads.memory = memory;
        // Who waits for one sleeps.
        let flags = sys::CUevent_flags_enum::CU_EVENT_DISABLE_TIMING as u32
            | sys::CUevent_flags_enum::CU_EVENT_BLOCKING_SYNC as u32;
        for event in &mut uploads.read {
            // SAFETY: the context is current; `event` is a place for a handle.
            unsafe { sys::cuEventCreate(event, flags) }
                .result()
                .map_err(failed("cuEventCreate"))?;
        }
        Ok(this)
    }

    /// Makes the device's context this thread's.
    fn enter(&self) -> Result<(), DeviceError> {
        // SAFETY: the context lives as long as this value.
        unsafe { result::ctx::set_current(self.context) }.map_err(failed("cuCtxSetCurrent"))
    }

    /// An event at the end of what `stream` was asked for so far.
    fn record(
        &self,
        events: &mut Events,
        stream: sys::CUstream,
    ) -> Result<sys::CUevent, DeviceError> {
        let event = match events.spare.pop() {
            Some(event) => event,
            None => {
                let flags = sys::CUevent_flags_enum::CU_EVENT_DISABLE_TIMING;
                result::event::create(flags).map_err(failed("cuEventCreate"))?
            }
        };
        // SAFETY: both are this context's, and live.
        unsafe { result::event::record(event, stream) }.map_err(failed("cuEventRecord"))?;
        Ok(event)
    }

    /// Lets `stream` wait for `event` before what it is asked for from now on.
    fn wait_on(&self, stream: sys::CUstream, event: sys::CUevent) -> Result<(), DeviceError> {
        let flags = sys::CUevent_wait_flags_enum::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: both are this context's, and live.
        unsafe { result::stream::wait_event(stream, event, flags) }
            .map_err(failed("cuStreamWaitEvent"))
    }

    /// Copies no more than [`PART_BYTES`] to the card, behind the work asked for so far; `source` may be changed
    /// when it returns.
    ///
    /// # Safety
    /// `destination` leads to as many bytes of this driver.
    unsafe fn upload_behind(&self, source: &[u8], destination: Address) -> Result<(), DeviceError> {
        let mut uploads = self.uploads.lock().unwrap_or_else(PoisonError::into_inner);
        let (start, turn) = uploads.parts.take(source.len());
        let Uploads { memory, read, .. } = &*uploads;
        if let Some(Turn { left, entered }) = turn {
            // SAFETY: events and stream are this context's, and live; one that was never recorded is over.
            unsafe {
                result::event::record(read[left], self.stream).map_err(failed("cuEventRecord"))?;
                sys::cuEventSynchronize(read[entered])
                    .result()
                    .map_err(failed("cuEventSynchronize"))?;
            }
        }
        // SAFETY: the place is inside its part, and what was there has been read, as was just waited for; the
        // caller answers for the destination.
        unsafe {
            let start = memory.add(start);
            ptr::copy_nonoverlapping(source.as_ptr(), start, source.len());
            sys::cuMemcpyHtoDAsync_v2(destination.0, start.cast(), source.len(), self.stream)
        }
        .result()
        .map_err(failed("cuMemcpyHtoDAsync"))
    }

    /// Queues `copy` behind the work asked for so far, the transfers before it in its direction, and `behind`.
    fn transfer(
        &self,
        direction: Direction,
        behind: Option<Moved>,
        copy: impl FnOnce(sys::CUstream) -> Result<(), DeviceError>,
    ) -> Result<Moved, DeviceError> {
        self.enter()?;
        let stream = match direction {
            Direction::Load => self.loads,
            Direction::Save => self.saves,
        };
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        let asked = self.record(&mut events, self.stream)?;
        self.wait_on(stream, asked)?;
        // A wait that was queued keeps what it waits for.
        events.spare.push(asked);
        // What is no longer there the work asked for so far waits for already.
        let other = events.moving.iter().find(|other| Some(Moved(other.number)) == behind);
        if let Some(other) = other {
            self.wait_on(stream, other.event)?;
        }
        copy(stream)?;
        let event = self.record(&mut events, stream)?;
        if cfg!(windows) {
            // Its driver gathers what it is asked for until somebody looks; whether all is done is of no interest.
            // SAFETY: the stream lives as long as this value.
            let _ = unsafe { sys::cuStreamQuery(stream) };
        }
        events.last += 1;
        let number = events.last;
        events.moving.push(Moving { number, direction, event });
        Ok(Moved(number))
    }
}

impl Driver for Nvidia {
    fn capability(&self) -> Capability {
        self.capability
    }

    fn free_bytes(&self) -> Option<usize> {
        self.enter().ok()?;
        result::mem_get_info().ok().map(|(free_bytes, _)| free_bytes)
    }

    fn allocate(&mut self, n_bytes: usize) -> Result<Address, DeviceError> {
        self.enter()?;
        let (free_bytes, _) = result::mem_get_info().map_err(failed("cuMemGetInfo"))?;
        let too_large = DeviceError::OutOfMemory { needed_bytes: n_bytes, free_bytes };
        // Windows would take memory of the host instead, which is many times slower.
        if n_bytes > free_bytes {
            return Err(too_large);
        }
        // SAFETY: a context is current, and at least one byte is asked for.
        match unsafe { result::malloc_sync(n_bytes) } {
            Ok(address) => Ok(Address(address)),
            Err(DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => Err(too_large),
            Err(error) => Err(failed("cuMemAlloc")(error)),
        }
    }

    fn free(&mut self, address: Address) {
        if self.enter().is_ok() {
            // The driver waits for what uses it. One that fails has nothing left to give back.
            // SAFETY: `address` was allocated here, and is freed once.
            let _ = unsafe { result::free_sync(address.0) };
        }
    }

    fn load(&mut self, image: &[u8], kernels: &[String]) -> Result<Vec<Function>, DeviceError> {
        self.enter()?;
        // Text ends with a zero; machine code says its own length.
        let image = [image, &[0]].concat();
        // SAFETY: the image is code of this program for this card, and outlives the call.
        let module = unsafe { result::module::load_data(image.as_ptr().cast()) }
            .map_err(failed("cuModuleLoadData"))?;
        self.modules.push(module);
        let mut found = Vec::with_capacity(kernels.len());
        for kernel in kernels {
            let name = CString::new(kernel.as_str()).map_err(|_| DeviceError::Failed {
                call: "cuModuleGetFunction",
                reason: format!("{kernel} is no name"),
            })?;
            // SAFETY: the module was loaded above, and stays loaded.
            let function = unsafe { result::module::get_function(module, name) }
                .map_err(failed("cuModuleGetFunction"))?;
            // Beyond 48 KiB only what asks for it gets it.
            // SAFETY: the function is one of this context's.
            unsafe {
                let own = FunctionAttribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES;
                let own = result::function::get_function_attribute(function, own)
                    .map_err(failed("cuFuncGetAttribute"))?;
                let most = FunctionAttribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
                let rest = MAX_SHARED_BYTES as i32 - own;
                result::function::set_function_attribute(function, most, rest)
                    .map_err(failed("cuFuncSetAttribute"))?;
            }
            self.functions.push(function);
            found.push(Function(self.functions.len() as u32 - 1));
        }
        Ok(found)
    }

    unsafe fn launch(
        &self,
        function: Function,
        launch: Launch,
        parameters: &Parameters,
    ) -> Result<(), DeviceError> {
        self.enter()?;
        let bytes = parameters.as_bytes();
        let mut n_bytes = bytes.len();
        // CU_LAUNCH_PARAM_BUFFER_POINTER, _BUFFER_SIZE and _END of cuda.h, which are pointers there.
        let mut extra: [*mut c_void; 5] = [
            ptr::without_provenance_mut(1),
            bytes.as_ptr().cast_mut().cast(),
            ptr::without_provenance_mut(2),
            (&raw mut n_bytes).cast(),
            ptr::null_mut(),
        ];
        let Launch { grid: [x, y, z], block: [a, b, c], shared_bytes } = launch;
        // SAFETY: the function is this context's; the caller answers for the arguments, which the driver
        // copies before it returns and does not write to.
        unsafe {
            sys::cuLaunchKernel(
                self.functions[function.0 as usize],
                x,
                y,
                z,
                a,
                b,
                c,
                shared_bytes,
                self.stream,
                ptr::null_mut(),
                extra.as_mut_ptr(),
            )
        }
        .result()
        .map_err(failed("cuLaunchKernel"))
    }

    unsafe fn clear(&self, address: Address, n_bytes: usize) -> Result<(), DeviceError> {
        self.enter()?;
        // SAFETY: as the caller promises.
        unsafe { result::memset_d8_async(address.0, 0, n_bytes, self.stream) }
            .map_err(failed("cuMemsetD8Async"))
    }

    unsafe fn copy(
        &self,
        source: Address,
        destination: Address,
        n_bytes: usize,
    ) -> Result<(), DeviceError> {
        self.enter()?;
        // SAFETY: as the caller promises.
        unsafe { result::memcpy_dtod_async(destination.0, source.0, n_bytes, self.stream) }
            .map_err(failed("cuMemcpyDtoDAsync"))
    }

    unsafe fn upload(&self, source: &[u8], destination: Address) -> Result<(), DeviceError> {
        self.enter()?;
        if source.len() <= PART_BYTES {
            // SAFETY: as the caller promises.
            return unsafe { self.upload_behind(source, destination) };
        }
        // From memory that is not pinned the driver has copied everything when it returns; should it
        // not have, the wait sees to it.
        // SAFETY: as the caller promises; `source` outlives the wait.
        unsafe { result::memcpy_htod_async(destination.0, source, self.stream) }
            .map_err(failed("cuMemcpyHtoDAsync"))?;
        self.synchronize()
    }

    unsafe fn download(&self, source: Address, destination: &mut [u8]) -> Result<(), DeviceError> {
        self.enter()?;
        // SAFETY: as the caller promises; `destination` outlives the wait.
        unsafe { result::memcpy_dtoh_async(destination, source.0, self.stream) }
            .map_err(failed("cuMemcpyDtoHAsync"))?;
        self.synchronize()
    }

    fn synchronize(&self) -> Result<(), DeviceError> {
        self.enter()?;
        // SAFETY: the stream lives as long as this value.
        unsafe { result::stream::synchronize(self.stream) }.map_err(failed("cuStreamSynchronize"))
    }

    fn watch(&self) -> Result<(), DeviceError> {
        self.enter()?;
        loop {
            // SAFETY: the stream lives as long as this value.
            match unsafe { sys::cuStreamQuery(self.stream) }.result() {
                Err(DriverError(sys::CUresult::CUDA_ERROR_NOT_READY)) => std::hint::spin_loop(),
                other => return other.map_err(failed("cuStreamQuery")),
            }
        }
    }

    fn host_allocate(&mut self, n_bytes: usize) -> Result<HostMemory, DeviceError> {
        self.enter()?;
        // SAFETY: a context is current.
        let start =
            unsafe { result::malloc_host(n_bytes.max(1), 0) }.map_err(failed("cuMemHostAlloc"))?;
        // SAFETY: just taken, of as many bytes.
        unsafe { ptr::write_bytes(start.cast::<u8>(), 0, n_bytes.max(1)) };
        Ok(HostMemory { start: start.cast(), n_bytes })
    }

    fn host_free(&mut self, memory: HostMemory) {
        if self.enter().is_ok() {
            // SAFETY: it was taken by `host_allocate`, and is freed once; transfers were waited for.
            let _ = unsafe { result::free_host(memory.start.cast()) };
        }
    }

    unsafe fn begin_load(
        &self,
        source: *const u8,
        destination: Address,
        n_bytes: usize,
        behind: Option<Moved>,
    ) -> Result<Moved, DeviceError> {
        self.transfer(Direction::Load, behind, |stream| {
            // SAFETY: as the caller promises, until the transfer was waited for.
            unsafe { sys::cuMemcpyHtoDAsync_v2(destination.0, source.cast(), n_bytes, stream) }
                .result()
                .map_err(failed("cuMemcpyHtoDAsync"))
        })
    }

    unsafe fn begin_save(
        &self,
        source: Address,
        destination: *mut u8,
        n_bytes: usize,
        behind: Option<Moved>,
    ) -> Result<Moved, DeviceError> {
        self.transfer(Direction::Save, behind, |stream| {
            // SAFETY: as the caller promises, until the transfer was waited for.
            unsafe { sys::cuMemcpyDtoHAsync_v2(destination.cast(), source.0, n_bytes, stream) }
                .result()
                .map_err(failed("cuMemcpyDtoHAsync"))
        })
    }

    fn let_wait(&self, moved: Moved) -> Result<(), DeviceError> {
        self.enter()?;
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        let ended = events.moving.partition_point(|other| other.number <= moved.0);
        let ended: Vec<_> = events.moving.drain(..ended).collect();
        for direction in [Direction::Load, Direction::Save] {
            // The last of a direction comes after the others.
            let mut of_direction = ended.iter().rev().filter(|other| other.direction == direction);
            if let Some(last) = of_direction.next() {
                self.wait_on(self.stream, last.event)?;
            }
        }
        events.spare.extend(ended.into_iter().map(|other| other.event));
        Ok(())
    }

    fn wait_for_transfers(&self) -> Result<(), DeviceError> {
        self.enter()?;
        for stream in [self.loads, self.saves] {
            // SAFETY: the stream lives as long as this value.
            unsafe { result::stream::synchronize(stream) }
                .map_err(failed("cuStreamSynchronize"))?;
        }
        Ok(())
    }
}

impl Drop for Nvidia {
    fn drop(&mut self) {
        // Everything that the context has goes with it: streams, events, modules, memory and what is pinned
        // of the host's. A card that failed has lost them already.
        // SAFETY: the context is this value's own, and is destroyed once.
        let _ = unsafe { sys::cuCtxDestroy_v2(self.context) }.result();
    }
}

/// A device's attribute.
pub(super) fn attribute(device: sys::CUdevice, attribute: Attribute) -> Result<i32, DriverError> {
    // SAFETY: the device is one of this driver.
    unsafe { result::device::get_attribute(device, attribute) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        linear::{self, Linear, LinearShape, Weight},
        memory::{Memory, Store},
        testing::{Random, fetch, place, relative_error, workspace},
    };

    /// What a card gets that is later than any with code of its own.
    #[test]
    #[ignore = "it needs an NVIDIA card: tests/gpu.sh"]
    fn code_that_the_driver_translates_computes_the_same_on_a_card() {
        let shape = LinearShape { n_rows: 300, n_in: 512, n_out: 192 };
        let mut random = Random::new(1);
        let (x, weight) = (random.normal(300 * 512), random.normal(192 * 512));
        let [own, translated] = [None, Some(Target::Ptx)].map(|target| {
            let mut card = Cuda::open_with(0, Compute::Bf16, target).unwrap();
            let (x, weight) = (place(&mut card, &x), place(&mut card, &weight));
            let y = place(&mut card, &[f32::NAN; 300 * 192]);
            let n_bytes = linear::workspace_bytes(&card.profile(), shape);
            let scratch = workspace(&mut card, n_bytes);
            card.linear(shape, x.into(), Weight::F32(weight), None, Store::Overwrite, y, scratch);
            card.check().unwrap();
            let has_group_products = card.call("linear").has_group_products();
            (fetch(&card, y), has_group_products)
        });
        let ((own, has_group_products), (translated, _)) = (own, translated);
        assert!(own.iter().all(|number| number.is_finite()));
        // In which order a group of warps sums is not told: a rounding for each number that is added, at most.
        let limit = if has_group_products { 512.0 * f64::from(f32::EPSILON) } else { 0.0 };
        let translated: Vec<_> = translated.into_iter().map(f64::from).collect();
        let error = relative_error(&own, &translated);
        assert!(error <= limit, "{error:e} beyond {limit:e}");
    }

    /// Many times what pinned memory holds, without a wait by anybody else.
    #[test]
    #[ignore = "it needs an NVIDIA card: tests/gpu.sh"]
    fn small_uploads_wait_for_one_another_on_a_card() {
        const LEN: usize = PART_BYTES / 5;
        let card = &mut Cuda::open(0, Compute::Bf16).unwrap();
        let numbers: Vec<_> = (0..16 * N_PARTS).map(|number| vec![number as f32; LEN]).collect();
        let places: Vec<_> = numbers.iter().map(|_| place(card, &[0.0; LEN])).collect();
        for (numbers, place) in numbers.iter().zip(&places) {
            card.upload(numbers, *place);
        }
        for (numbers, place) in numbers.iter().zip(places) {
            assert!(fetch(card, place) == *numbers);
        }
        card.check().unwrap();
    }

    /// The same with the simulated driver, which takes what is pinned as late as it may.
    #[cfg(target_os = "linux")]
    #[test]
    fn small_uploads_wait_for_one_another() {
        let test = std::env::current_exe().unwrap();
        // Beside the folder of tests.
        let examples = test.parent().unwrap().with_file_name("examples");
        let driver = examples.join("libsimulated_driver.so");
        assert!(driver.is_file(), "`cargo build --examples` makes {}", driver.display());
        let folder = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(driver, folder.path().join("libcuda.so")).unwrap();
        let name = "cuda::nvidia::tests::small_uploads_wait_for_one_another_on_a_card";
        let output = std::process::Command::new(test)
            .args(["--ignored", "--exact", name])
            .env("LD_LIBRARY_PATH", folder.path())
            .env("CUDA_VISIBLE_DEVICES", "0")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("1 passed"), "{text}");
    }

    /// Lengths of all kinds: a place is inside one part, behind the others there, and when a part is entered
    /// again, every other one was left since.
    #[test]
    fn parts_are_filled_one_after_another() {
        let mut parts = Parts::default();
        let (mut part, mut end) = (0, 0);
        for number in 0..5_000 {
            let len = [0, 4, PART_BYTES, 1, 64, PART_BYTES / 3, 70_000][number % 7];
            let (start, turn) = parts.take(len);
            if let Some(Turn { left, entered }) = turn {
                assert_eq!((left, entered), (part, (part + 1) % N_PARTS));
                assert!(end + len > PART_BYTES, "a part was left with room for {len} behind {end}");
                (part, end) = (entered, 0);
            }
            assert!(start >= part * PART_BYTES + end && start.is_multiple_of(Parts::ALIGNMENT));
            assert!(start + len <= (part + 1) * PART_BYTES, "{len} bytes from {start} on");
            end = (start + len - part * PART_BYTES).next_multiple_of(Parts::ALIGNMENT);
        }
    }
}
