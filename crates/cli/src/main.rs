//! The command line of Nibble: arguments in, tables or JSON out. Every verb is a call of the
//! engine; nothing is computed here.

mod arguments;
mod bench;
mod output;
mod profile;
mod show;
mod train;
mod verbs;

use std::{io::Write, process::ExitCode};

use clap::{CommandFactory, FromArgMatches, error::ErrorKind};

use arguments::{Arguments, Verb};
use nibble_data::DataError;
use nibble_engine::{devices::OpenDeviceError, generate::GenerateError};

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

    /// A dataset, its tokenizer or its template is at fault, or the room for its tokens.
    pub fn data(error: DataError) -> Self {
        match error {
            DataError::Write { .. } | DataError::Cancelled => Self::running(error),
            _ => Self::input(error),
        }
    }

    /// A model that reads or writes text: its files, or what the machine would not give.
    pub fn session(error: GenerateError) -> Self {
        match error {
            GenerateError::Data(error) => Self::data(error),
            GenerateError::Memory(_)
            | GenerateError::Open(OpenDeviceError::Threads(_) | OpenDeviceError::Card(_))
            | GenerateError::Page(_)
            | GenerateError::Sample(_) => Self::running(error),
            _ => Self::input(error),
        }
    }

    /// Something failed on the way.
    pub fn running(error: impl std::fmt::Display) -> Self {
        Self { message: error.to_string(), code: 1 }
    }
}

fn main() -> ExitCode {
    let arguments = match parse() {
        Ok(arguments) => arguments,
        Err(error) => return refuse(&error),
    };
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
        Verb::Bench(arguments) => bench::bench(&arguments, json),
    };
    let result = result.and_then(|()| match output::failure() {
        None => Ok(()),
        Some(error) => Err(Failure::running(format_args!(
            "the output could not be written: {error}; check where it is sent to"
        ))),
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => fail(&failure),
    }
}

/// The arguments of this process. A number may be negative wherever a value is taken: what is wrong
/// with `--lr -1` is the number, not that there is no flag `-1`.
fn parse() -> Result<Arguments, clap::Error> {
    let mut command = Arguments::command();
    let names: Vec<_> = command.get_subcommands().map(|verb| verb.get_name().to_owned()).collect();
    for name in names {
        command = command.mut_subcommand(name, |verb| {
            verb.mut_args(|argument| {
                let takes_value = argument.get_action().takes_values();
                argument.allow_negative_numbers(takes_value)
            })
        });
    }
    Arguments::from_arg_matches(&command.try_get_matches()?)
}

/// Says what went wrong in one line, whatever the cause had in it.
fn fail(failure: &Failure) -> ExitCode {
    let line = failure.message.split_whitespace().collect::<Vec<_>>().join(" ");
    // Nobody to tell is no reason to fail in another way.
    let _ = writeln!(std::io::stderr(), "error: {line}");
    ExitCode::from(failure.code)
}

/// What cannot be understood of the command line, in one line; or the help that was asked for.
fn refuse(error: &clap::Error) -> ExitCode {
    let is_help = matches!(
        error.kind(),
        ErrorKind::DisplayHelp
            | ErrorKind::DisplayVersion
            | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
    );
    if is_help {
        let _ = error.print();
        return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
    }
    let text = error.to_string();
    let parts = text.split("\n\n").map(str::trim).filter(|part| !part.starts_with("Usage:"));
    let message = parts.collect::<Vec<_>>().join("; ");
    let message = message.strip_prefix("error:").unwrap_or(&message).trim_end_matches('.');
    fail(&Failure::input(message))
}
