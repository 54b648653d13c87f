//! What the machine of a unit asks for, carried out, and what comes of it.

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task;
use std::time::Duration;

use fleetwave_agent_core::{
    Agent, Effect, Event, FetchError, HealthError, LockAnswer, Record, ReleaseId, ResultCode, VerifyError,
};

use super::trouble::Trouble;
use super::{Offer, Parked, Step, Unit, cause};
use crate::crash;
use crate::files::{remedy, storage_error};
use crate::install::{Activated, Place, Standing};

impl Unit {
    /// Carries out an effect; gives it back if it is for the device to carry out.
    pub(crate) fn perform(&mut self, effect: Effect) -> Option<Effect> {
        crash::point(named(effect));
        match self.perform_here(effect)? {
            Effect::Fetch { release, offset } => self.parked = Some(Parked::Fetch { release, offset }),
            Effect::RebootIntoCandidate => self.parked = Some(Parked::Activate),
            Effect::RebootIntoCommitted => {
                let installer = Rc::clone(&self.installer);
                self.go(async move { Step::GoneBack(installer.go_back().await) });
                self.unsettled = true;
            }
            Effect::AbortFetch => self.stop(),
            // What has come is kept, and the download itself says how much that is.
            Effect::PauseFetch if self.fetching => self.payload.pause(),
            Effect::PauseFetch => {
                self.stop();
                let durable =
                    self.agent().and_then(Agent::in_flight).map_or(0, |release| self.durable(release));
                self.events.push_back(Event::FetchFailed { error: FetchError::Stopped, durable });
            }
            Effect::Plan { release, offset } => {
                let (release, seeds) = (self.releases[release].clone(), self.installer.seeds());
                let planning = self.payload.plan(&self.fetcher, self.links.clone(), release, offset, seeds);
                self.go(async move { Step::Event(Event::Planned(planning.await), None) });
            }
            Effect::AskLocks => {
                let asking = self.locks.held(self.about());
                let target = self.target.clone();
                self.go(async move {
                    let held = asking.await;
                    if let Some(reason) = &held {
                        tracing::info!(%target, %reason, "waits: a lock is held");
                    }
                    let answer = if held.is_some() { LockAnswer::Held } else { LockAnswer::Free };
                    Step::Event(Event::Locks(answer), held.map(|reason| reason.to_string()))
                });
            }
            Effect::Discard => {
                self.stop();
                // First what says that there is something.
                let discarded = self.payload.discard().and_then(|()| self.installer.discard());
                if let Err(error) = discarded {
                    tracing::error!(target = %self.target, %error, "what was fetched cannot be removed");
                }
            }
            Effect::Verify(release) => self.verify(release),
            Effect::Stage(release) => {
                let staging = Rc::clone(&self.installer).stage(self.releases[release].clone());
                self.go(async move {
                    let staged = staging.await;
                    let staged = staged.inspect_err(|error| tracing::error!(%error, "not staged"));
                    let why = staged.as_ref().err().map(ToString::to_string);
                    Step::Event(Event::Staged(staged.map_err(|error| error.told())), why)
                });
            }
            Effect::Persist(record) => {
                if let Record::Reverting(release, code) | Record::Ended(release, code) = record {
                    self.keep_cause(release, code);
                }
                let Some(machine) = &mut self.machine else { return None };
                let durable = machine.journal.append(record, &self.releases);
                self.troubles.journal = durable.as_ref().err().map(|error| {
                    self.counters.journal_failed(self.target.as_str());
                    self.storage_fails(error, "the journal cannot be written")
                });
                if let Some(trouble) = &self.troubles.journal {
                    self.causes.journal_fails(trouble);
                }
                if let Record::Ended(release, code) = record {
                    // What became of it is told by its code.
                    self.troubles.payload = None;
                    self.last = Some((release, code));
                    self.counters.ended(self.target.as_str(), code);
                }
                if matches!(record, Record::Started(_)) && !self.is_local() {
                    // What another update was to cost.
                    self.plan = None;
                }
                if let (Ok(()), Record::Ended(release, code)) = (&durable, record) {
                    let spent = self.fetcher.ledger().ended(&self.releases[release]);
                    self.outcomes.push(self.outcome(release, code, &spent));
                }
                if let (Ok(()), Record::Ended(release, ResultCode::Ok)) = (&durable, record) {
                    if self.troubles.damage.take().is_some()
                        && let Some(machine) = &self.machine
                    {
                        machine.journal.forget_damage();
                    }
                    let reference = self.releases[release].reference();
                    self.stands(&Standing { running: reference.clone(), committed: reference.clone() });
                }
                self.events.push_back(Event::Persisted(durable.map_err(|error| storage_error(&error))));
            }
            Effect::CheckHealth => {
                let checking = Rc::clone(&self.installer).healthy();
                self.health = Some(Box::pin(async move {
                    let healthy = checking.await;
                    let healthy = healthy.inspect_err(|error| tracing::error!(%error, "not healthy"));
                    let why = healthy.as_ref().err().map(ToString::to_string);
                    Step::Event(Event::Health(healthy.map_err(|_| HealthError)), why)
                }));
            }
            Effect::CommitSlot => {
                let committing = Rc::clone(&self.installer).commit();
                self.go(async move {
                    let committed = committing.await;
                    let committed = committed.inspect_err(|error| tracing::error!(%error, "not committed"));
                    let why = committed.as_ref().err().map(ToString::to_string);
                    Step::Event(Event::SlotCommitted(committed.map_err(|error| error.storage())), why)
                });
            }
            Effect::Wake(at) => {
                if let Some(machine) = &mut self.machine {
                    machine.wake = Some(at);
                }
            }
            Effect::Entered(state) => {
                self.counters.entered(self.target.as_str(), state.name());
                tracing::info!(target = %self.target, state = state.name(), "entered");
                return Some(effect);
            }
            effect => return Some(effect),
        }
        None
    }

    pub(super) fn go(&mut self, step: impl Future<Output = Step> + 'static) {
        self.fetching = false;
        self.step = Some(Box::pin(step));
    }

    /// Stops what is under way with the payload.
    fn stop(&mut self) {
        self.step = None;
        self.fetching = false;
        self.parked = None;
    }

    /// Takes the grant that was offered, or not; gives back the method that is to be answered.
    pub(crate) fn take_offer(&mut self, accepted: bool) -> Option<String> {
        let Offer { links, method } = self.offer.take()?;
        if accepted {
            self.links = links;
        }
        method
    }

    /// Begins what was parked: its turn has come.
    pub(crate) fn unpark(&mut self) {
        match self.parked.take() {
            None => {}
            Some(Parked::Fetch { release, offset }) => self.fetch(release, offset),
            Some(Parked::Activate) => {
                let activating = Rc::clone(&self.installer).activate();
                self.go(async move { Step::Activated(activating.await) });
                self.unsettled = true;
            }
        }
    }

    fn fetch(&mut self, release: ReleaseId, offset: u64) {
        if self.copy(release, offset) {
            return;
        }
        let place = self.place(release);
        let release = &self.releases[release];
        // The machine fetches only while a grant is good that it has taken; without a link it asks for a new one.
        let (links, place) = match (self.links.clone().ok_or(FetchError::Forbidden), place) {
            (Ok(links), Ok(place)) => (links, place),
            (Err(error), _) | (_, Err(error)) => {
                self.events.push_back(Event::FetchFailed { error, durable: offset });
                return;
            }
        };
        tracing::info!(target = %self.target, release = &*release.id, offset, size = release.size, "fetches");
        let fetching = self.payload.fetch(&self.fetcher, links, place, release.clone(), offset);
        self.go(async move { Step::Event(fetching.await, None) });
        self.fetching = true;
    }

    /// Where the payload goes.
    pub(super) fn place(&self, release: ReleaseId) -> Result<Place, FetchError> {
        self.installer.place(&self.releases[release]).map_err(|error| {
            tracing::error!(target = %self.target, %error, "there is no place for the payload");
            match error.kind() {
                io::ErrorKind::FileTooLarge => FetchError::Unfit,
                _ => FetchError::Storage(storage_error(&error)),
            }
        })
    }

    fn verify(&mut self, release: ReleaseId) {
        let release = self.releases[release].clone();
        match self.installer.place(&release) {
            Ok(place) => {
                let verifying = self.payload.verify(place, release);
                self.go(async move { Step::Event(verifying.await, None) });
            }
            Err(error) => {
                tracing::error!(target = %self.target, %error, "the payload has no place");
                self.events.push_back(Event::Verified(Err(VerifyError::Unreadable)));
            }
        }
    }

    /// Something durable could not be written: tells what to do about it.
    fn storage_fails(&self, error: &io::Error, what: &str) -> Trouble {
        let told = storage_error(error);
        let remedy = remedy(told);
        tracing::error!(target = %self.target, %error, dir = %self.dir.display(), remedy, "{what}");
        Trouble::new(told.code().name(), format!("{what} in {}: {error}: {remedy}", self.dir.display()))
    }

    /// The step that has come to its end.
    pub(crate) fn poll(&mut self, cx: &mut task::Context<'_>) -> task::Poll<Step> {
        for slot in [&mut self.step, &mut self.health] {
            if let Some(step) = slot
                && let task::Poll::Ready(done) = Pin::new(step).poll(cx)
            {
                *slot = None;
                return task::Poll::Ready(done);
            }
        }
        task::Poll::Pending
    }

    /// Goes on after a step; says so if that concerns the device.
    pub(crate) fn done(&mut self, step: Step) -> Option<Activated> {
        match step {
            Step::Stood(Ok(standing)) => self.stood(&standing),
            Step::Stood(Err(error)) => {
                tracing::error!(target = %self.target, %error, "it cannot be told what runs: tried again later");
                let code = error.told().code().name();
                let trouble = Some(Trouble::new(code, format!("it cannot be told what runs: {error}")));
                if self.troubles.standing != trouble {
                    self.troubles.standing = trouble;
                    self.keep_problem();
                }
                self.begin_later();
                if self.is_broken() {
                    self.counters.entered(self.target.as_str(), "broken");
                }
            }
            Step::Event(event, why) => {
                // What a download says of itself, where the step does not.
                let why = why.or_else(|| self.payload.trouble());
                if let (Some(why), Some(code)) = (why, cause::code(&event)) {
                    self.note(code, why);
                }
                match event {
                    Event::Health(Ok(())) => self.healthy = true,
                    Event::Health(Err(_)) => self.counters.unhealthy(self.target.as_str()),
                    Event::Planned(Ok(plan)) => {
                        self.plan = Some(plan);
                        self.counters.planned(self.target.as_str(), plan.spent.saturating_add(plan.bytes));
                    }
                    Event::FetchFailed { error: FetchError::Storage(error), .. }
                    | Event::Planned(Err(FetchError::Storage(error))) => {
                        self.fetching = false;
                        let detail =
                            format!("the payload cannot be kept where it is installed: {}", remedy(error));
                        tracing::error!(target = %self.target, code = error.code().name(), "{detail}");
                        self.troubles.payload = Some(Trouble::new(error.code().name(), detail));
                    }
                    Event::Fetched | Event::FetchFailed { .. } => {
                        self.fetching = false;
                        self.troubles.payload = None;
                    }
                    _ => {}
                }
                self.events.push_back(event);
            }
            Step::Activated(Ok(Activated::Running)) | Step::GoneBack(Ok(Activated::Running)) => {
                self.failures = 0;
                self.begin(Duration::ZERO);
            }
            Step::Activated(Ok(whole)) | Step::GoneBack(Ok(whole)) => return Some(whole),
            Step::Activated(Err(error)) => {
                tracing::error!(target = %self.target, %error, "not started");
                self.unsettled = false;
                let event = Event::NotActivated(error.told());
                self.note(error.told().code(), error);
                self.events.push_back(event);
            }
            // What failed its trial must not stay because one try to get rid of it failed.
            Step::GoneBack(Err(error)) => {
                tracing::error!(target = %self.target, %error, "not gone back");
                let detail = format!("what failed its trial cannot be left: {error}");
                self.troubles.leaving = Some(Trouble::new(error.told().code().name(), detail));
                self.begin_later();
            }
        }
        None
    }
}

/// An effect as a point at which the power may go.
const fn named(effect: Effect) -> &'static str {
    match effect {
        Effect::Connect => "effect: connect",
        Effect::Subscribe => "effect: subscribe",
        Effect::GetTwin { .. } => "effect: get the twin",
        Effect::Report { .. } => "effect: report",
        Effect::RequestGrant { .. } => "effect: request a grant",
        Effect::AnswerGrant { .. } => "effect: answer a grant",
        Effect::Fetch { .. } => "effect: fetch",
        Effect::Verify(_) => "effect: verify",
        Effect::Stage(_) => "effect: stage",
        Effect::Persist(_) => "effect: persist",
        Effect::RebootIntoCandidate => "effect: reboot into the candidate",
        Effect::RebootIntoCommitted => "effect: reboot into the committed",
        Effect::CheckHealth => "effect: check health",
        Effect::CommitSlot => "effect: commit",
        Effect::Discard => "effect: discard",
        _ => "effect",
    }
}
