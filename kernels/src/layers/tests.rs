use super::{reference::*, *};
use crate::{
    Backend, Compute, Cpu, DeviceKind, Isa, linear,
    testing::{
        Nf4Parts, Random, fetch, fetch_floats, on_every_device_that_multiplies, place, place_in,
        relative_error, rounded_to_bf16, workspace,
    },
};

/// Extents that are multiples of nothing, one row, ranks below and above a vector and the layer's own
/// width, and more rows than wait for their mask at a time.
/// Then more rows and more depth than are packed at a time, and a rank that is deeper than that.
/// Then layers that share their input: as queries, keys and values do, and some of them without a pair.
const CASES: [(LayersShape, &[LayerWidth]); 14] = [
    (LayersShape { n_rows: 1, n_in: 77, rank: 8 }, &[with_pair(33)]),
    (LayersShape { n_rows: 5, n_in: 123, rank: 1 }, &[with_pair(77)]),
    (LayersShape { n_rows: 14, n_in: 64, rank: 16 }, &[with_pair(32)]),
    (LayersShape { n_rows: 37, n_in: 600, rank: 7 }, &[with_pair(5)]),
    (LayersShape { n_rows: 61, n_in: 40, rank: 33 }, &[with_pair(530)]),
    (LayersShape { n_rows: 30, n_in: 9, rank: 40 }, &[with_pair(12)]),
    (LayersShape { n_rows: 1050, n_in: 700, rank: 3 }, &[with_pair(20)]),
    (LayersShape { n_rows: 9, n_in: 5, rank: 700 }, &[with_pair(18)]),
    (LayersShape { n_rows: 300, n_in: 35, rank: 64 }, &[with_pair(29)]),
    (
        LayersShape { n_rows: 41, n_in: 90, rank: 16 },
        &[with_pair(90), with_pair(30), with_pair(31)],
    ),
    (LayersShape { n_rows: 2, n_in: 70, rank: 5 }, &[with_pair(70), with_pair(41)]),
    (LayersShape { n_rows: 1040, n_in: 21, rank: 4 }, &[with_pair(60), with_pair(17)]),
    (LayersShape { n_rows: 25, n_in: 66, rank: 9 }, &[without(130), with_pair(20), without(7)]),
    (LayersShape { n_rows: 19, n_in: 30, rank: 0 }, &[without(40), without(1)]),
];

const fn with_pair(n_out: usize) -> LayerWidth {
    LayerWidth { has_pair: true, ..without(n_out) }
}

const fn without(n_out: usize) -> LayerWidth {
    let (output, gradient) = (FloatFormat::F32, FloatFormat::F32);
    LayerWidth { n_out, has_pair: false, output, gradient }
}

const SCALE: f32 = 1.7;

const DROPOUTS: [Option<f32>; 2] = [None, Some(0.3)];

/// Everything that the layers read, on the host.
struct Inputs {
    shape: LayersShape,
    x: Vec<f32>,
    /// How it lies on the device.
    format: FloatFormat,
    layers: Vec<LayerInputs>,
}

/// What one of them reads beside that.
struct LayerInputs {
    width: LayerWidth,
    dropout: Option<Dropout>,
    weight: Vec<f32>,
    bias: Vec<f32>,
    a: Vec<f32>,
    b: Vec<f32>,
    dy: Vec<f32>,
    residual: Option<Vec<f32>>,
    mask: Vec<f32>,
}

/// What the operation left.
struct Outputs {
    layers: Vec<LayerOutputs>,
    dx: Vec<f32>,
}

#[derive(Default)]
struct LayerOutputs {
    xa: Vec<f32>,
    y: Vec<f32>,
    da: Vec<f32>,
    db: Vec<f32>,
}

/// The factor of each of `n` inputs, as the device's hash decides.
fn mask(dropout: Option<Dropout>, n: usize) -> Vec<f32> {
    let mut mask = vec![1.0; n];
    if let Some(dropout) = dropout {
        dropout.apply(Isa::Portable, 0, &mut mask);
    }
    mask
}

impl LayerInputs {
    /// A rank of 0 where there is no pair.
    fn rank(&self, shape: LayersShape) -> usize {
        if self.width.has_pair { shape.rank } else { 0 }
    }
}

impl Inputs {
    fn new(
        (shape, widths): (LayersShape, &[LayerWidth]),
        dropout: Option<f32>,
        random: &mut Random,
    ) -> Self {
        let LayersShape { n_rows, n_in, rank } = shape;
        let mut seed = 98;
        let layer = |(number, &width): (usize, &LayerWidth)| {
            let LayerWidth { n_out, has_pair, .. } = width;
            let rank = if has_pair { rank } else { 0 };
            seed += 1;
            // Of several the second drops nothing.
            let dropout = dropout.filter(|_| number != 1);
            // And the first is added to nothing.
            let is_added = number > 0 || widths.len() == 1;
            let dropout = dropout.map(|probability| Dropout { probability, seed });
            LayerInputs {
                width,
                dropout,
                weight: random.normal(n_out * n_in),
                bias: random.normal(n_out),
                a: random.normal(rank * n_in),
                b: random.normal(n_out * rank),
                dy: random.normal(n_rows * n_out),
                residual: Some(random.normal(n_rows * n_out)).filter(|_| is_added),
                mask: mask(dropout, n_rows * n_in),
            }
        };
        let layers = widths.iter().enumerate().map(layer).collect();
        Self { shape, x: random.normal(n_rows * n_in), format: FloatFormat::F32, layers }
    }

    fn widths(&self) -> Vec<LayerWidth> {
        self.layers.iter().map(|layer| layer.width).collect()
    }

    fn pair<'a>(&'a self, layer: &'a LayerInputs, products_see: Compute) -> Pair<'a> {
        let LayersShape { n_rows, n_in, .. } = self.shape;
        let LayerInputs { width, weight, bias, a, b, mask, .. } = layer;
        let rank = layer.rank(self.shape);
        let shape = PairShape { n_rows, n_in, n_out: width.n_out, rank };
        Pair { shape, scale: SCALE, mask, x: &self.x, weight, bias, a, b, products_see }
    }

    fn workspace(&self, device: &mut impl Memory) -> DeviceSlice<u8> {
        let dropout = self.layers.iter().any(|layer| layer.dropout.is_some());
        let bytes =
            workspace_bytes(&device.profile(), self.shape, &self.widths(), self.format, dropout);
        workspace(device, bytes)
    }

    fn place_x(&self, device: &mut impl Memory) -> Floats {
        place_in(device, &self.x, self.format)
    }

    /// The pairs on the device, with what they keep.
    fn adapters(&self, device: &mut impl Memory, xa: &[Vec<f32>]) -> Vec<Option<Adapter>> {
        let mut adapters = Vec::new();
        for (layer, xa) in self.layers.iter().zip(xa) {
            adapters.push(layer.width.has_pair.then(|| {
                let pair = LoraPair { a: place(device, &layer.a), b: place(device, &layer.b) };
                let xa = place(device, xa);
                Adapter { pair, scale: SCALE, dropout: layer.dropout, xa }
            }));
        }
        adapters
    }

    /// Runs both directions; outputs that are added to begin with `before`.
    fn run(&self, device: &mut impl Layers, before: f32) -> Outputs {
        let weights = self.weights(device);
        self.run_with(device, &weights, before)
    }

    /// Every layer's weight in f32.
    fn weights(&self, device: &mut impl Memory) -> Vec<Weight> {
        self.layers.iter().map(|layer| Weight::F32(place(device, &layer.weight))).collect()
    }

    fn run_with(&self, device: &mut impl Layers, weights: &[Weight], before: f32) -> Outputs {
        let scratch = self.workspace(device);
        let unset = vec![vec![f32::NAN; self.shape.n_rows * self.shape.rank]; self.layers.len()];
        let adapters = self.adapters(device, &unset);
        let x = self.place_x(device);
        let mut layers = Vec::new();
        for ((layer, &weight), adapter) in self.layers.iter().zip(weights).zip(&adapters) {
            let bias = Some(place(device, &layer.bias));
            let n_out = layer.width.n_out;
            let residual = layer.residual.as_ref().map(|residual| place(device, residual));
            let unset = vec![f32::NAN; self.shape.n_rows * n_out];
            let y = place_in(device, &unset, layer.width.output);
            layers.push(Layer { weight, bias, adapter: *adapter, n_out, residual, y });
        }
        device.layers(self.shape, x, &layers, scratch);
        let y: Vec<_> = layers.iter().map(|layer| fetch_floats(device, layer.y)).collect();
        let dx = vec![before; self.x.len()];
        let dx = Some((place(device, &dx), Store::Accumulate));
        let mut outputs = self.run_back(device, (x, weights, &adapters), before, dx, scratch);
        outputs.layers.iter_mut().zip(y).for_each(|(outputs, y)| outputs.y = y);
        outputs
    }

    /// The way back from what a run has left of the way forward.
    fn run_back_alone(
        &self,
        device: &mut impl Layers,
        left: &Outputs,
        before: f32,
        dx: Option<(DeviceSlice<f32>, Store)>,
    ) -> Outputs {
        let scratch = self.workspace(device);
        let x = self.place_x(device);
        let weights = self.weights(device);
        let xa: Vec<_> = left.layers.iter().map(|layer| layer.xa.clone()).collect();
        let adapters = self.adapters(device, &xa);
        self.run_back(device, (x, &weights, &adapters), before, dx, scratch)
    }

    /// The way back; where gradients are added to, `before` is there, and where not, nothing that may be
    /// read.
    fn run_back(
        &self,
        device: &mut impl Layers,
        (x, weights, adapters): (Floats, &[Weight], &[Option<Adapter>]),
        before: f32,
        dx: Option<(DeviceSlice<f32>, Store)>,
        scratch: DeviceSlice<u8>,
    ) -> Outputs {
        let gradients = if before.is_nan() { Store::Overwrite } else { Store::Accumulate };
        let mut layers = Vec::new();
        for ((layer, &weight), adapter) in self.layers.iter().zip(weights).zip(adapters) {
            let adapter = adapter.map(|adapter| {
                let a = place(device, &vec![before; layer.a.len()]);
                let b = place(device, &vec![before; layer.b.len()]);
                (adapter, LoraPair { a, b })
            });
            let dy = place_in(device, &layer.dy, layer.width.gradient);
            layers.push(LayerBackward { weight, adapter, n_out: layer.width.n_out, dy });
        }
        device.layers_backward(self.shape, x, &layers, gradients, dx, scratch);
        let outputs = |layer: &LayerBackward| {
            let Some((adapter, gradient)) = layer.adapter else { return LayerOutputs::default() };
            let (da, db) = (fetch(device, gradient.a), fetch(device, gradient.b));
            LayerOutputs { xa: fetch(device, adapter.xa), y: Vec::new(), da, db }
        };
        let layers = layers.iter().map(outputs).collect();
        Outputs { layers, dx: dx.map_or(Vec::new(), |(dx, _)| fetch(device, dx)) }
    }
}

/// At most twice the error of the same products in plain order and the same precision.
fn check(what: &str, actual: &[f32], plain: &[f32], exact: &[f64]) {
    let limit = 2.0 * relative_error(plain, exact) + f64::from(f32::EPSILON);
    let error = relative_error(actual, exact);
    assert!(error <= limit, "{what}: {error:e} beyond {limit:e}");
}

fn both_directions_match_the_reference(device: &mut impl Layers) {
    let mut random = Random::new(1);
    for case in CASES {
        for dropout in DROPOUTS {
            check_against_reference(device, case, dropout, &mut random);
        }
    }
}

fn check_against_reference(
    device: &mut impl Layers,
    case: (LayersShape, &[LayerWidth]),
    dropout: Option<f32>,
    random: &mut Random,
) {
    let compute = device.profile().compute;
    let inputs = Inputs::new(case, dropout, random);
    let actual = inputs.run(device, 0.0);
    let mut exact_dx = vec![0.0; inputs.x.len()];
    let mut plain_dx = vec![0.0; inputs.x.len()];
    for (number, (layer, actual)) in inputs.layers.iter().zip(&actual.layers).enumerate() {
        let what = |part: &str| format!("{part} of {number} in {case:?} with {dropout:?}");
        let exact = inputs.pair(layer, Compute::F32);
        let plain = inputs.pair(layer, compute);
        let (exact_xa, exact_sum) = exact.forward::<f64>();
        let (plain_xa, plain_sum) = plain.forward::<f32>();
        let before = layer.residual.clone().unwrap_or_else(|| vec![0.0; exact_sum.len()]);
        let before = before.iter();
        let exact_y: Vec<_> =
            exact_sum.iter().zip(before.clone()).map(|(sum, &y)| sum + f64::from(y)).collect();
        let plain_y: Vec<_> = plain_sum.iter().zip(before).map(|(sum, y)| sum + y).collect();
        check(&what("y"), &actual.y, &plain_y, &exact_y);
        let exact = exact.backward(&exact_xa, &layer.dy);
        let plain = plain.backward(&plain_xa, &layer.dy);
        if layer.width.has_pair {
            check(&what("xa"), &actual.xa, &plain_xa, &exact_xa);
            check(&what("dA"), &actual.da, &plain.da, &exact.da);
            check(&what("dB"), &actual.db, &plain.db, &exact.db);
        }
        exact_dx.iter_mut().zip(&exact.dx).for_each(|(sum, dx)| *sum += dx);
        plain_dx.iter_mut().zip(&plain.dx).for_each(|(sum, dx)| *sum += dx);
    }
    let what = format!("dx of {case:?} with {dropout:?}");
    check(&what, &actual.dx, &plain_dx, &exact_dx);
}

fn gradients_add_to_what_is_there(device: &mut impl Layers) {
    let mut random = Random::new(2);
    for (case, dropout) in [4, 9].into_iter().flat_map(|i| DROPOUTS.map(|d| (CASES[i], d))) {
        let inputs = Inputs::new(case, dropout, &mut random);
        let (fresh, added) = (inputs.run(device, 0.0), inputs.run(device, 3.0));
        // One rounding for each block of k (at least 192 steps in f32) of each layer added to a larger
        // number, and one for each pair's part.
        let n_blocks: usize = case.1.iter().map(|layer| layer.n_out.div_ceil(192) + 1).sum();
        let mut parts = vec![(fresh.dx, added.dx)];
        for (fresh, added) in fresh.layers.into_iter().zip(added.layers) {
            parts.extend([(fresh.da, added.da), (fresh.db, added.db)]);
        }
        for (fresh, added) in parts {
            let expected: Vec<_> = fresh.iter().map(|&value| f64::from(value) + 3.0).collect();
            let error = relative_error(&added, &expected);
            assert!(error <= n_blocks as f64 * f64::from(f32::EPSILON), "{dropout:?}: {error:e}");
        }
    }
}

/// The first micro-batch of a step finds the gradients of the step before.
fn gradients_replace_what_is_there(device: &mut impl Layers) {
    let mut random = Random::new(7);
    for (case, dropout) in [2, 9, 12].into_iter().flat_map(|i| DROPOUTS.map(|d| (CASES[i], d))) {
        let inputs = Inputs::new(case, dropout, &mut random);
        let expected = inputs.run(device, 0.0);
        let dx = place(device, &vec![f32::NAN; inputs.x.len()]);
        let dx = Some((dx, Store::Overwrite));
        let actual = inputs.run_back_alone(device, &expected, f32::NAN, dx);
        assert!(actual.dx == expected.dx, "dx of {case:?}, {dropout:?}");
        for (actual, expected) in actual.layers.iter().zip(&expected.layers) {
            assert!(actual.da == expected.da, "dA of {case:?}, {dropout:?}");
            assert!(actual.db == expected.db, "dB of {case:?}, {dropout:?}");
        }
    }
}

fn an_unwanted_input_gradient_changes_nothing_else(device: &mut impl Layers) {
    for case in [2, 9, 12] {
        let inputs = Inputs::new(CASES[case], DROPOUTS[1], &mut Random::new(3));
        let expected = inputs.run(device, 0.0);
        let actual = inputs.run_back_alone(device, &expected, 0.0, None);
        for (actual, expected) in actual.layers.iter().zip(&expected.layers) {
            assert!(actual.da == expected.da && actual.db == expected.db, "case {case}");
        }
    }
}

/// A weight gives the bits of its values, however it is stored.
fn every_store_of_a_weight_gives_the_same_bits(device: &mut impl Backend) {
    // Columns of tasks and of blocks that do not divide each other, and rows that are no blocks.
    for (n_in, n_outs) in [(96, [160, 32]), (128, [96, 48]), (80, [48, 112])] {
        let shape = LayersShape { n_rows: 19, n_in, rank: 5 };
        let mut inputs = Inputs::new((shape, &n_outs.map(with_pair)), None, &mut Random::new(6));
        let parts: Vec<_> =
            inputs.layers.iter().map(|layer| Nf4Parts::quantize(&layer.weight)).collect();
        for (layer, parts) in inputs.layers.iter_mut().zip(&parts) {
            layer.weight = parts.values();
        }
        let expected = inputs.run(device, 0.0);
        let quantised: Vec<_> =
            parts.iter().map(|parts| Weight::Nf4(parts.place(device))).collect();
        let actual = inputs.run_with(device, &quantised, 0.0);
        assert!(actual.dx == expected.dx, "dx of {shape:?}");
        for (actual, expected) in actual.layers.iter().zip(&expected.layers) {
            assert!(actual.y == expected.y, "y of {shape:?}");
        }
    }
}

/// What products would round may be in bf16 already.
fn what_products_round_gives_the_same_bits_in_bf16(device: &mut impl Layers) {
    let profile = device.profile();
    for case in CASES {
        let mut inputs = Inputs::new(case, None, &mut Random::new(9));
        let expected = inputs.run(device, 0.0);
        inputs.format = linear::input_format(&profile, case.0.n_in);
        for layer in &mut inputs.layers {
            layer.width.gradient = linear::input_format(&profile, layer.width.n_out);
        }
        let actual = inputs.run(device, 0.0);
        assert!(actual.dx == expected.dx, "dx of {case:?}");
        for (actual, expected) in actual.layers.iter().zip(&expected.layers) {
            assert!(actual.y == expected.y && actual.xa == expected.xa, "{case:?}");
            assert!(actual.da == expected.da && actual.db == expected.db, "{case:?}");
        }
    }
}

/// In bf16 stands what would be in f32, rounded.
fn an_output_in_bf16_is_rounded_once(device: &mut impl Layers) {
    if device.profile().compute == Compute::F32 {
        return;
    }
    for (case, dropout) in CASES.into_iter().flat_map(|case| DROPOUTS.map(|d| (case, d))) {
        let mut inputs = Inputs::new(case, dropout, &mut Random::new(10));
        inputs.layers.iter_mut().for_each(|layer| layer.residual = None);
        let expected = inputs.run(device, 0.0);
        inputs.layers.iter_mut().for_each(|layer| layer.width.output = FloatFormat::Bf16);
        let actual = inputs.run(device, 0.0);
        for (actual, expected) in actual.layers.iter().zip(&expected.layers) {
            assert!(actual.y == rounded_to_bf16(&expected.y), "y of {case:?}, {dropout:?}");
            assert!(actual.xa == expected.xa, "xa of {case:?}, {dropout:?}");
        }
    }
}

/// Picks the values to take a step in.
type Choose = fn(&mut Inputs, usize) -> &mut Vec<f32>;

/// `Σ y · dy` is linear in each of x, W, A and B, so that a step of any size gives its derivative
/// exactly, but for rounding.
fn gradients_match_finite_differences(device: &mut impl Layers) {
    let mut random = Random::new(4);
    for (case, dropout) in [2, 9].into_iter().flat_map(|i| DROPOUTS.map(|d| (CASES[i], d))) {
        let mut inputs = Inputs::new(case, dropout, &mut random);
        inputs.layers.iter_mut().for_each(|layer| layer.residual = None);
        let gradients = inputs.run(device, 0.0);
        let loss = |inputs: &Inputs, device: &mut _| -> (f64, f64) {
            let outputs = inputs.run(device, 0.0).layers;
            let terms = outputs.iter().zip(&inputs.layers).flat_map(|(outputs, layer)| {
                let pairs = outputs.y.iter().zip(&layer.dy);
                pairs.map(|(&y, &dy)| f64::from(y) * f64::from(dy))
            });
            terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()))
        };
        // In bf16 each of a path's four operands (of two products) may be off by half a unit in
        // the last place, half of that on average at either end of the step; in f32 the sums of up
        // to 90 terms are what rounds.
        let unit = match device.profile().compute {
            Compute::F32 => f64::from(f32::EPSILON) * case.0.n_in as f64,
            Compute::Bf16 => f64::from(half::bf16::EPSILON),
        };
        const STEP: f32 = 1.0;
        for (number, of_layer) in gradients.layers.iter().enumerate() {
            let parts: [(Choose, &[f32]); 3] = [
                (|inputs, _| &mut inputs.x, &gradients.dx),
                (|inputs, number| &mut inputs.layers[number].a, &of_layer.da),
                (|inputs, number| &mut inputs.layers[number].b, &of_layer.db),
            ];
            for (part, (values, gradient)) in parts.into_iter().enumerate().flat_map(|p| [p; 2]) {
                let i = random.below(gradient.len());
                let value = values(&mut inputs, number)[i];
                values(&mut inputs, number)[i] = value + STEP;
                let (above, size) = loss(&inputs, device);
                values(&mut inputs, number)[i] = value - STEP;
                let (below, other_size) = loss(&inputs, device);
                values(&mut inputs, number)[i] = value;
                let actual = (above - below) / (2.0 * f64::from(STEP));
                let limit = unit * (size + other_size);
                let error = (actual - f64::from(gradient[i])).abs();
                assert!(error <= limit, "part {part}, {i}: {error:e} beyond {limit:e}");
            }
        }
    }
}

on_every_device_that_multiplies! {
    both_directions_match_the_reference,
    gradients_add_to_what_is_there,
    gradients_replace_what_is_there,
    an_unwanted_input_gradient_changes_nothing_else,
    every_store_of_a_weight_gives_the_same_bits,
    what_products_round_gives_the_same_bits_in_bf16,
    an_output_in_bf16_is_rounded_once,
    gradients_match_finite_differences,
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    for case in CASES {
        for dropout in DROPOUTS {
            for compute in [Compute::F32, Compute::Bf16] {
                let results = [1, 2, 3].map(|n_threads| {
                    let kind = DeviceKind::Cpu { isa: Isa::best(), n_threads };
                    let mut device = Cpu::new(DeviceProfile { kind, compute }).unwrap();
                    let inputs = Inputs::new(case, dropout, &mut Random::new(5));
                    let Outputs { layers, dx } = inputs.run(&mut device, 0.5);
                    let parts = layers.into_iter().flat_map(|layer| {
                        let LayerOutputs { xa, y, da, db } = layer;
                        [xa, y, da, db].concat()
                    });
                    parts.chain(dx).map(f32::to_bits).collect::<Vec<_>>()
                });
                assert!(results.iter().all(|result| *result == results[0]), "{case:?}");
            }
        }
    }
}

/// Rows of wide layers come one layer after another, and those of deep ones some steps of k at a time, but with a pair
/// all of them. A pair's input or its rank may be several blocks deep, whatever multiplies.
#[test]
fn wide_layers_take_turns_and_deep_ones_come_in_spans() {
    let wide = LayersShape { n_rows: 450, n_in: 3, rank: 1 };
    let widths = [with_pair(9000), with_pair(1000)];
    let isa = Isa::best();
    let together = cpu::rows_together((isa, Compute::F32), widths.iter().map(|layer| layer.n_out));
    assert!(together < wide.n_rows, "{together} rows");
    let deep = LayersShape { n_rows: 30, n_in: 40_000, rank: 0 };
    let with_deep_pair = LayersShape { n_rows: 37, n_in: 4_500, rank: 7 };
    let with_deep_rank = LayersShape { n_rows: 9, n_in: 5, rank: 2_100 };
    for case in [
        (wide, &widths[..]),
        (deep, &[without(3), without(2)]),
        (with_deep_pair, &[with_pair(20)]),
        (with_deep_rank, &[with_pair(18)]),
    ] {
        for compute in [Compute::F32, Compute::Bf16] {
            let kind = DeviceKind::Cpu { isa, n_threads: 2 };
            let mut device = Cpu::new(DeviceProfile { kind, compute }).unwrap();
            check_against_reference(&mut device, case, None, &mut Random::new(8));
        }
    }
}

#[test]
fn the_share_and_scale_of_dropped_inputs_are_those_asked_for() {
    const N: usize = 1 << 20;
    for probability in [0.0, 0.05, 0.3, 0.9] {
        for seed in [0, 1, u64::MAX] {
            let mask = mask(Some(Dropout { probability, seed }), N);
            let kept = 1.0 / (1.0 - probability);
            assert!(mask.iter().all(|&factor| factor == 0.0 || factor == kept));
            let n_dropped = mask.iter().filter(|&&factor| factor == 0.0).count();
            // Five standard deviations of a binomial distribution.
            let (n, p) = (N as f64, f64::from(probability));
            let deviation = 5.0 * (n * p * (1.0 - p)).sqrt();
            let off = (n_dropped as f64 - n * p).abs();
            assert!(off <= deviation, "{probability} of {N}: {n_dropped}");
        }
    }
}

#[test]
fn the_mask_depends_on_the_seed_and_the_index_and_on_nothing_else() {
    const N: usize = 10_000;
    let dropout = |seed| Dropout { probability: 0.5, seed };
    let whole = mask(Some(dropout(7)), N);
    for isa in Isa::available() {
        for (start, n) in [(0, N), (1, 1000), (4_999, 3)] {
            let mut part = vec![1.0; n];
            dropout(7).apply(isa, start, &mut part);
            assert_eq!(part, whole[start..start + n], "{isa} from {start}");
        }
    }
    // Neighbouring seeds, and a mask and itself one further, agree on half of their elements: five
    // standard deviations.
    let deviation = 5.0 * (N as f64 / 4.0).sqrt();
    let other = mask(Some(dropout(8)), N);
    for other in [&other[..], &whole[1..]] {
        let n_alike = whole.iter().zip(other).filter(|(a, b)| a == b).count();
        assert!((n_alike as f64 - N as f64 / 2.0).abs() <= deviation, "{n_alike} of {N}");
    }
}

#[test]
fn a_workspace_suits_fewer_rows() {
    for profile in crate::testing::profiles() {
        for rank in [1, 8, 16, 64] {
            for (input, dropout) in [(FloatFormat::F32, true), (FloatFormat::Bf16, false)] {
                let bytes = |n_rows| {
                    let shape = LayersShape { n_rows, n_in: 300, rank };
                    let layers = [with_pair(7000), without(70)].map(|layer| LayerWidth {
                        output: input,
                        gradient: input,
                        ..layer
                    });
                    workspace_bytes(&profile, shape, &layers, input, dropout)
                };
                assert!((1..1100).all(|n_rows| bytes(n_rows) <= bytes(n_rows + 1)));
            }
        }
    }
}
