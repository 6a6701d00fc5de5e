//! The loss on the processor: the products of the linear layer, and one pass over each chunk of
//! logits between them.

use super::{LogitsGradient, OutputLoss, OutputLossGradient, OutputLossShape, RowLosses};
use crate::{
    Cpu,
    cpu::{
        math::{LANES, add_up, exp, for_each_isa},
        parallel::{Shared, for_each_part},
    },
    linear::Weight,
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
                    *logit = exp::<FUSED>(*logit - highest);
                    *sum += *logit;
                }
            }
        } else {
            for chunk in chunks {
                for (sum, logit) in sums.iter_mut().zip(chunk) {
                    *sum += exp::<FUSED>(*logit - highest);
                }
            }
        }
        for (sum, logit) in sums.iter_mut().zip(rest) {
            let term = exp::<FUSED>(*logit - highest);
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
        super::in_chunks(self, shape, (x, weight), targets, losses, gradient, workspace);
    }

    fn sum_losses(&mut self, losses: DeviceSlice<f32>, sum: DeviceSlice<f64>, store: Store) {
        let mut access = self.access("sum of losses");
        let of_batch: f64 = access.read(losses).iter().map(|&loss| f64::from(loss)).sum();
        let sum = &mut access.write(sum)[0];
        *sum = match store {
            Store::Overwrite => of_batch,
            Store::Accumulate => *sum + of_batch,
        };
    }
}

impl RowLosses for Cpu {
    fn row_losses(
        &mut self,
        vocabulary: usize,
        logits: DeviceSlice<f32>,
        targets: DeviceSlice<u32>,
        losses: DeviceSlice<f32>,
        gradient: Option<LogitsGradient>,
    ) {
        assert!(gradient.is_none_or(|gradient| gradient.rounded.is_none()), "rounded elsewhere");
        let scale = gradient.map(|gradient| gradient.scale);
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
