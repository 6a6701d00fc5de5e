//! What a new run is called when the person does not say.

use std::{
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use crate::{RunError, RunSettings};

/// A folder below `folder` that is not there yet: `name`, or date, model and method, with a number
/// behind it when that is taken.
///
/// # Errors
/// When `name` is more than a name.
pub fn new_run_path(
    folder: &Path,
    name: Option<&str>,
    settings: &RunSettings,
    now: SystemTime,
) -> Result<PathBuf, RunError> {
    let name = match name.map(str::trim) {
        Some(name) if !name.is_empty() => {
            // What is not allowed on some system is allowed on none, so that runs can be moved.
            let forbidden = |c: char| c.is_control() || "/\\:*?\"<>|".contains(c);
            if name.contains(forbidden) || name.starts_with('.') || name.ends_with('.') {
                let rule = "it must be a folder's name: without / \\ : * ? \" < > | and with no \
                            dot at either end";
                return Err(RunError::Setting { name: "name", value: name.into(), rule });
            }
            name.to_owned()
        }
        _ => default_name(settings, now),
    };
    let first = folder.join(&name);
    let numbered = (2..).map(|n: u64| folder.join(format!("{name}-{n}")));
    let mut free = std::iter::once(first).chain(numbered).filter(|path| !path.exists());
    // The second iterator has no end.
    Ok(free.next().unwrap_or_else(|| folder.join(name)))
}

/// Date (in UTC), model and method.
fn default_name(settings: &RunSettings, now: SystemTime) -> String {
    let model = settings.model.file_name().unwrap_or_default().to_string_lossy();
    let model: String = model
        .chars()
        .map(|c| if c.is_alphanumeric() || ".-_".contains(c) { c } else { '-' })
        .collect();
    let (year, month, day) = date(now.duration_since(UNIX_EPOCH).unwrap_or_default());
    let method = settings.method.name();
    format!("{year:04}-{month:02}-{day:02}-{}-{method}", model.trim_matches(['-', '.']))
}

/// Year, month and day that `since_1970` has come to.
fn date(since_1970: Duration) -> (u64, u64, u64) {
    let mut days = since_1970.as_secs() / 86_400;
    let is_leap =
        |year: u64| year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400);
    let mut year = 1970;
    while days >= 365 + u64::from(is_leap(year)) {
        days -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let february = 28 + u64::from(is_leap(year));
    let mut month = 1;
    for n_days in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if days < n_days {
            break;
        }
        days -= n_days;
        month += 1;
    }
    (year, month, days + 1)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, expected) in [
            (0, (1970, 1, 1)),
            (951_782_400, (2000, 2, 29)),
            (951_868_800, (2000, 3, 1)),
            (1_735_603_200, (2024, 12, 31)),
            (1_735_689_599, (2024, 12, 31)),
            (1_735_689_600, (2025, 1, 1)),
            (4_107_542_400, (2100, 3, 1)),
        ] {
            assert_eq!(date(Duration::from_secs(seconds)), expected, "{seconds}");
        }
    }

    #[test]
    fn every_run_gets_a_folder_of_its_own() {
        let place = tempfile::tempdir().unwrap();
        let settings = RunSettings { model: "models/Tiny 1.5B".into(), ..RunSettings::default() };
        let now = UNIX_EPOCH + Duration::from_secs(951_782_400);
        let mut names = Vec::new();
        for name in [None, None, Some(" "), Some("my run"), Some("my run")] {
            let path = new_run_path(place.path(), name, &settings, now).unwrap();
            fs::create_dir(&path).unwrap();
            names.push(path.file_name().unwrap().to_str().unwrap().to_owned());
        }
        let dated = "2000-02-29-Tiny-1.5B-qlora";
        assert_eq!(
            names,
            [dated, &format!("{dated}-2"), &format!("{dated}-3"), "my run", "my run-2"]
        );
    }

    #[test]
    fn a_name_is_no_path() {
        let settings = RunSettings::default();
        for name in ["../up", "a/b", "c:\\d", "..", ".hidden", "end.", "new\nline"] {
            let path = new_run_path(Path::new("runs"), Some(name), &settings, UNIX_EPOCH);
            assert!(matches!(path, Err(RunError::Setting { .. })), "{name}");
        }
    }
}
