//! The regions of a training run, and their handles.
//!
//! [`TrainingLayout::new`] is the only place that knows what a run keeps in its working arena. The
//! base weights are a block of their own (see [`crate::weights::WeightLayout`]), because they may
//! be a file that is mapped in place.

use arrayvec::ArrayVec;
use nibble_kernels::{
    DeviceProfile, DeviceSlice, FloatFormat, Floats,
    attention::{self, AttentionShape, Segment},
    layers::{self, LayerWidth, LayersShape, MAX_LAYERS},
    linear::{self, LinearShape},
    output_loss::{self, OutputLossShape},
    rms_norm::{self, RmsNormShape},
};
use nibble_run::Category;

use super::{
    generation::{GenerationLayout, GenerationShape},
    moments::{Backward, Forward, Moments},
    paged::{InputSlices, StateSlices, inputs, states, weight_window},
    regions::{RegionName, Regions},
    shape::{Trainable, TrainingShape},
};
use crate::{
    adapter::Targets,
    model::{ModelSpec, Projection},
    optimizer::StateLayout,
};

/// The inputs of one micro-batch and its losses.
#[derive(Clone, Copy, Debug)]
pub struct BatchSlices {
    /// Token ids `[T]`.
    pub ids: DeviceSlice<u32>,
    /// Position of each token in its segment `[T]`.
    pub positions: DeviceSlice<u32>,
    /// Segments, at most T.
    pub segments: DeviceSlice<Segment>,
    /// Rows whose next token is trained, at most T.
    pub target_rows: DeviceSlice<u32>,
    /// That next token, at most T.
    pub targets: DeviceSlice<u32>,
    /// Cross-entropy of each of those rows.
    pub losses: DeviceSlice<f32>,
    /// Their sum, over the micro-batches of a step or of one that is evaluated: one number.
    pub loss_sum: DeviceSlice<f64>,
}

/// The rotation tables.
#[derive(Clone, Copy, Debug)]
pub struct RopeTables {
    /// `[n_positions, K / 2]`.
    pub cos: DeviceSlice<f32>,
    /// `[n_positions, K / 2]`.
    pub sin: DeviceSlice<f32>,
}

/// What the optimizer reads and writes.
#[derive(Clone, Copy, Debug)]
pub struct TrainableSlices {
    /// The adapter's parameters, by its [`AdapterLayout`]; `None` in full fine-tuning, whose parameters
    /// are the weights.
    pub parameters: Option<DeviceSlice<f32>>,
    /// The bytes of the gradients, by the adapter's layout or [`TrainingShape::gradient_layout`].
    pub gradients: DeviceSlice<u8>,
    /// The optimizer's states.
    pub states: StateSlices,
}

/// What one layer's forward pass writes.
#[derive(Clone, Copy, Debug)]
pub struct LayerSlices {
    /// `[T, D]`.
    pub input_normed: Floats,
    /// Queries before their normalisation `[T, H·K]`, in models that have one.
    pub query_raw: Option<Floats>,
    /// Keys before their normalisation `[T, G·K]`, in models that have one.
    pub key_raw: Option<Floats>,
    /// `[T, H·K]`.
    pub query: Floats,
    /// `[T, G·K]`.
    pub key: Floats,
    /// `[T, G·K]`.
    pub value: Floats,
    /// `[T, H·K]`.
    pub attention: Floats,
    /// `[T, H]`.
    pub log_sum_exp: DeviceSlice<f32>,
    /// The residual stream between attention and feed-forward block `[T, D]`.
    pub middle: DeviceSlice<f32>,
    /// `[T, D]`.
    pub feed_forward_normed: Floats,
    /// `[T, F]`.
    pub gate: Floats,
    /// `[T, F]`.
    pub up: Floats,
    /// `[T, F]`.
    pub activated: Floats,
    /// `x · Aᵀ` of each pair `[T, R]`.
    pub low_rank: [Option<DeviceSlice<f32>>; Projection::ALL.len()],
}

/// The gradients that pass through one layer.
#[derive(Clone, Copy, Debug)]
pub struct LayerGradientSlices {
    /// `[T, F]`.
    pub activated: DeviceSlice<f32>,
    /// `[T, D]`.
    pub feed_forward_normed: DeviceSlice<f32>,
    /// `[T, H·K]`.
    pub attention: DeviceSlice<f32>,
    /// `[T, H·K]`.
    pub query: DeviceSlice<f32>,
    /// `[T, G·K]`.
    pub key: DeviceSlice<f32>,
    /// `[T, G·K]`.
    pub value: DeviceSlice<f32>,
    /// `[T, D]`.
    pub input_normed: DeviceSlice<f32>,
}

/// The output projection and the loss.
#[derive(Clone, Copy, Debug)]
pub struct LossSlices {
    /// The residual stream at the trained rows `[T, D]`.
    pub gathered: DeviceSlice<f32>,
    /// The same, normalised.
    pub normed: DeviceSlice<f32>,
    /// The gradient of `normed`, then of `gathered`.
    pub gradient: DeviceSlice<f32>,
    /// One chunk of logits and the products' own workspace.
    pub workspace: DeviceSlice<u8>,
}

/// Handles to everything in the working arena of a run.
#[derive(Clone, Debug)]
pub struct TrainingLayout {
    /// Inputs and losses.
    pub batch: BatchSlices,
    /// Rotation tables.
    pub rope: RopeTables,
    /// Trained parameters, gradients, moments.
    pub trainable: TrainableSlices,
    /// The residual stream before each layer and after the last.
    pub inputs: InputSlices,
    /// Through which the weights of paged layers pass.
    pub weight_window: Option<[DeviceSlice<u8>; 2]>,
    /// Activations of each layer; those of all that are recomputed are the same slices.
    pub layers: Vec<LayerSlices>,
    /// Gradients inside a layer.
    pub layer_gradients: LayerGradientSlices,
    /// Gradient of the residual stream `[T, D]`.
    pub residual_gradient: DeviceSlice<f32>,
    /// Loss.
    pub loss: LossSlices,
    /// Workspace of the operations of a layer.
    pub workspace: DeviceSlice<u8>,
    /// Buffers for writing samples, if the run writes any.
    pub generation: Option<GenerationLayout>,
}

impl TrainingLayout {
    /// Asks `regions` for everything that a run of `shape`, whose states lie as `layout` says, uses.
    pub fn new(regions: &mut Regions, shape: &TrainingShape, layout: &StateLayout) -> Self {
        let spec = &shape.spec;
        let n_rows = shape.n_rows();
        let width = spec.hidden_width;
        let trainable = trainable(regions, shape, layout);
        let n_positions = shape.sequence.max(shape.sample_tokens);
        let rope = rope_tables(regions, spec, n_positions);
        let batch = batch(regions, n_rows);
        let weight_window = weight_window(regions, shape);
        let inputs = inputs(regions, shape);
        let layers = layers(regions, shape);
        let mut gradient = |name: &'static str, width, first, last| {
            let moments = Moments::backward(first, last);
            regions.region(("gradient", name), Category::Activations, area(n_rows, width), moments)
        };
        let (query_width, key_width) = (spec.query_width(), spec.kv_width());
        let layer_gradients = LayerGradientSlices {
            activated: gradient("activated", spec.ffn_width, Backward::Down, Backward::Activation),
            feed_forward_normed: gradient(
                "feed_forward_normed",
                width,
                Backward::GateUp,
                Backward::FeedForwardNorm,
            ),
            attention: gradient("attention", query_width, Backward::Output, Backward::Attention),
            query: gradient("query", query_width, Backward::Attention, Backward::QueryKeyValue),
            key: gradient("key", key_width, Backward::Attention, Backward::QueryKeyValue),
            value: gradient("value", key_width, Backward::Attention, Backward::QueryKeyValue),
            input_normed: gradient(
                "input_normed",
                width,
                Backward::QueryKeyValue,
                Backward::InputNorm,
            ),
        };
        let residual_gradient = regions.region(
            "gradient.residual",
            Category::Activations,
            area(n_rows, width),
            Moments::residual_gradient(),
        );
        let loss = loss(regions, shape);
        let workspace = regions.region(
            "workspace.layers",
            Category::Workspace,
            layer_workspace_bytes(shape, true),
            Moments::layers(),
        );
        let generation = (shape.sample_tokens > 0).then(|| {
            let shape = GenerationShape {
                spec: spec.clone(),
                adapter: match shape.trainable {
                    Trainable::Adapter { rank, targets, .. } => Some((rank, targets)),
                    Trainable::Everything => None,
                },
                context: shape.sample_tokens,
                profile: shape.profile,
            };
            GenerationLayout::new(regions, &shape, Moments::GENERATE)
        });
        Self {
            batch,
            rope,
            trainable,
            inputs,
            weight_window,
            layers,
            layer_gradients,
            residual_gradient,
            loss,
            workspace,
            generation,
        }
    }
}

/// Elements of a matrix; absurd extents saturate, to be refused as a plan that does not fit.
pub(super) fn area(n_rows: usize, width: usize) -> usize {
    n_rows.saturating_mul(width)
}

fn trainable(
    regions: &mut Regions,
    shape: &TrainingShape,
    layout: &StateLayout,
) -> TrainableSlices {
    let adapter = shape.adapter_layout();
    let parameters = adapter
        .as_ref()
        .map(|layout| regions.region("adapter", Category::Adapters, layout.len(), Moments::ALWAYS));
    let n_bytes = match &adapter {
        Some(layout) => layout.len().saturating_mul(size_of::<f32>()),
        None => shape.gradient_layout().n_bytes(),
    };
    TrainableSlices {
        parameters,
        gradients: regions.region("gradients", Category::Gradients, n_bytes, Moments::ALWAYS),
        states: states(regions, shape, layout),
    }
}

pub(super) fn rope_tables(
    regions: &mut Regions,
    spec: &ModelSpec,
    n_positions: usize,
) -> RopeTables {
    let mut table = |name: &'static str| {
        let len = area(n_positions, spec.head_size / 2);
        regions.region(name, Category::Workspace, len, Moments::ALWAYS)
    };
    RopeTables { cos: table("rope.cos"), sin: table("rope.sin") }
}

pub(super) fn batch(regions: &mut Regions, n_rows: usize) -> BatchSlices {
    let moments = Moments::pass();
    let mut tokens =
        |name: &'static str| regions.region::<u32>(name, Category::Workspace, n_rows, moments);
    let (ids, positions) = (tokens("batch.ids"), tokens("batch.positions"));
    let (target_rows, targets) = (tokens("batch.target_rows"), tokens("batch.targets"));
    BatchSlices {
        ids,
        positions,
        target_rows,
        targets,
        segments: regions.region("batch.segments", Category::Workspace, n_rows, moments),
        losses: regions.region("batch.losses", Category::Workspace, n_rows, Moments::LOSS),
        loss_sum: regions.region("batch.loss_sum", Category::Workspace, 1, Moments::ALWAYS),
    }
}

/// One activation of every layer: one place for all that take turns in it, and one behind the other for
/// those behind them.
#[derive(Clone, Copy)]
struct Rows {
    /// Layers that take turns, the first of all.
    n_shared: usize,
    shared: Option<Floats>,
    kept: Option<Floats>,
    /// Elements of one layer.
    len: usize,
}

impl Rows {
    fn of(self, layer: usize) -> Floats {
        match (layer.checked_sub(self.n_shared), self.shared, self.kept) {
            (None, Some(shared), _) => shared,
            (Some(number), _, Some(kept)) => {
                // Absurd sizes saturate, to be refused as a plan that does not fit.
                let at = |n: usize| n.saturating_mul(self.len).min(kept.len());
                kept.slice(at(number)..at(number + 1))
            }
            _ => unreachable!("layers that take turns have a place, and so have those that do not"),
        }
    }
}

/// The activations of every layer. Those that are recomputed take turns in one set; of those that are kept
/// each has its own of what the backward pass reads, and all share the rest.
fn layers(regions: &mut Regions, shape: &TrainingShape) -> Vec<LayerSlices> {
    use Projection::{Down, Gate, Key, Output, Query, Up, Value};
    let spec = &shape.spec;
    let n_layers = spec.n_layers;
    let n_shared = shape.recomputed_layers();
    // Read again by the backward pass, at `until` the last time.
    let mut rows = |name: &'static str, (width, format), since: Forward, until: Backward| {
        let len = area(shape.n_rows(), width);
        let mut ask = |scope: &'static str, n: usize, moments| {
            let len = (len.saturating_mul(n), format);
            (n > 0).then(|| regions.floats((scope, name), Category::Activations, len, moments))
        };
        let shared = ask("layer", n_shared.min(1), Moments::recomputed(since, until));
        let kept = ask("layers", n_layers - n_shared, Moments::pass());
        Rows { n_shared, shared, kept, len }
    };

    let dropout = matches!(shape.trainable, Trainable::Adapter { dropout: true, .. });
    let output = |projection| {
        let [width, _] = spec.projection_shape(projection);
        (width, output_format(&shape.profile, spec, projection))
    };
    // What attention reads; or, where a norm comes before, what that is made from again.
    let (names, until) = match spec.qk_norm {
        false => (["query", "key"], Backward::Attention),
        true => (["query_raw", "key_raw"], Backward::Rotate),
    };
    let projected_query = rows(names[0], output(Query), Forward::QueryKeyValue, until);
    let projected_key = rows(names[1], output(Key), Forward::QueryKeyValue, until);
    let value = rows("value", output(Value), Forward::QueryKeyValue, Backward::Attention);
    let attended = (spec.query_width(), input_format(&shape.profile, spec, Output, dropout));
    let attention = rows("attention", attended, Forward::Attention, Backward::Attention);
    let of_heads = (spec.n_heads, FloatFormat::F32);
    let log_sum_exp = rows("log_sum_exp", of_heads, Forward::Attention, Backward::Attention);
    let residual = (spec.hidden_width, FloatFormat::F32);
    let middle = rows("middle", residual, Forward::Output, Backward::FeedForwardNorm);
    let gate = rows("gate", output(Gate), Forward::GateUp, Backward::GateUp);
    let up = rows("up", output(Up), Forward::GateUp, Backward::GateUp);

    let mut low_rank = [None; Projection::ALL.len()];
    if let Trainable::Adapter { targets, rank, .. } = shape.trainable {
        for (projection, since, until) in [
            (Query, Forward::QueryKeyValue, Backward::QueryKeyValue),
            (Key, Forward::QueryKeyValue, Backward::QueryKeyValue),
            (Value, Forward::QueryKeyValue, Backward::QueryKeyValue),
            (Output, Forward::Output, Backward::Output),
            (Gate, Forward::GateUp, Backward::GateUp),
            (Up, Forward::GateUp, Backward::GateUp),
        ] {
            if targets.contains(projection) {
                let (name, width) = (low_rank_name(projection), (rank, FloatFormat::F32));
                low_rank[projection as usize] = Some(rows(name, width, since, until));
            }
        }
    }

    // Inputs of products that one pass over memory makes from what is kept anyway: the backward pass makes
    // them again where the gradient of a weight or pair reads them.
    let mut input = |name: &'static str, projections: &[Projection], since, last, again| {
        let mut moments = Moments::forward(since, last);
        if projections.iter().any(|&projection| shape.trains(projection)) {
            moments = moments | Moments::backward(again, again);
        }
        let [_, width] = spec.projection_shape(projections[0]);
        let format = input_format(&shape.profile, spec, projections[0], dropout);
        let len = area(shape.n_rows(), width);
        regions.floats(("layer", name), Category::Activations, (len, format), moments)
    };
    let input_normed = input(
        "input_normed",
        &[Query, Key, Value],
        Forward::InputNorm,
        Forward::QueryKeyValue,
        Backward::QueryKeyValue,
    );
    let feed_forward_normed = input(
        "feed_forward_normed",
        &[Gate, Up],
        Forward::FeedForwardNorm,
        Forward::GateUp,
        Backward::GateUp,
    );
    let activated = input("activated", &[Down], Forward::Activation, Forward::Down, Backward::Down);
    let normed_heads = spec.qk_norm.then(|| {
        let moments = Moments::forward(Forward::Rotate, Forward::Attention)
            | Moments::backward(Backward::Attention, Backward::Attention);
        [("query", Query), ("key", Key)].map(|(name, projection)| {
            let (width, format) = output(projection);
            let len = (area(shape.n_rows(), width), format);
            regions.floats(("layer", name), Category::Activations, len, moments)
        })
    });
    // Each before its norm, if it has one, and as attention reads it.
    let of_heads = |projected: Rows, normed: Option<Floats>, layer: usize| {
        let projected = projected.of(layer);
        normed.map_or((None, projected), |normed| (Some(projected), normed))
    };
    let of_layer = |layer: usize| {
        let (query_raw, query) = of_heads(projected_query, normed_heads.map(|[q, _]| q), layer);
        let (key_raw, key) = of_heads(projected_key, normed_heads.map(|[_, k]| k), layer);
        LayerSlices {
            input_normed,
            query_raw,
            key_raw,
            query,
            key,
            value: value.of(layer),
            attention: attention.of(layer),
            log_sum_exp: log_sum_exp.of(layer).into_f32(),
            middle: middle.of(layer).into_f32(),
            feed_forward_normed,
            gate: gate.of(layer),
            up: up.of(layer),
            activated,
            low_rank: low_rank.map(|rows| rows.map(|rows: Rows| rows.of(layer).into_f32())),
        }
    };
    let mut layers: Vec<LayerSlices> = (0..n_layers).map(of_layer).collect();
    // The down product is the one whose output the backward pass never asks for again, so that it
    // is not repeated; what its pair needs of it is small and kept.
    if let Trainable::Adapter { targets, rank, .. } = shape.trainable
        && targets.contains(Projection::Down)
    {
        let part = (area(shape.n_rows(), rank), FloatFormat::F32);
        let name = RegionName::from(("layers", low_rank_name(Projection::Down)));
        let parts = regions.parts(name, Category::Activations, n_layers, part, Moments::pass());
        for (slices, part) in layers.iter_mut().zip(parts) {
            slices.low_rank[Projection::Down as usize] = Some(part.into_f32());
        }
    }
    layers
}

/// What is kept of the pair beside `projection`.
pub(super) fn low_rank_name(projection: Projection) -> &'static str {
    match projection {
        Projection::Query => "low_rank.q_proj",
        Projection::Key => "low_rank.k_proj",
        Projection::Value => "low_rank.v_proj",
        Projection::Output => "low_rank.o_proj",
        Projection::Gate => "low_rank.gate_proj",
        Projection::Up => "low_rank.up_proj",
        Projection::Down => "low_rank.down_proj",
    }
}

pub(super) fn loss(regions: &mut Regions, shape: &TrainingShape) -> LossSlices {
    let len = area(shape.n_rows(), shape.spec.hidden_width);
    let mut rows =
        |name: &'static str| regions.region(name, Category::Activations, len, Moments::LOSS);
    let (gathered, normed, gradient) =
        (rows("loss.gathered"), rows("loss.normed"), rows("loss.gradient"));
    let bytes = output_loss::workspace_bytes(&shape.profile, output_loss_shape(shape))
        .max(rms_norm::workspace_bytes(&shape.profile, norm_shape(&shape.spec, shape.n_rows())));
    let workspace = regions.region("workspace.loss", Category::Workspace, bytes, Moments::LOSS);
    LossSlices { gathered, normed, gradient, workspace }
}

/// The extents of the loss of a full micro-batch.
pub fn output_loss_shape(shape: &TrainingShape) -> OutputLossShape {
    OutputLossShape {
        n_rows: shape.n_rows(),
        width: shape.spec.hidden_width,
        vocabulary: shape.spec.vocabulary,
        chunk_rows: output_loss::default_chunk_rows(shape.spec.vocabulary),
    }
}

fn norm_shape(spec: &ModelSpec, n_rows: usize) -> RmsNormShape {
    RmsNormShape { n_rows, width: spec.hidden_width, epsilon: spec.rms_epsilon as f32 }
}

/// The most that any operation of a layer needs, forward alone or with the backward pass.
pub(super) fn layer_workspace_bytes(shape: &TrainingShape, backward: bool) -> usize {
    let (spec, profile, n_rows) = (&shape.spec, &shape.profile, shape.n_rows());
    let mut bytes = rms_norm::workspace_bytes(profile, norm_shape(spec, n_rows));
    if spec.qk_norm {
        let heads = area(n_rows, spec.n_heads);
        let shape =
            RmsNormShape { n_rows: heads, width: spec.head_size, epsilon: spec.rms_epsilon as f32 };
        bytes = bytes.max(rms_norm::workspace_bytes(profile, shape));
    }
    let attention = attention_shape(spec, 0, n_rows, n_rows, shape.sequence);
    bytes = bytes.max(attention::workspace_bytes(profile, attention, backward));
    let (adapter, dropout) = match shape.trainable {
        Trainable::Adapter { targets, rank, dropout } => (Some((rank, targets)), dropout),
        Trainable::Everything => (None, false),
    };
    bytes = bytes.max(products_workspace_bytes(spec, profile, n_rows, adapter, dropout));
    if adapter.is_none() && backward {
        for projection in Projection::ALL {
            let [n_out, n_in] = spec.projection_shape(projection);
            let formats = [
                input_format(profile, spec, projection, dropout),
                gradient_format(profile, spec, projection),
                shape.gradients,
            ];
            let shape = LinearShape { n_rows, n_in, n_out };
            bytes = bytes.max(linear::weight_gradient_workspace_bytes(profile, shape, formats));
        }
    }
    bytes
}

/// How the input of `projection`, and of those that share it, is kept.
pub(super) fn input_format(
    profile: &DeviceProfile,
    spec: &ModelSpec,
    projection: Projection,
    dropout: bool,
) -> FloatFormat {
    let [_, width] = spec.projection_shape(projection);
    // Some of it is dropped before it is rounded.
    if dropout { FloatFormat::F32 } else { linear::input_format(profile, width) }
}

/// How the output of `projection` is kept.
pub(super) fn output_format(
    profile: &DeviceProfile,
    spec: &ModelSpec,
    projection: Projection,
) -> FloatFormat {
    match projection {
        Projection::Query | Projection::Key | Projection::Value => {
            attention::input_format(profile.compute)
        }
        // The residual stream.
        Projection::Output | Projection::Down => FloatFormat::F32,
        // What their gradients are as well, which products read.
        Projection::Gate | Projection::Up => linear::input_format(profile, spec.ffn_width),
    }
}

/// How the gradient of that output is kept.
fn gradient_format(
    profile: &DeviceProfile,
    spec: &ModelSpec,
    projection: Projection,
) -> FloatFormat {
    match projection {
        // In the place of the output.
        Projection::Gate | Projection::Up => output_format(profile, spec, projection),
        _ => FloatFormat::F32,
    }
}

/// The most that the projections of a layer need, of which `adapter` has those that carry pairs.
pub(super) fn products_workspace_bytes(
    spec: &ModelSpec,
    profile: &DeviceProfile,
    n_rows: usize,
    adapter: Option<(usize, Targets)>,
    dropout: bool,
) -> usize {
    let of_one_input = |projections: &&[Projection]| {
        let [_, n_in] = spec.projection_shape(projections[0]);
        let layers = projections.iter().map(|&projection| LayerWidth {
            n_out: spec.projection_shape(projection)[0],
            has_pair: adapter.is_some_and(|(_, targets)| targets.contains(projection)),
            output: output_format(profile, spec, projection),
            gradient: gradient_format(profile, spec, projection),
        });
        let layers: ArrayVec<_, MAX_LAYERS> = layers.collect();
        let shape = LayersShape { n_rows, n_in, rank: adapter.map_or(0, |(rank, _)| rank) };
        let input = input_format(profile, spec, projections[0], dropout);
        layers::workspace_bytes(profile, shape, &layers, input, dropout)
    };
    Projection::OF_ONE_INPUT.iter().map(of_one_input).max().unwrap_or(0)
}

/// The extents of the attention of `layer` over `n_rows` queries.
pub fn attention_shape(
    spec: &ModelSpec,
    layer: usize,
    n_rows: usize,
    n_key_rows: usize,
    max_segment: usize,
) -> AttentionShape {
    AttentionShape {
        n_rows,
        n_key_rows,
        n_heads: spec.n_heads,
        n_kv_heads: spec.n_kv_heads,
        head_size: spec.head_size,
        window: spec.sliding_window(layer),
        scale: (1.0 / (spec.head_size as f64).sqrt()) as f32,
        max_segment,
    }
}
