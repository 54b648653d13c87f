//! From arguments to what is to be run.

use fleetwave_report::record::{Engine, Transport};

use super::CliError;
use super::args::{EngineName, Run, TransportName};
use crate::run::{RunPlan, Target};
use crate::scenario::{self, Diagnostic};

/// Arguments that do not go together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{problem}\n  = help: {fix}")]
pub(super) struct Contradiction {
    problem: String,
    fix: &'static str,
}

/// What the arguments ask for, and what the scenario's author may not have meant.
pub(super) fn plan(arguments: &Run) -> Result<(RunPlan, Vec<Diagnostic>), CliError> {
    let (engine, transport) = engine_and_transport(arguments)?;
    let mut overrides = arguments.set.clone();
    overrides.extend(arguments.devices.iter().map(|devices| format!("fleet.devices={devices}")));
    let mut loaded = scenario::load(&arguments.scenario, &overrides)?;
    if let Some(seed) = arguments.seed {
        loaded.scenario.seed = seed;
    }
    let replay = replay(arguments, loaded.scenario.seed);
    let plan = RunPlan {
        scenario: loaded.scenario,
        sha256: loaded.sha256,
        overrides,
        engine,
        target: arguments.target.clone(),
        transport,
        threads: arguments.threads,
        replay,
    };
    Ok((plan, loaded.warnings))
}

fn engine_and_transport(arguments: &Run) -> Result<(Engine, Transport), Contradiction> {
    let wrong = |problem: String, fix| Err(Contradiction { problem, fix });
    match (arguments.engine, arguments.transport) {
        (EngineName::Virtual, Some(transport)) => wrong(
            format!(
                "--transport {} does nothing in the virtual engine, which models the links and sends no bytes",
                name(transport)
            ),
            "leave it out, or add --engine live",
        ),
        (EngineName::Virtual, None) if arguments.target != Target::Hub => wrong(
            format!(
                "the virtual engine has its own hub and cannot run against --target {}",
                arguments.target
            ),
            "leave it out, or add --engine live",
        ),
        (EngineName::Live, Some(TransportName::Memory)) if arguments.target != Target::Hub => wrong(
            format!("--target {} is reached by TCP, not over --transport memory", arguments.target),
            "use --transport tcp, or --target hub",
        ),
        (EngineName::Live, _) if arguments.threads.is_some() => wrong(
            "--threads is for the virtual engine".to_owned(),
            "use --set live.device_threads=N and --set live.hub_threads=N",
        ),
        (EngineName::Virtual, None) => Ok((Engine::Virtual, Transport::Model)),
        (EngineName::Live, Some(TransportName::Memory)) => Ok((Engine::Live, Transport::Memory)),
        (EngineName::Live, Some(TransportName::Tcp) | None) => Ok((Engine::Live, Transport::Tcp)),
    }
}

const fn name(transport: TransportName) -> &'static str {
    match transport {
        TransportName::Memory => "memory",
        TransportName::Tcp => "tcp",
    }
}

/// The command that runs the same again, in a form that a shell takes. What decides nothing is left out.
fn replay(arguments: &Run, seed: u64) -> String {
    let mut words = vec!["fleetwave".to_owned(), "run".to_owned(), quoted(&arguments.scenario)];
    let mut flag = |flag: &str, value: &str| words.extend([flag.to_owned(), quoted(value)]);
    if arguments.engine == EngineName::Live {
        flag("--engine", "live");
    }
    if arguments.target != Target::Hub {
        flag("--target", &arguments.target.to_string());
    }
    if let Some(transport) = arguments.transport {
        flag("--transport", name(transport));
    }
    if let Some(devices) = &arguments.devices {
        flag("--devices", devices);
    }
    flag("--seed", &seed.to_string());
    for set in &arguments.set {
        flag("--set", set);
    }
    words.join(" ")
}

/// A word as a shell reads it back.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,%@+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::super::args::{Arguments, Command};
    use super::*;

    fn run(arguments: &[&str]) -> Run {
        let all = ["fleetwave", "run", "quickstart"].iter().chain(arguments);
        match Arguments::try_parse_from(all).expect("the arguments are valid").command {
            Command::Run(run) => run,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_virtual_engine_with_the_hub_is_the_default_and_live_runs_on_tcp() {
        assert_eq!(engine_and_transport(&run(&[])), Ok((Engine::Virtual, Transport::Model)));
        assert_eq!(engine_and_transport(&run(&["--engine", "live"])), Ok((Engine::Live, Transport::Tcp)));
        let memory = run(&["--engine", "live", "--transport", "memory"]);
        assert_eq!(engine_and_transport(&memory), Ok((Engine::Live, Transport::Memory)));
    }

    #[test]
    fn contradictions_come_with_their_fix() {
        let contradictions: Vec<String> = [
            &["--transport", "tcp"][..],
            &["--target", "rumqttd"],
            &["--engine", "live", "--target", "rumqttd", "--transport", "memory"],
            &["--engine", "live", "--threads", "2"],
        ]
        .into_iter()
        .map(|arguments| engine_and_transport(&run(arguments)).expect_err("they contradict").to_string())
        .collect();
        insta::assert_snapshot!(contradictions.join("\n\n"));
    }

    #[test]
    fn the_replay_command_is_read_back_as_the_same_run() {
        let arguments = run(&[
            "--engine",
            "live",
            "--devices",
            "1k",
            "--set",
            "fleet.group.pi.install=1s..3s",
            "--set",
            "name=it's",
        ]);
        assert_eq!(
            replay(&arguments, 9),
            "fleetwave run quickstart --engine live --devices 1k --seed 9 \
             --set fleet.group.pi.install=1s..3s --set 'name=it'\\''s'"
        );
    }

    #[test]
    fn arguments_change_the_scenario_and_show_in_the_plan() {
        let arguments = run(&["--devices", "12", "--seed", "5", "--set", "release.size=16KiB"]);
        let (plan, _) = plan(&arguments).expect("the scenario is shipped");
        assert_eq!(plan.scenario.fleet.devices.0, 12);
        assert_eq!(plan.scenario.seed, 5);
        assert_eq!(plan.scenario.releases[0].size.bytes(), 16 << 10);
        assert_eq!(plan.overrides, ["release.size=16KiB", "fleet.devices=12"]);
    }
}
