//! The checkpointed inputs of layers: written in the forward pass, read again in the backward pass.

use nibble_kernels::{
    Backend, DeviceSlice,
    paging::{PageError, StorePlace},
};

use super::{PageWindow, StoredPage};
use crate::plan::InputSlices;

/// The residual stream before each layer and after the last, on the device or visiting it.
#[derive(Debug)]
pub struct LayerInputs {
    slices: InputSlices,
    pages: Vec<Option<StoredPage>>,
    window: Option<PageWindow>,
}

impl LayerInputs {
    /// The inputs at their planned places; `outside` is where the arena's regions outside begin.
    pub fn new(slices: InputSlices, outside: Option<StorePlace>) -> Self {
        let page = |(number, region): (usize, &Option<crate::plan::OutsideRegion>)| {
            let (region, base) = (region.as_ref()?, outside?);
            let place = StorePlace { offset: base.offset + region.offset as u64, ..base };
            Some(StoredPage { number, place, n_bytes: region.n_bytes })
        };
        Self {
            pages: slices.outside.iter().enumerate().map(page).collect(),
            window: slices.window.map(PageWindow::new),
            slices,
        }
    }

    /// The place for the input of `layer`, or, behind the last layer, for its output. The one before
    /// it stays where it is.
    ///
    /// # Errors
    /// When a page could not be moved.
    pub fn claim(
        &mut self,
        device: &mut impl Backend,
        layer: usize,
    ) -> Result<DeviceSlice<f32>, PageError> {
        let Some(resident) = self.slices.resident.get(layer) else { return Ok(self.slices.last) };
        match (resident, self.pages[layer], &mut self.window) {
            (Some(slice), ..) => Ok(*slice),
            (None, Some(page), Some(window)) => Ok(window.claim(device, page)?.cast()),
            _ => unreachable!("an input is resident, or has a page and a window"),
        }
    }

    /// Begins to save the input of `layer`, which was just written, if it does not stay.
    ///
    /// # Errors
    /// When a page could not be moved.
    pub fn save(&mut self, device: &mut impl Backend, layer: usize) -> Result<(), PageError> {
        match (self.pages.get(layer).copied().flatten(), &mut self.window) {
            (Some(page), Some(window)) => window.save(device, page),
            _ => Ok(()),
        }
    }

    /// The input of `layer` on the way down, with that of the layer below on its way.
    ///
    /// # Errors
    /// When a page could not be moved.
    pub fn bring(
        &mut self,
        device: &mut impl Backend,
        layer: usize,
    ) -> Result<DeviceSlice<f32>, PageError> {
        let here = match (self.slices.resident[layer], self.pages[layer], &mut self.window) {
            (Some(slice), ..) => slice,
            (None, Some(page), Some(window)) => window.bring(device, page)?.cast(),
            _ => unreachable!("an input is resident, or has a page and a window"),
        };
        let below = self.pages[..layer].iter().rev().find_map(|page| *page);
        if let (Some(page), Some(window)) = (below, &mut self.window) {
            window.expect(device, page)?;
        }
        Ok(here)
    }

    /// The residual stream after the last layer.
    pub fn last(&self) -> DeviceSlice<f32> {
        self.slices.last
    }

    /// Waits for every transfer, because something else will use the memory.
    ///
    /// # Errors
    /// When one failed.
    pub fn leave(&mut self, device: &mut impl Backend) -> Result<(), PageError> {
        self.window.as_mut().map_or(Ok(()), |window| window.leave(device))
    }
}
