//! A file that pages lie in.

use std::{
    fs::{self, File, OpenOptions},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::PageError;

/// A file that is read and written at positions.
#[derive(Debug)]
pub struct PageFile {
    path: PathBuf,
    file: File,
    n_bytes: u64,
    /// Whether all of its bytes had a place on the disk from the beginning.
    is_reserved: bool,
    /// Made for one run, and removed with it.
    is_temporary: bool,
}

impl PageFile {
    /// Looks whether a new file of `n_bytes` at `path` has room, without making it.
    ///
    /// # Errors
    /// [`PageError::NoSpace`] when it has not.
    pub fn check_space(path: &Path, n_bytes: u64) -> Result<(), PageError> {
        let folder = path.parent().unwrap_or(path);
        // Where the system cannot say, reserving the space will tell.
        let free_bytes = fs4::available_space(folder).unwrap_or(u64::MAX);
        // What an earlier run that was killed left here is given back first.
        let left_bytes = fs::metadata(path).map_or(0, |metadata| metadata.len());
        let available_bytes = free_bytes.saturating_add(left_bytes);
        if available_bytes < n_bytes {
            let path = path.to_owned();
            return Err(PageError::NoSpace { path, needed_bytes: n_bytes, available_bytes });
        }
        Ok(())
    }

    /// A new file of `n_bytes` zeros, its space reserved; removed when it is dropped.
    ///
    /// # Errors
    /// When there is no room or no right; nothing is left behind then.
    pub fn create(path: &Path, n_bytes: u64) -> Result<Self, PageError> {
        Self::check_space(path, n_bytes)?;
        let failed = |source: io::Error| {
            let (path, needed_bytes, kind) = (path.to_owned(), n_bytes, source.kind());
            let source = Arc::new(source);
            match kind {
                io::ErrorKind::FileTooLarge | io::ErrorKind::QuotaExceeded => {
                    PageError::TooLarge { path, needed_bytes, source }
                }
                _ => PageError::Create { path, source },
            }
        };
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(true).open(path);
        let mut file = Self {
            path: path.to_owned(),
            file: file.map_err(failed)?,
            n_bytes,
            is_reserved: false,
            is_temporary: true,
        };
        match fs4::FileExt::allocate(&file.file, n_bytes) {
            Ok(()) => {
                let metadata = file.file.metadata().map_err(failed)?;
                file.is_reserved = !has_holes(&metadata, n_bytes);
            }
            // Other programs took the room since it was looked for; what they left is free again
            // when `file` is dropped.
            Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                let folder = path.parent().unwrap_or(path);
                return Err(PageError::NoSpace {
                    path: path.to_owned(),
                    needed_bytes: n_bytes,
                    available_bytes: fs4::available_space(folder).unwrap_or(0),
                });
            }
            // A file system that cannot reserve: a write may then meet a full disk, and says so.
            Err(_) => file.file.set_len(n_bytes).map_err(failed)?,
        }
        Ok(file)
    }

    /// A file that others made and nobody changes, for reading.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(path: &Path) -> Result<Self, PageError> {
        let read =
            |source: io::Error| PageError::Read { path: path.to_owned(), source: Arc::new(source) };
        let file = File::open(path).map_err(read)?;
        let n_bytes = file.metadata().map_err(read)?.len();
        let path = path.to_owned();
        Ok(Self { path, file, n_bytes, is_reserved: false, is_temporary: false })
    }

    /// Whether it was made for one run.
    pub(crate) fn is_temporary(&self) -> bool {
        self.is_temporary
    }

    /// Its length.
    pub fn n_bytes(&self) -> u64 {
        self.n_bytes
    }

    /// Fills `bytes` from `offset` on.
    pub(crate) fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<(), PageError> {
        read_at(&self.file, bytes, offset).map_err(|source| match source.kind() {
            io::ErrorKind::UnexpectedEof => self.lost("cut short"),
            _ => PageError::Read { path: self.path.clone(), source: Arc::new(source) },
        })
    }

    /// Writes `bytes` from `offset` on.
    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), PageError> {
        write_at(&self.file, bytes, offset).map_err(|source| PageError::Write {
            path: self.path.clone(),
            source: Arc::new(source),
        })
    }

    /// Whether the file is still under its name and as long as it was.
    pub(crate) fn check(&self) -> Result<(), PageError> {
        // A page written behind the cut makes the file as long as before, but with a hole in it.
        let is_cut = |metadata: fs::Metadata| {
            metadata.len() < self.n_bytes || self.is_reserved && has_holes(&metadata, self.n_bytes)
        };
        if self.file.metadata().is_ok_and(is_cut) {
            return Err(self.lost("cut short"));
        }
        match fs::metadata(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(self.lost("removed")),
            // What the system does not tell now, reading will.
            _ => Ok(()),
        }
    }

    fn lost(&self, change: &'static str) -> PageError {
        PageError::Lost { path: self.path.clone(), change }
    }
}

impl Drop for PageFile {
    fn drop(&mut self) {
        if self.is_temporary {
            // It may be gone already, and nobody is left to tell.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Whether some of a file's first `n_bytes` have no place on the disk, as far as the system tells.
#[cfg(unix)]
fn has_holes(metadata: &fs::Metadata, n_bytes: u64) -> bool {
    // In units of 512 bytes, whatever the file system's own are.
    std::os::unix::fs::MetadataExt::blocks(metadata).saturating_mul(512) < n_bytes
}

#[cfg(not(unix))]
fn has_holes(_: &fs::Metadata, _: u64) -> bool {
    false
}

#[cfg(unix)]
fn read_at(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, offset)
}

#[cfg(unix)]
fn write_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, offset)
}

#[cfg(windows)]
fn read_at(file: &File, mut bytes: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, bytes, offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => {
                bytes = &mut bytes[n..];
                offset += n as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(windows)]
fn write_at(file: &File, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match std::os::windows::fs::FileExt::seek_write(file, bytes, offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => {
                bytes = &bytes[n..];
                offset += n as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
