//! The loss on a card: the products of the linear layer, and one kernel between them.

use super::{LogitsGradient, OutputLoss, OutputLossGradient, OutputLossShape, RowLosses};
use crate::{
    Cuda,
    cuda::{Address, Launch, Parameters},
    linear::Weight,
    memory::{DeviceSlice, Store},
};

/// Threads that share a row, or the sum of losses; as in `output_loss.cu`.
const N_THREADS: u32 = 512;

impl OutputLoss for Cuda {
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
        let mut call = self.call("sum of losses");
        let parameters = Parameters::new()
            .address(call.read(losses))
            .address(call.write(sum.first(1)))
            .extent(losses.len())
            .u32(u32::from(store == Store::Accumulate));
        // SAFETY: both arguments were cut to these extents.
        unsafe { call.launch("output_loss_sum", Launch::linear(1, N_THREADS), parameters) };
    }
}

impl RowLosses for Cuda {
    fn row_losses(
        &mut self,
        vocabulary: usize,
        logits: DeviceSlice<f32>,
        targets: DeviceSlice<u32>,
        losses: DeviceSlice<f32>,
        gradient: Option<LogitsGradient>,
    ) {
        let n = targets.len();
        let mut call = self.call("cross-entropy");
        let parameters = Parameters::new()
            .address(call.write(logits.first(n * vocabulary)))
            .address(match gradient.and_then(|gradient| gradient.rounded) {
                Some(rounded) => call.write(rounded.first(n * vocabulary)),
                None => Address::NULL,
            })
            .address(call.read(targets))
            .address(call.write(losses.first(n)))
            .extent(vocabulary)
            .f32(gradient.map_or(0.0, |gradient| gradient.scale))
            .u32(u32::from(gradient.is_some()));
        // SAFETY: each slice was cut to the extents above; targets beyond the vocabulary are not looked
        // up.
        unsafe { call.launch("output_loss_rows", Launch::linear(n, N_THREADS), parameters) };
    }
}
