//! What an operator would write for a real agent, so that it does what the scenario says.

use std::fmt::Write as _;
use std::path::Path;

use fleetwave_agent::Config;
use fleetwave_agent_core::Days;

use super::Setting;
use super::machine::Machine;
use crate::rollout;
use crate::scenario::model::{AtDeadline, Group, Scenario, StepWindow};
use crate::scenario::quantity::{Percent, Span, TimeOfDay};

/// How the names of locks end.
const LOCK: &str = "busy";
/// For what may go on to its end, whatever time it is.
const A_YEAR: u64 = 365 * 24 * 60;

/// Whether a file is a device's lock.
pub(super) fn is_lock(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == LOCK)
}

impl Setting {
    /// The configuration of the agent on a device with this machine, whose files are below `files`.
    pub(super) fn config(&self, number: u64, machine: &Machine, files: &Path) -> Result<Config, String> {
        let scenario = self.world.scenario();
        let (agent, installed) = (&scenario.agent, &scenario.fleet.release);
        let id = self.world.fleet().id(number);
        let state = files.join(&id).join("state");
        let mut text = format!(
            "state = {state:?}\n\
             [hub]\nplain = true\nkeep_alive_seconds = {keep_alive}\n\
             connection_string = \"HostName={reach};DeviceId={id};SharedAccessKey={key}\"\n\
             [trust]\nthreshold = {threshold}\n[trust.keys]\n{keys}\
             [limits]\nsplay_seconds = {splay}\nretry_seconds = {retry}\nreconnect_seconds = {reconnect}\n\
             probation_seconds = {probation}\n\
             [reboot]\ncommand = [\"true\"]\n\
             [firmware]\ninstalled = {{ id = {release:?}, seq = {seq} }}\n{machine}",
            state = state.display().to_string(),
            keep_alive = agent.keep_alive.duration().as_secs().clamp(5, 1177),
            reach = self.reach,
            key = self.login.group_key.derive(&id).to_base64(),
            threshold = rollout::THRESHOLD,
            keys = rollout::trusted_keys(),
            release = installed.id,
            seq = installed.seq,
            splay = agent.splay.duration().as_secs_f64(),
            retry = agent.backoff.first.duration().as_secs_f64(),
            reconnect = agent.reconnect.first.duration().as_secs_f64(),
            probation = agent.probation_timeout.duration().as_secs_f64(),
            machine = machine.section(),
        );
        self.write_health(number, &mut text);
        write_limits(scenario, &mut text);
        self.write_locks(number, &files.join(&id), &mut text)?;
        write_windows(self.world.group(self.world.who(number)), &mut text);
        Config::parse(&text, Path::new("agent.toml")).map_err(|error| error.to_string())
    }

    /// A check that fails where the device is one that is not healthy with a release.
    fn write_health(&self, number: u64, text: &mut String) {
        let (fleet, group) = (self.world.fleet(), self.world.who(number).group);
        let releases = self.world.scenario().releases.iter();
        let sick = releases.filter(|release| fleet.health_fails(number, group, release));
        let sick: Vec<String> = sick.map(|release| quoted(&release.id)).collect();
        if !sick.is_empty() {
            let check = format!("case $FLEETWAVE_RELEASE in {}) exit 1;; esac", sick.join("|"));
            line(text, format_args!("checks = [[\"sh\", \"-c\", {check:?}]]"));
        }
    }

    /// A lock that is held for good, on devices that may never be interrupted.
    fn write_locks(&self, number: u64, dir: &Path, text: &mut String) -> Result<(), String> {
        let Some(locks) = &self.world.scenario().agent.locks else { return Ok(()) };
        if self.world.group(self.world.who(number)).busy == Percent::ZERO {
            return Ok(());
        }
        let file = dir.with_extension(LOCK);
        std::fs::write(&file, "reason = \"the scenario says so\"\n").map_err(|error| error.to_string())?;
        let at_deadline = match locks.at_deadline {
            AtDeadline::Proceed => "proceed",
            AtDeadline::GiveUp => "give_up",
        };
        let seconds = |span: Span| span.duration().as_secs().max(1);
        line(text, format_args!("[locks]\nfiles = [{:?}]", file.display().to_string()));
        line(
            text,
            format_args!(
                "retry_seconds = {}\ndeadline_seconds = {}\nat_deadline = {at_deadline:?}",
                seconds(locks.retry),
                seconds(locks.deadline)
            ),
        );
        Ok(())
    }
}

/// When updates may begin, as the simulated devices' policy has it.
fn write_windows(group: &Group, text: &mut String) {
    let minutes = |span: Span| span.duration().as_secs() / 60;
    let hours = |opens: TimeOfDay, lasts: Span| {
        let from = opens.millis() / 60_000;
        let to = (from + minutes(lasts)) % (24 * 60);
        let clock = |minutes: u64| format!("\"{:02}:{:02}\"", minutes / 60, minutes % 60);
        format!("from = {}, to = {}", clock(from), clock(to))
    };
    let step = |window: &StepWindow| {
        let days: Vec<String> =
            window.days.iter().map(|day| format!("{:?}", Days::NAMES[*day as usize])).collect();
        let hours = hours(window.opens, window.lasts);
        format!("days = [{}], {hours}, grace_minutes = {}", days.join(", "), minutes(window.grace))
    };
    let both = group.window.map(|window| hours(window.opens, window.lasts));
    let to_the_end = both.as_ref().map(|hours| format!("{hours}, grace_minutes = {A_YEAR}"));
    let download = group.download_window.as_ref().map(step).or(to_the_end);
    let install = group.install_window.as_ref().map(step).or(both);
    if download.is_some() || install.is_some() {
        line(text, format_args!("[windows]"));
    }
    for (name, window) in [("download", download), ("install", install)] {
        if let Some(window) = window {
            line(text, format_args!("{name} = {{ {window} }}"));
        }
    }
}

fn write_limits(scenario: &Scenario, text: &mut String) {
    if let Some(cap) = scenario.agent.update_cap {
        line(text, format_args!("[ledger]\nper_update = \"{} B\"", cap.bytes()));
    }
}

fn line(text: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(text, "{line}").expect("a string takes everything");
}

/// A word of the shell.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}
