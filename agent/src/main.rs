//! The `fleetwave-agent` command.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::SystemTime;

use clap::{Parser, Subcommand};
use fleetwave_agent::{Config, Ended};

#[derive(Debug, Parser)]
#[command(
    name = "fleetwave-agent",
    version,
    about = "Takes updates from a hub",
    after_help = "\
Exit codes:
  0  the agent was told to end, or (--once) nothing is left to do; install: the release runs
  3  --once, install: the release was given up, or refused
  2  wrong usage, or a wrong configuration
  1  anything else

RUST_LOG stands above the configuration's [log], e.g. RUST_LOG=info,fleetwave_agent=debug."
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run until Ctrl-C or SIGTERM
    Run {
        /// The configuration
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// End when the hub wants nothing more
        #[arg(long)]
        once: bool,
    },
    /// Install a release from a stick or a folder, with or without a hub
    Install {
        /// The configuration
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// At any time, whatever [windows] says; locks are waited for all the same
        #[arg(long)]
        now: bool,
        /// Call it off, if it was asked for in this way and does not run yet
        #[arg(long, conflicts_with = "now")]
        cancel: bool,
        /// The directory that `fleetwave release create` made, or its release.json
        release: PathBuf,
    },
    /// Check a configuration, and say what it means
    CheckConfig {
        /// The configuration
        #[arg(required_unless_present = "config")]
        file: Option<PathBuf>,
        /// The same: as the other commands have it
        #[arg(long, value_name = "FILE", conflicts_with = "file", hide = true)]
        config: Option<PathBuf>,
        /// For programs
        #[arg(long)]
        json: bool,
    },
    /// Say what is installed, what is in flight, and how the last update ended
    Status {
        /// The configuration
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// For programs
        #[arg(long)]
        json: bool,
    },
    /// Print the version
    Version,
}

const FAILURE: u8 = 1;
const USAGE: u8 = 2;
const GIVEN_UP: u8 = 3;

fn main() -> ExitCode {
    match act(Arguments::parse().command) {
        Ok(code) => code,
        Err((code, error)) => {
            eprintln!("fleetwave-agent: {error}");
            ExitCode::from(code)
        }
    }
}

type Failure = (u8, Box<dyn std::error::Error>);

fn act(command: Command) -> Result<ExitCode, Failure> {
    match command {
        Command::Run { config, once } => {
            let config = load(&config)?;
            let recent = fleetwave_agent::start_log(&config.log).map_err(|error| (USAGE, error.into()))?;
            Ok(
                match fleetwave_agent::run(&config, once, Some(recent))
                    .map_err(|error| (FAILURE, error.into()))?
                {
                    Ended::Stopped => ExitCode::SUCCESS,
                    Ended::Settled { running } => {
                        println!("{running} runs, and the hub wants nothing more");
                        ExitCode::SUCCESS
                    }
                    Ended::GivenUp { release, code } => {
                        println!("{release} was given up: {}", code.name());
                        ExitCode::from(GIVEN_UP)
                    }
                },
            )
        }
        Command::Install { config, now, cancel, release } => {
            let config = load(&config)?;
            fleetwave_agent::start_log(&fleetwave_agent::Log::warnings())
                .map_err(|error| (USAGE, error.into()))?;
            match fleetwave_agent::install(&config, &release, fleetwave_agent::How { now, cancel }) {
                (0, text) => {
                    println!("{text}");
                    Ok(ExitCode::SUCCESS)
                }
                (code, text) => Err((code, text.into())),
            }
        }
        Command::CheckConfig { file, config, json } => check(&file.or(config).unwrap_or_default(), json),
        Command::Status { config, json } => {
            let config = load(&config)?;
            let said = if json {
                fleetwave_agent::status_json(&config).map(|status| format!("{status}\n"))
            } else {
                fleetwave_agent::status(&config)
            };
            print!("{}", said.map_err(|error| (FAILURE, error.into()))?);
            Ok(ExitCode::SUCCESS)
        }
        Command::Version => {
            println!("fleetwave-agent {}", env!("CARGO_PKG_VERSION"));
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn check(file: &Path, json: bool) -> Result<ExitCode, Failure> {
    let config = match Config::load(file) {
        Err(error) if json => {
            println!("{}", error.json());
            return Ok(ExitCode::from(USAGE));
        }
        loaded => loaded.map_err(|error| (USAGE, error.into()))?,
    };
    let understood = config.understood(file, SystemTime::now(), fleetwave_agent::utc_offset());
    if json {
        println!("{}", understood.json());
    } else {
        println!("{}: fine", file.display());
        print!("{}", understood.text());
    }
    Ok(ExitCode::SUCCESS)
}

fn load(path: &Path) -> Result<Config, Failure> {
    Config::load(path).map_err(|error| (USAGE, error.into()))
}
