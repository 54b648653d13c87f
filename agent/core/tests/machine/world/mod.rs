//! A small world for one agent: a device with a boot loader, two slots, a journal and a payload store; a hub with
//! its twin; a cloud side that grants links; a blob store; a clock. It carries out effects in order, and checks the
//! design's invariants at each of them. What goes wrong is scripted, placed at an effect, or drawn from a seed.
//!
//! Only what is in [`Disk`] survives a power cut.

mod cloud;
mod device;
mod invariants;
mod script;

use std::collections::BTreeMap;
use std::time::Duration;

use ed25519_dalek::SigningKey;
use fleetwave_agent_core::{
    Agent, Context, Durable, Effect, Event, Policy, ReleaseId, Releases, ResultCode, State, TrustRoot, sign,
    twin,
};
use fleetwave_protocol::time::{Instant, Now, WallTime};
use serde_json::{Map, Value, json};

pub(crate) use self::script::{Cut, Disk, Fetching, Happening, Script};
use self::script::{Item, Slot};
use crate::coverage::{Cause, Coverage};
use crate::hub::Hub;
use crate::luck::Luck;

pub(crate) const SIZE: u64 = 65_536;
pub(crate) const NET: Duration = Duration::from_millis(40);
pub(crate) const REBOOT: Duration = Duration::from_secs(30);
pub(crate) const DAY: Duration = Duration::from_secs(86_400);
/// 2026-01-01 00:00:00 UTC.
pub(crate) const MIDNIGHT: u64 = 1_767_225_600_000;

pub(crate) struct World {
    pub(crate) releases: Releases,
    pub(crate) policy: Policy,
    pub(crate) now: Now,
    pub(crate) agent: Agent,
    pub(crate) disk: Disk,
    pub(crate) hub: Hub,
    pub(crate) script: Script,
    pub(crate) luck: Option<Luck>,
    /// Every effect but wake-ups and news for observers.
    pub(crate) effects: Vec<(Instant, Effect)>,
    pub(crate) states: Vec<State>,
    pub(crate) coverage: Coverage,
    /// Outcomes that the journal recorded or the hub was told.
    pub(crate) codes: Vec<ResultCode>,
    powered: bool,
    running: usize,
    connection: u32,
    work: u32,
    /// The fetch under way: of what, from which byte, since when.
    fetching: Option<(ReleaseId, u64, Instant)>,
    /// Bytes that the update under way has cost, as a ledger on disk has it.
    pub(crate) spent: u64,
    /// Bytes that were ever fetched.
    pub(crate) spent_in_all: u64,
    /// The ledger knows of whole payloads alone: what is fetched by chunks it would count wrongly.
    pub(crate) ledger_counts: bool,
    /// Seconds by which the device's calendar is ahead.
    pub(crate) clock_is_off_by: i64,
    /// What was said to those who wanted the update to end.
    pub(crate) aborts: Vec<bool>,
    verified: bool,
    healthy: bool,
    persisting: bool,
    wake: Option<Instant>,
    queue: BTreeMap<(Instant, u64), Item>,
    serial: u64,
    idle_turns: u32,
    /// The newest version of the desired properties that the agent was seen to know.
    pub(crate) seen_version: u64,
}

pub(crate) fn key(n: u8) -> SigningKey {
    SigningKey::from_bytes(&[n; 32])
}

pub(crate) fn reference(id: &str, sequence: u64, downgrade: bool) -> Map<String, Value> {
    sign(id, sequence, SIZE, &[sequence as u8; 32], downgrade, &[("k1", &key(1))])
}

pub(crate) fn catalogue() -> Releases {
    Releases::new(TrustRoot::new(vec![("k1".into(), key(1).verifying_key())], 1))
}

/// Short delays, so that a test's arithmetic is easy, and a splay that is there.
pub(crate) fn policy() -> Policy {
    Policy { splay: Duration::from_secs(10), ..Policy::default() }
}

impl World {
    /// A device that runs `fw-1` (sequence 1), switched on, and a hub whose twin asks for nothing.
    pub(crate) fn new(seed: u64) -> Self {
        let mut releases = catalogue();
        let first = releases.preinstalled("fw-1", 1);
        Self {
            agent: Agent::new(seed, first),
            releases,
            policy: policy(),
            now: Now { at: Instant::ZERO, wall: WallTime::from_unix_millis(MIDNIGHT + 12 * 3_600_000) },
            disk: Disk {
                journal: Vec::new(),
                initial: Durable::new(first),
                slots: [Some(Slot { release: first, verified: true }), None],
                default: 0,
                armed: false,
                payload: None,
            },
            hub: Hub::default(),
            script: Script::default(),
            luck: None,
            effects: Vec::new(),
            states: Vec::new(),
            coverage: Coverage::default(),
            codes: Vec::new(),
            powered: false,
            running: 0,
            connection: 0,
            work: 0,
            fetching: None,
            spent: 0,
            spent_in_all: 0,
            ledger_counts: true,
            clock_is_off_by: 0,
            aborts: Vec::new(),
            verified: false,
            healthy: false,
            persisting: false,
            wake: None,
            queue: BTreeMap::new(),
            serial: 0,
            idle_turns: 0,
            seen_version: 0,
        }
        .switched_on()
    }

    fn switched_on(mut self) -> Self {
        self.push(Duration::ZERO, Item::Boot);
        self
    }

    // The operator.

    pub(crate) fn desire(&mut self, firmware: Map<String, Value>) {
        let cause = if self.hub.wants_firmware() { Cause::Supersede } else { Cause::Start };
        // As an operator does who replaces the whole section: what the new one lacks goes.
        let mut patch = firmware;
        if let Some(Value::Object(old)) = self.hub.desired.get("firmware") {
            for name in old.keys() {
                patch.entry(name.clone()).or_insert(Value::Null);
            }
            if let (Some(Value::Object(signatures)), Some(Value::Object(new))) =
                (old.get("sigs"), patch.get_mut("sigs"))
            {
                for name in signatures.keys() {
                    new.entry(name.clone()).or_insert(Value::Null);
                }
            }
        }
        self.patch(cause, json!({ "firmware": patch }));
    }

    pub(crate) fn cancel(&mut self) {
        self.patch(Cause::Cancel, json!({"firmware": {"cancel": true}}));
    }

    pub(crate) fn remove(&mut self) {
        self.patch(Cause::Cancel, json!({"firmware": null}));
    }

    /// Somebody on the device wants the update to end.
    pub(crate) fn abort(&mut self) {
        if self.powered {
            self.coverage.count(self.agent.state(), Cause::Abort);
            self.handle(Event::Abort);
        }
    }

    pub(crate) fn patch(&mut self, cause: Cause, patch: Value) {
        self.coverage.count(self.agent.state(), cause);
        let body = self.hub.patch(&patch);
        if self.hub.connected {
            self.push_patch(&body);
        }
    }

    fn push_patch(&mut self, body: &[u8]) {
        let lost = self.script.lost_patches > 0;
        self.script.lost_patches = self.script.lost_patches.saturating_sub(1);
        if lost || self.struck(10) {
            return;
        }
        let copies = 1 + u32::from(self.struck(10));
        for copy in 0..copies {
            let item = Item::Patch(self.connection, self.hub.version, body.to_vec());
            self.push(NET + NET * copy, item);
        }
    }

    fn struck(&mut self, one_in: u64) -> bool {
        self.luck.as_mut().is_some_and(|luck| luck.strikes(self.now.at, one_in))
    }

    pub(crate) fn hub_goes_away(&mut self, span: Duration) {
        self.drop_link();
        self.hub.away = true;
        self.push(span, Item::HubBack);
    }

    pub(crate) fn drop_link(&mut self) {
        if self.powered {
            self.coverage.count(self.agent.state(), Cause::Disconnect);
        }
        if self.hub.connected {
            self.hub.connected = false;
            self.connection += 1;
            self.push(Duration::ZERO, Item::Hub(self.connection, Event::Disconnected));
        }
    }

    // Time.

    fn push(&mut self, after: Duration, item: Item) {
        self.serial += 1;
        self.queue.insert((self.now.at + after, self.serial), item);
    }

    fn hear(&mut self, after: Duration, event: Event) {
        let copies = 1 + u32::from(self.struck(10));
        for copy in 0..copies {
            self.push(after + NET * copy, Item::Hub(self.connection, event));
        }
    }

    fn advance_to(&mut self, at: Instant) {
        let span = at.since(self.now.at);
        self.now.at = at;
        let wall = MIDNIGHT + 12 * 3_600_000 + at.as_micros() / 1000;
        self.now.wall = WallTime::from_unix_millis(wall.saturating_add_signed(self.clock_is_off_by * 1000));
        self.idle_turns = if span.is_zero() { self.idle_turns + 1 } else { 0 };
        assert!(self.idle_turns < 200, "the machine turns without time passing in {:?}", self.agent);
    }

    /// Takes the next thing that happens; false when nothing ever will.
    pub(crate) fn step(&mut self) -> bool {
        let next = self.queue.first_key_value().map(|(&(at, _), _)| at);
        let timer = self.wake.filter(|_| self.powered);
        match (next, timer) {
            (None, None) => return false,
            (Some(at), timer) if timer.is_none_or(|timer| at <= timer) => {
                self.advance_to(at);
                let (_, item) = self.queue.pop_first().expect("just seen");
                self.take(item);
            }
            (_, Some(timer)) => {
                self.wake = None;
                self.advance_to(timer);
                self.handle(Event::Timer);
            }
            (Some(_), None) => unreachable!("taken above"),
        }
        true
    }

    /// Runs until nothing more happens.
    pub(crate) fn run(&mut self) {
        let mut turns = 0;
        while self.step() {
            turns += 1;
            assert!(turns < 50_000, "never comes to rest: {:?}", self.agent);
        }
    }

    /// Runs until the agent has entered `state`; panics if that does not happen.
    pub(crate) fn run_to(&mut self, state: State) {
        while self.agent.state() != state || !self.powered {
            assert!(self.step(), "rests in {:?} and never gets to {state:?}", self.agent.state());
        }
    }

    pub(crate) fn run_for(&mut self, span: Duration) {
        let end = self.now.at + span;
        loop {
            let next = self.queue.first_key_value().map(|(&(at, _), _)| at);
            let next = next.into_iter().chain(self.wake.filter(|_| self.powered)).min();
            match next {
                Some(at) if at <= end => _ = self.step(),
                _ => break,
            }
        }
        self.advance_to(end);
    }

    fn take(&mut self, item: Item) {
        match item {
            Item::HubBack => self.hub.away = false,
            Item::Boot => self.boot(),
            _ if !self.powered => {}
            Item::Hub(connection, event) => {
                if connection != self.connection {
                    return;
                }
                match event {
                    Event::Connected { .. } if self.hub.away => self.handle(Event::Disconnected),
                    Event::Connected { .. } => {
                        self.hub.connected = true;
                        self.handle(event);
                    }
                    _ => self.handle(event),
                }
            }
            Item::Patch(connection, version, body) => {
                if connection == self.connection {
                    let before = self.agent.desired();
                    let read =
                        twin::read_patch(&body, before, &mut self.releases).expect("the hub sends JSON");
                    self.handle(Event::Desired { version, desired: read.unwrap_or(before) });
                }
            }
            Item::Device(event) => self.handle(event),
            Item::Work(number, work) => {
                if number == self.work {
                    let event = self.finish(work);
                    self.handle(event);
                }
            }
            Item::Persist(record, result) => {
                self.persisted(record, result);
                self.handle(Event::Persisted(result));
            }
            Item::Commit(result) => {
                self.committed(result);
                self.handle(Event::SlotCommitted(result));
            }
        }
    }

    /// Gives the machine an event and carries out what comes back.
    pub(crate) fn handle(&mut self, event: Event) {
        let mut out = Vec::new();
        let cx = Context { policy: &self.policy, releases: &self.releases };
        self.agent.handle(&cx, self.now, event, &mut out);
        for effect in out {
            if !self.perform(effect) {
                return;
            }
        }
        self.check_versions();
    }

    /// The number of the first such effect.
    pub(crate) fn position(&self, is: impl Fn(&Effect) -> bool) -> usize {
        self.effects.iter().position(|(_, effect)| is(effect)).expect("there is such an effect")
    }

    /// Runs until one more fetch has begun, or all is at rest.
    pub(crate) fn run_to_fetch_or_rest(&mut self) {
        let fetches = |world: &Self| world.count(|effect| matches!(effect, Effect::Fetch { .. }));
        let before = fetches(self);
        while fetches(self) == before && self.step() {}
    }

    pub(crate) fn count(&self, is: impl Fn(&Effect) -> bool) -> usize {
        self.effects.iter().filter(|(_, effect)| is(effect)).count()
    }
}
