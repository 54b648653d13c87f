//! The command line: what users type, see and get as an exit code.

mod args;
mod clean;
mod elsewhere;
mod hub;
mod output;
mod plan;
mod release;
mod session;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser as _;
use clap::error::{ContextKind, ContextValue, ErrorKind};

use self::args::{Arguments, Command};
use crate::release::{KeyError, ShelfError};
use crate::remote::ServiceError;
use crate::run::EngineError;
use crate::scenario::{self, Diagnostics};

/// The exit code of wrong usage or a wrong scenario.
const USAGE: u8 = 2;
/// The exit code of everything that has no other.
const OTHER: u8 = 1;

/// Why a command could not do what it was asked to.
#[derive(Debug, thiserror::Error)]
enum CliError {
    #[error(transparent)]
    Scenario(#[from] Diagnostics),
    #[error(transparent)]
    Contradiction(#[from] plan::Contradiction),
    #[error(transparent)]
    Output(#[from] output::OutputError),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error("cannot listen for Ctrl-C")]
    Signals(#[from] ctrlc::Error),
    #[error(transparent)]
    Service(#[from] ServiceError),
    #[error(transparent)]
    Hub(#[from] hub::HubError),
    #[error(transparent)]
    Release(#[from] ShelfError),
    #[error(transparent)]
    Key(#[from] KeyError),
}

impl CliError {
    const fn exit_code(&self) -> u8 {
        match self {
            Self::Scenario(_)
            | Self::Contradiction(_)
            | Self::Release(ShelfError::Wrong(_) | ShelfError::Form { .. }) => USAGE,
            Self::Hub(error) if error.is_usage() => USAGE,
            Self::Engine(error) => error.exit_code(),
            Self::Output(_)
            | Self::Signals(_)
            | Self::Service(_)
            | Self::Hub(_)
            | Self::Release(_)
            | Self::Key(_) => OTHER,
        }
    }

    /// Says it as users read it. Diagnostics have their own form.
    fn report(&self) {
        let mut text = match self {
            Self::Scenario(diagnostics) => diagnostics.to_string(),
            other => format!("error: {other}\n"),
        };
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text.push_str(&format!("  because: {error}\n"));
            cause = error.source();
        }
        // There is nowhere left to complain when standard error is gone.
        let _ = io::stderr().write_all(text.as_bytes());
    }
}

/// Does what the command line says, and returns the exit code.
#[must_use]
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return refuse(&error),
    };
    let code = match arguments.command {
        Command::Run(arguments) => session::run(&arguments),
        Command::Check(arguments) => check(&arguments),
        Command::Hub(arguments) => hub::run(&arguments),
        Command::Release(arguments) => release::run(&arguments),
        Command::Clean(arguments) => clean::run(&arguments),
        Command::Schema(arguments) => schema(&arguments),
        Command::Scenarios => scenarios(),
    };
    ExitCode::from(code.unwrap_or_else(|error| {
        error.report();
        error.exit_code()
    }))
}

/// Says what is wrong with what was typed, or prints what was asked for.
fn refuse(error: &clap::Error) -> ExitCode {
    let command = error.get(ContextKind::InvalidSubcommand);
    if let (ErrorKind::ArgumentConflict, Some(command)) = (error.kind(), command) {
        let before = match error.get(ContextKind::PriorArg) {
            Some(ContextValue::Strings(many)) => many.join(" "),
            Some(one) => one.to_string(),
            None => "an option".to_owned(),
        };
        let text = format!(
            "error: {before} cannot stand before `{command}`: there it is said to a hub that is to be started\n  = help: \
             what is said to a command stands behind it, as in `fleetwave hub {command} … --data DIR`\n"
        );
        // There is nowhere left to complain when standard error is gone.
        let _ = io::stderr().write_all(text.as_bytes());
        return ExitCode::from(USAGE);
    }
    let _ = error.print();
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(USAGE))
}

fn check(arguments: &args::Check) -> Result<u8, CliError> {
    let loaded = scenario::load(&arguments.scenario, &arguments.set)?;
    output::print(&scenario::explain(&loaded))?;
    Ok(0)
}

fn schema(arguments: &args::Schema) -> Result<u8, CliError> {
    let schema = if arguments.record { fleetwave_report::schema() } else { scenario::schema() };
    output::print(&format!("{schema:#}\n"))?;
    Ok(0)
}

fn scenarios() -> Result<u8, CliError> {
    let lines =
        scenario::shipped().iter().map(|shipped| format!("{:<18}{}\n", shipped.name, shipped.summary()));
    output::print(&lines.collect::<String>())?;
    Ok(0)
}
