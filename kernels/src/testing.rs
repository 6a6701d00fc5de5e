//! What the operations' tests share: every device, seeded inputs, error measures.

use half::bf16;

use crate::{
    Compute, Cpu, DeviceKind, DeviceProfile, DeviceSlice, Element, FloatFormat, Floats, Isa,
    Memory,
    cpu::gemm::Nf4Values,
    nf4,
    random::{Sequence, uniform},
};

/// Every path of this machine's processor, in both precisions, on one thread and on three (a count
/// that divides no shape evenly).
pub(crate) fn profiles() -> Vec<DeviceProfile> {
    let mut profiles = Vec::new();
    for isa in Isa::available() {
        for compute in [Compute::F32, Compute::Bf16] {
            for n_threads in [1, 3] {
                profiles.push(DeviceProfile { kind: DeviceKind::Cpu { isa, n_threads }, compute });
            }
        }
    }
    profiles
}

/// Makes a test of each named function `fn(&mut impl …)`, run on every device: the processor's paths, the
/// card's kernels in the simulator, and a card where there is one (`tests/gpu.sh`).
macro_rules! on_every_device {
    ($($body:ident),* $(,)?) => {
        mod on_every_processor {
            $(#[test]
            fn $body() {
                for profile in $crate::testing::profiles() {
                    eprintln!("on {profile:?}");
                    let mut cpu = $crate::Cpu::new(profile).unwrap();
                    super::$body(&mut cpu);
                }
            })*
        }

        mod on_a_simulated_card {
            $(#[test]
            fn $body() {
                for compute in [$crate::Compute::F32, $crate::Compute::Bf16] {
                    eprintln!("in {compute:?}");
                    let mut cuda = $crate::Cuda::simulated(compute).unwrap();
                    super::$body(&mut cuda);
                }
            })*
        }

        mod on_a_card {
            $(#[test]
            #[ignore = "it needs an NVIDIA card: tests/gpu.sh"]
            fn $body() {
                for compute in [$crate::Compute::F32, $crate::Compute::Bf16] {
                    eprintln!("in {compute:?}");
                    let mut cuda = $crate::Cuda::open(0, compute).unwrap();
                    super::$body(&mut cuda);
                    $crate::Memory::check(&cuda).unwrap();
                }
            })*
        }
    };
}
pub(crate) use on_every_device;

/// The same of tests of what multiplies on tensor cores, for which cards of 9.0 have other code.
macro_rules! on_every_device_that_multiplies {
    ($($body:ident),* $(,)?) => {
        $crate::testing::on_every_device! { $($body),* }

        mod on_a_simulated_card_with_group_products {
            $(#[test]
            fn $body() {
                let [_, capability] = $crate::cuda::SIMULATED;
                let bf16 = $crate::Compute::Bf16;
                super::$body(&mut $crate::Cuda::simulated_as(capability, bf16).unwrap());
            })*
        }
    };
}
pub(crate) use on_every_device_that_multiplies;

/// Puts `values` into a block of their own.
pub(crate) fn place<T: Element>(device: &mut impl Memory, values: &[T]) -> DeviceSlice<T> {
    let memory = device.allocate(size_of_val(values)).unwrap();
    let slice = DeviceSlice::new(memory, 0, values.len());
    device.upload(values, slice);
    slice
}

/// A block of `n_bytes` for an operation's workspace, filled with a pattern that is a NaN as f32
/// and as bf16, so that reading what was not written shows.
pub(crate) fn workspace(device: &mut impl Memory, n_bytes: usize) -> DeviceSlice<u8> {
    place(device, &vec![0xff; n_bytes])
}

/// The values of `slice`.
pub(crate) fn fetch<T: Element>(device: &impl Memory, slice: DeviceSlice<T>) -> Vec<T> {
    let mut values = vec![T::zeroed(); slice.len()];
    device.download(slice, &mut values);
    values
}

/// `values` in a block of their own, in a format.
pub(crate) fn place_in(device: &mut impl Memory, values: &[f32], format: FloatFormat) -> Floats {
    match format {
        FloatFormat::F32 => place(device, values).into(),
        FloatFormat::Bf16 => place(device, &in_bf16(values)).into(),
    }
}

/// The values of `floats` in f32.
pub(crate) fn fetch_floats(device: &impl Memory, floats: Floats) -> Vec<f32> {
    match floats {
        Floats::F32(slice) => fetch(device, slice),
        Floats::Bf16(slice) => fetch(device, slice).into_iter().map(bf16::to_f32).collect(),
    }
}

/// The nearest numbers in bf16.
pub(crate) fn in_bf16(values: &[f32]) -> Vec<bf16> {
    values.iter().copied().map(bf16::from_f32).collect()
}

/// The same, widened again.
pub(crate) fn rounded_to_bf16(values: &[f32]) -> Vec<f32> {
    in_bf16(values).into_iter().map(bf16::to_f32).collect()
}

/// A stream of random numbers.
pub(crate) struct Random(Sequence);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Sequence::new(seed))
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0.next()
    }

    /// Uniform in `[0, 1)`.
    pub(crate) fn uniform(&mut self) -> f64 {
        uniform(self.next())
    }

    /// Uniform in `0..n`.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.uniform() * n as f64) as usize
    }

    /// Standard normal values (Box–Muller).
    pub(crate) fn normal(&mut self, n: usize) -> Vec<f32> {
        (0..n)
            .map(|_| {
                let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
                (radius * (std::f64::consts::TAU * self.uniform()).cos()) as f32
            })
            .collect()
    }
}

/// The largest `|actual − expected|`, as a share of the largest `|expected|`. NaN counts as
/// infinite.
pub(crate) fn relative_error(actual: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(actual.len(), expected.len());
    let scale = expected.iter().fold(f64::MIN_POSITIVE, |scale, e| scale.max(e.abs()));
    actual.iter().zip(expected).fold(0.0, |worst: f64, (&a, &e)| {
        let error = (f64::from(a) - e).abs() / scale;
        if error.is_nan() { f64::INFINITY } else { worst.max(error) }
    })
}

/// Asserts that `actual` is at most twice as far from `exact` as `plain` is, the same formula in
/// the device's precision; and one rounding more, for another order of the same operations.
pub(crate) fn assert_as_close_as_plain(what: &str, actual: &[f32], exact: &[f64], plain: &[f64]) {
    let plain: Vec<f32> = plain.iter().map(|&x| x as f32).collect();
    let limit = 2.0 * relative_error(&plain, exact) + f64::from(f32::EPSILON);
    let error = relative_error(actual, exact);
    assert!(error <= limit, "{what}: {error:e} beyond {limit:e}");
}

/// The arithmetic of a reference's plain version: each operation's result rounded to f32.
pub(crate) fn to_f32(x: f64) -> f64 {
    f64::from(x as f32)
}

/// The arithmetic of an exact reference.
pub(crate) fn unrounded(x: f64) -> f64 {
    x
}

pub(crate) fn widened(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&x| f64::from(x)).collect()
}

/// Asserts that `gradient` is that of `loss` at `values`, by central differences of some of them.
pub(crate) fn assert_gradient(values: &[f64], gradient: &[f64], loss: impl Fn(&[f64]) -> f64) {
    const STEP: f64 = 1e-4;
    let slope = |at: usize, step: f64| {
        let moved_by = |step: f64| {
            let mut moved = values.to_vec();
            moved[at] += step;
            loss(&moved)
        };
        (moved_by(step) - moved_by(-step)) / (2.0 * step)
    };
    assert_eq!(values.len(), gradient.len());
    for at in (0..values.len()).step_by(values.len().div_ceil(20)) {
        let (near, far) = (slope(at, STEP), slope(at, 2.0 * STEP));
        // The error goes as the square of the step, so that a third of the difference is that of
        // the nearer slope; and both losses are rounded, over a few hundred terms at most.
        let limit = (far - near).abs() + 1e3 * f64::EPSILON * loss(values).abs().max(1.0) / STEP;
        assert!((near - gradient[at]).abs() <= limit, "{at}: {near} but {}", gradient[at]);
    }
}

/// Asserts that `body` computes the same bits on one thread, on two and on five.
pub(crate) fn assert_same_on_any_number_of_threads(body: impl Fn(&mut Cpu) -> Vec<Vec<f32>>) {
    let paths = Isa::available().into_iter();
    for (isa, compute) in paths.flat_map(|isa| [Compute::F32, Compute::Bf16].map(|c| (isa, c))) {
        let results = [1, 2, 5].map(|n_threads| {
            let kind = DeviceKind::Cpu { isa, n_threads };
            let profile = DeviceProfile { kind, compute };
            let outputs = body(&mut Cpu::new(profile).unwrap());
            let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect::<Vec<_>>();
            outputs.into_iter().map(bits).collect::<Vec<_>>()
        });
        assert!(results.iter().all(|result| *result == results[0]), "on {isa}, {compute:?}");
    }
}

/// A quantised tensor on the host.
pub(crate) struct Nf4Parts {
    n_elements: usize,
    codes: Vec<u8>,
    absmax_codes: Vec<u8>,
    absmax_scales: Vec<f32>,
    absmax_offset: f32,
}

impl Nf4Parts {
    pub(crate) fn quantize(values: &[f32]) -> Self {
        let layout = nf4::Nf4Layout { n_elements: values.len() };
        let mut codes = vec![0; layout.n_codes()];
        let mut absmax = vec![0.0; layout.n_blocks()];
        nf4::quantize(values, &mut codes, &mut absmax);
        let absmax_offset = nf4::absmax_offset(&absmax);
        let mut absmax_codes = vec![0; layout.n_blocks()];
        let mut absmax_scales = vec![0.0; layout.n_groups()];
        nf4::quantize_absmax(&absmax, absmax_offset, &mut absmax_codes, &mut absmax_scales);
        let n_elements = values.len();
        Self { n_elements, codes, absmax_codes, absmax_scales, absmax_offset }
    }

    pub(crate) fn values(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.n_elements];
        let (scales, offset) = (&self.absmax_scales, self.absmax_offset);
        nf4::dequantize(&self.codes, &self.absmax_codes, scales, offset, &mut values);
        values
    }

    /// The same as the processor's products read it.
    pub(crate) fn stored(&self) -> Nf4Values<'_> {
        Nf4Values {
            n_elements: self.n_elements,
            codes: &self.codes,
            absmax_codes: &self.absmax_codes,
            absmax_scales: &self.absmax_scales,
            absmax_offset: self.absmax_offset,
        }
    }

    pub(crate) fn place(&self, device: &mut impl Memory) -> nf4::Nf4Weight {
        nf4::Nf4Weight {
            codes: place(device, &self.codes),
            absmax_codes: place(device, &self.absmax_codes),
            absmax_scales: place(device, &self.absmax_scales),
            absmax_offset: place(device, &[self.absmax_offset]),
        }
    }
}
