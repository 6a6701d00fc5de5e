//! Errors in the form that crosses to a window.

/// An error that says which it is, what happened, and what to do.
pub trait Explain: std::error::Error {
    /// Which error, in a form that does not change with the wording.
    fn code(&self) -> &'static str;

    /// What to do, where the text itself does not end with it in words that suit a window.
    fn advice(&self) -> Option<String> {
        None
    }

    /// What happened and where, and what to do (which may be empty). Messages are written as
    /// "what; what to do"; advice that is given apart takes the place of theirs.
    fn explanation(&self) -> (String, String) {
        let text = self.to_string();
        match self.advice() {
            Some(advice) => (text.split("; ").next().unwrap_or(&text).to_owned(), advice),
            None => match text.rsplit_once("; ") {
                Some((what, advice)) => (what.to_owned(), advice.to_owned()),
                None => (text, String::new()),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use crate::{Explain, RunError};

    #[test]
    fn a_message_is_divided_where_the_advice_begins() {
        let path = PathBuf::from("runs/a;b");
        let (what, advice) = RunError::NoRun { path }.explanation();
        assert_eq!(what, "runs/a;b is no run folder: it has no run.toml");
        assert_eq!(advice, "choose the folder that holds run.toml");
        let setting =
            RunError::Setting { name: "batch", value: "0".into(), rule: "it must be 1 or more" };
        assert_eq!(setting.explanation().1, "it must be 1 or more");
    }
}
