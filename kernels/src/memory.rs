//! Device memory: blocks, handles into them, and moving data in and out.
//!
//! A [`DeviceSlice`] is a number, not a pointer: which block, where, how many. It can be made by a
//! plan before any memory exists, copied freely, and means the same on every device.

use std::{fmt, marker::PhantomData, ops::Range};

use half::bf16;

/// A number type that lives in device memory.
pub trait Element: bytemuck::Pod + Send + Sync + fmt::Debug {
    /// The type's name in messages and files.
    const NAME: &'static str;
}

impl Element for f32 {
    const NAME: &'static str = "f32";
}
impl Element for bf16 {
    const NAME: &'static str = "bf16";
}
impl Element for u8 {
    const NAME: &'static str = "u8";
}
impl Element for u32 {
    const NAME: &'static str = "u32";
}
impl Element for f64 {
    const NAME: &'static str = "f64";
}

/// One block of device memory; numbered from 0 in the order of creation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MemoryId(pub u32);

/// `len` elements of a block, starting `offset` bytes into it.
pub struct DeviceSlice<T> {
    memory: MemoryId,
    offset: usize,
    len: usize,
    element: PhantomData<fn() -> T>,
}

impl<T> Clone for DeviceSlice<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for DeviceSlice<T> {}

impl<T: Element> fmt::Debug for DeviceSlice<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}] at {}+{}", T::NAME, self.len, self.memory.0, self.offset)
    }
}

impl<T: Element> DeviceSlice<T> {
    /// The handle to `len` elements, `offset` bytes into `memory`.
    ///
    /// # Panics
    /// When `offset` is not aligned to the element.
    pub fn new(memory: MemoryId, offset: usize, len: usize) -> Self {
        assert!(offset.is_multiple_of(align_of::<T>()), "offset {offset} of {}", T::NAME);
        Self { memory, offset, len, element: PhantomData }
    }

    /// The block.
    pub fn memory(&self) -> MemoryId {
        self.memory
    }

    /// Bytes from the start of the block.
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// Elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Size in bytes.
    pub fn n_bytes(&self) -> usize {
        self.len * size_of::<T>()
    }

    /// Bytes of the block that the slice covers.
    pub fn byte_range(&self) -> Range<usize> {
        self.offset..self.offset + self.n_bytes()
    }

    /// A part of the slice, in elements.
    ///
    /// # Panics
    /// When `range` leaves the slice.
    pub fn slice(&self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {self:?}");
        Self::new(self.memory, self.offset + range.start * size_of::<T>(), range.len())
    }

    /// The first `len` elements.
    pub fn first(&self, len: usize) -> Self {
        self.slice(0..len)
    }

    /// Both as one, where `next` begins at its end.
    pub fn joined(&self, next: &Self) -> Option<Self> {
        let is_next = self.memory == next.memory && self.byte_range().end == next.offset;
        is_next.then(|| Self::new(self.memory, self.offset, self.len + next.len))
    }

    /// The same bytes seen as another element type.
    ///
    /// # Panics
    /// When the bytes are no whole number of elements or are misaligned for them.
    pub fn cast<U: Element>(&self) -> DeviceSlice<U> {
        assert!(self.n_bytes().is_multiple_of(size_of::<U>()), "{self:?} as {}", U::NAME);
        DeviceSlice::new(self.memory, self.offset, self.n_bytes() / size_of::<U>())
    }
}

/// Whether an output replaces what is there or is added to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// `=`
    Overwrite,
    /// `+=`
    Accumulate,
}

/// Where the gradient of a parameter goes: over that of the step before, or to what earlier
/// micro-batches of this one left.
#[derive(Clone, Copy, Debug)]
pub struct Gradient {
    /// As the parameter.
    pub values: DeviceSlice<f32>,
    /// What happens to what is there.
    pub store: Store,
}

/// Where the gradient of a weight matrix goes.
#[derive(Clone, Copy, Debug)]
pub enum WeightGradient {
    /// In f32.
    F32(Gradient),
    /// Each number rounded once to bf16, over what is there: sums over micro-batches would lose in every
    /// addition what is below the rounding.
    Bf16(DeviceSlice<bf16>),
}

impl From<Gradient> for WeightGradient {
    fn from(gradient: Gradient) -> Self {
        Self::F32(gradient)
    }
}

/// How numbers are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FloatFormat {
    /// Four bytes a number.
    F32,
    /// Two bytes a number.
    Bf16,
}

impl FloatFormat {
    /// Bytes of a number.
    pub fn n_bytes(self) -> usize {
        match self {
            Self::F32 => size_of::<f32>(),
            Self::Bf16 => size_of::<bf16>(),
        }
    }

    /// As messages and kernels name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => f32::NAME,
            Self::Bf16 => bf16::NAME,
        }
    }
}

/// Numbers as they are stored.
#[derive(Clone, Copy, Debug)]
pub enum Floats {
    /// Four bytes a number.
    F32(DeviceSlice<f32>),
    /// Two bytes a number.
    Bf16(DeviceSlice<bf16>),
}

impl Floats {
    /// Numbers.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(slice) => slice.len(),
            Self::Bf16(slice) => slice.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Size in bytes.
    pub fn n_bytes(&self) -> usize {
        match self {
            Self::F32(slice) => slice.n_bytes(),
            Self::Bf16(slice) => slice.n_bytes(),
        }
    }

    /// How they are stored.
    pub fn format(&self) -> FloatFormat {
        match self {
            Self::F32(_) => FloatFormat::F32,
            Self::Bf16(_) => FloatFormat::Bf16,
        }
    }

    /// The numbers of what was asked for in f32.
    ///
    /// # Panics
    /// When they are in another format.
    pub fn into_f32(self) -> DeviceSlice<f32> {
        match self {
            Self::F32(slice) => slice,
            Self::Bf16(slice) => panic!("{slice:?} in bf16, not in f32"),
        }
    }

    /// A part.
    ///
    /// # Panics
    /// When `range` leaves the slice.
    pub fn slice(&self, range: Range<usize>) -> Self {
        match self {
            Self::F32(slice) => Self::F32(slice.slice(range)),
            Self::Bf16(slice) => Self::Bf16(slice.slice(range)),
        }
    }

    /// The first `len` elements.
    pub fn first(&self, len: usize) -> Self {
        self.slice(0..len)
    }
}

impl From<DeviceSlice<f32>> for Floats {
    fn from(slice: DeviceSlice<f32>) -> Self {
        Self::F32(slice)
    }
}

impl From<DeviceSlice<bf16>> for Floats {
    fn from(slice: DeviceSlice<bf16>) -> Self {
        Self::Bf16(slice)
    }
}

/// Why device memory could not be had.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The system refused the block.
    #[error(
        "could not reserve {bytes} bytes of memory ({source}); close other programs or choose a smaller plan"
    )]
    Allocate {
        /// Bytes asked for.
        bytes: usize,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A card refused.
    #[error(transparent)]
    Device(#[from] crate::DeviceError),
    /// A file could not be mapped.
    #[error("could not map {path} into memory: {source}")]
    Map {
        /// The file.
        path: std::path::PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
}

/// Alignment, in bytes, of every block; offsets that are multiples of it suit every kernel.
pub const BLOCK_ALIGNMENT: usize = 4096;

/// Device memory and the traffic across its border.
pub trait Memory {
    /// What this device is, for sizing workspaces.
    fn profile(&self) -> DeviceProfile;

    /// Reserves a block of `n_bytes` zeros.
    ///
    /// # Errors
    /// When the system refuses.
    fn allocate(&mut self, n_bytes: usize) -> Result<MemoryId, MemoryError>;

    /// Makes the `used` bytes of a file a read-only block, in place where the device can (CPU), else
    /// copied; they rise and do not touch. The others are no part of the block and take no memory.
    /// The file must not be changed by anyone while the block lives; see [`MappedFile`].
    ///
    /// # Errors
    /// When the device has no room.
    fn adopt(
        &mut self,
        file: MappedFile,
        used: &[std::ops::Range<usize>],
    ) -> Result<MemoryId, MemoryError>;

    /// Bytes of all blocks.
    fn allocated_bytes(&self) -> usize;

    /// Whether everything that was asked of the device so far was done, as far as is known: a card
    /// that fails leaves what is asked of it undone. To be asked before a result is kept.
    ///
    /// # Errors
    /// What failed first.
    fn check(&self) -> Result<(), DeviceError> {
        Ok(())
    }

    /// Copies `source` from the host into `destination`, of the same length. The host may go on before it is
    /// there; a failure then shows later.
    fn upload<T: Element>(&mut self, source: &[T], destination: DeviceSlice<T>);

    /// Copies `source` into `destination` on the host, of the same length.
    fn download<T: Element>(&self, source: DeviceSlice<T>, destination: &mut [T]);

    /// Sets every element to zero.
    fn clear<T: Element>(&mut self, slice: DeviceSlice<T>);

    /// Copies within the device; same length, no overlap.
    fn copy<T: Element>(&mut self, source: DeviceSlice<T>, destination: DeviceSlice<T>);
}

use crate::device::{DeviceError, DeviceProfile};
pub use mapped::{MappedFile, ReadAhead};

mod mapped {
    use std::{
        fs::File,
        ops::Deref,
        path::Path,
        sync::mpsc::{self, Sender},
        thread::{self, Scope},
    };

    use super::MemoryError;

    /// A file mapped read-only.
    ///
    /// The operating system backs it with the file's own pages, so it costs no memory that could
    /// not be dropped and read again. In return the file must not shrink or change while it is
    /// mapped: map files that are replaced by renaming, never rewritten.
    #[derive(Debug)]
    pub struct MappedFile(memmap2::Mmap);

    impl MappedFile {
        /// Maps the whole file at `path`.
        ///
        /// # Errors
        /// When the file cannot be opened or mapped.
        pub fn open(path: &Path) -> Result<Self, MemoryError> {
            let failed = |source| MemoryError::Map { path: path.to_owned(), source };
            let file = File::open(path).map_err(failed)?;
            // SAFETY: the mapping is read-only and private to this process's view; that nobody
            // truncates the file meanwhile is this type's documented condition. Everything read
            // through it is plain bytes, for which every bit pattern is valid.
            unsafe { memmap2::Mmap::map(&file) }.map(Self).map_err(failed)
        }

        /// Brings the pages of `range`, which will be read soon, from the disk. May take as long as that: for
        /// a thread beside the one that reads.
        pub fn expect(&self, range: std::ops::Range<usize>) {
            let start = range.start / super::BLOCK_ALIGNMENT * super::BLOCK_ALIGNMENT;
            let end = range.end.min(self.len());
            if start >= end {
                return;
            }
            // In requests as large as the disk takes, where a system can be told.
            #[cfg(unix)]
            let _ = self.0.advise_range(memmap2::Advice::WillNeed, start, end - start);
            #[cfg(not(unix))]
            for at in (start..end).step_by(super::BLOCK_ALIGNMENT) {
                std::hint::black_box(self.0[at]);
            }
        }

        /// Tells the system that the pages of `range` will not be read again soon, so that they
        /// stop counting as this process's resident memory. Only a hint; the bytes stay valid.
        pub fn release(&self, range: std::ops::Range<usize>) {
            #[cfg(unix)]
            {
                let start = range.start.next_multiple_of(super::BLOCK_ALIGNMENT);
                let end =
                    range.end.min(self.len()) / super::BLOCK_ALIGNMENT * super::BLOCK_ALIGNMENT;
                if start < end {
                    // SAFETY: dropping clean pages of a read-only file mapping loses nothing: the
                    // next read brings the same bytes back from the file.
                    let _ = unsafe {
                        self.0.unchecked_advise_range(
                            memmap2::UncheckedAdvice::DontNeed,
                            start,
                            end - start,
                        )
                    };
                }
            }
            #[cfg(not(unix))]
            let _ = range;
        }
    }

    /// A thread that brings what will be read next from the disk, so much ahead of who reads it.
    ///
    /// One of its own, as a system may wait for the disk when it is told what will be needed. Where there is no
    /// thread to be had, bytes come when they are read.
    #[derive(Debug)]
    pub struct ReadAhead(Sender<()>);

    impl ReadAhead {
        /// Brings `n_ahead` of `pieces`, in order, and then one for each that was read.
        pub fn begin<'scope, T>(
            scope: &'scope Scope<'scope, '_>,
            n_ahead: usize,
            pieces: impl Iterator<Item = T> + Send + 'scope,
            bring: impl Fn(T) + Send + 'scope,
        ) -> Self {
            let (permits, permitted) = mpsc::channel();
            let _ =
                thread::Builder::new().name("nibble-ahead".into()).spawn_scoped(scope, move || {
                    pieces.zip(permitted).for_each(|(piece, ())| bring(piece));
                });
            let ahead = Self(permits);
            (0..n_ahead).for_each(|_| ahead.was_read());
            ahead
        }

        /// One piece was read.
        pub fn was_read(&self) {
            // There may be no more, or nobody to bring them.
            let _ = self.0.send(());
        }
    }

    impl Deref for MappedFile {
        type Target = [u8];
        fn deref(&self) -> &[u8] {
            &self.0
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{fetch, on_every_device};

    on_every_device![what_was_uploaded_may_be_changed_at_once];

    #[test]
    fn slices_join_where_one_begins_at_the_others_end() {
        let slice = |memory, offset, len| DeviceSlice::<f32>::new(MemoryId(memory), offset, len);
        let first = slice(1, 64, 4);
        assert_eq!(first.joined(&slice(1, 80, 3)).unwrap().byte_range(), 64..92);
        for apart in [slice(1, 84, 3), slice(1, 76, 3), slice(2, 80, 3), slice(1, 52, 3)] {
            assert!(first.joined(&apart).is_none(), "{apart:?}");
        }
    }

    #[test]
    fn so_much_is_brought_ahead_and_no_more() {
        for (n_read, expected) in [(0, 3), (2, 5), (20, 10)] {
            let (sender, brought) = std::sync::mpsc::channel();
            std::thread::scope(|scope| {
                let ahead = ReadAhead::begin(scope, 3, 0..10, move |piece| {
                    sender.send(piece).unwrap();
                });
                (0..n_read).for_each(|_| ahead.was_read());
            });
            assert_eq!(brought.iter().collect::<Vec<i32>>(), (0..expected).collect::<Vec<_>>());
        }
    }

    /// More than a device may have under way, in pieces of many sizes, from one place of the host.
    fn what_was_uploaded_may_be_changed_at_once(device: &mut impl Memory) {
        const N: usize = 1 << 20;
        let memory = device.allocate(N * size_of::<u32>()).unwrap();
        let all = DeviceSlice::<u32>::new(memory, 0, N);
        let mut source = vec![0_u32; 1 << 17];
        let (mut start, mut number) = (0, 0);
        let mut expected = Vec::with_capacity(N);
        while start < N {
            let len = [1, 3_000, 32_768, 16, 32_769, 100_000][number % 6].min(N - start);
            source[..len].fill(number as u32);
            device.upload(&source[..len], all.slice(start..start + len));
            source[..len].fill(u32::MAX);
            expected.resize(start + len, number as u32);
            (start, number) = (start + len, number + 1);
        }
        assert!(fetch(device, all) == expected);
        device.check().unwrap();
    }
}
