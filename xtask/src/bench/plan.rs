//! How long plans take: of large shapes, by all three methods, with everything on the device and with
//! as much outside as a budget asks for.

use std::process::{Command, Stdio};

use super::median;
use crate::{Error, nibble};

/// What `nibble plan` is asked: a budget, unless it is the shape's own, and what is paged.
const PLANS: [(&str, Option<&str>, &str); 3] = [
    ("resident", Some("100000GiB"), "off"),
    ("least paged", None, "auto"),
    ("all paged", Some("100000GiB"), "on"),
];
/// Shapes, and a budget that their adapters fit when a part is paged, and full fine-tuning never.
const SHAPES: [(&str, &str); 2] = [("llama-2-7b", "5GiB"), ("llama-2-70b", "40GiB")];
/// Processes for each figure, each of which has planned the same once before, as a window has whenever
/// a setting changes.
const ROUNDS: usize = 9;

/// Measures and prints a table.
pub fn bench() -> Result<(), Error> {
    let nibble = nibble()?;
    println!(
        "Planning full, LoRA and QLoRA together, the model's shape read each time; medians of {ROUNDS}, ms\n"
    );
    println!("{:<14} {:>12} {:>12} {:>12}", "shape", PLANS[0].0, PLANS[1].0, PLANS[2].0);
    for (shape, tight) in SHAPES {
        print!("{shape:<14}");
        for (_, budget, paging) in PLANS {
            let budget = budget.unwrap_or(tight);
            let mut milliseconds = Vec::new();
            for _ in 0..ROUNDS {
                let mut command = Command::new(&nibble);
                command.args(["plan", "--model", shape]);
                command.args(["--budget", budget, "--paged", paging]);
                milliseconds.push(planned_in(&mut command)?);
            }
            print!(" {:>12.2}", median(milliseconds));
        }
        println!();
    }
    println!();
    Ok(())
}

/// The milliseconds that `nibble plan` says it took.
fn planned_in(command: &mut Command) -> Result<f64, Error> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.stderr(Stdio::inherit()).output();
    let output = output.map_err(|source| Error::Start { program: program.clone(), source })?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines()
        .filter_map(|line| line.strip_prefix("planned in ")?.strip_suffix(" ms")?.parse().ok())
        .next_back()
        .ok_or(Error::Failed { what: program })
}
