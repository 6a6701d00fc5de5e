//! Attention on a card: which kernels run for which heads, on how many tiles.

use super::{Attention, AttentionShape, Segment};
use crate::{
    Compute, Cuda, DeviceProfile,
    cuda::{Address, Call, Launch, Parameters},
    memory::{DeviceSlice, FloatFormat, Floats},
};

/// The most numbers of a head that the kernels are made for.
pub const MAX_HEAD_SIZE: usize = 256;

const N_THREADS: u32 = 128;
const WARP: usize = 32;
/// Rows of a block's own tile, in `attention.cu`.
const OWN_ROWS: usize = 64;

/// A head's width as a kernel has it, and the rows of the tiles that visit it: in the forward pass, and
/// in the backward pass.
struct Width {
    width: usize,
    forward_rows: usize,
    backward_rows: usize,
}

impl Width {
    fn of(head_size: usize) -> Self {
        const WIDTHS: [(usize, usize, usize); 5] =
            [(32, 64, 64), (64, 64, 64), (96, 64, 32), (128, 64, 32), (256, 32, 16)];
        let found = WIDTHS.into_iter().find(|(width, ..)| head_size <= *width);
        let (width, forward_rows, backward_rows) = found.unwrap_or_else(|| {
            panic!("heads of {head_size} numbers, of {MAX_HEAD_SIZE} at most");
        });
        Self { width, forward_rows, backward_rows }
    }

    /// Shared memory of this many rows.
    fn shared_bytes(&self, n_rows: usize) -> usize {
        n_rows * (2 * self.width + 16)
    }
}

fn delta_bytes(shape: AttentionShape) -> usize {
    shape.n_rows.saturating_mul(shape.n_heads).saturating_mul(size_of::<f32>())
}

/// The backward pass keeps delta; the forward pass nothing.
pub(super) fn workspace_bytes(_: &DeviceProfile, shape: AttentionShape, backward: bool) -> usize {
    if backward { delta_bytes(shape) } else { 0 }
}

/// `Attention` of `attention.cu`; what a pass does not have is null.
#[derive(Clone, Copy)]
struct Arguments {
    segments: Address,
    q: Address,
    k: Address,
    v: Address,
    out: Address,
    log_sum_exp: Address,
    dout: Address,
    delta: Address,
    dq: Address,
    dk: Address,
    dv: Address,
    are_rounded: bool,
    is_out_rounded: bool,
}

impl Arguments {
    /// What both passes read, for an output like `out`.
    fn read(
        call: &mut Call<'_>,
        shape: AttentionShape,
        segments: DeviceSlice<Segment>,
        [q, k, v]: [Floats; 3],
        out: Floats,
    ) -> Self {
        let (n, n_keys) = lengths(shape);
        let is_rounded = |floats: Floats| floats.format() == FloatFormat::Bf16;
        let are_rounded = is_rounded(q);
        assert!([k, v].map(is_rounded) == [are_rounded; 2], "inputs in different formats");
        let any = are_rounded || is_rounded(out);
        assert!(!any || call.compute() == Compute::Bf16, "what was to be in f32, as products are");
        let none = Address::NULL;
        Self {
            segments: call.read(segments),
            q: call.read_floats(q.first(n)),
            k: call.read_floats(k.first(n_keys)),
            v: call.read_floats(v.first(n_keys)),
            out: none,
            log_sum_exp: none,
            dout: none,
            delta: none,
            dq: none,
            dk: none,
            dv: none,
            are_rounded,
            is_out_rounded: is_rounded(out),
        }
    }

    fn parameters(&self, shape: AttentionShape) -> Parameters {
        let Self { segments, q, k, v, out, log_sum_exp, dout, delta, dq, dk, dv, .. } = *self;
        let all = [segments, q, k, v, out, log_sum_exp, dout, delta, dq, dk, dv];
        // No segment has as many keys.
        let window = shape.window.and_then(|window| u32::try_from(window).ok());
        all.into_iter()
            .fold(Parameters::new(), Parameters::address)
            .extent(shape.n_heads)
            .extent(shape.n_kv_heads)
            .extent(shape.head_size)
            .u32(window.unwrap_or(u32::MAX))
            .f32(shape.scale)
            .extent(shape.n_rows)
            .u32(u32::from(self.are_rounded))
            .u32(u32::from(self.is_out_rounded))
    }
}

/// Numbers of `q`, and of `k`.
fn lengths(shape: AttentionShape) -> (usize, usize) {
    let AttentionShape { n_rows, n_key_rows, n_heads, n_kv_heads, head_size, .. } = shape;
    (n_rows * n_heads * head_size, n_key_rows * n_kv_heads * head_size)
}

/// Tiles of `rows` rows for each head of each segment.
fn launch(n_rows: usize, rows: usize, n_heads: usize, n_segments: usize) -> Launch {
    let grid = [n_rows.div_ceil(rows) as u32, n_heads as u32, n_segments as u32];
    Launch { grid, ..Launch::linear(1, N_THREADS) }
}

impl Attention for Cuda {
    fn attention(
        &mut self,
        shape: AttentionShape,
        segments: DeviceSlice<Segment>,
        q: Floats,
        k: Floats,
        v: Floats,
        out: Floats,
        log_sum_exp: DeviceSlice<f32>,
        _workspace: DeviceSlice<u8>,
    ) {
        let (n, n_segments) = (lengths(shape).0, segments.len());
        let (out, log_sum_exp) = (out.first(n), log_sum_exp.first(shape.n_rows * shape.n_heads));
        let mut call = self.call("attention");
        let read = Arguments::read(&mut call, shape, segments, [q, k, v], out);
        let arguments =
            Arguments { out: call.write_floats(out), log_sum_exp: call.write(log_sum_exp), ..read };
        count_flops(&mut call, shape, 4.0);
        let parameters = arguments.parameters(shape);
        // SAFETY: all arguments were cut to the extents of `shape`, and segments lie within them.
        unsafe {
            // For rows of no segment.
            call.clear(arguments.out, out.n_bytes());
            call.clear(arguments.log_sum_exp, log_sum_exp.n_bytes());
            if call.compute() == Compute::F32 {
                let rows = N_THREADS as usize / WARP;
                let launch = launch(shape.max_segment, rows, shape.n_heads, n_segments);
                call.launch("attention_in_f32_forward", launch, parameters);
                return;
            }
            let width = Width::of(shape.head_size);
            let shared_bytes = width.shared_bytes(OWN_ROWS + 2 * width.forward_rows);
            let launch = launch(shape.max_segment, OWN_ROWS, shape.n_heads, n_segments);
            let kernel = format!("attention_forward_{}", width.width);
            call.launch(&kernel, launch.with_shared_bytes(shared_bytes), parameters);
        }
    }

    fn attention_backward(
        &mut self,
        shape: AttentionShape,
        segments: DeviceSlice<Segment>,
        q: Floats,
        k: Floats,
        v: Floats,
        out: Floats,
        log_sum_exp: DeviceSlice<f32>,
        dout: DeviceSlice<f32>,
        dq: DeviceSlice<f32>,
        dk: DeviceSlice<f32>,
        dv: DeviceSlice<f32>,
        workspace: DeviceSlice<u8>,
    ) {
        let ((n, n_keys), n_segments) = (lengths(shape), segments.len());
        let n_rows_of_heads = shape.n_rows * shape.n_heads;
        let (dq, dk, dv) = (dq.first(n), dk.first(n_keys), dv.first(n_keys));
        let mut call = self.call("attention backward");
        let read = Arguments::read(&mut call, shape, segments, [q, k, v], out);
        let arguments = Arguments {
            out: call.read_floats(out.first(n)),
            log_sum_exp: call.read(log_sum_exp.first(n_rows_of_heads)),
            dout: call.read(dout.first(n)),
            delta: call.write(workspace.first(delta_bytes(shape)).cast::<f32>()),
            dq: call.write(dq),
            dk: call.write(dk),
            dv: call.write(dv),
            ..read
        };
        count_flops(&mut call, shape, 10.0);
        let parameters = arguments.parameters(shape);
        // SAFETY: as in the forward pass.
        unsafe {
            for (address, slice) in [(arguments.dq, dq), (arguments.dk, dk), (arguments.dv, dv)] {
                call.clear(address, slice.n_bytes());
            }
            let over_rows = n_rows_of_heads.div_ceil(N_THREADS as usize / WARP);
            let over_rows = Launch::linear(over_rows, N_THREADS);
            if call.compute() == Compute::F32 {
                call.launch("attention_in_f32_delta", over_rows, parameters);
                let rows = N_THREADS as usize / WARP;
                let over_queries = launch(shape.max_segment, rows, shape.n_heads, n_segments);
                call.launch("attention_in_f32_query_gradient", over_queries, parameters);
                // A segment may have more keys than queries.
                let over_keys = launch(shape.n_key_rows, rows, shape.n_kv_heads, n_segments);
                call.launch("attention_in_f32_key_value_gradient", over_keys, parameters);
                return;
            }
            call.launch("attention_delta", over_rows, parameters);
            let width = Width::of(shape.head_size);
            let shared_bytes = width.shared_bytes(2 * OWN_ROWS + 2 * width.backward_rows);
            let over_queries = launch(shape.max_segment, OWN_ROWS, shape.n_heads, n_segments);
            let kernel = format!("attention_query_gradient_{}", width.width);
            call.launch(&kernel, over_queries.with_shared_bytes(shared_bytes), parameters);
            let over_keys = launch(shape.n_key_rows, OWN_ROWS, shape.n_kv_heads, n_segments)
                .with_shared_bytes(shared_bytes);
            // Of the widest heads, both gradients do not fit the registers together.
            let gradients: &[&str] =
                if width.width == MAX_HEAD_SIZE { &["key", "value"] } else { &["key_value"] };
            for gradient in gradients {
                let kernel = format!("attention_{gradient}_gradient_{}", width.width);
                call.launch(&kernel, over_keys, parameters);
            }
        }
    }
}

/// Of one sequence of all rows that sees everything before it: the device does not know the segments.
fn count_flops(call: &mut Call<'_>, shape: AttentionShape, per_pair: f64) {
    let AttentionShape { n_rows, n_key_rows, n_heads, head_size, window, max_segment, .. } = shape;
    call.count_flops(|| {
        let seen = window.unwrap_or(usize::MAX).min(n_key_rows) as f64;
        let pairs = n_rows as f64 * seen.min(max_segment as f64 / 2.0).max(1.0);
        per_pair * pairs * (n_heads * head_size) as f64
    });
}
