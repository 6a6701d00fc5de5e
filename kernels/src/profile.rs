//! Where a device's time goes: calls, time and work of each operation. Off unless asked for.

use std::time::{Duration, Instant};

/// All calls of one operation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OperationProfile {
    /// The operation.
    pub name: &'static str,
    /// How often it ran.
    pub n_calls: u64,
    /// The time from its beginnings to its ends.
    pub time: Duration,
    /// Multiplications and additions of its matrix products; 0 where it has none.
    pub n_flops: f64,
    /// Bytes of its arguments, each counted once a call, workspace included.
    pub n_bytes: f64,
}

/// Names that a profile has room for, so that a step allocates nothing for it; there are fewer
/// operations.
const MAX_OPERATIONS: usize = 64;

/// The operations of a device, in the order in which they were first called.
#[derive(Debug)]
pub(crate) struct Profile(Vec<OperationProfile>);

impl Profile {
    pub(crate) fn new() -> Self {
        Self(Vec::with_capacity(MAX_OPERATIONS))
    }

    pub(crate) fn operations(&self) -> &[OperationProfile] {
        &self.0
    }

    fn entry(&mut self, name: &'static str) -> &mut OperationProfile {
        let index = self.0.iter().position(|operation| operation.name == name);
        let index = index.unwrap_or_else(|| {
            let (n_calls, time, n_flops, n_bytes) = (0, Duration::ZERO, 0.0, 0.0);
            self.0.push(OperationProfile { name, n_calls, time, n_flops, n_bytes });
            self.0.len() - 1
        });
        &mut self.0[index]
    }
}

/// One call of an operation; it ends when this is dropped.
pub(crate) struct Call<'a> {
    operation: &'a mut OperationProfile,
    start: Instant,
}

impl<'a> Call<'a> {
    pub(crate) fn begin(profile: &'a mut Profile, name: &'static str) -> Self {
        Self { operation: profile.entry(name), start: Instant::now() }
    }

    pub(crate) fn count_bytes(&mut self, n_bytes: usize) {
        self.operation.n_bytes += n_bytes as f64;
    }

    pub(crate) fn count_flops(&mut self, n_flops: f64) {
        self.operation.n_flops += n_flops;
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        self.operation.n_calls += 1;
        self.operation.time += self.start.elapsed();
    }
}
