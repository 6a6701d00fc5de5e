//! Products of matrices on the card: one description for the layers, their pairs and the loss.
//!
//! In [`Compute::Bf16`] activations are in bf16 already, or are rounded to it in the workspace first, rows padded
//! so that they can be copied 16 bytes at a time ([`Staging`]); weights are expanded inside the kernel, whatever
//! their form. Which kernel runs depends on the extents, and on whether the code has groups of warps multiply; and
//! so do the bits.

use half::bf16;

use super::{Address, Call, Launch, Parameters};
use crate::{
    device::Compute,
    linear::Weight,
    memory::{DeviceSlice, FloatFormat, Floats, Store},
    nf4,
    random::Dropout,
};

/// Depth of a step of the kernels, in `product.cuh`.
const DEPTH: usize = 32;
/// Bytes of the tables of NF4 behind the tiles, at most.
const TABLES_BYTES: usize = 80;
/// A kernel that is there where groups of warps multiply, and only there.
pub(crate) const KERNEL_WITH_GROUP_PRODUCTS: &str = "product_across_across_copied_256";

/// What a block of threads has of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tile {
    rows: usize,
    columns: usize,
}

const SMALL_TILE: Tile = Tile { rows: 64, columns: 64 };
const LARGE_TILE: Tile = Tile { rows: 128, columns: 128 };
/// Where groups of warps multiply.
const TALL_TILE: Tile = Tile { rows: 256, columns: 128 };
/// Blocks of threads below which a smaller tile is taken: fewer would leave multiprocessors idle. So it is
/// where the other tile would be half empty.
const FEW_BLOCKS: usize = 64;
/// The same of the tallest tile. A multiprocessor has room for one such block, and most cards of 9.0 have 132
/// multiprocessors.
const FEW_TALL_BLOCKS: usize = 128;
/// Blocks that fill a card: k is divided until there are as many.
const ENOUGH_BLOCKS: usize = 256;
/// Into how many parts k is divided at most.
const MAX_PARTS: usize = 16;
/// Alignment of the workspace's parts.
const ALIGNMENT: usize = 256;

/// Bytes of a part of a workspace.
pub(crate) fn aligned(n_bytes: usize) -> usize {
    n_bytes.saturating_add(ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT
}

/// How an operand's numbers are stored.
#[derive(Clone, Copy, Debug)]
enum Form {
    F32,
    Bf16,
    /// bf16 that can be copied 16 bytes at a time: by the staging, which pads and aligns it, or as it came.
    Staged,
    Nf4 {
        absmax_codes: Address,
        absmax_scales: Address,
        absmax_offset: Address,
    },
}

/// A matrix stored by rows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Matrix {
    pub values: Address,
    form: Form,
    /// Numbers from one row to the next.
    stride: usize,
}

impl Matrix {
    /// One in f32 with rows of `columns`.
    pub fn f32(values: Address, columns: usize) -> Self {
        Self { values, form: Form::F32, stride: columns }
    }

    /// A weight with rows of `columns`, as an argument of `call`.
    pub fn weight(call: &mut Call<'_>, weight: Weight, n_rows: usize, columns: usize) -> Self {
        let n = n_rows * columns;
        let (values, form) = match weight {
            Weight::F32(values) => (call.read(values.first(n)), Form::F32),
            Weight::Bf16(values) => (call.read(values.first(n)), Form::Bf16),
            Weight::Nf4(weight) => {
                let layout = nf4::Nf4Layout { n_elements: n };
                let absmax_codes = call.read(weight.absmax_codes.first(layout.n_blocks()));
                let absmax_scales = call.read(weight.absmax_scales.first(layout.n_groups()));
                let absmax_offset = call.read(weight.absmax_offset.first(1));
                let codes = call.read(weight.codes.first(layout.n_codes()));
                (codes, Form::Nf4 { absmax_codes, absmax_scales, absmax_offset })
            }
        };
        Self { values, form, stride: columns }
    }

    /// Whether the kernels may read several numbers at once, wherever a row begins.
    fn is_regular(&self) -> bool {
        match self.form {
            Form::F32 => self.stride.is_multiple_of(4) && self.values.0.is_multiple_of(16),
            Form::Bf16 | Form::Staged => {
                self.stride.is_multiple_of(8) && self.values.0.is_multiple_of(16)
            }
            Form::Nf4 { .. } => {
                self.stride.is_multiple_of(nf4::BLOCK) && self.values.0.is_multiple_of(8)
            }
        }
    }
}

/// Rows that products read, in f32 or as they are multiplied.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Activation {
    values: Address,
    format: FloatFormat,
}

impl Activation {
    /// All of `x`, as an argument of `call`.
    pub fn new(call: &mut Call<'_>, x: Floats) -> Self {
        Self { values: call.read_floats(x), format: x.format() }
    }
}

/// Which way an operand's rows lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// k runs along a row.
    Along,
    /// k runs from row to row.
    Across,
}

/// `c (store) drop(scale · (a · b + low_scale · low_a · low_b)) + bias`, or `c = onto + …`, with `a` `m × k`
/// and `b` `k × n`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Product {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    /// f32 in [`Compute::F32`], staged in [`Compute::Bf16`].
    pub a: (Matrix, Turn),
    pub b: (Matrix, Turn),
    pub scale: f32,
    pub low_rank: Option<LowRank>,
    pub dropout: Option<Dropout>,
    pub bias: Option<Address>,
    pub store: Store,
    /// Like `c`, which is then `onto + …`, stored over what is there.
    pub onto: Option<Address>,
    /// `m × n` in f32; or in bf16, rounded and not added to.
    pub c: Address,
    pub is_rounded: bool,
    /// What is stored in `c`, in bf16 besides.
    pub rounded: Option<Address>,
}

/// What is added beside a product in bf16, of little depth.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LowRank {
    pub rank: usize,
    /// Staged; turned as the product's `a`.
    pub a: Matrix,
    /// In f32; turned as its `b`.
    pub b: Matrix,
    pub scale: f32,
}

impl Tile {
    /// Threads of a block, in `product.cuh`.
    fn n_threads(self) -> u32 {
        2 * self.rows as u32
    }

    /// Blocks of a product.
    fn blocks(self, m: usize, n: usize) -> usize {
        m.div_ceil(self.rows) * n.div_ceil(self.columns)
    }

    /// The fewest steps of a part of k. What parts cost, a pass over the tile's sums, is to be little beside them.
    fn least_steps(self) -> usize {
        if self == SMALL_TILE { 8 } else { 128 }
    }

    /// Bytes of the tiles of all steps that are in shared memory at a time.
    fn shared_bytes(self, has_group_products: bool) -> usize {
        let n_stages = if has_group_products { 4 } else { 3 };
        n_stages * (self.rows + self.columns) * DEPTH * size_of::<bf16>()
    }
}

/// The kernel's tile, and into how many parts k is divided.
fn tiling((m, n, k): (usize, usize, usize), has_group_products: bool) -> (Tile, usize) {
    let is_large = m.min(n) > SMALL_TILE.rows && LARGE_TILE.blocks(m, n) >= FEW_BLOCKS;
    let rows = |tile: Tile| m.next_multiple_of(tile.rows);
    // At most a tenth more rows that do not exist than the other tile would multiply.
    let is_tall = has_group_products
        && 10 * rows(TALL_TILE) <= 11 * rows(LARGE_TILE)
        && TALL_TILE.blocks(m, n) >= FEW_TALL_BLOCKS;
    let tile = match (is_large, is_tall) {
        (true, true) => return (TALL_TILE, 1),
        (true, false) => LARGE_TILE,
        (false, _) => SMALL_TILE,
    };
    let n_parts = ENOUGH_BLOCKS / tile.blocks(m, n).max(1);
    let most = k.div_ceil(DEPTH) / tile.least_steps();
    (tile, n_parts.min(MAX_PARTS).min(most).max(1))
}

/// Bytes for the parts of a product of these extents, or of fewer rows, at most.
fn parts_bytes(m: usize, n: usize, k: usize) -> usize {
    let is_divided = |tile: Tile| k.div_ceil(DEPTH) >= 2 * tile.least_steps();
    let of_blocks = |tile: Tile| ENOUGH_BLOCKS * tile.rows * tile.columns;
    let most = match (is_divided(LARGE_TILE), is_divided(SMALL_TILE)) {
        (true, _) => of_blocks(LARGE_TILE),
        (false, true) => of_blocks(SMALL_TILE),
        (false, false) => return 0,
    };
    let numbers = MAX_PARTS.saturating_mul(m).saturating_mul(n).min(most);
    aligned(numbers * size_of::<f32>())
}

/// Bytes of `rows` rows of `columns` numbers in bf16 as they are staged.
pub(crate) fn staged_bytes(rows: usize, columns: usize) -> usize {
    aligned(rows.saturating_mul(columns.next_multiple_of(8)).saturating_mul(size_of::<bf16>()))
}

/// Bytes of rows as they are staged for products.
pub(crate) fn input_bytes(n_rows: usize, width: usize, format: FloatFormat) -> usize {
    match format {
        FloatFormat::F32 => staged_bytes(n_rows, width),
        FloatFormat::Bf16 => 0,
    }
}

/// Bytes of `n` numbers in f32, as a part of a workspace.
pub(crate) fn f32_bytes(n: usize) -> usize {
    aligned(n.saturating_mul(size_of::<f32>()))
}

/// Bytes of workspace that products of `m`, `n` and `k`, or of fewer rows, need beside what is staged for
/// them; and those that the start's alignment may cost.
pub(crate) fn workspace_bytes(products: &[(usize, usize, usize)]) -> usize {
    products.iter().map(|&(m, n, k)| parts_bytes(m, n, k)).max().unwrap_or(0) + ALIGNMENT
}

/// A workspace, handed out from its front.
pub(crate) struct Staging {
    next: Address,
    end: Address,
}

impl Staging {
    /// All of `workspace`.
    pub fn new(call: &mut Call<'_>, workspace: DeviceSlice<u8>) -> Self {
        let start = call.write(workspace);
        let next = Address(start.0.next_multiple_of(ALIGNMENT as u64));
        Self { next, end: start.plus(workspace.len()) }
    }

    /// What is left, to be handed out again and again: operations follow one another.
    pub fn rest(&self) -> Self {
        Self { ..*self }
    }

    /// The next `n_bytes`.
    ///
    /// # Panics
    /// When there are not as many: the workspace is smaller than was asked for.
    pub fn take(&mut self, n_bytes: usize) -> Address {
        let taken = self.next;
        self.next = taken.plus(aligned(n_bytes));
        assert!(self.next <= self.end, "{n_bytes} bytes of workspace beyond its end");
        taken
    }

    /// Room for what one product stores in bf16 and another one reads, where its rows need no padding.
    pub fn between(&mut self, call: &Call<'_>, (rows, columns): (usize, usize)) -> Option<Matrix> {
        let is_read = call.compute() == Compute::Bf16 && columns.is_multiple_of(8);
        is_read.then(|| {
            let values = self.take(staged_bytes(rows, columns));
            Matrix { values, form: Form::Staged, stride: columns }
        })
    }

    /// An activation of `rows × columns` as products take it: as it is where it is in bf16.
    pub fn input(
        &mut self,
        call: &Call<'_>,
        x: Activation,
        (rows, columns): (usize, usize),
        dropout: Option<Dropout>,
    ) -> Matrix {
        if x.format == FloatFormat::F32 {
            return self.operand(call, x.values, (rows, columns), dropout);
        }
        assert!(
            call.compute() == Compute::Bf16 && dropout.is_none(),
            "an input that was to be in f32"
        );
        let staged = Matrix { values: x.values, form: Form::Staged, stride: columns };
        assert!(staged.is_regular(), "an input in bf16 that cannot be copied: {staged:?}");
        staged
    }

    /// An activation of `rows × columns` in f32 as products take it, dropped from where that is asked.
    pub fn operand(
        &mut self,
        call: &Call<'_>,
        values: Address,
        (rows, columns): (usize, usize),
        dropout: Option<Dropout>,
    ) -> Matrix {
        let (threshold, factor, seed) = drop_parameters(dropout);
        let n = rows * columns;
        if call.compute() == Compute::F32 {
            if dropout.is_none() {
                return Matrix::f32(values, columns);
            }
            let dropped = self.take(n * size_of::<f32>());
            let parameters = Parameters::new()
                .address(values)
                .address(dropped)
                .u64(n as u64)
                .u64(seed)
                .u32(threshold)
                .f32(factor);
            // SAFETY: `values` and `dropped` are of `n` numbers.
            unsafe { call.launch("product_drop", Launch::covering(n, 256), parameters) };
            return Matrix::f32(dropped, columns);
        }
        let stride = columns.next_multiple_of(8);
        let staged = self.take(staged_bytes(rows, columns));
        let n_chunks = rows * stride / 8;
        let parameters = Parameters::new()
            .address(values)
            .address(staged)
            .u64(n_chunks as u64)
            .u64(seed)
            .extent(columns)
            .extent(stride)
            .u32(u32::from(dropout.is_some()))
            .u32(threshold)
            .f32(factor);
        // SAFETY: `values` are `rows × columns` numbers, `staged` has room for `rows × stride`.
        unsafe { call.launch("product_round", Launch::covering(n_chunks, 256), parameters) };
        Matrix { values: staged, form: Form::Staged, stride }
    }
}

/// The threshold, factor and seed of `drop` in `random.cuh`.
fn drop_parameters(dropout: Option<Dropout>) -> (u32, f32, u64) {
    dropout.map_or((0, 1.0, 0), |dropout| {
        // Below 2^32, as the probability is below 1.
        let threshold = (f64::from(dropout.probability) * 4_294_967_296.0) as u32;
        (threshold, 1.0 / (1.0 - dropout.probability), dropout.seed)
    })
}

impl Product {
    fn parameters(&self, steps_of_part: usize, n_parts: usize, parts: Address) -> Parameters {
        let (absmax_codes, absmax_scales, absmax_offset) = match self.b.0.form {
            Form::Nf4 { absmax_codes, absmax_scales, absmax_offset } => {
                (absmax_codes, absmax_scales, absmax_offset)
            }
            _ => (Address::NULL, Address::NULL, Address::NULL),
        };
        let (low_a, low_b, low_scale, rank) = match &self.low_rank {
            Some(low) => (Some(low.a), Some(low.b), low.scale, low.rank),
            None => (None, None, 1.0, 0),
        };
        let address = |matrix: Option<Matrix>| matrix.map_or(Address::NULL, |m| m.values);
        let stride = |matrix: Option<Matrix>| matrix.map_or(0, |m| m.stride);
        let (threshold, factor, seed) = drop_parameters(self.dropout);
        Parameters::new()
            .address(self.a.0.values)
            .address(self.b.0.values)
            .address(absmax_codes)
            .address(absmax_scales)
            .address(absmax_offset)
            .address(address(low_a))
            .address(address(low_b))
            .address(self.bias.unwrap_or(Address::NULL))
            .address(match (self.onto, self.store) {
                (Some(onto), _) => onto,
                (None, Store::Accumulate) => self.c,
                (None, Store::Overwrite) => Address::NULL,
            })
            .address(self.c)
            .address(self.rounded.unwrap_or(Address::NULL))
            .address(parts)
            .u64(seed)
            .extent(self.a.0.stride)
            .extent(self.b.0.stride)
            .extent(stride(low_a))
            .extent(stride(low_b))
            .extent(self.m)
            .extent(self.n)
            .extent(self.k)
            .extent(rank)
            .extent(steps_of_part)
            .u32(u32::from(self.dropout.is_some()))
            .u32(threshold)
            .f32(factor)
            .f32(self.scale)
            .f32(low_scale)
            .u32(u32::from(low_b.is_some_and(|low_b| low_b.is_regular())))
            .u32(u32::from(self.is_rounded))
            .extent(n_parts)
            // A structure is as long as a multiple of its alignment.
            .u32(0)
    }

    /// Queues the product. What `scratch` has left may be used by the next one too.
    ///
    /// # Safety
    /// The operands, those of the product beside, `bias`, `onto` and `c` are arguments of `call` of the extents
    /// given here.
    pub unsafe fn multiply(&self, call: &mut Call<'_>, scratch: &Staging) {
        let tiling = tiling((self.m, self.n, self.k), call.has_group_products());
        // SAFETY: as the caller promises.
        unsafe { self.multiply_in(call, scratch, tiling) };
    }

    /// The same on such tiles, with k divided in so many parts.
    ///
    /// # Safety
    /// As [`Product::multiply`].
    unsafe fn multiply_in(
        &self,
        call: &mut Call<'_>,
        scratch: &Staging,
        (mut tile, n_parts): (Tile, usize),
    ) {
        let Self { m, n, k, .. } = *self;
        assert!(
            !self.is_rounded && self.onto.is_none() || self.store == Store::Overwrite,
            "a rounded product, or one onto another, that is added to"
        );
        if m == 0 || n == 0 {
            return;
        }
        call.count_product(m, n, k + self.low_rank.map_or(0, |low| low.rank));
        let turns = match (self.a.1, self.b.1) {
            (Turn::Along, Turn::Along) => "along_along",
            (Turn::Along, Turn::Across) => "along_across",
            (Turn::Across, _) => "across_across",
        };
        let b = self.b.0;
        let form = match b.form {
            Form::F32 => "f32",
            Form::Bf16 => "bf16",
            Form::Staged => "copied",
            Form::Nf4 { .. } => "nf4",
        };
        if call.compute() == Compute::F32 {
            assert!(self.low_rank.is_none(), "a pair beside a product in f32");
            let n_blocks = SMALL_TILE.blocks(m, n);
            let kernel = format!("product_in_f32_{turns}_{form}");
            let parameters = self.parameters(0, 1, Address::NULL);
            // SAFETY: as the caller promises.
            unsafe { call.launch(&kernel, Launch::linear(n_blocks, 256), parameters) };
            return;
        }
        let form = match (form, b.is_regular()) {
            ("bf16", true) => "copied".to_owned(),
            (form, true) => form.to_owned(),
            (form, false) => {
                // k is divided as for a regular weight, so that the bits are its.
                tile = SMALL_TILE;
                format!("irregular_{form}")
            }
        };
        let steps_of_part = k.div_ceil(DEPTH).div_ceil(n_parts);
        let n_parts = k.div_ceil(DEPTH).div_ceil(steps_of_part.max(1)).max(1);
        let mut scratch = scratch.rest();
        let parts = match n_parts {
            1 => Address::NULL,
            _ => scratch.take(n_parts * m * n * size_of::<f32>()),
        };
        let parameters = self.parameters(steps_of_part, n_parts, parts);
        let kernel = format!("product_{turns}_{form}_{}", tile.rows);
        let n_blocks = tile.blocks(m, n);
        let launch = Launch {
            grid: [n_blocks as u32, 1, n_parts as u32],
            ..Launch::linear(n_blocks, tile.n_threads())
        };
        let tables = if matches!(b.form, Form::Nf4 { .. }) { TABLES_BYTES } else { 0 };
        let shared_bytes = tile.shared_bytes(call.has_group_products()) + tables;
        // SAFETY: as the caller promises; the parts have the room that they need.
        unsafe {
            call.launch(&kernel, launch.with_shared_bytes(shared_bytes), parameters);
            if n_parts > 1 {
                call.launch("product_add_parts", Launch::covering(m * n, 256), parameters);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Cuda,
        cuda::{SIMULATED, code::occupancy::kernels_of_gaming_cards},
        linear::cuda::plain,
        testing::{Nf4Parts, Random, fetch, place, relative_error, workspace},
    };

    /// As a product with a large vocabulary is divided, but of less depth.
    fn divided_large_tiles_sum_as_small_ones(cuda: &mut Cuda) {
        const PARTS: usize = 3;
        let (m, n, k) = (130, 140, 320);
        let mut random = Random::new(3);
        let x = place(cuda, &random.normal(m * k));
        let weight = place(cuda, &random.normal(n * k));
        let y = place(cuda, &vec![f32::NAN; m * n]);
        let n_bytes = staged_bytes(m, k) + f32_bytes(PARTS * m * n) + ALIGNMENT;
        let scratch = workspace(cuda, n_bytes);
        let [large, small, whole] = [(LARGE_TILE, PARTS), (SMALL_TILE, PARTS), (LARGE_TILE, 1)]
            .map(|tiling| {
                let mut call = cuda.call("product");
                let (x, weight) = (call.read(x), Matrix::f32(call.read(weight), k));
                let address = call.write(y);
                let mut staging = Staging::new(&mut call, scratch);
                let x = staging.operand(&call, x, (m, k), None);
                let (along, store) = (Turn::Along, Store::Overwrite);
                let product = plain((m, n, k), (x, along), (weight, along), store, address);
                // SAFETY: the arguments are of these extents, and the workspace has room for the parts.
                unsafe { product.multiply_in(&mut call, &staging, tiling) };
                drop(call);
                fetch(cuda, y)
            });
        assert!(large == small);
        // Other parts, other roundings: one for each number that is added, at most.
        let expected: Vec<_> = whole.iter().map(|&number| f64::from(number)).collect();
        let error = relative_error(&large, &expected);
        assert!(error > 0.0 && error <= k as f64 * f64::from(f32::EPSILON), "{error:e}");
    }

    /// Every way in which operands lie, every form that has a kernel of its own, and a pair beside.
    fn tall_tiles_sum_as_small_ones(cuda: &mut Cuda) {
        let (m, n, k, rank) = (300, 192, 192, 8);
        let mut random = Random::new(4);
        let a = place(cuda, &random.normal(m * k));
        let low_a = place(cuda, &random.normal(m * rank));
        let low_b = place(cuda, &random.normal(n * rank));
        let values = random.normal(n * k);
        let f32 = Weight::F32(place(cuda, &values));
        let bf16 = Weight::Bf16(place(cuda, &crate::testing::in_bf16(&values)));
        let nf4 = Weight::Nf4(Nf4Parts::quantize(&values).place(cuda));
        let scratch = workspace(cuda, 3 * staged_bytes(k, m.max(k)) + ALIGNMENT);
        let (along, across) = (Turn::Along, Turn::Across);
        let ways =
            [f32, bf16, nf4].into_iter().flat_map(|weight| [(weight, along), (weight, across)]);
        for (weight, b_turn) in ways {
            // The gradient of a weight has both across, and no pair.
            let is_gradient = matches!(weight, Weight::Bf16(_)) && b_turn == across;
            for a_turn in if is_gradient { vec![along, across] } else { vec![along] } {
                let sums = [TALL_TILE, LARGE_TILE, SMALL_TILE].map(|tile| {
                    let c = place(cuda, &vec![f32::NAN; m * n]);
                    let mut call = cuda.call("product");
                    let [a, low_a, low_b] = [a, low_a, low_b].map(|slice| call.read(slice));
                    let turned = |rows, columns, turn| match turn {
                        Turn::Along => (rows, columns),
                        Turn::Across => (columns, rows),
                    };
                    let (rows, columns) = turned(n, k, b_turn);
                    let b = Matrix::weight(&mut call, weight, rows, columns);
                    let address = call.write(c);
                    let mut staging = Staging::new(&mut call, scratch);
                    let a = staging.operand(&call, a, turned(m, k, a_turn), None);
                    let staged = staging.operand(&call, low_a, (m, rank), None);
                    let low_columns = turned(n, rank, b_turn).1;
                    let low_rank = (a_turn == along).then(|| LowRank {
                        rank,
                        a: staged,
                        b: Matrix::f32(low_b, low_columns),
                        scale: 0.5,
                    });
                    let store = Store::Overwrite;
                    let product = plain((m, n, k), (a, a_turn), (b, b_turn), store, address);
                    let product = Product { low_rank, ..product };
                    // SAFETY: the arguments are of these extents.
                    unsafe { product.multiply_in(&mut call, &staging, (tile, 1)) };
                    drop(call);
                    fetch(cuda, c)
                });
                assert!(sums[0].iter().all(|sum| sum.is_finite()));
                assert!(sums[0] == sums[1] && sums[0] == sums[2], "{weight:?} {b_turn:?}");
            }
        }
    }

    #[test]
    fn tall_tiles_in_the_simulator() {
        let [_, capability] = SIMULATED;
        tall_tiles_sum_as_small_ones(&mut Cuda::simulated_as(capability, Compute::Bf16).unwrap());
    }

    #[test]
    #[ignore = "it needs an NVIDIA card: tests/gpu.sh"]
    fn tall_tiles_on_a_card() {
        let cuda = &mut Cuda::open(0, Compute::Bf16).unwrap();
        if cuda.call("product").has_group_products() {
            tall_tiles_sum_as_small_ones(cuda);
        }
    }

    #[test]
    fn divided_large_tiles_in_the_simulator() {
        for capability in SIMULATED {
            let cuda = &mut Cuda::simulated_as(capability, Compute::Bf16).unwrap();
            divided_large_tiles_sum_as_small_ones(cuda);
        }
    }

    #[test]
    #[ignore = "it needs an NVIDIA card: tests/gpu.sh"]
    fn divided_large_tiles_on_a_card() {
        divided_large_tiles_sum_as_small_ones(&mut Cuda::open(0, Compute::Bf16).unwrap());
    }

    #[test]
    fn several_blocks_fit_a_multiprocessor() {
        let mut n_kernels = 0;
        for kernel in kernels_of_gaming_cards() {
            if kernel.name.starts_with("product_") && kernel.name.ends_with("_128") {
                let shared_bytes = LARGE_TILE.shared_bytes(false) + TABLES_BYTES;
                let n_blocks = kernel.blocks_of_multiprocessor(256, shared_bytes);
                assert!(n_blocks >= 2, "{kernel:?}: {n_blocks}");
                n_kernels += 1;
            }
            if kernel.name.starts_with("product_") && kernel.name.ends_with("_64") {
                let (tables, least) =
                    if kernel.name.contains("nf4") { (TABLES_BYTES, 3) } else { (0, 4) };
                let shared_bytes = SMALL_TILE.shared_bytes(false) + tables;
                let n_blocks = kernel.blocks_of_multiprocessor(128, shared_bytes);
                assert!(n_blocks >= least, "{kernel:?}: {n_blocks}");
            }
            // The tiles, so that what a kernel has of its own is found at all.
            let is_f32 = kernel.name.starts_with("product_in_f32");
            assert!(kernel.shared_bytes >= 2 * 16 * 64 * 4 || !is_f32, "{kernel:?}");
        }
        assert!(n_kernels > 0);
    }

    #[test]
    fn parts_have_room() {
        for most in [1, 3, 64, 65, 300, 512, 3000] {
            for n in [1, 16, 100, 1000, 4096] {
                for deepest in [1, 300, 511, 512, 4096, 8191, 8192, 100_000] {
                    // Fewer rows are less depth in the gradient of a weight.
                    for (m, k) in [1, 2, 3, most].into_iter().flat_map(|part| {
                        [(most / part, deepest), (most, deepest / part), (most / part, deepest / 2)]
                    }) {
                        for has_group_products in [false, true] {
                            let (_, n_parts) = tiling((m, n, k), has_group_products);
                            assert!(
                                n_parts == 1
                                    || n_parts * m * n * 4 <= parts_bytes(most, n, deepest),
                                "{m} of {most} {n} {k} of {deepest}"
                            );
                        }
                    }
                }
            }
        }
    }

    /// Extents that a gaming card meets: few blocks with long sums are many.
    #[test]
    fn a_card_is_filled() {
        // A pair's products, and the gradient of the output layer's input with a large vocabulary.
        for (extents, wanted) in [
            ((4096, 16, 4096), (SMALL_TILE, 4)),
            ((16, 4096, 4096), (SMALL_TILE, 4)),
            ((11_008, 16, 4096), (SMALL_TILE, 1)),
            ((256, 896, 151_936), (SMALL_TILE, 4)),
            ((256, 4096, 128_256), (LARGE_TILE, 4)),
            ((512, 4096, 4096), (LARGE_TILE, 1)),
            ((4096, 4096, 4096), (LARGE_TILE, 1)),
        ] {
            assert_eq!(tiling(extents, false), wanted, "{extents:?}");
        }
        for (extents, wanted) in [
            // Of 384 rows a fourth would be none.
            ((384, 32_000, 4096), (LARGE_TILE, 1)),
            ((512, 4096, 4096), (LARGE_TILE, 1)),
            ((1024, 4096, 4096), (TALL_TILE, 1)),
            ((128, 32_000, 4096), (LARGE_TILE, 1)),
            ((16_384, 96, 4096), (LARGE_TILE, 1)),
        ] {
            assert_eq!(tiling(extents, true), wanted, "{extents:?}");
        }
    }
}
