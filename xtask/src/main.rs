//! The project's own commands: `cargo xtask run | test | bench | tidy | dist | kernels | card | reference |
//! starter | datasets`.

mod bench;
mod card;
mod dist;
mod first_run;
mod kernels;
mod reference;
mod starter;
mod system;
mod tidy;
mod window;

use std::{
    path::PathBuf,
    process::{Command, ExitCode},
};

const HELP: &str = "\
cargo xtask COMMAND

  run [--headless]   build Nibble and open it; headless, or without a display, fine-tune the
                     built-in model on a built-in dataset in the terminal
  test [--without-window]
                     check formatting, lints, every test and the house's rules
  bench [SHAPE ...]  measure speed and memory, beside PEFT + bitsandbytes where Python is there
  bench plan         measure planning alone
  bench training [--tokens=N,...] [--rounds=N] [SHAPE ...]
                     measure training beside PEFT + bitsandbytes, and nothing else
  bench alone        measure starts, threads and lengths, of Nibble alone
  bench paging [SHAPE ...]
                     measure what paging weights from memory costs a step
  bench window       measure the windows: start, memory, size, frames
  bench cuda [--tokens=N,...] [--rounds=N] [SHAPE ...]
                     measure QLoRA on an NVIDIA card, beside PEFT + bitsandbytes
  card               pack what tests/gpu.sh runs on a machine with an NVIDIA card
  dist               build what people install: an archive and, on Linux, a Debian package
  kernels [--only-ptx] [--verbose]
                     compile the kernels of NVIDIA cards again (needs Python, to fetch the compiler)
  tidy               check the house's rules alone
  starter            train the starter model again, from nothing
  datasets           write the example datasets again
  reference          make the golden files again with the reference implementations (needs Python)
";

/// Why a command did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A program could not be started.
    #[error("could not start {program}: {source}; is it installed and on the PATH?")]
    Start {
        /// The program.
        program: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A program failed, and has said why.
    #[error("{what} failed")]
    Failed {
        /// What was being done.
        what: String,
    },
    /// A word of the command line is not understood.
    #[error("`{word}` is not understood; give {wanted}")]
    Usage {
        /// The word.
        word: String,
        /// What would be.
        wanted: &'static str,
    },
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// Something that this project does not bring, and could not install.
    #[error(
        "missing: {}; install it and run this again, or go without the window: \
         `cargo xtask run --headless`, `cargo xtask test --without-window`",
        packages.join(", ")
    )]
    Missing {
        /// The Debian packages, or what to get elsewhere.
        packages: Vec<&'static str>,
    },
    /// The reference environment.
    #[error(transparent)]
    Reference(#[from] reference::ReferenceError),
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut words = arguments.iter().map(String::as_str);
    if words.clone().any(|word| matches!(word, "--help" | "-h")) {
        print!("{HELP}");
        return ExitCode::SUCCESS;
    }
    let result = match words.next() {
        Some("run") => first_run::run(words.any(|word| word == "--headless")),
        Some("test") => test(words.any(|word| word == "--without-window")),
        Some("bench") => match &words.collect::<Vec<_>>()[..] {
            ["window"] => window::bench(),
            ["plan"] => bench::bench_plan(),
            ["cuda", words @ ..] => bench::bench_cuda(words),
            ["alone"] => bench::bench_alone(),
            ["training", words @ ..] => bench::bench_training(words),
            ["paging", shapes @ ..] => bench::bench_paging(shapes),
            shapes => bench::bench(shapes),
        },
        Some("starter") => starter::starter(),
        Some("datasets") => starter::write_datasets(),
        Some("card") => card::card(),
        Some("dist") => window::prepare(false).and_then(|()| dist::dist()).map(drop),
        Some("kernels") => kernels::kernels(&words.collect::<Vec<_>>()),
        Some("tidy") => tidy::tidy(),
        Some("reference") => reference::reference().map_err(Error::from),
        Some("help") | None => {
            print!("{HELP}");
            Ok(())
        }
        Some(other) => {
            eprintln!("error: `{other}` is no command\n\n{HELP}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// All packages, and the simulated card: named alike by everything that builds tests, as another choice
/// of features would build half of it again.
pub const WHOLE: [&str; 3] = ["--workspace", "--features", "nibble-tests/simulator"];

/// Everything that must hold.
fn test(without_window: bool) -> Result<(), Error> {
    cargo("formatting", &["fmt", "--all", "--check"])?;
    tidy::tidy()?;
    let mut packages = WHOLE.to_vec();
    if without_window {
        packages.extend(["--exclude", window::CRATE]);
    } else {
        window::prepare(true)?;
        window::build_page()?;
        window::test_page()?;
    }
    let lints = ["--all-targets", "--", "--deny", "warnings"];
    cargo("the lints", &[&["clippy"], &packages[..], &lints].concat())?;
    // As people get it: without the simulator, which uses what nothing else does.
    cargo("the lints", &["clippy", "--package", "nibble-cli", "--", "--deny", "warnings"])?;
    cargo("a test", &[&["test"], &packages[..]].concat())?;
    if system::may_mount() {
        let alone = ["--test", "paging", "--", "--ignored"];
        cargo("a test on a small disk", &[&["test"], &packages[..], &alone].concat())?;
    } else {
        println!("Left out: disks that fill up, since this system lets nobody mount a small one.");
    }
    if without_window { Ok(()) } else { window::test_window() }
}

/// The project's root.
pub fn root() -> PathBuf {
    // This crate lies directly below it. Cargo says where when it runs the program: the place where
    // it was compiled may be another checkout that shares the build folder.
    let here = std::env::var("CARGO_MANIFEST_DIR");
    let here = PathBuf::from(here.as_deref().unwrap_or(env!("CARGO_MANIFEST_DIR")));
    here.parent().map_or_else(PathBuf::new, PathBuf::from)
}

/// Runs cargo in the project's root.
pub fn cargo(what: &str, arguments: &[&str]) -> Result<(), Error> {
    let program = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    run(what, Command::new(program).args(arguments))
}

/// Runs a program in the project's root, with this one's input and output.
pub fn run(what: &str, command: &mut Command) -> Result<(), Error> {
    let program = command.get_program().to_string_lossy().into_owned();
    let status =
        command.current_dir(root()).status().map_err(|source| Error::Start { program, source })?;
    if status.success() { Ok(()) } else { Err(Error::Failed { what: what.into() }) }
}

/// The folder of programs that were brought along, where nothing can be built; see `tests/gpu.sh`.
pub fn carried_programs() -> Option<PathBuf> {
    std::env::var_os("NIBBLE_PROGRAMS").map(PathBuf::from)
}

/// The built `nibble`, made now if it is not up to date.
pub fn nibble() -> Result<PathBuf, Error> {
    if let Some(programs) = carried_programs() {
        return Ok(programs.join("nibble"));
    }
    cargo("the build", &["build", "--release", "--package", "nibble-cli"])?;
    Ok(release_folder().join(format!("nibble{}", std::env::consts::EXE_SUFFIX)))
}

/// Where cargo puts programs that are built to be used.
pub fn release_folder() -> PathBuf {
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    target.join("release")
}
