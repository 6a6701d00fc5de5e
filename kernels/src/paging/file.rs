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
    /// Made for one run, and removed with it.
    is_temporary: bool,
}

impl PageFile {
    /// A new file of `n_bytes` zeros, its space reserved; removed when it is dropped.
    ///
    /// # Errors
    /// When there is no room or no right; nothing is left behind then.
    pub fn create(path: &Path, n_bytes: u64) -> Result<Self, PageError> {
        let create = |source: io::Error| PageError::Create {
            path: path.to_owned(),
            source: Arc::new(source),
        };
        let folder = path.parent().unwrap_or(path);
        // Where the system cannot say, reserving the space will tell.
        let available_bytes = fs4::available_space(folder).unwrap_or(u64::MAX);
        // What an earlier run that was killed left here is given back first.
        let left_bytes = fs::metadata(path).map_or(0, |metadata| metadata.len());
        let no_space = |available_bytes| PageError::NoSpace {
            path: path.to_owned(),
            needed_bytes: n_bytes,
            available_bytes,
        };
        if available_bytes.saturating_add(left_bytes) < n_bytes {
            return Err(no_space(available_bytes));
        }
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(true).open(path);
        let file = Self {
            path: path.to_owned(),
            file: file.map_err(create)?,
            n_bytes,
            is_temporary: true,
        };
        match fs4::FileExt::allocate(&file.file, n_bytes) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                return Err(no_space(fs4::available_space(folder).unwrap_or(0)));
            }
            // A file system that cannot reserve: a write may then meet a full disk, and says so.
            Err(_) => file.file.set_len(n_bytes).map_err(create)?,
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
        Ok(Self { path: path.to_owned(), file, n_bytes, is_temporary: false })
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
        read_at(&self.file, bytes, offset)
            .map_err(|source| PageError::Read { path: self.path.clone(), source: Arc::new(source) })
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
        let lost = |change| PageError::Lost { path: self.path.clone(), change };
        match self.file.metadata() {
            Ok(metadata) if metadata.len() < self.n_bytes => return Err(lost("cut short")),
            _ => {}
        }
        match fs::metadata(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(lost("removed")),
            // What the system does not tell now, reading will.
            _ => Ok(()),
        }
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
