//! The regions of writing text: a key-value cache and one layer's activations for a few rows.

use nibble_kernels::{
    DeviceProfile, DeviceSlice, FloatFormat, Floats,
    attention::{self, Segment},
    linear::{self, LinearShape},
};
use nibble_run::Category;

use super::{
    moments::Moments,
    regions::Regions,
    training::{
        LayerSlices, RopeTables, area, attention_shape, input_format, low_rank_name, output_format,
        products_workspace_bytes, rope_tables,
    },
};
use crate::{
    adapter::{AdapterLayout, Targets},
    model::{ModelSpec, Projection},
};

/// The most prompt tokens that pass through the model at a time.
const PROMPT_ROWS: usize = 128;

/// Everything that the memory of writing text depends on.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerationShape {
    /// The model.
    pub spec: ModelSpec,
    /// Rank and place of the adapter, if one is used.
    pub adapter: Option<(usize, Targets)>,
    /// The most tokens of prompt and answer together.
    pub context: usize,
    /// The device.
    pub profile: DeviceProfile,
}

/// Handles to everything that writing text uses, beside weights and rotation tables.
#[derive(Clone, Debug)]
pub struct GenerationLayout {
    /// The most tokens of prompt and answer together.
    pub context: usize,
    /// Ids of the tokens that pass through the model now.
    pub ids: DeviceSlice<u32>,
    /// Their positions.
    pub positions: DeviceSlice<u32>,
    /// The one segment.
    pub segment: DeviceSlice<Segment>,
    /// Keys `[context, G·K]` and values of each layer.
    pub cache: Vec<[Floats; 2]>,
    /// The residual stream before and after a layer, in turn.
    pub residuals: [DeviceSlice<f32>; 2],
    /// Activations; `key` and `value` are replaced by rows of the cache.
    pub layer: LayerSlices,
    /// The last row, normalised `[D]`.
    pub normed: DeviceSlice<f32>,
    /// Logits of the next token `[V]`.
    pub logits: DeviceSlice<f32>,
    /// Workspace of the operations.
    pub workspace: DeviceSlice<u8>,
}

impl GenerationLayout {
    /// Asks `regions` for everything that writing text uses at `moments`.
    pub fn new(regions: &mut Regions, shape: &GenerationShape, moments: Moments) -> Self {
        let spec = &shape.spec;
        let n_rows = shape.n_rows();
        let format = attention::input_format(shape.profile.compute);
        let part = (area(shape.context, spec.kv_width()), format);
        let [keys, values] = ["keys", "values"].map(|name| {
            let name = ("sample", name).into();
            regions.parts(name, Category::Activations, spec.n_layers, part, moments)
        });
        let cache: Vec<_> = keys.zip(values).map(|(keys, values)| [keys, values]).collect();
        let mut floats = |name: &'static str, width, format| {
            let len = (area(n_rows, width), format);
            regions.floats(("sample", name), Category::Activations, len, moments)
        };
        let mut rows = |name, width| floats(name, width, FloatFormat::F32).into_f32();
        let residuals = ["residual.even", "residual.odd"].map(|name| rows(name, spec.hidden_width));
        let keys_and_values = cache.first().copied().unwrap_or_else(|| {
            // A model without layers has no cache, but its layout must still be one.
            ["keys", "values"].map(|name| floats(name, 0, format))
        });
        let layer =
            forward_slices(spec, &shape.profile, shape.adapter, keys_and_values, &mut floats);
        let mut row = |name: &'static str, width| {
            regions.region(("sample", name), Category::Activations, width, moments)
        };
        let (normed, logits) = (row("normed", spec.hidden_width), row("logits", spec.vocabulary));
        let mut tokens = |name: &'static str| {
            regions.region(("sample", name), Category::Workspace, n_rows, moments)
        };
        let (ids, positions) = (tokens("ids"), tokens("positions"));
        let segment = regions.region("sample.segment", Category::Workspace, 1, moments);
        let workspace = regions.region(
            "sample.workspace",
            Category::Workspace,
            shape.workspace_bytes(),
            moments,
        );
        Self {
            context: shape.context,
            ids,
            positions,
            segment,
            cache,
            residuals,
            layer,
            normed,
            logits,
            workspace,
        }
    }
}

/// One layer's activations when no backward pass follows, each from `floats(name, width, format)`.
pub(super) fn forward_slices(
    spec: &ModelSpec,
    profile: &DeviceProfile,
    adapter: Option<(usize, Targets)>,
    [key, value]: [Floats; 2],
    floats: &mut impl FnMut(&'static str, usize, FloatFormat) -> Floats,
) -> LayerSlices {
    let mut input = |name, projection| {
        let [_, width] = spec.projection_shape(projection);
        floats(name, width, input_format(profile, spec, projection, false))
    };
    let input_normed = input("input_normed", Projection::Query);
    let feed_forward_normed = input("feed_forward_normed", Projection::Gate);
    let activated = input("activated", Projection::Down);
    let attention = input("attention", Projection::Output);
    let mut output = |name, projection| {
        let [width, _] = spec.projection_shape(projection);
        floats(name, width, output_format(profile, spec, projection))
    };
    let (gate, up) = (output("gate", Projection::Gate), output("up", Projection::Up));
    let query = output("query", Projection::Query);
    let query_raw = spec.qk_norm.then(|| output("query_raw", Projection::Query));
    let key_raw = spec.qk_norm.then(|| output("key_raw", Projection::Key));
    let mut rows = |name, width| floats(name, width, FloatFormat::F32).into_f32();
    let mut low_rank = [None; Projection::ALL.len()];
    if let Some((rank, targets)) = adapter {
        for projection in targets.iter() {
            low_rank[projection as usize] = Some(rows(low_rank_name(projection), rank));
        }
    }
    LayerSlices {
        input_normed,
        query_raw,
        key_raw,
        query,
        key,
        value,
        attention,
        log_sum_exp: rows("log_sum_exp", spec.n_heads),
        middle: rows("middle", spec.hidden_width),
        feed_forward_normed,
        gate,
        up,
        activated,
        low_rank,
    }
}

impl GenerationShape {
    /// The most tokens that pass through the model at a time.
    pub fn n_rows(&self) -> usize {
        self.context.clamp(1, PROMPT_ROWS)
    }

    fn workspace_bytes(&self) -> usize {
        let (spec, profile) = (&self.spec, &self.profile);
        let mut bytes = 0;
        // A prompt passes in chunks, its answer row by row.
        for n_rows in [self.n_rows(), 1] {
            let attention = attention_shape(spec, 0, n_rows, self.context, n_rows);
            bytes = bytes.max(attention::workspace_bytes(profile, attention, false));
            let products = products_workspace_bytes(spec, profile, n_rows, self.adapter, false);
            bytes = bytes.max(products);
        }
        let output = LinearShape { n_rows: 1, n_in: spec.hidden_width, n_out: spec.vocabulary };
        bytes.max(linear::workspace_bytes(profile, output))
    }
}

/// The layout of a session that only writes text: everything above, and the adapter.
#[derive(Clone, Debug)]
pub struct SessionLayout {
    /// Buffers of the text.
    pub generation: GenerationLayout,
    /// Rotation tables.
    pub rope: RopeTables,
    /// The adapter's parameters, if there is one.
    pub adapter: Option<DeviceSlice<f32>>,
}

impl SessionLayout {
    /// Asks `regions` for everything that a session of `shape` uses.
    pub fn new(regions: &mut Regions, shape: &GenerationShape) -> Self {
        let adapter = shape.adapter.map(|(rank, targets)| {
            let len = AdapterLayout::new(&shape.spec, targets, rank).len();
            regions.region("adapter", Category::Adapters, len, Moments::ALWAYS)
        });
        let rope = rope_tables(regions, &shape.spec, shape.context);
        let generation = GenerationLayout::new(regions, shape, Moments::ALWAYS);
        Self { generation, rope, adapter }
    }
}
