use super::*;
use crate::testing::{
    Nf4Parts, Random, assert_same_on_any_number_of_threads, fetch, on_every_device, place,
};

/// Parts of a block, whole blocks, and more blocks than share a scale.
const LENGTHS: [usize; 9] = [1, 5, 63, 64, 65, 640, 64 * 256, 64 * 256 + 1, 64 * 300 + 17];

/// The parts of `source` in NF4, with room for them in `device`.
fn quantize_on(device: &mut impl Nf4, source: &[f32]) -> Nf4Weight {
    let layout = Nf4Layout { n_elements: source.len() };
    let weight = Nf4Weight {
        codes: place(device, &vec![0_u8; layout.n_codes()]),
        absmax_codes: place(device, &vec![0_u8; layout.n_blocks()]),
        absmax_scales: place(device, &vec![0.0_f32; layout.n_groups()]),
        absmax_offset: place(device, &[0.0_f32]),
    };
    let source = place(device, source);
    let workspace = place(device, &vec![f32::NAN; layout.n_blocks()]);
    device.nf4_quantize(source, weight, workspace);
    weight
}

fn unpack(codes: &[u8], n: usize) -> Vec<usize> {
    let nibbles = codes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    nibbles.take(n).map(usize::from).collect()
}

/// A share of its absmax goes through the reciprocal's rounding and the product's, a border
/// through its own: nearer to a border than that, either side is right.
const ROUNDINGS: f64 = 1.5 * f32::EPSILON as f64;

fn every_number_becomes_the_nearest_level(device: &mut impl Nf4) {
    for n in LENGTHS {
        let source = Random::new(n as u64).normal(n);
        let weight = quantize_on(device, &source);
        let codes = unpack(&fetch(device, weight.codes), n);
        for (i, (level, margin)) in reference::levels(&source).into_iter().enumerate() {
            assert!(codes[i] == level || margin <= ROUNDINGS, "{n}: {} at {i}", source[i]);
        }
        let offset = fetch(device, weight.absmax_offset)[0];
        let absmax = reference::largest(&source, BLOCK);
        let mean = absmax.iter().map(|&a| f64::from(a)).sum::<f64>() / absmax.len() as f64;
        assert_eq!(offset, mean as f32);
        let codes = fetch(device, weight.absmax_codes);
        for (i, (code, margin)) in reference::absmax_codes(&absmax, offset).into_iter().enumerate()
        {
            assert!(usize::from(codes[i]) == code || margin <= ROUNDINGS, "{n}: absmax {i}");
        }
        let centred: Vec<f32> = absmax.iter().map(|a| a - offset).collect();
        let scales = fetch(device, weight.absmax_scales);
        for (scale, largest) in scales.iter().zip(reference::largest(&centred, ABSMAX_GROUP)) {
            // A short group of equal values keeps a scale that can be divided by.
            assert!(*scale == largest || (largest == 0.0 && *scale < 1e-37), "{n}");
        }
    }
}

fn expanding_gives_the_level_times_the_restored_absmax(device: &mut impl Nf4) {
    for n in LENGTHS {
        let source = Random::new(n as u64).normal(n);
        let weight = quantize_on(device, &source);
        let values = place(device, &vec![f32::NAN; n]);
        device.nf4_dequantize(weight, values);
        let codes = unpack(&fetch(device, weight.codes), n);
        let [scales, offset] =
            [weight.absmax_scales, weight.absmax_offset].map(|slice| fetch(device, slice));
        let absmax_codes = fetch(device, weight.absmax_codes);
        let expected: Vec<_> = (0..n)
            .map(|i| {
                let block = i / BLOCK;
                let code = dynamic_code()[usize::from(absmax_codes[block])];
                LEVELS[codes[i]] * (code * scales[block / ABSMAX_GROUP] + offset[0])
            })
            .collect();
        assert_eq!(fetch(device, values), expected, "{n}");
    }
}

fn the_device_gives_the_bits_of_the_host(device: &mut impl Nf4) {
    for n in LENGTHS {
        let mut source = Random::new(n as u64).normal(n);
        source.iter_mut().step_by(97).for_each(|outlier| *outlier *= 1000.0);
        let on_device = quantize_on(device, &source);
        let host = Nf4Parts::quantize(&source);
        let on_host = host.place(device);
        for (a, b) in [
            (on_device.codes, on_host.codes),
            (on_device.absmax_codes, on_host.absmax_codes),
            (on_device.absmax_scales.cast(), on_host.absmax_scales.cast()),
            (on_device.absmax_offset.cast(), on_host.absmax_offset.cast()),
        ] {
            assert_eq!(fetch(device, a), fetch(device, b), "{n}");
        }
        let values = place(device, &vec![f32::NAN; n]);
        device.nf4_dequantize(on_device, values);
        assert_eq!(fetch(device, values), host.values(), "{n}");
    }
}

fn blocks_of_zeros_stay_zero_when_alone(device: &mut impl Nf4) {
    for zero in [0.0, -0.0] {
        let weight = quantize_on(device, &[zero; 128]);
        let values = place(device, &[f32::NAN; 128]);
        device.nf4_dequantize(weight, values);
        assert_eq!(fetch(device, values), [0.0; 128]);
        assert_eq!(fetch(device, weight.codes), [0x77; 64]);
    }
}

fn a_tensor_may_lie_anywhere(device: &mut impl Nf4) {
    for n in [1, 70, 64 * 257 + 6] {
        let source = Random::new(n as u64).normal(n);
        let layout = Nf4Layout { n_elements: n };
        // Each part one element behind an aligned place.
        let weight = Nf4Weight {
            codes: place(device, &vec![0; 1 + layout.n_codes()]).slice(1..1 + layout.n_codes()),
            absmax_codes: place(device, &vec![0; 1 + layout.n_blocks()])
                .slice(1..1 + layout.n_blocks()),
            absmax_scales: place(device, &vec![0.0; 1 + layout.n_groups()])
                .slice(1..1 + layout.n_groups()),
            absmax_offset: place(device, &[0.0; 2]).slice(1..2),
        };
        let padded: Vec<_> = [0.0].iter().chain(&source).copied().collect();
        let on_device = place(device, &padded).slice(1..1 + n);
        let workspace =
            place(device, &vec![f32::NAN; 1 + layout.n_blocks()]).slice(1..1 + layout.n_blocks());
        device.nf4_quantize(on_device, weight, workspace);
        let values = place(device, &vec![f32::NAN; 1 + n]).slice(1..1 + n);
        device.nf4_dequantize(weight, values);
        assert_eq!(fetch(device, values), Nf4Parts::quantize(&source).values(), "{n}");
    }
}

fn no_numbers_have_an_offset_of_zero(device: &mut impl Nf4) {
    let weight = quantize_on(device, &[]);
    assert_eq!(fetch(device, weight.absmax_offset), [0.0]);
    let values = place(device, &[]);
    device.nf4_dequantize(weight, values);
}

on_every_device! {
    every_number_becomes_the_nearest_level,
    expanding_gives_the_level_times_the_restored_absmax,
    the_device_gives_the_bits_of_the_host,
    blocks_of_zeros_stay_zero_when_alone,
    a_tensor_may_lie_anywhere,
    no_numbers_have_an_offset_of_zero,
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let source = Random::new(1).normal(64 * 1000 + 17);
    assert_same_on_any_number_of_threads(|device| {
        let weight = quantize_on(device, &source);
        let values = place(device, &vec![f32::NAN; source.len()]);
        device.nf4_dequantize(weight, values);
        vec![fetch(device, values)]
    });
}

#[test]
fn a_tie_goes_to_the_lower_level() {
    let mut source = [0.0; BLOCK];
    source[0] = 1.0;
    for (i, pair) in LEVELS.windows(2).enumerate() {
        let middle = (pair[0] + pair[1]) / 2.0;
        source[1 + 3 * i..][..3].copy_from_slice(&[middle.next_down(), middle, middle.next_up()]);
    }
    let (mut codes, mut absmax) = ([0; BLOCK / 2], [0.0]);
    quantize(&source, &mut codes, &mut absmax);
    let codes = unpack(&codes, BLOCK);
    for i in 0..15 {
        assert_eq!(codes[1 + 3 * i..][..3], [i, i, i + 1]);
    }
}

#[test]
fn a_number_that_is_none_shows_in_its_block() {
    let mut source = Random::new(2).normal(2 * BLOCK);
    source[70] = f32::NAN;
    let (mut codes, mut absmax) = ([0; BLOCK], [0.0; 2]);
    quantize(&source, &mut codes, &mut absmax);
    assert!(absmax[0].is_finite() && absmax[1].is_nan());
}

#[test]
fn the_layout_counts_what_each_part_holds() {
    let check = |n_elements, expected| {
        let layout = Nf4Layout { n_elements };
        assert_eq!((layout.n_codes(), layout.n_blocks(), layout.n_groups()), expected);
    };
    check(0, (0, 0, 0));
    check(1, (1, 1, 1));
    check(64, (32, 1, 1));
    check(65, (33, 2, 1));
    check(64 * 256, (8192, 256, 1));
    check(64 * 256 + 1, (8193, 257, 2));
}
