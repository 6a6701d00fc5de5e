//! The loss on the processor: the products of the linear layer, and one pass over each chunk of
//! logits between them.

use super::{OutputLoss, OutputLossGradient, OutputLossShape};
use crate::{
    Cpu,
    cpu::{
        math::{LANES, add_up, exp, for_each_isa},
        parallel::{Shared, for_each_part},
    },
    linear::{Linear, Weight},
    memory::{DeviceSlice, Store},
};

for_each_isa! {
    /// The loss of one row of logits; with a `scale`, the logits become their gradient.
    fn row_loss(logits: &mut [f32], target: usize, scale: Option<f32>, loss: &mut f32) {
        let mut highest = [f32::NEG_INFINITY; LANES];
        let (chunks, rest) = logits.as_chunks::<LANES>();
        for chunk in chunks {
            for (highest, logit) in highest.iter_mut().zip(chunk) {
                *highest = highest.max(*logit);
            }
        }
        let highest = highest.iter().chain(rest).fold(f32::NEG_INFINITY, |a, b| a.max(*b));
        let of_target = logits[target];

        let mut sums = [0.0; LANES];
        let (chunks, rest) = logits.as_chunks_mut::<LANES>();
        if scale.is_some() {
            // Each exponential is taken once, and kept in its logit's place.
            for chunk in chunks {
                for (sum, logit) in sums.iter_mut().zip(chunk) {
                    *logit = exp(*logit - highest);
                    *sum += *logit;
                }
            }
        } else {
            for chunk in chunks {
                for (sum, logit) in sums.iter_mut().zip(chunk) {
                    *sum += exp(*logit - highest);
                }
            }
        }
        for (sum, logit) in sums.iter_mut().zip(rest) {
            let term = exp(*logit - highest);
            *sum += term;
            if scale.is_some() {
                *logit = term;
            }
        }
        let total = add_up(sums);
        *loss = highest + total.ln() - of_target;
        if let Some(scale) = scale {
            let factor = scale / total;
            for logit in logits.iter_mut() {
                *logit *= factor;
            }
            logits[target] -= scale;
        }
    }
}

impl OutputLoss for Cpu {
    fn output_loss(
        &mut self,
        shape: OutputLossShape,
        x: DeviceSlice<f32>,
        weight: Weight,
        targets: DeviceSlice<u32>,
        losses: DeviceSlice<f32>,
        gradient: Option<OutputLossGradient>,
        workspace: DeviceSlice<u8>,
    ) {
        let OutputLossShape { n_rows, width, vocabulary, chunk_rows } = shape;
        let (logits, products) = (
            workspace.first(shape.logits_bytes()).cast::<f32>(),
            workspace.slice(shape.logits_bytes()..workspace.len()),
        );
        // Chunks of like size: each expands the whole output matrix, however few its rows.
        let chunk_rows = n_rows.div_ceil(n_rows.div_ceil(chunk_rows).max(1)).max(1);
        for first in (0..n_rows).step_by(chunk_rows) {
            let n = chunk_rows.min(n_rows - first);
            let chunk = shape.chunk(n);
            let rows = |matrix: DeviceSlice<f32>| {
                matrix.slice(first * width..(first + n) * width)
            };
            let logits = logits.first(n * vocabulary);
            self.linear(chunk, rows(x), weight, None, Store::Overwrite, logits, products);
            self.losses(
                vocabulary,
                logits,
                targets.slice(first..first + n),
                losses.slice(first..first + n),
                gradient.map(|gradient| gradient.scale),
            );
            let Some(gradient) = gradient else { continue };
            let (store, dx) = (Store::Overwrite, rows(gradient.dx));
            self.linear_input_gradient(chunk, logits, weight, store, dx, products);
            if let Some(dweight) = gradient.dweight {
                let store = Store::Accumulate;
                self.linear_weight_gradient(chunk, rows(x), logits, store, dweight, products);
            }
        }
    }
}

impl Cpu {
    /// The losses of a chunk of logits, which become their gradient if a `scale` is given.
    fn losses(
        &mut self,
        vocabulary: usize,
        logits: DeviceSlice<f32>,
        targets: DeviceSlice<u32>,
        losses: DeviceSlice<f32>,
        scale: Option<f32>,
    ) {
        let isa = self.isa();
        let mut access = self.access("cross-entropy");
        let targets = access.read(targets);
        let logits = access.write(logits);
        let losses = Shared::new(access.write(losses));
        for_each_part(access.pool(), logits, vocabulary, |row, logits| {
            // SAFETY: each row is one task's.
            let loss = unsafe { losses.slice(row, 1) };
            row_loss(isa, logits, targets[row] as usize, scale, &mut loss[0]);
        });
    }
}
