//! The planner: every byte a run will hold, before it starts.
//!
//! A [`TrainingShape`] (model, method, sizes, device) determines a [`MemoryPlan`]: the base
//! weights' block and the arena, each region with its category, lifetime and offset. The window
//! draws it, the trainer allocates it. There is no other memory formula in this project, and
//! nothing here opens a device or a file.

mod evaluation;
mod generation;
mod methods;
mod moments;
mod paged;
mod regions;
mod residency;
mod shape;
mod suggestions;
mod training;

use std::sync::Arc;

use nibble_kernels::{MemoryId, paging::Transferred};
use nibble_run::{Category, CategoryBytes, PlannedRegion, Residence};

pub use evaluation::EvaluationLayout;
pub use generation::{GenerationLayout, GenerationShape, SessionLayout};
pub use methods::{
    PageRates, PlanError, PlanSettings, check, check_host, compare_methods, method_plan,
    model_summary, planned_method, targets, training_shape,
};
pub use moments::Moments;
pub use paged::{InputSlices, StateSlices};
pub use regions::{OutsideRegion, Region, RegionName, Regions};
pub use residency::{Allowance, Outside, Residency, choose, is_spread, smallest_bytes};
pub use shape::{Trainable, TrainingShape};
pub use suggestions::suggestions;
pub use training::{
    BatchSlices, LayerGradientSlices, LayerSlices, LossSlices, RopeTables, TrainableSlices,
    TrainingLayout, attention_shape,
};

use crate::{
    optimizer::StateLayout,
    weights::{WeightLayout, layout::Block},
};

/// Bytes outside the device, by kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PagedBytes {
    /// The optimizer's states.
    pub optimizer: u64,
    /// Base weights.
    pub weights: u64,
    /// Checkpointed inputs of layers.
    pub activations: u64,
}

/// Every region of a training run.
#[derive(Debug)]
pub struct MemoryPlan {
    shape: TrainingShape,
    weights: WeightLayout,
    states: Arc<StateLayout>,
    regions: Regions,
}

impl MemoryPlan {
    /// Plans a run of `shape`. Takes microseconds; any shape has a plan, if an absurd one.
    pub fn new(shape: TrainingShape) -> Self {
        let states = Arc::new(shape.state_layout());
        Self::with_states(shape, states)
    }

    /// The same for a shape whose states are laid out already: they do not depend on what is paged.
    fn with_states(shape: TrainingShape, states: Arc<StateLayout>) -> Self {
        let regions = Regions::plan(|regions| TrainingLayout::new(regions, &shape, &states));
        Self { weights: shape.weight_layout(), states, regions, shape }
    }

    /// The same run with something else outside.
    fn with_residency(&self, residency: Residency) -> Self {
        let shape = TrainingShape { residency, ..self.shape.clone() };
        Self::with_states(shape, Arc::clone(&self.states))
    }

    /// The same with everything on the device, and the activations of so many layers kept.
    fn unpaged(&self, kept_layers: usize) -> Self {
        let outside = self.shape.residency.outside;
        let residency = Residency { outside, ..Residency::default() };
        let shape = TrainingShape { kept_layers, residency, ..self.shape.clone() };
        Self::with_states(shape, Arc::clone(&self.states))
    }

    /// What the plan was made for.
    pub fn shape(&self) -> &TrainingShape {
        &self.shape
    }

    /// Bytes of the base weights that stay on the device.
    pub fn weights_bytes(&self) -> usize {
        self.weights.n_bytes() - self.paged_weights_bytes()
    }

    /// Bytes of the base weights that visit it.
    pub fn paged_weights_bytes(&self) -> usize {
        let n_paged = self.shape.residency.layers.min(self.shape.spec.n_layers);
        self.layer_bytes().saturating_mul(n_paged)
    }

    /// Bytes of the base weights of one layer.
    pub fn layer_bytes(&self) -> usize {
        self.weights.layer_bytes()
    }

    /// The layout of the optimizer's states.
    pub fn state_layout(&self) -> &StateLayout {
        &self.states
    }

    /// Bytes of the arena.
    pub fn arena_bytes(&self) -> usize {
        self.regions.total_bytes()
    }

    /// Every byte that the run will hold on the device.
    pub fn peak_bytes(&self) -> usize {
        self.weights_bytes().saturating_add(self.arena_bytes())
    }

    /// Bytes of the run's own store outside the device: paged weights, unless they are read from the
    /// model's image, and behind them the arena's regions outside.
    pub fn store_bytes(&self) -> usize {
        self.store_base().saturating_add(self.regions.outside_bytes())
    }

    /// Where the arena's regions begin in the store.
    pub fn store_base(&self) -> usize {
        if self.shape.pages_from_image() { 0 } else { self.paged_weights_bytes() }
    }

    /// What lies outside the device, by kind.
    pub fn paged_bytes(&self) -> PagedBytes {
        let of = |category| {
            let regions = self.regions.all().iter();
            let outside = regions.filter(|region| region.residence != Residence::Device);
            outside
                .filter(|region| region.category == category)
                .fold(0_u64, |sum, region| sum.saturating_add(region.n_bytes as u64))
        };
        PagedBytes {
            optimizer: of(Category::Optimizer),
            weights: self.paged_weights_bytes() as u64,
            activations: of(Category::Activations),
        }
    }

    /// Bytes that cross between device and store in a step of `n_micro_batches`, once a run is under way.
    pub fn step_transfers(&self, n_micro_batches: usize) -> Transferred {
        let phases = self.phase_transfers(n_micro_batches).into_iter();
        phases.fold(Transferred::default(), |sum, phase| sum + phase)
    }

    /// Those of all forward passes, of all backward passes, and of the update.
    pub fn phase_transfers(&self, n_micro_batches: usize) -> [Transferred; 3] {
        let bytes = self.paged_bytes();
        let (n_layers, n_inputs) = (self.shape.residency.layers, self.shape.residency.inputs);
        // Where a sweep turns, the two last pages are still there.
        let turning = |bytes: u64, n: usize| match n as u64 {
            0..=2 => 0,
            n => bytes / n * (n - 2),
        };
        let of_all = |bytes: u64| bytes.saturating_mul(n_micro_batches as u64);
        let weights = turning(bytes.weights, n_layers);
        let mut forward =
            Transferred { to_device: of_all(weights), from_device: of_all(bytes.activations) };
        let inputs = turning(bytes.activations, n_inputs);
        let backward =
            Transferred { to_device: of_all(weights.saturating_add(inputs)), from_device: 0 };
        let mut update = Transferred { to_device: bytes.optimizer, from_device: bytes.optimizer };
        if self.shape.trainable == Trainable::Everything {
            // The update goes up like the forward pass after it, which therefore finds nothing that
            // it begins with; and all are saved.
            if n_layers > 2 {
                let cold = bytes.weights - weights;
                forward.to_device = forward.to_device.saturating_add(cold);
                update.to_device = update.to_device.saturating_add(weights);
            }
            update.from_device = update.from_device.saturating_add(bytes.weights);
        }
        [forward, backward, update]
    }

    /// Bytes of the store in the host's memory.
    pub fn host_bytes(&self) -> usize {
        match self.shape.residency.outside {
            Outside::Host => self.store_bytes(),
            Outside::Disk => 0,
        }
    }

    /// Bytes of the store in a file.
    pub fn page_file_bytes(&self) -> usize {
        match self.shape.residency.outside {
            Outside::Host => 0,
            Outside::Disk => self.store_bytes(),
        }
    }

    /// The handles of every region, with the arena at `arena`.
    pub fn resolve(&mut self, arena: MemoryId) -> TrainingLayout {
        let (shape, states) = (&self.shape, &self.states);
        self.regions.resolve(arena, |regions| TrainingLayout::new(regions, shape, states))
    }

    /// Every region of the arena.
    pub fn regions(&self) -> &[Region] {
        self.regions.all()
    }

    /// Every region: the blocks of the base weights, then those of the arena.
    pub fn planned_regions(&self) -> Vec<PlannedRegion> {
        let weights = self.weights.blocks().map(|(block, bytes)| PlannedRegion {
            name: match block {
                Block::Embedding => "embedding".into(),
                Block::Layer(layer) => format!("layers.{layer}"),
                Block::FinalNorm => "norm".into(),
                Block::Output => "output".into(),
            },
            category: Category::Weights,
            bytes: bytes.len() as u64,
            resident: match block {
                Block::Layer(layer) if self.shape.is_layer_paged(layer) => {
                    self.shape.residency.outside.residence()
                }
                _ => Residence::Device,
            },
        });
        let arena = self.regions.all().iter().map(|region| PlannedRegion {
            name: region.name.to_string(),
            category: region.category,
            bytes: region.n_bytes as u64,
            resident: region.residence,
        });
        weights.chain(arena).collect()
    }

    /// The peak, divided among the categories: regions that take turns in one place count once,
    /// as activations if any of them is one. The parts sum to the peak; alignment counts as
    /// workspace.
    pub fn category_bytes(&self) -> CategoryBytes {
        let of = |category| {
            let bytes = self.device_regions().filter(|region| region.category == category);
            bytes.fold(0_usize, |sum, region| sum.saturating_add(region.n_bytes)) as u64
        };
        let mut bytes = CategoryBytes {
            weights: (self.weights_bytes() as u64).saturating_add(of(Category::Weights)),
            adapters: of(Category::Adapters),
            gradients: of(Category::Gradients),
            // Its window takes turns with the activations, and is no cost of its own.
            optimizer: self
                .device_regions()
                .filter(|region| region.category == Category::Optimizer)
                .filter(|region| region.moments == Moments::ALWAYS)
                .fold(0, |sum: u64, region| sum.saturating_add(region.n_bytes as u64)),
            activations: self.covered_bytes(Category::Activations) as u64,
            workspace: 0,
        };
        bytes.workspace = (self.peak_bytes() as u64).saturating_sub(bytes.total());
        bytes
    }

    fn device_regions(&self) -> impl Iterator<Item = &Region> {
        self.regions.all().iter().filter(|region| region.residence == Residence::Device)
    }

    /// Bytes of the arena that are, at some moment, of `category`.
    fn covered_bytes(&self, category: Category) -> usize {
        let regions = self.device_regions().filter(|region| region.category == category);
        let mut spans: Vec<_> = regions
            .map(|region| (region.offset, region.offset.saturating_add(region.n_bytes)))
            .collect();
        spans.sort_unstable();
        let (mut covered, mut end) = (0_usize, 0);
        for (start, stop) in spans {
            covered += stop.saturating_sub(start.max(end));
            end = end.max(stop);
        }
        covered
    }
}
