//! The command line of Nibble: arguments in, tables or JSON out. Every verb is a call of the
//! engine; nothing is computed here.

mod arguments;
mod show;
mod train;
mod verbs;

use std::process::ExitCode;

use clap::Parser;

use arguments::{Arguments, Verb};

/// How a verb fails: what to print, and the exit code.
#[derive(Debug)]
pub struct Failure {
    message: String,
    code: u8,
}

impl Failure {
    /// The input is at fault.
    pub fn input(error: impl std::fmt::Display) -> Self {
        Self { message: error.to_string(), code: 2 }
    }

    /// Something failed on the way.
    pub fn running(error: impl std::fmt::Display) -> Self {
        Self { message: error.to_string(), code: 1 }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let json = arguments.json;
    let result = match arguments.verb {
        Verb::Devices => verbs::devices(json),
        Verb::Plan(arguments) => verbs::plan(&arguments, json),
        Verb::Inspect(arguments) => verbs::inspect(&arguments, json),
        Verb::Train(arguments) => train::train(&arguments, json),
        Verb::Resume(arguments) => train::resume(&arguments, json),
        Verb::Export(arguments) => verbs::export(&arguments, json),
        Verb::Generate(arguments) => verbs::generate(&arguments, json),
        Verb::Eval(arguments) => verbs::eval(&arguments, json),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { message, code }) => {
            // One line, whatever the cause had in it.
            let line = message.split_whitespace().collect::<Vec<_>>().join(" ");
            eprintln!("error: {line}");
            ExitCode::from(code)
        }
    }
}
