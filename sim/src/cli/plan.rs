//! From arguments to what is to be run.

use fleetwave_report::record::{Engine, Transport};

use super::CliError;
use std::sync::Arc;

use super::args::{EngineName, Run, TransportName};
use super::elsewhere::TargetArgument;
use crate::run::{RunPlan, Target};
use crate::scenario::{self, Diagnostic};

/// Arguments that do not go together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{problem}\n  = help: {fix}")]
pub(super) struct Contradiction {
    problem: String,
    fix: &'static str,
}

impl Contradiction {
    pub(super) fn new(problem: impl Into<String>, fix: &'static str) -> Self {
        Self { problem: problem.into(), fix }
    }
}

/// What the arguments ask for, and what the scenario's author may not have meant.
pub(super) fn plan(arguments: &Run) -> Result<(RunPlan, Vec<Diagnostic>), CliError> {
    let target = target(arguments)?;
    let (engine, transport) = engine_and_transport(arguments, &target)?;
    let mut overrides = arguments.set.clone();
    overrides.extend(arguments.devices.iter().map(|devices| format!("fleet.devices={devices}")));
    let mut loaded = scenario::load(&arguments.scenario, &overrides)?;
    if let Some(seed) = arguments.seed {
        loaded.scenario.seed = seed;
    }
    let replay = replay(arguments, &target, loaded.scenario.seed);
    let plan = RunPlan {
        scenario: loaded.scenario,
        sha256: loaded.sha256,
        overrides,
        engine,
        target,
        transport,
        threads: arguments.threads,
        replay,
    };
    Ok((plan, loaded.warnings))
}

/// What devices connect to. The variable counts for the live engine alone: the virtual one reaches nobody.
fn target(arguments: &Run) -> Result<Target, Contradiction> {
    let live = arguments.engine == EngineName::Live;
    let hub = arguments.elsewhere.hub(arguments.target.as_ref(), live)?;
    if let Some(mut remote) = hub {
        remote.mqtt_port = arguments.mqtt_port.unwrap_or(remote.mqtt_port);
        return Ok(Target::Remote(Arc::new(remote)));
    }
    let more = arguments.mqtt_port.map(|_| "--mqtt-port");
    if let Some(argument) = arguments.elsewhere.first().or(more) {
        return Err(Contradiction::new(
            format!("{argument} is for a hub elsewhere, and none is given"),
            "give a file with its connection string by --target-file, or set FLEETWAVE_TARGET",
        ));
    }
    Ok(match &arguments.target {
        Some(TargetArgument::Named(target)) => target.clone(),
        Some(TargetArgument::Connection(_)) | None => Target::Hub,
    })
}

fn engine_and_transport(arguments: &Run, target: &Target) -> Result<(Engine, Transport), Contradiction> {
    let wrong = |problem: String, fix| Err(Contradiction { problem, fix });
    match (arguments.engine, arguments.transport) {
        (EngineName::Virtual, Some(transport)) => wrong(
            format!(
                "--transport {} does nothing in the virtual engine, which models the links and sends no bytes",
                name(transport)
            ),
            "leave it out, or add --engine live",
        ),
        (EngineName::Virtual, None) if *target != Target::Hub => wrong(
            format!("the virtual engine has its own hub and cannot run against --target {target}",),
            "leave it out, or add --engine live",
        ),
        (EngineName::Live, Some(TransportName::Memory)) if *target != Target::Hub => wrong(
            format!("--target {target} is reached by TCP, not over --transport memory"),
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
fn replay(arguments: &Run, target: &Target, seed: u64) -> String {
    let mut words = vec!["fleetwave".to_owned(), "run".to_owned(), quoted(&arguments.scenario)];
    let mut flag = |flag: &str, value: &str| words.extend([flag.to_owned(), quoted(value)]);
    if arguments.engine == EngineName::Live {
        flag("--engine", "live");
    }
    match target {
        Target::Hub | Target::Remote(_) => {}
        Target::Rumqttd | Target::Broker { .. } => flag("--target", &target.to_string()),
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
    if let Target::Remote(remote) = target {
        words.extend(Some(remote.arguments.clone()).filter(|arguments| !arguments.is_empty()));
        words.extend(arguments.elsewhere.limit_words());
        words.extend(arguments.mqtt_port.map(|port| format!("--mqtt-port {port}")));
    }
    words.join(" ")
}

/// A word as a shell reads it back.
pub(super) fn quoted(word: &str) -> String {
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
            Command::Run(run) => *run,
            other => panic!("{other:?}"),
        }
    }

    fn parts(arguments: &Run) -> Result<(Engine, Transport), Contradiction> {
        engine_and_transport(arguments, &target(arguments)?)
    }

    #[test]
    fn a_hub_elsewhere_is_run_again_by_its_file_and_its_key_is_nowhere() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("hub.txt");
        let text = "HostName=hub.example;SharedAccessKeyName=owner;SharedAccessKey=c2VjcmV0\n";
        std::fs::write(&path, text).expect("written");
        let path = path.to_str().expect("a path of letters");
        let arguments = run(&["--engine", "live", "--target-file", path, "--tier", "s2", "--yes"]);
        let target = target(&arguments).expect("it is one");
        let again = replay(&arguments, &target, 9);
        let want = format!(
            "fleetwave run quickstart --engine live --seed 9 --target-file {path} --tier S2 --units 1"
        );
        assert_eq!(again, want);
        assert!(!format!("{target:?}{target}{arguments:?}").contains("c2VjcmV0"));
        // As an argument it is read as well, and not repeated.
        let arguments = run(&["--engine", "live", "--target", text.trim()]);
        assert!(!format!("{arguments:?}").contains("c2VjcmV0"));
        let target = super::target(&arguments).expect("it is one");
        assert!(replay(&arguments, &target, 9).ends_with(" --target-file FILE"));
    }

    #[test]
    fn the_virtual_engine_with_the_hub_is_the_default_and_live_runs_on_tcp() {
        assert_eq!(parts(&run(&[])), Ok((Engine::Virtual, Transport::Model)));
        assert_eq!(parts(&run(&["--engine", "live"])), Ok((Engine::Live, Transport::Tcp)));
        let memory = run(&["--engine", "live", "--transport", "memory"]);
        assert_eq!(parts(&memory), Ok((Engine::Live, Transport::Memory)));
    }

    #[test]
    fn contradictions_come_with_their_fix() {
        let contradictions: Vec<String> = [
            &["--transport", "tcp"][..],
            &["--target", "rumqttd"],
            &["--engine", "live", "--target", "rumqttd", "--transport", "memory"],
            &["--engine", "live", "--threads", "2"],
            &["--engine", "live", "--tier", "S1"],
            &["--engine", "live", "--target", "HostName=hub.example;SharedAccessKey=c2VjcmV0"],
            &["--target", "HostName=hub.example;SharedAccessKeyName=owner;SharedAccessKey=c2VjcmV0"],
        ]
        .into_iter()
        .map(|arguments| parts(&run(arguments)).expect_err("they contradict").to_string())
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
            replay(&arguments, &Target::Hub, 9),
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
