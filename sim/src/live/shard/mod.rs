//! A device shard: one thread, and everything that its devices are, in arrays.
//!
//! The thread waits for bytes, results, orders and timers, lets one device after the other act, and owns all that it
//! touches. Parts: what agents ask for ([`agent_side`]), what comes from the hub ([`hub_side`]), downloads
//! ([`payload`]), a hub that is not ours ([`outside`]), power ([`power`]), real agents ([`real`]), planted trouble ([`trouble`]), and what is expected of devices ([`expect`]).

mod agent_side;
mod expect;
mod hub_side;
mod outside;
mod payload;
mod power;
mod real;
mod slot;
mod trouble;

use std::collections::VecDeque;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use crossbeam_channel::Receiver;
use fleetwave_agent_core::twin::{Desired, Status, TwinContent};
use fleetwave_agent_core::{Effect, Event, Releases, State};
use fleetwave_hub::Clock;
use fleetwave_protocol::{Instant, Now, Profile, WallTime};
use rustc_hash::FxHashMap;

use self::expect::Early;
pub(super) use self::outside::Outside;
use self::payload::Payload;
use self::slot::{Slot, Work, flag};
use self::trouble::{Rare, Trouble};
use super::agents::Sign;
use super::aim::Aim;
use super::beat::Beat;
use super::cloud::Heard;
use super::codec::Writer;
use super::fetch::{Fetched, Handle};
use super::login::Login;
use super::tally::Tally;
use super::transport::{Kind, Received, Transport};
use super::wheel::{Entry, Wheel};
use crate::device::{Device, Violations, Who, World};
use crate::measure::{Change, ChangeId, Meter};
use crate::scenario::dist::Dist;
use crate::scenario::fault::CutMoment;
use crate::scenario::model::Driver;
use crate::scenario::quantity::Percent;
use crate::scenario::step::Arrival;

/// Which devices something happens to: a share of a group or of the fleet, drawn for the step.
#[derive(Clone, Copy, Debug)]
pub(super) struct Victims {
    pub(super) step: usize,
    pub(super) group: Option<usize>,
    pub(super) share: Percent,
}

/// What a shard is told to do.
#[derive(Clone, Debug)]
pub(super) enum Order {
    /// Switch devices on.
    Connect { from: Instant, step: usize, group: Option<usize>, arrival: Arrival },
    /// What the groups' devices are to have from now on, and what others may be asked to have. `taken` is dropped
    /// when that is known here.
    Aims { groups: Vec<Option<Aim>>, open: Vec<Aim>, taken: mpsc::Sender<()> },
    /// A change was accepted.
    Accepted { id: ChangeId, change: Change },
    /// The links of the victims are down until then.
    LinkDown { victims: Victims, until: Instant },
    /// Notifications to the victims are lost, or late by `delay`, until then.
    Notifications { victims: Victims, until: Instant, delay: Option<Duration> },
    /// The victims lose power.
    PowerCut { victims: Victims, during: CutMoment, off_for: Dist },
    /// Devices may be interrupted from now on.
    Free,
    /// All connections break, and none can be made until then: for a broker that cannot be restarted.
    Unreachable { until: Instant },
    /// Stand still: the planted defect that a run has to notice.
    Stall(Duration),
    /// End.
    Finish,
}

/// What a shard leaves behind.
pub(super) struct Remains {
    pub(super) meter: Meter,
    pub(super) violations: Violations,
    /// The hash of each device's states.
    pub(super) histories: Vec<u64>,
    /// Each device's states, if they were to be kept.
    pub(super) stories: Vec<Vec<State>>,
}

/// What a shard is made of.
pub(super) struct Parts {
    pub(super) index: u16,
    /// The number of its first device, and how many it has.
    pub(super) first: u64,
    pub(super) devices: u32,
    pub(super) world: Arc<World>,
    pub(super) clock: Clock,
    /// What the devices' calendar is ahead of the hub's, in milliseconds.
    pub(super) calendar_ahead: u64,
    pub(super) profile: Profile,
    pub(super) login: Option<Login>,
    pub(super) transport: Box<dyn Transport>,
    pub(super) orders: Receiver<Order>,
    pub(super) heard: Receiver<Heard>,
    /// What the real agents among its devices show.
    pub(super) signs: Receiver<Sign>,
    pub(super) fetched: Receiver<Fetched>,
    pub(super) downloads: Handle,
    pub(super) tally: Arc<Tally>,
    /// For a hub that is not ours.
    pub(super) outside: Option<Outside>,
    /// Keep each device's states, for a comparison.
    pub(super) tell_stories: bool,
}

/// Memories of what texts mean hold at most so many.
const MOST_MEANINGS: usize = 256;

/// One device shard.
pub(super) struct Shard {
    index: u16,
    first: u64,
    world: Arc<World>,
    clock: Clock,
    calendar_ahead: u64,
    profile: Profile,
    login: Option<Login>,
    transport: Box<dyn Transport>,
    orders: Receiver<Order>,
    heard: Receiver<Heard>,
    signs: Receiver<Sign>,
    fetched: Receiver<Fetched>,
    downloads: Handle,
    tally: Arc<Tally>,
    outside: Option<Outside>,

    slots: Vec<Slot>,
    wheel: Wheel,
    /// Timers whose time has come.
    due: VecDeque<Entry>,
    releases: Releases,
    /// Parts of packets, of the few devices that have one.
    partial: FxHashMap<u32, BytesMut>,
    payloads: FxHashMap<u32, Payload>,
    rare: FxHashMap<u32, Rare>,
    trouble: Trouble,
    open_aims: Vec<Aim>,
    /// Devices with a real agent.
    known: FxHashMap<u32, real::Known>,
    /// What happened under changes whose acceptance is not known here yet.
    early: Vec<Early>,
    accepted: Vec<ChangeId>,
    stories: Vec<Vec<State>>,
    tell_stories: bool,
    meter: Meter,
    violations: Violations,
    beat: Beat,

    // Buffers that devices borrow for their turn.
    writer: Writer,
    input: BytesMut,
    id: String,
    effects: Vec<Effect>,
    inbox: Vec<Event>,
    /// The link and the method that carry the grant which the agent is being told of.
    grant: Option<hub_side::GrantUnderWay>,
    /// The request id of the method that calls the update off, while the agent is asked.
    calling_off: Option<String>,
    twins: FxHashMap<Bytes, TwinContent>,
    patches: FxHashMap<(Bytes, Desired), Option<Desired>>,
    reports: FxHashMap<Status, String>,
}

impl Shard {
    pub(super) fn new(parts: Parts) -> Self {
        let world = parts.world;
        let now = parts.clock.now().at;
        let slots = (parts.first..parts.first + u64::from(parts.devices))
            .map(|number| {
                let agent = world.agent(number);
                let group = world.fleet().group_of(number);
                let mut slot = Slot::new(agent, Device::new(world.catalogue().initial), group);
                if world.fleet().groups()[group].spec.driver == Driver::Agent {
                    slot.set(flag::REAL);
                }
                slot
            })
            .collect::<Vec<_>>();
        let stories = if parts.tell_stories { vec![Vec::new(); slots.len()] } else { Vec::new() };
        Self {
            index: parts.index,
            first: parts.first,
            releases: world.releases().clone(),
            world,
            clock: parts.clock,
            calendar_ahead: parts.calendar_ahead,
            profile: parts.profile,
            login: parts.login,
            transport: parts.transport,
            orders: parts.orders,
            heard: parts.heard,
            signs: parts.signs,
            fetched: parts.fetched,
            downloads: parts.downloads,
            tally: parts.tally,
            outside: parts.outside,
            slots,
            wheel: Wheel::new(now),
            due: VecDeque::new(),
            partial: FxHashMap::default(),
            payloads: FxHashMap::default(),
            rare: FxHashMap::default(),
            trouble: Trouble::default(),
            open_aims: Vec::new(),
            known: FxHashMap::default(),
            early: Vec::new(),
            accepted: Vec::new(),
            stories,
            tell_stories: parts.tell_stories,
            meter: Meter::default(),
            violations: Violations::default(),
            beat: Beat::new(now),
            writer: Writer::new(parts.profile),
            input: BytesMut::new(),
            id: String::new(),
            effects: Vec::new(),
            inbox: Vec::new(),
            grant: None,
            calling_off: None,
            twins: FxHashMap::default(),
            patches: FxHashMap::default(),
            reports: FxHashMap::default(),
        }
    }

    /// Runs until it is told to finish.
    pub(super) fn run(mut self) -> Remains {
        let mut received = Received::default();
        let mut more = false;
        while self.obey() {
            self.listen();
            self.collect();
            self.take_places();
            self.take_turns();
            self.end_trouble();
            self.transport.flush();
            let now = self.clock.now().at;
            let meter = &mut self.meter;
            self.beat.strike(now, |late| meter.lag(late));
            let pause = if more { Duration::ZERO } else { self.pause() };
            if let Err(error) = self.transport.wait(pause)
                && error.kind() != std::io::ErrorKind::Interrupted
            {
                tracing::error!(%error, "a shard cannot wait for its connections");
                break;
            }
            more = true;
            while more && !self.is_beat_due() {
                more = self.transport.receive(&mut received);
                self.deliver(&received);
                received.clear();
            }
        }
        Remains {
            meter: self.meter,
            violations: self.violations,
            histories: self.slots.iter().map(|slot| slot.hardware.history()).collect(),
            stories: self.stories,
        }
    }

    /// Whether the shard has been at one thing long enough.
    fn is_beat_due(&self) -> bool {
        self.beat.next() <= self.clock.now().at
    }

    /// How long nothing is to be done.
    fn pause(&self) -> Duration {
        if !self.due.is_empty() {
            return Duration::ZERO;
        }
        let now = self.clock.now().at;
        let next = self.wheel.next(self.beat.next()).unwrap_or(Instant::NEVER);
        next.min(self.beat.next()).min(self.next_place()).since(now)
    }

    fn now(&self) -> Now {
        let now = self.clock.now();
        let wall = now.wall.as_unix_millis().saturating_add(self.calendar_ahead);
        Now { at: now.at, wall: WallTime::from_unix_millis(wall) }
    }

    fn who(&self, index: u32) -> Who {
        Who { number: self.first + u64::from(index), group: usize::from(self.slots[index as usize].group) }
    }

    /// Puts the device's id into the buffer for it.
    fn name(&mut self, index: u32) {
        self.id.clear();
        self.world.fleet().write_id(self.first + u64::from(index), &mut self.id);
    }

    /// Carries out what the run has ordered; false if that is to end.
    fn obey(&mut self) -> bool {
        while let Ok(order) = self.orders.try_recv() {
            match order {
                Order::Finish => return false,
                Order::Connect { from, step, group, arrival } => self.switch_on(from, step, group, arrival),
                Order::Aims { groups, open, taken } => {
                    self.take_aim(&groups, open);
                    drop(taken);
                }
                Order::Accepted { id, change } => self.changed(id, change),
                Order::Stall(span) => std::thread::sleep(span),
                Order::LinkDown { victims, until } => self.break_links(&victims, until),
                Order::Notifications { victims, until, delay } => {
                    self.trouble.notifications.push((victims, until, delay));
                }
                Order::PowerCut { victims, during, off_for } => self.doom_victims(&victims, during, off_for),
                Order::Free => self.trouble.free = true,
                Order::Unreachable { until } => self.break_connections(until),
            }
        }
        true
    }

    /// Hands what came to the devices that it came for.
    fn deliver(&mut self, received: &Received) {
        let mut rest = received.bytes.as_slice();
        for frame in &received.frames {
            let mut bytes = &rest[..0];
            if let Kind::Bytes(length) = frame.kind {
                (bytes, rest) = rest.split_at(length);
            }
            if self.slots[frame.device as usize].line != frame.line
                || self.is_cut_off(frame.device, frame.kind, bytes)
            {
                continue;
            }
            match frame.kind {
                Kind::Bytes(_) => self.incoming(frame.device, bytes),
                Kind::Closed => self.closed(frame.device),
            }
        }
        self.transport.flush();
    }

    /// Gives every device whose time has come its turn.
    fn take_turns(&mut self) {
        let now = self.clock.now().at;
        let mut taken = Vec::new();
        self.wheel.take(now, &mut taken);
        taken.sort_unstable_by_key(|entry| entry.due);
        self.due.extend(taken);
        while let Some(Entry { due, device }) = self.due.pop_front() {
            let slot = &mut self.slots[device as usize];
            // Turns that were asked for and are no longer wanted pass.
            if slot.turn != due {
                continue;
            }
            slot.turn = Instant::NEVER;
            self.take_turn(device, due);
            if self.is_beat_due() {
                break;
            }
        }
    }

    fn take_turn(&mut self, index: u32, due: Instant) {
        let now = self.clock.now().at;
        let slot = &self.slots[index as usize];
        if slot.due().min(self.rare_due(index)) <= due {
            self.meter.events(1);
            // Nobody switches a storm of devices on in one instant. That some come later is in their connect
            // latency, which counts from when they were meant to.
            if slot.work != Work::Boot || slot.has(flag::KNOWN) {
                self.meter.lag(now.since(due));
            }
        }
        self.rare_turn(index, now);
        if self.slots[index as usize].done <= now {
            self.work_done(index);
        }
        if self.slots[index as usize].wake <= now {
            self.slots[index as usize].wake = Instant::NEVER;
            self.tell(index, Event::Timer);
        }
        if self.slots[index as usize].ping <= now {
            self.keep_alive(index, now);
        }
        self.ask_for_turn(index);
    }

    /// Sees to it that the wheel has a turn for the device when it next wants one: one entry, unless it wants an
    /// earlier one than before.
    fn ask_for_turn(&mut self, index: u32) {
        let due = self.slots[index as usize].due().min(self.rare_due(index));
        let slot = &mut self.slots[index as usize];
        if due < slot.turn {
            slot.turn = due;
            self.wheel.insert(due, index);
        }
    }

    fn work_done(&mut self, index: u32) {
        let work = std::mem::replace(&mut self.slots[index as usize].work, Work::Nothing);
        self.slots[index as usize].done = Instant::NEVER;
        match work {
            Work::Nothing => {}
            Work::Boot => self.power_on(index),
            Work::Verify(release) => self.verify(index, release),
            Work::Stage(release) => {
                let who = self.who(index);
                let result = self.slots[index as usize].hardware.end_stage(&self.world, who, release);
                self.tell(index, Event::Staged(result.map_err(Into::into)));
            }
            Work::Health => {
                let who = self.who(index);
                let result = self.slots[index as usize].hardware.health(&self.world, who);
                self.tell(index, Event::Health(result));
            }
        }
    }

    /// The device works on something for a time.
    fn work(&mut self, index: u32, now: Instant, work: Work, span: Duration) {
        let slot = &mut self.slots[index as usize];
        slot.work = work;
        slot.done = now + span;
        self.doom(index, now, span);
    }

    /// When the keep-alive is due: a ping has to be sent, or has not been answered.
    fn keep_alive(&mut self, index: u32, now: Instant) {
        let slot = &mut self.slots[index as usize];
        slot.ping = Instant::NEVER;
        if !slot.has(flag::UP) {
            return;
        }
        if slot.has(flag::PINGED) {
            self.lose_line(index);
            self.tell(index, Event::Disconnected);
            return;
        }
        slot.set(flag::PINGED);
        slot.ping = now + self.world.policy(usize::from(slot.group)).request_timeout;
        self.writer.ping();
        self.transmit(index, now);
    }
}
