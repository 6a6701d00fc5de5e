//! The update, page by page.

use nibble_kernels::{
    Backend, DeviceSlice, Floats,
    adamw::{AdamWStep, Moments, QuantizedMoment, n_moment_blocks},
    paging::{PageError, StorePlace},
};

use super::{MomentParts, Piece, StateLayout, TrainedRole, TrainedTensor};
use crate::{
    decoder::{BaseWeights, Sweep},
    plan::{StateSlices, Trainable, TrainingShape},
    residency::{PageWindow, Stored, StoredPage},
    weights::TensorPlace,
};

/// The optimizer's constants.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OptimizerConfig {
    /// β₁.
    pub beta1: f64,
    /// β₂.
    pub beta2: f64,
    /// ε.
    pub epsilon: f64,
    /// Decoupled weight decay; norms and biases are spared.
    pub weight_decay: f64,
    /// The largest gradient norm, above which the gradient is scaled down; `None`: any.
    pub clip_norm: Option<f64>,
}

/// The parameters that an update changes.
#[derive(Debug)]
pub enum Trained<'a> {
    /// The flat buffer of an adapter.
    Adapter(DeviceSlice<f32>),
    /// Every weight of the model.
    Weights(&'a mut BaseWeights),
}

/// The optimizer's states, and the way of their pages to the device.
#[derive(Debug)]
pub struct OptimizerStates {
    tensors: Vec<TrainedTensor>,
    /// Of each tensor, when weights are trained, which may be stored otherwise than gradients.
    weight_places: Vec<TensorPlace>,
    layout: StateLayout,
    resident: DeviceSlice<u8>,
    n_resident_pages: usize,
    /// Where the paged ones lie; their first byte is that of the first page that is not resident.
    outside: Option<StorePlace>,
    window: Option<PageWindow>,
}

impl OptimizerStates {
    /// The states of a run of `shape`, at the places of its layout; `outside` is where those lie
    /// that are not resident.
    pub fn new(shape: &TrainingShape, slices: &StateSlices, outside: Option<StorePlace>) -> Self {
        let layout = shape.state_layout();
        let n_pages = layout.n_pages();
        Self {
            tensors: shape.trained_tensors().collect(),
            weight_places: match shape.trainable {
                // Both layouts list the same tensors in the same order.
                Trainable::Everything => shape.weight_layout().tensors().collect(),
                Trainable::Adapter { .. } => Vec::new(),
            },
            n_resident_pages: n_pages - shape.residency.optimizer_pages.min(n_pages),
            resident: slices.resident,
            outside,
            window: slices.window.map(PageWindow::new),
            layout,
        }
    }

    /// What is trained, in the order of their layout.
    pub fn tensors(&self) -> &[TrainedTensor] {
        &self.tensors
    }

    /// The pieces of a tensor's states, in order, with the bytes of the page each is in.
    pub fn pieces_of(&self, tensor: usize) -> impl Iterator<Item = (Piece, Stored)> {
        self.layout.pages_around(tensor).flat_map(move |number| {
            let pieces = self.layout.pieces(number).filter(move |piece| piece.tensor == tensor);
            pieces.map(move |piece| (piece, self.stored(number)))
        })
    }

    fn stored(&self, number: usize) -> Stored {
        match self.paged(number) {
            Some(page) => Stored::Outside { place: page.place, n_bytes: page.n_bytes },
            None => Stored::Device(self.resident_page(number)),
        }
    }

    fn resident_page(&self, number: usize) -> DeviceSlice<u8> {
        let page = self.layout.page(number);
        self.resident.slice(page.offset..page.offset + page.n_bytes)
    }

    /// A page that lies outside.
    fn paged(&self, number: usize) -> Option<StoredPage> {
        let is_paged = (self.n_resident_pages..self.layout.n_pages()).contains(&number);
        let base = self.outside.filter(|_| is_paged)?;
        let page = self.layout.page(number);
        let start = self.layout.page_offset(self.n_resident_pages);
        let offset = base.offset + (page.offset - start) as u64;
        let place = StorePlace { offset, ..base };
        Some(StoredPage { number, place, n_bytes: page.n_bytes })
    }

    /// The page on the device, with the one after it on its way.
    fn enter(
        &mut self,
        device: &mut impl Backend,
        number: usize,
    ) -> Result<DeviceSlice<u8>, PageError> {
        let (page, next) = (self.paged(number), self.paged(number + 1));
        let (Some(window), Some(page)) = (&mut self.window, page) else {
            return Ok(self.resident_page(number));
        };
        let here = window.bring(device, page)?;
        if let Some(next) = next {
            window.expect(device, next)?;
        }
        Ok(here)
    }

    /// Updates `trained` and every state from `gradients`, the bytes of all of them.
    ///
    /// # Errors
    /// When a page could not be moved; the parameters are then those of no step.
    pub fn update(
        &mut self,
        device: &mut impl Backend,
        update: AdamWStep,
        gradients: DeviceSlice<u8>,
        mut trained: Trained<'_>,
    ) -> Result<(), PageError> {
        let mut entered = None;
        for number in 0..self.layout.n_pages() {
            let layer = self.layout.pieces(number).next();
            let layer = layer.and_then(|piece| self.tensors[piece.tensor].layer());
            if let Trained::Weights(weights) = &mut trained
                && layer != entered
            {
                if let Some(done) = entered {
                    weights.save_layer(device, done)?;
                }
                if let Some(layer) = layer {
                    weights.enter(device, layer, Sweep::Up)?;
                }
                entered = layer;
            }
            let states = self.enter(device, number)?;
            let mut waiting: Option<Part> = None;
            for piece in self.layout.pieces(number) {
                let tensor = &self.tensors[piece.tensor];
                let (start, len) = (piece.first_element, piece.len);
                let parameters = match (&trained, tensor.role) {
                    (Trained::Weights(weights), TrainedRole::Weight(_)) => {
                        weights.weight(&self.weight_places[piece.tensor]).into_floats()
                    }
                    (Trained::Adapter(flat), TrainedRole::Adapter(place)) => {
                        Floats::F32(flat.slice(place.start..place.start + place.n_elements()))
                    }
                    _ => unreachable!("either weights or an adapter are trained"),
                };
                let range = start..start + len;
                let step = AdamWStep {
                    weight_decay: if tensor.decays() { update.weight_decay } else { 0.0 },
                    // Another draw of the rounding for every tensor.
                    rounding_seed: update.rounding_seed.wrapping_add((piece.tensor as u64) << 32),
                    first_element: start,
                    ..update
                };
                let (parameters, gradient) =
                    (parameters.slice(range.clone()), tensor.gradient(gradients).slice(range));
                let part = Part { step, parameters, gradient, moments: moments(states, &piece) };
                waiting = match waiting.as_ref().and_then(|waiting| waiting.joined(&part)) {
                    Some(joined) => Some(joined),
                    None => {
                        if let Some(waiting) = waiting {
                            waiting.update(device);
                        }
                        Some(part)
                    }
                };
            }
            if let Some(waiting) = waiting {
                waiting.update(device);
            }
            if let (Some(page), Some(window)) = (self.paged(number), &mut self.window) {
                window.save(device, page)?;
            }
        }
        if let (Trained::Weights(weights), Some(done)) = (&mut trained, entered) {
            weights.save_layer(device, done)?;
        }
        if let Trained::Weights(weights) = &mut trained {
            weights.settle(device)?;
        }
        match &mut self.window {
            // Its memory belongs to the activations of the next step.
            Some(window) => window.leave(device),
            None => Ok(()),
        }
    }
}

/// What is updated by one operation.
struct Part {
    step: AdamWStep,
    parameters: Floats,
    gradient: Floats,
    moments: Moments,
}

impl Part {
    fn update(self, device: &mut impl Backend) {
        device.adamw(self.step, self.parameters, self.gradient, self.moments);
    }

    /// Both as one, where `next` lies behind in everything and nothing depends on where a tensor begins:
    /// an adapter is hundreds of small matrices, and an operation costs a card and threads their start.
    fn joined(&self, next: &Self) -> Option<Self> {
        let (Floats::F32(parameters), Floats::F32(next_parameters)) =
            (self.parameters, next.parameters)
        else {
            // Rounded by draws of the tensor's own.
            return None;
        };
        let (Floats::F32(gradient), Floats::F32(next_gradient)) = (self.gradient, next.gradient)
        else {
            return None;
        };
        let (
            Moments::F32 { first, second },
            Moments::F32 { first: next_first, second: next_second },
        ) = (self.moments, next.moments)
        else {
            // In blocks that begin with the tensor.
            return None;
        };
        if self.step.weight_decay != next.step.weight_decay {
            return None;
        }
        Some(Self {
            step: self.step,
            parameters: parameters.joined(&next_parameters)?.into(),
            gradient: gradient.joined(&next_gradient)?.into(),
            moments: Moments::F32 {
                first: first.joined(&next_first)?,
                second: second.joined(&next_second)?,
            },
        })
    }
}

/// The handles of a piece's moments, in a page that lies at `page`.
fn moments(page: DeviceSlice<u8>, piece: &Piece) -> Moments {
    let part = |offset: usize, bytes: usize| page.slice(offset..offset + bytes);
    let floats = |offset: usize, len: usize| part(offset, len * size_of::<f32>()).cast::<f32>();
    match (piece.first, piece.second) {
        (MomentParts::F32 { offset: first }, MomentParts::F32 { offset: second }) => {
            Moments::F32 { first: floats(first, piece.len), second: floats(second, piece.len) }
        }
        (first, second) => {
            let quantized = |parts: MomentParts| match parts {
                MomentParts::Blockwise8 { codes, absmax } => QuantizedMoment {
                    codes: part(codes, piece.len),
                    absmax: floats(absmax, n_moment_blocks(piece.len)),
                },
                MomentParts::F32 { .. } => unreachable!("both moments are stored alike"),
            };
            Moments::Blockwise8 { first: quantized(first), second: quantized(second) }
        }
    }
}
