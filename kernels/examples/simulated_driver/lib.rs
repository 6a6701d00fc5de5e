//! The libraries of NVIDIA's driver as a program sees them, with the simulator for a card: to be found under the
//! names `libcuda.so` and `libnvidia-ml.so.1`, so that all that speaks to a driver can be tested without one.
//!
//! Whatever may happen later happens as late as it may: a stream goes on when somebody waits for it, and then only as
//! far as that needs; but of a stream that only copies every third copy between pinned memory and the card happens as
//! early as it may. So what is read too early, changed too early or not waited for shows. Memory is full of ones when it
//! is handed out. Of what no program may do (a call without a context, handles of another kind or context, memory of
//! the host that is freed while a copy uses it) the driver's answer is an error; and once a kernel has failed, every
//! context's until the process ends. Signatures and rules are those of the CUDA Driver API and NVML reference manuals.
//!
//! `NIBBLE_SIMULATED_CARD` describes it, in words such as `bytes=8589934592`: `version` of the driver's interface,
//! `capability` (of a card later than any with machine code of its own, as PTX is what the simulator reads), `granule`
//! that memory is handed out in, and `fails_with` the path of a file: once it is there, no kernel is done any more.

#![cfg(target_os = "linux")]
#![allow(non_snake_case, reason = "names of the interface")]
#![allow(missing_docs, reason = "described in the manuals")]
#![allow(
    clippy::missing_safety_doc,
    clippy::undocumented_unsafe_blocks,
    reason = "pointers are what the manuals say of them, which every caller answers for"
)]

mod calls;
mod context;
mod instruments;

use std::{
    cell::Cell,
    ffi::{CStr, c_char, c_int},
    path::PathBuf,
    ptr,
    sync::{
        LazyLock, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use cudarc::driver::sys::{CUdevice, CUresult};

use context::Context;

/// What a context takes of the card.
const CONTEXT_BYTES: usize = 256 << 20;
/// What nobody gets of its memory.
const RESERVED_BYTES: usize = 64 << 20;
/// Where the card is on the bus.
const BUS_ID: &CStr = c"0000:01:00.0";

struct Settings {
    version: c_int,
    capability: (c_int, c_int),
    total_bytes: usize,
    granule: usize,
    fails_with: Option<PathBuf>,
    is_visible: bool,
}

impl Settings {
    fn of_environment() -> Self {
        let words = std::env::var("NIBBLE_SIMULATED_CARD").unwrap_or_default();
        let is_visible = std::env::var("CUDA_VISIBLE_DEVICES").map_or(true, |cards| cards != "-1");
        let mut this = Self {
            version: 12_040,
            capability: (10, 0),
            total_bytes: 8 << 30,
            granule: 2 << 20,
            fails_with: None,
            is_visible,
        };
        for word in words.split_whitespace() {
            let (name, value) = word.split_once('=').expect("name=value");
            let number = || value.parse::<u64>().expect("a number");
            match name {
                "version" => this.version = number() as c_int,
                "capability" => {
                    let (major, minor) = value.split_once('.').expect("major.minor");
                    this.capability =
                        (major.parse().expect("major"), minor.parse().expect("minor"));
                }
                "bytes" => this.total_bytes = number() as usize,
                "granule" => this.granule = number() as usize,
                "fails_with" => this.fails_with = Some(value.into()),
                _ => panic!("{word}"),
            }
        }
        this
    }
}

struct Driver {
    settings: Settings,
    is_ready: bool,
    contexts: Vec<Option<Context>>,
    /// What ended everything.
    failed: Option<CUresult>,
}

impl Driver {
    /// What all contexts have of the card, and the rest.
    fn used_and_free(&self) -> (usize, usize) {
        let Settings { granule, total_bytes, .. } = self.settings;
        let of = |context: &Context| {
            let granules = context.allocated.values().map(|n| n.next_multiple_of(granule));
            CONTEXT_BYTES + granules.sum::<usize>()
        };
        let used: usize = self.contexts.iter().flatten().map(of).sum();
        (used, total_bytes.saturating_sub(RESERVED_BYTES + used))
    }
}

static DRIVER: LazyLock<Mutex<Driver>> = LazyLock::new(|| {
    let (settings, is_ready) = (Settings::of_environment(), false);
    Mutex::new(Driver { settings, is_ready, contexts: Vec::new(), failed: None })
});

/// Bytes that are taken of the card, and all of them, as its instruments show them while the driver works.
static USED: AtomicUsize = AtomicUsize::new(0);
static TOTAL: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// The thread's context, by its number from one on.
    static CURRENT: Cell<usize> = const { Cell::new(0) };
}

type Answer<T = ()> = Result<T, CUresult>;

fn driver<T>(call: impl FnOnce(&mut Driver) -> Answer<T>) -> Answer<T> {
    let mut driver = DRIVER.lock().unwrap_or_else(PoisonError::into_inner);
    let answer = call(&mut driver);
    USED.store(driver.used_and_free().0, Relaxed);
    TOTAL.store(driver.settings.total_bytes, Relaxed);
    answer
}

/// A call that needs the driver's start.
fn started(call: impl FnOnce(&mut Driver) -> Answer) -> CUresult {
    result(driver(|driver| match driver.is_ready {
        true => call(driver),
        false => Err(CUresult::CUDA_ERROR_NOT_INITIALIZED),
    }))
}

/// A call that needs a context, before anything has failed.
fn entered(call: impl FnOnce(&mut Context, &Settings) -> Answer) -> CUresult {
    started(|driver| {
        let number = CURRENT.get().checked_sub(1);
        let context = number.and_then(|number| driver.contexts.get_mut(number)?.as_mut());
        let context = context.ok_or(CUresult::CUDA_ERROR_INVALID_CONTEXT)?;
        driver.failed.map_or(Ok(()), Err)?;
        let answer = call(context, &driver.settings);
        driver.failed = context.failed;
        answer
    })
}

fn result(answer: Answer) -> CUresult {
    answer.err().unwrap_or(CUresult::CUDA_SUCCESS)
}

/// What a handle is of.
#[derive(Clone, Copy)]
enum Kind {
    Context = 1,
    Stream,
    Event,
    Module,
    Function,
}

/// The number that a handle of this kind and context stands for, among `n`.
fn number<T>(handle: *mut T, (kind, context): (Kind, usize), n: usize) -> Answer<usize> {
    let number = handle.addr().wrapping_sub(self::handle::<T>((kind, context), 1).addr());
    if number < n { Ok(number) } else { Err(CUresult::CUDA_ERROR_INVALID_HANDLE) }
}

/// A handle of the last of `n`.
fn handle<T>((kind, context): (Kind, usize), n: usize) -> *mut T {
    ptr::without_provenance_mut(((kind as usize) << 48) | (context << 32) | n)
}

fn is_card(device: CUdevice) -> Answer {
    if device == 0 { Ok(()) } else { Err(CUresult::CUDA_ERROR_INVALID_DEVICE) }
}

fn put<T>(place: *mut T, value: T) -> Answer {
    if place.is_null() {
        return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
    }
    unsafe { place.write(value) };
    Ok(())
}

fn put_text(place: *mut c_char, len: c_int, text: &CStr) -> Answer {
    let bytes = text.to_bytes_with_nul();
    if usize::try_from(len).map_or(true, |len| len < bytes.len()) {
        return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
    }
    unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), place.cast(), bytes.len()) };
    Ok(())
}
