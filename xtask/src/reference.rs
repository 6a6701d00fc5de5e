//! `cargo xtask reference`: writes `tests/golden/` anew with the reference implementations.
//!
//! Makes a Python environment with the pinned packages of `tests/reference/requirements.txt`, in
//! the user's cache folder (or where `NIBBLE_REFERENCE_VENV` says), so that a checkout stays small
//! and a second one finds it ready. Nothing else in the project needs Python; `cargo xtask bench`
//! asks [`ready_python`] whether it is there.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

/// The scripts that write golden files, in the order in which they need each other's.
const SCRIPTS: [&str; 5] = ["nf4.py", "adamw_8bit.py", "rope.py", "families.py", "trajectories.py"];

/// The oldest Python that the pinned packages support.
const OLDEST_PYTHON: (u32, u32) = (3, 11);

/// Written into the environment when it is complete: the requirements it was made from.
const READY: &str = "nibble-requirements.txt";

/// Why the golden files could not be written.
#[derive(Debug, thiserror::Error)]
pub enum ReferenceError {
    /// No interpreter to make the environment with.
    #[error(
        "no Python {}.{} or newer found; install one, or name it in NIBBLE_PYTHON",
        OLDEST_PYTHON.0,
        OLDEST_PYTHON.1
    )]
    NoPython,
    /// The platform has no folder for caches.
    #[error("no cache folder for this user; name one in NIBBLE_REFERENCE_VENV")]
    NoCacheFolder,
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A program could not be started.
    #[error("cannot start {program}: {source}")]
    Start {
        /// Which.
        program: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// A program ended with an error, which it has printed.
    #[error("{step} failed (see above); {hint}")]
    Failed {
        /// What was being done.
        step: String,
        /// What to try.
        hint: String,
    },
}

/// Writes every golden file anew and says which differ from the committed ones.
///
/// # Errors
/// When there is no Python, the packages cannot be installed, or a script fails.
pub fn reference() -> Result<(), ReferenceError> {
    let scripts = crate::root().join("tests").join("reference");
    let golden = crate::root().join("tests").join("golden");
    let python = make_environment(&scripts.join("requirements.txt"))?;
    for script in SCRIPTS {
        println!("{script}");
        run(
            Command::new(&python).arg(scripts.join(script)).arg(&golden),
            script,
            "the golden files before it are written, those after it are as they were",
        )?;
    }
    hold_our_adapters(&python, &scripts, &golden)?;
    report_changes(&golden)
}

/// Writes an adapter of ours for every family, and lets peft read it.
fn hold_our_adapters(python: &Path, scripts: &Path, golden: &Path) -> Result<(), ReferenceError> {
    let families = golden.join("families");
    let failed = |source| ReferenceError::File { path: families.clone(), source };
    let mut models: Vec<PathBuf> = fs::read_dir(&families)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect())
        .map_err(failed)?;
    models.sort();
    let place = env::temp_dir().join(format!("nibble-adapters-{}", std::process::id()));
    for model in models {
        let name = model.file_name().unwrap_or_default();
        println!("peft reads our adapter on {}", name.to_string_lossy());
        let ours = place.join(name);
        let cargo = env::var("CARGO").unwrap_or_else(|_| "cargo".into());
        let example = ["run", "--quiet", "-p", "nibble-tests", "--example", "write_adapter", "--"];
        run(
            Command::new(cargo).args(example).arg(&model).arg(&ours),
            "writing an adapter",
            "the golden files are as they were",
        )?;
        run(
            Command::new(python)
                .arg(scripts.join("read_adapter.py"))
                .arg(&model)
                .arg(ours.join("adapter"))
                .arg(ours.join("logits.safetensors")),
            "read_adapter.py",
            "what Nibble writes is not what peft reads; that is a defect",
        )?;
    }
    fs::remove_dir_all(&place).map_err(|source| ReferenceError::File { path: place, source })
}

/// The interpreter of a complete environment for the scripts of `tests/reference`, if there is one.
pub fn ready_python() -> Option<PathBuf> {
    let requirements = crate::root().join("tests").join("reference").join("requirements.txt");
    let environment = environment_folder().ok()?;
    is_ready(&environment, &fs::read_to_string(requirements).ok()?)
        .then(|| interpreter_in(&environment))
}

fn environment_folder() -> Result<PathBuf, ReferenceError> {
    if let Some(named) = env::var_os("NIBBLE_REFERENCE_VENV") {
        return Ok(PathBuf::from(named));
    }
    Ok(cache_folder()?.join("reference-python"))
}

/// The user's folder of what this project fetched and can fetch again.
///
/// # Errors
/// When the platform has none.
pub fn cache_folder() -> Result<PathBuf, ReferenceError> {
    let folders =
        directories::ProjectDirs::from("", "", "nibble").ok_or(ReferenceError::NoCacheFolder)?;
    Ok(folders.cache_dir().to_owned())
}

fn interpreter_in(environment: &Path) -> PathBuf {
    if cfg!(windows) {
        environment.join("Scripts").join("python.exe")
    } else {
        environment.join("bin").join("python")
    }
}

fn is_ready(environment: &Path, requirements: &str) -> bool {
    fs::read_to_string(environment.join(READY)).is_ok_and(|made_from| made_from == requirements)
}

/// Makes the environment unless it is there, made from the same requirements; returns its Python.
fn make_environment(requirements: &Path) -> Result<PathBuf, ReferenceError> {
    let file = |path: &Path| {
        let path = path.to_path_buf();
        |source| ReferenceError::File { path, source }
    };
    let wanted = fs::read_to_string(requirements).map_err(file(requirements))?;
    let environment = environment_folder()?;
    let python = interpreter_in(&environment);
    if is_ready(&environment, &wanted) {
        return Ok(python);
    }
    println!("Making a Python environment in {}", environment.display());
    run(
        Command::new(find_python()?).args(["-m", "venv", "--clear"]).arg(&environment),
        "python -m venv",
        "on Debian and Ubuntu it is the package python3-venv",
    )?;
    // Without torch's own dependencies: on Linux they are gigabytes of CUDA libraries.
    run(
        Command::new(&python)
            .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"])
            .arg("--requirement")
            .arg(requirements),
        "pip install",
        "check the connection and the free disk space (2 GB)",
    )?;
    run(
        Command::new(&python).arg(requirements.with_file_name("cpu_torch.py")),
        "making torch importable without CUDA",
        "it needs gcc and readelf",
    )?;
    let ready = environment.join(READY);
    fs::write(&ready, wanted).map_err(file(&ready))?;
    Ok(python)
}

/// The first interpreter that starts and is new enough.
///
/// # Errors
/// When there is none.
pub fn find_python() -> Result<PathBuf, ReferenceError> {
    let named = env::var_os("NIBBLE_PYTHON").map(PathBuf::from);
    let usual = ["python3", "python"].map(PathBuf::from);
    named
        .into_iter()
        .chain(usual)
        .find(|python| version_of(python).is_some_and(|version| version >= OLDEST_PYTHON))
        .ok_or(ReferenceError::NoPython)
}

fn version_of(python: &Path) -> Option<(u32, u32)> {
    let output = Command::new(python)
        .args(["-c", "import sys; print(sys.version_info[0], sys.version_info[1])"])
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let (major, minor) = text.trim().split_once(' ')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// Shows how the golden files now differ from the committed ones.
fn report_changes(golden: &Path) -> Result<(), ReferenceError> {
    println!("Changes to the golden files (none: they are what the pinned versions compute):");
    run(
        Command::new("git")
            .current_dir(crate::root())
            .args(["--no-pager", "status", "--short", "--"])
            .arg(golden),
        "git status",
        "the golden files are written nevertheless",
    )
}

fn run(command: &mut Command, step: &str, hint: &str) -> Result<(), ReferenceError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let status = command.status().map_err(|source| ReferenceError::Start { program, source })?;
    if status.success() {
        return Ok(());
    }
    Err(ReferenceError::Failed { step: step.to_owned(), hint: hint.to_owned() })
}
