use super::*;
use crate::{
    memory::{FloatFormat, Store},
    testing::{
        Random, assert_as_close_as_plain, assert_gradient, assert_same_on_any_number_of_threads,
        fetch, fetch_floats, on_every_device, place, place_in, rounded_to_bf16, to_f32, unrounded,
        widened, workspace,
    },
};

const EPSILON: f32 = 1e-5;

/// One row, one column, odd widths, rows longer than a card keeps beside each other, and more rows than
/// share a partial sum.
const SHAPES: [RmsNormShape; 7] = [
    RmsNormShape { n_rows: 1, width: 77, epsilon: EPSILON },
    RmsNormShape { n_rows: 9, width: 1, epsilon: EPSILON },
    RmsNormShape { n_rows: 5, width: 123, epsilon: EPSILON },
    RmsNormShape { n_rows: 131, width: 1031, epsilon: EPSILON },
    RmsNormShape { n_rows: 6, width: 768, epsilon: EPSILON },
    RmsNormShape { n_rows: 5, width: 8195, epsilon: EPSILON },
    RmsNormShape { n_rows: 2 * 512 + 3, width: 128, epsilon: EPSILON },
];

struct Inputs {
    x: Vec<f32>,
    weight: Vec<f32>,
    dy: Vec<f32>,
}

fn inputs(shape: RmsNormShape) -> Inputs {
    let mut random = Random::new(shape.width as u64);
    let n = shape.n_rows * shape.width;
    Inputs { x: random.normal(n), weight: random.normal(shape.width), dy: random.normal(n) }
}

/// `y`, `dx` and `dw`, the gradients from zero.
fn run(device: &mut impl RmsNorm, shape: RmsNormShape, inputs: &Inputs) -> [Vec<f32>; 3] {
    run_in(device, shape, inputs, [FloatFormat::F32; 2])
}

/// The same with `x` and `y` in formats.
fn run_in(
    device: &mut impl RmsNorm,
    shape: RmsNormShape,
    inputs: &Inputs,
    [input, output]: [FloatFormat; 2],
) -> [Vec<f32>; 3] {
    let x = place_in(device, &inputs.x, input);
    let [weight, dy] = [&inputs.weight, &inputs.dy].map(|v| place(device, v));
    let y = place_in(device, &vec![f32::NAN; x.len()], output);
    let dx = place(device, &vec![0.0; x.len()]);
    let dweight = place(device, &vec![f32::NAN; shape.width]);
    let scratch = workspace(device, workspace_bytes(&device.profile(), shape));
    device.rms_norm(shape, x, weight, y);
    let gradient = Some(Gradient { values: dweight, store: Store::Overwrite });
    device.rms_norm_backward(shape, x, weight, dy, dx, gradient, scratch);
    [fetch_floats(device, y), fetch(device, dx), fetch(device, dweight)]
}

fn both_passes_match_the_reference(device: &mut impl RmsNorm) {
    for shape in SHAPES {
        let inputs = inputs(shape);
        let [y, dx, dweight] = run(device, shape, &inputs);
        let [x, weight, dy] = [&inputs.x, &inputs.weight, &inputs.dy].map(|v| widened(v));
        let epsilon = f64::from(EPSILON);
        let exact = reference::forward(&x, &weight, epsilon, unrounded);
        let plain = reference::forward(&x, &weight, epsilon, to_f32);
        assert_as_close_as_plain(&format!("y {shape:?}"), &y, &exact, &plain);
        let exact = reference::backward(&x, &weight, epsilon, &dy, unrounded);
        let plain = reference::backward(&x, &weight, epsilon, &dy, to_f32);
        if shape.width > 1 {
            assert_as_close_as_plain(&format!("dx {shape:?}"), &dx, &exact.0, &plain.0);
        } else {
            // A single number's norm has no slope but by ε: two equal terms cancel, so what is left
            // is measured by them. Each is dy·w·rstd after five roundings at most.
            for ((dx, exact), (x, dy)) in dx.iter().zip(&exact.0).zip(x.iter().zip(&dy)) {
                let term = (dy * weight[0] / (x * x + epsilon).sqrt()).abs();
                let limit = 10.0 * f64::from(f32::EPSILON) * term;
                assert!((f64::from(*dx) - exact).abs() <= limit, "{dx} {exact} {limit}");
            }
        }
        assert_as_close_as_plain(&format!("dweight {shape:?}"), &dweight, &exact.1, &plain.1);
    }
}

/// In bf16 stands what would be in f32, rounded.
fn numbers_in_bf16_are_rounded_once(device: &mut impl RmsNorm) {
    use FloatFormat::{Bf16, F32};
    for shape in SHAPES {
        let Inputs { x, weight, dy } = inputs(shape);
        let inputs = Inputs { x: rounded_to_bf16(&x), weight, dy };
        let [y, dx, dweight] = run(device, shape, &inputs);
        let rounded = rounded_to_bf16(&y);
        for (formats, y) in [([F32, Bf16], &rounded), ([Bf16, F32], &y), ([Bf16, Bf16], &rounded)] {
            let actual = run_in(device, shape, &inputs, formats);
            assert!(actual.each_ref() == [y, &dx, &dweight], "{shape:?} in {formats:?}");
        }
    }
}

fn gradients_are_added_to_what_is_there(device: &mut impl RmsNorm) {
    for shape in SHAPES {
        let inputs = inputs(shape);
        let [_, dx_alone, dweight_alone] = run(device, shape, &inputs);
        let [x, weight, dy] = [&inputs.x, &inputs.weight, &inputs.dy].map(|v| place(device, v));
        let mut random = Random::new(7);
        let [dx_before, dweight_before] = [random.normal(x.len()), random.normal(shape.width)];
        let [dx, dweight] = [&dx_before, &dweight_before].map(|v| place(device, v));
        let scratch = workspace(device, workspace_bytes(&device.profile(), shape));
        let gradient = Some(Gradient { values: dweight, store: Store::Accumulate });
        device.rms_norm_backward(shape, x.into(), weight, dy, dx, gradient, scratch);
        let sums = |before: &[f32], alone: &[f32]| -> Vec<f32> {
            before.iter().zip(alone).map(|(a, b)| a + b).collect()
        };
        assert_eq!(fetch(device, dx), sums(&dx_before, &dx_alone));
        // Several partial sums are added one by one, each with a rounding of its own.
        let n_roundings = n_partials(shape) as f64;
        let expected = widened(&sums(&dweight_before, &dweight_alone));
        let error = crate::testing::relative_error(&fetch(device, dweight), &expected);
        assert!(error <= n_roundings * f64::from(f32::EPSILON), "{shape:?}: {error:e}");
    }
}

fn in_place_gives_the_bits_of_the_separate_buffers(device: &mut impl RmsNorm) {
    for shape in SHAPES {
        let inputs = inputs(shape);
        let [_, expected_dx, expected_dweight] = run(device, shape, &inputs);
        let [x, weight] = [&inputs.x, &inputs.weight].map(|v| place(device, v));
        let scratch = workspace(device, workspace_bytes(&device.profile(), shape));
        for wants_dweight in [true, false] {
            let dy_dx = place(device, &inputs.dy);
            let dweight = place(device, &vec![f32::NAN; shape.width]);
            let gradient = Gradient { values: dweight, store: Store::Overwrite };
            let wanted = wants_dweight.then_some(gradient);
            device.rms_norm_backward_in_place(shape, x.into(), weight, dy_dx, wanted, scratch);
            assert_eq!(fetch(device, dy_dx), expected_dx);
            if wants_dweight {
                assert_eq!(fetch(device, dweight), expected_dweight);
            }
        }
    }
}

fn results_do_not_depend_on_where_the_rows_lie(device: &mut impl RmsNorm) {
    for width in [128, 768] {
        let shape = RmsNormShape { n_rows: 5, width, epsilon: EPSILON };
        let inputs = inputs(shape);
        let expected = run(device, shape, &inputs);
        // One number further on than the start of a block.
        let moved = |device: &mut _, values: &[f32]| {
            let whole = place(device, &[&[0.0], values].concat());
            whole.slice(1..whole.len())
        };
        let x = moved(device, &inputs.x);
        let [weight, dy] = [&inputs.weight, &inputs.dy].map(|v| place(device, v));
        let (y, dx) = (moved(device, &inputs.x), moved(device, &vec![0.0; x.len()]));
        let dweight = moved(device, &vec![0.0; width]);
        let scratch = workspace(device, workspace_bytes(&device.profile(), shape));
        device.rms_norm(shape, x.into(), weight, y.into());
        let gradient = Some(Gradient { values: dweight, store: Store::Overwrite });
        device.rms_norm_backward(shape, x.into(), weight, dy, dx, gradient, scratch);
        assert_eq!([y, dx, dweight].map(|slice| fetch(device, slice)), expected);
    }
}

fn a_row_of_zeros_stays_zero(device: &mut impl RmsNorm) {
    let shape = RmsNormShape { n_rows: 2, width: 19, epsilon: EPSILON };
    let mut inputs = inputs(shape);
    inputs.x.fill(0.0);
    let [y, dx, dweight] = run(device, shape, &inputs);
    assert_eq!((y, dweight), (vec![0.0; 38], vec![0.0; 19]));
    assert!(dx.iter().all(|value| value.is_finite()));
}

on_every_device! {
    both_passes_match_the_reference,
    numbers_in_bf16_are_rounded_once,
    gradients_are_added_to_what_is_there,
    in_place_gives_the_bits_of_the_separate_buffers,
    results_do_not_depend_on_where_the_rows_lie,
    a_row_of_zeros_stays_zero,
}

#[test]
fn the_reference_gradients_are_those_of_the_output() {
    let inputs = inputs(RmsNormShape { n_rows: 3, width: 13, epsilon: EPSILON });
    let [x, weight, dy] = [&inputs.x, &inputs.weight, &inputs.dy].map(|v| widened(v));
    let epsilon = f64::from(EPSILON);
    let loss = |x: &[f64], weight: &[f64]| -> f64 {
        let y = reference::forward(x, weight, epsilon, unrounded);
        y.iter().zip(&dy).map(|(y, dy)| y * dy).sum()
    };
    let (dx, dweight) = reference::backward(&x, &weight, epsilon, &dy, unrounded);
    assert_gradient(&x, &dx, |x| loss(x, &weight));
    assert_gradient(&weight, &dweight, |weight| loss(&x, weight));
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    for shape in SHAPES {
        assert_same_on_any_number_of_threads(|device| run(device, shape, &inputs(shape)).into());
    }
}
