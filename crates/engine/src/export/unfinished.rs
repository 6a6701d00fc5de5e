//! A folder for what is not whole yet, beside the place that it is for.

use std::{
    ffi::OsStr,
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
};

/// The file that marks such a folder, locked while somebody writes into it.
const MARK: &str = "nibble.unfinished";

/// A folder that becomes the one it is for at once and as a whole, or goes.
#[derive(Debug)]
pub(super) struct Unfinished {
    path: PathBuf,
    // Open, and locked, until the folder is whole.
    mark: Option<File>,
}

impl Unfinished {
    /// Makes a folder for `to`, under a name that nobody has used: whatever else lies there is
    /// somebody's. What a process left that was ended while it wrote for the same place is removed.
    ///
    /// # Errors
    /// When the folder that `to` is to lie in cannot be written.
    pub(super) fn beside(to: &Path) -> io::Result<Self> {
        let parent = to.parent().filter(|parent| !parent.as_os_str().is_empty());
        let parent = parent.unwrap_or(Path::new("."));
        fs::create_dir_all(parent)?;
        let name = to.file_name().unwrap_or_default().to_string_lossy();
        remove_abandoned(parent, &name);
        for number in 0_u64.. {
            let path =
                to.with_file_name(format!("{name}.{}-{number}.unfinished", std::process::id()));
            match fs::create_dir(&path) {
                Ok(()) => {
                    let mut folder = Self { path, mark: None };
                    let mark = File::create(folder.path.join(MARK))?;
                    // On a file system without locks, what is left is left: nobody can tell. Where
                    // another process looks for what was left at this very moment, it is its folder.
                    let is_taken = matches!(mark.try_lock(), Err(TryLockError::WouldBlock));
                    folder.mark = Some(mark);
                    if !is_taken && folder.path.join(MARK).is_file() {
                        return Ok(folder);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    /// The folder to write into.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Gives the folder its name.
    ///
    /// # Errors
    /// When something lies there by now, or the system refuses; nothing is left behind then.
    pub(super) fn finish(mut self, to: &Path) -> io::Result<()> {
        // An empty folder at the place is the person's own choice of it.
        if to.exists() {
            fs::remove_dir(to)?;
        }
        // Some systems rename no folder of which a file is open.
        self.mark = None;
        fs::remove_file(self.path.join(MARK))?;
        fs::rename(&self.path, to)
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        self.mark = None;
        // Of one that was finished there is nothing under this name.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Removes folders of ours in `parent` that were for `name` and that nobody writes into.
fn remove_abandoned(parent: &Path, name: &str) {
    let is_for_name = |entry: &OsStr| {
        let entry = entry.to_string_lossy();
        let rest = entry.strip_prefix(name).and_then(|rest| rest.strip_prefix('.'));
        rest.and_then(|rest| rest.strip_suffix(".unfinished"))
            .is_some_and(|number| number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-'))
    };
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        if !is_for_name(&entry.file_name()) {
            continue;
        }
        let Ok(mark) = File::open(entry.path().join(MARK)) else { continue };
        if mark.try_lock().is_ok() {
            // Windows removes no folder of which a file is open.
            #[cfg(windows)]
            drop(mark);
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<_> = entries.map(|name| name.to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_folder_appears_whole_or_not_at_all() {
        let place = tempfile::tempdir().unwrap();
        let to = place.path().join("adapter");
        // Chosen by the person, and empty.
        fs::create_dir(&to).unwrap();
        let folder = Unfinished::beside(&to).unwrap();
        fs::write(folder.path().join("weights"), "w").unwrap();
        folder.finish(&to).unwrap();
        assert_eq!(
            (names(place.path()), names(&to)),
            (vec!["adapter".into()], vec!["weights".into()])
        );
        // What lies there by now stays, and what was to take its place goes.
        let folder = Unfinished::beside(&to).unwrap();
        folder.finish(&to).unwrap_err();
        assert_eq!(
            (names(place.path()), names(&to)),
            (vec!["adapter".into()], vec!["weights".into()])
        );
    }

    #[test]
    fn what_a_killed_process_left_is_removed_and_nothing_else() {
        let place = tempfile::tempdir().unwrap();
        let to = place.path().join("adapter");
        let left = place.path().join("adapter.1-0.unfinished");
        let others = [
            "adapter.2-0.unfinished",
            "adapter.notes",
            "adapter.v2.1-0.unfinished",
            "merged.1-0.unfinished",
        ];
        for name in others {
            fs::create_dir(place.path().join(name)).unwrap();
        }
        for other in ["adapter.v2.1-0.unfinished", "merged.1-0.unfinished"] {
            fs::write(place.path().join(other).join(MARK), "").unwrap();
        }
        fs::create_dir(&left).unwrap();
        fs::write(left.join(MARK), "").unwrap();
        // One that is being written at the same time.
        let beside = Unfinished::beside(&to).unwrap();
        assert!(!left.exists());
        let folder = Unfinished::beside(&to).unwrap();
        assert!(beside.path().exists() && folder.path().exists());
        drop((beside, folder));
        assert_eq!(names(place.path()), others);
    }
}
