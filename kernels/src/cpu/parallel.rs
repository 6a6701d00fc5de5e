//! Cutting work into tasks for the threads.
//!
//! No task's results depend on how many threads there are.

use super::pool::Pool;

/// Elements that one task of an elementwise operation works on: enough to outweigh handing it out,
/// few enough that a layer's buffers keep every core busy.
pub(crate) const CHUNK: usize = 1 << 14;

/// Rows in a task when each has `width` elements.
pub(crate) fn rows_per_task(width: usize) -> usize {
    (CHUNK / width.max(1)).max(1)
}

/// Runs `task(i)` for `i < n` on the threads.
pub(crate) fn for_each_task(pool: &Pool, n: usize, task: impl Fn(usize) + Sync) {
    pool.run(n, |_, index| task(index));
}

/// Runs `task(i, part)` on the `i`-th `len` elements of `output`, which is a slice or several of one
/// length.
pub(crate) fn for_each_part<O: Output>(
    pool: &Pool,
    output: O,
    len: usize,
    task: impl Fn(usize, O::Part) + Sync,
) {
    let (n, len) = (output.len(), len.max(1));
    let shared = output.share();
    pool.run(n.div_ceil(len), |_, index| {
        let start = index * len;
        // SAFETY: each task has a range of its own, and `output` is borrowed until all are done.
        task(index, unsafe { O::part(&shared, start, len.min(n - start)) });
    });
}

/// Slices that tasks write parts of.
pub(crate) trait Output {
    /// As all tasks see it.
    type Shared: Sync;
    /// As one task sees its part.
    type Part;

    /// Elements.
    fn len(&self) -> usize;

    /// Lets tasks share it.
    fn share(self) -> Self::Shared;

    /// `len` elements from `start` on.
    ///
    /// # Safety
    /// As [`Shared::part`].
    unsafe fn part(shared: &Self::Shared, start: usize, len: usize) -> Self::Part;
}

impl<'a, T: Send> Output for &'a mut [T] {
    type Shared = Shared<T>;
    type Part = &'a mut [T];

    fn len(&self) -> usize {
        <[T]>::len(self)
    }

    fn share(self) -> Shared<T> {
        Shared::new(self)
    }

    unsafe fn part(shared: &Shared<T>, start: usize, len: usize) -> &'a mut [T] {
        // SAFETY: the caller keeps the parts of different tasks apart, and uses none after the
        // borrow that the slice was shared from.
        unsafe { std::slice::from_raw_parts_mut(shared.part(start, len), len) }
    }
}

macro_rules! output_of_several {
    ($($output:ident $index:tt),*) => {
        impl<$($output: Output),*> Output for ($($output,)*) {
            type Shared = ($($output::Shared,)*);
            type Part = ($($output::Part,)*);

            fn len(&self) -> usize {
                let len = self.0.len();
                $(assert_eq!(self.$index.len(), len, "outputs of different lengths");)*
                len
            }

            fn share(self) -> Self::Shared {
                ($(self.$index.share(),)*)
            }

            unsafe fn part(shared: &Self::Shared, start: usize, len: usize) -> Self::Part {
                // SAFETY: the caller's promise holds for each.
                unsafe { ($($output::part(&shared.$index, start, len),)*) }
            }
        }
    };
}
output_of_several!(A 0, B 1);
output_of_several!(A 0, B 1, C 2);

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
