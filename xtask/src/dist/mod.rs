//! `cargo xtask dist`: what people install: a plain archive for every system, and a Debian package.

mod debian;

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use flate2::{Compression, write::GzEncoder};

use crate::{Error, release_folder, root, window};

/// What the app is called, and with it the folder of what it reads: Tauri looks for it there.
const NAME: &str = "Nibble";

/// The version of every crate of the workspace, this one among them.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// A file or folder of the checkout, and its place in what is installed.
#[derive(Debug, PartialEq)]
struct Piece {
    from: PathBuf,
    to: String,
    is_program: bool,
}

/// Builds the programs and packs them; returns the files made.
///
/// # Errors
/// When something does not build, or cannot be written.
pub fn dist() -> Result<Vec<PathBuf>, Error> {
    window::build_programs()?;
    let folder = root().join("target").join("dist");
    fs::create_dir_all(&folder).map_err(|source| Error::File { path: folder.clone(), source })?;
    let pieces = pieces();
    let system = std::env::consts::OS;
    let name = format!("nibble-{VERSION}-{}-{system}", std::env::consts::ARCH);
    let archive = folder.join(format!("{name}.tar.gz"));
    write(&archive, |file| {
        let compressed = GzEncoder::new(file, Compression::best());
        pack(compressed, &format!("{name}/"), &pieces)?.finish()
    })?;
    let mut made = vec![archive];
    if cfg!(target_os = "linux") {
        let architecture = debian::architecture();
        let package = folder.join(format!("nibble_{VERSION}_{architecture}.deb"));
        write(&package, |file| debian::write_package(file, &pieces))?;
        made.push(package);
    }
    for path in &made {
        let n_bytes = fs::metadata(path).map_or(0, |metadata| metadata.len());
        let shown = path.strip_prefix(root()).unwrap_or(path);
        println!("{}: {:.1} MB", shown.display(), n_bytes as f64 / 1e6);
    }
    Ok(made)
}

/// Writes a file whole or not at all.
fn write<T>(path: &Path, fill: impl FnOnce(File) -> io::Result<T>) -> Result<(), Error> {
    let failed = |source| Error::File { path: path.to_owned(), source };
    let unfinished = path.with_extension("tmp");
    File::create(&unfinished).and_then(fill).map_err(failed)?;
    fs::rename(&unfinished, path).map_err(failed)
}

/// All that is installed. Programs lie in `bin`, what they read in `lib/Nibble` beside it; on
/// Windows and macOS where Tauri looks for it there.
fn pieces() -> Vec<Piece> {
    let (programs, resources) = match std::env::consts::OS {
        "windows" => ("", String::new()),
        "macos" => ("bin/", "Resources/".to_owned()),
        _ => ("bin/", format!("lib/{NAME}/")),
    };
    let program = |name: &str| {
        let file = format!("{name}{}", std::env::consts::EXE_SUFFIX);
        Piece {
            from: release_folder().join(&file),
            to: format!("{programs}{file}"),
            is_program: true,
        }
    };
    let plain = |from: &[&str], to: String| {
        let from = from.iter().fold(root(), |path, part| path.join(part));
        Piece { from, to, is_program: false }
    };
    let mut pieces: Vec<_> = window::PROGRAMS.iter().map(|name| program(name)).collect();
    for folder in ["starter", "datasets"] {
        pieces.push(plain(&["assets", folder], format!("{resources}{folder}")));
    }
    pieces.push(plain(&["README.md"], "share/doc/nibble/README.md".into()));
    if cfg!(target_os = "linux") {
        for (size, file) in [("32x32", "32x32"), ("128x128", "128x128"), ("256x256", "128x128@2x")]
        {
            let to = format!("share/icons/hicolor/{size}/apps/nibble.png");
            pieces.push(plain(&["assets", "icons", &format!("{file}.png")], to));
        }
        let to = "share/applications/nibble.desktop".into();
        pieces.push(plain(&["assets", "nibble.desktop"], to));
    }
    pieces
}

/// Packs `pieces` below `prefix`, in an order and with times that do not depend on the machine.
fn pack<W: Write>(writer: W, prefix: &str, pieces: &[Piece]) -> io::Result<W> {
    let mut archive = tar::Builder::new(writer);
    let header = |n_bytes: u64, mode: u32| {
        let mut header = tar::Header::new_gnu();
        header.set_size(n_bytes);
        header.set_mode(mode);
        header.set_mtime(0);
        header
    };
    let mut folders = BTreeSet::new();
    for piece in pieces {
        let mut files = Vec::new();
        collect(&piece.from, &format!("{prefix}{}", piece.to), &mut files)?;
        for (from, to) in files {
            // Each folder before what is in it: dpkg makes none by itself.
            for (end, _) in to.match_indices('/') {
                let folder = &to[..=end];
                if folders.insert(folder.to_owned()) {
                    let mut header = header(0, 0o755);
                    header.set_entry_type(tar::EntryType::Directory);
                    archive.append_data(&mut header, folder, io::empty())?;
                }
            }
            let mut file = File::open(&from)?;
            let mode = if piece.is_program { 0o755 } else { 0o644 };
            let mut header = header(file.metadata()?.len(), mode);
            archive.append_data(&mut header, to, &mut file)?;
        }
    }
    archive.into_inner()
}

/// The files at and below `from`, with their places, in the order of their names.
fn collect(from: &Path, to: &str, files: &mut Vec<(PathBuf, String)>) -> io::Result<()> {
    if !from.is_dir() {
        files.push((from.to_owned(), to.to_owned()));
        return Ok(());
    }
    let mut entries = fs::read_dir(from)?.collect::<io::Result<Vec<_>>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        collect(&entry.path(), &format!("{to}/{}", entry.file_name().to_string_lossy()), files)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_installed_is_in_the_checkout() {
        for piece in pieces().iter().filter(|piece| !piece.is_program) {
            assert!(piece.from.exists(), "{}", piece.from.display());
        }
    }

    #[test]
    fn an_archive_is_the_same_every_time() {
        let datasets = Piece {
            from: root().join("assets").join("datasets"),
            to: "datasets".into(),
            is_program: false,
        };
        let packed = pack(Vec::new(), "nibble/", std::slice::from_ref(&datasets)).unwrap();
        assert_eq!(packed, pack(Vec::new(), "nibble/", &[datasets]).unwrap());
        let mut archive = tar::Archive::new(&packed[..]);
        let names: Vec<_> = archive
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().to_string_lossy().into_owned())
            .collect();
        assert!(names.contains(&"nibble/datasets/datasets.json".to_owned()), "{names:?}");
        assert_eq!(names[..2], ["nibble/", "nibble/datasets/"]);
        assert!(names.is_sorted(), "{names:?}");
    }
}
