//! What a person drops on the window: told apart here, because a page sees no disk.

use std::path::{Path, PathBuf};

use nibble_run::RunFolder;
use serde::Serialize;
use ts_rs::TS;

/// What something dropped is taken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, TS)]
#[serde(rename_all = "lowercase")]
pub enum DroppedKind {
    /// A run to look at.
    Run,
    /// A model to train.
    Model,
    /// A dataset to train on.
    Data,
}

/// Something dropped on the window.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, TS)]
pub struct Dropped {
    /// What it is taken for.
    pub kind: DroppedKind,
    /// The file or folder.
    pub path: PathBuf,
}

impl Dropped {
    /// A folder is a run if it has a run's settings, else a model; a file is data, unless it is a
    /// model's own, which stands for its folder. Whether it really is one is found by opening it.
    pub fn at(path: &Path) -> Self {
        let of = |kind, path: &Path| Self { kind, path: path.to_owned() };
        if path.is_dir() {
            let is_run = path.join(RunFolder::SETTINGS).is_file();
            return of(if is_run { DroppedKind::Run } else { DroppedKind::Model }, path);
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        match path.parent() {
            Some(folder) if name == RunFolder::SETTINGS => of(DroppedKind::Run, folder),
            Some(folder)
                if name == "config.json"
                    || name.starts_with("tokenizer")
                    || name.ends_with(".safetensors") =>
            {
                of(DroppedKind::Model, folder)
            }
            _ => of(DroppedKind::Data, path),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_is_dropped_is_told_apart() {
        let place = tempfile::tempdir().unwrap();
        let (run, model) = (place.path().join("run"), place.path().join("model"));
        for folder in [&run, &model] {
            fs::create_dir(folder).unwrap();
        }
        fs::write(run.join("run.toml"), "").unwrap();
        fs::write(place.path().join("data.of an unknown kind"), "").unwrap();
        for (path, kind, expected) in [
            (run.clone(), DroppedKind::Run, &run),
            (run.join("run.toml"), DroppedKind::Run, &run),
            (model.clone(), DroppedKind::Model, &model),
            (model.join("config.json"), DroppedKind::Model, &model),
            (model.join("model-00001-of-00002.safetensors"), DroppedKind::Model, &model),
        ] {
            assert_eq!(Dropped::at(&path), Dropped { kind, path: expected.clone() });
        }
        for name in ["data.of an unknown kind", "data.jsonl", "gone"] {
            let path = place.path().join(name);
            assert_eq!(Dropped::at(&path), Dropped { kind: DroppedKind::Data, path });
        }
    }
}
