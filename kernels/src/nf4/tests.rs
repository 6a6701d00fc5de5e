use super::*;
use crate::testing::{Random, fetch, on_every_device, place};

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

fn every_number_becomes_the_nearest_level(device: &mut impl Nf4) {
    for n in [1, 5, 63, 64, 65, 640, 64 * 256 + 1, 64 * 300 + 17] {
        let source = Random::new(n as u64).normal(n);
        let weight = quantize_on(device, &source);
        let values = place(device, &vec![f32::NAN; n]);
        device.nf4_dequantize(weight, values);
        let (values, codes) = (fetch(device, values), fetch(device, weight.codes));
        for (block, (source, values)) in source.chunks(BLOCK).zip(values.chunks(BLOCK)).enumerate()
        {
            let absmax = source.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
            for (i, (&x, &value)) in source.iter().zip(values).enumerate() {
                let byte = codes[block * BLOCK / 2 + i / 2];
                let code = if i % 2 == 0 { byte >> 4 } else { byte & 15 };
                let distance =
                    |level: f32| (f64::from(x) / f64::from(absmax) - f64::from(level)).abs();
                let nearest = LEVELS.into_iter().map(distance).fold(f64::MAX, f64::min);
                // The division rounds: two levels equally far away may change places.
                assert!(distance(LEVELS[usize::from(code)]) <= nearest + 1e-7, "{n}: {x}");
                // The absmax is itself a code: the widest gap of its table is 1/141 of the scale.
                let restored = LEVELS[usize::from(code)] * absmax;
                let group_scale = 6.0;
                assert!((value - restored).abs() <= group_scale / 128.0, "{n}: {value} {restored}");
            }
        }
    }
}

fn blocks_of_zeros_stay_zero_when_alone(device: &mut impl Nf4) {
    let weight = quantize_on(device, &[0.0; 128]);
    let values = place(device, &[f32::NAN; 128]);
    device.nf4_dequantize(weight, values);
    assert_eq!(fetch(device, values), [0.0; 128]);
    assert_eq!(fetch(device, weight.codes), [0x77; 64]);
}

on_every_device! {
    every_number_becomes_the_nearest_level,
    blocks_of_zeros_stay_zero_when_alone,
}

#[test]
fn the_dynamic_code_rises_and_has_both_ends() {
    let code = dynamic_code();
    assert!(code.is_sorted_by(|a, b| a < b));
    assert_eq!((code[127], code[255]), (0.0, 1.0));
    assert!(code[0] > -1.0);
}
