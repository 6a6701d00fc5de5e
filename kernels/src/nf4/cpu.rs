//! Quantisation on the processor.

use super::{ABSMAX_GROUP, BLOCK, Nf4, Nf4Weight, host};
use crate::{
    Cpu,
    cpu::parallel::{CHUNK, Shared, for_each_part, for_each_task},
    memory::DeviceSlice,
};

const _: () = assert!(CHUNK.is_multiple_of(BLOCK));

impl Nf4 for Cpu {
    fn nf4_quantize(
        &mut self,
        source: DeviceSlice<f32>,
        weight: Nf4Weight,
        workspace: DeviceSlice<f32>,
    ) {
        let isa = self.isa();
        let mut access = self.access("quantise");
        let source = access.read(source);
        let codes = access.write(weight.codes);
        let absmax_codes = access.write(weight.absmax_codes);
        let absmax_scales = access.write(weight.absmax_scales);
        let absmax_offset = access.write(weight.absmax_offset);
        let absmax = &mut access.write(workspace)[..source.len().div_ceil(BLOCK)];
        let (codes, blocks) = (Shared::new(codes), Shared::new(absmax));
        for_each_task(access.pool(), source.len().div_ceil(CHUNK), |task| {
            let source = &source[task * CHUNK..];
            let source = &source[..CHUNK.min(source.len())];
            // SAFETY: a task begins at a block's start, and each has its own blocks.
            let (codes, absmax) = unsafe {
                (
                    codes.slice(task * CHUNK / 2, source.len().div_ceil(2)),
                    blocks.slice(task * CHUNK / BLOCK, source.len().div_ceil(BLOCK)),
                )
            };
            host::quantize_blocks(isa, source, codes, absmax);
        });
        absmax_offset[0] = host::absmax_offset(absmax);
        host::quantize_absmax(absmax, absmax_offset[0], absmax_codes, absmax_scales);
    }

    fn nf4_dequantize(&mut self, weight: Nf4Weight, destination: DeviceSlice<f32>) {
        let mut access = self.access("dequantise");
        let codes = access.read(weight.codes);
        let absmax_codes = access.read(weight.absmax_codes);
        let absmax_scales = access.read(weight.absmax_scales);
        let absmax_offset = access.read(weight.absmax_offset)[0];
        let destination = access.write(destination);
        // A task begins at a group's start, so that it is a quantised tensor of its own.
        const LEN: usize = BLOCK * ABSMAX_GROUP;
        for_each_part(access.pool(), destination, LEN, |group, values| {
            host::dequantize(
                &codes[group * LEN / 2..],
                &absmax_codes[group * ABSMAX_GROUP..],
                &absmax_scales[group..],
                absmax_offset,
                values,
            );
        });
    }
}
