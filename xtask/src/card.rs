//! `cargo xtask card`: packs what `tests/gpu.sh` runs on a machine with an NVIDIA card and nothing
//! else: no Rust, no CUDA, no network. As a folder and as one archive of it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::Value;

use crate::{Error, cargo, release_folder, root, run};

/// Folders and files of the checkout that the programs read.
const READ: [&str; 3] = ["tests/golden", "tests/reference/bench_peft.py", "assets/starter"];

/// The programs' names in the package, and how cargo builds those that are tests.
const TESTS: [(&str, &[&str]); 2] = [
    ("kernels-tests", &["--package", "nibble-kernels", "--lib"]),
    ("cuda-tests", &["--package", "nibble-tests", "--test", "cuda"]),
];

/// Builds the programs and puts them in `target/card`.
///
/// # Errors
/// When something does not build, or cannot be copied.
pub fn card() -> Result<(), Error> {
    let folder = root().join("target").join("card");
    if folder.exists() {
        fs::remove_dir_all(&folder)
            .map_err(|source| Error::File { path: folder.clone(), source })?;
    }
    let programs = folder.join("bin");
    cargo("the build", &["build", "--release", "--package", "nibble-cli", "--package", "xtask"])?;
    let example = ["--package", "nibble-engine", "--example", "random_model"];
    cargo("the build", &[&["build", "--release"], &example[..]].concat())?;
    for name in ["nibble", "xtask", "examples/random_model"] {
        let program = release_folder().join(name);
        let packed = programs.join(program.file_name().unwrap_or_default());
        copy(&program, &packed)?;
        strip(&packed)?;
    }
    for (name, arguments) in TESTS {
        copy(&test_program(arguments)?, &programs.join(name))?;
        strip(&programs.join(name))?;
    }
    copy(&root().join("tests").join("gpu.sh"), &folder.join("gpu.sh"))?;
    for name in READ {
        copy(&root().join(name), &folder.join(name))?;
    }
    let archive = folder.with_extension("tar.xz");
    let mut pack = Command::new("tar");
    pack.arg("--create").arg("--xz").arg("--file").arg(&archive);
    run("tar", pack.arg("--directory").arg(folder.with_file_name("")).arg("card"))?;
    println!(
        "{}, and packed {}: run gpu.sh there, on a machine with a card",
        folder.display(),
        archive.display()
    );
    Ok(())
}

/// Takes out of a program what only tells its functions' names.
fn strip(program: &Path) -> Result<(), Error> {
    run("strip", Command::new("strip").arg(program))
}

/// The program of tests that cargo builds for `arguments`.
fn test_program(arguments: &[&str]) -> Result<PathBuf, Error> {
    let program = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let what = || "building the tests".to_owned();
    let output = Command::new(&program)
        .current_dir(root())
        .args(["test", "--release", "--no-run", "--message-format=json"])
        .args(arguments)
        .stderr(Stdio::inherit())
        .output()
        .map_err(|source| Error::Start { program, source })?;
    if !output.status.success() {
        return Err(Error::Failed { what: what() });
    }
    let messages = String::from_utf8_lossy(&output.stdout);
    let built = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message["profile"]["test"] == true)
        .find_map(|message| message["executable"].as_str().map(PathBuf::from));
    built.ok_or_else(|| Error::Failed { what: what() })
}

/// Copies a file, or a folder with all that is in it.
fn copy(from: &Path, to: &Path) -> Result<(), Error> {
    let failed = |source| Error::File { path: from.to_owned(), source };
    if !from.is_dir() {
        if let Some(folder) = to.parent() {
            fs::create_dir_all(folder).map_err(failed)?;
        }
        return fs::copy(from, to).map(drop).map_err(failed);
    }
    for entry in fs::read_dir(from).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        copy(&entry.path(), &to.join(entry.file_name()))?;
    }
    Ok(())
}
