//! Which way a stored matrix lies to the product that reads it.

/// Which index of the product runs along the rows of the stored matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// Neighbours in memory are neighbours in k: x in `x · Wᵀ`, and W.
    Depth,
    /// Neighbours in memory are neighbouring rows of A or columns of B: W in `dy · W`.
    Lanes,
}

/// How far ahead of their use stored rows are asked for: about the latency of memory, at the rate
/// of packing.
pub(super) const LANES_AHEAD: usize = 32;
pub(super) const STEPS_AHEAD: usize = 40;
