use half::bf16;

use super::{reference::*, *};
use crate::{
    Compute,
    nf4::Nf4,
    testing::{
        Nf4Parts, Random, fetch, on_every_device_that_multiplies, place, place_in, relative_error,
        rounded_to_bf16, workspace,
    },
};

/// Extents that are multiples of nothing, one row, one column, more than one block each way, and
/// rows of whole NF4 blocks.
const SHAPES: [LinearShape; 10] = [
    LinearShape { n_rows: 1, n_in: 77, n_out: 33 },
    LinearShape { n_rows: 2, n_in: 705, n_out: 19 },
    LinearShape { n_rows: 3, n_in: 1031, n_out: 5 },
    LinearShape { n_rows: 5, n_in: 123, n_out: 77 },
    LinearShape { n_rows: 14, n_in: 64, n_out: 32 },
    LinearShape { n_rows: 61, n_in: 1, n_out: 16 },
    LinearShape { n_rows: 131, n_in: 600, n_out: 1 },
    LinearShape { n_rows: 33, n_in: 520, n_out: 300 },
    LinearShape { n_rows: 17, n_in: 640, n_out: 131 },
    LinearShape { n_rows: 1100, n_in: 40, n_out: 37 },
];

/// The values, and every way of storing them with what each stands for.
fn weights(
    device: &mut (impl Linear + Nf4),
    shape: LinearShape,
    random: &mut Random,
) -> Vec<(Weight, Vec<f32>)> {
    let values = random.normal(shape.n_in * shape.n_out);
    let narrow: Vec<_> = values.iter().map(|&value| bf16::from_f32(value)).collect();
    let quantised = Nf4Parts::quantize(&values);
    let f32 = place(device, &values);
    let bf16 = place(device, &narrow);
    let nf4 = quantised.place(device);
    vec![
        (Weight::F32(f32), values),
        (Weight::Bf16(bf16), narrow.into_iter().map(f32::from).collect()),
        (Weight::Nf4(nf4), quantised.values()),
    ]
}

/// At most twice the error of sums in plain order; products in bf16 compare with rounded inputs.
fn check(what: &str, actual: &[f32], (exact, plain): &(Vec<f64>, Vec<f32>)) {
    let limit = 2.0 * relative_error(plain, exact) + f64::from(f32::EPSILON);
    let error = relative_error(actual, exact);
    assert!(error <= limit, "{what}: {error:e} beyond {limit:e}");
}

fn products_match_the_reference(device: &mut (impl Linear + Nf4)) {
    let mut random = Random::new(1);
    for shape in SHAPES {
        check_products(device, shape, &mut random);
    }
}

/// All three products of a shape, of every kind of weight.
fn check_products(device: &mut (impl Linear + Nf4), shape: LinearShape, random: &mut Random) {
    let profile = device.profile();
    let x = random.normal(shape.n_rows * shape.n_in);
    let dy = random.normal(shape.n_rows * shape.n_out);
    let scratch = workspace(device, workspace_bytes(&profile, shape));
    let [x_rounded, dy_rounded] = [&x, &dy].map(|values| rounded(values, profile.compute));
    let (x_slice, dy_slice) = (place(device, &x), place(device, &dy));
    let narrow = place_in(device, &x, input_format(&profile, shape.n_in));
    let narrow_dy = place_in(device, &dy, input_format(&profile, shape.n_out));
    for (weight, values) in weights(device, shape, random) {
        let values = rounded(&values, profile.compute);
        let y = place(device, &vec![f32::NAN; dy.len()]);
        device.linear(shape, x_slice.into(), weight, None, Store::Overwrite, y, scratch);
        let what = format!("forward {shape:?} {weight:?}");
        let from_f32 = fetch(device, y);
        check(&what, &from_f32, &forward(shape, &x_rounded, &values));
        device.linear(shape, narrow, weight, None, Store::Overwrite, y, scratch);
        assert!(fetch(device, y) == from_f32, "x in bf16, {what}");

        let dx = place(device, &vec![f32::NAN; x.len()]);
        device.linear_input_gradient(shape, dy_slice.into(), weight, Store::Overwrite, dx, scratch);
        let what = format!("input gradient {shape:?} {weight:?}");
        let from_f32 = fetch(device, dx);
        check(&what, &from_f32, &input_gradient(shape, &dy_rounded, &values));
        device.linear_input_gradient(shape, narrow_dy, weight, Store::Overwrite, dx, scratch);
        assert!(fetch(device, dx) == from_f32, "dy in bf16, {what}");
    }
    let dweight = place(device, &vec![f32::NAN; shape.n_in * shape.n_out]);
    let gradient = Gradient { values: dweight, store: Store::Overwrite };
    device.linear_weight_gradient(shape, x_slice.into(), dy_slice.into(), gradient.into(), scratch);
    let expected = weight_gradient(shape, &x_rounded, &dy_rounded);
    let from_f32 = fetch(device, dweight);
    check(&format!("weight gradient {shape:?}"), &from_f32, &expected);
    let formats = [narrow.format(), narrow_dy.format(), FloatFormat::F32];
    let scratch = weight_gradient_workspace_bytes(&profile, shape, formats);
    let scratch = workspace(device, scratch);
    device.linear_weight_gradient(shape, narrow, narrow_dy, gradient.into(), scratch);
    assert!(fetch(device, dweight) == from_f32, "in bf16, {shape:?}");
}

fn accumulating_adds_to_what_is_there(device: &mut (impl Linear + Nf4)) {
    let profile = device.profile();
    let mut random = Random::new(2);
    for shape in SHAPES {
        let x = random.normal(shape.n_rows * shape.n_in);
        let x = place(device, &x);
        let bias = random.normal(shape.n_out);
        let before = random.normal(shape.n_rows * shape.n_out);
        let scratch = workspace(device, workspace_bytes(&profile, shape));
        let (weight, _) = weights(device, shape, &mut random).remove(1);
        let product = place(device, &before);
        device.linear(shape, x.into(), weight, None, Store::Overwrite, product, scratch);
        let sum = place(device, &before);
        let bias_slice = place(device, &bias);
        device.linear(shape, x.into(), weight, Some(bias_slice), Store::Accumulate, sum, scratch);
        let expected: Vec<_> = fetch(device, product)
            .into_iter()
            .zip(&before)
            .enumerate()
            .map(|(i, (y, b))| f64::from(y) + f64::from(*b) + f64::from(bias[i % shape.n_out]))
            .collect();
        // The blocks of k (192 steps, at the least) are added one by one: a rounding each, and two
        // for sum and bias.
        let n_roundings = shape.n_in.div_ceil(192) + 2;
        let error = relative_error(&fetch(device, sum), &expected);
        assert!(error <= n_roundings as f64 * f64::from(f32::EPSILON), "{shape:?}: {error:e}");
    }
}

fn the_bias_gradient_sums_rows(device: &mut impl Linear) {
    let (n_rows, n_out) = (37, 53);
    let dy = Random::new(3).normal(n_rows * n_out);
    let before = Random::new(4).normal(n_out);
    let dy_slice = place(device, &dy);
    let sums = |i: usize| (0..n_rows).map(move |row| row * n_out + i);
    for (store, given, before) in [
        (Store::Accumulate, &before, &before),
        (Store::Overwrite, &vec![f32::NAN; n_out], &vec![0.0; n_out]),
    ] {
        let values = place(device, given);
        device.linear_bias_gradient(n_rows, n_out, dy_slice.into(), Gradient { values, store });
        let exact: Vec<f64> = (0..n_out)
            .map(|i| f64::from(before[i]) + sums(i).map(|at| f64::from(dy[at])).sum::<f64>())
            .collect();
        let plain: Vec<f32> =
            (0..n_out).map(|i| sums(i).fold(before[i], |sum, at| sum + dy[at])).collect();
        check("bias gradient", &fetch(device, values), &(exact, plain));
    }
    let sum = |device: &mut _, dy| {
        let values = place(device, &vec![f32::NAN; n_out]);
        let gradient = Gradient { values, store: Store::Overwrite };
        Linear::linear_bias_gradient(device, n_rows, n_out, dy, gradient);
        fetch(device, values)
    };
    let [narrow, wide] = [FloatFormat::Bf16, FloatFormat::F32]
        .map(|format| place_in(device, &rounded_to_bf16(&dy), format));
    assert_eq!(sum(device, narrow), sum(device, wide));
}

/// Sums of nothing.
fn no_rows_have_a_weight_gradient_of_zero(device: &mut impl Linear) {
    let shape = LinearShape { n_rows: 0, n_in: 70, n_out: 9 };
    let scratch = workspace_bytes(&device.profile(), shape);
    let scratch = workspace(device, scratch);
    let x = place(device, &[0.0_f32; 70]).first(0);
    let dy = place(device, &[0.0_f32; 9]).first(0);
    for (store, before, after) in [(Store::Overwrite, f32::NAN, 0.0), (Store::Accumulate, 2.0, 2.0)]
    {
        let values = place(device, &vec![before; 630]);
        let gradient = Gradient { values, store }.into();
        device.linear_weight_gradient(shape, x.into(), dy.into(), gradient, scratch);
        assert_eq!(fetch(device, values), vec![after; 630]);
    }
}

fn bits(values: Vec<bf16>) -> Vec<u16> {
    values.into_iter().map(bf16::to_bits).collect()
}

/// The gradient of a weight in bf16 is the one in f32, rounded once; and nothing beyond it is written.
fn check_bf16_gradient(device: &mut impl Linear, shape: LinearShape) {
    let mut random = Random::new(9);
    let n = shape.n_in * shape.n_out;
    let x = place(device, &random.normal(shape.n_rows * shape.n_in));
    let dy = place(device, &random.normal(shape.n_rows * shape.n_out));
    let [scratch, scratch_of_bf16] = [FloatFormat::F32, FloatFormat::Bf16].map(|dweight| {
        let formats = [FloatFormat::F32, FloatFormat::F32, dweight];
        let bytes = weight_gradient_workspace_bytes(&device.profile(), shape, formats);
        workspace(device, bytes)
    });
    let values = place(device, &vec![f32::NAN; n]);
    let gradient = Gradient { values, store: Store::Overwrite };
    device.linear_weight_gradient(shape, x.into(), dy.into(), gradient.into(), scratch);
    let expected = fetch(device, values).into_iter().map(bf16::from_f32).collect();
    // An odd place and an even one, for which a card has stores of its own.
    for offset in [3, 8] {
        let around = place(device, &vec![bf16::NAN; offset + n + 5]);
        let rounded = around.slice(offset..offset + n);
        device.linear_weight_gradient(
            shape,
            x.into(),
            dy.into(),
            WeightGradient::Bf16(rounded),
            scratch_of_bf16,
        );
        assert!(bits(fetch(device, rounded)) == bits(Vec::clone(&expected)), "{shape:?}");
        let around = fetch(device, around);
        assert!(around[..offset].iter().chain(&around[offset + n..]).all(|value| value.is_nan()));
    }
}

fn a_bf16_weight_gradient_is_rounded_once(device: &mut impl Linear) {
    for shape in SHAPES {
        check_bf16_gradient(device, shape);
        check_bf16_gradient(device, LinearShape { n_rows: 0, ..shape });
    }
}

/// The loss `Σ y · dy` is linear in x and in the weight, so that a whole step shows its slope.
fn gradients_match_finite_differences(device: &mut (impl Linear + Nf4)) {
    let profile = device.profile();
    let mut random = Random::new(6);
    let shape = SHAPES[9];
    let n_terms = shape.n_rows * shape.n_out;
    let scratch = workspace(device, workspace_bytes(&profile, shape));
    let (x, step) = (random.normal(shape.n_rows * shape.n_in), 0.5);
    let x = rounded(&x, profile.compute);
    let dy = rounded(&random.normal(n_terms), profile.compute);
    let [x_slice, dy_slice] = [&x, &dy].map(|values| place(device, values));
    let y = place(device, &vec![0.0; n_terms]);
    let store = Store::Overwrite;
    // The sum of products and the sum of their sizes.
    let loss = |device: &mut _, x: &[f32], weight| {
        let x = place(device, x);
        Linear::linear(device, shape, x.into(), weight, None, store, y, scratch);
        let terms = fetch(device, y).into_iter().zip(&dy);
        terms.fold((0.0, 0.0), |(sum, size), (y, dy)| {
            let term = f64::from(y) * f64::from(*dy);
            (sum + term, size + term.abs())
        })
    };
    // A sum of k terms is off by k roundings of half a unit at the most.
    let longest = shape.n_in.max(shape.n_out).max(shape.n_rows) as f64;
    let unit = longest * f64::from(f32::EPSILON) / 2.0;

    for (weight, values) in weights(device, shape, &mut random) {
        let dx = place(device, &x);
        device.linear_input_gradient(shape, dy_slice.into(), weight, store, dx, scratch);
        let dx = fetch(device, dx);
        for _ in 0..3 {
            let i = random.below(x.len());
            let [above, below] = [step, -step].map(|step| {
                let mut moved = x.clone();
                // Stays as it is in bf16: the value replaced, not added to.
                moved[i] = step;
                loss(device, &moved, weight)
            });
            let slope = (above.0 - below.0) / (2.0 * f64::from(step));
            let limit = unit * (above.1 + below.1);
            assert!((slope - f64::from(dx[i])).abs() <= limit, "x[{i}] of {weight:?}");
        }
        let Weight::F32(_) = weight else { continue };
        let dweight = place(device, &values);
        let gradient = Gradient { values: dweight, store };
        device.linear_weight_gradient(
            shape,
            x_slice.into(),
            dy_slice.into(),
            gradient.into(),
            scratch,
        );
        let dweight = fetch(device, dweight);
        for _ in 0..3 {
            let i = random.below(values.len());
            let [above, below] = [step, -step].map(|step| {
                let mut moved = values.clone();
                moved[i] = step;
                let moved = Weight::F32(place(device, &moved));
                loss(device, &x, moved)
            });
            let slope = (above.0 - below.0) / (2.0 * f64::from(step));
            let limit = unit * (above.1 + below.1);
            assert!((slope - f64::from(dweight[i])).abs() <= limit, "weight[{i}]");
        }
    }
}

on_every_device_that_multiplies! {
    products_match_the_reference,
    a_bf16_weight_gradient_is_rounded_once,
    gradients_match_finite_differences,
    accumulating_adds_to_what_is_there,
    the_bias_gradient_sums_rows,
    no_rows_have_a_weight_gradient_of_zero,
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    for shape in SHAPES {
        for compute in [Compute::F32, Compute::Bf16] {
            let results = [1, 2, 3].map(|n_threads| {
                let isa = crate::Isa::best();
                let kind = crate::DeviceKind::Cpu { isa, n_threads };
                let profile = DeviceProfile { kind, compute };
                let mut device = crate::Cpu::new(profile).unwrap();
                let mut random = Random::new(5);
                let x = place(&mut device, &random.normal(shape.n_rows * shape.n_in));
                let dy = place(&mut device, &random.normal(shape.n_rows * shape.n_out));
                let scratch = workspace(&mut device, workspace_bytes(&profile, shape));
                let (weight, _) = weights(&mut device, shape, &mut random).remove(2);
                let y = place(&mut device, &vec![0.0; shape.n_rows * shape.n_out]);
                let dx = place(&mut device, &vec![0.0; shape.n_rows * shape.n_in]);
                let dweight = place(&mut device, &vec![0.0; shape.n_in * shape.n_out]);
                let store = Store::Overwrite;
                device.linear(shape, x.into(), weight, None, store, y, scratch);
                device.linear_input_gradient(shape, dy.into(), weight, store, dx, scratch);
                let gradient = Gradient { values: dweight, store };
                device.linear_weight_gradient(shape, x.into(), dy.into(), gradient.into(), scratch);
                [y, dx, dweight].map(|slice| {
                    fetch(&device, slice).into_iter().map(f32::to_bits).collect::<Vec<_>>()
                })
            });
            assert!(results.iter().all(|result| *result == results[0]), "{shape:?} {compute:?}");
        }
    }
}

/// Several blocks of depth each way, whatever multiplies: with matrix registers one is of 2,048 steps.
#[test]
fn products_of_several_blocks_of_depth_match_the_reference() {
    for profile in crate::testing::profiles() {
        let mut device = crate::Cpu::new(profile).unwrap();
        let mut random = Random::new(12);
        for (n_rows, n_in, n_out) in [(37, 4_090, 35), (37, 35, 4_090), (4_090, 37, 35)] {
            check_products(&mut device, LinearShape { n_rows, n_in, n_out }, &mut random);
        }
    }
}

/// More steps than are packed at a time where sums are not rounded, in blocks of fewer rows.
#[test]
fn a_bf16_weight_gradient_of_many_rows_is_rounded_once() {
    for profile in crate::testing::profiles() {
        let mut device = crate::Cpu::new(profile).unwrap();
        check_bf16_gradient(&mut device, LinearShape { n_rows: 2_500, n_in: 200, n_out: 1_100 });
        check_bf16_gradient(&mut device, LinearShape { n_rows: 70_000, n_in: 9, n_out: 35 });
    }
}

/// As through the output matrix of a large vocabulary: rows are packed a part at a time.
#[test]
fn a_product_of_more_steps_than_are_packed_at_a_time_matches_the_reference() {
    let shape = LinearShape { n_rows: 70, n_in: 19, n_out: 31_003 };
    for profile in crate::testing::profiles() {
        let mut device = crate::Cpu::new(profile).unwrap();
        let mut random = Random::new(8);
        let dy = random.normal(shape.n_rows * shape.n_out);
        let before = random.normal(shape.n_rows * shape.n_in);
        let scratch = workspace(&mut device, workspace_bytes(&profile, shape));
        let dy_slice = place(&mut device, &dy);
        let (weight, values) = weights(&mut device, shape, &mut random).remove(1);
        let values = rounded(&values, profile.compute);
        let dx = place(&mut device, &before);
        device.linear_input_gradient(shape, dy_slice.into(), weight, Store::Overwrite, dx, scratch);
        let dy = rounded(&dy, profile.compute);
        let overwritten = fetch(&device, dx);
        check(&format!("{profile:?}"), &overwritten, &input_gradient(shape, &dy, &values));
        // What is added comes in as many roundings as there are blocks of k (192 steps, at the least).
        let sum = place(&mut device, &before);
        device.linear_input_gradient(
            shape,
            dy_slice.into(),
            weight,
            Store::Accumulate,
            sum,
            scratch,
        );
        let expected = overwritten.iter().zip(&before).map(|(a, b)| f64::from(*a) + f64::from(*b));
        let error = relative_error(&fetch(&device, sum), &expected.collect::<Vec<_>>());
        let n_roundings = shape.n_out.div_ceil(192) + 1;
        assert!(error <= n_roundings as f64 * f64::from(f32::EPSILON), "{profile:?}: {error:e}");
    }
}

#[test]
fn a_workspace_suits_fewer_rows() {
    for profile in crate::testing::profiles() {
        for (n_in, n_out) in [(64, 8), (300, 16), (7, 1000), (7, 100_000)] {
            let bytes = |n_rows| workspace_bytes(&profile, LinearShape { n_rows, n_in, n_out });
            assert!((1..1100).all(|n_rows| bytes(n_rows) <= bytes(n_rows + 1)));
        }
    }
}

/// A card has larger tiles for larger products; every number is summed in the same order in either, as
/// long as k is not divided.
#[test]
fn large_tiles_give_the_bits_of_small_ones() {
    for capability in crate::cuda::SIMULATED {
        eprintln!("on {capability}");
        let mut cuda = crate::Cuda::simulated_as(capability, Compute::Bf16).unwrap();
        check_large_tiles(&mut cuda);
    }
}

fn check_large_tiles(device: &mut crate::Cuda) {
    const PART: usize = 60;
    let profile = device.profile();
    let mut random = Random::new(7);
    let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect::<Vec<_>>();
    // The output is large, and the input.
    for (n_in, n_out) in [(64, 1040), (1088, 70)] {
        let shape = LinearShape { n_rows: 1030, n_in, n_out };
        let part_shape = LinearShape { n_rows: PART, ..shape };
        let is_forward = n_out > n_in;
        let (small, large) = (n_in.min(n_out), n_in.max(n_out));
        let input = place(device, &random.normal(shape.n_rows * small));
        let scratch = workspace(device, workspace_bytes(&profile, shape));
        let whole = place(device, &vec![f32::NAN; shape.n_rows * large]);
        let part = place(device, &vec![f32::NAN; PART * large]);
        for (weight, _) in weights(device, shape, &mut random) {
            let multiply = |device: &mut crate::Cuda, shape, input: DeviceSlice<f32>, output| {
                let store = Store::Overwrite;
                if is_forward {
                    device.linear(shape, input.into(), weight, None, store, output, scratch);
                } else {
                    device.linear_input_gradient(
                        shape,
                        input.into(),
                        weight,
                        store,
                        output,
                        scratch,
                    );
                }
            };
            multiply(device, shape, input, whole);
            // The first and the last, across the borders of tiles.
            for first in [0, 100, shape.n_rows - PART] {
                let rows = |width: usize| first * width..(first + PART) * width;
                multiply(device, part_shape, input.slice(rows(small)), part);
                let expected = bits(fetch(device, whole.slice(rows(large))));
                assert!(bits(fetch(device, part)) == expected, "{weight:?} from {first}");
            }
        }
    }
    let shape = LinearShape { n_rows: 33, n_in: 1088, n_out: 1040 };
    let x = rounded(&random.normal(33 * 1088), Compute::Bf16);
    let dy = rounded(&random.normal(33 * 1040), Compute::Bf16);
    let scratch = workspace(device, workspace_bytes(&profile, shape));
    let dweight = place(device, &vec![f32::NAN; 1040 * 1088]);
    let [x_slice, dy_slice] = [&x, &dy].map(|values| place(device, values));
    let gradient = Gradient { values: dweight, store: Store::Overwrite };
    device.linear_weight_gradient(shape, x_slice.into(), dy_slice.into(), gradient.into(), scratch);
    let expected = weight_gradient(shape, &x, &dy);
    check("weight gradient in large tiles", &fetch(device, dweight), &expected);
    check_bf16_gradient(device, shape);
}
