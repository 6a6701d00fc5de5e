//! `cargo xtask kernels`: compiles what a card runs, with one pinned compiler that needs neither a card
//! nor a CUDA installation. What comes out is committed; see `kernels/src/cuda/code.rs`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{Error, reference, root, run};

/// Where the compiler's library lies in its package.
const LIBRARIES: [&str; 3] = ["nvidia", "cuda_nvrtc", "lib"];

/// Compiles every kernel; `arguments` go to `kernels/examples/compile_kernels.rs`.
///
/// # Errors
/// When the compiler cannot be fetched, or a kernel does not compile.
pub fn kernels(arguments: &[&str]) -> Result<(), Error> {
    let libraries = compiler()?;
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["run", "--quiet", "--package", "nibble-kernels", "--features", "compiler"]);
    command.args(["--example", "compile_kernels", "--"]).args(arguments);
    // The compiler's own library looks for its second one there too.
    let variable = if cfg!(windows) { "PATH" } else { "LD_LIBRARY_PATH" };
    let before = std::env::var_os(variable).unwrap_or_default();
    let paths = std::iter::once(libraries).chain(std::env::split_paths(&before));
    let joined = std::env::join_paths(paths)
        .map_err(|_| Error::Failed { what: "naming the compiler's folder".into() })?;
    run("compiling the kernels", command.env(variable, joined))
}

/// The folder of the compiler's libraries, fetched where it is not there yet.
fn compiler() -> Result<PathBuf, Error> {
    let list = root().join("kernels").join("src").join("cuda").join("nvrtc.txt");
    let pinned = read(&list)?;
    let pinned = pinned.lines().find(|line| line.contains("==")).unwrap_or_default().trim();
    let folder = reference::cache_folder()?.join(pinned.replace("==", "-"));
    let libraries = LIBRARIES.iter().fold(folder.clone(), |path, name| path.join(name));
    if !libraries.is_dir() {
        let python = reference::find_python()?;
        let unfinished = folder.with_extension("tmp");
        println!("Fetching {pinned}");
        let mut command = Command::new(python);
        command.args(["-m", "pip", "install", "--quiet", "--no-deps", "--target"]);
        run("fetching the compiler", command.arg(&unfinished).arg(pinned))?;
        let _ = fs::remove_dir_all(&folder);
        fs::rename(&unfinished, &folder)
            .map_err(|source| Error::File { path: folder.clone(), source })?;
    }
    Ok(libraries)
}

fn read(path: &Path) -> Result<String, Error> {
    fs::read_to_string(path).map_err(|source| Error::File { path: path.to_owned(), source })
}
