//! A shard: some thousands of devices, their part of the hub, and the events that they wait for.
//!
//! A device and its part of the hub meet others only through the blob store and the throttles, and a window is
//! shorter than the way there and back: within it each device runs by itself, one after the other, whatever others
//! do meanwhile.

mod device_side;
mod downloads;
mod hub_side;
mod power;

use std::sync::Arc;

use fleetwave_agent_core::twin::{Desired, Status, TwinContent};
use fleetwave_agent_core::{Agent, Effect, ReleaseId, Releases};
use fleetwave_hub_core::{DesiredPatch, DeviceIx, DeviceSpec, Hub, Options, Output, PatchId};
use fleetwave_protocol::rng::mix;
use fleetwave_protocol::time::{Instant, Now, WallTime, micros};
use rustc_hash::FxHashMap;

use super::blob::Request;
use super::env::Env;
use super::event::Kind;
use super::gate::{Ask, Told};
use super::wheel::{Event, Wheel};
use super::worker::Worker;
use crate::device::{Device, Who};
use crate::measure::ChangeId;
use crate::run::EngineError;

/// A window: the buckets `from..until`.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Window {
    pub(super) from: u64,
    pub(super) until: u64,
}

/// Most devices of a shard: what fits a core's cache beside its part of the hub.
pub(super) const SHARD: u64 = 4096;

/// How many devices' memory is asked for at a time.
const AHEAD: usize = 8;

const NEVER: u64 = u64::MAX;

/// Bits of [`Virtual::flags`].
mod flag {
    /// The agent runs.
    pub(super) const ON: u16 = 1;
    /// Means to connect, and the meter knows.
    pub(super) const CONNECTING: u16 = 1 << 1;
    /// Was connected before.
    pub(super) const KNOWN: u16 = 1 << 2;
    /// A configuration gives it a release.
    pub(super) const TARGETED: u16 = 1 << 3;
    pub(super) const NOTIFIED: u16 = 1 << 4;
    pub(super) const CONVERGED: u16 = 1 << 5;
    pub(super) const FAILED: u16 = 1 << 6;
    pub(super) const ROLLED_BACK: u16 = 1 << 7;
    /// Waits for a grant, and the meter knows.
    pub(super) const ASKED: u16 = 1 << 8;
    /// The next twin read goes out together with a SUBSCRIBE.
    pub(super) const SUBSCRIBE: u16 = 1 << 9;
    /// What was downloaded is not what was signed.
    pub(super) const CORRUPT: u16 = 1 << 10;
    /// Loses power at its next timed step.
    pub(super) const DOOMED: u16 = 1 << 11;
    /// A download is under way.
    pub(super) const FETCHING: u16 = 1 << 12;
    /// What the power cut left of a download is not known yet.
    pub(super) const SALVAGE: u16 = 1 << 13;
    /// Its network is down, until some time in `Shard::outages`.
    pub(super) const OUTAGE: u16 = 1 << 14;
    /// What it was given was taken back, or replaced, before it had it.
    pub(super) const WITHDRAWN: u16 = 1 << 15;
}

/// Bits of [`Virtual::life`]: what a device has come to since it booted. But for the header a boot forgets them.
mod life {
    /// It has read its twin. A session that the hub remembers may be one that hears nothing: of a life that was cut off
    /// between CONNECT and SUBSCRIBE. So a device subscribes in each of its lives.
    pub(super) const HEARD: u8 = 1;
    /// Its payload is planned to come by chunks.
    pub(super) const CHUNKS: u8 = 1 << 1;
    /// Its payload is not fetched by chunks, whatever would be cheaper.
    pub(super) const WHOLE: u8 = 1 << 2;
    /// So often the archive's header has not come: a count of two bits.
    pub(super) const FAILURE: u8 = 1 << 3;
    pub(super) const FAILURES: u8 = 3 << 3;
    /// The archive's header is on its disk.
    pub(super) const HEADER: u8 = 1 << 5;
}

/// A virtual device.
pub(super) struct Virtual {
    agent: Agent,
    hardware: Device,
    /// Of every event that happened to it.
    hash: u64,
    /// When the agent wants to be woken, and when the earliest event comes that will.
    wake: u64,
    timer: u64,
    /// Nothing that is sent later arrives earlier: a connection keeps the order.
    up_clear: u64,
    down_clear: u64,
    /// When it was meant to connect, and when it first tried.
    intended: u64,
    started: u64,
    /// When it asked for the grant.
    asked: u64,
    /// The download under way: its first byte, when it was asked for, and when the store hears of it.
    fetch_from: u64,
    fetch_asked: u64,
    fetch_arrives: u64,
    /// The most that was ever received of the payload of release `payload`.
    furthest: u64,
    want: Desired,
    /// Its newest connection, and the one that the hub knows (0: none).
    session: u32,
    hub_session: u32,
    latency: u32,
    /// Draws made for messages and downloads.
    draws: u32,
    /// The fraction of the next timed step after which power is lost.
    doom: f32,
    flags: u16,
    group: u16,
    change: u16,
    payload: u16,
    /// Counts pieces of work, so that events of abandoned ones are known.
    work: u8,
    /// Power cuts that it has had, a bit for each that the timeline ordered.
    cuts: u8,
    /// The cause of its last failure.
    cause: u8,
    life: u8,
}

impl Virtual {
    const fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    const fn set(&mut self, flag: u16) {
        self.flags |= flag;
    }

    const fn clear(&mut self, flag: u16) {
        self.flags &= !flag;
    }

    /// Nothing of the payload's archive is kept or planned any more.
    const fn forget_archive(&mut self) {
        self.life &= !(life::HEADER | life::CHUNKS);
    }

    /// All of the payload is fetched from now on, as long as this life lasts.
    const fn refuse_chunks(&mut self) {
        self.life = (self.life | life::WHOLE) & !life::CHUNKS;
    }
}

/// A status that devices report, as the hub takes it.
struct ReportText {
    status: Status,
    patch: PatchId,
    len: usize,
}

/// What shards share only by being told the same.
pub(super) struct Shard {
    index: u32,
    /// The fleet's number of its first device.
    first: u64,
    devices: Vec<Virtual>,
    hub: Hub,
    wheel: Wheel,
    releases: Releases,
    /// What twins say, by the serial numbers of their documents.
    twins: Vec<TwinContent>,
    twin_of: FxHashMap<(u64, u64), u32>,
    patches: Vec<Arc<DesiredPatch>>,
    patch_of: FxHashMap<u64, u32>,
    meaning: FxHashMap<(u32, Desired), Desired>,
    reports: Vec<ReportText>,
    /// What updates under way have cost, where that has a limit, by device.
    spent: FxHashMap<u16, u64>,
    /// When networks that are down come back, by device.
    outages: FxHashMap<u16, Outage>,
    /// The window under way, in microseconds.
    start: u64,
    end: u64,
    /// How many of the window's events each of its devices has.
    spans: Vec<u32>,
    /// Events of the window, and those that the device under way has made in it.
    events: Vec<Event>,
    local: Vec<Event>,
    outputs: Vec<Output>,
    effects: Vec<Effect>,
    inbox: Vec<fleetwave_agent_core::Event>,
    /// What each configuration change gave.
    changes: Vec<(ReleaseId, ChangeId)>,
    /// The throttles' words to events of the window.
    told: Vec<(u32, Told)>,
    /// The grant that the agent is being told of: how it came, and the hub's number of it.
    grant_under_way: Option<(Kind, u32)>,
    /// The request id of the message that the hub is handling.
    request: u32,
}

#[derive(Clone, Copy)]
struct Outage {
    from: u64,
    until: u64,
}

impl Shard {
    /// A shard of the devices `first..first + count`, switched off.
    pub(super) fn new(index: u32, first: u64, count: u64, env: &Env) -> Result<Self, EngineError> {
        let world = env.world();
        let mut hub = Hub::new(Options { cycle: env.cycle(), ..Options::default() });
        let mut devices = Vec::with_capacity(count as usize);
        let now = env.now(0);
        let mut id = String::new();
        for number in first..first + count {
            let who = world.who(number);
            id.clear();
            world.fleet().write_id(number, &mut id);
            let tags = &world.fleet().groups()[who.group].tags;
            hub.create_device(now, &id, DeviceSpec { tags: Some(tags), ..DeviceSpec::default() }).map_err(
                |error| EngineError::Failed { what: format!("making device {id}"), source: Box::new(error) },
            )?;
            let latency = micros(world.fleet().latency(number, who.group)).max(env.width());
            devices.push(Virtual {
                agent: world.agent(number),
                hardware: Device::new(world.catalogue().initial),
                hash: mix(number),
                wake: NEVER,
                timer: NEVER,
                up_clear: 0,
                down_clear: 0,
                intended: 0,
                started: 0,
                asked: 0,
                fetch_from: 0,
                fetch_asked: 0,
                fetch_arrives: 0,
                furthest: 0,
                want: Desired::Nothing,
                session: 0,
                hub_session: 0,
                latency: u32::try_from(latency).unwrap_or(u32::MAX),
                draws: 0,
                doom: 0.0,
                flags: 0,
                group: who.group as u16,
                change: 0,
                payload: 0,
                work: 0,
                cuts: 0,
                cause: u8::MAX,
                life: 0,
            });
        }
        Ok(Self {
            index,
            first,
            devices,
            hub,
            wheel: Wheel::new(env.width()),
            releases: world.releases().clone(),
            twins: Vec::new(),
            twin_of: FxHashMap::default(),
            patches: Vec::new(),
            patch_of: FxHashMap::default(),
            meaning: FxHashMap::default(),
            reports: Vec::new(),
            spent: FxHashMap::default(),
            outages: FxHashMap::default(),
            start: 0,
            end: 0,
            spans: Vec::new(),
            events: Vec::new(),
            local: Vec::new(),
            outputs: Vec::new(),
            effects: Vec::new(),
            inbox: Vec::new(),
            changes: Vec::new(),
            told: Vec::new(),
            grant_under_way: None,
            request: 0,
        })
    }

    /// Its devices' numbers in the fleet.
    pub(super) fn numbers(&self) -> core::ops::Range<u64> {
        self.first..self.first + self.devices.len() as u64
    }

    /// The earliest bucket in which something happens, not before `from`.
    pub(super) fn next_bucket(&self, from: u64, width: u64) -> u64 {
        let events = self.wheel.next_bucket(from).unwrap_or(NEVER);
        let hub = self.hub.next_deadline().map_or(NEVER, |at| (at.as_micros() / width).max(from));
        events.min(hub)
    }

    /// An event from outside: from the timeline or the blob store, for this window's end or later.
    pub(super) fn push(&mut self, event: Event) {
        self.wheel.push(event);
    }

    /// Switches a device on that is off: meant for `at`, and not in the windows before `open`.
    pub(super) fn switch_on(&mut self, number: u64, at: u64, open: u64) {
        let index = (number - self.first) as u16;
        let device = &mut self.devices[usize::from(index)];
        if device.has(flag::ON) {
            return;
        }
        device.intended = at;
        let generation = device.work;
        let at = at.max(open);
        self.wheel.push(Event { at, device: index, kind: Kind::PowerOn, generation, a: 0, b: 0 });
    }

    /// Takes the events of a window.
    fn open(&mut self, window: &Window, env: &Env) {
        self.start = window.from * env.width();
        self.end = window.until * env.width();
        self.events.clear();
        let mut from = window.from;
        while let Some(bucket) = self.wheel.next_bucket(from).filter(|bucket| *bucket < window.until) {
            self.wheel.take(bucket, &mut self.events);
            from = bucket + 1;
        }
    }

    /// With throttles, a window is opened before any shard runs it: this is what its events ask the hub for.
    pub(super) fn ask(&mut self, window: &Window, env: &Env, asks: &mut Vec<Ask>) {
        self.open(window, env);
        for (place, event) in self.events.iter().enumerate() {
            if let Some((operation, cost)) = self.asks_for(event, env) {
                asks.push(Ask { at: event.at, shard: self.index, place: place as u32, operation, cost });
            }
        }
    }

    /// Hears what the throttles said to one of the window's events.
    pub(super) fn hear(&mut self, place: u32, told: Told) {
        self.told.push((place, told));
    }

    /// Runs a window.
    pub(super) fn run(&mut self, window: &Window, env: &Env, worker: &mut Worker) {
        if env.throttled() {
            for (place, told) in core::mem::take(&mut self.told) {
                self.heed(place, told, env, worker);
            }
        } else {
            self.open(window, env);
        }
        let mut events = core::mem::take(&mut self.events);
        // Stable: what was added first happens first.
        events.sort_by_key(|event| (event.device, event.at));
        let mut spans = core::mem::take(&mut self.spans);
        spans.extend(events.chunk_by(|a, b| a.device == b.device).map(|span| span.len() as u32));
        let mut rest = events.as_slice();
        for ahead in spans.chunks(AHEAD) {
            self.foresee(rest, ahead);
            for &span in ahead {
                let (mine, others) = rest.split_at(span as usize);
                self.run_device(mine, env, worker);
                rest = others;
            }
        }
        spans.clear();
        self.spans = spans;
        self.events = events;
        self.hub_timers(env, worker);
    }

    /// Reads a little from each cache line of the devices that come next. A fleet is larger than any cache, and so
    /// their memory is waited for once, together, instead of one line after the other.
    #[inline]
    fn foresee(&self, mut events: &[Event], spans: &[u32]) {
        let mut sum = 0;
        for &span in spans {
            let device = &self.devices[usize::from(events[0].device)];
            let link = u64::from(device.session) ^ device.asked ^ device.fetch_arrives;
            sum ^= device.hash
                ^ link
                ^ device.agent.desired_version()
                ^ device.agent.committed().index() as u64
                ^ device.agent.state() as u64
                ^ device.hardware.history();
            events = &events[span as usize..];
        }
        core::hint::black_box(sum);
    }

    /// Runs one device through its events of the window, and through those that they cause in it.
    fn run_device(&mut self, events: &[Event], env: &Env, worker: &mut Worker) {
        let mut next = 0;
        loop {
            let event = match (events.get(next), self.local.first()) {
                (Some(event), Some(local)) if local.at < event.at => self.local.remove(0),
                (None, Some(_)) => self.local.remove(0),
                (Some(event), _) => {
                    next += 1;
                    *event
                }
                (None, None) => return,
            };
            worker.handled += 1;
            let device = &mut self.devices[usize::from(event.device)];
            let what = u64::from(event.kind as u8) << 56 ^ u64::from(event.a) << 24 ^ u64::from(event.b);
            device.hash = mix(device.hash ^ mix(event.at ^ what.rotate_left(17)));
            if event.kind < Kind::HubConnect {
                self.at_device(event, env, worker);
            } else {
                self.at_hub(event, env, worker);
            }
        }
    }

    /// Adds an event of the device under way, in this window or later.
    fn schedule(&mut self, event: Event) {
        if event.at >= self.end {
            self.wheel.push(event);
        } else {
            let place = self.local.partition_point(|other| other.at <= event.at);
            self.local.insert(place, event);
        }
    }

    fn who(&self, index: u16) -> Who {
        let device = &self.devices[usize::from(index)];
        Who { number: self.first + u64::from(index), group: usize::from(device.group) }
    }

    /// The order-free hash of everything that happened to its devices.
    pub(super) fn hash(&self) -> u64 {
        self.devices.iter().fold(0, |sum, device| sum.wrapping_add(mix(device.hash)))
    }

    /// The hash of each device's states, in the fleet's order.
    pub(super) fn histories(&self) -> impl Iterator<Item = u64> + '_ {
        self.devices.iter().map(|device| device.hardware.history())
    }

    /// When a message that is sent at `at` arrives at the other end: a latency later, later still if it is large, is
    /// lost on the way and sent again, or meets an outage; and never before one that was sent earlier.
    fn arrival(&mut self, index: u16, at: u64, bytes: u64, up: bool, env: &Env) -> u64 {
        let link = env.link(self.devices[usize::from(index)].group);
        let outage = self.outage(index, at);
        let device = &mut self.devices[usize::from(index)];
        let latency = u64::from(device.latency);
        let rate = if up { link.up } else { link.down };
        let mut arrives = outage.map_or(at, |outage| outage.until) + latency + (bytes as f64 / rate) as u64;
        while link.loss > 0.0 && env.draw(self.first + u64::from(index), &mut device.draws) < link.loss {
            // A retransmission timeout and a round trip (RFC 6298's usual minimum).
            arrives += 200_000 + 2 * latency;
        }
        let clear = if up { &mut device.up_clear } else { &mut device.down_clear };
        arrives = arrives.max(*clear);
        *clear = arrives;
        arrives
    }

    /// The outage that a device's network is in.
    fn outage(&mut self, index: u16, at: u64) -> Option<Outage> {
        if !self.devices[usize::from(index)].has(flag::OUTAGE) {
            return None;
        }
        let outage = self.outages.get(&index).copied()?;
        if outage.until <= at {
            self.outages.remove(&index);
            self.devices[usize::from(index)].clear(flag::OUTAGE);
            return None;
        }
        (outage.from <= at).then_some(outage)
    }

    fn submit(request: Request, worker: &mut Worker) {
        worker.requests.push(request);
    }

    fn ix(index: u16) -> DeviceIx {
        DeviceIx::from_index(u32::from(index))
    }
}

fn wall(env: &Env, at: u64) -> WallTime {
    env.now(at).wall
}

fn instant(at: u64) -> Instant {
    Instant::from_micros(at)
}

fn now(env: &Env, at: u64) -> Now {
    env.now(at)
}
