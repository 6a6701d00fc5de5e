//! Our four-bit form against that of bitsandbytes, bit for bit, from the files that
//! `tests/reference/nf4.py` wrote.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{collections::BTreeSet, fs, path::Path};

use nibble_kernels::nf4::{self, Nf4Layout};
use safetensors::{Dtype, SafeTensors};

/// The 16 upper bits of an f32.
fn from_bf16(bits: [u8; 2]) -> f32 {
    f32::from_bits(u32::from(u16::from_le_bytes(bits)) << 16)
}

/// IEEE half precision by its definition: sign, five bits of exponent, ten of fraction.
fn from_f16(bits: [u8; 2]) -> f32 {
    let bits = u16::from_le_bytes(bits);
    let fraction = f32::from(bits & 0x3ff);
    let magnitude = match i32::from(bits >> 10 & 0x1f) {
        0 => fraction * 2.0_f32.powi(-24),
        exponent => (1024.0 + fraction) * 2.0_f32.powi(exponent - 25),
    };
    if bits >> 15 == 1 { -magnitude } else { magnitude }
}

struct Golden<'a>(SafeTensors<'a>);

impl Golden<'_> {
    fn bytes(&self, name: &str) -> &[u8] {
        self.0.tensor(name).unwrap().data()
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        let tensor = self.0.tensor(name).unwrap();
        let pairs = || tensor.data().as_chunks().0.iter().copied();
        match tensor.dtype() {
            Dtype::F32 => {
                tensor.data().as_chunks().0.iter().copied().map(f32::from_le_bytes).collect()
            }
            Dtype::BF16 => pairs().map(from_bf16).collect(),
            Dtype::F16 => pairs().map(from_f16).collect(),
            other => panic!("{name} is {other:?}"),
        }
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn the_four_bit_form_is_that_of_bitsandbytes_bit_for_bit() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/nf4.safetensors");
    let file = fs::read(path).unwrap();
    let golden = Golden(SafeTensors::deserialize(&file).unwrap());
    assert_eq!(bits(&nf4::LEVELS), bits(&golden.floats("nf4_levels")));
    assert_eq!(bits(nf4::dynamic_code()), bits(&golden.floats("dynamic_code")));

    let names = golden.0.names();
    let cases: BTreeSet<&str> =
        names.iter().filter_map(|name| name.strip_suffix(".source")).collect();
    assert!(cases.len() > 10);
    for case in cases {
        let part = |part: &str| format!("{case}.{part}");
        let source = golden.floats(&part("source"));
        let layout = Nf4Layout { n_elements: source.len() };

        let mut codes = vec![0; layout.n_codes()];
        let mut absmax = vec![0.0; layout.n_blocks()];
        nf4::quantize(&source, &mut codes, &mut absmax);
        assert_eq!(codes, golden.bytes(&part("codes")), "{case}");
        assert_eq!(bits(&absmax), bits(&golden.floats(&part("absmax"))), "{case}");

        // Torch sums the mean in an order of its own, so it is an input here.
        let offset = golden.floats(&part("absmax_offset"))[0];
        let mut absmax_codes = vec![0; layout.n_blocks()];
        let mut scales = vec![0.0; layout.n_groups()];
        nf4::quantize_absmax(&absmax, offset, &mut absmax_codes, &mut scales);
        assert_eq!(absmax_codes, golden.bytes(&part("absmax_codes")), "{case}");
        assert_eq!(bits(&scales), bits(&golden.floats(&part("absmax_scales"))), "{case}");

        let mut values = vec![0.0; source.len()];
        nf4::dequantize(&codes, &absmax_codes, &scales, offset, &mut values);
        assert_eq!(bits(&values), bits(&golden.floats(&part("dequantized"))), "{case}");

        // A mean of n numbers, in any order, is within n roundings of the exact one.
        let bound = f32::EPSILON * absmax.len() as f32 * absmax.iter().copied().fold(0.0, f32::max);
        assert!((nf4::absmax_offset(&absmax) - offset).abs() <= bound, "{case}");
    }
}
