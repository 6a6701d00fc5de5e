//! The standard output, written so that whoever reads it may go away at any time: a run that is
//! trained into a pipe is not lost because the pipe is closed.

use std::{
    fmt,
    io::{self, Write},
    sync::Mutex,
};

/// What the first write that failed said, if it was not merely the reader who left.
static FAILURE: Mutex<Option<io::Error>> = Mutex::new(None);

/// Prints a line.
macro_rules! say {
    ($($text:tt)*) => {
        { $crate::output::write(format_args!("{}\n", format_args!($($text)*))); }
    };
}
pub(crate) use say;

/// Writes text at once. Returns whether somebody still reads it.
pub fn write(text: fmt::Arguments<'_>) -> bool {
    let mut output = io::stdout().lock();
    match output.write_fmt(text).and_then(|()| output.flush()) {
        Ok(()) => true,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => false,
        Err(error) => {
            if let Ok(mut failure) = FAILURE.lock() {
                failure.get_or_insert(error);
            }
            false
        }
    }
}

/// Why not all of the output was written, if it was not.
pub fn failure() -> Option<io::Error> {
    FAILURE.lock().ok()?.take()
}
