//! Quantisation on a card.

use super::{ABSMAX_GROUP, Nf4, Nf4Layout, Nf4Weight};
use crate::{
    Cuda,
    cuda::{Launch, Parameters},
    memory::DeviceSlice,
};

const N_THREADS: u32 = 256;
const WARP: u32 = 32;

impl Nf4 for Cuda {
    fn nf4_quantize(
        &mut self,
        source: DeviceSlice<f32>,
        weight: Nf4Weight,
        workspace: DeviceSlice<f32>,
    ) {
        let layout = Nf4Layout { n_elements: source.len() };
        let (n, n_blocks) = (layout.n_elements, layout.n_blocks());
        let weight = cut(weight, layout);
        let mut call = self.call("quantise");
        let source = call.read(source);
        let codes = call.write(weight.codes);
        let absmax_codes = call.write(weight.absmax_codes);
        let absmax_scales = call.write(weight.absmax_scales);
        let absmax_offset = call.write(weight.absmax_offset);
        let absmax = call.write(workspace.first(n_blocks));

        let blocks = Parameters::new().address(source).address(codes).address(absmax).u64(n as u64);
        let offset = Parameters::new().address(absmax).address(absmax_offset).u64(n_blocks as u64);
        let groups = Parameters::new()
            .address(absmax)
            .address(absmax_offset)
            .address(absmax_codes)
            .address(absmax_scales)
            .u64(n_blocks as u64);
        // A thread has eight numbers, and a warp eight absmax values a lane.
        let [over_blocks, over_groups] =
            [n, n_blocks].map(|n_numbers| Launch::covering(n_numbers.div_ceil(8), N_THREADS));
        // SAFETY: every part was cut to the layout of `n` numbers; the offset is one.
        unsafe {
            call.launch("nf4_quantize_blocks", over_blocks, blocks);
            call.launch("nf4_absmax_offset", Launch::linear(1, WARP), offset);
            call.launch("nf4_quantize_absmax", over_groups, groups);
        }
    }

    fn nf4_dequantize(&mut self, weight: Nf4Weight, destination: DeviceSlice<f32>) {
        let n = destination.len();
        let weight = cut(weight, Nf4Layout { n_elements: n });
        let mut call = self.call("dequantise");
        let parameters = Parameters::new()
            .address(call.read(weight.codes))
            .address(call.read(weight.absmax_codes))
            .address(call.read(weight.absmax_scales))
            .address(call.read(weight.absmax_offset))
            .address(call.write(destination))
            .u64(n as u64);
        // A thread has four numbers.
        let launch = Launch::covering(n.div_ceil(4), N_THREADS);
        // SAFETY: every part was cut to the layout of `n` numbers; the offset is one.
        unsafe { call.launch("nf4_dequantize", launch, parameters) };
    }
}

// A warp of `nf4_quantize_absmax` has a group.
const _: () = assert!(ABSMAX_GROUP == 8 * WARP as usize);

/// The parts that a tensor of `layout` takes.
fn cut(weight: Nf4Weight, layout: Nf4Layout) -> Nf4Weight {
    Nf4Weight {
        codes: weight.codes.first(layout.n_codes()),
        absmax_codes: weight.absmax_codes.first(layout.n_blocks()),
        absmax_scales: weight.absmax_scales.first(layout.n_groups()),
        absmax_offset: weight.absmax_offset.first(1),
    }
}
