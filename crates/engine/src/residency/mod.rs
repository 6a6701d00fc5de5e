//! Where things are while a run goes on: on the device, or in a store whose pages visit it.
//!
//! What is paged is the planner's decision ([`crate::plan::Residency`]); this carries it out. The same
//! code serves every device, and a run's numbers do not depend on it.

mod inputs;
mod store;
mod window;

use nibble_kernels::{
    Backend, DeviceSlice,
    paging::{PageError, StorePlace},
};

pub use inputs::LayerInputs;
pub use store::open_store;
pub use window::{PageWindow, StoredPage};

/// A run of bytes, wherever it is.
#[derive(Clone, Copy, Debug)]
pub enum Stored {
    /// On the device.
    Device(DeviceSlice<u8>),
    /// In a store.
    Outside {
        /// Where.
        place: StorePlace,
        /// How many.
        n_bytes: usize,
    },
}

impl Stored {
    /// Bytes.
    pub fn n_bytes(&self) -> usize {
        match self {
            Self::Device(slice) => slice.len(),
            Self::Outside { n_bytes, .. } => *n_bytes,
        }
    }

    /// `len` bytes from `start` on.
    ///
    /// # Panics
    /// When they leave the run.
    pub fn part(&self, start: usize, len: usize) -> Self {
        assert!(start + len <= self.n_bytes(), "{len} bytes at {start} of {self:?}");
        match *self {
            Self::Device(slice) => Self::Device(slice.slice(start..start + len)),
            Self::Outside { place, .. } => {
                let place = StorePlace { offset: place.offset + start as u64, ..place };
                Self::Outside { place, n_bytes: len }
            }
        }
    }

    /// Copies it to the host.
    ///
    /// # Errors
    /// When its store cannot be read.
    pub fn read(&self, device: &mut impl Backend, bytes: &mut [u8]) -> Result<(), PageError> {
        match *self {
            Self::Device(slice) => {
                device.download(slice, bytes);
                Ok(())
            }
            Self::Outside { place, .. } => device.read_store(place, bytes),
        }
    }

    /// Replaces it from the host.
    ///
    /// # Errors
    /// When its store cannot be written.
    pub fn write(&self, device: &mut impl Backend, bytes: &[u8]) -> Result<(), PageError> {
        match *self {
            Self::Device(slice) => {
                device.upload(bytes, slice);
                Ok(())
            }
            Self::Outside { place, .. } => device.write_store(place, bytes),
        }
    }
}
