//! Whether new firmware works: the system came up, and the operator's own checks are content. Whether it reaches the
//! hub is for the machine to see.

use std::time::Duration;

use serde::Deserialize;

use crate::command::{About, Command, Program};
use crate::health::{Checks, Verdict};
use crate::install::InstallError;

/// `[firmware.probation]`: when new firmware counts as working.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Probation {
    /// What systemd must say of the system.
    system: System,
    /// Programs whose exit code must be 0, all of them.
    checks: Vec<Command>,
    /// The pause between two looks.
    retry_seconds: u64,
    /// How long all this may take.
    deadline_seconds: u64,
}

impl Default for Probation {
    fn default() -> Self {
        Self { system: System::Ignored, checks: Vec::new(), retry_seconds: 5, deadline_seconds: 300 }
    }
}

/// What systemd must say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum System {
    /// Nothing.
    #[default]
    Ignored,
    /// That everything came up.
    Running,
    /// That it came up, perhaps with units that failed.
    Degraded,
}

impl Probation {
    /// What is asked, for people, and within how many seconds it has to be so.
    pub(crate) fn describe(&self) -> Option<(String, u64)> {
        let system = match self.system {
            System::Ignored => None,
            System::Running => Some("systemd says running".to_owned()),
            System::Degraded => Some("systemd says running or degraded".to_owned()),
        };
        let checks = self.checks.iter().map(|check| format!("{} is content", check.name()));
        let all: Vec<String> = system.into_iter().chain(checks).collect();
        (!all.is_empty()).then(|| (all.join(" and "), self.deadline_seconds))
    }

    /// Waits until all is well, or until it is clear that it is not.
    pub(crate) async fn check(&self, about: &About) -> Result<(), InstallError> {
        let limits = Checks {
            command: None,
            retry_seconds: self.retry_seconds,
            deadline_seconds: self.deadline_seconds,
        };
        // What was content once is not asked again.
        let (mut up, mut next) = (self.system == System::Ignored, 0);
        limits
            .until(async || {
                if !up {
                    match self.system().await {
                        Verdict::Healthy => up = true,
                        other => return other,
                    }
                }
                while let Some(check) = self.checks.get(next) {
                    match check.program().about(about, "health").succeed().await {
                        Ok(_) => next += 1,
                        Err(error) => return Verdict::NotYet(error.to_string()),
                    }
                }
                Verdict::Healthy
            })
            .await
    }

    async fn system(&self) -> Verdict {
        let asked =
            Program::new("systemctl").arg("is-system-running").within(Duration::from_secs(30)).run().await;
        let state = match asked {
            // Its exit code says less than the word does.
            Ok(ended) => String::from_utf8_lossy(&ended.output).trim().to_owned(),
            Err(error) => return Verdict::NotYet(error.to_string()),
        };
        match (state.as_str(), self.system) {
            ("running", _) | ("degraded", System::Degraded) => Verdict::Healthy,
            ("degraded", _) => Verdict::Broken(format!("units failed: {}", failed_units().await)),
            ("maintenance" | "offline", _) => {
                Verdict::Broken(format!("systemd says that the system is in {state:?}"))
            }
            (state, _) => Verdict::NotYet(format!("systemd says that the system is {state:?}")),
        }
    }
}

async fn failed_units() -> String {
    let list = Program::new("systemctl").args(["list-units", "--failed", "--plain", "--no-legend"]);
    match list.within(Duration::from_secs(30)).succeed().await {
        Ok(output) => {
            let text = String::from_utf8_lossy(&output).into_owned();
            let names: Vec<&str> =
                text.lines().filter_map(|line| line.split_whitespace().next()).take(8).collect();
            if names.is_empty() { "none any more".to_owned() } else { names.join(", ") }
        }
        Err(error) => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probation(text: &str) -> Probation {
        toml::from_str(text).expect("well-formed")
    }

    async fn judged(text: &str) -> Result<(), String> {
        let about = About { target: "firmware".into(), release: None };
        probation(text).check(&about).await.map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn all_checks_must_be_content_and_the_one_that_is_not_is_named() {
        assert_eq!(judged("").await, Ok(()));
        assert_eq!(
            judged("checks = [['true'], ['sh', '-c', 'test $FLEETWAVE_TARGET = firmware']]").await,
            Ok(())
        );
        let text = "checks = [['true'], ['sh', '-c', 'echo no sensor >&2; false']]\nretry_seconds = 1\ndeadline_seconds = 1";
        let error = judged(text).await.expect_err("unhealthy");
        assert!(error.contains("within 1 s: sh failed") && error.ends_with("no sensor"), "{error}");
    }

    #[tokio::test]
    async fn a_check_that_was_content_is_not_asked_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().display();
        // The first may succeed once only; the second does at its second try.
        let text = format!(
            "checks = [['mkdir', '{path}/once'], ['sh', '-c', 'mkdir {path}/a && exit 1; true']]\nretry_seconds = 1"
        );
        assert_eq!(judged(&text).await, Ok(()));
    }
}
