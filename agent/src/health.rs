//! Whether something that was just started works: asked again and again until it does, or its time is over.

use std::ffi::OsString;
use std::time::Duration;

use serde::Deserialize;
use tokio::time::{Instant, sleep, timeout_at};

use crate::command::{About, Command, Program};
use crate::install::InstallError;

/// How a new release is judged, beside what its installer sees itself.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Checks {
    /// Its exit code says whether all is well. It is run until it says so.
    pub command: Option<Command>,
    /// The pause between two tries.
    pub retry_seconds: u64,
    /// How long the release has to become healthy.
    pub deadline_seconds: u64,
}

impl Default for Checks {
    fn default() -> Self {
        Self { command: None, retry_seconds: 2, deadline_seconds: 60 }
    }
}

/// What one look says.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// It works.
    Healthy,
    /// It does not work, but may soon.
    NotYet(String),
    /// It does not work, and waiting will not help.
    Broken(String),
}

impl Checks {
    /// What is asked, for people.
    pub(crate) fn name(&self) -> Option<String> {
        self.command.as_ref().map(|command| format!("{} is content", command.name()))
    }

    /// The command's verdict, once. Without a command all is well.
    pub(crate) async fn ask(&self, about: &About, env: &[(&str, OsString)]) -> Verdict {
        let Some(command) = &self.command else { return Verdict::Healthy };
        let program = command.program().about(about, "health");
        let program = env.iter().fold(program, |program: Program, (name, value)| program.env(name, value));
        match program.succeed().await {
            Ok(_) => Verdict::Healthy,
            Err(error) => Verdict::NotYet(error.to_string()),
        }
    }

    /// Looks until the verdict is final or the time is over.
    pub(crate) async fn until(&self, mut look: impl AsyncFnMut() -> Verdict) -> Result<(), InstallError> {
        let deadline = Instant::now() + Duration::from_secs(self.deadline_seconds);
        let mut last = "it was not looked at".to_owned();
        loop {
            match timeout_at(deadline, look()).await {
                Ok(Verdict::Healthy) => return Ok(()),
                Ok(Verdict::Broken(why)) => return Err(InstallError::Unhealthy(why)),
                Ok(Verdict::NotYet(why)) => {
                    tracing::info!(why, "not healthy yet");
                    last = why;
                }
                // What was last seen says more than that there was no answer.
                Err(_) => {}
            }
            let pause = Duration::from_secs(self.retry_seconds.max(1));
            if Instant::now() + pause >= deadline {
                let seconds = self.deadline_seconds;
                return Err(InstallError::Unhealthy(format!("not healthy within {seconds} s: {last}")));
            }
            sleep(pause).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checks(script: &str, seconds: u64) -> Checks {
        let text = format!(
            "command = ['sh', '-c', '''{script}''']\nretry_seconds = 1\ndeadline_seconds = {seconds}"
        );
        toml::from_str(&text).expect("well-formed")
    }

    async fn judged(checks: &Checks) -> Result<(), String> {
        let about = About { target: "components.app".into(), release: None };
        checks.until(async || checks.ask(&about, &[]).await).await.map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn it_is_asked_until_it_is_content() {
        let dir = tempfile::tempdir().expect("a directory");
        let script = format!("mkdir {0}/1 || mkdir {0}/2 && exit 1; true", dir.path().display());
        assert_eq!(judged(&checks(&script, 60)).await, Ok(()));
        assert!(dir.path().join("2").exists(), "the third time");
    }

    #[tokio::test]
    async fn one_that_never_is_content_is_given_up_with_its_last_words() {
        let error = judged(&checks("echo the database is away >&2; false", 2)).await.expect_err("unhealthy");
        assert!(error.contains("within 2 s") && error.ends_with("the database is away"), "{error}");
    }

    #[tokio::test]
    async fn one_that_can_only_fail_is_not_waited_for() {
        let error = Checks::default().until(async || Verdict::Broken("it is gone".into())).await;
        assert_eq!(error.expect_err("broken").to_string(), "it is gone");
    }

    #[tokio::test]
    async fn without_a_command_all_is_well() {
        assert_eq!(judged(&Checks::default()).await, Ok(()));
    }
}
