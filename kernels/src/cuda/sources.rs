//! What the kernels are compiled from: the `.cu` files, each a module of its own; the `.cuh` files,
//! which any of them may include by name; and `tables.cuh`, written here from the tables of the
//! operations, so that no table stands anywhere twice.

use std::{
    env, fmt, fs, io,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use super::code::Target;
use crate::{
    adamw::{MOMENT_BLOCK, first_moment_code, second_moment_code},
    nf4,
};

/// The package of the compiler, as pip takes it.
const COMPILER: &str = include_str!("nvrtc.txt");

/// The compiler's version, such as `12.8.93`.
pub fn compiler_version() -> &'static str {
    COMPILER
        .lines()
        .find_map(|line| line.split_once("=="))
        .and_then(|(_, rest)| rest.split_whitespace().next())
        .unwrap_or_default()
}

/// What the compiler is told beside the sources. Nothing that makes arithmetic less exact: sums of
/// products are fused, and the rest is rounded as IEEE 754 says.
const OPTIONS: [&str; 2] = ["--std=c++17", "--no-source-include"];

/// The compiler's options for `target`.
pub fn options(target: Target) -> Vec<String> {
    let architecture = match target {
        Target::Ptx => "compute_80".to_owned(),
        // With what it alone has.
        Target::Compute(90) => "sm_90a".to_owned(),
        Target::Compute(capability) => format!("sm_{capability}"),
        Target::Ptx90 => "compute_90a".to_owned(),
    };
    let options = OPTIONS.into_iter().map(str::to_owned);
    options.chain([format!("--gpu-architecture={architecture}")]).collect()
}

/// The version that PTX is said to be, lower than the compiler says: it needs no more, and so drivers
/// and tools from CUDA 11.4 on take it.
pub const PTX_VERSION: &str = "7.4";

/// Why the sources cannot be compiled.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// A file or folder cannot be read.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Headers are included by their names alone, and modules are called by them.
    #[error("two source files are called {name}; rename one")]
    SameName {
        /// What they are called.
        name: String,
    },
}

/// A file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Its name without a folder.
    pub file_name: String,
    /// Where it lies in the crate's folder, for messages.
    pub path: String,
    /// What is in it, with lines that end in `\n` on every system.
    pub text: String,
}

impl Source {
    /// The file's name without its ending.
    pub fn name(&self) -> &str {
        self.file_name.rsplit_once('.').map_or(&self.file_name, |(name, _)| name)
    }
}

/// All of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sources {
    units: Vec<Source>,
    headers: Vec<Source>,
}

impl Sources {
    /// Those of the checkout, and the written one.
    ///
    /// # Errors
    /// When a file cannot be read, or two have one name.
    pub fn read() -> Result<Self, SourceError> {
        let folder = crate_folder();
        let mut files = Vec::new();
        collect(&folder, &folder.join("src"), &mut files)?;
        let (units, mut headers): (Vec<_>, Vec<_>) =
            files.into_iter().partition(|file| file.file_name.ends_with(".cu"));
        headers.push(Source {
            file_name: "tables.cuh".into(),
            path: "tables.cuh (written by sources.rs)".into(),
            text: tables(),
        });
        let mut sources = Self { units, headers };
        for files in [&mut sources.units, &mut sources.headers] {
            files.sort_by(|a, b| a.file_name.cmp(&b.file_name));
            if let Some(pair) = files.windows(2).find(|pair| pair[0].file_name == pair[1].file_name)
            {
                return Err(SourceError::SameName { name: pair[0].file_name.clone() });
            }
        }
        Ok(sources)
    }

    /// The `.cu` files, by name.
    pub fn units(&self) -> &[Source] {
        &self.units
    }

    /// The `.cuh` files and the written one, by name.
    pub fn headers(&self) -> &[Source] {
        &self.headers
    }

    /// The SHA-256 of everything that the compiled code depends on.
    pub fn hash(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        let mut add = |text: &str| {
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text);
        };
        add(compiler_version());
        add(PTX_VERSION);
        for option in Target::ALL.into_iter().chain([Target::Ptx90]).flat_map(options) {
            add(&option);
        }
        for file in self.units.iter().chain(&self.headers) {
            add(&file.file_name);
            add(&file.text);
        }
        hash.finalize().into()
    }
}

/// Where this crate lies. Cargo says so when it runs a program: the place where it was compiled may
/// be another checkout that shares the build folder.
pub fn crate_folder() -> PathBuf {
    env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), Into::into)
}

fn collect(root: &Path, folder: &Path, files: &mut Vec<Source>) -> Result<(), SourceError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        |source| SourceError::File { path, source }
    };
    for entry in fs::read_dir(folder).map_err(failed(folder))? {
        let path = entry.map_err(failed(folder))?.path();
        if path.is_dir() {
            collect(root, &path, files)?;
        } else if path.extension().is_some_and(|ending| ending == "cu" || ending == "cuh") {
            let text = fs::read_to_string(&path).map_err(failed(&path))?;
            files.push(Source {
                file_name: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
                path: path.strip_prefix(root).unwrap_or(&path).display().to_string(),
                text: text.replace("\r\n", "\n"),
            });
        }
    }
    Ok(())
}

/// The text of `tables.cuh`.
pub fn tables() -> String {
    let mut text = "\
        // The tables of the quantised formats. Written by sources.rs from the constants of nf4 and\n\
        // blockwise; the numbers are exact.\n\
        #pragma once\n"
        .to_owned();
    let sizes = [
        ("NF4_BLOCK", "Numbers that share one absmax.", nf4::BLOCK),
        ("NF4_ABSMAX_GROUP", "Absmax values that share one scale.", nf4::ABSMAX_GROUP),
        ("MOMENT_BLOCK", "Numbers of a quantised moment that share one absmax.", MOMENT_BLOCK),
    ];
    for (name, about, size) in sizes {
        text += &format!("\n// {about}\nconstexpr unsigned int {name} = {size};\n");
    }
    let arrays: [(&str, &str, &[f32]); 3] = [
        ("NF4_LEVELS", "The levels of NF4.", &nf4::LEVELS),
        (
            "DYNAMIC_SIGNED",
            "The dynamic code for numbers of either sign, rising: the first moment, and absmax.",
            first_moment_code().values(),
        ),
        (
            "DYNAMIC_UNSIGNED",
            "The dynamic code for numbers that are never negative, rising: the second moment.",
            second_moment_code().values(),
        ),
    ];
    for (name, about, values) in arrays {
        let n = values.len();
        text += &format!("\n// {about}\nstatic __device__ const float {name}[{n}] = {{\n");
        for line in values.chunks(4) {
            let numbers: Vec<_> = line.iter().map(|&value| format!("{},", Exact(value))).collect();
            text += &format!("    {}\n", numbers.join(" "));
        }
        text += "};\n";
    }
    text
}

/// A finite number as a hexadecimal literal of C++, which is exact.
struct Exact(f32);

impl fmt::Display for Exact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = self.0.to_bits();
        let sign = if self.0.is_sign_negative() { "-" } else { "" };
        let exponent = (bits >> 23 & 0xff) as i32;
        // 23 bits of the fraction as six digits.
        let fraction = (bits & 0x7f_ffff) << 1;
        match exponent {
            0 => write!(f, "{sign}0x0.{fraction:06x}p-126f"),
            _ => write!(f, "{sign}0x1.{fraction:06x}p{}f", exponent - 127),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_are_exact() {
        for (value, expected) in [
            (0.0, "0x0.000000p-126f"),
            (1.0, "0x1.000000p0f"),
            (-1.5, "-0x1.800000p0f"),
            (1.0_f32.next_down(), "0x1.fffffep-1f"),
            (f32::from_bits(1), "0x0.000002p-126f"),
            (3.0e-7, "0x1.421f60p-22f"),
        ] {
            assert_eq!(Exact(value).to_string(), expected);
        }
    }

    #[test]
    fn the_version_is_a_release() {
        let parts: Vec<u32> = compiler_version().split('.').flat_map(str::parse).collect();
        assert_eq!(parts.len(), 3, "{}", compiler_version());
    }

    #[test]
    fn every_change_of_a_source_changes_the_hash() {
        let sources = Sources::read().unwrap();
        assert!(!sources.units().is_empty());
        let mut other = sources.clone();
        other.headers[0].text.push('\n');
        assert_ne!(other.hash(), sources.hash());
        let mut other = sources.clone();
        other.units[0].file_name.push('x');
        assert_ne!(other.hash(), sources.hash());
        let mut other = sources.clone();
        other.units.pop();
        assert_ne!(other.hash(), sources.hash());
    }
}
