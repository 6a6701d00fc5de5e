//! Attention on a card: which kernels run for which heads, on how many tiles.

use half::bf16;

use super::{Attention, AttentionShape, Segment};
use crate::{
    Compute, Cuda, DeviceProfile,
    cuda::{Address, Call, Launch, Parameters, product},
    memory::{DeviceSlice, FloatFormat, Floats},
};

/// The most numbers of a head that the kernels are made for.
pub const MAX_HEAD_SIZE: usize = 256;

const N_THREADS: u32 = 128;
const WARP: usize = 32;
/// Rows of a block's own tile, in `attention.cu`.
const OWN_ROWS: usize = 64;

/// A head's width as a kernel has it, and the rows of the tiles that visit it in the forward pass and in the
/// backward pass.
#[derive(Debug)]
struct Width {
    width: usize,
    forward_rows: usize,
    backward_rows: usize,
}

impl Width {
    const ALL: [Self; 5] = [
        Self::new(32, 64, 32),
        Self::new(64, 64, 32),
        Self::new(96, 64, 32),
        Self::new(128, 64, 16),
        Self::new(256, 32, 16),
    ];

    const fn new(width: usize, forward_rows: usize, backward_rows: usize) -> Self {
        Self { width, forward_rows, backward_rows }
    }

    fn of(head_size: usize) -> &'static Self {
        let found = Self::ALL.iter().find(|width| head_size <= width.width);
        found.unwrap_or_else(|| {
            panic!("heads of {head_size} numbers, of {MAX_HEAD_SIZE} at most");
        })
    }

    /// Bytes of the tiles of the forward pass: queries, keys and values.
    fn forward_bytes(&self) -> usize {
        self.bytes(OWN_ROWS + 2 * self.forward_rows)
    }

    /// Of the queries' gradient: queries, `dout`, values, and two tiles of keys.
    fn query_gradient_bytes(&self) -> usize {
        self.bytes(2 * OWN_ROWS + 3 * self.backward_rows)
    }

    /// Of the keys' and values' gradients: keys, values, and two tiles of queries with `dout`.
    fn key_gradient_bytes(&self) -> usize {
        self.bytes(2 * OWN_ROWS + 4 * self.backward_rows)
    }

    /// Shared memory of this many rows.
    fn bytes(&self, n_rows: usize) -> usize {
        n_rows * self.width * size_of::<bf16>()
    }
}

fn delta_bytes(shape: AttentionShape) -> usize {
    product::f32_bytes(shape.n_rows.saturating_mul(shape.n_heads))
}

/// Of `dout` as products in bf16 see it.
fn seen_bytes(compute: Compute, shape: AttentionShape) -> usize {
    match compute {
        Compute::F32 => 0,
        Compute::Bf16 => {
            let n = shape.n_rows.saturating_mul(shape.n_heads).saturating_mul(shape.head_size);
            product::aligned(n.saturating_mul(size_of::<bf16>()))
        }
    }
}

/// The backward pass keeps delta and what products see of `dout`; the forward pass nothing.
pub(super) fn workspace_bytes(
    profile: &DeviceProfile,
    shape: AttentionShape,
    backward: bool,
) -> usize {
    if !backward {
        return 0;
    }
    delta_bytes(shape).saturating_add(seen_bytes(profile.compute, shape))
}

/// `Attention` of `attention.cu`; what a pass does not have is null.
#[derive(Clone, Copy)]
struct Arguments {
    segments: Address,
    n_segments: usize,
    q: Address,
    k: Address,
    v: Address,
    out: Address,
    log_sum_exp: Address,
    dout: Address,
    seen_dout: Address,
    delta: Address,
    dq: Address,
    dk: Address,
    dv: Address,
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
        let format = super::input_format(call.compute());
        assert!([q, k, v].map(|floats| floats.format()) == [format; 3], "not as products see them");
        let is_out_rounded = out.format() == FloatFormat::Bf16;
        assert!(!is_out_rounded || format == FloatFormat::Bf16, "an output that was to be in f32");
        let none = Address::NULL;
        Self {
            segments: call.read(segments),
            n_segments: segments.len(),
            q: call.read_floats(q.first(n)),
            k: call.read_floats(k.first(n_keys)),
            v: call.read_floats(v.first(n_keys)),
            out: none,
            log_sum_exp: none,
            dout: none,
            seen_dout: none,
            delta: none,
            dq: none,
            dk: none,
            dv: none,
            is_out_rounded,
        }
    }

    fn parameters(&self, shape: AttentionShape, first_head: usize) -> Parameters {
        let Self { segments, q, k, v, out, log_sum_exp, dout, .. } = *self;
        let Self { seen_dout, delta, dq, dk, dv, .. } = *self;
        let all = [segments, q, k, v, out, log_sum_exp, dout, seen_dout, delta, dq, dk, dv];
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
            .u32(u32::from(self.is_out_rounded))
            .extent(first_head)
            .extent(shape.n_key_rows)
            .extent(self.n_segments)
    }

    /// Queues the zeros of those of the first `n_rows` that are in no segment.
    ///
    /// # Safety
    /// As [`Call::launch`].
    unsafe fn clear_others(&self, call: &Call<'_>, shape: AttentionShape, n_rows: usize) {
        let over_rows = Launch::linear(n_rows.div_ceil(N_THREADS as usize / WARP), N_THREADS);
        // SAFETY: as the caller promises.
        unsafe { call.launch("attention_clear", over_rows, self.parameters(shape, 0)) };
    }

    /// Queues a pass that has blocks for each of `n_heads` heads, in as many launches as it takes.
    ///
    /// # Safety
    /// As [`Call::launch`].
    unsafe fn launch(
        &self,
        call: &Call<'_>,
        kernel: &str,
        (shape, n_heads): (AttentionShape, usize),
        launch: Launch,
        n_flops: f64,
    ) {
        let at_once = heads_at_once(call.launch_flops(), n_heads, n_flops);
        for first in (0..n_heads).step_by(at_once) {
            let [x, _, z] = launch.grid;
            let grid = [x, at_once.min(n_heads - first) as u32, z];
            // SAFETY: as the caller promises.
            unsafe {
                call.launch(kernel, Launch { grid, ..launch }, self.parameters(shape, first))
            };
        }
    }
}

/// Heads of a launch that may do `launch_flops`, one at least, where all take `n_flops`.
fn heads_at_once(launch_flops: f64, n_heads: usize, n_flops: f64) -> usize {
    let of_head = n_flops / n_heads.max(1) as f64;
    ((launch_flops / of_head) as usize).clamp(1, n_heads.max(1))
}

/// Numbers of `q`, and of `k`.
fn lengths(shape: AttentionShape) -> (usize, usize) {
    let AttentionShape { n_rows, n_key_rows, n_heads, n_kv_heads, head_size, .. } = shape;
    (n_rows * n_heads * head_size, n_key_rows * n_kv_heads * head_size)
}

/// Tiles of `rows` rows of each segment.
fn launch(n_rows: usize, rows: usize, n_segments: usize) -> Launch {
    let grid = [n_rows.div_ceil(rows) as u32, 1, n_segments as u32];
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
        let (queries, n_flops) = ((shape, shape.n_heads), flops(shape, 4.0));
        call.count_flops(|| n_flops);
        // SAFETY: all arguments were cut to the extents of `shape`, and segments lie within them.
        unsafe {
            arguments.clear_others(&call, shape, shape.n_rows);
            if call.compute() == Compute::F32 {
                let launch = launch(shape.max_segment, N_THREADS as usize / WARP, n_segments);
                arguments.launch(&call, "attention_in_f32_forward", queries, launch, n_flops);
                return;
            }
            let width = Width::of(shape.head_size);
            let launch = launch(shape.max_segment, OWN_ROWS, n_segments)
                .with_shared_bytes(width.forward_bytes());
            let kernel = format!("attention_forward_{}", width.width);
            arguments.launch(&call, &kernel, queries, launch, n_flops);
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
        let delta = delta_bytes(shape);
        let seen = seen_bytes(call.compute(), shape);
        let arguments = Arguments {
            out: call.read_floats(out.first(n)),
            log_sum_exp: call.read(log_sum_exp.first(n_rows_of_heads)),
            dout: call.read(dout.first(n)),
            seen_dout: call.write(workspace.slice(delta..delta + seen).cast::<bf16>()),
            delta: call.write(workspace.first(delta).cast::<f32>()),
            dq: call.write(dq),
            dk: call.write(dk),
            dv: call.write(dv),
            ..read
        };
        call.count_flops(|| flops(shape, 10.0));
        // Both passes make the scores and their gradients, which count once.
        let (queries, of_queries) = ((shape, shape.n_heads), flops(shape, 6.0));
        let (keys, of_keys) = ((shape, shape.n_kv_heads), flops(shape, 8.0));
        let parameters = arguments.parameters(shape, 0);
        // SAFETY: as in the forward pass.
        unsafe {
            arguments.clear_others(&call, shape, shape.n_rows.max(shape.n_key_rows));
            let over_rows = n_rows_of_heads.div_ceil(N_THREADS as usize / WARP);
            let over_rows = Launch::linear(over_rows, N_THREADS);
            if call.compute() == Compute::F32 {
                call.launch("attention_in_f32_delta", over_rows, parameters);
                let rows = N_THREADS as usize / WARP;
                let kernel = "attention_in_f32_query_gradient";
                let over_queries = launch(shape.max_segment, rows, n_segments);
                arguments.launch(&call, kernel, queries, over_queries, of_queries);
                // A segment may have more keys than queries.
                let kernel = "attention_in_f32_key_value_gradient";
                let over_keys = launch(shape.n_key_rows, rows, n_segments);
                arguments.launch(&call, kernel, keys, over_keys, of_keys);
                return;
            }
            call.launch("attention_delta", over_rows, parameters);
            let width = Width::of(shape.head_size);
            let over_queries = launch(shape.max_segment, OWN_ROWS, n_segments)
                .with_shared_bytes(width.query_gradient_bytes());
            let kernel = format!("attention_query_gradient_{}", width.width);
            arguments.launch(&call, &kernel, queries, over_queries, of_queries);
            let over_keys = launch(shape.n_key_rows, OWN_ROWS, n_segments)
                .with_shared_bytes(width.key_gradient_bytes());
            // Of the widest heads, both gradients do not fit the registers together.
            let gradients: &[&str] =
                if width.width == MAX_HEAD_SIZE { &["key", "value"] } else { &["key_value"] };
            for gradient in gradients {
                let kernel = format!("attention_{gradient}_gradient_{}", width.width);
                arguments.launch(&call, &kernel, keys, over_keys, of_keys);
            }
        }
    }
}

/// Operations of one sequence of all rows that sees everything before it: the device does not know the segments.
fn flops(shape: AttentionShape, per_pair: f64) -> f64 {
    let AttentionShape { n_rows, n_key_rows, n_heads, head_size, window, max_segment, .. } = shape;
    let seen = window.unwrap_or(usize::MAX).min(n_key_rows) as f64;
    let pairs = n_rows as f64 * seen.min(max_segment as f64 / 2.0).max(1.0);
    per_pair * pairs * (n_heads * head_size) as f64
}

#[cfg(test)]
mod tests {
    use super::super::tests::{cases, inputs, run};
    use super::*;
    use crate::cuda::{
        MAX_SHARED_BYTES,
        code::occupancy::{GAMING_CARDS, kernels_of_gaming_cards},
        launch_flops,
    };

    #[test]
    fn launches_of_a_head_each_give_the_bits_of_one_of_all() {
        for compute in [Compute::F32, Compute::Bf16] {
            for (shape, segments) in cases() {
                let inputs = inputs(&shape, 11);
                let [together, apart] = [f64::INFINITY, 0.0].map(|launch_flops| {
                    let mut cuda = Cuda::simulated(compute).unwrap();
                    cuda.launch_flops = launch_flops;
                    let results =
                        run(&mut cuda, shape, &segments, inputs.each_ref().map(|x| &x[..]));
                    results.map(|values| values.into_iter().map(f32::to_bits).collect::<Vec<_>>())
                });
                assert!(together == apart, "{shape:?}");
            }
        }
    }

    #[test]
    fn a_launch_does_what_a_slow_card_does_in_time() {
        // Heads, and operations: 4,096 and 32,768 tokens of a model of 7 billion parameters.
        for (compute, n_flops, expected) in [
            (Compute::Bf16, 1.4e11, 32),
            (Compute::Bf16, 8.8e12, 7),
            (Compute::Bf16, 1e15, 1),
            (Compute::F32, 1.4e11, 11),
        ] {
            assert_eq!(heads_at_once(launch_flops(compute), 32, n_flops), expected, "{n_flops}");
        }
    }

    #[test]
    fn every_width_fits_a_block() {
        for width in &Width::ALL {
            for n_bytes in
                [width.forward_bytes(), width.query_gradient_bytes(), width.key_gradient_bytes()]
            {
                assert!(n_bytes <= MAX_SHARED_BYTES, "{width:?}: {n_bytes}");
            }
        }
    }

    /// One block alone would leave the tensor cores idle while it works on scores.
    #[test]
    fn several_blocks_fit_a_multiprocessor() {
        let kernels = kernels_of_gaming_cards();
        for (head_size, wanted) in [(32, 4), (64, 3), (96, 2), (128, 2)] {
            let width = Width::of(head_size);
            for (pass, n_bytes) in [
                ("forward", width.forward_bytes()),
                ("query_gradient", width.query_gradient_bytes()),
                ("key_value_gradient", width.key_gradient_bytes()),
            ] {
                let name = format!("attention_{pass}_{head_size}");
                let mut targets = Vec::new();
                for kernel in kernels.iter().filter(|kernel| kernel.name == name) {
                    let n_blocks = kernel.blocks_of_multiprocessor(N_THREADS as usize, n_bytes);
                    assert!(n_blocks >= wanted, "{kernel:?}: {n_blocks}");
                    targets.push(kernel.target);
                }
                assert_eq!(targets, GAMING_CARDS, "{name}");
            }
        }
    }
}
