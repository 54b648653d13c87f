//! `installer = "component"`: a program beside the firmware. Its releases are archives; after a switch its systemd
//! unit is started anew, or a command of the operator is run.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::Deserialize;
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use super::owner::OwnerName;
use super::switch::{Runner, Switch, Version};
use super::unpack::{Rules, unpack};
use super::{InstallError, Installer, Site};
use crate::command::{About, Command, Program};
use crate::config::Rows;
use crate::health::{Checks, Verdict};

/// How long systemd may take for a unit: longer than its own limit for a start.
const SYSTEMD: Duration = Duration::from_secs(180);

/// The installer's part of a component's section.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Options {
    /// The component's directory.
    dir: Dir,
    /// The systemd unit that runs it.
    unit: Option<UnitName>,
    /// What is done to the unit after a switch.
    #[serde(default)]
    unit_action: Action,
    /// Run after each switch, forth and back, after the unit's action.
    restart_command: Option<Command>,
    /// Who owns the files.
    owner: Option<OwnerName>,
    /// How a release on trial is judged.
    #[serde(default)]
    health: Checks,
    /// How long the unit must have run without a restart of its own.
    #[serde(default = "steady")]
    steady_seconds: u64,
    /// The most files, directories and links of a release.
    #[serde(default = "files")]
    max_files: u64,
    /// The most bytes of a release, unpacked.
    #[serde(default = "bytes")]
    max_bytes: u64,
    /// Whether the payload is kept: what the next one has in common with it is not fetched again.
    #[serde(default)]
    keep_payload: bool,
    /// Whether files may run as their owner.
    #[serde(default)]
    allow_setuid: bool,
}

fn steady() -> u64 {
    5
}

fn files() -> u64 {
    100_000
}

fn bytes() -> u64 {
    4 << 30
}

/// An absolute path.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "PathBuf")]
struct Dir(PathBuf);

impl TryFrom<PathBuf> for Dir {
    type Error = String;

    fn try_from(path: PathBuf) -> Result<Self, String> {
        if path.is_absolute() { Ok(Self(path)) } else { Err(format!("{}: an absolute path", path.display())) }
    }
}

/// The name of a systemd unit.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "String")]
struct UnitName(String);

impl TryFrom<String> for UnitName {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        let fine = |byte: u8| byte.is_ascii_alphanumeric() || b":-_.\\@".contains(&byte);
        if name.contains('.') && !name.starts_with('-') && name.bytes().all(fine) {
            Ok(Self(name))
        } else {
            Err(format!("{name:?} is not the name of a systemd unit, like app.service"))
        }
    }
}

/// What is done to a unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Action {
    /// It is started, anew if it runs.
    #[default]
    Restart,
    /// It is started anew if it runs.
    TryRestart,
    /// It is told to read its files, or started anew if it cannot.
    ReloadOrRestart,
    /// Nothing: it sees for itself.
    None,
}

impl super::Options for Options {
    fn installer(&self, site: Site) -> Rc<dyn Installer> {
        let component = Component { target: site.target.as_str().to_owned(), options: self.clone() };
        Rc::new(Switch::new(component, self.dir.0.clone(), site))
    }

    fn trial(&self) -> Option<(String, u64)> {
        let unit = self.unit.as_ref().map(|unit| format!("{} runs for {} s", unit.0, self.steady_seconds));
        let checks: Vec<String> = unit.into_iter().chain(self.health.name()).collect();
        (!checks.is_empty()).then(|| (checks.join(" and "), self.health.deadline_seconds))
    }

    fn describe(&self) -> Rows {
        let dir = ("directory", self.dir.0.display().to_string());
        let unit = self.unit.as_ref().map(|unit| ("unit", unit.0.clone()));
        std::iter::once(dir).chain(unit).collect()
    }
}

#[derive(Debug)]
struct Component {
    target: String,
    options: Options,
}

impl Component {
    /// What systemd says of the unit.
    async fn unit(&self) -> Verdict {
        let Some(UnitName(unit)) = &self.options.unit else { return Verdict::Healthy };
        let show = ["show", "--property=ActiveState", "--property=NRestarts", "--", unit];
        let said = match Program::new("systemctl").args(show).succeed().await {
            Ok(output) => String::from_utf8_lossy(&output).into_owned(),
            Err(error) => return Verdict::NotYet(error.to_string()),
        };
        let property = |name: &str| said.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        let restarts = property("NRestarts").and_then(|number| number.parse::<u64>().ok()).unwrap_or(0);
        match property("ActiveState") {
            _ if restarts > 0 => Verdict::Broken(format!("{unit} ended by itself, and was started again")),
            Some("active") => Verdict::Healthy,
            Some(state @ ("activating" | "reloading" | "refreshing")) => {
                Verdict::NotYet(format!("{unit} is {state}"))
            }
            state => Verdict::Broken(format!("{unit} is {}", state.unwrap_or("unknown to systemd"))),
        }
    }

    /// Has systemd forget how often the unit has failed. What another release did is not this one's fault, and after
    /// some starts in a row systemd starts nothing more for a while: not even the release that is gone back to.
    async fn forgive(&self, unit: &str) {
        let forgotten = Program::new("systemctl").args(["reset-failed", "--", unit]).succeed().await;
        // A unit that was never started has nothing to forget.
        let _ = forgotten.inspect_err(|error| tracing::debug!(target = self.target, %error, "not forgiven"));
    }
}

impl Runner for Component {
    async fn unpack(&self, payload: &Path, into: &Path) -> Result<(), InstallError> {
        let rules = Rules {
            files: self.options.max_files,
            bytes: self.options.max_bytes,
            setuid: self.options.allow_setuid,
            owner: self.options.owner.as_ref().map(OwnerName::resolve).transpose()?,
        };
        unpack_apart(payload, into, rules).await
    }

    fn keeps_payload(&self) -> bool {
        self.options.keep_payload
    }

    async fn start(
        &self,
        _: Option<&Version>,
        to: Option<&Version>,
        phase: &str,
    ) -> Result<(), InstallError> {
        if let Some(UnitName(unit)) = &self.options.unit {
            let action = match self.options.unit_action {
                // There was nothing before the first release.
                _ if to.is_none() => Some("stop"),
                Action::Restart => Some("restart"),
                Action::TryRestart => Some("try-restart"),
                Action::ReloadOrRestart => Some("reload-or-restart"),
                Action::None => None,
            };
            if to.is_some() {
                self.forgive(unit).await;
            }
            if let Some(action) = action {
                let done =
                    Program::new("systemctl").args([action, "--", unit]).within(SYSTEMD).succeed().await;
                // What systemctl says last names other commands, and not always the unit.
                done.map_err(|error| InstallError::Command(format!("{unit}: {error}")))?;
            }
        }
        if let Some(command) = &self.options.restart_command {
            let about = to.map_or_else(
                || About { target: self.target.clone(), release: None },
                |to| About::reference(&self.target, &to.reference),
            );
            let dir = to.map(|to| to.dir.clone()).unwrap_or_default();
            command.program().about(&about, phase).env("FLEETWAVE_DIR", dir).succeed().await?;
        }
        Ok(())
    }

    async fn healthy(&self, running: &Version) -> Result<(), InstallError> {
        let about = About::reference(&self.target, &running.reference);
        let env = [("FLEETWAVE_DIR", OsString::from(&running.dir))];
        let health = &self.options.health;
        let look = async || match self.unit().await {
            Verdict::Healthy => health.ask(&about, &env).await,
            verdict => verdict,
        };
        health.until(look).await?;
        if self.options.unit.is_some() {
            sleep(Duration::from_secs(self.options.steady_seconds)).await;
            if let Verdict::Broken(why) | Verdict::NotYet(why) = self.unit().await {
                return Err(InstallError::Unhealthy(why));
            }
        }
        Ok(())
    }
}

/// Unpacks on another thread, which ends soon after nobody waits for it any more.
pub(super) async fn unpack_apart(payload: &Path, into: &Path, rules: Rules) -> Result<(), InstallError> {
    struct GivenUp(Arc<AtomicBool>);

    impl Drop for GivenUp {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    let given_up = GivenUp(Arc::default());
    let (payload, into, seen) = (payload.to_owned(), into.to_owned(), Arc::clone(&given_up.0));
    let unpacked = spawn_blocking(move || unpack(&payload, &into, &rules, &seen)).await;
    unpacked.unwrap_or_else(|error| Err(InstallError::Payload(error.to_string())))
}

#[cfg(test)]
mod tests;
