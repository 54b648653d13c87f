//! The command line's grammar and help.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::clean::Clean;
use super::elsewhere::{Elsewhere, TargetArgument};
use super::hub::Hub;
use super::release::Release;

#[derive(Debug, Parser)]
#[command(
    name = "fleetwave",
    version,
    about = "Shows what a device update does to a fleet, before the fleet sees it",
    after_help = "Start with:\n  fleetwave run quickstart\n  fleetwave scenarios",
    max_term_width = 100
)]
pub(super) struct Arguments {
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Run a scenario and measure what comes out
    Run(Box<Run>),
    /// Check a scenario and say in words what a run of it will do
    Check(Check),
    /// Be a local IoT Hub for Azure's SDKs
    Hub(Box<Hub>),
    /// Make signed releases of payloads
    Release(Release),
    /// List or remove what runs have left on a hub elsewhere
    Clean(Box<Clean>),
    /// Print the JSON Schema of scenarios, or of run records
    Schema(Schema),
    /// List the scenarios that come with fleetwave
    Scenarios,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  fleetwave run quickstart
  fleetwave run quickstart --engine live --devices 1000
  fleetwave run quickstart --engine live --transport memory --devices 200k
  fleetwave run my-fleet.toml --seed 7 --set release.size=64KiB --out results/
  fleetwave run my-fleet.toml --json --quiet | jq .fan_out_latency
  fleetwave run quickstart --engine live --devices 500 --target-file hub.txt --tier S1

Exit codes:
  0    every expectation was met
  99   an expectation was missed, a wait timed out, or an invariant was broken
  3    the run is invalid: the harness was the bottleneck
  2    wrong usage, or a wrong scenario
  130  interrupted; what was measured until then is reported
  1    anything else")]
pub(super) struct Run {
    /// A scenario file, or the name of a scenario that comes with fleetwave
    pub(super) scenario: String,

    /// `virtual` runs in virtual time, the same for the same seed; `live` sends real bytes in real time
    #[arg(long, value_enum, default_value = "virtual", help_heading = "What runs")]
    pub(super) engine: EngineName,

    /// What devices connect to: `hub`, `rumqttd` (both embedded), or a broker's mqtt://HOST:PORT [default: hub]
    #[arg(long, value_name = "hub|rumqttd|URL", help_heading = "What runs")]
    pub(super) target: Option<TargetArgument>,

    /// What carries the live engine's bytes [default: tcp]
    #[arg(long, value_enum, help_heading = "What runs")]
    pub(super) transport: Option<TransportName>,

    /// Number of devices in place of the scenario's `fleet.devices`, e.g. 500, 10k or 1M
    #[arg(long, value_name = "N", help_heading = "What runs")]
    pub(super) devices: Option<String>,

    /// Seed of every random draw in place of the scenario's `seed`
    #[arg(long, value_name = "N", help_heading = "What runs")]
    pub(super) seed: Option<u64>,

    /// Change any key of the scenario; may be given more than once, the last one wins
    #[arg(long, value_name = "KEY=VALUE", help_heading = "What runs")]
    pub(super) set: Vec<String>,

    /// Threads of the virtual engine [default: one for each core]; the result does not depend on it
    #[arg(long, value_name = "N", help_heading = "What runs")]
    pub(super) threads: Option<NonZeroUsize>,

    #[command(flatten)]
    pub(super) elsewhere: Elsewhere,

    /// Port of MQTT over TLS there [default: 8883]
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..), help_heading = "A hub elsewhere")]
    pub(super) mqtt_port: Option<u16>,

    /// Do not ask before something is created there
    #[arg(long, short, help_heading = "A hub elsewhere")]
    pub(super) yes: bool,

    /// Write run.json, histograms.hlog and summary.txt into this directory
    #[arg(long, value_name = "DIR", help_heading = "What comes out")]
    pub(super) out: Option<PathBuf>,

    /// Print the run record as JSON in place of the summary
    #[arg(long, help_heading = "What comes out")]
    pub(super) json: bool,

    /// Show no progress while the run lasts
    #[arg(long, short, help_heading = "What comes out")]
    pub(super) quiet: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum EngineName {
    Virtual,
    Live,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum TransportName {
    /// Channels in this process: for fleets beyond the limit of open descriptors
    Memory,
    /// TCP on this machine, or to the broker
    Tcp,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  fleetwave check quickstart
  fleetwave check my-fleet.toml --set fleet.devices=1M

Exit codes:
  0    the scenario can be run
  2    it cannot; every problem is shown with its place and what would have been right")]
pub(super) struct Check {
    /// A scenario file, or the name of a scenario that comes with fleetwave
    pub(super) scenario: String,

    /// Change any key of the scenario; may be given more than once, the last one wins
    #[arg(long, value_name = "KEY=VALUE")]
    pub(super) set: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct Schema {
    /// Print the schema of the run record, as written by `run --json` and `run --out`
    #[arg(long)]
    pub(super) record: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_grammar_has_no_contradiction_in_itself() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn help_says_what_can_be_done_with_examples_and_exit_codes() {
        let mut command = Arguments::command().term_width(100);
        command.build();
        insta::assert_snapshot!("help", command.render_long_help());
        for name in ["run", "check", "hub", "clean", "schema", "scenarios"] {
            let sub = command.find_subcommand_mut(name).expect("the subcommand exists");
            insta::assert_snapshot!(format!("help_{name}"), sub.render_long_help());
        }
    }
}
