//! A Debian package: an `ar` archive of a version, the package's control file and its files
//! (deb(5)).

use std::{
    fs::File,
    io::{self, Write},
    process::Command,
};

use flate2::{Compression, write::GzEncoder};

use super::{Piece, VERSION, collect, pack};

/// The machine as Debian calls it.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Writes the package of `pieces`.
pub fn write_package(mut file: File, pieces: &[Piece]) -> io::Result<()> {
    let control = control(installed_kib(pieces)?);
    file.write_all(b"!<arch>\n")?;
    write_member(&mut file, "debian-binary", b"2.0\n")?;
    write_member(&mut file, "control.tar.gz", &packed_control(&control)?)?;
    let data = GzEncoder::new(Vec::new(), Compression::best());
    write_member(&mut file, "data.tar.gz", &pack(data, "usr/", pieces)?.finish()?)?;
    file.flush()
}

/// One member of an `ar` archive, padded to an even length.
fn write_member(file: &mut impl Write, name: &str, bytes: &[u8]) -> io::Result<()> {
    // Name, time, owner, group, mode, length.
    writeln!(file, "{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`", 0, 0, 0, 100_644, bytes.len())?;
    file.write_all(bytes)?;
    if bytes.len() % 2 == 1 {
        file.write_all(b"\n")?;
    }
    Ok(())
}

fn packed_control(control: &str) -> io::Result<Vec<u8>> {
    let compressed = GzEncoder::new(Vec::new(), Compression::best());
    let mut archive = tar::Builder::new(compressed);
    let mut header = tar::Header::new_gnu();
    header.set_size(control.len() as u64);
    header.set_mode(0o644);
    header.set_mtime(0);
    archive.append_data(&mut header, "control", control.as_bytes())?;
    archive.into_inner()?.finish()
}

fn installed_kib(pieces: &[Piece]) -> io::Result<u64> {
    let mut files = Vec::new();
    for piece in pieces {
        collect(&piece.from, "", &mut files)?;
    }
    let sizes = files.iter().map(|(from, _)| Ok(from.metadata()?.len().div_ceil(1024)));
    sizes.sum()
}

/// The C library that the programs were linked with, which the system must have at least.
fn c_library() -> String {
    let output = Command::new("getconf").arg("GNU_LIBC_VERSION").output().ok();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    match text.as_deref().and_then(|text| text.trim().strip_prefix("glibc ")) {
        Some(version) => format!("libc6 (>= {version})"),
        None => "libc6".into(),
    }
}

fn control(installed_kib: u64) -> String {
    format!(
        "Package: nibble\n\
         Version: {VERSION}\n\
         Architecture: {}\n\
         Maintainer: Nibble <nibble@nibble.invalid>\n\
         Installed-Size: {installed_kib}\n\
         Depends: {}, libgcc-s1, libgtk-3-0 | libgtk-3-0t64, libwebkit2gtk-4.1-0\n\
         Recommends: libayatana-appindicator3-1, libgl1\n\
         Section: science\n\
         Priority: optional\n\
         Description: Fine-tune language models on the computer you have\n \
         Pick a model and a dataset, see what full fine-tuning, LoRA and QLoRA would\n \
         cost in memory on this machine, train, try the result, and export it.\n",
        architecture(),
        c_library(),
    )
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::root;

    #[test]
    fn a_package_is_what_the_system_reads() {
        let datasets = Piece {
            from: root().join("assets").join("datasets"),
            to: "lib/Nibble/datasets".into(),
            is_program: false,
        };
        let path = std::env::temp_dir().join(format!("nibble-{}.deb", std::process::id()));
        write_package(File::create(&path).unwrap(), &[datasets]).unwrap();
        let bytes = fs::read(&path).unwrap();
        let ask = |option: &str| Command::new("dpkg-deb").arg(option).arg(&path).output();
        let answers = (ask("--info"), ask("--contents"));
        fs::remove_file(&path).unwrap();
        assert!(bytes.starts_with(b"!<arch>\ndebian-binary"));
        // Each member's head is 60 bytes and stands at an even place.
        assert_eq!(&bytes[8 + 58..8 + 60], b"`\n");
        // Where there is no Debian nothing more can be asked.
        let (Ok(info), Ok(contents)) = answers else { return };
        let info = String::from_utf8_lossy(&info.stdout).into_owned();
        assert!(info.contains("Package: nibble") && info.contains("Installed-Size:"), "{info}");
        let contents = String::from_utf8_lossy(&contents.stdout).into_owned();
        assert!(contents.contains(" usr/lib/Nibble/datasets/datasets.json"), "{contents}");
    }
}
