//! What lies outside the device and what is computed twice: how a run meets a budget.
//!
//! It keeps the activations of as many layers as there is room for. Where not even a run that keeps none
//! fits, it pages as little as makes it fit: first states of the optimizer, which visit the device once a
//! step; then weights, layer by layer, which visit it twice for each micro-batch; then the checkpointed
//! inputs of layers. Within each kind no more than is needed.

use nibble_kernels::DeviceProfile;
use nibble_run::{Paging, Recompute, Residence};

use super::{MemoryPlan, PlanSettings, TrainingShape};

/// Pages of a window: fewer than this many paged pages save nothing.
const WINDOW_PAGES: usize = 2;

/// How much of each kind lies outside the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Residency {
    /// Pages of the optimizer's states, the last of all.
    pub optimizer_pages: usize,
    /// Layers whose weights lie outside, spread evenly, so that those between hide their coming.
    pub layers: usize,
    /// Layers whose checkpointed inputs lie outside, spread evenly.
    pub inputs: usize,
    /// Where they lie.
    pub outside: Outside,
}

/// The places beside the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Outside {
    /// A file: what a processor, whose device memory is the host's, can page to.
    #[default]
    Disk,
    /// The host's memory.
    Host,
}

impl Outside {
    /// Where a run on the device of `profile` pages to: a card copies from the host's memory, many
    /// times as fast as any disk reads.
    pub fn of(profile: &DeviceProfile) -> Self {
        if profile.is_cuda() { Self::Host } else { Self::Disk }
    }

    /// The same, as plans show it.
    pub fn residence(self) -> Residence {
        match self {
            Self::Disk => Residence::Disk,
            Self::Host => Residence::Host,
        }
    }
}

impl Residency {
    /// Everything on the device.
    pub fn is_resident(&self) -> bool {
        self.optimizer_pages == 0 && self.layers == 0 && self.inputs == 0
    }
}

/// Whether number `index` is one of the `n_chosen` of `n`, spread evenly.
pub fn is_spread(index: usize, n_chosen: usize, n: usize) -> bool {
    n > 0 && (index + 1) * n_chosen / n > index * n_chosen / n
}

/// What can leave, in the order in which it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Optimizer,
    Layers,
    Inputs,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Optimizer, Self::Layers, Self::Inputs];

    /// How many of it there are.
    fn most(self, plan: &MemoryPlan) -> usize {
        let shape = plan.shape();
        match self {
            Self::Optimizer => plan.state_layout().n_pages(),
            Self::Layers => shape.spec.n_layers,
            // Where all layers keep theirs, only what they keep is large, which does not move.
            Self::Inputs if shape.recomputed_layers() > 0 => shape.spec.n_layers,
            Self::Inputs => 0,
        }
    }

    /// The same run with `n` of this kind outside.
    fn leave(self, plan: &MemoryPlan, n: usize) -> MemoryPlan {
        let mut residency = plan.shape().residency;
        *match self {
            Self::Optimizer => &mut residency.optimizer_pages,
            Self::Layers => &mut residency.layers,
            Self::Inputs => &mut residency.inputs,
        } = n;
        plan.with_residency(residency)
    }

    /// Of `all`, the plan with every one of this kind outside, the one with the fewest outside that
    /// still fits `budget_bytes`.
    fn leave_least(self, all: MemoryPlan, budget_bytes: u64) -> MemoryPlan {
        let most = self.most(&all);
        let peak_bytes = all.peak_bytes();
        let fits = |n: usize| match self {
            // States and weights share their bytes with nothing, so that those which stay cost
            // exactly themselves.
            Self::Optimizer => {
                let stay_bytes = all.state_layout().page_offset(most - n);
                peak_bytes.saturating_add(stay_bytes) as u64 <= budget_bytes
            }
            Self::Layers => {
                let stay_bytes = all.layer_bytes().saturating_mul(most - n);
                peak_bytes.saturating_add(stay_bytes) as u64 <= budget_bytes
            }
            Self::Inputs => self.leave(&all, n).peak_bytes() as u64 <= budget_bytes,
        };
        // More pages outside never take more room, once there is a window.
        let (mut low, mut high) = ((WINDOW_PAGES + 1).min(most), most);
        while low < high {
            let middle = (low + high) / 2;
            if fits(middle) { high = middle } else { low = middle + 1 }
        }
        if high == most { all } else { self.leave(&all, high) }
    }
}

/// What a run may take of the device, and what it may do for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowance {
    /// The most that it may take.
    pub budget_bytes: u64,
    /// The most that it may take for the sake of speed alone, where it could do with less.
    pub spare_bytes: u64,
    /// Whether activations are computed again.
    pub recompute: Recompute,
    /// What may lie outside.
    pub paging: Paging,
}

impl Allowance {
    /// What `settings` allow within `budget_bytes`. For speed alone never all of what is available is taken,
    /// since a person opens other programs meanwhile: half of the processor's memory, which is theirs as
    /// well, and seven eighths of a card's, of which few take much.
    pub fn of(settings: PlanSettings<'_>, budget_bytes: u64) -> Self {
        let PlanSettings { settings, profile, available_bytes, .. } = settings;
        let share = if profile.is_cuda() {
            available_bytes - available_bytes / 8
        } else {
            available_bytes / 2
        };
        let spare_bytes = steady(share).min(budget_bytes);
        Self { budget_bytes, spare_bytes, recompute: settings.recompute, paging: settings.paged }
    }
}

/// Its five leading bits, so that a plan is the same while what is free moves a little.
fn steady(n_bytes: u64) -> u64 {
    let shift = 59_u32.saturating_sub(n_bytes.leading_zeros());
    n_bytes >> shift << shift
}

/// The plan of a run of `shape`, as fast as `allowance` lets it be: it keeps the activations of as many
/// layers as there is room for, and pages as little as fits. One that does not fit whatever leaves is
/// planned as if nothing did.
pub fn choose(shape: &TrainingShape, allowance: Allowance) -> MemoryPlan {
    let Allowance { budget_bytes, spare_bytes, recompute, paging } = allowance;
    let residency = Residency { outside: shape.residency.outside, ..Residency::default() };
    let kept_layers = least_kept(shape.spec.n_layers, recompute);
    let unpaged = MemoryPlan::new(TrainingShape { kept_layers, residency, ..shape.clone() });
    let fits = |plan: &MemoryPlan| plan.peak_bytes() as u64 <= budget_bytes;
    if recompute == Recompute::Auto
        && paging != Paging::On
        && unpaged.peak_bytes() as u64 <= spare_bytes
    {
        return keep_most(unpaged, spare_bytes);
    }
    match paging {
        Paging::Off => return unpaged,
        Paging::On => {
            return unpaged.with_residency(Residency {
                optimizer_pages: Kind::Optimizer.most(&unpaged),
                layers: Kind::Layers.most(&unpaged),
                inputs: Kind::Inputs.most(&unpaged),
                ..unpaged.shape().residency
            });
        }
        Paging::Auto if fits(&unpaged) => return unpaged,
        Paging::Auto => {}
    }
    let mut least = None;
    for kind in Kind::ALL {
        let before = least.as_ref().unwrap_or(&unpaged);
        let all = kind.leave(before, kind.most(before));
        if fits(&all) {
            return kind.leave_least(all, budget_bytes);
        }
        // A kind that would only cost its window stays where it is.
        if all.peak_bytes() < before.peak_bytes() {
            least = Some(all);
        }
    }
    unpaged
}

/// Layers of `n_layers` whose activations are kept whatever room there is.
pub(super) fn least_kept(n_layers: usize, recompute: Recompute) -> usize {
    if recompute == Recompute::Off { n_layers } else { 0 }
}

/// Of a plan that keeps no layer's activations and fits `budget_bytes`, the one that keeps most.
fn keep_most(none: MemoryPlan, budget_bytes: u64) -> MemoryPlan {
    let fits = |plan: &MemoryPlan| plan.peak_bytes() as u64 <= budget_bytes;
    let n_layers = none.shape().spec.n_layers;
    // Tried first, as it may take less than one layer fewer: nothing takes turns in a set of its own then.
    let all = none.unpaged(n_layers);
    if fits(&all) {
        return all;
    }
    let (mut most, mut too_many) = (none, n_layers);
    while most.shape().kept_layers + 1 < too_many {
        let middle = most.unpaged((most.shape().kept_layers + too_many) / 2);
        if fits(&middle) { most = middle } else { too_many = middle.shape().kept_layers }
    }
    most
}

/// The least of the device that a run of this plan's shape could do with.
pub fn smallest_bytes(plan: &MemoryPlan, allowance: Allowance) -> u64 {
    let mut least = plan.unpaged(least_kept(plan.shape().spec.n_layers, allowance.recompute));
    if allowance.paging != Paging::Off {
        for kind in Kind::ALL {
            let all = kind.leave(&least, kind.most(&least));
            if all.peak_bytes() < least.peak_bytes() {
                least = all;
            }
        }
    }
    least.peak_bytes() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn little_is_lost_by_being_steady() {
        for n_bytes in [0, 1, 31, 32, 33, 1000, 3 << 30, u64::MAX] {
            let steady = steady(n_bytes);
            assert!(steady <= n_bytes && n_bytes - steady <= n_bytes / 16, "{n_bytes}: {steady}");
        }
        assert_eq!(steady((17 << 30) + 12_345), 17 << 30);
    }

    #[test]
    fn a_spread_chooses_as_many_as_it_says() {
        for n in [1, 2, 7, 32] {
            for n_chosen in 0..=n {
                let chosen = (0..n).filter(|&index| is_spread(index, n_chosen, n)).count();
                assert_eq!(chosen, n_chosen, "{n_chosen} of {n}");
            }
        }
        let halves: Vec<bool> = (0..6).map(|index| is_spread(index, 3, 6)).collect();
        assert_eq!(halves, [false, true, false, true, false, true]);
    }
}
