//! `cargo xtask run`: the whole way from a model and a dataset to a verified adapter, with what the
//! project brings.

use std::{
    process::Command,
    time::{SystemTime, UNIX_EPOCH},
};

use crate::{Error, nibble, root, run as run_program, system, window};

/// Prompts within the small world of the starter model.
const PROMPTS: [&str; 3] =
    ["What color is the sky?", "Tell me about cats.", "Where can I find honey?"];

/// Builds Nibble and opens its window; `headless`, fine-tunes the starter model in the terminal.
pub fn run(headless: bool) -> Result<(), Error> {
    if !headless && system::has_display() {
        window::prepare(false)?;
        return window::open();
    }
    if !headless {
        println!("There is no display to open a window on: the same job in the terminal.\n");
    }
    let nibble = nibble()?;
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let out = root().join("runs").join(format!("first-{seconds}"));
    let model = root().join("assets").join("starter");
    let data = root().join("assets").join("datasets").join("pirate.jsonl");
    println!(
        "Fine-tuning the starter model with QLoRA on {}\n",
        data.strip_prefix(root()).unwrap_or(&data).display()
    );
    let mut train = Command::new(&nibble);
    train.arg("train").arg("--model").arg(&model).arg("--data").arg(&data).arg("--out").arg(&out);
    train.args(["--method", "qlora", "--steps", "80", "--seq", "256", "--batch", "4"]);
    train.args(["--lr", "2e-3", "--warmup", "5", "--eval-split", "0.1"]);
    for prompt in PROMPTS {
        train.args(["--sample", prompt]);
    }
    run_program("training", &mut train)?;
    let adapter = out.join("adapter");
    println!();
    let mut export = Command::new(&nibble);
    run_program("the export", export.arg("export").arg(&out).arg("--to").arg(&adapter))?;
    println!(
        "\nAsk the result something else:\n  {} generate --model {} --adapter {} --prompt \"What do dogs like?\"",
        nibble.display(),
        model.display(),
        adapter.display()
    );
    Ok(())
}
