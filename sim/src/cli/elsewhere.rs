//! Hubs that are not ours on the command line: how to reach one, what was meant, and the question before a run.

use std::fmt;
use std::io::{self, BufRead as _, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;

use super::hub::TierName;
use super::plan::Contradiction;
use crate::remote::{self, Access, AccessError, Remote};
use crate::run::{Target, TargetError};
use crate::scenario::model::Tier;

/// The variable that holds a connection string.
const VARIABLE: &str = "FLEETWAVE_TARGET";
/// What is no path, for messages that give a command.
const SOME_FILE: &str = "--target-file FILE";

/// What `--target` says. A connection string that is wrong is no error of the grammar, whose messages would repeat it.
#[derive(Clone)]
pub(super) enum TargetArgument {
    Named(Target),
    Connection(Result<Access, AccessError>),
}

impl FromStr for TargetArgument {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        if remote::is_connection_string(text) {
            Ok(Self::Connection(text.parse()))
        } else {
            text.parse().map(Self::Named)
        }
    }
}

impl fmt::Debug for TargetArgument {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(target) => write!(f, "{target}"),
            Self::Connection(_) => f.write_str("a connection string"),
        }
    }
}

/// How to reach a hub elsewhere, and its limits.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct Elsewhere {
    /// A file with the connection string of a hub elsewhere: one of a policy that may write the registry and connect
    /// as a service. Without it the variable FLEETWAVE_TARGET is taken if it is set
    #[arg(long, value_name = "FILE", help_heading = "A hub elsewhere")]
    pub(super) target_file: Option<PathBuf>,

    /// Trust the authority in this PEM file, in place of the system's
    #[arg(long, value_name = "FILE", help_heading = "A hub elsewhere")]
    pub(super) target_ca: Option<PathBuf>,

    /// The tier whose limits are kept there [default: S1]
    #[arg(long, value_enum, ignore_case = true, help_heading = "A hub elsewhere")]
    pub(super) tier: Option<TierName>,

    /// The tier's units [default: 1]
    #[arg(long, value_name = "N", requires = "tier", value_parser = clap::value_parser!(u32).range(1..), help_heading = "A hub elsewhere")]
    pub(super) units: Option<u32>,
}

impl Elsewhere {
    /// The first of these arguments that is given.
    pub(super) fn first(&self) -> Option<&'static str> {
        let given = [
            (self.target_file.is_some(), "--target-file"),
            (self.target_ca.is_some(), "--target-ca"),
            (self.tier.is_some(), "--tier"),
        ];
        given.iter().find(|(given, _)| *given).map(|(_, name)| *name)
    }

    fn limits(&self) -> Option<(Tier, u32)> {
        let tier = match self.tier? {
            TierName::None => Tier::None,
            TierName::S1 => Tier::S1,
            TierName::S2 => Tier::S2,
            TierName::S3 => Tier::S3,
        };
        Some((tier, self.units.unwrap_or(1)))
    }

    /// The hub elsewhere that is meant, if one is: by `--target`, by a file, or (if `by_variable`) by the variable.
    pub(super) fn hub(
        &self,
        target: Option<&TargetArgument>,
        by_variable: bool,
    ) -> Result<Option<Remote>, Contradiction> {
        let variable = || std::env::var(VARIABLE).ok().filter(|text| !text.trim().is_empty());
        let (access, place, mut arguments) = match (target, &self.target_file) {
            (Some(_), Some(_)) => {
                return Err(Contradiction::new(
                    "--target and --target-file both say what the target is",
                    "leave one of them out",
                ));
            }
            (Some(TargetArgument::Named(_)), None) => return Ok(None),
            (Some(TargetArgument::Connection(access)), None) => {
                (access.clone(), "--target".to_owned(), SOME_FILE.to_owned())
            }
            (None, Some(path)) => {
                let text = std::fs::read_to_string(path).map_err(|error| {
                    Contradiction::new(
                        format!("cannot read {}, given by --target-file: {error}", path.display()),
                        "give a file that holds the connection string and nothing else",
                    )
                })?;
                let argument = format!("--target-file {}", super::plan::quoted(&path.to_string_lossy()));
                (text.parse(), path.display().to_string(), argument)
            }
            (None, None) => match variable().filter(|_| by_variable) {
                None => return Ok(None),
                Some(text) => (text.parse(), format!("the variable {VARIABLE}"), String::new()),
            },
        };
        let access = access.map_err(|error: AccessError| {
            Contradiction::new(
                format!("{place}: {error}"),
                "`az iot hub connection-string show` prints one, and so does `fleetwave hub`",
            )
        })?;
        if let Some(ca) = &self.target_ca {
            let ca = super::plan::quoted(&ca.to_string_lossy());
            arguments = format!("{arguments} --target-ca {ca}").trim().to_owned();
        }
        let (ca, limits) = (self.target_ca.clone(), self.limits());
        Ok(Some(Remote { ca, limits, arguments, ..Remote::new(access) }))
    }

    /// The arguments about limits, as they are written.
    pub(super) fn limit_words(&self) -> Vec<String> {
        let Some((tier, units)) = self.limits() else { return Vec::new() };
        let tier = if tier == Tier::None { "none".to_owned() } else { format!("{tier:?}") };
        ["--tier", &tier, "--units", &units.to_string()].map(str::to_owned).to_vec()
    }
}

/// Asks whether to go on; `yes` has said so already.
pub(super) fn confirm(yes: bool) -> Result<bool, Contradiction> {
    if yes {
        return Ok(true);
    }
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        return Err(Contradiction::new(
            "a run on a hub elsewhere has to be confirmed, and there is no terminal to ask on",
            "add --yes once the plan above is what you want",
        ));
    }
    let mut stderr = io::stderr();
    // Without standard error there is nobody who could answer.
    let asked = stderr.write_all(b"\nGo on? [y/N] ").and_then(|()| stderr.flush());
    let mut answer = String::new();
    let heard = asked.and_then(|()| stdin.lock().read_line(&mut answer));
    Ok(heard.is_ok() && matches!(answer.trim(), "y" | "Y" | "yes"))
}
