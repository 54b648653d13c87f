//! `fleetwave clean`: what runs have left on a hub.

use std::io::{self, Write as _};

use clap::Args;

use super::elsewhere::{Elsewhere, TargetArgument};
use super::plan::Contradiction;
use super::{CliError, output};
use crate::remote::clean::{Cleaner, Leftovers, is_run};
use crate::remote::{Remote, ServiceError};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  fleetwave clean --target-file hub.txt
  fleetwave clean --target-file hub.txt --run 1a2b3c4d
  fleetwave clean --target-file hub.txt --all --dry-run

Without --run and --all it says what is there. Only devices whose tag `fleetwave.run` and whose id name the same run are
touched, and configurations whose id is a run's.

Exit codes:
  0    it is removed, or listed
  2    wrong usage
  1    anything else, e.g. a hub that refuses")]
pub(super) struct Clean {
    /// What to clean, as a connection string; a file or the variable keeps it off the command line
    #[arg(long, value_name = "CONNECTION-STRING", hide = true)]
    pub(super) target: Option<TargetArgument>,

    #[command(flatten)]
    pub(super) elsewhere: Elsewhere,

    /// Remove what this run has left
    #[arg(long, value_name = "ID", conflicts_with = "all", help_heading = "What is removed")]
    pub(super) run: Option<String>,

    /// Remove what all runs have left, those that are under way included
    #[arg(long, help_heading = "What is removed")]
    pub(super) all: bool,

    /// Say what would be removed, and remove nothing
    #[arg(long, help_heading = "What is removed")]
    pub(super) dry_run: bool,
}

pub(super) fn run(arguments: &Clean) -> Result<u8, CliError> {
    if let Some(run) = arguments.run.as_deref().filter(|run| !is_run(run)) {
        return Err(Contradiction::new(
            format!("--run {run:?} is no run's id"),
            "it has eight hexadecimal digits; `fleetwave clean` without --run lists them",
        )
        .into());
    }
    let hub = arguments.elsewhere.hub(arguments.target.as_ref(), true)?;
    let remote = hub.ok_or_else(|| {
        Contradiction::new(
            "there is no hub to clean",
            "give a file with its connection string by --target-file, or set FLEETWAVE_TARGET",
        )
    })?;
    let cleaner = Cleaner::new(&remote)?;
    let found = cleaner.find(arguments.run.as_deref())?;
    output::print(&table(&found, &remote))?;
    if found.is_empty() || arguments.dry_run || !(arguments.all || arguments.run.is_some()) {
        return Ok(0);
    }
    remove(&cleaner, &found)?;
    output::print("all of it is removed\n")?;
    Ok(0)
}

fn remove(cleaner: &Cleaner, found: &Leftovers) -> Result<(), ServiceError> {
    for (run, left) in found {
        cleaner.remove(left, |gone| {
            // There is nowhere left to say it when standard error is gone.
            let _ = writeln!(io::stderr(), "run {run}: {gone} of {} devices removed", left.devices.len());
        })?;
    }
    Ok(())
}

fn table(found: &Leftovers, remote: &Remote) -> String {
    if found.is_empty() {
        return format!("runs have left nothing on {remote}\n");
    }
    let mut text = format!("on {remote}:\n  run       devices  configurations\n");
    for (run, left) in found {
        text.push_str(&format!("  {run}  {:>7}  {:>14}\n", left.devices.len(), left.configurations.len()));
    }
    text
}
