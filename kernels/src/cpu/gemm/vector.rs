//! Products with very few rows, as in writing text: the weight is read once, front to back, and
//! never packed.

use super::{
    Extents, Operand, Place,
    expand::{RUN, Values},
};
use crate::{
    Store,
    cpu::{
        math::for_each_isa,
        parallel::{Shared, for_each_task},
    },
};

/// The most rows for which packing a weight costs more than it saves.
pub(crate) const FEW_ROWS: usize = 2;

/// How far ahead elements are asked for: the processor foresees no further than a page.
const AHEAD: usize = 4 * RUN;

/// Rows of the weight in a task.
const TASK_ROWS: usize = 16;

/// Whether a product has so few rows.
pub(crate) fn is_few_rows(m: usize) -> bool {
    m <= FEW_ROWS
}

/// Bytes of workspace: the rounded rows.
pub(crate) fn few_rows_workspace_bytes(extents: Extents) -> usize {
    extents.m.min(FEW_ROWS).saturating_mul(extents.k).saturating_mul(size_of::<f32>())
}

/// Running sums of a product of two rows: four vectors of 16, since a core begins the next
/// multiplication before the last is done.
const SUMS: usize = 64;

for_each_isa! {
    /// `sums[i][k % SUMS] += a_i[k] · run[k]` for each row `i` of `a`, `stride` apart.
    fn add_products(a: &[f32], stride: usize, run: &[f32], sums: &mut [[f32; SUMS]]) {
        for (i, sums) in sums.iter_mut().enumerate() {
            let (a, a_rest) = a[i * stride..][..run.len()].as_chunks::<SUMS>();
            let (run, run_rest) = run.as_chunks::<SUMS>();
            let mut whole = *sums;
            for (a, run) in a.iter().zip(run) {
                for k in 0..SUMS {
                    whole[k] += a[k] * run[k];
                }
            }
            *sums = whole;
            for (sum, (a, run)) in sums.iter_mut().zip(a_rest.iter().zip(run_rest)) {
                *sum += a * run;
            }
        }
    }
}

/// Adds running sums by halves.
fn total(mut sums: [f32; SUMS]) -> f32 {
    let mut width = SUMS / 2;
    while width > 0 {
        let (low, high) = sums.split_at_mut(width);
        for (low, high) in low.iter_mut().zip(high) {
            *low += *high;
        }
        width /= 2;
    }
    sums[0]
}

/// `c (store) a · bᵀ` with `a` `[m, k]` and `b` stored `[n, k]`, if there are few enough rows;
/// returns whether it was done.
pub(crate) fn few_rows(
    place: Place<'_>,
    extents: Extents,
    a: Values<'_>,
    b: Operand<'_>,
    store: Store,
    c: &mut [f32],
    workspace: &mut [f32],
) -> bool {
    let Extents { m, n, k } = extents;
    if !is_few_rows(m) || n == 0 || k == 0 {
        return false;
    }
    b.check(n, k);
    let rounded = &mut workspace[..m * k];
    a.fill(place.isa, place.compute, 0, rounded);
    let rounded = &*rounded;
    let shared = Shared::new(&mut c[..m * n]);
    for_each_task(place.pool, n.div_ceil(TASK_ROWS), |task| {
        let mut run = [0.0_f32; RUN];
        for column in task * TASK_ROWS..((task + 1) * TASK_ROWS).min(n) {
            let mut sums = [[0.0_f32; SUMS]; FEW_ROWS];
            for start in (0..k).step_by(RUN) {
                let run = &mut run[..RUN.min(k - start)];
                let from = column * b.stride + start;
                b.values.prefetch(from + AHEAD, run.len());
                let run = b.values.expand(place.isa, place.compute, from, run);
                add_products(place.isa, &rounded[start..], k, run, &mut sums[..m]);
            }
            for (row, sums) in sums[..m].iter().enumerate() {
                // SAFETY: tasks own different columns, and C outlives them.
                let c = unsafe { &mut *shared.part(row * n + column, 1) };
                let sum = total(*sums);
                *c = if store == Store::Overwrite { sum } else { *c + sum };
            }
        }
    });
    true
}
