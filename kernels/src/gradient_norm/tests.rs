use half::bf16;

use super::*;
use crate::testing::{Random, assert_same_on_any_number_of_threads, on_every_device, place};

const LENGTHS: [usize; 6] = [0, 1, 7, 4097, 100_003, (1 << 20) + 5];

fn the_sum_is_exact_but_for_its_own_roundings(device: &mut impl GradientNorm) {
    for n in LENGTHS {
        let gradient = Random::new(n as u64).normal(n);
        let slice = place(device, &gradient);
        let (actual, expected) =
            (device.squared_norm(&[slice.into()]), reference::squared_norm(&gradient));
        // Each term is exact in f64 and goes through at most n additions.
        assert!((actual - expected).abs() <= n as f64 * f64::EPSILON * expected, "{n}");
    }
}

fn numbers_whose_squares_leave_f32_are_summed(device: &mut impl GradientNorm) {
    let slice = place(device, &[1e30, -1e-30, 2e30]);
    let norm = device.squared_norm(&[slice.into()]);
    assert!((norm / 5e60 - 1.0).abs() < f64::from(f32::EPSILON));
}

fn an_element_that_is_not_finite_shows(device: &mut impl GradientNorm) {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for at in [0, 4999, 9999] {
            let mut gradient = Random::new(1).normal(10_000);
            gradient[at] = bad;
            let slice = place(device, &gradient);
            assert!(!device.squared_norm(&[slice.into()]).is_finite());
        }
    }
}

/// Of every length, empty ones and ones of several chunks among them.
fn regions_of_either_form_are_added_up(device: &mut impl GradientNorm) {
    let lengths = [3, 70_001, 0, 5000, (1 << 22) + 3, 4096, 4097];
    let (mut regions, mut all) = (Vec::new(), Vec::new());
    for (number, n) in lengths.into_iter().enumerate() {
        let values = Random::new(number as u64).normal(n);
        let rounded: Vec<_> = values.iter().map(|&g| bf16::from_f32(g)).collect();
        regions.push(Floats::F32(place(device, &values)));
        regions.push(Floats::Bf16(place(device, &rounded)));
        all.extend(values);
        all.extend(rounded.into_iter().map(f32::from));
    }
    let (actual, expected) = (device.squared_norm(&regions), reference::squared_norm(&all));
    assert!((actual - expected).abs() <= all.len() as f64 * f64::EPSILON * expected);
    assert_eq!(device.squared_norm(&[]), 0.0);
    // More than a card measures at a time.
    let many = vec![regions[0]; 4_100];
    let one = device.squared_norm(&many[..1]);
    let error = (device.squared_norm(&many) - 4_100.0 * one).abs();
    assert!(error <= 4_100.0 * f64::EPSILON * 4_100.0 * one, "{error:e}");
    // Each of them counts.
    for region in regions.iter().filter(|region| !region.is_empty()) {
        match *region {
            Floats::F32(slice) => device.upload(&[f32::NAN], slice.first(1)),
            Floats::Bf16(slice) => device.upload(&[bf16::NAN], slice.first(1)),
        }
        assert!(!device.squared_norm(&regions).is_finite());
        match *region {
            Floats::F32(slice) => device.upload(&[0.0], slice.first(1)),
            Floats::Bf16(slice) => device.upload(&[bf16::ZERO], slice.first(1)),
        }
        assert!(device.squared_norm(&regions).is_finite());
    }
}

on_every_device! {
    regions_of_either_form_are_added_up,
    the_sum_is_exact_but_for_its_own_roundings,
    numbers_whose_squares_leave_f32_are_summed,
    an_element_that_is_not_finite_shows,
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let gradient = Random::new(5).normal(1 << 20);
    assert_same_on_any_number_of_threads(|device| {
        let slice = place(device, &gradient);
        // Both halves of the f64's bits.
        let bits = device.squared_norm(&[slice.into()]).to_bits();
        vec![vec![f32::from_bits(bits as u32), f32::from_bits((bits >> 32) as u32)]]
    });
}
