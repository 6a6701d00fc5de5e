//! What lies outside the device, and the choice of it.
//!
//! Given a budget, a run pages as little as makes it fit: first states of the optimizer, which visit
//! the device once a step; then weights, layer by layer, which visit it twice for each micro-batch;
//! then the checkpointed inputs of layers. Within each kind no more than is needed.

use nibble_run::{Paging, Residence};

use super::{MemoryPlan, TrainingShape};

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

/// One of the counts.
type Count = fn(&mut Residency) -> &mut usize;

/// The kinds, in the order in which they leave, and how many of each there are.
fn kinds(plan: &MemoryPlan) -> [(Count, usize); 3] {
    let shape = plan.shape();
    // Kept activations are read from where they are; only checkpoints are few enough to move.
    let n_inputs = if shape.recompute { shape.spec.n_layers } else { 0 };
    [
        (|residency| &mut residency.optimizer_pages, plan.state_layout().pages().len()),
        (|residency| &mut residency.layers, shape.spec.n_layers),
        (|residency| &mut residency.inputs, n_inputs),
    ]
}

/// The plan of `shape` with everything on the device.
fn unpaged(shape: &TrainingShape) -> MemoryPlan {
    let residency = Residency { outside: shape.residency.outside, ..Residency::default() };
    MemoryPlan::new(TrainingShape { residency, ..shape.clone() })
}

/// The plan of a run of `shape` that pages as little as fits `budget_bytes`. One that does not fit
/// whatever leaves is planned as if nothing did.
pub fn choose(shape: &TrainingShape, budget_bytes: u64, paging: Paging) -> MemoryPlan {
    let fits = |plan: &MemoryPlan| plan.peak_bytes() as u64 <= budget_bytes;
    let unpaged = unpaged(shape);
    let resident = unpaged.shape().residency;
    match paging {
        Paging::Off => return unpaged,
        Paging::On => {
            let mut everything = resident;
            for (count, most) in kinds(&unpaged) {
                *count(&mut everything) = most;
            }
            return unpaged.with_residency(everything);
        }
        Paging::Auto if fits(&unpaged) => return unpaged,
        Paging::Auto => {}
    }
    let mut chosen = resident;
    let mut least_bytes = unpaged.peak_bytes();
    for (count, most) in kinds(&unpaged) {
        let at = |n: usize| {
            let mut residency = chosen;
            *count(&mut residency) = n;
            unpaged.with_residency(residency)
        };
        let all = at(most);
        if fits(&all) {
            // More pages outside never take more room, once there is a window.
            let (mut low, mut high) = ((WINDOW_PAGES + 1).min(most), most);
            while low < high {
                let middle = (low + high) / 2;
                if fits(&at(middle)) { high = middle } else { low = middle + 1 }
            }
            return at(high);
        }
        // A kind that would only cost its window stays where it is.
        if all.peak_bytes() < least_bytes {
            least_bytes = all.peak_bytes();
            *count(&mut chosen) = most;
        }
    }
    unpaged
}

/// The plan of the same run that takes the least of the device.
pub fn smallest(plan: &MemoryPlan, paging: Paging) -> MemoryPlan {
    let outside = plan.shape().residency.outside;
    let mut least = plan.with_residency(Residency { outside, ..Residency::default() });
    if paging == Paging::Off {
        return least;
    }
    for (count, most) in kinds(&least) {
        let mut residency = least.shape().residency;
        *count(&mut residency) = most;
        let smaller = least.with_residency(residency);
        if smaller.peak_bytes() < least.peak_bytes() {
            least = smaller;
        }
    }
    least
}

#[cfg(test)]
mod tests {
    use super::*;

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
