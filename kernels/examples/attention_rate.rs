//! How long attention takes over one sequence, and its rate in the products' own operations.
//!
//! ```text
//! cargo run --release -p nibble-kernels --example attention_rate [-- n_threads [T H G K]]
//! ```
//! The fastest of several runs, as whatever else the machine does can only slow one down. Hidden
//! pairs are not counted, so that tiles which waste time on them rate lower.

mod inputs;

use std::time::Duration;

use inputs::{place, place_in, values};
use nibble_kernels::{
    Compute, Cpu, DeviceKind, DeviceProfile, Isa,
    attention::{self, Attention, AttentionShape, Segment},
    cpu::ceilings,
};

/// Time given to each measurement.
const MEASUREMENT: Duration = Duration::from_millis(500);

/// Tokens, heads, key/value heads, head size: a 135M- and a 1.1B-parameter Llama, a 7B one.
const SHAPES: [(usize, usize, usize, usize); 4] =
    [(256, 9, 3, 64), (1024, 32, 4, 64), (2048, 32, 4, 64), (1024, 32, 32, 128)];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments = std::env::args().skip(1).map(|argument| argument.parse());
    let arguments = arguments.collect::<Result<Vec<usize>, _>>()?;
    let n_threads = match arguments.first() {
        Some(&n_threads) => n_threads,
        None => std::thread::available_parallelism()?.get(),
    };
    let shapes = match arguments[..] {
        [_, tokens, heads, kv_heads, head_size] => vec![(tokens, heads, kv_heads, head_size)],
        _ => SHAPES.to_vec(),
    };
    let isa = Isa::best();
    println!("{isa}, {n_threads} threads; milliseconds and GFLOP/s");
    println!("{:<5} {:<20} {:>16} {:>16}", "", "T, H, G, K", "forward", "backward");
    for compute in [Compute::Bf16, Compute::F32] {
        for &shape in &shapes {
            let profile = DeviceProfile { kind: DeviceKind::Cpu { isa, n_threads }, compute };
            measure(profile, shape)?;
        }
    }
    Ok(())
}

/// Prints the row of one shape.
fn measure(
    profile: DeviceProfile,
    (n_rows, n_heads, n_kv_heads, head_size): (usize, usize, usize, usize),
) -> Result<(), Box<dyn std::error::Error>> {
    let shape = AttentionShape {
        n_rows,
        n_key_rows: n_rows,
        n_heads,
        n_kv_heads,
        head_size,
        window: None,
        scale: 1.0 / (head_size as f32).sqrt(),
        max_segment: n_rows,
    };
    let mut device = Cpu::new(profile)?;
    let n = n_rows as u32;
    let whole = Segment { query_start: 0, n_queries: n, key_start: 0, n_keys: n };
    let segments = place(&mut device, &[whole])?;
    let (queries, keys) = (n_heads * head_size, n_kv_heads * head_size);
    // As a step has them.
    let format = attention::input_format(profile.compute);
    let mut kept = |width: usize| place_in(&mut device, &values(n_rows * width), format);
    let (q, k, v, out) = (kept(queries)?, kept(keys)?, kept(keys)?, kept(queries)?);
    let mut matrix = |width: usize| place(&mut device, &values(n_rows * width));
    let (dout, dq, dk, dv) = (matrix(queries)?, matrix(queries)?, matrix(keys)?, matrix(keys)?);
    let lse = matrix(n_heads)?;
    let bytes = attention::workspace_bytes(&profile, shape, true);
    let workspace = place(&mut device, &vec![0; bytes])?;
    let forward = ceilings::fastest(MEASUREMENT, || {
        device.attention(shape, segments, q, k, v, out, lse, workspace)
    });
    let backward = ceilings::fastest(MEASUREMENT, || {
        device.attention_backward(shape, segments, q, k, v, out, lse, dout, dq, dk, dv, workspace);
    });
    // Two products over each visible pair forward, five backward.
    let pairs = (n_rows * (n_rows + 1) / 2 * n_heads) as f64;
    let operations = 2.0 * pairs * head_size as f64;
    let extents = format!("{n_rows}, {n_heads}, {n_kv_heads}, {head_size}");
    print!("{:<5} {extents:<20}", format!("{:?}", profile.compute));
    for (secs, n_products) in [(forward, 2.0), (backward, 5.0)] {
        print!(" {:>8.2} {:>7.1}", secs * 1e3, n_products * operations / secs / 1e9);
    }
    println!();
    Ok(())
}
