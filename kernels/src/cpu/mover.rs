//! The thread that moves pages between stores and the processor's memory blocks.
//!
//! One thread, one queue: transfers happen in the order in which they were asked for. The queue keeps
//! its memory, so that a training step allocates nothing.

use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
};

use memmap2::MmapRaw;

use crate::{
    arguments::Direction,
    paging::{PageError, PageFile},
};

/// Where pages lie.
#[derive(Debug)]
pub(super) enum Store {
    /// Anonymous memory, reached by pointers alone.
    Host(MmapRaw),
    /// A file.
    File(PageFile),
}

impl Store {
    /// Its length.
    pub fn n_bytes(&self) -> u64 {
        match self {
            Self::Host(memory) => memory.len() as u64,
            Self::File(file) => file.n_bytes(),
        }
    }

    /// Fills `bytes` from `offset` on.
    ///
    /// # Safety
    /// They lie inside the store, and nothing writes to them in a host store meanwhile.
    pub unsafe fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<(), PageError> {
        match self {
            Self::File(file) => file.read(offset, bytes),
            Self::Host(memory) => {
                // SAFETY: inside the mapping, as the caller promises, who holds the only reference to
                // `bytes`, so that they are no part of it; nor does anybody else write.
                unsafe {
                    let start = memory.as_ptr().add(offset as usize);
                    std::ptr::copy_nonoverlapping(start, bytes.as_mut_ptr(), bytes.len());
                }
                Ok(())
            }
        }
    }

    /// Writes `bytes` from `offset` on.
    ///
    /// # Safety
    /// They lie inside the store, and nothing reads or writes them in a host store meanwhile.
    pub unsafe fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), PageError> {
        match self {
            Self::File(file) => file.write(offset, bytes),
            Self::Host(memory) => {
                // SAFETY: as in `read`, with the roles exchanged.
                unsafe {
                    let start = memory.as_mut_ptr().add(offset as usize);
                    std::ptr::copy_nonoverlapping(bytes.as_ptr(), start, bytes.len());
                }
                Ok(())
            }
        }
    }
}

/// One transfer.
#[derive(Debug)]
struct Request {
    number: u64,
    direction: Direction,
    store: Arc<Store>,
    offset: u64,
    place: *mut u8,
    n_bytes: usize,
}

// SAFETY: the pointer is into a memory block that outlives the thread (the device ends it first),
// and the device keeps every operation away from a transfer's bytes until it has ended.
unsafe impl Send for Request {}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Request>,
    /// Number of the last transfer that has ended.
    ended: u64,
    failure: Option<PageError>,
    is_closing: bool,
}

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    /// Something to do, or the end.
    work: Condvar,
    /// A transfer has ended.
    end: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        // A panic while it was held left whole values: each is replaced in one step.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread and its queue.
#[derive(Debug)]
pub(super) struct Mover {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    last: u64,
}

impl Mover {
    /// Starts the thread.
    pub fn start() -> Result<Self, PageError> {
        let shared = Arc::new(Shared::default());
        shared.lock().waiting.reserve(64);
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("nibble-pages".into())
            .spawn(move || run(&theirs))
            .map_err(|source| PageError::Thread { source: Arc::new(source) })?;
        Ok(Self { shared, thread: Some(thread), last: 0 })
    }

    /// Adds a transfer behind the others and returns its number.
    ///
    /// # Safety
    /// Until it has ended, `n_bytes` from `place` on stay valid; nothing else touches them, or, when
    /// they are saved, changes them. They fit the store from `offset` on, and nothing but transfers
    /// touches those bytes of it.
    pub unsafe fn add(
        &mut self,
        direction: Direction,
        store: &Arc<Store>,
        offset: u64,
        place: *mut u8,
        n_bytes: usize,
    ) -> u64 {
        self.last += 1;
        let number = self.last;
        let store = Arc::clone(store);
        let request = Request { number, direction, store, offset, place, n_bytes };
        self.shared.lock().waiting.push_back(request);
        self.shared.work.notify_one();
        number
    }

    /// Waits for the transfer of this number and all before it.
    pub fn wait(&self, number: u64) -> Result<(), PageError> {
        let mut queue = self.shared.lock();
        while queue.ended < number {
            queue = self.shared.end.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        match &queue.failure {
            Some(error) => Err(error.clone()),
            None => Ok(()),
        }
    }

    /// Waits for everything.
    pub fn wait_for_all(&self) -> Result<(), PageError> {
        self.wait(self.last)
    }
}

impl Drop for Mover {
    fn drop(&mut self) {
        let mut queue = self.shared.lock();
        queue.is_closing = true;
        queue.waiting.clear();
        drop(queue);
        self.shared.work.notify_one();
        if let Some(thread) = self.thread.take() {
            // A panic there was told when it was waited for; here there is nobody to tell.
            let _ = thread.join();
        }
    }
}

fn run(shared: &Shared) {
    loop {
        let mut queue = shared.lock();
        let request = loop {
            if queue.is_closing {
                return;
            }
            if let Some(request) = queue.waiting.pop_front() {
                break request;
            }
            queue = shared.work.wait(queue).unwrap_or_else(PoisonError::into_inner);
        };
        let has_failed = queue.failure.is_some();
        drop(queue);
        let result = if has_failed { Ok(()) } else { move_page(&request) };
        let mut queue = shared.lock();
        if let Err(error) = result {
            queue.failure = Some(error);
        }
        queue.ended = request.number;
        drop(queue);
        shared.end.notify_all();
    }
}

fn move_page(request: &Request) -> Result<(), PageError> {
    let Request { direction, store, offset, place, n_bytes, .. } = request;
    // SAFETY: `Mover::add` was promised that the bytes are valid, nobody else's while they are loaded
    // and unchanged while they are saved; that the store's are inside it, and that only transfers, of
    // which one runs at a time, touch them.
    unsafe {
        match direction {
            Direction::Load => {
                store.read(*offset, std::slice::from_raw_parts_mut(*place, *n_bytes))
            }
            Direction::Save => store.write(*offset, std::slice::from_raw_parts(*place, *n_bytes)),
        }
    }
}
