//! What it costs a step that the weights visit the device from the host's memory.

use super::{LEAST_SHARE, example, json_lines, median, random_model};
use crate::Error;

/// Shapes and the tokens of a step. A step of fewer tokens computes too little to hide the copies of
/// its weights behind, whatever the machine.
const SHAPES: [&str; 2] = ["smollm2-135m", "tinyllama-1.1b"];
const METHODS: [&str; 2] = ["lora", "qlora"];
const TOKENS: &str = "1024";
/// Steps of each kind, by turns, after one of each that warms up.
const ROUNDS: &str = "4";

/// Measures the shapes named, or the usual ones, and prints a table.
pub fn bench(shapes: &[&str]) -> Result<(), Error> {
    println!(
        "Seconds of a step of {TOKENS} tokens, rank 16, with the layers' weights on the device and \
         visiting it from the host's memory; medians of {ROUNDS} steps of each, by turns\n"
    );
    println!(
        "{:<16} {:<6} {:>10} {:>10} {:>8} {:>14}",
        "shape", "method", "resident", "paged", "ratio", "GiB a step"
    );
    for shape in if shapes.is_empty() { &SHAPES[..] } else { shapes } {
        let folder = random_model(shape)?;
        for method in METHODS {
            let mut command = example("paged_step");
            command.arg(&folder).args([method, TOKENS, ROUNDS]);
            let steps = json_lines(&mut command)?;
            let seconds = |residency: &str| {
                let steps = steps.iter().filter(|step| step["residency"] == residency);
                let undisturbed = steps
                    .filter(|step| step["share"].as_f64().is_none_or(|share| share >= LEAST_SHARE));
                median(undisturbed.filter_map(|step| step["seconds"].as_f64()).collect())
            };
            let (resident, paged) = (seconds("resident"), seconds("paged"));
            let bytes = steps.iter().filter_map(|step| step["paged_bytes"].as_f64());
            println!(
                "{shape:<16} {method:<6} {resident:>10.2} {paged:>10.2} {:>7.3}x {:>14.2}",
                paged / resident,
                bytes.fold(0.0, f64::max) / f64::from(1 << 30)
            );
        }
    }
    println!();
    Ok(())
}
