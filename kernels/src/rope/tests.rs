use super::*;
use crate::{
    FloatFormat,
    testing::{
        Random, assert_as_close_as_plain, assert_same_on_any_number_of_threads, fetch_floats,
        on_every_device, place, place_in, rounded_to_bf16, to_f32, unrounded,
    },
};

/// Rows, heads, head size.
const SHAPES: [(usize, usize, usize); 4] = [(1, 1, 2), (5, 3, 22), (77, 14, 64), (300, 5, 128)];
const N_POSITIONS: usize = 400;

/// Positions in no order and more than once, as in packed batches.
fn inputs((n_rows, n_heads, head_size): (usize, usize, usize)) -> (Vec<u32>, Vec<f32>) {
    let mut random = Random::new(head_size as u64);
    let positions = (0..n_rows).map(|_| random.below(N_POSITIONS) as u32).collect();
    (positions, random.normal(n_rows * n_heads * head_size))
}

/// `x` turned forward, and `x` turned backward.
fn run(device: &mut impl Rope, shape: (usize, usize, usize)) -> [Vec<f32>; 2] {
    let (positions, x) = inputs(shape);
    run_in(device, shape, (&positions, &x), FloatFormat::F32)
}

fn run_in(
    device: &mut impl Rope,
    (_, n_heads, head_size): (usize, usize, usize),
    (positions, x): (&[u32], &[f32]),
    format: FloatFormat,
) -> [Vec<f32>; 2] {
    let positions = place(device, positions);
    let (cos, sin) = tables(RopeScaling::None, 1e4, head_size, N_POSITIONS);
    let [cos, sin] = [cos, sin].map(|values| place(device, &values));
    [Rotation::Forward, Rotation::Backward].map(|rotation| {
        let x = place_in(device, x, format);
        device.rope(n_heads, head_size, rotation, positions, cos, sin, x);
        fetch_floats(device, x)
    })
}

fn both_directions_match_the_reference(device: &mut impl Rope) {
    for shape in SHAPES {
        let (_, n_heads, head_size) = shape;
        let (positions, x) = inputs(shape);
        let (cos, sin) = tables(RopeScaling::None, 1e4, head_size, N_POSITIONS);
        let turned = run(device, shape);
        for (rotation, turned) in [Rotation::Forward, Rotation::Backward].into_iter().zip(turned) {
            let (heads, tables) = ((n_heads, head_size), (&cos[..], &sin[..]));
            let exact = reference::rotate(heads, rotation, &positions, tables, &x, unrounded);
            let plain = reference::rotate(heads, rotation, &positions, tables, &x, to_f32);
            assert_as_close_as_plain(&format!("{rotation:?} {shape:?}"), &turned, &exact, &plain);
        }
    }
}

/// In bf16 stands what would be in f32, rounded.
fn numbers_in_bf16_are_rounded_once(device: &mut impl Rope) {
    for shape in SHAPES {
        let (positions, x) = inputs(shape);
        let x = rounded_to_bf16(&x);
        let expected = run_in(device, shape, (&positions, &x), FloatFormat::F32);
        let actual = run_in(device, shape, (&positions, &x), FloatFormat::Bf16);
        assert!(actual == expected.map(|values| rounded_to_bf16(&values)), "{shape:?}");
    }
}

on_every_device! {
    both_directions_match_the_reference,
    numbers_in_bf16_are_rounded_once,
}

#[test]
fn the_backward_rotation_is_the_gradient_of_the_forward_one() {
    // Of a linear map, the gradient is the transpose: ⟨dy, Rx⟩ = ⟨Rᵀdy, x⟩.
    let shape = (7, 3, 22);
    let (positions, x) = inputs(shape);
    let dy = Random::new(99).normal(x.len());
    let (cos, sin) = tables(RopeScaling::None, 1e4, 22, N_POSITIONS);
    let rotate = |rotation, x: &[f32]| {
        reference::rotate((3, 22), rotation, &positions, (&cos, &sin), x, unrounded)
    };
    let product =
        |a: &[f64], b: &[f32]| -> f64 { a.iter().zip(b).map(|(a, b)| a * f64::from(*b)).sum() };
    let forward = product(&rotate(Rotation::Forward, &x), &dy);
    let backward = product(&rotate(Rotation::Backward, &dy), &x);
    // Both sum the same products, each with its own rounding.
    assert!((forward - backward).abs() <= x.len() as f64 * f64::EPSILON * forward.abs().max(1.0));
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    for shape in SHAPES {
        assert_same_on_any_number_of_threads(|device| run(device, shape).into());
    }
}

/// The frequencies as written in the papers, in f64.
fn exact_frequency(base: f64, head_size: usize, i: usize) -> f64 {
    base.powf(-2.0 * i as f64 / head_size as f64)
}

#[test]
fn unscaled_frequencies_fall_geometrically() {
    for (base, head_size) in [(1e4, 64), (1e6, 128), (5e5, 22)] {
        let (frequencies, factor) = frequencies(RopeScaling::None, base, head_size);
        assert_eq!((frequencies.len(), factor, frequencies[0]), (head_size / 2, 1.0, 1.0));
        for (i, &frequency) in frequencies.iter().enumerate() {
            let exact = exact_frequency(base, head_size, i);
            // The exponent's rounding, times ln(base) < 14, and two roundings after it.
            let limit = (14.0 / 2.0 + 1.0) * f64::from(f32::EPSILON);
            assert!((f64::from(frequency) / exact - 1.0).abs() <= limit, "{base} {i}");
        }
    }
}

#[test]
fn linear_scaling_divides_every_frequency() {
    let (plain, _) = frequencies(RopeScaling::None, 1e4, 64);
    let (scaled, factor) = frequencies(RopeScaling::Linear { factor: 4.0 }, 1e4, 64);
    assert_eq!(scaled, plain.iter().map(|f| f / 4.0).collect::<Vec<_>>());
    assert_eq!(factor, 1.0);
}

#[test]
fn llama3_and_yarn_keep_short_waves_and_divide_long_ones() {
    let original_context = 8192;
    let llama3 = RopeScaling::Llama3 {
        factor: 8.0,
        low_frequency_factor: 1.0,
        high_frequency_factor: 4.0,
        original_context,
    };
    let yarn = RopeScaling::Yarn {
        factor: 8.0,
        beta_fast: 32.0,
        beta_slow: 1.0,
        original_context,
        attention_factor: None,
        truncate: true,
    };
    let (plain, _) = frequencies(RopeScaling::None, 5e5, 128);
    for (scaling, expected_factor) in [(llama3, 1.0), (yarn, (0.1 * 8.0_f64.ln() + 1.0) as f32)] {
        let (scaled, factor) = frequencies(scaling, 5e5, 128);
        assert_eq!(factor, expected_factor);
        assert_eq!((scaled[0], scaled[63]), (plain[0], plain[63] / 8.0));
        let shares: Vec<_> = plain.iter().zip(&scaled).map(|(plain, f)| plain / f).collect();
        assert!(shares.is_sorted(), "{shares:?}");
        assert!(shares.iter().any(|&share| 1.5 < share && share < 6.0));
    }
}

#[test]
fn an_empty_ramp_is_a_step() {
    let scaling = RopeScaling::Yarn {
        factor: 2.0,
        beta_fast: 1.0,
        beta_slow: 1.0,
        original_context: 4096,
        attention_factor: Some(1.0),
        truncate: false,
    };
    let (frequencies, _) = frequencies(scaling, 1e4, 64);
    assert!(frequencies.iter().all(|frequency| frequency.is_finite()));
}

#[test]
fn tables_hold_the_cosines_and_sines_of_position_times_frequency() {
    let scaling = RopeScaling::Yarn {
        factor: 4.0,
        beta_fast: 32.0,
        beta_slow: 1.0,
        original_context: 64,
        attention_factor: Some(1.25),
        truncate: true,
    };
    let (frequencies, factor) = frequencies(scaling, 1e4, 22);
    let (cos, sin) = tables(scaling, 1e4, 22, 50);
    assert_eq!((cos.len(), sin.len(), factor), (50 * 11, 50 * 11, 1.25));
    for (at, (&cos, &sin)) in cos.iter().zip(&sin).enumerate() {
        let angle = f64::from((at / 11) as f32 * frequencies[at % 11]);
        // A rounding of the function and one of the product.
        let limit = 2.0 * 1.25 * f64::from(f32::EPSILON);
        assert!((f64::from(cos) - 1.25 * angle.cos()).abs() <= limit);
        assert!((f64::from(sin) - 1.25 * angle.sin()).abs() <= limit);
    }
}
