use super::*;
use crate::{
    FloatFormat,
    testing::{
        Random, assert_as_close_as_plain, assert_gradient, assert_same_on_any_number_of_threads,
        fetch_floats, on_every_device, place, place_in, rounded_to_bf16, to_f32, unrounded,
        widened,
    },
};

const LENGTHS: [usize; 5] = [1, 17, 123 * 5, 1 << 14, 40_001];

/// `dy`, `gate` and `up`; the gates reach far into both flat ends.
fn inputs(n: usize) -> [Vec<f32>; 3] {
    let mut random = Random::new(n as u64);
    let gate = random.normal(n).into_iter().map(|x| 5.0 * x).collect();
    [random.normal(n), gate, random.normal(n)]
}

/// `y`, `dgate` and `dup`.
fn run(device: &mut impl Swiglu, inputs: &[Vec<f32>; 3]) -> [Vec<f32>; 3] {
    run_in(device, inputs, FloatFormat::F32, FloatFormat::F32)
}

/// The same with gate and up, and y, in a format.
fn run_in(
    device: &mut impl Swiglu,
    [dy, gate, up]: &[Vec<f32>; 3],
    input: FloatFormat,
    output: FloatFormat,
) -> [Vec<f32>; 3] {
    let y = place_in(device, &vec![f32::NAN; dy.len()], output);
    let dy = place(device, dy);
    let [gate, up] = [gate, up].map(|values| place_in(device, values, input));
    device.swiglu(gate, up, y);
    device.swiglu_backward(dy, gate, up);
    [y, gate, up].map(|floats| fetch_floats(device, floats))
}

fn both_passes_match_the_reference(device: &mut impl Swiglu) {
    for n in LENGTHS {
        let inputs = inputs(n);
        let [y, dgate, dup] = run(device, &inputs);
        let [d, g, u] = inputs.each_ref().map(|values| widened(values));
        let exact = reference::forward(&g, &u, unrounded);
        assert_as_close_as_plain("y", &y, &exact, &reference::forward(&g, &u, to_f32));
        let exact = reference::backward(&d, &g, &u, unrounded);
        let plain = reference::backward(&d, &g, &u, to_f32);
        assert_as_close_as_plain("dgate", &dgate, &exact.0, &plain.0);
        assert_as_close_as_plain("dup", &dup, &exact.1, &plain.1);
    }
}

/// In bf16 stands what would be in f32, rounded.
fn numbers_in_bf16_are_rounded_once(device: &mut impl Swiglu) {
    use FloatFormat::{Bf16, F32};
    for n in LENGTHS {
        let [dy, gate, up] = inputs(n);
        let inputs = [dy, rounded_to_bf16(&gate), rounded_to_bf16(&up)];
        let exact = run(device, &inputs);
        let rounded = exact.each_ref().map(|values| rounded_to_bf16(values));
        let pick = |format, i: usize| if format == Bf16 { &rounded[i] } else { &exact[i] };
        for (input, output) in [(F32, Bf16), (Bf16, F32), (Bf16, Bf16)] {
            let actual = run_in(device, &inputs, input, output);
            let expected = [pick(output, 0), pick(input, 1), pick(input, 2)];
            assert!(actual.each_ref() == expected, "{n} numbers, {input:?} to {output:?}");
        }
    }
}

fn gates_of_any_size_give_finite_results(device: &mut impl Swiglu) {
    let gate = vec![-1e30, -200.0, -104.0, -88.0, -0.0, 0.0, 88.0, 104.0, 200.0, 1e30];
    let ones = vec![1.0; gate.len()];
    let [y, dgate, dup] = run(device, &[ones.clone(), gate.clone(), ones]);
    assert!(y.iter().chain(&dgate).chain(&dup).all(|value| value.is_finite()));
    assert_eq!((y[0], dgate[0], y[9], dgate[9]), (0.0, 0.0, gate[9], 1.0));
    assert_eq!(y, dup);
}

on_every_device! {
    both_passes_match_the_reference,
    numbers_in_bf16_are_rounded_once,
    gates_of_any_size_give_finite_results,
}

#[test]
fn the_reference_gradients_are_those_of_the_output() {
    let [dy, gate, up] = inputs(41).map(|values| widened(&values));
    let loss = |gate: &[f64], up: &[f64]| -> f64 {
        let y = reference::forward(gate, up, unrounded);
        y.iter().zip(&dy).map(|(y, dy)| y * dy).sum()
    };
    let (dgate, dup) = reference::backward(&dy, &gate, &up, unrounded);
    assert_gradient(&gate, &dgate, |gate| loss(gate, &up));
    assert_gradient(&up, &dup, |up| loss(&gate, up));
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    assert_same_on_any_number_of_threads(|device| run(device, &inputs(40_001)).into());
}
