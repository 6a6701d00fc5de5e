//! What can go wrong with a run folder.

use std::{io, path::PathBuf};

use crate::Explain;

/// What happened, where, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A file or folder could not be read.
    #[error("could not read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A file or folder could not be written.
    #[error("could not write {path}: {source}; check the free space and the folder's permissions")]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The folder has other things in it.
    #[error(
        "{path} already exists and is not empty; choose another folder for the run, or continue it with `nibble resume {path}`"
    )]
    NotEmpty {
        /// The folder.
        path: PathBuf,
    },
    /// The folder is no run.
    #[error(
        "{path} is no run folder: it has no run.toml; give the folder that was named with `--out`"
    )]
    NoRun {
        /// The folder.
        path: PathBuf,
    },
    /// Another process, or another window, is at it.
    #[error(
        "{path} is being trained already; pause or stop it where it was started, or wait for its end"
    )]
    InUse {
        /// The run folder.
        path: PathBuf,
    },
    /// The settings cannot be read.
    #[error("{path} cannot be read as settings: {reason}")]
    Settings {
        /// The file.
        path: PathBuf,
        /// What is wrong, with the line.
        reason: String,
    },
    /// The folder comes from a newer Nibble.
    #[error(
        "{path} was written by a newer Nibble (format {found}, this one knows {known}); update Nibble to open it"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// The newest that is known.
        known: u32,
    },
    /// A setting has an impossible value.
    #[error("`{name}` is {value}; {rule}")]
    Setting {
        /// The setting.
        name: &'static str,
        /// Its value.
        value: String,
        /// What it must be.
        rule: &'static str,
    },
}

impl Explain for RunError {
    fn code(&self) -> &'static str {
        match self {
            Self::Read { .. } => "run_unreadable",
            Self::Write { .. } => "run_unwritable",
            Self::NotEmpty { .. } => "run_not_empty",
            Self::NoRun { .. } => "no_run",
            Self::InUse { .. } => "run_in_use",
            Self::Settings { .. } => "settings_damaged",
            Self::Newer { .. } => "run_newer",
            Self::Setting { .. } => "setting_impossible",
        }
    }

    fn advice(&self) -> Option<String> {
        let advice = match self {
            Self::Read { .. } => "check that it is still there and that you may read it",
            Self::NoRun { .. } => "choose the folder that holds run.toml",
            Self::NotEmpty { .. } => "choose another name for the run",
            Self::Settings { .. } => "mend the line, or start the run anew",
            _ => return None,
        };
        Some(advice.into())
    }
}
