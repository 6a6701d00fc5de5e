//! The house's rules that no compiler knows.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{Error, root};

/// Where there may be unsafe code: the kernels, and the first lines of the app, which set the
/// environment while no other thread runs.
const UNSAFE: [&str; 2] = ["kernels/", "src-tauri/src/main.rs"];

/// Lines after which a file is no longer read in one sitting.
const MAX_LINES: usize = 800;

/// Checks every source file, and says all that is wrong.
pub fn tidy() -> Result<(), Error> {
    let mut files = Vec::new();
    for folder in ["kernels", "crates", "src-tauri", "tests", "ui/monitor", "xtask"] {
        collect(&root().join(folder), &mut files)?;
    }
    let mut faults = Vec::new();
    for path in &files {
        let text = fs::read_to_string(path)
            .map_err(|source| Error::File { path: path.clone(), source })?;
        let shown = path.strip_prefix(root()).unwrap_or(path).display().to_string();
        faults.extend(faults_in(&shown, &text));
    }
    for fault in &faults {
        eprintln!("{fault}");
    }
    if faults.is_empty() {
        println!("tidy: {} files, nothing to mend", files.len());
        Ok(())
    } else {
        Err(Error::Failed { what: format!("tidy: {} faults;", faults.len()) })
    }
}

/// What is wrong with one file.
fn faults_in(path: &str, text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let n_lines = text.lines().count();
    if n_lines > MAX_LINES {
        faults.push(format!("{path}: {n_lines} lines; split it by story"));
    }
    // Written apart, so that this file does not find itself.
    let unfinished = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("todo", "!(")];
    let is_test = path.contains("tests");
    for (i, line) in text.lines().enumerate() {
        if unfinished.iter().any(|mark| line.contains(mark)) {
            faults.push(format!("{path}:{}: unfinished work", i + 1));
        }
        let code = line.split("//").next().unwrap_or_default();
        if code.contains(concat!("unsafe", " {"))
            && !UNSAFE.iter().any(|place| path.starts_with(place))
            && !is_test
        {
            faults.push(format!("{path}:{}: unsafe outside the kernels", i + 1));
        }
        if code.contains("Color32::") && path.starts_with("ui/") && !path.ends_with("theme.rs") {
            faults.push(format!("{path}:{}: a colour that is no design token", i + 1));
        }
    }
    if path.ends_with("lib.rs") && !text.starts_with("//!") {
        faults.push(format!("{path}: a crate begins with what it is for"));
    }
    faults
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<(), Error> {
    let failed = |source| Error::File { path: folder.to_owned(), source };
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.is_dir() {
            if path.file_name().is_some_and(|name| name != "target") {
                collect(&path, files)?;
            }
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            files.push(path);
        }
    }
    files.sort();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_finds_its_fault() {
        let long = "x\n".repeat(MAX_LINES + 1);
        let unfinished = concat!("// TO", "DO");
        let unsound = concat!("unsafe", " { x }");
        for (path, text, n) in [
            ("crates/x/src/a.rs", "fn a() {}", 0),
            ("crates/x/src/a.rs", long.as_str(), 1),
            ("crates/x/src/a.rs", unfinished, 1),
            ("crates/x/src/a.rs", unsound, 1),
            ("kernels/src/a.rs", unsound, 0),
            ("src-tauri/src/main.rs", unsound, 0),
            ("src-tauri/src/lib.rs", unsound, 2),
            ("ui/x/src/a.rs", "let red = Color32::RED;", 1),
            ("ui/x/src/theme.rs", "let red = Color32::RED;", 0),
            ("crates/x/src/lib.rs", "fn a() {}", 1),
            ("crates/x/src/lib.rs", "//! A.", 0),
        ] {
            assert_eq!(faults_in(path, text).len(), n, "{path}");
        }
    }
}
