//! Products with very few rows, as in writing text: the weight is read once, front to back, and
//! never packed.

use super::{Extents, Operand, Place, operand::round};
use crate::{
    Store,
    cpu::{
        math::{dot, for_each_isa},
        parallel::{Shared, for_each_task},
    },
};

/// The most rows for which packing a weight costs more than it saves.
const MAX_ROWS: usize = 4;

/// Elements of a weight's row expanded at a time.
const RUN: usize = 512;

/// Rows of the weight in a task.
const TASK_ROWS: usize = 16;

/// Bytes of workspace: the rounded rows.
pub(crate) fn few_rows_workspace_bytes(extents: Extents) -> usize {
    extents.m.min(MAX_ROWS).saturating_mul(extents.k).saturating_mul(size_of::<f32>())
}

for_each_isa! {
    /// `sums[i] += a_i · run` for each row `i` of `a`, `stride` apart.
    fn add_dots(a: &[f32], stride: usize, run: &[f32], sums: &mut [f32]) {
        for (i, sum) in sums.iter_mut().enumerate() {
            *sum += dot(&a[i * stride..i * stride + run.len()], run);
        }
    }
}

/// `c (store) a · bᵀ` with `a` `[m, k]` and `b` stored `[n, k]`, if there are few enough rows;
/// returns whether it was done.
pub(crate) fn few_rows(
    place: Place<'_>,
    extents: Extents,
    a: &[f32],
    b: Operand<'_>,
    store: Store,
    c: &mut [f32],
    workspace: &mut [f32],
) -> bool {
    let Extents { m, n, k } = extents;
    if m > MAX_ROWS || k == 0 {
        return false;
    }
    let rounded = &mut workspace[..m * k];
    rounded.copy_from_slice(&a[..m * k]);
    round(place.isa, place.compute, rounded);
    let rounded = &*rounded;
    let shared = Shared::new(&mut c[..m * n]);
    for_each_task(place.pool, n.div_ceil(TASK_ROWS), |task| {
        let mut run = [0.0_f32; RUN];
        for column in task * TASK_ROWS..((task + 1) * TASK_ROWS).min(n) {
            let mut sums = [0.0_f32; MAX_ROWS];
            for start in (0..k).step_by(RUN) {
                let run = &mut run[..RUN.min(k - start)];
                b.values.expand(place.isa, column * b.stride + start, run);
                round(place.isa, place.compute, run);
                add_dots(place.isa, &rounded[start..], k, run, &mut sums[..m]);
            }
            for (row, sum) in sums[..m].iter().enumerate() {
                // SAFETY: tasks own different columns, and C outlives them.
                let c = unsafe { &mut *shared.part(row * n + column, 1) };
                *c = if store == Store::Overwrite { *sum } else { *c + sum };
            }
        }
    });
    true
}
