//! The thread of a hub on a broker.

use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError};
use fleetwave_hub_core::{DesiredPatch, DeviceIx, Topics};
use fleetwave_protocol::profile::plain::{self, FromDevice};
use fleetwave_protocol::{Down, Instant, Profile};

use super::link::{Heard, Link};
use crate::control::Command;
use crate::engine::{Ending, Engine, Outlet};
use crate::view::ShardView;

/// The longest sleep. A clock that was moved forward is noticed within it.
const NAP: Duration = Duration::from_millis(500);

/// Messages that are handled before the hub looks at its timers.
const BATCH: usize = 1024;

const ABSENT: u32 = 0;

pub(super) struct Worker {
    engine: Engine,
    outlet: Topicwise,
    heard: Receiver<Heard>,
    last_session: u32,
    /// The hub is away until then.
    down_until: Option<Instant>,
    /// What operators asked for while it was away.
    held: Vec<Command>,
}

/// Reaches devices through their topics.
struct Topicwise {
    link: Box<dyn Link>,
    /// Each device's session, by its index.
    sessions: Vec<u32>,
    present: u64,
    topic: String,
    /// The last change of desired properties, as it was sent: a fleet gets the same one.
    desired: Vec<u8>,
    desired_key: Option<(u64, u64)>,
    delivered: Vec<(DeviceIx, u32)>,
    packets: u64,
    bytes: u64,
    lost: bool,
}

impl Worker {
    pub(super) fn new(engine: Engine, link: Box<dyn Link>, heard: Receiver<Heard>) -> Self {
        let outlet = Topicwise {
            link,
            sessions: Vec::new(),
            present: 0,
            topic: String::new(),
            desired: Vec::new(),
            desired_key: None,
            delivered: Vec::new(),
            packets: 0,
            bytes: 0,
            lost: false,
        };
        Self { engine, outlet, heard, last_session: ABSENT, down_until: None, held: Vec::new() }
    }

    /// Runs until the hub stops or its broker is gone for good.
    pub(super) fn run(mut self) {
        while !self.outlet.lost {
            match self.heard.recv_timeout(self.timeout()) {
                Ok(heard) => {
                    let more = self.heard.clone();
                    for heard in std::iter::once(heard).chain(more.try_iter().take(BATCH)) {
                        if self.hear(heard).is_break() {
                            return;
                        }
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.come_back();
            self.engine.tick(&mut self.outlet);
            self.complete();
        }
    }

    fn timeout(&self) -> Duration {
        let next = [self.engine.next_deadline(), self.down_until].into_iter().flatten().min();
        next.map_or(NAP, |at| at.since(self.engine.now().at).min(NAP))
    }

    fn hear(&mut self, heard: Heard) -> std::ops::ControlFlow<()> {
        match heard {
            Heard::Connected => {
                if let Err(error) = self.outlet.link.subscribe(plain::UP_FILTER) {
                    tracing::error!(%error, "the hub cannot subscribe");
                    self.outlet.lost = true;
                }
            }
            Heard::Message { topic, payload } => {
                if self.down_until.is_none() {
                    self.message(&topic, &payload);
                }
            }
            Heard::Command(Command::Stop) => return std::ops::ControlFlow::Break(()),
            Heard::Command(Command::Restart { until, answer }) => {
                self.down_until = Some(until);
                self.engine.forget_requests();
                answer.send(self.engine.now().at);
            }
            Heard::Command(command) if self.down_until.is_some() => self.held.push(command),
            Heard::Command(command) => self.command(command),
        }
        self.complete();
        std::ops::ControlFlow::Continue(())
    }

    fn command(&mut self, command: Command) {
        match self.engine.command(command, &mut self.outlet) {
            Some(Command::Metrics { answer }) => {
                let mut metrics = self.engine.counted();
                metrics.connections = self.outlet.present;
                metrics.packets_out = self.outlet.packets;
                metrics.bytes_out = self.outlet.bytes;
                answer.send(metrics);
            }
            Some(Command::Run(job)) => {
                let release = job(&mut ShardView::new(&mut self.engine, &mut self.outlet));
                self.engine.release(release);
            }
            _ => {}
        }
    }

    fn come_back(&mut self) {
        if self.down_until.is_some_and(|until| until <= self.engine.now().at) {
            self.down_until = None;
            for command in std::mem::take(&mut self.held) {
                self.command(command);
            }
        }
    }

    fn message(&mut self, topic: &[u8], payload: &[u8]) {
        self.engine.metrics.packets_in += 1;
        self.engine.metrics.bytes_in += (topic.len() + payload.len()) as u64;
        let decoded = std::str::from_utf8(topic).ok().and_then(|topic| plain::decode_up(topic, payload).ok());
        let Some((id, message)) = decoded else {
            self.engine.metrics.faulty += 1;
            return;
        };
        let Some(device) = self.engine.find(id) else {
            tracing::debug!(device = id, "a message of an unknown device");
            self.engine.metrics.refused += 1;
            return;
        };
        match (message, self.outlet.session(device)) {
            (FromDevice::Hello, _) => {
                self.attach(device);
            }
            (FromDevice::Bye, Some(session)) => {
                self.outlet.forget(device, session);
                self.engine.disconnect(device, session, &mut self.outlet);
            }
            (FromDevice::Bye, None) => {}
            (FromDevice::Message(message), session) => {
                // Whoever sends is there, although the hub missed its hello.
                if let Some(session) = session.or_else(|| self.attach(device)) {
                    self.engine.up(device, session, message, &mut self.outlet);
                }
            }
        }
    }

    /// The device is there; `None` if it may not be.
    fn attach(&mut self, device: DeviceIx) -> Option<u32> {
        self.last_session = self.last_session.wrapping_add(1).max(ABSENT + 1);
        self.engine.attach(device, self.last_session, &mut self.outlet);
        let session = self.outlet.session(device)?;
        self.engine.metrics.accepted += 1;
        self.engine.subscribe(device, Topics::ALL, &mut self.outlet);
        Some(session)
    }

    /// The broker has taken these messages; no more can be known.
    fn complete(&mut self) {
        while let Some((device, delivery)) = self.outlet.delivered.pop() {
            self.engine.acknowledge(device, delivery, &mut self.outlet);
        }
    }
}

impl Topicwise {
    fn forget(&mut self, device: DeviceIx, session: u32) {
        if let Some(slot) = self.sessions.get_mut(device.index())
            && *slot == session
        {
            *slot = ABSENT;
            self.present -= 1;
        }
    }

    fn publish(&mut self, id: &str, message: &Down<'_>) {
        let packet = Profile::Plain.encode_down(id, message, &mut self.topic);
        self.packets += 1;
        self.bytes += (self.topic.len() + packet.payload.len()) as u64;
        if let Err(error) = self.link.publish(&self.topic, packet.payload, packet.qos) {
            if !self.lost {
                tracing::error!(%error, "the hub cannot publish");
            }
            self.lost = true;
        }
    }
}

impl Outlet for Topicwise {
    fn accepted(&mut self, device: DeviceIx, session: u32, _session_present: bool) {
        if self.sessions.len() <= device.index() {
            self.sessions.resize(device.index() + 1, ABSENT);
        }
        let before = std::mem::replace(&mut self.sessions[device.index()], session);
        self.present += u64::from(before == ABSENT);
    }

    fn refused(&mut self, session: u32) {
        tracing::debug!(session, "a device is disabled, and the broker let it in");
    }

    fn close(&mut self, device: DeviceIx, session: u32, _why: Ending) {
        self.forget(device, session);
    }

    fn session(&self, device: DeviceIx) -> Option<u32> {
        self.sessions.get(device.index()).copied().filter(|session| *session != ABSENT)
    }

    fn down(&mut self, device: DeviceIx, id: &str, message: &Down<'_>, delivery: Option<u32>) {
        self.publish(id, message);
        self.delivered.extend(delivery.map(|delivery| (device, delivery)));
    }

    fn desired(&mut self, _device: DeviceIx, id: &str, version: u64, patch: &DesiredPatch) {
        let key = Some((patch.serial(), version));
        let mut body = std::mem::take(&mut self.desired);
        if self.desired_key != key {
            body.clear();
            patch.write(version, &mut body);
            self.desired_key = key;
        }
        self.publish(id, &Down::Desired { version, body: &body });
        self.desired = body;
    }
}
