//! The device: its power, its slots, and how effects are carried out on it.

use std::sync::Arc;
use std::time::Duration;

use fleetwave_agent_core::{
    Boot, Durable, Effect, Event, FetchError, HealthError, InstallError, LockAnswer, Plan, Record,
    StorageError, VerifyError,
};

use super::script::{Cut, Fetching, Happening, Item, Payload, Slot, Work};
use super::{NET, REBOOT, SIZE, World};
use crate::coverage::Cause;

/// How long a whole download takes; a part of it takes its share.
const FETCH: Duration = Duration::from_secs(20);

impl World {
    pub(super) fn boot(&mut self) {
        let candidate = 1 - self.disk.default;
        let armed = std::mem::take(&mut self.disk.armed);
        let boots = |slot: &Slot| !self.script.dead.contains(&&*self.releases[slot.release].id);
        let up = self.disk.slots[candidate].as_ref().is_some_and(boots);
        let unlucky = armed && self.struck(5);
        self.running = if armed && up && !unlucky { candidate } else { self.disk.default };
        self.powered = true;
        if self.running == candidate
            && let Some(span) = self.script.hub_away_in_trial.take()
        {
            self.hub.away = true;
            self.push(span, Item::HubBack);
        }
        let durable = self.durable();
        let boot = Boot {
            durable,
            running: self.slot(self.running).release,
            committed: self.slot(self.disk.default).release,
            partial: self.disk.payload.map_or(0, |payload| payload.bytes),
        };
        self.handle(Event::Booted(boot));
    }

    pub(crate) fn durable(&self) -> Durable {
        self.disk.journal.iter().fold(self.disk.initial, |mut durable, &record| {
            durable.apply(record);
            durable
        })
    }

    /// The slot that ran before the last update boots by default again.
    pub(crate) fn old_slot_comes_back(&mut self) {
        self.disk.default = 1 - self.disk.default;
    }

    pub(super) fn slot(&self, index: usize) -> Slot {
        self.disk.slots[index].expect("invariant 2: the slot that boots holds a release")
    }

    pub(crate) fn running(&self) -> Arc<str> {
        self.releases[self.slot(self.running).release].id.clone()
    }

    /// The power goes, and comes back.
    pub(crate) fn power_cut(&mut self) {
        if self.powered {
            self.coverage.count(self.agent.state(), Cause::Cut);
        }
        self.goes_down();
    }

    pub(super) fn goes_down(&mut self) {
        self.powered = false;
        self.hub.connected = false;
        self.connection += 1;
        self.work += 1;
        self.verified = false;
        self.healthy = false;
        self.persisting = false;
        self.wake = None;
        self.queue.retain(|_, item| matches!(item, Item::HubBack));
        self.push(REBOOT, Item::Boot);
    }

    /// Carries an effect out; false if the device is down after it.
    pub(super) fn perform(&mut self, effect: Effect) -> bool {
        match effect {
            Effect::Wake(at) => {
                assert!(at >= self.now.at, "a deadline in the past was not handled");
                self.wake = Some(at);
                return true;
            }
            Effect::Entered(state) => {
                self.states.push(state);
                return true;
            }
            _ => {}
        }
        let number = self.effects.len();
        self.effects.push((self.now.at, effect));
        while self.script.happenings.front().is_some_and(|&(at, _)| at <= number) {
            let (_, happening) = self.script.happenings.pop_front().expect("just seen");
            match happening {
                Happening::Cut(cut) => {
                    self.cut_at(effect, cut);
                    return false;
                }
                Happening::Desire(firmware) => self.desire(firmware),
                Happening::Cancel => self.cancel(),
                Happening::Remove => self.remove(),
                Happening::Abort => {
                    self.coverage.count(self.agent.state(), Cause::Abort);
                    self.push(Duration::ZERO, Item::Device(Event::Abort));
                }
                Happening::Drop => self.drop_link(),
            }
        }
        if let Some(luck) = &mut self.luck {
            if luck.strikes(self.now.at, 40) {
                let cut = [Cut::Before, Cut::Midway, Cut::After][luck.pick(3)];
                self.cut_at(effect, cut);
                return false;
            }
            if luck.strikes(self.now.at, 40) {
                let span = Duration::from_secs(luck.pick(900) as u64);
                if luck.pick(2) == 0 { self.drop_link() } else { self.hub_goes_away(span) }
            }
        }
        self.carry_out(effect)
    }

    pub(super) fn cut_at(&mut self, effect: Effect, cut: Cut) {
        match (cut, effect) {
            (Cut::Before, _) => {}
            (Cut::Midway, Effect::Fetch { release, offset }) => {
                self.check_fetch(release, offset);
                let more = (self.releases[release].size - offset) / 2;
                self.finish(Work::Fetch(release, offset, Fetching::Fails(more, FetchError::Interrupted)));
            }
            (Cut::Midway, Effect::Stage(_)) => {
                self.check_stage();
                self.disk.slots[1 - self.disk.default] = None;
            }
            (Cut::Midway, _) => {}
            (Cut::After, Effect::Fetch { release, offset }) => {
                self.check_fetch(release, offset);
                self.finish(Work::Fetch(release, offset, Fetching::Whole));
            }
            (Cut::After, Effect::Stage(release)) => {
                self.check_stage();
                self.finish(Work::Stage(release, Ok(())));
            }
            (Cut::After, Effect::Persist(record)) => self.persisted(record, Ok(())),
            (Cut::After, Effect::CommitSlot) => {
                self.check_commit();
                self.committed(Ok(()));
            }
            (Cut::After, _) => _ = self.carry_out(effect),
        }
        self.power_cut();
    }

    pub(super) fn carry_out(&mut self, effect: Effect) -> bool {
        match effect {
            Effect::Wake(_) | Effect::Entered(_) => unreachable!("no work"),
            Effect::Connect => {
                self.connection += 1;
                self.hub.connected = false;
                if self.hub.away {
                    self.hear(NET, Event::Disconnected);
                } else {
                    self.hear(NET, Event::Connected { session_present: false });
                }
            }
            Effect::Disconnect => {
                self.hub.connected = false;
                self.connection += 1;
            }
            Effect::Subscribe | Effect::AnswerGrant { .. } => _ = self.arrives(),
            Effect::GetTwin { .. } => self.read_twin(),
            Effect::Report { rid, status } => self.report(rid, status),
            Effect::RequestGrant { release } => self.grant(release),
            Effect::Fetch { release, offset } => {
                self.check_fetch(release, offset);
                self.check_cost(release, offset);
                let outcome = self.script.fetches.pop_front().unwrap_or_else(|| {
                    self.luck.as_mut().map_or(Fetching::Whole, |luck| luck.fetching(self.now.at))
                });
                self.fetching = Some((release, offset, self.now.at));
                let missing = self.releases[release].size - offset;
                let stalls = if self.script.stalls { 1_000 } else { 1 };
                self.work(
                    stalls * FETCH.mul_f64(missing as f64 / SIZE as f64),
                    Work::Fetch(release, offset, outcome),
                );
            }
            Effect::AbortFetch => self.work += 1,
            Effect::PauseFetch => {
                let (release, offset, began) = self.fetching.take().expect("something is being fetched");
                let moves = u64::from(!self.script.stalls);
                let more =
                    moves * SIZE * self.now.at.since(began).as_millis() as u64 / FETCH.as_millis() as u64;
                self.work += 1;
                self.work(NET, Work::Fetch(release, offset, Fetching::Fails(more, FetchError::Stopped)));
            }
            Effect::Plan { release, offset } => {
                let unlucky = self.luck.as_mut().and_then(|luck| luck.planning(self.now.at));
                let plan = self.script.plans.pop_front().or(unlucky);
                let plan = plan.unwrap_or(Ok(Plan::full(self.releases[release].size, offset)));
                let plan = plan.map(|plan| Plan { spent: plan.spent.max(self.spent), ..plan });
                self.work(Duration::from_secs(2), Work::Plan(plan));
            }
            Effect::AskLocks => {
                let unlucky = self.struck(3).then_some(Some(LockAnswer::Held));
                let answer = self.script.locks.pop_front().or(unlucky).unwrap_or(Some(LockAnswer::Free));
                if let Some(answer) = answer {
                    self.push(Duration::from_millis(10), Item::Device(Event::Locks(answer)));
                }
            }
            Effect::AnswerAbort { taken } => self.aborts.push(taken),
            Effect::Discard => {
                self.work += 1;
                self.disk.payload = None;
                self.verified = false;
            }
            Effect::Verify(_) => self.work(Duration::from_secs(1), Work::Verify),
            Effect::Stage(release) => {
                self.check_stage();
                self.disk.slots[1 - self.disk.default] = None;
                let result = self.script.stage.pop_front().or_else(|| self.storage_luck(20).map(Into::into));
                let result = result.map_or(Ok(()), Err);
                self.work(Duration::from_secs(3), Work::Stage(release, result));
            }
            Effect::Persist(record) => {
                assert!(!self.persisting, "two records at once");
                self.persisting = true;
                let error = self.script.persist.and_then(|fails| fails(record));
                let result = error.or_else(|| self.storage_luck(20)).map_or(Ok(()), Err);
                self.push(Duration::from_millis(5), Item::Persist(record, result));
            }
            Effect::RebootIntoCandidate => {
                self.check_reboot();
                let unlucky = self.struck(20).then_some(InstallError::Failed);
                if let Some(error) = self.script.activate.pop_front().or(unlucky) {
                    self.push(Duration::from_secs(1), Item::Device(Event::NotActivated(error)));
                    return true;
                }
                self.disk.armed = true;
                self.goes_down();
                return false;
            }
            Effect::RebootIntoCommitted => {
                self.goes_down();
                return false;
            }
            Effect::CheckHealth => {
                let sick = self.script.sick.contains(&&*self.running());
                let unlucky = self.struck(10);
                self.healthy = !sick && !unlucky;
                let result = if self.healthy { Ok(()) } else { Err(HealthError) };
                if !self.script.endless_checks {
                    self.push(Duration::from_secs(5), Item::Device(Event::Health(result)));
                }
            }
            Effect::CommitSlot => {
                self.check_commit();
                let result =
                    self.script.commit.pop_front().or_else(|| self.storage_luck(20)).map_or(Ok(()), Err);
                self.push(Duration::from_millis(50), Item::Commit(result));
            }
        }
        true
    }

    pub(super) fn storage_luck(&mut self, one_in: u64) -> Option<StorageError> {
        let luck = self.luck.as_mut()?;
        luck.strikes(self.now.at, one_in)
            .then(|| [StorageError::NoSpace, StorageError::ReadOnly, StorageError::Failed][luck.pick(3)])
    }

    pub(super) fn work(&mut self, takes: Duration, work: Work) {
        self.push(takes, Item::Work(self.work, work));
    }

    pub(super) fn finish(&mut self, work: Work) -> Event {
        match work {
            Work::Fetch(release, offset, outcome) => {
                let size = self.releases[release].size;
                let came = if let Fetching::Fails(more, _) = outcome {
                    more.min(size - offset)
                } else {
                    size - offset
                };
                self.spent += came;
                self.spent_in_all += came;
                let kept = self.disk.payload.filter(|_| offset > 0);
                let genuine = kept.is_none_or(|payload| payload.genuine);
                let keep = |bytes, genuine| Some(Payload { release, bytes, genuine });
                self.verified = false;
                let (payload, event) = match outcome {
                    Fetching::Whole => (keep(size, genuine), Event::Fetched),
                    Fetching::Corrupted => (keep(size, false), Event::Fetched),
                    Fetching::Short => (keep(size - 1, genuine), Event::Fetched),
                    Fetching::Fails(more, error) => {
                        let durable = (offset + more).min(size);
                        (keep(durable, genuine), Event::FetchFailed { error, durable })
                    }
                };
                self.disk.payload = payload;
                event
            }
            Work::Verify => {
                let payload = self.disk.payload;
                let result = match payload {
                    Some(Payload { release, bytes, .. }) if bytes != self.releases[release].size => {
                        Err(VerifyError::Size)
                    }
                    Some(Payload { genuine: true, .. }) => Ok(()),
                    _ => Err(VerifyError::Digest),
                };
                self.verified = result.is_ok();
                Event::Verified(result)
            }
            Work::Plan(plan) => Event::Planned(plan),
            Work::Stage(release, result) => {
                if result.is_ok() {
                    self.disk.slots[1 - self.disk.default] = Some(Slot { release, verified: self.verified });
                }
                Event::Staged(result)
            }
        }
    }

    pub(super) fn persisted(&mut self, record: Record, result: Result<(), StorageError>) {
        self.persisting = false;
        if let Record::Ended(_, code) = record {
            self.codes.push(code);
            self.spent = 0;
        }
        if result.is_ok() {
            self.disk.journal.push(record);
        }
    }

    pub(super) fn committed(&mut self, result: Result<(), StorageError>) {
        if result.is_ok() {
            let (new, old) = (self.slot(self.running).release, self.slot(self.disk.default).release);
            let (new, old) = (&self.releases[new], &self.releases[old]);
            assert!(
                new.sequence >= old.sequence || new.downgrade,
                "invariant 3: {} after {}",
                new.id,
                old.id
            );
            self.disk.default = self.running;
        }
    }
}
