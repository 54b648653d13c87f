//! Scripted devices: a scenario's fleet as counterpart for somebody who develops a back end.
//!
//! They run in the hub's process, over the memory transport, on one thread. No update agent is in them: they connect
//! when the scenario's `connect` steps say so, answer every direct method, take desired properties over into reported
//! ones, and send telemetry; how fast, how well and whether at all is in the scenario's `[script]`.

mod act;
mod agenda;

use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use fleetwave_hub::memory::MemoryConnector;
use fleetwave_hub::{Clock, ControlError, HubControl, HubServer, NewDevice};
use fleetwave_hub_core::ErrorCode;
use fleetwave_protocol::{CounterRng, Profile, Up, WallTime, sas};
use rustc_hash::FxHashMap;

use self::agenda::{Agenda, Todo};
use super::codec::Writer;
use super::transport::{Kind, Line, Memory, Received, Transport};
use crate::scenario::fleet::{Fleet, Purpose};
use crate::scenario::model::{Scenario, Script};
use crate::scenario::step;

/// How long the thread sleeps at most: it looks then whether it is to end.
const NAP: Duration = Duration::from_millis(250);
/// How long a token is good for.
const TOKEN: Duration = Duration::from_secs(24 * 3600);
/// Often enough for the longest keep-alive that the hub grants.
const PING: Duration = Duration::from_secs(1200);

/// A fleet that runs. It ends when it is dropped.
#[derive(Debug)]
pub struct ScriptedFleet {
    stop: Arc<AtomicBool>,
    connected: Arc<AtomicU64>,
    devices: u64,
    first: String,
    thread: Option<JoinHandle<()>>,
}

/// Why a scripted fleet cannot run.
#[derive(Debug, thiserror::Error)]
pub enum ScriptError {
    /// The hub did not take its devices.
    #[error("the hub takes no devices of the scenario: {0}")]
    Registry(#[from] ControlError),
    /// The machine gives no thread, or nothing to wait with.
    #[error("the scripted devices cannot start: {0}")]
    System(#[from] std::io::Error),
}

impl ScriptedFleet {
    /// Makes the scenario's devices at the hub, which is called `host`, and lets them connect. Those that exist are
    /// taken as they are, unless the hub has them with keys of their own.
    ///
    /// # Errors
    /// If the hub has stopped, or the machine has no thread.
    pub fn start(scenario: &Scenario, hub: &HubServer, host: &str) -> Result<Self, ScriptError> {
        let fleet = Fleet::plan(scenario);
        create(&hub.control(), &fleet)?;
        let stop = Arc::new(AtomicBool::new(false));
        let connected = Arc::new(AtomicU64::new(0));
        let (devices, first) = (fleet.devices(), fleet.id(0));
        let (scenario, control, host) = (scenario.clone(), hub.control(), host.to_owned());
        let cast = Cast::new(scenario, fleet, control, host, &hub.memory(), connected.clone())?;
        let flag = stop.clone();
        let thread = std::thread::Builder::new().name("scripted".into()).spawn(move || cast.run(&flag))?;
        Ok(Self { stop, connected, devices, first, thread: Some(thread) })
    }

    /// How many devices there are.
    #[must_use]
    pub fn devices(&self) -> u64 {
        self.devices
    }

    /// The id of the first of them.
    #[must_use]
    pub fn first(&self) -> &str {
        &self.first
    }

    /// How many are connected now.
    #[must_use]
    pub fn connected(&self) -> u64 {
        self.connected.load(Ordering::Relaxed)
    }
}

impl Drop for ScriptedFleet {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread of the scripted devices panicked");
        }
    }
}

/// Makes the devices; those that exist already stay.
fn create(control: &HubControl, fleet: &Fleet) -> Result<(), ControlError> {
    let tags: Vec<Arc<str>> = fleet.groups().iter().map(|group| group.tags.as_str().into()).collect();
    let device = |number| NewDevice {
        tags: Some(tags[fleet.group_of(number)].clone()),
        ..NewDevice::new(fleet.id(number))
    };
    let exists = |error: &ControlError| matches!(error, ControlError::Refused(error) if error.code == ErrorCode::DeviceAlreadyExists);
    match control.create_devices((0..fleet.devices()).map(device)) {
        Err(error) if exists(&error) => {}
        other => return other.map(drop),
    }
    // Some are there, from an earlier start.
    for number in 0..fleet.devices() {
        match control.create_devices([device(number)]) {
            Err(error) if exists(&error) => {}
            other => drop(other?),
        }
    }
    Ok(())
}

/// A device's part, as far as it has one.
#[derive(Clone, Copy, Debug)]
struct Player {
    line: Line,
    up: bool,
    /// Draws so far: each has its own.
    draws: u32,
    /// Telemetry so far.
    told: u32,
}

/// All scripted devices, and their thread.
struct Cast {
    fleet: Fleet,
    script: Script,
    clock: Clock,
    control: HubControl,
    host: String,
    transport: Memory,
    players: Vec<Player>,
    agenda: Agenda,
    partial: FxHashMap<u32, BytesMut>,
    writer: Writer,
    connected: Arc<AtomicU64>,
}

impl Cast {
    fn new(
        scenario: Scenario,
        fleet: Fleet,
        control: HubControl,
        host: String,
        connector: &MemoryConnector,
        connected: Arc<AtomicU64>,
    ) -> std::io::Result<Self> {
        let clock = control.clock().clone();
        let now = clock.now().at;
        let mut agenda = Agenda::default();
        for (device, at) in arrivals(&scenario, &fleet) {
            agenda.add(now + at, device, Todo::Connect);
        }
        let player = Player { line: Line::NONE, up: false, draws: 0, told: 0 };
        Ok(Self {
            players: vec![player; usize::try_from(fleet.devices()).unwrap_or(usize::MAX)],
            fleet,
            script: scenario.script,
            clock,
            control,
            host,
            transport: Memory::new(connector)?,
            agenda,
            partial: FxHashMap::default(),
            writer: Writer::new(Profile::IotHub),
            connected,
        })
    }

    fn run(mut self, stop: &AtomicBool) {
        let mut received = Received::default();
        while !stop.load(Ordering::Relaxed) {
            let now = self.clock.now().at;
            while let Some((device, todo)) = self.agenda.due(now) {
                self.act(device, todo);
            }
            self.transport.flush();
            let pause = self.agenda.next().map_or(NAP, |next| next.since(self.clock.now().at)).min(NAP);
            if let Err(error) = self.transport.wait(pause)
                && error.kind() != std::io::ErrorKind::Interrupted
            {
                return tracing::error!(%error, "the scripted devices cannot wait for their connections");
            }
            while self.transport.receive(&mut received) {
                self.deliver(&received);
                received.clear();
                self.transport.flush();
            }
        }
        for device in 0..self.players.len() {
            self.leave(device as u32);
        }
        self.transport.flush();
    }

    fn deliver(&mut self, received: &Received) {
        let mut rest = received.bytes.as_slice();
        for frame in &received.frames {
            let mut bytes = &rest[..0];
            if let Kind::Bytes(length) = frame.kind {
                (bytes, rest) = rest.split_at(length);
            }
            if self.players[frame.device as usize].line != frame.line {
                continue;
            }
            match frame.kind {
                Kind::Bytes(_) => self.read(frame.device, bytes),
                Kind::Closed => self.come_back(frame.device),
            }
        }
    }

    fn read(&mut self, device: u32, bytes: &[u8]) {
        let mut input = match self.partial.entry(device) {
            Entry::Occupied(entry) => entry.remove(),
            Entry::Vacant(_) => BytesMut::new(),
        };
        input.extend_from_slice(bytes);
        let line = self.players[device as usize].line;
        while self.players[device as usize].line == line {
            match super::codec::read(&mut input) {
                Ok(Some((packet, _))) => self.packet(device, packet),
                Ok(None) => {
                    if !input.is_empty() {
                        self.partial.insert(device, input);
                    }
                    return;
                }
                Err(super::codec::Malformed) => self.come_back(device),
            }
        }
    }

    /// A draw of its own for each decision of a device.
    fn draw(&mut self, device: u32) -> CounterRng {
        let player = &mut self.players[device as usize];
        player.draws += 1;
        let stream = self.fleet.rng(u64::from(device), Purpose::Script).next_u64();
        CounterRng::of(stream, u64::from(player.draws))
    }

    fn id(&self, device: u32) -> String {
        self.fleet.id(u64::from(device))
    }

    /// The connection is gone, or is given up without a word; the device comes back later.
    fn come_back(&mut self, device: u32) {
        self.lose(device);
        let mut rng = self.draw(device);
        let away = self.script.away.sample(&mut rng);
        self.agenda.add(self.clock.now().at + away, device, Todo::Connect);
    }

    fn lose(&mut self, device: u32) {
        let player = &mut self.players[device as usize];
        if std::mem::take(&mut player.up) {
            self.connected.fetch_sub(1, Ordering::Relaxed);
        }
        let line = std::mem::replace(&mut player.line, Line::NONE);
        self.partial.remove(&device);
        if line != Line::NONE {
            self.transport.close(line);
        }
    }

    fn send(&mut self, device: u32) {
        let line = self.players[device as usize].line;
        if line != Line::NONE {
            self.transport.send(line, self.writer.written().0);
        }
        self.writer.clear();
    }

    fn up(&mut self, device: u32, message: &Up<'_>) {
        let id = self.id(device);
        self.writer.up(&id, message);
        self.send(device);
    }

    fn connect(&mut self, device: u32) {
        if self.players[device as usize].line != Line::NONE {
            return;
        }
        let id = self.id(device);
        let expires = self.clock.now().wall.as_unix_millis() + TOKEN.as_millis() as u64;
        let expires = WallTime::from_unix_millis(expires);
        let resource = format!("{}/devices/{id}", self.host);
        let token = sas::token(&self.control.device_key(&id), &resource, expires, None);
        let user = format!("{}/{id}/?api-version=2021-04-12&DeviceClientType=fleetwave-script", self.host);
        match self.transport.connect(device, &id) {
            Ok(line) => {
                self.players[device as usize].line = line;
                self.writer.connect(&id, Some((user, token)), u16::MAX);
                self.send(device);
            }
            Err(error) => {
                tracing::debug!(id, %error, "a scripted device cannot connect");
                self.come_back(device);
            }
        }
    }

    fn leave(&mut self, device: u32) {
        if self.players[device as usize].up {
            let id = self.id(device);
            self.writer.goodbye(&id);
            self.send(device);
        }
        self.lose(device);
    }
}

/// When each device first connects, from now; those that no step connects do so at once.
fn arrivals(scenario: &Scenario, fleet: &Fleet) -> Vec<(u32, Duration)> {
    let mut seen = vec![false; usize::try_from(fleet.devices()).unwrap_or(usize::MAX)];
    let mut all = Vec::with_capacity(seen.len());
    for (index, step) in scenario.steps.iter().enumerate() {
        let step::Action::Connect(connect) = &step.action else { continue };
        let group = connect.group.as_deref().and_then(|name| fleet.group_named(name));
        for rank in 0..fleet.member_count(group) {
            let (device, at) = fleet.nth_arrival(rank, index, group, connect.arrival);
            if !std::mem::replace(&mut seen[device as usize], true) {
                all.push((device as u32, at));
            }
        }
    }
    let rest = seen.iter().enumerate().filter(|(_, seen)| !**seen);
    all.extend(rest.map(|(device, _)| (device as u32, Duration::ZERO)));
    all
}

#[cfg(test)]
mod tests;
