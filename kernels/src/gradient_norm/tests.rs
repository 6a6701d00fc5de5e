use super::*;
use crate::testing::{Random, assert_same_on_any_number_of_threads, on_every_device, place};

const LENGTHS: [usize; 6] = [0, 1, 7, 4097, 100_003, (1 << 20) + 5];

fn the_sum_is_exact_but_for_its_own_roundings(device: &mut impl GradientNorm) {
    for n in LENGTHS {
        let gradient = Random::new(n as u64).normal(n);
        let slice = place(device, &gradient);
        let (actual, expected) = (device.squared_norm(slice), reference::squared_norm(&gradient));
        // Each term is exact in f64 and goes through at most n additions.
        assert!((actual - expected).abs() <= n as f64 * f64::EPSILON * expected, "{n}");
    }
}

fn numbers_whose_squares_leave_f32_are_summed(device: &mut impl GradientNorm) {
    let slice = place(device, &[1e30, -1e-30, 2e30]);
    let norm = device.squared_norm(slice);
    assert!((norm / 5e60 - 1.0).abs() < f64::from(f32::EPSILON));
}

fn an_element_that_is_not_finite_shows(device: &mut impl GradientNorm) {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for at in [0, 4999, 9999] {
            let mut gradient = Random::new(1).normal(10_000);
            gradient[at] = bad;
            let slice = place(device, &gradient);
            assert!(!device.squared_norm(slice).is_finite());
        }
    }
}

on_every_device! {
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
        let bits = device.squared_norm(slice).to_bits();
        vec![vec![f32::from_bits(bits as u32), f32::from_bits((bits >> 32) as u32)]]
    });
}
