//! The kernels' compiled code, which every Nibble carries: machine code for each generation of cards,
//! and PTX that a driver translates for those that came later.
//!
//! `compiled.bin` is made by `cargo xtask kernels` from the sources and the tables of [`crate`], and a
//! test fails when it is not. All numbers are little-endian:
//!
//! ```text
//! archive   magic [8]   version u32   SHA-256 of the sources [32]   n_targets u32
//!           n_targets × (target u32   n_compressed u64   n_bytes u64)
//!           n_targets × zlib stream of a target
//! target    n_modules u32   n_modules × (name   n_kernels u32   n_kernels × name   n_bytes u64   image)
//! name      n_bytes u32   UTF-8
//! ```
//! Targets are in rising order (PTX is 0) and compressed apart: a card needs one of them.
//!
//! `simulated.bin` beside it, which no program carries, is an archive of the same form, for the simulator,
//! which reads no machine code: the modules that have instructions of 9.0 alone, as text.

use std::{borrow::Cow, fmt, io::Read};

use flate2::read::ZlibDecoder;

const MAGIC: &[u8; 8] = b"NIBBLECU";
const VERSION: u32 = 1;
/// Bytes of a SHA-256.
const HASH_BYTES: usize = 32;

/// What code is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// Text that the driver translates for any card from compute capability 8.0 on.
    Ptx,
    /// Machine code for a compute capability, ten times the major number and the minor one.
    Compute(u32),
    /// What [`Target::Compute`] of 9.0 is made from, as text: no card is given it.
    Ptx90,
}

impl Target {
    /// All that the archive holds, in order: Ampere (A100; RTX 30), Ada (RTX 40), Hopper and
    /// Blackwell (RTX 50).
    pub const ALL: [Self; 6] = [
        Self::Ptx,
        Self::Compute(80),
        Self::Compute(86),
        Self::Compute(89),
        Self::Compute(90),
        Self::Compute(120),
    ];

    /// The code for a card: its own; or the newest of its major version that is not newer than the
    /// card, which it can run; or PTX. None for a card older than 8.0, which can run nothing of it.
    pub fn for_capability(major: u32, minor: u32) -> Option<Self> {
        if major < 8 {
            return None;
        }
        // Those of vehicles and small boards run no code of the cards' (CUDA C++ Programming Guide,
        // "Binary compatibility").
        let is_embedded = matches!((major, minor), (8, 7 | 8));
        let runs = |target: &Self| match target {
            Self::Ptx => true,
            Self::Ptx90 => false,
            // It has what no other has, not even a later one of its major version.
            Self::Compute(90) => (major, minor) == (9, 0),
            Self::Compute(capability) => {
                !is_embedded && capability / 10 == major && capability % 10 <= minor
            }
        };
        Self::ALL.into_iter().rev().find(runs)
    }

    fn from_number(number: u32) -> Self {
        match number {
            0 => Self::Ptx,
            u32::MAX => Self::Ptx90,
            capability => Self::Compute(capability),
        }
    }

    #[cfg(any(test, feature = "compiler"))]
    fn number(self) -> u32 {
        match self {
            Self::Ptx => 0,
            Self::Compute(capability) => capability,
            Self::Ptx90 => u32::MAX,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ptx => f.write_str("PTX"),
            Self::Ptx90 => f.write_str("PTX of 9.0"),
            Self::Compute(capability) => write!(f, "{}.{}", capability / 10, capability % 10),
        }
    }
}

/// The code of one source file for one target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// The operation: the source file's name without its ending.
    pub name: String,
    /// The names of its kernels, in the order in which they are compiled.
    pub kernels: Vec<String>,
    /// What a driver loads: PTX (with no zero at its end) or machine code.
    pub image: Vec<u8>,
}

/// Why there is no code.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodeError {
    /// The bytes are none that this version has written.
    #[error(
        "the compiled kernels in this program are damaged ({what}); install Nibble again or, in a \
         checkout, run `cargo xtask kernels` and build again"
    )]
    Damaged {
        /// What is wrong.
        what: &'static str,
    },
    /// The archive was made without it.
    #[error(
        "this program has no kernels compiled for {target}; run `cargo xtask kernels` and build again"
    )]
    MissingTarget {
        /// What was wanted.
        target: Target,
    },
}

/// The modules of every target.
#[derive(Clone, Debug)]
pub struct CodeArchive {
    bytes: Cow<'static, [u8]>,
}

/// An archive's first part.
struct Header<'a> {
    source_hash: [u8; HASH_BYTES],
    /// Each target's compressed stream, and how many bytes it expands to.
    streams: Vec<(Target, &'a [u8], u64)>,
}

impl CodeArchive {
    /// The one within this program. Empty, and so damaged, in a build of the compiler, which makes it.
    pub fn embedded() -> &'static Self {
        #[cfg(feature = "compiler")]
        const BYTES: &[u8] = &[];
        #[cfg(not(feature = "compiler"))]
        const BYTES: &[u8] = include_bytes!("compiled.bin");
        static EMBEDDED: CodeArchive = CodeArchive { bytes: Cow::Borrowed(BYTES) };
        &EMBEDDED
    }

    /// What the simulator runs of 9.0.
    #[cfg(any(test, feature = "simulator"))]
    pub fn simulated() -> &'static Self {
        #[cfg(feature = "compiler")]
        const BYTES: &[u8] = &[];
        #[cfg(not(feature = "compiler"))]
        const BYTES: &[u8] = include_bytes!("simulated.bin");
        static SIMULATED: CodeArchive = CodeArchive { bytes: Cow::Borrowed(BYTES) };
        &SIMULATED
    }

    /// One of a file's bytes. They are looked at when something is asked for.
    pub fn from_bytes(bytes: Vec<u8>) -> Self {
        Self { bytes: Cow::Owned(bytes) }
    }

    /// The SHA-256 of all that the code was compiled from.
    ///
    /// # Errors
    /// When the archive is damaged.
    pub fn source_hash(&self) -> Result<[u8; HASH_BYTES], CodeError> {
        Ok(self.header()?.source_hash)
    }

    /// What there is code for.
    ///
    /// # Errors
    /// When the archive is damaged.
    pub fn targets(&self) -> Result<Vec<Target>, CodeError> {
        Ok(self.header()?.streams.into_iter().map(|(target, ..)| target).collect())
    }

    /// The code for `target`, in order of the names. Only this target's is expanded.
    ///
    /// # Errors
    /// When the archive is damaged, or was made without this target.
    pub fn modules(&self, target: Target) -> Result<Vec<Module>, CodeError> {
        let header = self.header()?;
        let (_, stream, n_bytes) = header
            .streams
            .into_iter()
            .find(|(found, ..)| *found == target)
            .ok_or(CodeError::MissingTarget { target })?;
        let mut bytes = Vec::new();
        // One more than there should be, so that too many show and the checksum at the end is read.
        ZlibDecoder::new(stream)
            .take(n_bytes.saturating_add(1))
            .read_to_end(&mut bytes)
            .map_err(|_| CodeError::Damaged { what: "a target does not expand" })?;
        if bytes.len() as u64 != n_bytes {
            return Err(CodeError::Damaged { what: "a target expands to another size" });
        }
        let mut reader = Reader(&bytes);
        let modules = (0..reader.u32()?).map(|_| reader.module()).collect::<Result<_, _>>()?;
        reader.end()?;
        Ok(modules)
    }

    fn header(&self) -> Result<Header<'_>, CodeError> {
        let mut reader = Reader(&self.bytes);
        if reader.take(MAGIC.len() as u64)? != MAGIC {
            return Err(CodeError::Damaged { what: "it does not begin as it should" });
        }
        if reader.u32()? != VERSION {
            return Err(CodeError::Damaged { what: "it is another version's" });
        }
        let source_hash = reader.array()?;
        let mut sizes = Vec::new();
        for _ in 0..reader.u32()? {
            sizes.push((Target::from_number(reader.u32()?), reader.u64()?, reader.u64()?));
        }
        if !sizes.is_sorted_by(|a, b| a.0 < b.0) {
            return Err(CodeError::Damaged { what: "its targets are not in order" });
        }
        let streams = sizes
            .into_iter()
            .map(|(target, n_compressed, n_bytes)| {
                Ok((target, reader.take(n_compressed)?, n_bytes))
            })
            .collect::<Result<_, _>>()?;
        reader.end()?;
        Ok(Header { source_hash, streams })
    }
}

/// What is left of some bytes.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: u64) -> Result<&'a [u8], CodeError> {
        let split = usize::try_from(n).ok().and_then(|n| self.0.split_at_checked(n));
        let (taken, rest) = split.ok_or(CodeError::Damaged { what: "it ends too early" })?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], CodeError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N as u64)?);
        Ok(array)
    }

    fn u32(&mut self) -> Result<u32, CodeError> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, CodeError> {
        self.array().map(u64::from_le_bytes)
    }

    fn name(&mut self) -> Result<String, CodeError> {
        let n_bytes = self.u32()?;
        String::from_utf8(self.take(n_bytes.into())?.to_vec())
            .map_err(|_| CodeError::Damaged { what: "a name is no text" })
    }

    fn module(&mut self) -> Result<Module, CodeError> {
        let name = self.name()?;
        let kernels = (0..self.u32()?).map(|_| self.name()).collect::<Result<_, _>>()?;
        let n_bytes = self.u64()?;
        Ok(Module { name, kernels, image: self.take(n_bytes)?.to_vec() })
    }

    fn end(&self) -> Result<(), CodeError> {
        if self.0.is_empty() {
            return Ok(());
        }
        Err(CodeError::Damaged { what: "it does not end where it should" })
    }
}

/// The bytes of an archive of `targets`, the same for the same modules.
///
/// # Errors
/// When the compressor fails, which it does not in memory.
#[cfg(any(test, feature = "compiler"))]
pub fn write_archive(
    source_hash: [u8; HASH_BYTES],
    targets: &std::collections::BTreeMap<Target, Vec<Module>>,
) -> std::io::Result<Vec<u8>> {
    use flate2::{Compression, write::ZlibEncoder};
    use std::io::Write;

    let mut archive = MAGIC.to_vec();
    archive.extend(VERSION.to_le_bytes());
    archive.extend(source_hash);
    archive.extend((targets.len() as u32).to_le_bytes());
    let mut streams = Vec::new();
    for (target, modules) in targets {
        let bytes = write_modules(modules);
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(&bytes)?;
        let stream = encoder.finish()?;
        archive.extend(target.number().to_le_bytes());
        archive.extend((stream.len() as u64).to_le_bytes());
        archive.extend((bytes.len() as u64).to_le_bytes());
        streams.extend(stream);
    }
    archive.extend(streams);
    Ok(archive)
}

#[cfg(any(test, feature = "compiler"))]
fn write_modules(modules: &[Module]) -> Vec<u8> {
    fn write_name(bytes: &mut Vec<u8>, name: &str) {
        bytes.extend((name.len() as u32).to_le_bytes());
        bytes.extend(name.as_bytes());
    }
    let mut bytes = (modules.len() as u32).to_le_bytes().to_vec();
    for module in modules {
        write_name(&mut bytes, &module.name);
        bytes.extend((module.kernels.len() as u32).to_le_bytes());
        for kernel in &module.kernels {
            write_name(&mut bytes, kernel);
        }
        bytes.extend((module.image.len() as u64).to_le_bytes());
        bytes.extend(&module.image);
    }
    bytes
}

#[cfg(test)]
pub(crate) mod occupancy;
#[cfg(test)]
mod tests;
