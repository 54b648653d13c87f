//! A shard's sessions: one small record a connection, and what is sent to it.
//!
//! An idle session owns no buffer. It gets one while it holds a part of a packet, or bytes that its client has
//! not taken yet.

use std::collections::BTreeMap;
use std::io;

use bytes::{Buf, BytesMut};
use fleetwave_hub_core::{DesiredPatch, DeviceIx};
use fleetwave_protocol::profile::Packet;
use fleetwave_protocol::{Down, Now, Profile, QoS, WallTime};
use rumqttc::mqttbytes::v4::ConnectReturnCode;
use rustc_hash::FxHashMap;

use crate::codec::{self, Will};
use crate::dps::Registration;
use crate::engine::{Ending, Outlet};
use crate::recorder::Tap;
use crate::tls::PeerIdentity;
use crate::transport::tcp::Received;
use crate::transport::{Line, Sent, Transport, Transports};

/// What a client may leave unread before it is taken for dead.
const MAX_UNSENT: usize = 1024 * 1024;
/// Seconds until a client must have sent its CONNECT.
const CONNECT_WITHIN: u32 = 30;
/// Seconds: IoT Hub's longest keep-alive, in the place of none and of longer ones.
const MAX_KEEP_ALIVE: u16 = 1767;

const NONE: u32 = u32::MAX;

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// It has not said who it is.
    New,
    /// It waits for the hub's limit of new connections.
    Waiting,
    /// It is a device's.
    Open,
    /// It is a device's that wants to be registered.
    Registering,
}

/// Why a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The client said so: no will.
    Disconnected,
    /// The transport lost it.
    Lost,
    /// It was refused.
    Refused,
    /// It sent what it may not.
    Faulty,
    /// Nothing came in time, or its token ended.
    Expired,
    /// It did not read.
    Slow,
    /// The device connected anew.
    TakenOver,
    /// The hub restarts or stops.
    Down,
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Session {
    line: Line,
    device: u32,
    /// Unique in the shard, for as long as anybody may remember it.
    pub(crate) serial: u32,
    /// Second of the clock at which something last arrived.
    seen: u32,
    /// Second of the clock at which the token ends.
    expires: u32,
    /// Second in the watch list at which this session is looked at next.
    watched: u32,
    keep_alive: u16,
    last_pkid: u16,
    stage: Stage,
    c2d_at_most_once: bool,
    /// It has more to read in the next turn.
    unfinished: bool,
    buffers: Option<Box<Buffers>>,
    rare: Option<Box<Rare>>,
}

/// What a session holds only now and then.
#[derive(Debug, Default)]
struct Buffers {
    partial: BytesMut,
    unsent: BytesMut,
}

/// What few sessions have.
#[derive(Debug, Default)]
struct Rare {
    will: Option<Will>,
    /// Packet identifier and delivery number of what is to be acknowledged.
    in_flight: Vec<(u16, u32)>,
    /// Who registers here.
    registration: Option<Registration>,
    /// What the client of a memory connection has shown, until it says who it is.
    peer: PeerIdentity,
}

impl Session {
    pub(crate) fn device(&self) -> Option<DeviceIx> {
        (self.stage == Stage::Open).then(|| DeviceIx::from_index(self.device))
    }

    pub(crate) fn stage(&self) -> Stage {
        self.stage
    }

    fn deadline(&self) -> u32 {
        match self.stage {
            Stage::New => self.seen.saturating_add(CONNECT_WITHIN),
            // The hub decides about it, and the queue that it waits in is bounded.
            Stage::Waiting => self.expires,
            Stage::Open | Stage::Registering => {
                let grace = u32::from(self.keep_alive) * 3 / 2 + 1;
                self.seen.saturating_add(grace).min(self.expires)
            }
        }
    }

    fn release_buffers(&mut self) {
        let empty = |buffers: &Buffers| buffers.partial.is_empty() && buffers.unsent.is_empty();
        if self.buffers.as_deref().is_some_and(empty) {
            self.buffers = None;
        }
    }

    fn release_rare(&mut self) {
        let empty = |rare: &Rare| {
            rare.will.is_none()
                && rare.in_flight.is_empty()
                && rare.registration.is_none()
                && rare.peer.chain().is_empty()
        };
        if self.rare.as_deref().is_some_and(empty) {
            self.rare = None;
        }
    }
}

/// The encoded packet of the last change of desired properties: a fleet gets the same one.
#[derive(Debug, Default)]
struct LastDesired {
    key: Option<(u64, u64)>,
    packet: BytesMut,
}

/// What happened while messages were sent, for the shard to deal with afterwards.
#[derive(Debug, Default)]
pub(crate) struct Aftermath {
    /// Sessions to end.
    pub(crate) ended: Vec<(u32, u32, End)>,
    /// Sessions that were accepted after a wait, and may have sent more meanwhile.
    pub(crate) resumed: Vec<u32>,
    /// Accepted, but gone meanwhile.
    pub(crate) orphans: Vec<(DeviceIx, u32)>,
    /// Deliveries that need no acknowledgement.
    pub(crate) completed: Vec<(DeviceIx, u32)>,
}

impl Aftermath {
    pub(crate) fn is_empty(&self) -> bool {
        self.ended.is_empty()
            && self.resumed.is_empty()
            && self.orphans.is_empty()
            && self.completed.is_empty()
    }
}

/// Counters of what was sent.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sending {
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
}

/// All sessions of a shard.
#[derive(Debug)]
pub(crate) struct Sessions {
    pub(crate) transports: Transports,
    table: Vec<Option<Session>>,
    free: Vec<u32>,
    /// The session of each device, by its index.
    by_device: Vec<u32>,
    /// The sessions that wait for the hub's answer, by their serial.
    connecting: FxHashMap<u32, u32>,
    /// Sessions to look at, by the second of the clock.
    watch: BTreeMap<u32, Vec<(u32, u32)>>,
    last_serial: u32,
    /// The session whose packets are read now: its answers are collected and sent as one.
    current: Option<u32>,
    answers: BytesMut,
    writer: codec::Writer,
    scratch: BytesMut,
    body: Vec<u8>,
    desired: LastDesired,
    pub(crate) aftermath: Aftermath,
    pub(crate) sending: Sending,
    /// Who is shown everything.
    pub(crate) tap: Option<Tap>,
    /// What is sent waits until the turn is durable.
    durable: bool,
    /// Sessions with something that waits for that, and lines to be closed after it.
    waiting: Vec<(u32, u32)>,
    closing: Vec<(Line, BytesMut)>,
    /// Sessions that are a device's now.
    pub(crate) open: u64,
    /// Sessions that ever were.
    pub(crate) accepted: u64,
    /// Connections that were refused because the device is disabled.
    pub(crate) disabled: u64,
    /// Connections that were refused because the hub's limit of them is used up.
    pub(crate) throttled: u64,
    /// Connections that ended because the device was disabled or deleted.
    pub(crate) withdrawn: u64,
}

pub(crate) fn seconds(now: Now) -> u32 {
    u32::try_from(now.at.as_micros() / 1_000_000).unwrap_or(NONE)
}

impl Sessions {
    pub(crate) fn new(transports: Transports, durable: bool) -> Self {
        Self {
            tap: None,
            durable,
            waiting: Vec::new(),
            closing: Vec::new(),
            transports,
            table: Vec::new(),
            free: Vec::new(),
            by_device: Vec::new(),
            connecting: FxHashMap::default(),
            watch: BTreeMap::new(),
            last_serial: 0,
            current: None,
            answers: BytesMut::new(),
            writer: codec::Writer::default(),
            scratch: BytesMut::new(),
            body: Vec::new(),
            desired: LastDesired::default(),
            aftermath: Aftermath::default(),
            sending: Sending::default(),
            open: 0,
            accepted: 0,
            disabled: 0,
            throttled: 0,
            withdrawn: 0,
        }
    }

    /// A session for a new connection; `line` gets the session's number.
    pub(crate) fn insert(&mut self, now: Now, line: impl FnOnce(u32) -> Line) -> u32 {
        let index = self.free.pop().unwrap_or_else(|| {
            self.table.push(None);
            u32::try_from(self.table.len() - 1).expect("fewer connections than that")
        });
        self.last_serial = self.last_serial.wrapping_add(1);
        self.table[index as usize] = Some(Session {
            line: line(index),
            device: NONE,
            serial: self.last_serial,
            seen: seconds(now),
            expires: NONE,
            watched: NONE,
            keep_alive: 0,
            last_pkid: 0,
            stage: Stage::New,
            c2d_at_most_once: false,
            unfinished: false,
            buffers: None,
            rare: None,
        });
        self.watch_from_now(index);
        index
    }

    pub(crate) fn get(&mut self, index: u32) -> Option<&mut Session> {
        self.table.get_mut(index as usize)?.as_mut()
    }

    /// Watches the socket of a new session.
    pub(crate) fn adopt(&mut self, index: u32) -> io::Result<()> {
        match self.table.get_mut(index as usize).and_then(Option::as_mut) {
            Some(session) => self.transports.adopt(&mut session.line, index),
            None => Ok(()),
        }
    }

    /// What the client has shown in its handshake.
    pub(crate) fn peer(&mut self, index: u32) -> PeerIdentity {
        let Some(session) = self.get(index) else { return PeerIdentity::NONE };
        match &session.rare {
            Some(rare) if !rare.peer.chain().is_empty() => rare.peer.clone(),
            _ => session.line.peer(),
        }
    }

    /// Somebody else did the handshake.
    pub(crate) fn set_peer(&mut self, index: u32, peer: PeerIdentity) {
        if let Some(session) = self.get(index) {
            session.rare.get_or_insert_default().peer = peer;
        }
    }

    pub(crate) fn is_unfinished(&mut self, index: u32) -> bool {
        self.get(index).is_some_and(|session| session.unfinished)
    }

    pub(crate) fn set_unfinished(&mut self, index: u32, unfinished: bool) {
        if let Some(session) = self.get(index) {
            session.unfinished = unfinished;
        }
    }

    /// Whether a session's next bytes cost a handshake.
    pub(crate) fn is_handshaking(&mut self, index: u32) -> bool {
        self.get(index).is_some_and(|session| session.line.is_handshaking())
    }

    /// Reads a session's socket once; `None` if it has none.
    pub(crate) fn receive(&mut self, index: u32, buffer: &mut [u8]) -> Option<Received> {
        let session = self.table.get_mut(index as usize)?.as_mut()?;
        self.transports.receive(&mut session.line, buffer)
    }

    /// Takes a session out. Its line is still open.
    pub(crate) fn remove(&mut self, index: u32) -> Option<Removed> {
        let session = self.table.get_mut(index as usize)?.take()?;
        self.free.push(index);
        match session.stage {
            Stage::New | Stage::Registering => {}
            Stage::Waiting => {
                self.connecting.remove(&session.serial);
            }
            Stage::Open => {
                self.open -= 1;
                let slot = &mut self.by_device[session.device as usize];
                if *slot == index {
                    *slot = NONE;
                }
            }
        }
        let device = session.device();
        let will = session.rare.and_then(|rare| rare.will);
        let unsent = session.buffers.map(|buffers| buffers.unsent).unwrap_or_default();
        Some(Removed { line: session.line, serial: session.serial, device, will, unsent })
    }

    /// All sessions there are.
    pub(crate) fn indices(&self) -> Vec<u32> {
        (0..).zip(&self.table).filter(|(_, session)| session.is_some()).map(|(index, _)| index).collect()
    }

    /// Bytes that sessions hold.
    pub(crate) fn buffered(&self) -> u64 {
        let held = |session: &Session| {
            session.line.buffered()
                + session
                    .buffers
                    .as_ref()
                    .map_or(0, |buffers| buffers.partial.capacity() + buffers.unsent.capacity())
        };
        self.table.iter().flatten().map(held).sum::<usize>() as u64
    }

    /// The client says who it is; the hub's answer is to come.
    pub(crate) fn identify(
        &mut self,
        index: u32,
        now: Now,
        keep_alive: u16,
        expires: WallTime,
        will: Option<Will>,
    ) {
        let Some(session) = self.table[index as usize].as_mut() else { return };
        let left = expires.as_unix_millis().saturating_sub(now.wall.as_unix_millis());
        let left = u32::try_from(left.div_ceil(1000)).unwrap_or(NONE);
        session.expires = seconds(now).saturating_add(left);
        session.keep_alive = if keep_alive == 0 { MAX_KEEP_ALIVE } else { keep_alive.min(MAX_KEEP_ALIVE) };
        session.stage = Stage::Waiting;
        if let Some(rare) = &mut session.rare {
            // It has served its purpose.
            rare.peer = PeerIdentity::NONE;
        }
        if will.is_some() {
            session.rare.get_or_insert_default().will = will;
        }
        session.release_rare();
        self.connecting.insert(session.serial, index);
    }

    /// The client is a device that wants to be registered.
    pub(crate) fn register(&mut self, index: u32, keep_alive: u16, registration: Registration) {
        let Some(session) = self.table[index as usize].as_mut() else { return };
        session.keep_alive = if keep_alive == 0 { MAX_KEEP_ALIVE } else { keep_alive.min(MAX_KEEP_ALIVE) };
        session.stage = Stage::Registering;
        let rare = session.rare.get_or_insert_default();
        rare.peer = PeerIdentity::NONE;
        rare.registration = Some(registration);
        self.watch_from_now(index);
    }

    /// The registration that a session is for.
    pub(crate) fn registration(&mut self, index: u32) -> Option<Registration> {
        self.get(index)?.rare.as_ref()?.registration.clone()
    }

    /// Answers the session whose packets are read now with a message.
    pub(crate) fn publish(&mut self, topic: &str, body: &[u8]) {
        self.sending.packets += 1;
        let buffer = self.writer.topic();
        buffer.clear();
        buffer.push_str(topic);
        let packet = Packet { payload: body, qos: QoS::AtMostOnce };
        self.writer.publish(packet, 0, &mut self.answers);
    }

    /// Something arrived. A client that has not said who it is gains no time by it.
    pub(crate) fn touch(&mut self, index: u32, now: Now) {
        if let Some(session) = self.get(index)
            && session.stage != Stage::New
        {
            session.seen = seconds(now);
        }
    }

    pub(crate) fn set_c2d_quality(&mut self, index: u32, at_most_once: bool) {
        if let Some(session) = self.get(index) {
            session.c2d_at_most_once = at_most_once;
        }
    }

    /// The delivery that a PUBACK completes.
    pub(crate) fn acknowledged(&mut self, index: u32, pkid: u16) -> Option<u32> {
        let session = self.get(index)?;
        let rare = session.rare.as_mut()?;
        let place = rare.in_flight.iter().position(|(sent, _)| *sent == pkid)?;
        let (_, delivery) = rare.in_flight.swap_remove(place);
        session.release_rare();
        Some(delivery)
    }

    /// The part of a packet that waited for the rest.
    pub(crate) fn take_partial(&mut self, index: u32) -> Option<BytesMut> {
        let session = self.get(index)?;
        let partial = std::mem::take(&mut session.buffers.as_mut()?.partial);
        session.release_buffers();
        (!partial.is_empty()).then_some(partial)
    }

    pub(crate) fn keep_partial(&mut self, index: u32, partial: BytesMut) {
        if let Some(session) = self.get(index) {
            session.buffers.get_or_insert_default().partial = partial;
        }
    }

    /// Starts collecting answers to a session.
    pub(crate) fn begin(&mut self, index: u32) {
        self.current = Some(index);
        self.answers.clear();
    }

    /// The buffer for answers to the session whose packets are read.
    pub(crate) fn answers(&mut self) -> &mut BytesMut {
        self.sending.packets += 1;
        &mut self.answers
    }

    /// Sends what was collected.
    pub(crate) fn finish(&mut self) {
        if let Some(index) = self.current.take()
            && !self.answers.is_empty()
        {
            let answers = std::mem::take(&mut self.answers);
            self.transmit(index, &answers);
            self.answers = answers;
        }
    }

    fn transmit(&mut self, index: u32, bytes: &[u8]) {
        let Some(session) = self.table.get_mut(index as usize).and_then(Option::as_mut) else { return };
        self.sending.bytes += bytes.len() as u64;
        if let Some(tap) = &self.tap {
            tap.down(session.serial, bytes);
        }
        if self.durable || session.buffers.as_ref().is_some_and(|buffers| !buffers.unsent.is_empty()) {
            let buffers = session.buffers.get_or_insert_default();
            if self.durable && buffers.unsent.is_empty() {
                self.waiting.push((index, session.serial));
            }
            buffers.unsent.extend_from_slice(bytes);
            if buffers.unsent.len() > MAX_UNSENT {
                self.aftermath.ended.push((index, session.serial, End::Slow));
            }
            return;
        }
        match self.transports.send(&mut session.line, bytes) {
            Sent::Bytes(sent) if sent == bytes.len() => {}
            Sent::Bytes(sent) => {
                session.buffers.get_or_insert_default().unsent.extend_from_slice(&bytes[sent..]);
            }
            Sent::Broken => self.aftermath.ended.push((index, session.serial, End::Lost)),
        }
    }

    /// Closes all connections without another byte: what they would be told is not durable.
    pub(crate) fn abandon(&mut self) {
        self.waiting.clear();
        for (line, _) in std::mem::take(&mut self.closing) {
            self.transports.close(line);
        }
        for index in self.indices() {
            if let Some(removed) = self.remove(index) {
                self.transports.close(removed.line);
            }
        }
        self.transports.flush();
    }

    /// Sends what waited until the turn was durable.
    pub(crate) fn let_go(&mut self) {
        for (index, serial) in std::mem::take(&mut self.waiting) {
            if self.get(index).is_some_and(|session| session.serial == serial) {
                self.writable(index);
            }
        }
        for (mut line, bytes) in std::mem::take(&mut self.closing) {
            let _ = self.transports.send(&mut line, &bytes);
            self.transports.close(line);
        }
    }

    /// Closes a line that was taken out, once its last bytes may go.
    pub(crate) fn close(&mut self, line: Line, unsent: BytesMut) {
        if self.durable && !unsent.is_empty() {
            self.closing.push((line, unsent));
        } else {
            self.transports.close(line);
        }
    }

    /// The transport can take bytes again.
    pub(crate) fn socket_writable(&mut self, index: u32) {
        // What was sent in this turn may stand behind what was left over from the last.
        if self.durable {
            if let Some(serial) = self.get(index).map(|session| session.serial) {
                self.waiting.push((index, serial));
            }
        } else {
            self.writable(index);
        }
    }

    fn writable(&mut self, index: u32) {
        let Some(session) = self.table.get_mut(index as usize).and_then(Option::as_mut) else { return };
        let Some(buffers) = &mut session.buffers else {
            // The transport may hold the rest of a record.
            if self.transports.send(&mut session.line, &[]) == Sent::Broken {
                self.aftermath.ended.push((index, session.serial, End::Lost));
            }
            return;
        };
        match self.transports.send(&mut session.line, &buffers.unsent) {
            Sent::Bytes(sent) if sent == buffers.unsent.len() => {
                buffers.unsent = BytesMut::new();
                session.release_buffers();
            }
            Sent::Bytes(sent) => buffers.unsent.advance(sent),
            Sent::Broken => self.aftermath.ended.push((index, session.serial, End::Lost)),
        }
    }

    /// The second of the clock at which some session is to be looked at.
    pub(crate) fn next_watch(&self) -> Option<u32> {
        self.watch.keys().next().copied()
    }

    fn watch_from_now(&mut self, index: u32) {
        let Some(session) = self.table[index as usize].as_mut() else { return };
        let deadline = session.deadline();
        if deadline < session.watched {
            session.watched = deadline;
            self.watch.entry(deadline).or_default().push((index, session.serial));
        }
    }

    /// Ends the sessions whose time is over. Each entry of the watch list is looked at when its second comes
    /// and put where its deadline is by then, so that traffic costs the list nothing.
    pub(crate) fn expire(&mut self, now: Now) {
        let now = seconds(now);
        while let Some(entry) = self.watch.first_entry()
            && *entry.key() <= now
        {
            let (second, due) = entry.remove_entry();
            for (index, serial) in due {
                let Some(session) = self.table[index as usize].as_mut() else { continue };
                if session.serial != serial || session.watched != second {
                    continue;
                }
                if session.deadline() <= now {
                    self.aftermath.ended.push((index, serial, End::Expired));
                } else {
                    session.watched = NONE;
                    self.watch_from_now(index);
                }
            }
        }
    }

    fn of(&self, device: DeviceIx) -> Option<u32> {
        self.by_device.get(device.index()).copied().filter(|index| *index != NONE)
    }
}

/// A session that was taken out.
pub(crate) struct Removed {
    pub(crate) line: Line,
    pub(crate) serial: u32,
    pub(crate) device: Option<DeviceIx>,
    pub(crate) will: Option<Will>,
    pub(crate) unsent: BytesMut,
}

impl Outlet for Sessions {
    fn accepted(&mut self, device: DeviceIx, serial: u32, session_present: bool) {
        let Some(index) = self.connecting.remove(&serial) else {
            self.aftermath.orphans.push((device, serial));
            return;
        };
        if self.by_device.len() <= device.index() {
            self.by_device.resize(device.index() + 1, NONE);
        }
        let session = self.table[index as usize].as_mut().expect("a session that connects is in the table");
        session.stage = Stage::Open;
        session.device = u32::try_from(device.index()).expect("an index of 32 bits");
        self.open += 1;
        self.accepted += 1;
        let before = std::mem::replace(&mut self.by_device[device.index()], index);
        if let Some(replaced) = self.table.get(before as usize).and_then(Option::as_ref) {
            self.aftermath.ended.push((before, replaced.serial, End::TakenOver));
        }
        self.watch_from_now(index);
        if self.current == Some(index) {
            codec::connack(ConnectReturnCode::Success, session_present, self.answers());
        } else {
            let mut packet = BytesMut::new();
            codec::connack(ConnectReturnCode::Success, session_present, &mut packet);
            self.sending.packets += 1;
            self.transmit(index, &packet);
            self.aftermath.resumed.push(index);
        }
    }

    fn refused(&mut self, serial: u32) {
        if let Some(index) = self.connecting.remove(&serial) {
            let mut packet = BytesMut::new();
            codec::connack(ConnectReturnCode::NotAuthorized, false, &mut packet);
            self.sending.packets += 1;
            self.transmit(index, &packet);
            self.disabled += 1;
            self.aftermath.ended.push((index, serial, End::Refused));
        }
    }

    fn close(&mut self, device: DeviceIx, serial: u32, why: Ending) {
        let index = self.connecting.get(&serial).copied().or_else(|| self.of(device));
        let Some(index) = index else { return };
        if self.get(index).is_some_and(|session| session.serial == serial) {
            let end = match why {
                Ending::TakenOver => End::TakenOver,
                Ending::Refused => {
                    self.withdrawn += 1;
                    End::Refused
                }
                Ending::Throttled => {
                    self.throttled += 1;
                    End::Refused
                }
            };
            self.aftermath.ended.push((index, serial, end));
        }
    }

    fn session(&self, device: DeviceIx) -> Option<u32> {
        let index = self.of(device)?;
        self.table[index as usize].as_ref().map(|session| session.serial)
    }

    fn down(&mut self, device: DeviceIx, id: &str, message: &Down<'_>, delivery: Option<u32>) {
        let Some(index) = self.of(device) else { return };
        let mut packet = Profile::IotHub.encode_down(id, message, self.writer.topic());
        let session = self.table[index as usize].as_mut().expect("a device's session is in the table");
        let mut pkid = 0;
        if let Some(delivery) = delivery {
            if session.c2d_at_most_once {
                packet.qos = QoS::AtMostOnce;
                self.aftermath.completed.push((device, delivery));
            } else {
                pkid = session.last_pkid.checked_add(1).unwrap_or(1);
                session.last_pkid = pkid;
                session.rare.get_or_insert_default().in_flight.push((pkid, delivery));
            }
        }
        self.sending.packets += 1;
        if self.current == Some(index) {
            self.writer.publish(packet, pkid, &mut self.answers);
        } else {
            let mut scratch = std::mem::take(&mut self.scratch);
            scratch.clear();
            self.writer.publish(packet, pkid, &mut scratch);
            self.transmit(index, &scratch);
            self.scratch = scratch;
        }
    }

    fn desired(&mut self, device: DeviceIx, id: &str, version: u64, patch: &DesiredPatch) {
        let Some(index) = self.of(device) else { return };
        let key = Some((patch.serial(), version));
        let mut last = std::mem::take(&mut self.desired);
        if last.key != key {
            self.body.clear();
            patch.write(version, &mut self.body);
            let message = Down::Desired { version, body: &self.body };
            let packet = Profile::IotHub.encode_down(id, &message, self.writer.topic());
            last.packet.clear();
            self.writer.publish(packet, 0, &mut last.packet);
            last.key = key;
        }
        self.sending.packets += 1;
        if self.current == Some(index) {
            self.answers.extend_from_slice(&last.packet);
        } else {
            self.transmit(index, &last.packet);
        }
        self.desired = last;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_small() {
        // Its record, its slot by device, and its entry in the watch list.
        let fixed = size_of::<Option<Session>>() + size_of::<u32>() + size_of::<(u32, u32)>();
        assert!(fixed <= 96, "{fixed} bytes");
    }
}
