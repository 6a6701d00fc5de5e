//! `cargo xtask starter`: the starter model from nothing: its text, its tokenizer, its training
//! with this project's own engine. `cargo xtask datasets` writes the example datasets.

mod datasets;
mod text;
mod world;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::json;

use self::{
    datasets::DATASETS,
    text::{Manner, anything, story},
    world::{ANIMALS, Random},
};
use crate::{Error, nibble, root, run};

/// Conversations and stories of the corpus.
const N_DOCUMENTS: usize = 80_000;
/// Optimizer steps of 4,096 tokens.
const STEPS: &str = "640";

/// Writes the example datasets.
pub fn write_datasets() -> Result<(), Error> {
    let folder = root().join("assets").join("datasets");
    for dataset in DATASETS {
        write(&folder.join(dataset.file), &dataset.lines())?;
    }
    Ok(())
}

/// Makes the starter model again, from nothing; takes some ten minutes on two quiet cores.
pub fn starter() -> Result<(), Error> {
    let work = root().join("target").join("starter");
    if work.exists() {
        fs::remove_dir_all(&work).map_err(|source| Error::File { path: work.clone(), source })?;
    }
    fs::create_dir_all(&work).map_err(|source| Error::File { path: work.clone(), source })?;
    let corpus = work.join("corpus.jsonl");
    write(&corpus, &corpus_lines(N_DOCUMENTS, 20))?;

    let base = work.join("base");
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["run", "--release", "--package", "nibble-engine"]);
    command.args(["--example", "starter_base", "--"]).arg(&corpus).arg(&base);
    run("making the tokenizer and the untrained model", &mut command)?;

    let nibble = nibble()?;
    let trained = work.join("run");
    let mut train = Command::new(&nibble);
    train
        .arg("train")
        .arg("--model")
        .arg(&base)
        .arg("--data")
        .arg(&corpus)
        .arg("--out")
        .arg(&trained);
    train.args(["--method", "full", "--steps", STEPS, "--seq", "256", "--batch", "16"]);
    train.args([
        "--lr",
        "2e-3",
        "--warmup",
        "100",
        "--weight-decay",
        "0.05",
        "--eval-split",
        "0.01",
    ]);
    train.args(["--save-every", "200", "--recompute", "off"]);
    run("training the starter model", &mut train)?;

    let merged = work.join("merged");
    let mut export = Command::new(&nibble);
    export.arg("export").arg(&trained).arg("--to").arg(&merged).args(["--format", "merged"]);
    run("exporting the starter model", &mut export)?;
    let starter = root().join("assets").join("starter");
    for entry in list(&merged)? {
        let target = starter.join(entry.file_name().unwrap_or_default());
        fs::create_dir_all(&starter)
            .and_then(|()| fs::copy(&entry, &target))
            .map_err(|source| Error::File { path: target, source })?;
    }
    println!("The starter model is in {}", starter.display());
    Ok(())
}

/// Conversations in the chat template, and stories, a JSON object a line.
fn corpus_lines(n_documents: usize, seed: u64) -> String {
    let mut random = Random::new(seed);
    let mut lines = String::new();
    for _ in 0..n_documents {
        let text = if random.below(12) == 0 {
            let animal = &ANIMALS[random.below(ANIMALS.len())];
            story(&mut random, animal)
        } else {
            let n_exchanges = 1 + random.below(8) / 6;
            let manner = Manner::new(&mut random);
            (0..n_exchanges)
                .map(|_| {
                    let exchange = anything(&mut random);
                    format!(
                        "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n{}<|im_end|>\n",
                        exchange.question,
                        manner.say(&exchange.answer)
                    )
                })
                .collect()
        };
        lines.push_str(&json!({ "text": text }).to_string());
        lines.push('\n');
    }
    lines
}

fn write(path: &Path, text: &str) -> Result<(), Error> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)
            .map_err(|source| Error::File { path: folder.to_owned(), source })?;
    }
    fs::write(path, text).map_err(|source| Error::File { path: path.to_owned(), source })
}

fn list(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let failed = |source| Error::File { path: folder.to_owned(), source };
    fs::read_dir(folder)
        .map_err(failed)?
        .map(|entry| entry.map(|entry| entry.path()).map_err(failed))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_corpus_is_the_same_every_time_and_full_of_sentences() {
        let corpus = corpus_lines(300, 7);
        assert_eq!(corpus, corpus_lines(300, 7));
        assert_ne!(corpus, corpus_lines(300, 8));
        for line in corpus.lines() {
            let text: serde_json::Value = serde_json::from_str(line).unwrap();
            let text = text["text"].as_str().unwrap();
            assert!(
                !text.contains("  ") && !text.contains(" a a") && !text.contains(".."),
                "{text}"
            );
        }
    }
}
