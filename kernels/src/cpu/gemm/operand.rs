//! Operands as they are stored, and their way into panels.

use std::ops::Range;

#[cfg(target_arch = "x86_64")]
use super::f32_panels::{self, Part};
use super::{
    expand::{Panels, RUN, Values},
    kernels::{Elements, Kernel},
    layout::{LANES_AHEAD, Layout, STEPS_AHEAD},
    transpose::{LANES, STEPS, transpose},
};
use crate::{Compute, Isa, amx::ROW_PAIRS};

/// A matrix as the product sees it: lanes (rows of A, columns of B) by depth (k).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Operand<'a> {
    pub values: Values<'a>,
    pub layout: Layout,
    /// Elements between rows of the stored matrix.
    pub stride: usize,
}

/// What panels are made of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Form {
    pub isa: Isa,
    pub compute: Compute,
    pub elements: Elements,
    /// Of which operand they are.
    pub side: Side,
    /// Lanes of a panel.
    pub width: usize,
}

/// An operand's part in a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// A: its lanes are rows of C.
    Rows,
    /// B: its lanes are columns of C.
    Columns,
}

impl Form {
    /// Panels that `kernel` reads.
    pub fn new((isa, compute): (Isa, Compute), kernel: &Kernel, side: Side) -> Self {
        let width = match side {
            Side::Rows => kernel.n_rows,
            Side::Columns => kernel.n_columns,
        };
        Self { isa, compute, elements: kernel.elements, side, width }
    }

    /// Whether a panel has a block of each lane after another.
    fn has_blocks_of_lanes(&self) -> bool {
        self.elements == Elements::PairBlocks && self.side == Side::Rows
    }

    /// Packed elements of `depth` steps of k.
    pub fn packed_depth(&self, depth: usize) -> usize {
        self.elements.packed_depth(depth)
    }
}

impl<'a> Operand<'a> {
    /// An f32 matrix `[lanes, k]`, or `[k, lanes]` in the other layout.
    pub fn f32(values: &'a [f32], layout: Layout, stride: usize) -> Self {
        Self { values: Values::F32(values), layout, stride }
    }

    /// Panics when the stored matrix is smaller than its extents.
    pub fn check(&self, n_lanes: usize, depth: usize) {
        let (n_rows, n_columns) = match self.layout {
            Layout::Depth => (n_lanes, depth),
            Layout::Lanes => (depth, n_lanes),
        };
        let needed = (n_rows - 1) * self.stride + n_columns;
        let there = self.values.len();
        assert!(there >= needed, "an operand of {there} elements where {needed} are needed");
    }

    /// Packs `lanes` × `depth` into panels: for each step of k the lanes' elements, f32 or pairs of
    /// bf16 as bits, in the order that [`Elements`] tells. Halves of pairs that do not exist are zero, as is
    /// what fills a block; of lanes that do not, anything: their sums are nobody's.
    pub(super) fn pack(
        &self,
        form: Form,
        lanes: Range<usize>,
        depth: Range<usize>,
        packed: &mut [u32],
    ) {
        let Form { elements, width, .. } = form;
        let bf16_pairs = elements.are_pairs();
        let steps = form.packed_depth(depth.len());
        let n_panels = lanes.len().div_ceil(width);
        let packed = &mut packed[..n_panels * width * steps];
        if form.has_blocks_of_lanes() {
            return self.pack_blocks(form, lanes, depth, packed);
        }
        if elements == Elements::PairBlocks {
            let form = Form { elements: Elements::Pairs, ..form };
            let there = form.packed_depth(depth.len());
            if there < steps {
                // Panel by panel, as each has steps that do not exist.
                let first_lanes = lanes.clone().step_by(width);
                for (panel, first) in packed.chunks_exact_mut(width * steps).zip(first_lanes) {
                    let lanes = first..(first + width).min(lanes.end);
                    self.pack(form, lanes, depth.clone(), &mut panel[..width * there]);
                    panel[width * there..].fill(0);
                }
                return;
            }
        }
        #[cfg(target_arch = "x86_64")]
        if bf16_pairs {
            let (matrix, panels) = ((self.layout, self.stride), (&mut *packed, width));
            if self.values.pack_panels(form.isa, matrix, lanes.clone(), depth.clone(), panels) {
                return;
            }
        } else if form.isa >= Isa::Avx2 && form.compute == Compute::F32 {
            let Self { layout, stride, .. } = *self;
            let part = Part { layout, stride, lanes: lanes.clone(), depth: depth.clone() };
            // SAFETY: the device was made with instructions that this processor has.
            if unsafe { f32_panels::pack(&self.values, part, (packed, width)) } {
                return;
            }
        }
        if !bf16_pairs && !lanes.len().is_multiple_of(width) {
            // What lies there could be denormal numbers, with which some processors multiply slowly.
            packed[(n_panels - 1) * width * steps..].fill(0);
        }
        match self.layout {
            Layout::Depth => self.pack_depth(form, lanes, depth, steps, packed),
            Layout::Lanes => self.pack_lanes(form, lanes, depth, steps, packed),
        }
    }

    /// A few lanes at a time into rows of packed elements, which are then turned.
    fn pack_depth(
        &self,
        form: Form,
        lanes: Range<usize>,
        depth: Range<usize>,
        steps: usize,
        packed: &mut [u32],
    ) {
        let Form { isa, compute, elements, width, .. } = form;
        let bf16_pairs = elements.are_pairs();
        let k_per_step = if bf16_pairs { 2 } else { 1 };
        let mut rows = [0_u32; LANES * STEPS];
        for (panel, packed) in packed.chunks_exact_mut(width * steps).enumerate() {
            let first_lane = lanes.start + panel * width;
            let n_lanes = width.min(lanes.end - first_lane);
            for column in (0..n_lanes).step_by(LANES) {
                let n_lanes = LANES.min(n_lanes - column);
                for first_step in (0..steps).step_by(STEPS) {
                    let n_steps = STEPS.min(steps - first_step);
                    let start = depth.start + first_step * k_per_step;
                    let n = (n_steps * k_per_step).min(depth.end - start);
                    let from = (first_lane + column) * self.stride + start;
                    let target = &mut packed[first_step * width + column..];
                    if bf16_pairs
                        && self.values.pairs_turned(
                            isa,
                            (from, self.stride),
                            n_lanes,
                            n,
                            target,
                            width,
                        )
                    {
                        continue;
                    }
                    for (lane, row) in rows.chunks_exact_mut(STEPS).take(n_lanes).enumerate() {
                        let from = (first_lane + column + lane) * self.stride + start;
                        self.values.prefetch(from + LANES_AHEAD * self.stride, n);
                        if bf16_pairs {
                            self.values.pairs_along(isa, from, n, row);
                        } else {
                            let row = bytemuck::cast_slice_mut(&mut row[..n]);
                            self.values.fill(isa, compute, from, row);
                        }
                    }
                    transpose(isa, (&rows, STEPS), n_lanes, n_steps, target, width);
                }
            }
        }
    }

    /// The stored rows are the panels' rows; pairs join two of them.
    fn pack_lanes(
        &self,
        form: Form,
        lanes: Range<usize>,
        depth: Range<usize>,
        steps: usize,
        packed: &mut [u32],
    ) {
        let Form { isa, compute, elements, width, .. } = form;
        let bf16_pairs = elements.are_pairs();
        let k_per_step = if bf16_pairs { 2 } else { 1 };
        // Whole panels, as many as a run holds.
        let lanes_per_run = RUN / width * width;
        let mut pairs = [0_u32; RUN];
        let mut run = [0.0_f32; RUN];
        for first_lane in lanes.clone().step_by(lanes_per_run) {
            let n = lanes_per_run.min(lanes.end - first_lane);
            let first_panel = (first_lane - lanes.start) / width;
            for step in 0..steps {
                for k in 0..k_per_step {
                    let k = depth.start + (step + STEPS_AHEAD) * k_per_step + k;
                    self.values.prefetch(k * self.stride + first_lane, n);
                }
                let packed = &mut packed[(first_panel * steps + step) * width..];
                let mut done = 0;
                let elements = if bf16_pairs {
                    let k = depth.start + 2 * step;
                    let second = (k + 1 < depth.end).then(|| (k + 1) * self.stride + first_lane);
                    let first = k * self.stride + first_lane;
                    if let Some(second) = second {
                        let has_next = step + 1 < steps;
                        let panels = Panels { width, stride: steps * width, has_next };
                        done = self.values.panels_across(isa, [first, second], n, panels, packed);
                    }
                    if done == n {
                        continue;
                    }
                    let pairs = &mut pairs[..n - done];
                    let second = second.map(|second| second + done);
                    self.values.pairs_across(isa, first + done, second, pairs);
                    &*pairs
                } else {
                    let from = (depth.start + step) * self.stride + first_lane;
                    let run = self.values.expand(isa, compute, from, &mut run[..n]);
                    bytemuck::cast_slice(run)
                };
                let packed = &mut packed[done / width * steps * width..];
                match width {
                    4 => spread::<4>(elements, packed, steps),
                    6 => spread::<6>(elements, packed, steps),
                    8 => spread::<8>(elements, packed, steps),
                    14 => spread::<14>(elements, packed, steps),
                    16 => spread::<16>(elements, packed, steps),
                    32 => spread::<32>(elements, packed, steps),
                    _ => unreachable!("no tile is {width} lanes wide"),
                }
            }
        }
    }
}

impl Operand<'_> {
    /// A's panels of blocks: of each lane [`ROW_PAIRS`] pairs, one lane after another, block by block.
    fn pack_blocks(
        &self,
        form: Form,
        lanes: Range<usize>,
        depth: Range<usize>,
        packed: &mut [u32],
    ) {
        let Form { isa, width, .. } = form;
        let steps = form.packed_depth(depth.len());
        for (panel, first) in
            packed.chunks_exact_mut(width * steps).zip(lanes.clone().step_by(width))
        {
            let n_lanes = width.min(lanes.end - first);
            match self.layout {
                Layout::Depth => {
                    for lane in 0..n_lanes {
                        let from = (first + lane) * self.stride + depth.start;
                        let panel = &mut panel[lane * ROW_PAIRS..];
                        self.values.blocks_along(isa, (from, depth.len()), panel, width);
                    }
                }
                Layout::Lanes => {
                    for lane in (0..n_lanes).step_by(LANES) {
                        let n_lanes = LANES.min(n_lanes - lane);
                        let from = depth.start * self.stride + first + lane;
                        let rows = (from, self.stride, depth.len());
                        let panel = &mut panel[lane * ROW_PAIRS..];
                        self.values.blocks_across(isa, rows, n_lanes, panel, width);
                    }
                }
            }
        }
    }
}

/// Copies elements to one step of each panel, `steps` long. The width is known to the compiler, as
/// a call for each few elements would take longer than the copy.
fn spread<const WIDTH: usize>(elements: &[u32], packed: &mut [u32], steps: usize) {
    let (whole, rest) = elements.as_chunks::<WIDTH>();
    let mut start = 0;
    for elements in whole {
        packed[start..start + WIDTH].copy_from_slice(elements);
        start += WIDTH * steps;
    }
    if !rest.is_empty() {
        packed[start..start + rest.len()].copy_from_slice(rest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cpu::float::bf16_bits,
        testing::{Nf4Parts, Random},
    };

    /// Pairs and f32 on every instruction set, in every layout; whole panels and blocks, and not.
    #[test]
    fn panels_hold_the_elements_as_they_are_multiplied_and_nothing_beyond_is_written() {
        const N_ROWS: usize = 192;
        const STRIDE: usize = 192;
        let mut random = Random::new(4);
        let plain = random.normal(N_ROWS * STRIDE);
        let narrow: Vec<_> = plain.iter().map(|&value| half::bf16::from_f32(value)).collect();
        let parts = Nf4Parts::quantize(&plain);
        let stored = [
            (Values::F32(&plain), plain.clone()),
            (Values::Bf16(&narrow), narrow.iter().map(|value| value.to_f32()).collect()),
            (Values::Nf4(parts.stored()), parts.values()),
        ];
        let ranges =
            [0..64, 64..192, 32..96, 96..192, 0..16, 5..70, 3..4, 128..191, 8..24, 16..80, 48..80];
        let mut packed = Vec::new();
        for isa in Isa::available() {
            for (values, expected) in &stored {
                let rounded: Vec<_> = expected.iter().map(|&value| bf16_bits(value)).collect();
                let whole: Vec<_> = expected.iter().map(|value| value.to_bits()).collect();
                for ((elements, side, widths), layout) in [
                    // None of the panels with pairs is six wide.
                    (Elements::F32, Side::Rows, &[6, 8, 14, 16, 32][..]),
                    (Elements::Pairs, Side::Rows, &[8, 14, 16, 32]),
                    (Elements::PairBlocks, Side::Rows, &[16, 32]),
                    (Elements::PairBlocks, Side::Columns, &[16, 32]),
                ]
                .into_iter()
                .flat_map(|form| [(form, Layout::Depth), (form, Layout::Lanes)])
                {
                    let operand = Operand { values: *values, layout, stride: STRIDE };
                    let (bits, compute) = if elements.are_pairs() {
                        (&rounded, Compute::Bf16)
                    } else {
                        (&whole, Compute::F32)
                    };
                    for &width in widths {
                        for (lanes, depth) in ranges.iter().flat_map(|lanes| {
                            ranges.iter().map(move |depth| (lanes.clone(), depth.clone()))
                        }) {
                            let form = Form { isa, compute, elements, side, width };
                            let steps = form.packed_depth(depth.len());
                            let len = lanes.len().next_multiple_of(width) * steps;
                            packed.clear();
                            packed.resize(len + 40, u32::MAX);
                            operand.pack(form, lanes.clone(), depth.clone(), &mut packed);
                            let at = |lane: usize, k: usize| match layout {
                                _ if k >= depth.end => 0,
                                Layout::Depth => bits[lane * STRIDE + k],
                                Layout::Lanes => bits[k * STRIDE + lane],
                            };
                            for (i, &found) in packed.iter().enumerate() {
                                let panel = i / width / steps;
                                let (step, lane) = if form.has_blocks_of_lanes() {
                                    let block = i / width % steps / ROW_PAIRS;
                                    let step = block * ROW_PAIRS + i % ROW_PAIRS;
                                    (step, i / ROW_PAIRS % width)
                                } else {
                                    (i / width % steps, i % width)
                                };
                                let lane = lanes.start + panel * width + lane;
                                let expected = match i {
                                    _ if i >= len => u32::MAX,
                                    // Anything.
                                    _ if lane >= lanes.end => continue,
                                    _ if elements.are_pairs() => {
                                        let k = depth.start + 2 * step;
                                        at(lane, k) | at(lane, k + 1) << 16
                                    }
                                    _ => at(lane, depth.start + step),
                                };
                                assert_eq!(
                                    found, expected,
                                    "{isa} {elements:?} {side:?} {layout:?} {width}: {lanes:?} x {depth:?} at {i}"
                                );
                            }
                        }
                    }
                }
            }
        }
    }
}
