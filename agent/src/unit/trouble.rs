//! What keeps a target from its work, told to the hub as `problem` in its section of the reported properties, and on
//! the device: a storage that fails, an installer that cannot say what runs, a journal that has lost records. The
//! machine's own reports say what became of an update; this says what somebody has to mend.

use std::path::Path;
use std::time::Duration;

use fleetwave_agent_core::ResultCode;
use fleetwave_protocol::Instant;
use serde_json::{Map, Value, json};

use super::Unit;
use crate::files;
use crate::target::Target;

/// For `fleetwave-agent status`: there as long as it is not known what a target runs.
const FILE: &str = "problem.json";
/// An installer that fails once may have been asked too early.
const BROKEN: u32 = 2;
/// The pause before the hub is told again that has refused to hear it.
const PAUSE: Duration = Duration::from_secs(60);
/// The most that is said of one, in bytes.
const LONGEST: usize = 300;

/// One problem: a code of the same vocabulary as results, and what somebody can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Trouble {
    code: &'static str,
    detail: String,
}

impl Trouble {
    pub(super) fn new(code: &'static str, detail: impl Into<String>) -> Self {
        let mut detail = detail.into();
        detail.truncate(detail.floor_char_boundary(LONGEST));
        Self { code, detail }
    }

    pub(super) fn code(&self) -> &'static str {
        self.code
    }

    pub(super) fn detail(&self) -> &str {
        &self.detail
    }

    fn told(&self) -> Value {
        json!({"code": self.code, "detail": self.detail})
    }
}

/// All that a target may have at a time, and what the hub knows of it.
#[derive(Debug, Default)]
pub(super) struct Troubles {
    /// It is not known what runs.
    pub(super) standing: Option<Trouble>,
    /// What failed its trial cannot be left.
    pub(super) leaving: Option<Trouble>,
    /// The journal cannot be written.
    pub(super) journal: Option<Trouble>,
    /// What is fetched cannot be kept.
    pub(super) payload: Option<Trouble>,
    /// The journal has lost records.
    pub(super) damage: Option<Trouble>,
    /// What the hub has: whether the target is broken, and its problem. `None` if that is not known.
    told: Option<(bool, Value)>,
    /// It is on its way.
    sent: Option<(bool, Value)>,
    retry: Option<Instant>,
}

impl Troubles {
    /// The one that matters most.
    fn current(&self) -> Option<&Trouble> {
        let all = [&self.standing, &self.leaving, &self.journal, &self.payload, &self.damage];
        all.into_iter().find_map(Option::as_ref)
    }
}

impl Unit {
    /// What is wrong, if anything is; or what the update waits for that somebody can change.
    pub(super) fn problem(&self) -> Value {
        self.troubles.current().map(Trouble::told).or_else(|| self.waits()).unwrap_or_default()
    }

    /// That the update under way costs more than may be downloaded now, and when it goes on, in seconds since 1970.
    fn waits(&self) -> Option<Value> {
        let opens = self.agent()?.capped_until()?;
        let detail =
            "the update needs more bytes than this window of [ledger] has left: it goes on in the next one";
        let code = ResultCode::OverWindowCap.name();
        Some(json!({"code": code, "detail": detail, "until": opens.as_unix_millis() / 1000}))
    }

    /// It is not known what it runs, and was not for a while.
    pub(super) fn is_broken(&self) -> bool {
        self.machine.is_none() && self.troubles.standing.is_some() && self.failures >= BROKEN
    }

    /// Keeps what is wrong for `fleetwave-agent status`, or that nothing is any more.
    pub(super) fn keep_problem(&self) {
        let path = self.dir.join(FILE);
        let kept = match &self.troubles.standing {
            Some(trouble) => std::fs::create_dir_all(&self.dir)
                .and_then(|()| files::replace(&path, trouble.told().to_string().as_bytes())),
            None if path.exists() => files::remove(&path),
            None => Ok(()),
        };
        if let Err(error) = kept {
            tracing::warn!(target = %self.target, %error, "`status` will not know what is wrong");
        }
    }

    /// What the hub knows of it: the reported properties of the device.
    pub(crate) fn hub_knows(&mut self, reported: Option<&Value>) {
        let section = reported.and_then(|reported| section(reported, &self.target));
        let member = |name| section.and_then(|section| section.get(name));
        let broken = member("state").is_some_and(|state| state == "broken");
        let problem = member("problem").cloned().unwrap_or_default();
        let cause = member("cause").cloned();
        self.troubles.told = Some((broken, problem));
        self.causes.hub_has(cause.as_ref());
    }

    /// The machine reports: a target that does is not broken.
    pub(crate) fn speaks(&mut self) {
        if let Some((broken, _)) = &mut self.troubles.told {
            *broken = false;
        }
    }

    /// What the hub knew, and what was on its way to it, is of a connection that is no more.
    pub(crate) fn hub_forgets(&mut self) {
        (self.troubles.told, self.troubles.sent, self.troubles.retry) = (None, None, None);
    }

    /// Whether something about a problem is on its way to the hub.
    pub(crate) fn is_complaining(&self) -> bool {
        self.troubles.sent.is_some()
    }

    /// The merge patch that tells the hub what is wrong, if it does not know.
    pub(crate) fn complaint(&mut self) -> Option<Map<String, Value>> {
        let told = self.troubles.told.as_ref()?;
        if self.troubles.sent.is_some() || self.troubles.retry.is_some() {
            return None;
        }
        let broken = self.is_broken();
        // What happens once, while nothing is known yet, may be over before it is told.
        let problem = if self.machine.is_some() || broken { self.problem() } else { return None };
        if *told == (broken, problem.clone()) {
            return None;
        }
        let mut patch = Map::from_iter([("problem".to_owned(), problem.clone())]);
        if broken {
            patch.insert("state".to_owned(), "broken".into());
        }
        self.troubles.sent = Some((broken, problem));
        let (outer, inner) = names(&self.target);
        let patch = match inner {
            Some(inner) => Value::Object(Map::from_iter([(inner.to_owned(), patch.into())])),
            None => patch.into(),
        };
        Some(Map::from_iter([(outer.to_owned(), patch)]))
    }

    /// How the hub answered.
    pub(crate) fn complained(&mut self, status: u16, now: Instant) {
        let sent = self.troubles.sent.take();
        match status {
            429 | 500.. => self.troubles.retry = Some(now + PAUSE),
            // What it refuses for good is not said again.
            _ => self.troubles.told = sent,
        }
    }

    /// When a complaint may be tried again.
    pub(super) fn complaint_due(&self) -> Option<Instant> {
        self.troubles.retry
    }

    pub(super) fn ring_complaint(&mut self, now: Instant) {
        if self.troubles.retry.is_some_and(|retry| retry <= now) {
            self.troubles.retry = None;
        }
    }
}

/// The problem that is kept in a target's directory, if it is not known what it runs.
pub(crate) fn kept_problem(dir: &Path) -> Option<Value> {
    serde_json::from_slice(&std::fs::read(dir.join(FILE)).ok()?).ok()
}

fn names(target: &Target) -> (&str, Option<&str>) {
    match target.as_str().split_once('.') {
        Some((outer, inner)) => (outer, Some(inner)),
        None => (target.as_str(), None),
    }
}

/// The section of a target in a patch of reported properties.
pub(super) fn section_mut<'a>(
    patch: &'a mut Map<String, Value>,
    target: &Target,
) -> Option<&'a mut Map<String, Value>> {
    let (outer, inner) = names(target);
    let outer = patch.get_mut(outer)?;
    match inner {
        Some(inner) => outer.get_mut(inner)?.as_object_mut(),
        None => outer.as_object_mut(),
    }
}

fn section<'a>(reported: &'a Value, target: &Target) -> Option<&'a Value> {
    let (outer, inner) = names(target);
    let outer = reported.get(outer)?;
    inner.map_or(Some(outer), |inner| outer.get(inner))
}
