//! The shapes of well-known models, so that they can be planned for before they are downloaded.
//!
//! The list is `assets/catalog.json`; its `config` objects are what the models' own `config.json`
//! says, so that the same parser reads them.

use std::{path::Path, sync::LazyLock};

use serde::{Deserialize, Serialize};

use crate::model::{ModelError, ModelSpec};

/// A model one can name instead of pointing at its files.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CatalogEntry {
    /// What it is called on the command line, such as `llama-2-13b`.
    pub id: String,
    /// What it is called in a window.
    pub name: String,
    /// Where its files are on the Hugging Face hub.
    pub repository: String,
    /// Its licence, as the hub names it.
    pub licence: String,
    /// Its published number of parameters; a tied table counts once.
    pub n_parameters: usize,
    /// The part of its configuration that its shape depends on.
    pub config: serde_json::Value,
}

impl CatalogEntry {
    /// The model's shape.
    ///
    /// # Errors
    /// None for the entries of this build's own catalog.
    pub fn spec(&self) -> Result<ModelSpec, ModelError> {
        ModelSpec::from_config(&self.config, Path::new(&self.id))
    }
}

static ENTRIES: LazyLock<Vec<CatalogEntry>> = LazyLock::new(|| {
    serde_json::from_str(include_str!("../../../assets/catalog.json"))
        .expect("the catalog is part of the build, and its test reads it")
});

/// Every model of the catalog.
pub fn all() -> &'static [CatalogEntry] {
    &ENTRIES
}

/// The model called `id`, in any letter case.
///
/// # Errors
/// When there is none; the error names those that are called alike.
pub fn find(id: &str) -> Result<&'static CatalogEntry, ModelError> {
    let wanted = id.trim().to_lowercase();
    all()
        .iter()
        .find(|entry| entry.id == wanted)
        .ok_or_else(|| ModelError::UnknownId { id: id.into(), near: near(&wanted).join(", ") })
}

/// The three ids that take the fewest edits to become `wanted`.
fn near(wanted: &str) -> Vec<&'static str> {
    let mut ids: Vec<&str> = all().iter().map(|entry| entry.id.as_str()).collect();
    ids.sort_by_cached_key(|id| n_edits(wanted, id));
    ids.truncate(3);
    ids
}

/// Levenshtein's distance: the fewest insertions, deletions and replacements of a letter that turn
/// `from` into `to`.
fn n_edits(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, letter) in from.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for j in 0..to.len() {
            let replaced = diagonal + usize::from(letter != to[j]);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::layout::{WeightFormat, WeightLayout};

    #[test]
    fn every_entry_has_its_published_number_of_parameters() {
        for entry in all() {
            let spec = entry.spec().unwrap_or_else(|error| panic!("{}: {error}", entry.id));
            assert_eq!(spec.n_parameters(), entry.n_parameters, "{}", entry.id);
        }
    }

    #[test]
    fn every_entry_is_called_differently_and_found_in_any_letter_case() {
        for entry in all() {
            assert_eq!(find(&entry.id.to_uppercase()).unwrap().repository, entry.repository);
        }
    }

    #[test]
    fn llama_2_13b_takes_52_gigabytes_in_f32() {
        let spec = find("llama-2-13b").unwrap().spec().unwrap();
        let layout = WeightLayout::new(&spec, WeightFormat::F32);
        assert_eq!(layout.n_elements() * 4, 52_063_457_280);
        // What alignment adds is at most a page for each block.
        assert!(layout.n_bytes() - layout.n_elements() * 4 < 43 * 4096);
    }

    #[test]
    fn unknown_id_suggests_the_nearest() {
        for (wanted, expected) in [
            ("llama-2-13", "llama-2-13b"),
            ("qwen3-4", "qwen3-4b"),
            ("tinyllama", "tinyllama-1.1b"),
            ("smolm2-135m", "smollm2-135m"),
            ("", "qwen3-4b"),
        ] {
            let message = find(wanted).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
    }
}
