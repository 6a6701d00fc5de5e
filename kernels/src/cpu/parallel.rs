//! Cutting work into tasks for the thread pool.
//!
//! Tasks are cut by shape alone, so that results do not depend on the number of threads.

use rayon::prelude::*;

/// Elements that one task of an elementwise operation works on: enough to outweigh handing it out,
/// few enough that a layer's buffers keep every core busy.
pub(crate) const CHUNK: usize = 1 << 14;

/// Rows in a task when each has `width` elements.
pub(crate) fn rows_per_task(width: usize) -> usize {
    (CHUNK / width.max(1)).max(1)
}

/// Runs `task(i)` for `i < n` on the pool.
pub(crate) fn for_each_task(
    pool: &rayon::ThreadPool,
    n: usize,
    task: impl Fn(usize) + Send + Sync,
) {
    if n <= 1 {
        (0..n).for_each(task);
    } else {
        pool.install(|| (0..n).into_par_iter().with_max_len(1).for_each(task));
    }
}

/// Runs `task(i, part)` on the `i`-th `len` elements of `output` on the pool.
pub(crate) fn for_each_part<T: Send>(
    pool: &rayon::ThreadPool,
    output: &mut [T],
    len: usize,
    task: impl Fn(usize, &mut [T]) + Send + Sync,
) {
    if output.len() <= len {
        output.chunks_mut(len.max(1)).enumerate().for_each(|(i, part)| task(i, part));
    } else {
        pool.install(|| {
            output.par_chunks_mut(len).enumerate().for_each(|(i, part)| task(i, part));
        });
    }
}

/// A matrix shared by tasks that write different parts of it.
#[derive(Clone, Copy)]
pub(crate) struct Shared<T>(*mut T, usize);
// SAFETY: only `Shared::part` reads it, whose callers keep the parts of different tasks apart.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    /// Lets tasks share `values`, which must outlive them.
    pub(crate) fn new(values: &mut [T]) -> Self {
        Self(values.as_mut_ptr(), values.len())
    }

    /// A pointer to `start`, from which `len` elements may be used.
    ///
    /// # Safety
    /// No other task may use those elements meanwhile, and the slice must outlive the use.
    pub(crate) unsafe fn part(&self, start: usize, len: usize) -> *mut T {
        assert!(start + len <= self.1, "a part beyond its matrix");
        // SAFETY: inside the slice, as just checked.
        unsafe { self.0.add(start) }
    }
}

impl<T> Shared<T> {
    /// `len` elements from `start` on.
    ///
    /// # Safety
    /// As [`Shared::part`].
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn slice(&self, start: usize, len: usize) -> &mut [T] {
        // SAFETY: the caller keeps the parts of different tasks apart.
        unsafe { std::slice::from_raw_parts_mut(self.part(start, len), len) }
    }
}
