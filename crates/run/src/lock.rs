//! Who trains a run: one process at a time, known to all others.

use std::{
    fs::{File, OpenOptions, TryLockError},
    path::Path,
    thread,
    time::Duration,
};

use crate::RunError;

pub(crate) const LOCK: &str = "run.lock";

/// Held while a run trains; the system lets go of it however the process ends.
#[derive(Debug)]
pub struct RunLock {
    // Locked as long as it is open.
    _file: Option<File>,
}

/// Takes the run at `folder` for this process.
///
/// # Errors
/// When it is being trained, or the folder cannot be written.
pub(crate) fn lock(folder: &Path) -> Result<RunLock, RunError> {
    let path = folder.join(LOCK);
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|source| RunError::Write { path, source })?;
    // Whoever only looks at the run holds the lock for microseconds.
    for _ in 0..20 {
        match file.try_lock() {
            Ok(()) => return Ok(RunLock { _file: Some(file) }),
            Err(TryLockError::WouldBlock) => thread::sleep(Duration::from_millis(10)),
            // A file system without locks trains as it did before there were any.
            Err(TryLockError::Error(_)) => return Ok(RunLock { _file: None }),
        }
    }
    Err(RunError::InUse { path: folder.to_owned() })
}

/// Whether some process is training the run at `folder`.
pub(crate) fn is_locked(folder: &Path) -> bool {
    let Ok(file) = File::open(folder.join(LOCK)) else { return false };
    matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_trained_once_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!is_locked(folder.path()));
        let first = lock(folder.path()).unwrap();
        assert!(is_locked(folder.path()));
        assert!(matches!(lock(folder.path()), Err(RunError::InUse { .. })));
        drop(first);
        assert!(!is_locked(folder.path()));
        lock(folder.path()).unwrap();
    }
}
