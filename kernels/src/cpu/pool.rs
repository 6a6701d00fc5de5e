//! Threads that share the tasks of one operation at a time.
//!
//! A training step is thousands of operations of tens of microseconds. Handing each to sleeping
//! threads and sleeping until they are done would cost as much again, so the calling thread is one
//! of the workers, and the others watch for the next operation for a while before they sleep. Nobody
//! waits for a thread that has not begun: who wakes late finds the operation closed.

use std::{
    any::Any,
    cell::UnsafeCell,
    io,
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle, Thread},
};

/// How often a worker looks for the next operation before it sleeps: tens of microseconds, however
/// long a processor pauses between two looks; longer than what lies between two operations of a step,
/// shorter than anybody would notice.
const LOOKS_BEFORE_SLEEP: usize = 2_000;

/// How often the caller looks whether the others are done before it offers its core to them.
const LOOKS_BEFORE_YIELD: usize = 1_000;

/// Whether workers may still join the operation; above it, the number of the operation; below it,
/// how many have joined.
const OPEN: u64 = 1 << 31;

/// The number of the operation.
fn number(state: u64) -> u64 {
    state >> 32
}

/// `task(thread, index)`.
type Task<'a> = dyn Fn(usize, usize) + Sync + 'a;

/// The operation that is open, or was last.
struct Job {
    task: *const Task<'static>,
    n_tasks: usize,
}

/// On a cache line of its own, which nobody else takes before the thread's part is done.
#[repr(align(128))]
struct NextTask(AtomicUsize);

/// One of `n_parts` of the tasks. A thread begins with the same part of every operation, so that it often
/// reads what it wrote itself in the one before.
fn part(number: usize, n_parts: usize, n_tasks: usize) -> Range<usize> {
    let start = |number| n_tasks * number / n_parts;
    start(number)..start(number + 1)
}

/// What the caller and the workers share.
struct Common {
    /// See [`OPEN`].
    state: AtomicU64,
    /// Written by the caller while no operation is open and nobody is at one; read by those who
    /// have joined.
    job: UnsafeCell<Job>,
    /// Of each part of the tasks, one for each thread or one for each task, the next that nobody has taken.
    next: Vec<NextTask>,
    /// Workers that have joined and left again.
    n_left: AtomicUsize,
    /// Whether each worker sleeps or is about to.
    asleep: Vec<AtomicBool>,
    ends: AtomicBool,
    /// What a task panicked with.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: `job` is written only by the caller between operations and read only by workers that have
// joined one, which the caller waits for before it returns; `state` orders the two. Its task may be
// called from any thread.
unsafe impl Send for Common {}
// SAFETY: as above.
unsafe impl Sync for Common {}

impl Common {
    /// Parts that so many tasks are cut into: of few, each is one, whose owners are the threads that are
    /// woken first.
    fn n_parts(&self, n_tasks: usize) -> usize {
        self.next.len().min(n_tasks)
    }

    /// Takes tasks until none is left: of the thread's own part, then of those after it.
    fn work(&self, thread: usize, task: &Task<'_>, n_tasks: usize) {
        let n_parts = self.n_parts(n_tasks);
        let own = thread % n_parts;
        for owner in (own..n_parts).chain(0..own) {
            let end = part(owner, n_parts, n_tasks).end;
            let NextTask(next) = &self.next[owner];
            // Looked at first, so that many who find nothing do not take the line from one another.
            while next.load(Ordering::Relaxed) < end {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= end {
                    break;
                }
                task(thread, index);
            }
        }
    }

    /// Joins the operation in `state` if it is open; `state` is brought up to date.
    fn join(&self, state: &mut u64) -> bool {
        while *state & OPEN != 0 {
            let joined = *state + 1;
            match self.state.compare_exchange(*state, joined, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return true,
                Err(now) => *state = now,
            }
        }
        false
    }

    /// What worker `thread` does with its life.
    fn serve(&self, thread: usize) {
        let mut last = 0;
        while !self.ends.load(Ordering::Acquire) {
            let mut state = self.wait(thread, last);
            let joined = self.join(&mut state);
            last = number(state);
            if !joined {
                continue;
            }
            // SAFETY: the caller wrote the job before it opened the operation, which this worker
            // has joined, and keeps it as it is until this worker has left.
            let job = unsafe { &*self.job.get() };
            // SAFETY: the caller's borrow of the task lasts until this worker has left.
            let task = unsafe { &*job.task };
            let result = catch_unwind(AssertUnwindSafe(|| self.work(thread, task, job.n_tasks)));
            if let Err(panic) = result {
                *self.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
            }
            self.n_left.fetch_add(1, Ordering::Release);
        }
    }

    /// Waits for an operation after `last`, or for the end; returns the state then.
    fn wait(&self, thread: usize, last: u64) -> u64 {
        loop {
            for _ in 0..LOOKS_BEFORE_SLEEP {
                let state = self.state.load(Ordering::Acquire);
                if number(state) != last || self.ends.load(Ordering::Acquire) {
                    return state;
                }
                std::hint::spin_loop();
            }
            // Either this worker sees the operation that is opened now, or whoever opens it sees
            // that this worker sleeps: both orders are total.
            let asleep = &self.asleep[thread - 1];
            asleep.store(true, Ordering::SeqCst);
            while number(self.state.load(Ordering::SeqCst)) == last
                && !self.ends.load(Ordering::SeqCst)
                && asleep.load(Ordering::SeqCst)
            {
                thread::park();
            }
            asleep.store(false, Ordering::SeqCst);
        }
    }
}

/// The calling thread and `n_threads − 1` others.
pub(crate) struct Pool {
    common: Arc<Common>,
    workers: Vec<Thread>,
    handles: Vec<JoinHandle<()>>,
    /// Whether an operation runs.
    busy: AtomicBool,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("n_threads", &self.n_threads()).finish_non_exhaustive()
    }
}

/// Closes an operation and waits for those who have joined it, whatever ends the caller's own part.
struct Closing<'a>(&'a Pool);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        let common = &self.0.common;
        let state = common.state.fetch_and(!OPEN, Ordering::AcqRel);
        let n_joined = (state & (OPEN - 1)) as usize;
        let mut n_looks = 0;
        while common.n_left.load(Ordering::Acquire) != n_joined {
            n_looks += 1;
            if n_looks < LOOKS_BEFORE_YIELD {
                std::hint::spin_loop();
            } else {
                thread::yield_now();
            }
        }
        if thread::panicking() {
            // The caller's own is the one that is told; the next operation has no part in either.
            self.0.take_panic();
        }
        self.0.busy.store(false, Ordering::Release);
    }
}

impl Pool {
    /// Starts the threads; 0 counts as 1.
    ///
    /// # Errors
    /// When the system refuses one.
    pub(crate) fn new(n_threads: usize) -> io::Result<Self> {
        fn nothing(_: usize, _: usize) {}
        let n_workers = n_threads.saturating_sub(1);
        let common = Arc::new(Common {
            state: AtomicU64::new(0),
            job: UnsafeCell::new(Job { task: &nothing, n_tasks: 0 }),
            next: (0..=n_workers).map(|_| NextTask(AtomicUsize::new(0))).collect(),
            n_left: AtomicUsize::new(0),
            asleep: (0..n_workers).map(|_| AtomicBool::new(false)).collect(),
            ends: AtomicBool::new(false),
            panic: Mutex::new(None),
        });
        let mut pool =
            Self { common, workers: Vec::new(), handles: Vec::new(), busy: AtomicBool::new(false) };
        for thread in 1..=n_workers {
            let common = Arc::clone(&pool.common);
            let name = format!("nibble-{thread}");
            let handle = thread::Builder::new().name(name).spawn(move || common.serve(thread))?;
            pool.workers.push(handle.thread().clone());
            pool.handles.push(handle);
        }
        Ok(pool)
    }

    /// The calling thread and the others.
    pub(crate) fn n_threads(&self) -> usize {
        self.handles.len() + 1
    }

    /// Runs `task(thread, index)` for every index below `n_tasks`, each once: a thread begins with its own
    /// part of them, and helps others when it is done; returns when all are. `thread` is below
    /// [`Pool::n_threads`], and of two tasks at the same time different.
    ///
    /// # Panics
    /// When a task does, or calls this.
    pub(crate) fn run(&self, n_tasks: usize, task: impl Fn(usize, usize) + Sync) {
        let common = &*self.common;
        assert!(!self.busy.swap(true, Ordering::Acquire), "an operation inside an operation");
        {
            // Also of a single task, after which nobody may still be busy, even if it panics.
            let _closing = Closing(self);
            if self.handles.is_empty() || n_tasks <= 1 {
                (0..n_tasks).for_each(|index| task(0, index));
            } else {
                let task: &Task<'_> = &task;
                // SAFETY: only the lifetime changes; `_closing` waits for everybody who uses it.
                let forever = unsafe { std::mem::transmute::<&Task<'_>, &Task<'static>>(task) };
                // SAFETY: no operation is open and nobody is at one: the last one's closing waited.
                unsafe { *common.job.get() = Job { task: forever, n_tasks } };
                let n_parts = common.n_parts(n_tasks);
                for (number, NextTask(next)) in common.next.iter().enumerate().take(n_parts) {
                    next.store(part(number, n_parts, n_tasks).start, Ordering::Relaxed);
                }
                common.n_left.store(0, Ordering::Relaxed);
                let state = common.state.load(Ordering::Relaxed);
                let opened = ((number(state) + 1) & u64::from(u32::MAX)) << 32 | OPEN;
                common.state.store(opened, Ordering::SeqCst);
                // No more than there is work for, beside the caller.
                let mut n_wanted = n_tasks - 1;
                for (asleep, worker) in common.asleep.iter().zip(&self.workers) {
                    if n_wanted == 0 {
                        break;
                    }
                    if !asleep.load(Ordering::SeqCst) {
                        n_wanted -= 1;
                    } else if asleep.swap(false, Ordering::SeqCst) {
                        worker.unpark();
                        n_wanted -= 1;
                    }
                }
                common.work(0, task, n_tasks);
            }
        }
        if let Some(panic) = self.take_panic() {
            resume_unwind(panic);
        }
    }

    fn take_panic(&self) -> Option<Box<dyn Any + Send>> {
        self.common.panic.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.common.ends.store(true, Ordering::SeqCst);
        for worker in &self.workers {
            worker.unpark();
        }
        for handle in self.handles.drain(..) {
            // A worker catches what its tasks panic with; there is nothing to hear from it.
            let _ = handle.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn every_task_runs_once_and_no_two_at_once_on_one_thread() {
        for n_threads in [0, 1, 2, 5] {
            let pool = Pool::new(n_threads).unwrap();
            assert_eq!(pool.n_threads(), n_threads.max(1));
            for n_tasks in [0, 1, 2, 3, 100] {
                let counts: Vec<_> = (0..n_tasks).map(|_| AtomicUsize::new(0)).collect();
                let at_work: Vec<_> =
                    (0..pool.n_threads()).map(|_| AtomicBool::new(false)).collect();
                pool.run(n_tasks, |thread, index| {
                    assert!(!at_work[thread].swap(true, Ordering::SeqCst));
                    counts[index].fetch_add(1, Ordering::SeqCst);
                    at_work[thread].store(false, Ordering::SeqCst);
                });
                assert!(counts.iter().all(|count| count.load(Ordering::SeqCst) == 1));
            }
        }
    }

    #[test]
    fn parts_are_all_tasks_each_once() {
        for n_parts in 1..=40 {
            for n_tasks in 0..=100 {
                let parts = (0..n_parts).flat_map(|number| part(number, n_parts, n_tasks));
                assert!(parts.eq(0..n_tasks), "{n_parts} of {n_tasks}");
            }
        }
    }

    /// A part's first task ends only when all others have run, the second of the same part too.
    #[test]
    fn a_thread_that_is_done_helps_others() {
        let pool = Pool::new(2).unwrap();
        for stuck in [0, 2] {
            let n_others = AtomicUsize::new(0);
            pool.run(4, |_, index| {
                if index != stuck {
                    n_others.fetch_add(1, Ordering::SeqCst);
                    return;
                }
                for _ in 0..10_000 {
                    if n_others.load(Ordering::SeqCst) == 3 {
                        return;
                    }
                    thread::sleep(Duration::from_millis(1));
                }
                panic!("nobody came to help with task {stuck}'s part");
            });
        }
    }

    /// Operations behind one another, and after pauses in which the workers fall asleep; what tasks
    /// wrote is there afterwards.
    #[test]
    fn operations_neither_lose_tasks_nor_wait_for_ever() {
        let pool = Pool::new(3).unwrap();
        let mut numbers = [0_usize; 7];
        for round in 1..=30_000 {
            if round % 1_000 == 0 {
                thread::sleep(Duration::from_millis(2));
            }
            let shared = super::super::parallel::Shared::new(&mut numbers);
            pool.run(7, |_, index| {
                // SAFETY: each task has a number of its own.
                unsafe { shared.slice(index, 1)[0] += index };
            });
            assert!(numbers.iter().enumerate().all(|(index, sum)| *sum == index * round));
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_threads_go_on() {
        let pool = Pool::new(2).unwrap();
        for bad in 0..20 {
            let result = catch_unwind(AssertUnwindSafe(|| {
                pool.run(20, |_, index| {
                    thread::sleep(Duration::from_micros(100));
                    assert_ne!(index, bad, "this one");
                });
            }));
            assert!(result.is_err());
            let count = AtomicUsize::new(0);
            pool.run(20, |_, _| {
                count.fetch_add(1, Ordering::SeqCst);
            });
            assert_eq!(count.into_inner(), 20);
        }
    }

    #[test]
    fn panics_everywhere_leave_nothing_to_the_next_operation() {
        let pool = Pool::new(3).unwrap();
        for _ in 0..20 {
            let everywhere = || pool.run(60, |_, _| panic!("here too"));
            assert!(catch_unwind(AssertUnwindSafe(everywhere)).is_err());
            pool.run(60, |_, _| ());
        }
    }

    #[test]
    fn an_operation_inside_an_operation_is_refused() {
        let pool = Pool::new(2).unwrap();
        let nested = || pool.run(1, |_, _| pool.run(1, |_, _| ()));
        assert!(catch_unwind(AssertUnwindSafe(nested)).is_err());
    }
}
