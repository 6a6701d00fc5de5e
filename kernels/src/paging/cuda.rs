//! Pages of a card. Those in the host's pinned memory come and go beside each other and beside the card's
//! work, which waits for them where it needs them; the host waits for neither. Those in a file pass
//! through memory of the host.

use super::{PageError, PageFile, Paging, StoreId, StorePlace, Transfer, Transferred};
use crate::{
    Cuda,
    arguments::{Direction, InFlight, do_overlap},
    cuda::{Moved, Store},
    device::DeviceError,
    memory::DeviceSlice,
};

/// A transfer that is under way, beside what [`InFlight`] says of it.
#[derive(Debug)]
pub(crate) struct Moving {
    number: u64,
    moved: Moved,
    place: StorePlace,
    n_bytes: usize,
}

impl From<DeviceError> for PageError {
    fn from(error: DeviceError) -> Self {
        Self::Device(error)
    }
}

impl Cuda {
    fn push_store(&mut self, store: Store) -> StoreId {
        self.stores.push(store);
        StoreId(self.stores.len() as u32 - 1)
    }

    /// The store, once `n_bytes` from `place` on are known to lie inside it.
    fn store(&self, place: StorePlace, n_bytes: usize) -> &Store {
        let store = &self.stores[place.store.0 as usize];
        let end = place.offset.checked_add(n_bytes as u64);
        assert!(
            end.is_some_and(|end| end <= store.n_bytes()),
            "{n_bytes} bytes at {place:?} leave their store of {} bytes",
            store.n_bytes()
        );
        store
    }

    fn transfer(
        &mut self,
        direction: Direction,
        place: StorePlace,
        slice: DeviceSlice<u8>,
    ) -> Result<Transfer, PageError> {
        let n_bytes = slice.len();
        let address = self.owned_address(slice);
        self.transferred.count(direction, n_bytes);
        self.last_transfer += 1;
        let number = self.last_transfer;
        if n_bytes == 0 {
            return Ok(Transfer(number));
        }
        let failed = || self.failure.get().map_or(Ok(()), |error| Err(PageError::from(error)));
        match self.store(place, n_bytes) {
            Store::Host(memory) => {
                // SAFETY: inside the store, as just checked.
                let host = unsafe { memory.start.add(place.offset as usize) };
                let (memory, bytes) = (slice.memory(), slice.byte_range());
                let in_flight = InFlight { number, memory, bytes, direction };
                let behind = self.last_beside(&in_flight, place, n_bytes);
                // SAFETY: both places are checked, and live as long as the driver's queue; `in_flight`
                // keeps operations away until the transfer was waited for, and the host reaches a
                // store only when all of them were; it is behind every transfer of the same bytes.
                let moved = self.failure.keep(|| unsafe {
                    match direction {
                        Direction::Load => self.driver.begin_load(host, address, n_bytes, behind),
                        Direction::Save => self.driver.begin_save(address, host, n_bytes, behind),
                    }
                });
                let Some(moved) = moved else {
                    failed()?;
                    return Ok(Transfer(number));
                };
                self.moving.push(Moving { number, moved, place, n_bytes });
                self.in_flight.push(in_flight);
            }
            Store::File(file) => {
                let mut bytes = vec![0; n_bytes];
                // Behind the transfers before it.
                self.failure.keep(|| self.driver.wait_for_transfers());
                match direction {
                    Direction::Load => {
                        file.read(place.offset, &mut bytes)?;
                        // SAFETY: the place was checked.
                        self.failure.keep(|| unsafe { self.driver.upload(&bytes, address) });
                    }
                    Direction::Save => {
                        // SAFETY: the place was checked.
                        let read = self
                            .failure
                            .keep(|| unsafe { self.driver.download(address, &mut bytes) });
                        if read.is_some() {
                            file.write(place.offset, &bytes)?;
                        }
                    }
                }
                failed()?;
            }
        }
        Ok(Transfer(number))
    }

    /// The last transfer in the other direction that has bytes in common with this one, on the card or in the
    /// store.
    fn last_beside(&self, new: &InFlight, place: StorePlace, n_bytes: usize) -> Option<Moved> {
        let stored =
            |place: StorePlace, n_bytes: usize| place.offset..place.offset + n_bytes as u64;
        let is_beside = |(other, moving): &(&InFlight, &Moving)| {
            let on_card = other.memory == new.memory && do_overlap(&other.bytes, &new.bytes);
            let in_store = moving.place.store == place.store
                && do_overlap(&stored(moving.place, moving.n_bytes), &stored(place, n_bytes));
            other.direction != new.direction && (on_card || in_store)
        };
        let mut both = self.in_flight.iter().zip(&self.moving);
        both.rfind(is_beside).map(|(_, moving)| moving.moved)
    }

    /// The host may reach the stores now.
    fn wait_for_all(&mut self) -> Result<(), PageError> {
        self.wait(Transfer(self.last_transfer))?;
        self.failure.keep(|| self.driver.wait_for_transfers());
        self.failure.get().map_or(Ok(()), |error| Err(error.into()))
    }
}

impl Paging for Cuda {
    fn host_store(&mut self, n_bytes: usize) -> Result<StoreId, PageError> {
        let memory = self.driver.host_allocate(n_bytes).map_err(|error| PageError::HostMemory {
            n_bytes,
            source: std::sync::Arc::new(std::io::Error::other(error)),
        })?;
        Ok(self.push_store(Store::Host(memory)))
    }

    fn file_store(&mut self, file: PageFile) -> StoreId {
        self.push_store(Store::File(file))
    }

    fn load(
        &mut self,
        source: StorePlace,
        destination: DeviceSlice<u8>,
    ) -> Result<Transfer, PageError> {
        self.transfer(Direction::Load, source, destination)
    }

    fn save(
        &mut self,
        source: DeviceSlice<u8>,
        destination: StorePlace,
    ) -> Result<Transfer, PageError> {
        self.transfer(Direction::Save, destination, source)
    }

    fn wait(&mut self, transfer: Transfer) -> Result<(), PageError> {
        let ended = self.moving.partition_point(|moving| moving.number <= transfer.0);
        if let Some(last) = self.moving.drain(..ended).next_back() {
            self.failure.keep(|| self.driver.let_wait(last.moved));
        }
        self.in_flight.retain(|other| other.number > transfer.0);
        self.failure.get().map_or(Ok(()), |error| Err(error.into()))
    }

    fn read_store(&mut self, source: StorePlace, bytes: &mut [u8]) -> Result<(), PageError> {
        self.wait_for_all()?;
        match self.store(source, bytes.len()) {
            Store::File(file) => file.read(source.offset, bytes),
            Store::Host(memory) => {
                // SAFETY: inside the store, as `store` checks; no transfer is under way, and none
                // begins while the device is borrowed.
                unsafe {
                    let start = memory.start.add(source.offset as usize);
                    std::ptr::copy_nonoverlapping(start, bytes.as_mut_ptr(), bytes.len());
                }
                Ok(())
            }
        }
    }

    fn write_store(&mut self, destination: StorePlace, bytes: &[u8]) -> Result<(), PageError> {
        self.wait_for_all()?;
        match self.store(destination, bytes.len()) {
            Store::File(file) => file.write(destination.offset, bytes),
            Store::Host(memory) => {
                // SAFETY: as in `read_store`, with the roles exchanged.
                unsafe {
                    let start = memory.start.add(destination.offset as usize);
                    std::ptr::copy_nonoverlapping(bytes.as_ptr(), start, bytes.len());
                }
                Ok(())
            }
        }
    }

    fn check_stores(&self) -> Result<(), PageError> {
        self.stores.iter().try_for_each(|store| match store {
            Store::File(file) => file.check(),
            Store::Host(_) => Ok(()),
        })
    }

    fn stored_bytes(&self) -> u64 {
        let own = |store: &&Store| match store {
            Store::Host(_) => true,
            Store::File(file) => file.is_temporary(),
        };
        self.stores.iter().filter(own).map(Store::n_bytes).sum()
    }

    fn transferred(&self) -> Transferred {
        self.transferred
    }
}
