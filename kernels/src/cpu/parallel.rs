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
