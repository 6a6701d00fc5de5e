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
mod regions;
mod suggestions;
mod training;

use nibble_kernels::MemoryId;
use nibble_run::{Category, CategoryBytes, PlannedRegion, Residence};

pub use evaluation::EvaluationLayout;
pub use generation::{GenerationLayout, GenerationShape, SessionLayout};
pub use methods::{
    PlanError, PlanSettings, check, compare_methods, method_plan, model_summary, planned_method,
    targets, training_shape,
};
pub use moments::Moments;
pub use regions::{Region, Regions};
pub use suggestions::suggestions;
pub use training::{
    BatchSlices, LayerGradientSlices, LayerSlices, LossSlices, RopeTables, Trainable,
    TrainableSlices, TrainingLayout, TrainingShape, attention_shape,
};

use crate::weights::{WeightLayout, layout::Block};

/// Every region of a training run.
#[derive(Debug)]
pub struct MemoryPlan {
    shape: TrainingShape,
    weights: WeightLayout,
    regions: Regions,
}

impl MemoryPlan {
    /// Plans a run of `shape`. Takes microseconds; any shape has a plan, if an absurd one.
    pub fn new(shape: TrainingShape) -> Self {
        let regions = Regions::plan(|regions| TrainingLayout::new(regions, &shape));
        Self { weights: shape.weight_layout(), regions, shape }
    }

    /// What the plan was made for.
    pub fn shape(&self) -> &TrainingShape {
        &self.shape
    }

    /// Bytes of the base weights' block.
    pub fn weights_bytes(&self) -> usize {
        self.weights.n_bytes()
    }

    /// Bytes of the arena.
    pub fn arena_bytes(&self) -> usize {
        self.regions.total_bytes()
    }

    /// Every byte that the run will hold on the device.
    pub fn peak_bytes(&self) -> usize {
        self.weights_bytes().saturating_add(self.arena_bytes())
    }

    /// The handles of every region, with the arena at `arena`.
    pub fn resolve(&mut self, arena: MemoryId) -> TrainingLayout {
        let shape = &self.shape;
        self.regions.resolve(arena, |regions| TrainingLayout::new(regions, shape))
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
            resident: Residence::Device,
        });
        let arena = self.regions.all().iter().map(|region| PlannedRegion {
            name: region.name.clone(),
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
            let bytes = self.regions.all().iter().filter(|region| region.category == category);
            bytes.fold(0_usize, |sum, region| sum.saturating_add(region.n_bytes)) as u64
        };
        let mut bytes = CategoryBytes {
            weights: (self.weights_bytes() as u64).saturating_add(of(Category::Weights)),
            adapters: of(Category::Adapters),
            gradients: of(Category::Gradients),
            optimizer: of(Category::Optimizer),
            activations: self.covered_bytes(Category::Activations) as u64,
            workspace: 0,
        };
        bytes.workspace = (self.peak_bytes() as u64).saturating_sub(bytes.total());
        bytes
    }

    /// Bytes of the arena that are, at some moment, of `category`.
    fn covered_bytes(&self, category: Category) -> usize {
        let regions = self.regions.all().iter().filter(|region| region.category == category);
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
