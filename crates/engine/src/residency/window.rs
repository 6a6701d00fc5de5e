//! Two places on the device through which the pages of a store pass.
//!
//! While the page in one place is worked on, the page before it is saved from the other and the page
//! after it loaded there: the transfers queue in this order, so that only a page that is not there in
//! time is waited for.

use nibble_kernels::{
    Backend, DeviceSlice,
    paging::{PageError, StorePlace, Transfer},
};

/// A page in its store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredPage {
    /// Its number, which tells it from the others of the window.
    pub number: usize,
    /// Where it lies.
    pub place: StorePlace,
    /// Its size.
    pub n_bytes: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pending {
    Load(Transfer),
    Save(Transfer),
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    memory: DeviceSlice<u8>,
    /// The page whose bytes are here, or on their way.
    page: Option<usize>,
    pending: Option<Pending>,
}

/// A window of two pages.
#[derive(Clone, Debug)]
pub struct PageWindow {
    slots: [Slot; 2],
    /// The slot that was asked for last.
    current: usize,
}

impl PageWindow {
    /// An empty window over two places of equal size.
    pub fn new(places: [DeviceSlice<u8>; 2]) -> Self {
        let slots = places.map(|memory| Slot { memory, page: None, pending: None });
        Self { slots, current: 0 }
    }

    fn slot_of(&self, number: usize) -> Option<usize> {
        self.slots.iter().position(|slot| slot.page == Some(number))
    }

    /// The page on the device, loaded now unless it was expected; until the next but one page is
    /// brought or expected.
    ///
    /// # Errors
    /// When a transfer failed.
    pub fn bring(
        &mut self,
        device: &mut impl Backend,
        page: StoredPage,
    ) -> Result<DeviceSlice<u8>, PageError> {
        let index = match self.slot_of(page.number) {
            Some(index) => index,
            None => self.load(device, page)?,
        };
        let slot = &mut self.slots[index];
        if let Some(Pending::Load(transfer)) = slot.pending {
            device.wait(transfer)?;
            slot.pending = None;
        }
        self.current = index;
        Ok(slot.memory.first(page.n_bytes))
    }

    /// Begins to load a page that will be brought next, beside the one that was brought last.
    ///
    /// # Errors
    /// When a transfer failed.
    pub fn expect(&mut self, device: &mut impl Backend, page: StoredPage) -> Result<(), PageError> {
        if self.slot_of(page.number).is_none() {
            self.load(device, page)?;
        }
        Ok(())
    }

    /// A place for a page that is made anew, not loaded.
    ///
    /// # Errors
    /// When a transfer failed.
    pub fn claim(
        &mut self,
        device: &mut impl Backend,
        page: StoredPage,
    ) -> Result<DeviceSlice<u8>, PageError> {
        let index = self.slot_of(page.number).unwrap_or(1 - self.current);
        let slot = &mut self.slots[index];
        if let Some(Pending::Load(transfer) | Pending::Save(transfer)) = slot.pending.take() {
            device.wait(transfer)?;
        }
        slot.page = Some(page.number);
        self.current = index;
        Ok(slot.memory.first(page.n_bytes))
    }

    /// Begins to save a page that is on the device. Nothing may change it before it is brought again
    /// after another.
    ///
    /// # Errors
    /// When a transfer failed.
    ///
    /// # Panics
    /// When the page is not there.
    pub fn save(&mut self, device: &mut impl Backend, page: StoredPage) -> Result<(), PageError> {
        let index = self.slot_of(page.number).expect("a page that is saved is there");
        let slot = &mut self.slots[index];
        let transfer = device.save(slot.memory.first(page.n_bytes), page.place)?;
        slot.pending = Some(Pending::Save(transfer));
        Ok(())
    }

    /// Waits for every transfer.
    ///
    /// # Errors
    /// When one failed.
    pub fn settle(&mut self, device: &mut impl Backend) -> Result<(), PageError> {
        for slot in &mut self.slots {
            if let Some(Pending::Load(transfer) | Pending::Save(transfer)) = slot.pending.take() {
                device.wait(transfer)?;
            }
        }
        Ok(())
    }

    /// Forgets what is there, because something else will use the memory.
    ///
    /// # Errors
    /// When a transfer failed.
    pub fn leave(&mut self, device: &mut impl Backend) -> Result<(), PageError> {
        self.settle(device)?;
        self.slots.iter_mut().for_each(|slot| slot.page = None);
        Ok(())
    }

    /// Loads into the slot that was not asked for last, and returns its number.
    fn load(&mut self, device: &mut impl Backend, page: StoredPage) -> Result<usize, PageError> {
        let index = 1 - self.current;
        let slot = &mut self.slots[index];
        // Behind the slot's own save, if that is still under way.
        let transfer = device.load(page.place, slot.memory.first(page.n_bytes))?;
        slot.page = Some(page.number);
        slot.pending = Some(Pending::Load(transfer));
        Ok(index)
    }
}

#[cfg(test)]
mod tests {
    use nibble_kernels::{Cpu, DeviceProfile, Memory, Paging, paging::StoreId};

    use super::*;

    const N: usize = 5;
    const BYTES: usize = 4096;

    /// A device, a store of pages that are filled with their numbers, and a window on it.
    fn open() -> (Cpu, StoreId, PageWindow) {
        let mut device = Cpu::new(DeviceProfile::native_cpu()).unwrap();
        let store = device.host_store(N * BYTES).unwrap();
        for number in 0..N {
            device.write_store(page(store, number).place, &[number as u8; BYTES]).unwrap();
        }
        let memory = device.allocate(2 * BYTES).unwrap();
        let window = [0, BYTES].map(|offset| DeviceSlice::new(memory, offset, BYTES));
        (device, store, PageWindow::new(window))
    }

    fn page(store: StoreId, number: usize) -> StoredPage {
        let place = StorePlace { store, offset: (number * BYTES) as u64 };
        StoredPage { number, place, n_bytes: BYTES }
    }

    fn first_byte(device: &Cpu, slice: DeviceSlice<u8>) -> u8 {
        let mut byte = [0];
        device.download(slice.first(1), &mut byte);
        byte[0]
    }

    #[test]
    fn pages_are_there_when_they_are_brought_whatever_the_order() {
        let (mut device, store, mut window) = open();
        for numbers in [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 2, 0, 4, 0]] {
            for (i, &number) in numbers.iter().enumerate() {
                let here = window.bring(&mut device, page(store, number)).unwrap();
                if let Some(&next) = numbers.get(i + 1) {
                    window.expect(&mut device, page(store, next)).unwrap();
                }
                assert_eq!(first_byte(&device, here), number as u8);
            }
        }
    }

    #[test]
    fn where_a_sweep_turns_two_pages_are_still_there() {
        let (mut device, store, mut window) = open();
        let mut sweep = |device: &mut Cpu, numbers: &[usize]| {
            let before = device.transferred();
            for (i, &number) in numbers.iter().enumerate() {
                window.bring(device, page(store, number)).unwrap();
                if let Some(&next) = numbers.get(i + 1) {
                    window.expect(device, page(store, next)).unwrap();
                }
            }
            (device.transferred() - before).bytes() as usize / BYTES
        };
        assert_eq!(sweep(&mut device, &[0, 1, 2, 3, 4]), N);
        assert_eq!(sweep(&mut device, &[4, 3, 2, 1, 0]), N - 2);
        assert_eq!(sweep(&mut device, &[0, 1, 2, 3, 4]), N - 2);
    }

    #[test]
    fn what_is_changed_and_saved_comes_back() {
        let (mut device, store, mut window) = open();
        for round in 1..=3_u8 {
            for number in 0..N {
                let here = window.bring(&mut device, page(store, number)).unwrap();
                if number + 1 < N {
                    window.expect(&mut device, page(store, number + 1)).unwrap();
                }
                assert_eq!(first_byte(&device, here), number as u8 + 10 * (round - 1));
                device.upload(&[number as u8 + 10 * round; BYTES], here);
                window.save(&mut device, page(store, number)).unwrap();
            }
            window.leave(&mut device).unwrap();
        }
    }

    #[test]
    fn a_page_that_is_made_anew_leaves_the_one_before_it_alone() {
        let (mut device, store, mut window) = open();
        let mut last: Option<(u8, DeviceSlice<u8>)> = None;
        for number in 0..N {
            let here = window.claim(&mut device, page(store, number)).unwrap();
            device.upload(&[100 + number as u8; BYTES], here);
            if let Some((value, slice)) = last {
                assert_eq!(first_byte(&device, slice), value);
            }
            window.save(&mut device, page(store, number)).unwrap();
            last = Some((100 + number as u8, here));
        }
        for number in (0..N).rev() {
            let here = window.bring(&mut device, page(store, number)).unwrap();
            assert_eq!(first_byte(&device, here), 100 + number as u8);
        }
    }
}
