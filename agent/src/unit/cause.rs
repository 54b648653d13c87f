//! Why an update failed, in words. The code says what kind of failure it was; the cause says which check, which hook,
//! which answer of which server. It goes to the hub beside the code, in the same report, and it is kept on disk: what
//! fails its trial is reported by another life, and often by another process.

use std::fmt::Display;
use std::path::Path;

use fleetwave_agent_core::twin::{Progress, Status, write_section};
use fleetwave_agent_core::{Event, FIRMWARE, LockAnswer, Release, ReleaseId, ResultCode};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::Unit;
use super::trouble::{Trouble, section_mut};
use crate::files;

/// In the target's directory, from before the record that an update failed until one has ended well.
const FILE: &str = "cause.json";
/// The most that is said, in bytes: a hundred thousand twins hold one.
const LONGEST: usize = 200;
/// What a value follows that is nobody's business.
const SECRETS: [&str; 6] = ["sig=", "key=", "token=", "password=", "passwd=", "secret="];

/// What a target knows of failures.
#[derive(Debug, Default)]
pub(super) struct Causes {
    /// What a step said that failed, and the code with which an update ends that ends by it.
    noted: Option<(ResultCode, String)>,
    kept: Option<Kept>,
    /// The hub has one, or may have.
    told: bool,
}

/// The cause of the last failure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    id: String,
    seq: u64,
    code: String,
    cause: String,
}

impl Kept {
    fn read(dir: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(dir.join(FILE)).ok()?).ok()
    }

    fn is_of(&self, release: &Release, code: ResultCode) -> bool {
        *self.id == *release.id && self.seq == release.sequence && self.code == code.name()
    }
}

impl Causes {
    /// What an earlier process has kept.
    pub(super) fn recall(dir: &Path) -> Self {
        Self { kept: Kept::read(dir), ..Self::default() }
    }

    /// An update that ends because of its journal may not have a record of that.
    pub(super) fn journal_fails(&mut self, trouble: &Trouble) {
        let code = ResultCode::from_name(trouble.code());
        self.noted = code.map(|code| (code, bounded(trouble.detail())));
    }

    /// What the hub has: the target's reported `cause`.
    pub(super) fn hub_has(&mut self, cause: Option<&Value>) {
        self.told = cause.is_some_and(|cause| !cause.is_null());
    }
}

/// Why the last update failed, if it is kept in a target's directory.
pub(crate) fn kept_cause(dir: &Path, release: &Release, code: ResultCode) -> Option<String> {
    Kept::read(dir).filter(|kept| kept.is_of(release, code)).map(|kept| kept.cause)
}

/// The code with which an update ends that cannot get past this.
pub(super) fn code(event: &Event) -> Option<ResultCode> {
    match event {
        Event::FetchFailed { error, .. } | Event::Planned(Err(error)) => Some(error.code()),
        Event::Verified(Err(error)) => Some(error.code()),
        Event::Staged(Err(error)) | Event::NotActivated(error) => Some(error.code()),
        Event::Health(Err(_)) => Some(ResultCode::Unhealthy),
        Event::SlotCommitted(Err(_)) => Some(ResultCode::CommitFailed),
        Event::Locks(LockAnswer::Held) => Some(ResultCode::LockTimeout),
        _ => None,
    }
}

impl Unit {
    /// Remembers what failed, should the update end by it.
    pub(crate) fn note(&mut self, code: ResultCode, why: impl Display) {
        self.causes.noted = Some((code, bounded(&why.to_string())));
    }

    /// The update is about to end with `code`, or to go back because of it: keeps the cause, before that is durable.
    pub(super) fn keep_cause(&mut self, release: ReleaseId, code: ResultCode) {
        let noted = self.causes.noted.take().filter(|(of, _)| *of == code).map(|(_, cause)| cause);
        // The numbers say more than that there is a cap.
        let capped = matches!(code, ResultCode::OverUpdateCap | ResultCode::OverWindowCap);
        let noted = noted.filter(|_| !capped);
        let release = &self.releases[release];
        if !code.is_failure() {
            self.keep(None);
            return;
        }
        // What was noted for a trial is kept from before the device went back.
        let known = self.causes.kept.as_ref().is_some_and(|kept| kept.is_of(release, code));
        if noted.is_none() && known {
            return;
        }
        let cause = noted.or_else(|| self.reckon(release, code).map(|cause| bounded(&cause)));
        let kept = cause.map(|cause| Kept {
            id: release.id.to_string(),
            seq: release.sequence,
            code: code.name().to_owned(),
            cause,
        });
        self.keep(kept);
    }

    fn keep(&mut self, kept: Option<Kept>) {
        if self.causes.kept == kept {
            return;
        }
        let path = self.dir.join(FILE);
        let written = match &kept {
            Some(kept) => std::fs::create_dir_all(&self.dir)
                .and_then(|()| Ok(serde_json::to_vec(kept)?))
                .and_then(|text| files::replace(&path, &text)),
            None => files::remove(&path),
        };
        if let Err(error) = written {
            tracing::warn!(target = %self.target, %error, "another process will not know why the update failed");
        }
        self.causes.kept = kept;
    }

    /// Why `release` failed with `code`, if that is known.
    pub(super) fn cause(&self, release: ReleaseId, code: ResultCode) -> Option<&str> {
        let kept = self.causes.kept.as_ref().filter(|kept| kept.is_of(&self.releases[release], code));
        // A record that could not be made durable is the end of an update that was not kept.
        let noted = || self.causes.noted.as_ref().filter(|(of, _)| *of == code).map(|(_, cause)| &**cause);
        kept.map(|kept| &*kept.cause).or_else(noted)
    }

    /// The merge patch that reports `status`, with the cause of a failure beside its code.
    pub(crate) fn report(&mut self, status: &Status) -> Map<String, Value> {
        let mut report = write_section(status, self.plan.as_ref(), self.target.as_str(), &self.releases);
        let cause = match status.progress {
            Progress::Failed(release, code) => self.cause(release, code).map(str::to_owned),
            Progress::Idle(_) | Progress::Updating(..) => None,
        };
        // One that the hub has does not stay beside another code.
        if (cause.is_some() || self.causes.told)
            && let Some(section) = section_mut(&mut report, &self.target)
        {
            self.causes.told = true;
            section.insert("cause".to_owned(), cause.into());
        }
        report
    }

    /// What the machine itself has decided, and by which numbers.
    fn reckon(&self, release: &Release, code: ResultCode) -> Option<String> {
        let caps = self.policy.caps;
        Some(match code {
            ResultCode::Downgrade => {
                let runs = self.agent().map(|agent| self.releases[agent.committed()].sequence)?;
                format!(
                    "its seq {} is below {runs}, which runs, and it is not signed as a downgrade",
                    release.sequence
                )
            }
            ResultCode::WrongTarget => {
                let meant = release.target.as_deref().unwrap_or(FIRMWARE);
                format!("it is signed for {meant}, and asked for as {}", self.target)
            }
            ResultCode::Incompatible => {
                let own = self.device_type.as_deref().unwrap_or("not configured");
                format!("it is for {}, and this device's type is {own}", release.compatible.join(", "))
            }
            ResultCode::TooLarge => {
                let most = self.policy.slot_size;
                format!("it has {} bytes, and `slot_bytes` in [limits] allows {most}", release.size)
            }
            ResultCode::OverUpdateCap => {
                let most = caps?.per_update;
                match self.plan.filter(|_| release.delta.is_some() || release.size <= most) {
                    Some(plan) => format!(
                        "it needs {} bytes more after {}, and one update may cost {most}",
                        plan.bytes, plan.spent
                    ),
                    None => format!("it has {} bytes, and one update may cost {most}", release.size),
                }
            }
            ResultCode::OverWindowCap => {
                let most = caps?.per_window;
                match self.plan.filter(|plan| plan.bytes > most) {
                    Some(plan) => format!("it needs {} bytes, and a whole window has {most}", plan.bytes),
                    None => "it got no further, window after window".to_owned(),
                }
            }
            ResultCode::GrantTimeout => {
                "no link to the payload came, however often it was asked for".to_owned()
            }
            ResultCode::StartLoop => {
                format!("begun {} times, and it never stayed", self.policy.start_attempts)
            }
            ResultCode::BootFailed => {
                "it did not come up, or did not stay up: what was committed runs again".to_owned()
            }
            ResultCode::ProbationTimeout if self.healthy => {
                let why = self.offline.as_deref().map(|why| format!(": {why}")).unwrap_or_default();
                format!("it was healthy, and did not reach the hub in time{why}")
            }
            ResultCode::ProbationTimeout => "its health checks did not end in time".to_owned(),
            _ => return None,
        })
    }
}

/// One line, not longer than is told, and of links no more than where they lead.
fn bounded(text: &str) -> String {
    let mut line = String::new();
    for word in
        text.split(|char: char| char.is_whitespace() || char.is_control()).filter(|word| !word.is_empty())
    {
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(&discreet(word));
        if line.len() > LONGEST {
            line.truncate(line.floor_char_boundary(LONGEST - '…'.len_utf8()));
            line.push('…');
            break;
        }
    }
    line
}

fn discreet(word: &str) -> String {
    let mut word = word.to_owned();
    if let Some(at) = word.find("://").map(|at| at + 3) {
        let end = word[at..].find('/').map_or(word.len(), |end| at + end);
        if let Some(user) = word[at..end].rfind('@') {
            word.replace_range(at..=at + user, "");
        }
        if let Some(query) = word[at..].find(['?', '#']) {
            word.truncate(at + query);
            word.push_str("?…");
        }
    }
    let lower = word.to_ascii_lowercase();
    let secret = SECRETS.iter().filter_map(|name| Some(lower.find(name)? + name.len())).min();
    if let Some(at) = secret.filter(|at| *at < word.len()) {
        word.truncate(at);
        word.push('…');
    }
    word
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_one_short_line() {
        assert_eq!(bounded("  the check\n\tsaid:\u{1b} no\r\n"), "the check said: no");
        let long = bounded(&"ä ".repeat(500));
        assert!(long.len() <= LONGEST && long.ends_with("ä…"), "{long}");
        assert_eq!(bounded(&"x".repeat(LONGEST)).len(), LONGEST);
        assert!(bounded(&"x".repeat(LONGEST + 1)).ends_with("x…"));
        assert_eq!(bounded(" \n"), "");
    }

    #[test]
    fn of_a_link_it_says_where_it_leads_and_no_signature_and_no_password() {
        for (said, told) in [
            (
                "GET https://s.blob.example/fw-2?sv=1&sig=abc%3D failed",
                "GET https://s.blob.example/fw-2?… failed",
            ),
            ("<https://user:pass@host/a@b>: away", "<https://host/a@b>: away"),
            ("http://host?sig=abc", "http://host?…"),
            ("SharedAccessSignature sr=hub&sig=abc&se=1", "SharedAccessSignature sr=hub&sig=…"),
            ("HostName=h;SharedAccessKey=c2VjcmV0", "HostName=h;SharedAccessKey=…"),
            ("PASSWORD=hunter2", "PASSWORD=…"),
            ("token= is empty", "token= is empty"),
        ] {
            assert_eq!(bounded(said), told);
        }
    }
}
