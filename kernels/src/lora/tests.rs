use super::{reference::*, *};
use crate::{
    Backend, Compute, Cpu, DeviceKind, Isa,
    testing::{Nf4Parts, Random, fetch, on_every_device, place, relative_error, workspace},
};

/// Extents that are multiples of nothing, one row, ranks below and above a vector and the layer's own
/// width, and more rows than wait for their mask at a time.
/// Then more rows and more depth than are packed at a time, and a rank that is deeper than that.
const SHAPES: [LoraShape; 9] = [
    LoraShape { n_rows: 1, n_in: 77, n_out: 33, rank: 8 },
    LoraShape { n_rows: 5, n_in: 123, n_out: 77, rank: 1 },
    LoraShape { n_rows: 14, n_in: 64, n_out: 32, rank: 16 },
    LoraShape { n_rows: 37, n_in: 600, n_out: 5, rank: 7 },
    LoraShape { n_rows: 61, n_in: 40, n_out: 530, rank: 33 },
    LoraShape { n_rows: 30, n_in: 9, n_out: 12, rank: 40 },
    LoraShape { n_rows: 1050, n_in: 700, n_out: 20, rank: 3 },
    LoraShape { n_rows: 9, n_in: 5, n_out: 18, rank: 700 },
    LoraShape { n_rows: 300, n_in: 35, n_out: 29, rank: 64 },
];

const SCALE: f32 = 1.7;

const DROPOUTS: [Option<Dropout>; 2] = [None, Some(Dropout { probability: 0.3, seed: 99 })];

/// Everything that the pair reads, on the host and on the device.
struct Inputs {
    shape: LoraShape,
    dropout: Option<Dropout>,
    x: Vec<f32>,
    weight: Vec<f32>,
    bias: Vec<f32>,
    a: Vec<f32>,
    b: Vec<f32>,
    dy: Vec<f32>,
    y: Vec<f32>,
    mask: Vec<f32>,
}

/// What the operation left.
struct Outputs {
    xa: Vec<f32>,
    y: Vec<f32>,
    da: Vec<f32>,
    db: Vec<f32>,
    dx: Vec<f32>,
}

/// The factor of each of `n` inputs, as the device's hash decides.
fn mask(dropout: Option<Dropout>, n: usize) -> Vec<f32> {
    let mut mask = vec![1.0; n];
    if let Some(dropout) = dropout {
        dropout.apply(Isa::Portable, 0, &mut mask);
    }
    mask
}

impl Inputs {
    fn new(shape: LoraShape, dropout: Option<Dropout>, random: &mut Random) -> Self {
        let LoraShape { n_rows, n_in, n_out, rank } = shape;
        Self {
            shape,
            dropout,
            x: random.normal(n_rows * n_in),
            weight: random.normal(n_out * n_in),
            bias: random.normal(n_out),
            a: random.normal(rank * n_in),
            b: random.normal(n_out * rank),
            dy: random.normal(n_rows * n_out),
            y: random.normal(n_rows * n_out),
            mask: mask(dropout, n_rows * n_in),
        }
    }

    fn pair(&self, products_see: Compute) -> Pair<'_> {
        let Self { shape, x, weight, bias, a, b, mask, .. } = self;
        Pair { shape: *shape, scale: SCALE, mask, x, weight, bias, a, b, products_see }
    }

    /// The pair on the device, with what it keeps.
    fn adapter(&self, device: &mut impl Memory, xa: &[f32]) -> Adapter {
        let pair = LoraPair { a: place(device, &self.a), b: place(device, &self.b) };
        Adapter { pair, scale: SCALE, dropout: self.dropout, xa: place(device, xa) }
    }

    /// Runs both directions; outputs that are added to begin with `before`.
    fn run(&self, device: &mut impl Lora, before: f32) -> Outputs {
        let weight = Weight::F32(place(device, &self.weight));
        self.run_with(device, weight, before)
    }

    fn run_with(&self, device: &mut impl Lora, weight: Weight, before: f32) -> Outputs {
        let bytes = workspace_bytes(&device.profile(), self.shape, self.dropout.is_some());
        let scratch = workspace(device, bytes);
        let filled = |n: usize| vec![before; n];
        let x = place(device, &self.x);
        let bias = Some(place(device, &self.bias));
        let dy = place(device, &self.dy);
        let y = place(device, &self.y);
        let adapter = self.adapter(device, &vec![f32::NAN; self.shape.n_rows * self.shape.rank]);
        let a = place(device, &filled(self.a.len()));
        let gradient = LoraPair { a, b: place(device, &filled(self.b.len())) };
        let dx = place(device, &filled(self.x.len()));
        let (shape, store) = (self.shape, Store::Accumulate);
        device.adapted_linear(shape, x, weight, bias, adapter, store, y, scratch);
        device.adapted_linear_backward(
            shape, x, weight, adapter, dy, gradient, store, Some(dx), scratch,
        );
        Outputs {
            xa: fetch(device, adapter.xa),
            y: fetch(device, y),
            da: fetch(device, gradient.a),
            db: fetch(device, gradient.b),
            dx: fetch(device, dx),
        }
    }
}

/// At most twice the error of the same products in plain order and the same precision.
fn check(what: &str, actual: &[f32], plain: &[f32], exact: &[f64]) {
    let limit = 2.0 * relative_error(plain, exact) + f64::from(f32::EPSILON);
    let error = relative_error(actual, exact);
    assert!(error <= limit, "{what}: {error:e} beyond {limit:e}");
}

fn both_directions_match_the_reference(device: &mut impl Lora) {
    let compute = device.profile().compute;
    let mut random = Random::new(1);
    for shape in SHAPES {
        for dropout in DROPOUTS {
            let inputs = Inputs::new(shape, dropout, &mut random);
            let actual = inputs.run(device, 0.0);
            let what = |part: &str| format!("{part} of {shape:?} with {dropout:?}");
            let (exact, plain) = (inputs.pair(Compute::F32), inputs.pair(compute));

            let (exact_xa, exact_sum) = exact.forward::<f64>();
            let (plain_xa, plain_sum) = plain.forward::<f32>();
            let exact_y: Vec<_> =
                exact_sum.iter().zip(&inputs.y).map(|(sum, &y)| sum + f64::from(y)).collect();
            let plain_y: Vec<_> = plain_sum.iter().zip(&inputs.y).map(|(sum, y)| sum + y).collect();
            check(&what("xa"), &actual.xa, &plain_xa, &exact_xa);
            check(&what("y"), &actual.y, &plain_y, &exact_y);

            let exact = exact.backward(&exact_xa, &inputs.dy);
            let plain = plain.backward(&plain_xa, &inputs.dy);
            check(&what("dA"), &actual.da, &plain.da, &exact.da);
            check(&what("dB"), &actual.db, &plain.db, &exact.db);
            check(&what("dx"), &actual.dx, &plain.dx, &exact.dx);
        }
    }
}

fn gradients_add_to_what_is_there(device: &mut impl Lora) {
    let mut random = Random::new(2);
    for dropout in DROPOUTS {
        let inputs = Inputs::new(SHAPES[4], dropout, &mut random);
        let (fresh, added) = (inputs.run(device, 0.0), inputs.run(device, 3.0));
        // One rounding for each block of k (at least 192 steps in f32) added to a larger number, and
        // one for the pair's part.
        let n_roundings = (inputs.shape.n_out.div_ceil(192) + 1) as f64;
        let parts = [(fresh.da, added.da), (fresh.db, added.db), (fresh.dx, added.dx)];
        for (fresh, added) in parts {
            let expected: Vec<_> = fresh.iter().map(|&value| f64::from(value) + 3.0).collect();
            let error = relative_error(&added, &expected);
            assert!(error <= n_roundings * f64::from(f32::EPSILON), "{dropout:?}: {error:e}");
        }
    }
}

fn an_unwanted_input_gradient_changes_nothing_else(device: &mut impl Lora) {
    let inputs = Inputs::new(SHAPES[2], DROPOUTS[1], &mut Random::new(3));
    let expected = inputs.run(device, 0.0);
    let (shape, store) = (inputs.shape, Store::Overwrite);
    let scratch = workspace_bytes(&device.profile(), shape, true);
    let scratch = workspace(device, scratch);
    let x = place(device, &inputs.x);
    let weight = Weight::F32(place(device, &inputs.weight));
    let adapter = inputs.adapter(device, &expected.xa);
    let dy = place(device, &inputs.dy);
    let a = place(device, &vec![0.0; inputs.a.len()]);
    let gradient = LoraPair { a, b: place(device, &vec![0.0; inputs.b.len()]) };
    device.adapted_linear_backward(
        shape, x, weight, adapter, dy, gradient, store, None, scratch,
    );
    assert_eq!(fetch(device, gradient.a), expected.da);
    assert_eq!(fetch(device, gradient.b), expected.db);
}

/// A weight gives the bits of its values, however it is stored.
fn every_store_of_a_weight_gives_the_same_bits(device: &mut impl Backend) {
    // Columns of tasks and of blocks that do not divide each other, and rows that are no blocks.
    for (n_in, n_out) in [(96, 160), (128, 96), (80, 48)] {
        let shape = LoraShape { n_rows: 19, n_in, n_out, rank: 5 };
        let mut inputs = Inputs::new(shape, None, &mut Random::new(6));
        let parts = Nf4Parts::quantize(&inputs.weight);
        inputs.weight = parts.values();
        let plain = Weight::F32(place(device, &inputs.weight));
        let expected = inputs.run_with(device, plain, 0.0);
        let quantised = Weight::Nf4(parts.place(device));
        let actual = inputs.run_with(device, quantised, 0.0);
        assert_eq!((actual.y, actual.dx), (expected.y, expected.dx), "{shape:?}");
    }
}

/// Picks the values to take a step in.
type Choose = fn(&mut Inputs) -> &mut Vec<f32>;

/// `Σ y · dy` is linear in each of x, W, A and B, so that a step of any size gives its derivative
/// exactly, but for rounding.
fn gradients_match_finite_differences(device: &mut impl Lora) {
    let mut random = Random::new(4);
    for dropout in DROPOUTS {
        let mut inputs = Inputs::new(SHAPES[2], dropout, &mut random);
        inputs.y.fill(0.0);
        let gradients = inputs.run(device, 0.0);
        let dy = inputs.dy.clone();
        let loss = |inputs: &Inputs, device: &mut _| -> (f64, f64) {
            let y = inputs.run(device, 0.0).y;
            let terms = y.iter().zip(&dy).map(|(&y, &dy)| f64::from(y) * f64::from(dy));
            terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()))
        };
        // In bf16 each of a path's four operands (of two products) may be off by half a unit in
        // the last place, half of that on average at either end of the step; in f32 the sums of up
        // to 64 terms are what rounds.
        let unit = match device.profile().compute {
            Compute::F32 => f64::from(f32::EPSILON) * 64.0,
            Compute::Bf16 => f64::from(half::bf16::EPSILON),
        };
        const STEP: f32 = 1.0;
        let parts: [(Choose, &[f32]); 3] = [
            (|inputs| &mut inputs.x, &gradients.dx),
            (|inputs| &mut inputs.a, &gradients.da),
            (|inputs| &mut inputs.b, &gradients.db),
        ];
        for (part, (values, gradient)) in parts.into_iter().enumerate() {
            for _ in 0..3 {
                let i = random.below(gradient.len());
                let value = values(&mut inputs)[i];
                values(&mut inputs)[i] = value + STEP;
                let (above, size) = loss(&inputs, device);
                values(&mut inputs)[i] = value - STEP;
                let (below, other_size) = loss(&inputs, device);
                values(&mut inputs)[i] = value;
                let actual = (above - below) / (2.0 * f64::from(STEP));
                let limit = unit * (size + other_size);
                let error = (actual - f64::from(gradient[i])).abs();
                assert!(error <= limit, "part {part}, {i}: {error:e} beyond {limit:e}");
            }
        }
    }
}

on_every_device! {
    both_directions_match_the_reference,
    gradients_add_to_what_is_there,
    an_unwanted_input_gradient_changes_nothing_else,
    every_store_of_a_weight_gives_the_same_bits,
    gradients_match_finite_differences,
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    for shape in SHAPES {
        for dropout in DROPOUTS {
            for compute in [Compute::F32, Compute::Bf16] {
                let results = [1, 2, 3].map(|n_threads| {
                    let kind = DeviceKind::Cpu { isa: Isa::best(), n_threads };
                    let mut device = Cpu::new(DeviceProfile { kind, compute }).unwrap();
                    let inputs = Inputs::new(shape, dropout, &mut Random::new(5));
                    let Outputs { xa, y, da, db, dx } = inputs.run(&mut device, 0.5);
                    [xa, y, da, db, dx].concat().iter().map(|v| v.to_bits()).collect::<Vec<_>>()
                });
                assert!(results.iter().all(|result| *result == results[0]), "{shape:?}");
            }
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
            let bytes = |n_rows| {
                workspace_bytes(&profile, LoraShape { n_rows, n_in: 300, n_out: 70, rank }, true)
            };
            assert!((1..1100).all(|n_rows| bytes(n_rows) <= bytes(n_rows + 1)));
        }
    }
}
