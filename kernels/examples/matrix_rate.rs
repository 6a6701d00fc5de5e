//! How fast the matrix products run, beside what the processor could do at most.
//!
//! ```text
//! cargo run --release -p nibble-kernels --example matrix_rate [-- n_threads [rows in out]]
//! ```
//! The ceiling is the same instruction on registers alone, on as many threads, measured just before
//! each row of the table, since a processor's frequency moves. A rate is that of the fastest of
//! several runs: whatever else the machine does can only slow one down. Shares mean something on an
//! otherwise idle machine only, since the ceiling's short runs fit between another program's.

mod inputs;

use std::time::Duration;

use half::bf16;
use inputs::{place, place_in, values};
use nibble_kernels::{
    Compute, Cpu, DeviceKind, DeviceProfile, DeviceSlice, Gradient, Isa, MemoryError, Store,
    cpu::ceilings,
    layers::{
        self, Adapter, Layer, LayerBackward, LayerWidth, Layers, LayersShape, LoraPair, MAX_LAYERS,
    },
    linear::{self, Linear, LinearShape, Weight},
    nf4::{Nf4, Nf4Layout, Nf4Weight},
};

/// Rows, columns in, columns out: square ones, those of a 1.1B-parameter Llama, one row as in
/// writing text.
const SHAPES: [(usize, usize, usize); 6] = [
    (256, 2048, 2048),
    (256, 2048, 5632),
    (256, 5632, 2048),
    (1024, 2048, 2048),
    (1024, 4096, 4096),
    (1, 4096, 4096),
];

const RANK: usize = 16;

/// Time given to each measurement.
const MEASUREMENT: Duration = Duration::from_millis(100);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments = std::env::args().skip(1).map(|argument| argument.parse());
    let arguments = arguments.collect::<Result<Vec<usize>, _>>()?;
    let n_threads = match arguments.first() {
        Some(&n_threads) => n_threads,
        None => std::thread::available_parallelism()?.get(),
    };
    let shapes = match arguments[..] {
        [_, n_rows, n_in, n_out] => vec![(n_rows, n_in, n_out)],
        _ => SHAPES.to_vec(),
    };
    let isa = Isa::best();
    println!("{isa}, {n_threads} threads; rates in GFLOP/s and as a share of the ceiling");
    for compute in [Compute::Bf16, Compute::F32] {
        println!();
        println!(
            "{:<5} {:<17} {:<9} {:>8} {:>14} {:>14} {:>14}",
            "", "rows, in, out", "weight", "ceiling", "forward", "dx", "dweight"
        );
        for &(n_rows, n_in, n_out) in &shapes {
            let profile = DeviceProfile { kind: DeviceKind::Cpu { isa, n_threads }, compute };
            measure(profile, LinearShape { n_rows, n_in, n_out })?;
        }
    }
    Ok(())
}

/// Prints the rows of one shape: three stores of a weight, and the last with a low-rank pair, once and as
/// three layers of one input.
fn measure(profile: DeviceProfile, shape: LinearShape) -> Result<(), Box<dyn std::error::Error>> {
    let mut device = Cpu::new(profile)?;
    let LinearShape { n_rows, n_in, n_out } = shape;
    let x = place(&mut device, &values(n_rows * n_in))?;
    let dy = place(&mut device, &values(n_rows * n_out))?;
    let y = place(&mut device, &values(n_rows * n_out))?;
    let dx = place(&mut device, &values(n_rows * n_in))?;
    let dweight = place(&mut device, &vec![0.0; n_in * n_out])?;
    let workspace = place(&mut device, &vec![0; linear::workspace_bytes(&profile, shape)])?;
    let weight = values(n_in * n_out);
    let narrow: Vec<_> = weight.iter().map(|&value| bf16::from_f32(value)).collect();
    let weight = place(&mut device, &weight)?;
    let weights = [
        ("f32", Weight::F32(weight)),
        ("bf16", Weight::Bf16(place(&mut device, &narrow)?)),
        ("NF4", Weight::Nf4(quantized(&mut device, weight)?)),
    ];
    let n_operations = 2.0 * n_rows as f64 * n_in as f64 * n_out as f64;
    let store = Store::Overwrite;
    let shape_of_layer = shape;
    for (name, weight) in weights {
        let line = Line::new(profile, shape, name);
        let forward = ceilings::fastest(MEASUREMENT, || {
            device.linear(shape, x.into(), weight, None, store, y, workspace)
        });
        let input = ceilings::fastest(MEASUREMENT, || {
            device.linear_input_gradient(shape, dy.into(), weight, store, dx, workspace);
        });
        let gradient = ceilings::fastest(MEASUREMENT, || {
            let dweight = Gradient { values: dweight, store };
            device.linear_weight_gradient(shape, x.into(), dy.into(), dweight.into(), workspace);
        });
        line.print([forward, input, gradient].map(|secs| n_operations / secs));
    }

    let shape = LayersShape { n_rows, n_in, rank: RANK };
    // As a step has it.
    let input = linear::input_format(&profile, n_in);
    let output = linear::input_format(&profile, n_out);
    let width = LayerWidth { n_out, has_pair: true, output, gradient: output };
    let widths = [width; MAX_LAYERS];
    let workspace = layers::workspace_bytes(&profile, shape, &widths, input, false);
    let workspace = place(&mut device, &vec![0; workspace])?;
    let input = place_in(&mut device, &values(n_rows * n_in), input)?;
    let mut pair = || -> Result<LoraPair, MemoryError> {
        let a = place(&mut device, &values(RANK * n_in))?;
        Ok(LoraPair { a, b: place(&mut device, &values(n_out * RANK))? })
    };
    let pairs = [pair()?, pair()?, pair()?];
    let gradients = [pair()?, pair()?, pair()?];
    let weight = weights[2].1;
    let mut forward = Vec::new();
    let mut backward = Vec::new();
    for (pair, gradient) in pairs.into_iter().zip(gradients) {
        let xa = place(&mut device, &vec![0.0; n_rows * RANK])?;
        let adapter = Adapter { pair, scale: 1.0, dropout: None, xa };
        let y = place_in(&mut device, &values(n_rows * n_out), output)?;
        forward.push(Layer {
            weight,
            bias: None,
            adapter: Some(adapter),
            n_out,
            residual: None,
            y,
        });
        let adapter = Some((adapter, gradient));
        backward.push(LayerBackward { weight, adapter, n_out, dy: y });
    }
    for (name, n) in [("+ pair", 1), ("3 + pairs", MAX_LAYERS)] {
        let line = Line::new(profile, shape_of_layer, name);
        let (forward, backward) = (&forward[..n], &backward[..n]);
        let secs = [
            ceilings::fastest(MEASUREMENT, || device.layers(shape, input, forward, workspace)),
            ceilings::fastest(MEASUREMENT, || {
                let dx = Some((dx, store));
                device.layers_backward(shape, input, backward, store, dx, workspace);
            }),
        ];
        // Beside each layer's, one pass of the rows over A and one over B forward; two of each backward.
        let of_pair = 2.0 * (n_rows * RANK) as f64 * (n_in + n_out) as f64;
        let n_operations = [n_operations + of_pair, n_operations + 2.0 * of_pair];
        let rate = |i: usize| n as f64 * n_operations[i] / secs[i];
        line.print([rate(0), rate(1), f64::NAN]);
    }
    Ok(())
}

/// A line of the table, with the ceiling measured when it is begun.
struct Line {
    label: String,
    ceiling: f64,
}

impl Line {
    fn new(profile: DeviceProfile, shape: LinearShape, weight: &str) -> Self {
        let extents = format!("{}, {}, {}", shape.n_rows, shape.n_in, shape.n_out);
        let label = format!("{:<5} {extents:<17} {weight:<9}", format!("{:?}", profile.compute));
        Self { label, ceiling: ceilings::product_flops_per_s(profile) }
    }

    /// Prints operations a second.
    fn print(self, rates: [f64; 3]) {
        print!("{} {:>8.0}", self.label, self.ceiling / 1e9);
        for rate in rates {
            if rate.is_nan() {
                print!(" {:>14}", "–");
            } else {
                print!(" {:>8.1} {:>4.0}%", rate / 1e9, 100.0 * rate / self.ceiling);
            }
        }
        println!();
    }
}

fn quantized(device: &mut Cpu, source: DeviceSlice<f32>) -> Result<Nf4Weight, MemoryError> {
    let layout = Nf4Layout { n_elements: source.len() };
    let weight = Nf4Weight {
        codes: place(device, &vec![0; layout.n_codes()])?,
        absmax_codes: place(device, &vec![0; layout.n_blocks()])?,
        absmax_scales: place(device, &vec![0.0; layout.n_groups()])?,
        absmax_offset: place(device, &[0.0])?,
    };
    let workspace = place(device, &vec![0.0; layout.n_blocks()])?;
    device.nf4_quantize(source, weight, workspace);
    Ok(weight)
}
