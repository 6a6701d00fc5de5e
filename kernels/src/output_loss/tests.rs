use half::bf16;

use super::*;
use crate::{
    Compute,
    testing::{
        Random, assert_as_close_as_plain, assert_gradient, assert_same_on_any_number_of_threads,
        fetch, on_every_device_that_multiplies, place, relative_error, to_f32, unrounded, widened,
        workspace,
    },
};

const SCALE: f64 = 0.125;

/// One case, its inputs as the products see them.
struct Case {
    shape: OutputLossShape,
    x: Vec<f32>,
    weight: Vec<f32>,
    targets: Vec<u32>,
}

impl Case {
    fn new(
        (n_rows, width, vocabulary, chunk_rows): (usize, usize, usize, usize),
        products: Compute,
    ) -> Self {
        let mut random = Random::new(vocabulary as u64);
        let round = |values: Vec<f32>| crate::linear::rounded(&values, products);
        Self {
            shape: OutputLossShape { n_rows, width, vocabulary, chunk_rows },
            x: round(random.normal(n_rows * width)),
            weight: round(random.normal(vocabulary * width)),
            targets: (0..n_rows).map(|_| random.below(vocabulary) as u32).collect(),
        }
    }

    /// Losses, dx, dW of a device; the weight stored as f32 or as bf16.
    fn run(&self, device: &mut impl OutputLoss, in_bf16: bool) -> [Vec<f32>; 3] {
        let OutputLossShape { n_rows, width, vocabulary, .. } = self.shape;
        let scratch = workspace(device, workspace_bytes(&device.profile(), self.shape));
        let x = place(device, &self.x);
        let weight = if in_bf16 {
            let values: Vec<bf16> = self.weight.iter().map(|&w| bf16::from_f32(w)).collect();
            Weight::Bf16(place(device, &values))
        } else {
            Weight::F32(place(device, &self.weight))
        };
        let targets = place(device, &self.targets);
        let nans = |device: &mut _, n| place(device, &vec![f32::NAN; n]);
        let (losses, dx) = (nans(device, n_rows), nans(device, n_rows * width));
        let dweight = place(device, &vec![f32::NAN; vocabulary * width]);
        let gradient = Gradient { values: dweight, store: Store::Overwrite };
        let gradient = OutputLossGradient { scale: SCALE as f32, dx, dweight: Some(gradient) };
        device.output_loss(self.shape, x, weight, targets, losses, Some(gradient), scratch);
        let results = [losses, dx, dweight].map(|slice| fetch(device, slice));
        device.output_loss(self.shape, x, weight, targets, losses, None, scratch);
        assert_eq!(fetch(device, losses), results[0], "the loss is the same without gradients");
        results
    }

    fn reference(&self, round: fn(f64) -> f64, round_input: fn(f64) -> f64) -> [Vec<f64>; 3] {
        let (x, weight) = (widened(&self.x), widened(&self.weight));
        reference(&self.shape, &x, &weight, &self.targets, round, round_input)
    }
}

/// Losses, dx, dW by their definitions. `round` follows every operation, `round_input` what enters
/// a product.
fn reference(
    shape: &OutputLossShape,
    x: &[f64],
    weight: &[f64],
    targets: &[u32],
    round: fn(f64) -> f64,
    round_input: fn(f64) -> f64,
) -> [Vec<f64>; 3] {
    let OutputLossShape { n_rows, width, .. } = *shape;
    let mut losses = vec![0.0; n_rows];
    let (mut dx, mut dweight) = (vec![0.0; x.len()], vec![0.0; weight.len()]);
    let multiply_add = |sum: f64, a: f64, b: f64| round(sum + round(a * b));
    for row in 0..n_rows {
        let x = &x[row * width..(row + 1) * width];
        let logits: Vec<f64> = weight
            .chunks(width)
            .map(|of_token| {
                of_token.iter().zip(x).fold(0.0, |sum, (w, x)| multiply_add(sum, *w, *x))
            })
            .collect();
        let most = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum = logits.iter().fold(0.0, |sum, l| round(sum + round(round(l - most).exp())));
        let log_sum_exp = round(most + round(sum.ln()));
        let target = targets[row] as usize;
        losses[row] = round(log_sum_exp - logits[target]);
        for (token, logit) in logits.iter().enumerate() {
            let expected = f64::from(u8::from(token == target));
            let probability = round(round(logit - log_sum_exp).exp());
            let dlogit = round_input(round(SCALE * round(probability - expected)));
            for (i, x) in x.iter().enumerate() {
                let (at_x, at_weight) = (row * width + i, token * width + i);
                dx[at_x] = multiply_add(dx[at_x], dlogit, weight[at_weight]);
                dweight[at_weight] = multiply_add(dweight[at_weight], dlogit, *x);
            }
        }
    }
    [losses, dx, dweight]
}

/// The last vocabulary is more than a block of a card reads at once.
const SHAPES: [(usize, usize, usize, usize); 5] =
    [(1, 3, 2, 64), (5, 77, 123, 2), (33, 64, 300, 16), (40, 31, 17, 40), (2, 5, 5003, 64)];

fn loss_and_gradients_match_the_reference(device: &mut impl OutputLoss) {
    let products = device.profile().compute;
    let round_input: fn(f64) -> f64 = match products {
        Compute::F32 => unrounded,
        // Where products take bf16, the gradients of the logits are rounded to it on their way.
        Compute::Bf16 => |x| bf16::from_f64(x).to_f64(),
    };
    for shape in SHAPES {
        let case = Case::new(shape, products);
        let exact = case.reference(unrounded, unrounded);
        let plain = case.reference(to_f32, round_input);
        // A weight that bf16 holds exactly is the same however it is stored.
        for in_bf16 in [false, true].into_iter().take(1 + usize::from(products == Compute::Bf16)) {
            let actual = case.run(device, in_bf16);
            for (what, ((actual, exact), plain)) in
                ["losses", "dx", "dweight"].iter().zip(actual.iter().zip(&exact).zip(&plain))
            {
                let what = format!("{shape:?}, bf16 weight: {in_bf16}, {what}");
                assert_as_close_as_plain(&what, actual, exact, plain);
            }
        }
    }
}

/// The weight's gradient is added to what is there, or replaces it; also where nothing is trained.
fn the_weight_gradient_goes_where_it_is_asked_to(device: &mut impl OutputLoss) {
    let case = Case::new((5, 33, 70, 3), device.profile().compute);
    let [_, _, alone] = case.run(device, false);
    let OutputLossShape { width, vocabulary, .. } = case.shape;
    for (n_rows, store, before) in
        [(5, Store::Accumulate, 2.0), (0, Store::Accumulate, 2.0), (0, Store::Overwrite, f32::NAN)]
    {
        let shape = OutputLossShape { n_rows, ..case.shape };
        let scratch = workspace(device, workspace_bytes(&device.profile(), case.shape));
        let x = place(device, &case.x).first(n_rows * width);
        let weight = Weight::F32(place(device, &case.weight));
        let targets = place(device, &case.targets).first(n_rows);
        let losses = place(device, &[0.0; 5]).first(n_rows);
        let dx = place(device, &vec![0.0; 5 * width]).first(n_rows * width);
        let values = place(device, &vec![before; vocabulary * width]);
        let dweight = Some(Gradient { values, store });
        let gradient = Some(OutputLossGradient { scale: SCALE as f32, dx, dweight });
        device.output_loss(shape, x, weight, targets, losses, gradient, scratch);
        let before = if before.is_nan() { 0.0 } else { before };
        let expected: Vec<f64> = alone
            .iter()
            .map(|&sum| f64::from(before) + if n_rows > 0 { f64::from(sum) } else { 0.0 })
            .collect();
        // Chunks are added one by one.
        let error = relative_error(&fetch(device, values), &expected);
        assert!(error <= 3.0 * f64::from(f32::EPSILON), "{n_rows} rows, {store:?}: {error:e}");
    }
}

fn losses_are_summed_in_f64(device: &mut impl OutputLoss) {
    let sum = place(device, &[f64::NAN]);
    for n in [0, 1, 7, 513, 40_000] {
        let losses = Random::new(n as u64).normal(n);
        let slice = place(device, &losses);
        let exact: f64 = losses.iter().map(|&loss| f64::from(loss)).sum();
        // Every order of so many additions, of numbers of order one, rounds as often at most.
        let limit = (n + 1) as f64 * f64::EPSILON * (n + 1) as f64;
        device.sum_losses(slice, sum, Store::Overwrite);
        let once = fetch(device, sum)[0];
        assert!((once - exact).abs() <= limit, "{n}: {once}");
        device.sum_losses(slice, sum, Store::Accumulate);
        assert_eq!(fetch(device, sum)[0], 2.0 * once, "{n}");
    }
    let losses = place(device, &[1.0, f32::INFINITY, 2.0]);
    device.sum_losses(losses, sum, Store::Accumulate);
    assert!(!fetch(device, sum)[0].is_finite());
}

on_every_device_that_multiplies! {
    losses_are_summed_in_f64,
    the_weight_gradient_goes_where_it_is_asked_to,
    loss_and_gradients_match_the_reference,
}

#[test]
fn the_reference_gradients_are_those_of_the_loss() {
    let case = Case::new((3, 7, 11, 64), Compute::F32);
    let (x, weight) = (widened(&case.x), widened(&case.weight));
    let loss = |x: &[f64], weight: &[f64]| -> f64 {
        let [losses, ..] = reference(&case.shape, x, weight, &case.targets, unrounded, unrounded);
        losses.iter().map(|loss| SCALE * loss).sum()
    };
    let [_, dx, dweight] = case.reference(unrounded, unrounded);
    assert_gradient(&x, &dx, |x| loss(x, &weight));
    assert_gradient(&weight, &dweight, |weight| loss(&x, weight));
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    for shape in SHAPES {
        assert_same_on_any_number_of_threads(|cpu| {
            let case = Case::new(shape, cpu.profile().compute);
            case.run(cpu, false).to_vec()
        });
    }
}
