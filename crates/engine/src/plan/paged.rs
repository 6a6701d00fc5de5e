//! The regions of what may lie outside the device: what stays, what does not, and the windows through
//! which that visits.

use nibble_kernels::{DeviceSlice, FloatFormat, Floats};
use nibble_run::Category;

use super::{
    TrainingShape,
    moments::Moments,
    regions::{OutsideRegion, RegionName, Regions},
    residency::is_spread,
    training::area,
};
use crate::optimizer::StateLayout;

/// Where the pages of a [`StateLayout`] are.
#[derive(Clone, Copy, Debug)]
pub struct StateSlices {
    /// The first pages.
    pub resident: DeviceSlice<u8>,
    /// The others, outside.
    pub outside: Option<OutsideRegion>,
    /// Through which those pass.
    pub window: Option<[DeviceSlice<u8>; 2]>,
}

/// Where the checkpointed input of each layer is: the residual stream `[T, D]` before it.
#[derive(Clone, Debug)]
pub struct InputSlices {
    /// By layer; `None` where it lies outside.
    pub resident: Vec<Option<DeviceSlice<f32>>>,
    /// The others, by layer.
    pub outside: Vec<Option<OutsideRegion>>,
    /// Through which those pass.
    pub window: Option<[DeviceSlice<u8>; 2]>,
    /// The residual stream after the last layer.
    pub last: DeviceSlice<f32>,
}

/// The optimizer's states. Only the update reads them, so the window of the paged ones takes turns
/// with the activations.
pub(super) fn states(
    regions: &mut Regions,
    shape: &TrainingShape,
    layout: &StateLayout,
) -> StateSlices {
    let n_paged = shape.residency.optimizer_pages.min(layout.n_pages());
    let resident_bytes = layout.page_offset(layout.n_pages() - n_paged);
    let category = Category::Optimizer;
    let resident = regions.region("optimizer", category, resident_bytes, Moments::ALWAYS);
    let outside = (n_paged > 0).then(|| {
        let bytes = layout.n_bytes() - resident_bytes;
        regions.outside("optimizer.paged", category, bytes, shape.residency.outside.residence())
    });
    let window = (n_paged > 0).then(|| {
        let bytes = layout.page_bytes();
        window(regions, "optimizer.window", category, bytes, Moments::OPTIMIZER)
    });
    StateSlices { resident, outside, window }
}

/// The layers' inputs, live through the whole pass.
pub(super) fn inputs(regions: &mut Regions, shape: &TrainingShape) -> InputSlices {
    let TrainingShape { residency, spec, .. } = shape;
    let len = area(shape.n_rows(), spec.hidden_width);
    let bytes = len.saturating_mul(size_of::<f32>());
    let category = Category::Activations;
    let (mut resident, mut outside) = (Vec::new(), Vec::new());
    let n_outside = residency.inputs.min(spec.n_layers);
    let n_here = spec.n_layers - n_outside;
    let name = RegionName::from("layers.input");
    let mut here = regions
        .parts(name, category, n_here, (len, FloatFormat::F32), Moments::pass())
        .map(Floats::into_f32);
    let all_outside = (n_outside > 0).then(|| {
        let bytes = bytes.saturating_mul(n_outside);
        regions.outside("layers.input.paged", category, bytes, residency.outside.residence())
    });
    let mut there = all_outside.into_iter().flat_map(|region| region.parts(bytes));
    for layer in 0..spec.n_layers {
        let is_outside = is_spread(layer, n_outside, spec.n_layers);
        resident.push(if is_outside { None } else { here.next() });
        outside.push(if is_outside { there.next() } else { None });
    }
    let window = (residency.inputs > 0)
        .then(|| window(regions, "inputs.window", category, bytes, Moments::pass()));
    let last = regions.region("output.input", category, len, Moments::pass());
    InputSlices { resident, outside, window, last }
}

/// The window of layers' weights; the weights themselves are no regions of the arena.
pub(super) fn weight_window(
    regions: &mut Regions,
    shape: &TrainingShape,
) -> Option<[DeviceSlice<u8>; 2]> {
    (shape.residency.layers > 0).then(|| {
        let bytes = shape.weight_layout().layer_bytes();
        window(regions, "weights.window", Category::Weights, bytes, Moments::ALWAYS)
    })
}

/// The two places of a window.
fn window(
    regions: &mut Regions,
    name: &'static str,
    category: Category,
    n_bytes: usize,
    moments: Moments,
) -> [DeviceSlice<u8>; 2] {
    [0, 1].map(|slot| regions.region((name, slot), category, n_bytes, moments))
}
