//! Images of base weights on disk, so that a model is quantised once and mapped in place ever after.
//!
//! ```text
//! CACHE/weights/KEY.nibble = image, byte for byte as the layout says | footer, FOOTER_BYTES
//! ```
//! The footer comes last, so that the image begins on a page and a file that was cut off has none.
//! An image is written under a temporary name, flushed and renamed: under its own name there is
//! always a whole one. One process at a time writes an image, the others wait for it.

use std::{
    env,
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, ErrorKind, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::{
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    time::Duration,
};

use nibble_kernels::memory::BLOCK_ALIGNMENT;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{
    layout::{LAYOUT_VERSION, WeightLayout},
    load::{LoadProgress, OnProgress, load},
    source::ModelFolder,
};
use crate::model::ModelError;

/// Overrides where images are kept.
pub const CACHE_VARIABLE: &str = "NIBBLE_CACHE";
/// Bytes after the image that say what it is: JSON, filled up with spaces. A whole page, so that the
/// file stays a multiple of one.
pub const FOOTER_BYTES: usize = BLOCK_ALIGNMENT;
/// How often one looks whether another process has finished.
const WAIT: Duration = Duration::from_millis(100);

/// What an image's last bytes say.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Footer {
    /// Of what this file is an image, as in its name.
    key: String,
    /// Bytes of the image.
    n_bytes: usize,
    /// SHA-256 of the first and last page of each block, in hexadecimal: cheap enough for every
    /// start, and it finds what a crash or a full disk leaves: missing and zeroed runs.
    checksum: String,
}

/// Where images are kept unless one says otherwise: the environment variable `NIBBLE_CACHE`, else
/// the system's folder for caches.
///
/// # Errors
/// When neither is known.
pub fn default_cache_folder() -> Result<PathBuf, ModelError> {
    if let Some(folder) = env::var_os(CACHE_VARIABLE).filter(|folder| !folder.is_empty()) {
        return Ok(folder.into());
    }
    directories::ProjectDirs::from("", "", "Nibble")
        .map(|folders| folders.cache_dir().to_owned())
        .ok_or(ModelError::NoCacheFolder)
}

/// Bytes that are written before the disk is asked for them.
const FLUSH_BYTES: usize = 64 << 20;

/// The image of `folder`'s weights in `layout`, made now if it is not there or damaged.
///
/// The file is the image followed by [`FOOTER_BYTES`]. `cache` is the folder images are kept in,
/// as [`default_cache_folder`] has it.
///
/// # Errors
/// When the image cannot be written, and [`ModelError::Cancelled`]; nothing is left behind then.
pub fn cached_image(
    folder: &ModelFolder,
    layout: &WeightLayout,
    cache: &Path,
    on_progress: OnProgress<'_>,
) -> Result<PathBuf, ModelError> {
    let images = cache.join("weights");
    let write = |source| ModelError::Write { path: images.clone(), source };
    fs::create_dir_all(&images).map_err(write)?;
    let key = image_key(folder, layout);
    let path = images.join(format!("{key}.nibble"));
    if is_whole(&path, &key, layout) {
        return Ok(path);
    }
    let lock = images.join(format!("{key}.lock"));
    let lock = OpenOptions::new().create(true).truncate(false).write(true).open(lock);
    let lock = lock.map_err(write)?;
    let is_alone = wait_for(&lock, folder, on_progress).map_err(|error| match error {
        Some(source) => write(source),
        None => ModelError::Cancelled,
    })?;
    // Whoever held the lock before may have been making this very image.
    if is_whole(&path, &key, layout) {
        return Ok(path);
    }
    if is_alone {
        remove_abandoned(&images, &key);
    }
    build(folder, layout, &images, &key, &path, on_progress)?;
    Ok(path)
}

/// Names the image of these weights in this layout.
fn image_key(folder: &ModelFolder, layout: &WeightLayout) -> String {
    let mut hash = Sha256::new();
    hash.update(LAYOUT_VERSION.to_le_bytes());
    hash.update(folder.identity());
    hash.update((layout.n_bytes() as u64).to_le_bytes());
    hash.update(layout.format().name());
    hash.update(layout.embedding_format().name());
    // Formats wider than a byte are stored in this machine's byte order.
    hash.update(1_u16.to_ne_bytes());
    hexadecimal(hash)[..32].to_owned()
}

fn hexadecimal(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Waits until no other process makes this image. True: it is now reserved for this one. False: the
/// file system knows no locks; then two may make it at once, each under a name of its own.
fn wait_for(
    lock: &File,
    folder: &ModelFolder,
    on_progress: OnProgress<'_>,
) -> Result<bool, Option<io::Error>> {
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(true),
            Err(TryLockError::WouldBlock) => {
                let waiting = LoadProgress { done_bytes: 0, total_bytes: folder.n_stored_bytes() };
                if on_progress(waiting).is_break() {
                    return Err(None);
                }
                std::thread::sleep(WAIT);
            }
            Err(TryLockError::Error(error)) if error.kind() == ErrorKind::Unsupported => {
                return Ok(false);
            }
            Err(TryLockError::Error(error)) => return Err(Some(error)),
        }
    }
}

/// Removes what a process that was ended in the middle of writing this image left.
fn remove_abandoned(images: &Path, key: &str) {
    let Ok(entries) = fs::read_dir(images) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(key) && name.ends_with(".partial") {
            // If it cannot be removed, it is only in the way of space, which is checked next.
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// A file that is removed unless it is finished.
struct Partial {
    path: PathBuf,
    is_finished: bool,
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.is_finished {
            // Failing to tidy up must not hide why the image could not be written.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn build(
    folder: &ModelFolder,
    layout: &WeightLayout,
    images: &Path,
    key: &str,
    path: &Path,
    on_progress: OnProgress<'_>,
) -> Result<(), ModelError> {
    static N_BUILDS: AtomicU64 = AtomicU64::new(0);
    let needed_bytes = (layout.n_bytes() + FOOTER_BYTES) as u64;
    let no_space = |available_bytes| ModelError::NoSpace {
        folder: images.to_owned(),
        needed_bytes,
        available_bytes,
    };
    // Where the system cannot say, writing will tell.
    let available_bytes = fs4::available_space(images).unwrap_or(u64::MAX);
    if available_bytes < needed_bytes {
        return Err(no_space(available_bytes));
    }
    let number = N_BUILDS.fetch_add(1, Ordering::Relaxed);
    let name = format!("{key}.{}.{number}.partial", std::process::id());
    let mut partial = Partial { path: images.join(name), is_finished: false };
    let failed = |source: io::Error| match source.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
            no_space(fs4::available_space(images).unwrap_or(0))
        }
        _ => ModelError::Write { path: path.to_owned(), source },
    };
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true);
    let mut file = options.open(&partial.path).map_err(failed)?;
    file.set_len(needed_bytes).map_err(failed)?;

    // Opened once more: some systems let a file that is being flushed be written only through another.
    let to_flush = OpenOptions::new().write(true).open(&partial.path).map_err(failed)?;
    let gives_up = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // A disk is slower than quantising: it writes while more is being made.
        let (written, flushes) = mpsc::sync_channel(1);
        let flush = || {
            let mut flushes = flushes.into_iter().filter(|()| !gives_up.load(Ordering::Relaxed));
            flushes.try_for_each(|()| to_flush.sync_data())
        };
        let flusher = std::thread::Builder::new().spawn_scoped(scope, flush).map_err(failed)?;
        let (mut position, mut n_unflushed) = (0, 0);
        let loaded = load(folder, layout, on_progress, |offset, bytes| {
            let mut write = || {
                // What lies between two parts stays zero, as the file was when it was made.
                if offset != position {
                    file.seek(SeekFrom::Start(offset as u64))?;
                }
                position = offset + bytes.len();
                file.write_all(bytes)
            };
            write().map_err(failed)?;
            n_unflushed += bytes.len();
            // A flusher that is busy, or has failed, takes what comes later, or is asked below.
            if n_unflushed >= FLUSH_BYTES && written.try_send(()).is_ok() {
                n_unflushed = 0;
            }
            Ok(())
        });
        // Nobody waits for the disk to take what is removed again.
        gives_up.store(loaded.is_err(), Ordering::Relaxed);
        drop(written);
        let flushed = flusher.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        loaded.and(flushed.map_err(failed))
    })?;
    let finish = |file: &mut File| {
        let checksum = checksum(file, layout)?;
        let footer = Footer { key: key.into(), n_bytes: layout.n_bytes(), checksum };
        let mut footer = serde_json::to_vec(&footer)?;
        footer.resize(FOOTER_BYTES, b' ');
        file.seek(SeekFrom::Start(layout.n_bytes() as u64))?;
        file.write_all(&footer)?;
        file.sync_all()
    };
    finish(&mut file).map_err(failed)?;
    drop(file);
    match fs::rename(&partial.path, path) {
        Ok(()) => partial.is_finished = true,
        // Some systems do not replace a file that is in use; then someone else has made it.
        Err(_) if is_whole(path, key, layout) => return Ok(()),
        Err(source) => return Err(failed(source)),
    }
    // The name, too, must survive a power cut. Not every system lets folders be flushed, and
    // without it the worst is that the image is made again.
    #[cfg(unix)]
    let _ = File::open(images).and_then(|folder| folder.sync_all());
    Ok(())
}

/// Whether the file is there, complete, and of this key.
fn is_whole(path: &Path, key: &str, layout: &WeightLayout) -> bool {
    let check = || -> io::Result<bool> {
        let mut file = File::open(path)?;
        if file.metadata()?.len() != (layout.n_bytes() + FOOTER_BYTES) as u64 {
            return Ok(false);
        }
        file.seek(SeekFrom::Start(layout.n_bytes() as u64))?;
        let mut footer = vec![0; FOOTER_BYTES];
        file.read_exact(&mut footer)?;
        let footer: Footer = serde_json::from_slice(&footer)?;
        Ok(footer.key == key
            && footer.n_bytes == layout.n_bytes()
            && footer.checksum == checksum(&mut file, layout)?)
    };
    check().unwrap_or(false)
}

fn checksum(file: &mut File, layout: &WeightLayout) -> io::Result<String> {
    let mut hash = Sha256::new();
    let mut page = vec![0; BLOCK_ALIGNMENT];
    for (_, range) in layout.blocks() {
        for start in [range.start, range.end - BLOCK_ALIGNMENT] {
            file.seek(SeekFrom::Start(start as u64))?;
            file.read_exact(&mut page)?;
            hash.update(&page);
        }
    }
    Ok(hexadecimal(hash))
}
