//! Normalisation on a card: a warp has a short row, a block a longer one. With the weight's gradient,
//! a block has several rows, and one partial sum of them.

use super::{RmsNorm, RmsNormShape};
use crate::{
    Cuda,
    cuda::{Address, Call, Launch, Parameters},
    memory::{DeviceSlice, Floats, Gradient, Store},
};

/// Threads of a block, and those of a warp; as in `rms_norm.cu`.
const N_THREADS: u32 = 256;
const WARP: u32 = 32;

/// The widest row that a warp has.
const MAX_SHORT: usize = 512;

/// The widest row that is kept in shared memory: three of them are, with the sums.
const MAX_KEPT: usize = 8192;

/// The most partial sums, and the fewest rows that share one: many enough for the largest cards, few
/// enough to be quick to add up.
const MAX_PARTIALS: usize = 256;
const MIN_BLOCK_ROWS: usize = 4;

/// Columns of a block of the kernel that adds up the partial sums, and the shares it cuts them into;
/// as in `rms_norm.cu`.
const COLUMNS: u32 = 32;
const SHARES: u32 = 8;

/// Which kernels do a row.
enum Kind {
    Short,
    Kept,
    Long,
}

impl Kind {
    fn of(width: usize) -> Self {
        if width <= MAX_SHORT {
            Self::Short
        } else if width <= MAX_KEPT {
            Self::Kept
        } else {
            Self::Long
        }
    }

    /// As its kernels are named.
    fn name(&self) -> &'static str {
        match self {
            Self::Short => "short",
            Self::Kept => "kept",
            Self::Long => "long",
        }
    }

    /// Rows that a block does at a time.
    fn n_slots(&self) -> usize {
        match self {
            Self::Short => (N_THREADS / WARP) as usize,
            Self::Kept | Self::Long => 1,
        }
    }

    /// Shared memory for `n_kept` rows of numbers for each row done at a time.
    fn shared_bytes(&self, n_kept: usize, width: usize) -> usize {
        match self {
            Self::Short | Self::Kept => {
                n_kept * self.n_slots() * width.next_multiple_of(4) * size_of::<f32>()
            }
            Self::Long => 0,
        }
    }
}

/// Bytes for the partial sums of `shape`, or of fewer rows.
pub(super) fn workspace_bytes(shape: RmsNormShape) -> usize {
    let n_partials = shape.n_rows.div_ceil(MIN_BLOCK_ROWS).min(MAX_PARTIALS);
    n_partials.saturating_mul(shape.width).saturating_mul(size_of::<f32>())
}

impl RmsNorm for Cuda {
    fn rms_norm(&mut self, shape: RmsNormShape, x: Floats, weight: DeviceSlice<f32>, y: Floats) {
        let RmsNormShape { n_rows, width, epsilon } = shape;
        let len = n_rows * width;
        let mut call = self.call("norm");
        let parameters = Parameters::new()
            .address(call.read_floats(x.first(len)))
            .address(call.read(weight.first(width)))
            .address(call.write_floats(y.first(len)))
            .f32(epsilon)
            .extent(n_rows)
            .extent(width);
        let kind = Kind::of(width);
        let launch = Launch::linear(n_rows.div_ceil(kind.n_slots()), N_THREADS)
            .with_shared_bytes(kind.shared_bytes(1, width));
        let (from, to) = (x.format().name(), y.format().name());
        let kernel = format!("rms_norm_forward_{}_{from}_to_{to}", kind.name());
        // SAFETY: each slice was cut to the extents above.
        unsafe { call.launch(&kernel, launch, parameters) };
    }

    fn rms_norm_backward(
        &mut self,
        shape: RmsNormShape,
        x: Floats,
        weight: DeviceSlice<f32>,
        dy: DeviceSlice<f32>,
        dx: DeviceSlice<f32>,
        dweight: Option<Gradient>,
        workspace: DeviceSlice<u8>,
    ) {
        let len = shape.n_rows * shape.width;
        let mut call = self.call("norm backward");
        let dy = call.read(dy.first(len));
        let dx = call.write(dx.first(len));
        // SAFETY: both were cut to the shape.
        unsafe { backward(call, shape, x, weight, (dy, dx), dweight, workspace) };
    }

    fn rms_norm_backward_in_place(
        &mut self,
        shape: RmsNormShape,
        x: Floats,
        weight: DeviceSlice<f32>,
        dy_dx: DeviceSlice<f32>,
        dweight: Option<Gradient>,
        workspace: DeviceSlice<u8>,
    ) {
        let mut call = self.call("norm backward");
        let dy_dx = call.write(dy_dx.first(shape.n_rows * shape.width));
        // SAFETY: it was cut to the shape; the kernel knows that the two are one.
        unsafe { backward(call, shape, x, weight, (dy_dx, dy_dx), dweight, workspace) };
    }
}

/// # Safety
/// `dy` and `dx` are arguments of `call`, the second an output, with as many numbers as `shape` has.
unsafe fn backward(
    mut call: Call<'_>,
    shape: RmsNormShape,
    x: Floats,
    weight: DeviceSlice<f32>,
    (dy, dx): (Address, Address),
    dweight: Option<Gradient>,
    workspace: DeviceSlice<u8>,
) {
    let RmsNormShape { n_rows, width, epsilon } = shape;
    let kind = Kind::of(width);
    let n_slots = kind.n_slots();
    let block_rows = match dweight {
        None => n_slots,
        Some(_) => n_rows.div_ceil(MAX_PARTIALS).max(MIN_BLOCK_ROWS).next_multiple_of(n_slots),
    };
    let n_blocks = n_rows.div_ceil(block_rows);
    let kernel = format!("rms_norm_backward_{}_{}", kind.name(), x.format().name());
    let x = call.read_floats(x.first(n_rows * width));
    let weight = call.read(weight.first(width));
    let sums = dweight.map(|Gradient { values, store }| {
        let n_bytes = n_blocks * width * size_of::<f32>();
        (call.write(values.first(width)), store, call.write(workspace.first(n_bytes)))
    });
    let parameters = Parameters::new()
        .address(x)
        .address(weight)
        .address(dy)
        .address(dx)
        .address(sums.map_or(Address::NULL, |(.., partials)| partials))
        .f32(epsilon)
        .extent(n_rows)
        .extent(width)
        .extent(block_rows);
    let n_kept = if sums.is_some() { 3 } else { 2 };
    let launch =
        Launch::linear(n_blocks, N_THREADS).with_shared_bytes(kind.shared_bytes(n_kept, width));
    // SAFETY: each slice was cut to the extents above, and each block has a partial sum.
    unsafe { call.launch(&kernel, launch, parameters) };
    if let Some((dweight, store, partials)) = sums {
        let parameters = Parameters::new()
            .address(partials)
            .address(dweight)
            .extent(n_blocks)
            .extent(width)
            .u32(u32::from(store == Store::Accumulate));
        let launch = Launch {
            grid: [(width as u32).div_ceil(COLUMNS), 1, 1],
            block: [COLUMNS, SHARES, 1],
            shared_bytes: 0,
        };
        // SAFETY: as above.
        unsafe { call.launch("rms_norm_add_partials", launch, parameters) };
    }
}
