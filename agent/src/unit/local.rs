//! A release that was asked for at the device itself. The machine is told that the twin asks for it, and gets its bytes
//! from a file; while there is no hub, its place is taken here.

use std::cell::RefCell;
use std::fs::File;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use fleetwave_agent_core::twin::{Desired, Progress};
use fleetwave_agent_core::{
    Agent, Context, Effect, Event, GrantAnswer, Plan, Policy, ReleaseId, ResultCode, State,
};
use fleetwave_protocol::WallTime;

use super::{Step, Unit};
use crate::install::Reference;
use crate::local::{Stick, Wish};

/// What was asked for here, in the life of a unit.
pub(crate) struct Local {
    wish: Wish,
    /// In this life's catalogue.
    release: ReleaseId,
    /// The payload, if it was handed over; where there is none its path is tried.
    file: Option<Arc<File>>,
    /// What the hub asks for meanwhile.
    pub(crate) hub: Desired,
    /// Why the payload could not be copied.
    trouble: Rc<RefCell<Option<String>>>,
}

impl Unit {
    /// Takes up what was asked for in an earlier life.
    pub(super) fn recall(&mut self) {
        let Some(wish) = self.local.take().map(|local| (local.wish, local.file)) else { return };
        self.put(wish.0, wish.1);
    }

    /// Takes up what stands in the directory.
    pub(super) fn recall_from_disk(&mut self) {
        if let Some(wish) = Wish::read(&self.dir) {
            tracing::info!(target = %self.target, source = %wish.source.display(), "goes on with what was asked for here");
            self.put(wish, None);
        }
    }

    fn put(&mut self, wish: Wish, file: Option<Arc<File>>) {
        let release = self.releases.intern(&wish.reference);
        self.policy = local_policy(&self.base, wish.now, wish.needs_hub);
        // What is told of its cost.
        self.plan = Some(free());
        self.local = Some(Local { wish, release, file, hub: Desired::Nothing, trouble: Rc::default() });
    }

    /// What the machine is told that the twin asks for, which says `hub`.
    pub(crate) fn wanted(&mut self, hub: Desired) -> Desired {
        match &mut self.local {
            Some(local) => {
                local.hub = hub;
                Desired::Release(local.release)
            }
            None => hub,
        }
    }

    /// What the twin asked for last: the base for reading the next patch.
    pub(crate) fn hub_desired(&self) -> Option<Desired> {
        let agent = self.agent()?;
        Some(self.local.as_ref().map_or_else(|| agent.desired(), |local| local.hub))
    }

    /// Whether something was asked for here that has not ended.
    pub(crate) fn is_local(&self) -> bool {
        self.local.is_some()
    }

    /// Whether it is this release, as it was signed.
    pub(crate) fn is_wish_for(&self, reference: &Reference) -> bool {
        self.local.as_ref().is_some_and(|local| local.wish.is_for(reference))
    }

    /// Whether the hub's place is taken while there is none. Not for what has to show that it reaches the hub.
    pub(crate) fn stands_in(&self) -> bool {
        self.local
            .as_ref()
            .is_some_and(|local| !local.wish.needs_hub || self.state() != Some(State::Probation))
    }

    /// Answers for the hub, which is not there; gives back what cannot be answered.
    pub(crate) fn answer_for_hub(&mut self, effect: Effect) -> Option<Effect> {
        let Some(local) = self.local.as_ref().filter(|_| self.stands_in()) else { return Some(effect) };
        match effect {
            Effect::Connect => self.hear(Event::Connected { session_present: true }),
            Effect::GetTwin { .. } => {
                // Nothing is left to be reported: nobody would hear it.
                let (desired, reported) = (Desired::Release(local.release), self.agent().map(Agent::status));
                self.hear(Event::Twin { version: 0, desired, reported });
            }
            Effect::Report { rid, .. } => self.hear(Event::Reported { rid, status: 204 }),
            effect => return Some(effect),
        }
        None
    }

    fn is_wished(&self, release: ReleaseId) -> bool {
        self.local.as_ref().is_some_and(|local| self.releases.same(local.release, release))
    }

    /// Carries out what concerns a payload that is here; gives back all else.
    pub(super) fn perform_here(&mut self, effect: Effect) -> Option<Effect> {
        match effect {
            Effect::RequestGrant { release } if self.is_wished(release) => {
                let expires = WallTime::from_unix_millis(u64::MAX);
                self.hear(Event::Grant { release, answer: GrantAnswer::Granted { expires } });
            }
            // It costs nothing, and is never put together from pieces.
            Effect::Plan { release, .. } if self.is_wished(release) => {
                self.hear(Event::Planned(Ok(free())));
            }
            effect => return Some(effect),
        }
        None
    }

    /// Copies the payload, if it is here; false if it is not.
    pub(super) fn copy(&mut self, release: ReleaseId, offset: u64) -> bool {
        if !self.is_wished(release) {
            return false;
        }
        let place = self.place(release);
        let Some(local) = &mut self.local else { return false };
        let release = &self.releases[release];
        match place {
            Err(error) => self.events.push_back(Event::FetchFailed { error, durable: offset }),
            Ok(place) => {
                let source = local.wish.source.clone();
                tracing::info!(target = %self.target, release = &*release.id, offset, source = %source.display(), "copies");
                // Once: a stick that was pulled out and put back is another file.
                let copying = self.payload.copy((local.file.take(), source), place, release.clone(), offset);
                let trouble = local.trouble.clone();
                self.go(async move {
                    let (event, why) = copying.await;
                    trouble.replace(why.clone());
                    Step::Event(event, why)
                });
                self.fetching = true;
            }
        }
        true
    }

    /// Why the payload could not be copied, told once.
    pub(crate) fn trouble(&mut self) -> Option<String> {
        let why = self.local.as_ref()?.trouble.take()?;
        let durable = self.durable(self.local.as_ref()?.release);
        Some(format!(
            "{why} ({durable} of {} bytes are durable)",
            self.releases[self.local.as_ref()?.release].size
        ))
    }

    /// What is wrong with the target, if anything is, in words.
    pub(crate) fn complains(&self) -> Option<String> {
        let detail = self.problem().get("detail")?.as_str()?.to_owned();
        Some(format!("{}: {detail}", self.target))
    }

    /// Looks at a release that is asked for here: whether it would be taken, if it may be now.
    ///
    /// # Errors
    /// Why it would not.
    pub(crate) fn examine(&mut self, reference: &Reference) -> Result<ReleaseId, ResultCode> {
        let release = self.releases.intern(reference);
        let policy = local_policy(&self.base, true, false);
        let cx = Context { policy: &policy, releases: &self.releases };
        match self.agent() {
            Some(agent) if !self.releases.same(release, agent.committed()) => agent.may_take(&cx, release)?,
            _ => self.releases[release].trust.and(self.releases[release].fit)?,
        }
        Ok(release)
    }

    /// Takes on what was asked for here. From now on it is wanted in place of what the hub wants.
    ///
    /// # Errors
    /// If it cannot be made durable.
    pub(crate) fn wish(&mut self, stick: &Stick, now: bool, connected: bool) -> std::io::Result<()> {
        let again = self.local.as_ref().filter(|local| local.wish.is_for(&stick.reference));
        let is_again = again.is_some();
        let wish = match again {
            // The same update goes on.
            Some(local) => {
                let now = now || local.wish.now;
                Wish { source: stick.source.clone(), now, needs_hub: connected, ..local.wish.clone() }
            }
            None => Wish::new(stick.reference.clone(), stick.source.clone(), now, connected),
        };
        wish.write(&self.dir)?;
        let hub = self.hub_desired().unwrap_or_default();
        self.put(wish, Some(stick.file.clone()));
        if let Some(local) = &mut self.local {
            local.hub = hub;
        }
        let in_flight = self.agent().and_then(Agent::in_flight);
        let works = matches!(
            self.state(),
            Some(State::Downloading | State::Verifying | State::Staging | State::Rebooting)
        );
        if in_flight.is_some_and(|release| self.is_wished(release))
            && !self.on_trial()
            && !(is_again && works)
        {
            // What it waits for has come, or does not matter any more: goes on from what is durable.
            self.step = None;
            self.begin(Duration::ZERO);
        } else {
            self.hear(Event::Connected { session_present: true });
        }
        Ok(())
    }

    /// How what was asked for here has ended, if it has.
    pub(crate) fn local_ended(&self) -> Option<(ReleaseId, ResultCode)> {
        let (release, agent) = (self.local.as_ref()?.release, self.agent()?);
        let resting = matches!(agent.state(), State::Idle | State::Failed) && agent.in_flight().is_none();
        let heard = agent.is_online() && agent.desired() == Desired::Release(release);
        if !resting || !heard || !self.events.is_empty() {
            return None;
        }
        if self.releases.same(agent.committed(), release) {
            return Some((release, ResultCode::Ok));
        }
        match agent.status().progress {
            Progress::Failed(_, code) => Some((release, code)),
            _ => Some((release, ResultCode::Aborted)),
        }
    }

    /// It has ended: the hub's word counts again.
    pub(crate) fn forget_wish(&mut self, connected: bool) {
        if let Err(error) = Wish::remove(&self.dir) {
            // The next start finds it ended, as the journal says.
            tracing::error!(target = %self.target, %error, "what was asked for here cannot be removed");
        }
        self.local = None;
        self.plan = None;
        self.policy = self.base.clone();
        self.hear(if connected { Event::Connected { session_present: true } } else { Event::Disconnected });
    }

    /// How much of what was asked for here is durable, and its size.
    pub(crate) fn how_far(&self) -> Option<(u64, u64)> {
        let local = self.local.as_ref()?;
        Some((self.payload.position(), self.releases[local.release].size))
    }

    /// Where the payload comes from that was asked for here.
    pub(crate) fn source(&self) -> Option<&Path> {
        self.local.as_ref().map(|local| &*local.wish.source)
    }
}

/// What a payload costs that is here.
const fn free() -> Plan {
    Plan { bytes: 0, requests: 0, ..Plan::full(0, 0) }
}

/// What is different for a release that is here: its bytes cost nothing and wait for no window, a payload that does not
/// match will not match the next time, and somebody stands beside the device.
fn local_policy(base: &Policy, now: bool, needs_hub: bool) -> Policy {
    Policy {
        splay: Duration::ZERO,
        verify_attempts: 1,
        download_window: None,
        install_window: base.install_window.filter(|_| !now),
        caps: None,
        probation_needs_hub: base.probation_needs_hub && needs_hub,
        ..base.clone()
    }
}
