//! Storage outside the device, and pages that visit it.
//!
//! A region that does not stay on the device lies in a *store*: memory of the host, or a file. Its
//! pages are loaded into a window on the device, used, and saved again where they changed. Transfers
//! run beside the device's work, and as if one after the other in the order in which they were asked for,
//! so that a page that is saved and then replaced needs no waiting in between. A card loads and saves at
//! the same time what has no bytes in common.
//!
//! Files are read and written at positions rather than mapped: a mapping answers a disk that is full
//! or a file that was cut short with a signal that ends the process, a read or write with an error.

mod cuda;
mod file;
#[cfg(test)]
mod tests;

use std::{
    io,
    ops::{Add, Sub},
    path::PathBuf,
    sync::Arc,
};

pub(crate) use cuda::Moving;
pub use file::PageFile;

use crate::{
    arguments::Direction,
    memory::{DeviceSlice, Memory},
};

/// One store; numbered from 0 in the order of creation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StoreId(pub u32);

/// A place in a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StorePlace {
    /// The store.
    pub store: StoreId,
    /// Bytes from its start.
    pub offset: u64,
}

/// A transfer between a store and the device. Later ones are larger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Transfer(pub(crate) u64);

/// Why a page did not come or go.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PageError {
    /// There is no room for the file.
    #[error(
        "the page file {path} needs {needed_bytes} bytes and {available_bytes} are free on its disk, {} too few; free some space, choose another folder, or page less (a larger budget, a smaller model)",
        needed_bytes.saturating_sub(*available_bytes)
    )]
    NoSpace {
        /// The file.
        path: PathBuf,
        /// Bytes it needs.
        needed_bytes: u64,
        /// Bytes that are free.
        available_bytes: u64,
    },
    /// No file may be as large, or this person's files may not be.
    #[error(
        "the page file {path} needs {needed_bytes} bytes, and its disk or the system takes no file of that size: {source}; choose a folder on another disk, or page less (a larger budget, a smaller model)"
    )]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Bytes it needs.
        needed_bytes: u64,
        /// The system's reason.
        source: Arc<io::Error>,
    },
    /// The host has no room.
    #[error(
        "could not take {n_bytes} bytes of the host's memory for pages: {source}; close other programs, or page less (a larger budget, a smaller model)"
    )]
    HostMemory {
        /// Bytes.
        n_bytes: usize,
        /// The system's reason.
        source: Arc<io::Error>,
    },
    /// The file could not be made.
    #[error("could not make the page file {path}: {source}; check the folder's permissions")]
    Create {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: Arc<io::Error>,
    },
    /// A page could not be read.
    #[error(
        "could not read from the page file {path}: {source}; the last checkpoint is whole: resume the run from it"
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: Arc<io::Error>,
    },
    /// A page could not be written.
    #[error(
        "could not write to the page file {path}: {source}; the last checkpoint is whole: free some space, then resume the run from it"
    )]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: Arc<io::Error>,
    },
    /// Another program took the file away.
    #[error(
        "the page file {path} was {change} by another program while it was in use; the last checkpoint is whole: resume the run from it"
    )]
    Lost {
        /// The file.
        path: PathBuf,
        /// What happened to it.
        change: &'static str,
    },
    /// The device failed.
    #[error(transparent)]
    Device(crate::DeviceError),
    /// The thread that moves pages could not be started.
    #[error("the thread that moves pages could not be started: {source}; close other programs")]
    Thread {
        /// The system's reason.
        source: Arc<io::Error>,
    },
}

/// Moving pages between stores and the device.
pub trait Paging: Memory {
    /// A store of `n_bytes` zeros in the host's memory (pinned, where the device copies from it).
    ///
    /// # Errors
    /// When the system refuses the memory.
    fn host_store(&mut self, n_bytes: usize) -> Result<StoreId, PageError>;

    /// A store in a file.
    fn file_store(&mut self, file: PageFile) -> StoreId;

    /// Begins to bring what lies at `source` to `destination`, which no operation may touch until
    /// the transfer was waited for. Operations that were asked for before may still use it.
    ///
    /// # Errors
    /// When transfers cannot be made at all; what a transfer meets on its way, [`Paging::wait`] says.
    fn load(
        &mut self,
        source: StorePlace,
        destination: DeviceSlice<u8>,
    ) -> Result<Transfer, PageError>;

    /// Begins to bring `source` to `destination`. Operations may read `source` meanwhile, but not
    /// change it before the transfer was waited for; a later [`Paging::load`] may replace it.
    ///
    /// # Errors
    /// As [`Paging::load`].
    fn save(
        &mut self,
        source: DeviceSlice<u8>,
        destination: StorePlace,
    ) -> Result<Transfer, PageError>;

    /// Waits for `transfer` and all before it.
    ///
    /// # Errors
    /// What the first of them met that failed. After a failure nothing is moved any more.
    fn wait(&mut self, transfer: Transfer) -> Result<(), PageError>;

    /// Copies from a store to the host, behind every transfer that was begun.
    ///
    /// # Errors
    /// When the file cannot be read, or a transfer failed.
    fn read_store(&mut self, source: StorePlace, bytes: &mut [u8]) -> Result<(), PageError>;

    /// Copies from the host to a store, behind every transfer that was begun.
    ///
    /// # Errors
    /// When the file cannot be written, or a transfer failed.
    fn write_store(&mut self, destination: StorePlace, bytes: &[u8]) -> Result<(), PageError>;

    /// Looks whether the files of the stores are still there and whole.
    ///
    /// # Errors
    /// [`PageError::Lost`] when one is not.
    fn check_stores(&self) -> Result<(), PageError>;

    /// Bytes of the stores that were made, without files that were there before.
    fn stored_bytes(&self) -> u64;

    /// Bytes of all transfers that were begun.
    fn transferred(&self) -> Transferred;
}

/// Bytes that crossed between stores and a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Transferred {
    /// Loaded.
    pub to_device: u64,
    /// Saved.
    pub from_device: u64,
}

impl Transferred {
    /// In both directions.
    pub fn bytes(self) -> u64 {
        self.to_device.saturating_add(self.from_device)
    }

    /// Counts one more transfer.
    pub(crate) fn count(&mut self, direction: Direction, n_bytes: usize) {
        let bytes = match direction {
            Direction::Load => &mut self.to_device,
            Direction::Save => &mut self.from_device,
        };
        *bytes += n_bytes as u64;
    }
}

impl Add for Transferred {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            to_device: self.to_device.saturating_add(other.to_device),
            from_device: self.from_device.saturating_add(other.from_device),
        }
    }
}

impl Sub for Transferred {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            to_device: self.to_device - before.to_device,
            from_device: self.from_device - before.from_device,
        }
    }
}
