//! How long a trial has lasted: an agent that is started again in the middle of one does not begin it anew. Otherwise
//! a release in which the agent itself does not live long would be on trial for ever.

use std::path::{Path, PathBuf};
use std::time::Duration;

use fleetwave_agent_core::Release;
use serde_json::{Value, json};

use crate::files;

/// Beside the files of the target's installer, of which one has its own `trial.json`.
fn path(dir: &Path) -> PathBuf {
    dir.join("probation.json")
}

/// Seconds since the machine was switched on, whatever its clock says.
fn uptime() -> u64 {
    u64::try_from(rustix::system::sysinfo().uptime).unwrap_or_default()
}

/// How long the trial of `release` has lasted that began with its boot of this number. Takes down when it began if this
/// is the first that is heard of it.
pub(super) fn lasts(dir: &Path, release: &Release, boot: u8) -> Duration {
    let now = uptime();
    let this = json!({"id": &*release.id, "seq": release.sequence, "boot": boot});
    let known = std::fs::read(path(dir)).ok().and_then(|text| serde_json::from_slice::<Value>(&text).ok());
    if let Some(known) = known.filter(|known| known["trial"] == this)
        && let Some(since) = known["since"].as_u64()
    {
        return Duration::from_secs(now.saturating_sub(since));
    }
    let text = json!({"trial": this, "since": now}).to_string();
    if let Err(error) = files::replace(&path(dir), text.as_bytes()) {
        tracing::warn!(%error, "if the agent ends in this trial, the next one begins it anew");
    }
    Duration::ZERO
}

/// Nothing is on trial.
pub(super) fn ends(dir: &Path) {
    if path(dir).exists()
        && let Err(error) = files::remove(&path(dir))
    {
        tracing::warn!(%error, "the record of a trial cannot be removed");
    }
}

#[cfg(test)]
mod tests {
    use fleetwave_agent_core::Releases;

    use super::*;

    #[test]
    fn a_trial_begins_once_for_each_boot_of_a_release() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut releases = Releases::default();
        let id = releases.preinstalled("fw-2", 2);
        let release = &releases[id];
        assert_eq!(lasts(dir.path(), release, 1), Duration::ZERO);
        // As if that had been a while ago.
        let text = std::fs::read(path(dir.path())).expect("text");
        let mut record: Value = serde_json::from_slice(&text).expect("JSON");
        let since = record["since"].as_u64().expect("a number");
        let ago = since.min(30);
        record["since"] = (since - ago).into();
        std::fs::write(path(dir.path()), record.to_string()).expect("written");
        assert!(lasts(dir.path(), release, 1) >= Duration::from_secs(ago));
        assert_eq!(lasts(dir.path(), release, 2), Duration::ZERO, "another boot");
        ends(dir.path());
        assert!(!path(dir.path()).exists());
    }
}
