//! A shard's thread: it waits for sockets, ports and operators, and lets its sessions talk.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use crossbeam_channel::Receiver;
use fleetwave_hub_core::DeviceIx;
use fleetwave_protocol::Instant;
use mio::{Events, Interest, Poll, Token};
use rumqttc::mqttbytes::v4::{Connect, ConnectReturnCode};
use rustls::ServerConfig;

use crate::Assign;
use crate::auth::Gate;
use crate::codec::{self, Fault, MAX_PACKET};
use crate::control::Command;
use crate::dialog::Flow;
use crate::dps::Dps;
use crate::engine::Engine;
use crate::inbox::{Inbox, Message};
use crate::listen::{ACCEPT_PAUSE, Port};
use crate::memory::{Batch, Event, HubPort};
use crate::session::{End, Sessions, Stage};
use crate::store::StoreError;
use crate::transport::memory::Wire;
use crate::transport::tcp::Received;
use crate::transport::tls::TlsLine;
use crate::transport::{Line, Transport};
use crate::view::ShardView;

/// The token of the first door; those behind it follow. Tokens below are sessions.
const FIRST_DOOR: usize = usize::MAX - 16;
pub(crate) const WAKER: Token = Token(usize::MAX);

/// Connections that are accepted before the shard looks at anything else.
const ACCEPT_BATCH: usize = 256;
/// Reads of one socket before the others have their turn.
const READS_A_TURN: usize = 16;
/// Reads of sockets that are in their handshake before the established ones have their turn again: each may cost a
/// signature.
const HANDSHAKES_A_TURN: u32 = 64;
const READ_BUFFER: usize = 64 * 1024;
/// The longest sleep. A clock that was moved forward is noticed within it.
const NAP: Duration = Duration::from_millis(500);

/// One of a hub's shards.
pub(crate) struct Shard {
    pub(crate) index: usize,
    pub(crate) shards: Arc<[Inbox]>,
    pub(crate) assign: Assign,
    pub(crate) gate: Arc<Gate>,
    pub(crate) engine: Engine,
    pub(crate) sessions: Sessions,
    pub(crate) dps: Option<Arc<Dps>>,
    poll: Poll,
    inbox: Receiver<Message>,
    doors: Vec<Door>,
    /// The hub is down until then.
    down_until: Option<Instant>,
    /// Sockets that have more to read.
    unfinished: Vec<u32>,
    /// What is left of [`HANDSHAKES_A_TURN`].
    handshakes: u32,
    read_buffer: Vec<u8>,
    input: BytesMut,
    stopping: bool,
}

/// One of a shard's ways in: its hold on a port.
pub(crate) struct Door {
    port: Arc<Port>,
    /// How it speaks TLS, if it does.
    tls: Option<Arc<ServerConfig>>,
    listener: Option<mio::net::TcpListener>,
    /// Connections are waiting that no event will announce again.
    accept_at: Option<Instant>,
}

impl Door {
    pub(crate) fn new(port: Arc<Port>, tls: Option<Arc<ServerConfig>>) -> Self {
        Self { port, tls, listener: None, accept_at: None }
    }
}

/// What a shard is made of.
pub(crate) struct Parts {
    pub(crate) index: usize,
    pub(crate) shards: Arc<[Inbox]>,
    pub(crate) assign: Assign,
    pub(crate) gate: Arc<Gate>,
    pub(crate) engine: Engine,
    pub(crate) sessions: Sessions,
    pub(crate) dps: Option<Arc<Dps>>,
    pub(crate) poll: Poll,
    pub(crate) inbox: Receiver<Message>,
    pub(crate) doors: Vec<Door>,
}

impl Shard {
    pub(crate) fn new(parts: Parts) -> Self {
        Self {
            index: parts.index,
            shards: parts.shards,
            assign: parts.assign,
            gate: parts.gate,
            engine: parts.engine,
            sessions: parts.sessions,
            dps: parts.dps,
            poll: parts.poll,
            inbox: parts.inbox,
            doors: parts.doors,
            down_until: None,
            unfinished: Vec::new(),
            handshakes: HANDSHAKES_A_TURN,
            read_buffer: vec![0; READ_BUFFER],
            input: BytesMut::new(),
            stopping: false,
        }
    }

    /// Runs until the hub stops.
    pub(crate) fn run(mut self) {
        let mut events = Events::with_capacity(4096);
        self.listen();
        while !self.stopping {
            let timeout = self.timeout();
            match self.poll.poll(&mut events, Some(timeout)) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    tracing::error!(%error, "the hub cannot poll its sockets");
                    break;
                }
            }
            let began = std::time::Instant::now();
            self.turn(&events);
            self.engine.instruments().turn(began.elapsed());
        }
        self.drop_connections();
        match self.engine.commit() {
            Ok(()) => {
                self.sessions.let_go();
                self.sessions.transports.flush();
            }
            Err(error) => self.give_up(&error),
        }
    }

    /// Nothing can be made durable any more: ends without telling anybody anything, and the other shards with it.
    fn give_up(&mut self, error: &StoreError) {
        if !self.stopping {
            tracing::error!(shard = self.index, %error, "a shard ends");
            for shard in self.shards.iter() {
                // One that has ended already is fine.
                let _ = shard.send(Message::Command(Command::Stop));
            }
        }
        self.stopping = true;
        self.sessions.abandon();
    }

    fn turn(&mut self, events: &Events) {
        self.handshakes = HANDSHAKES_A_TURN;
        while let Ok(message) = self.inbox.try_recv() {
            self.message(message);
        }
        for index in std::mem::take(&mut self.unfinished) {
            self.sessions.set_unfinished(index, false);
            self.readable(index, true);
        }
        for event in events {
            match event.token() {
                WAKER => {}
                Token(token) if token >= FIRST_DOOR => {
                    self.doors[token - FIRST_DOOR].accept_at = Some(Instant::ZERO);
                }
                Token(index) => {
                    let index = u32::try_from(index).expect("the token of a session is its index");
                    if event.is_writable() {
                        self.sessions.socket_writable(index);
                    }
                    // One that was interrupted has had its part of this turn, and will see to the end.
                    if (event.is_readable() || event.is_read_closed() || event.is_error())
                        && !self.sessions.is_unfinished(index)
                    {
                        self.readable(index, event.is_read_closed() || event.is_error());
                    }
                }
            }
        }
        let now = self.engine.now();
        for door in 0..self.doors.len() {
            if self.doors[door].accept_at.is_some_and(|at| at <= now.at) {
                self.accept(door);
            }
        }
        if self.down_until.is_some_and(|until| until <= now.at) {
            self.down_until = None;
            self.listen();
        }
        self.engine.tick(&mut self.sessions);
        self.sessions.expire(now);
        self.settle();
        if let Err(error) = self.engine.commit() {
            return self.give_up(&error);
        }
        self.sessions.let_go();
        self.settle();
        self.sessions.transports.flush();
    }

    fn timeout(&self) -> Duration {
        if !self.unfinished.is_empty() {
            return Duration::ZERO;
        }
        let watch =
            self.sessions.next_watch().map(|second| Instant::from_micros(u64::from(second) * 1_000_000));
        let next = [watch, self.engine.next_deadline(), self.down_until];
        let doors = self.doors.iter().map(|door| door.accept_at);
        let Some(next) = next.into_iter().chain(doors).flatten().min() else { return NAP };
        // Timers of the system have a resolution of a millisecond: rounding down would spin.
        let left = next.since(self.engine.now().at);
        Duration::from_millis(fleetwave_protocol::time::micros(left).div_ceil(1000)).min(NAP)
    }

    fn listen(&mut self) {
        for (door, token) in self.doors.iter_mut().zip(FIRST_DOOR..) {
            if door.listener.is_some() {
                continue;
            }
            let opened = door.port.open().map_err(|error| error.to_string()).and_then(|mut listener| {
                let registry = self.poll.registry();
                registry
                    .register(&mut listener, Token(token), Interest::READABLE)
                    .map_err(|error| error.to_string())?;
                Ok(listener)
            });
            match opened {
                Ok(listener) => {
                    door.listener = Some(listener);
                    // What arrived before the registration makes no event.
                    door.accept_at = Some(Instant::ZERO);
                }
                Err(error) => {
                    tracing::warn!(error, "the hub cannot open its port again yet");
                    self.down_until = Some(self.engine.now().at + ACCEPT_PAUSE);
                }
            }
        }
    }

    fn accept(&mut self, door: usize) {
        let now = self.engine.now();
        for _ in 0..ACCEPT_BATCH {
            let door = &mut self.doors[door];
            let Some(listener) = &door.listener else {
                door.accept_at = None;
                return;
            };
            match listener.accept() {
                Ok((stream, _)) => match &door.tls {
                    None => drop(self.open_line(Line::Tcp(stream))),
                    Some(config) => match TlsLine::new(stream, config.clone()) {
                        Ok(line) => drop(self.open_line(Line::Tls(Box::new(line)))),
                        Err(error) => tracing::error!(%error, "the hub cannot speak TLS"),
                    },
                },
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    door.accept_at = None;
                    return;
                }
                Err(error) => {
                    tracing::warn!(%error, "the hub cannot accept a connection");
                    door.accept_at = Some(now.at + ACCEPT_PAUSE);
                    return;
                }
            }
        }
        self.doors[door].accept_at = Some(Instant::ZERO);
    }

    fn open_line(&mut self, line: Line) -> Option<u32> {
        let now = self.engine.now();
        let index = self.sessions.insert(now, |_| line);
        if let Err(error) = self.sessions.adopt(index) {
            tracing::warn!(%error, "a connection cannot be watched");
            self.end(index, End::Lost);
            return None;
        }
        Some(index)
    }

    fn message(&mut self, message: Message) {
        match message {
            Message::Port { id, batches, waker } => {
                self.sessions.transports.memory.open(id, HubPort::new(batches, waker));
            }
            Message::PortClosed { id } => {
                let id = u32::try_from(id).expect("fewer ports than that");
                let sessions = self.sessions.transports.memory.port(id).map(|port| port.open_sessions());
                for index in sessions.unwrap_or_default() {
                    self.end(index, End::Lost);
                }
                self.sessions.transports.memory.forget(id);
            }
            Message::Batch { port, batch, unread } => {
                self.batch(port, &batch);
                unread.fetch_sub(batch.weight(), std::sync::atomic::Ordering::Relaxed);
            }
            Message::Handover { line, connect, rest } => {
                if let Some(index) = self.open_line(line) {
                    self.adopt(index, *connect, rest);
                    // The end may have been read already, and makes no second event.
                    self.put_off(index);
                }
            }
            Message::Command(command) => {
                if let Some(command) = self.engine.command(command, &mut self.sessions) {
                    self.command(command);
                }
                self.settle();
            }
        }
    }

    fn batch(&mut self, port: usize, batch: &Batch) {
        let port_number = u32::try_from(port).expect("fewer ports than that");
        for (number, event) in batch.iter() {
            let Some(hub_port) = self.sessions.transports.memory.port(port_number) else { return };
            match (hub_port.session(number), event) {
                (None, Event::Opened) if self.down_until.is_some() => {
                    // What a closed port does to a SYN.
                    hub_port.bind(number, 0);
                    hub_port.close(number);
                }
                (None, Event::Opened) => {
                    let wire = Wire { port: port_number, number };
                    let now = self.engine.now();
                    let index = self.sessions.insert(now, |_| Line::Memory(wire));
                    if let Some(hub_port) = self.sessions.transports.memory.port(port_number) {
                        hub_port.bind(number, index);
                    }
                    if let Some(peer) = batch.peer(number) {
                        self.sessions.set_peer(index, peer.clone());
                    }
                }
                (Some(index), Event::Bytes(bytes)) => self.arrived(index, bytes),
                (Some(index), Event::Closed) => self.end(index, End::Lost),
                // Bytes that crossed the hub's own close; or a number that is open already.
                (None, Event::Bytes(_) | Event::Closed) | (Some(_), Event::Opened) => {}
            }
        }
    }

    /// A socket has something to read, or (`to_the_end`) has been closed by its client.
    fn readable(&mut self, index: u32, to_the_end: bool) {
        if self.sessions.is_handshaking(index) {
            if self.handshakes == 0 {
                self.put_off(index);
                return;
            }
            self.handshakes -= 1;
        }
        for _ in 0..READS_A_TURN {
            let mut buffer = std::mem::take(&mut self.read_buffer);
            let Some(received) = self.sessions.receive(index, &mut buffer) else {
                self.read_buffer = buffer;
                return;
            };
            match received {
                Received::Full(length) | Received::Drained(length) if length > 0 => {
                    self.arrived(index, &buffer[..length]);
                }
                _ => {}
            }
            self.read_buffer = buffer;
            match received {
                Received::Ended => return self.end(index, End::Lost),
                // The end of the stream makes no second event: read until it shows.
                Received::Drained(length) if !to_the_end || length == 0 => return,
                Received::Full(_) | Received::Drained(_) => {}
            }
        }
        self.put_off(index);
    }

    /// A session has more to read, in the next turn.
    fn put_off(&mut self, index: u32) {
        if !self.sessions.is_unfinished(index) {
            self.sessions.set_unfinished(index, true);
            self.unfinished.push(index);
        }
    }

    /// Bytes arrived for a session, over whichever transport.
    pub(crate) fn arrived(&mut self, index: u32, bytes: &[u8]) {
        let now = self.engine.now();
        self.engine.metrics.bytes_in += bytes.len() as u64;
        self.sessions.touch(index, now);
        let own = self.sessions.take_partial(index);
        let shared = own.is_none();
        let mut input = own.unwrap_or_else(|| std::mem::take(&mut self.input));
        input.extend_from_slice(bytes);
        self.sessions.begin(index);
        let mut end = None;
        let mut elsewhere = None;
        loop {
            let connected = match self.sessions.get(index).map(|session| session.stage()) {
                Some(Stage::New) => false,
                Some(Stage::Open | Stage::Registering) => true,
                Some(Stage::Waiting) | None => break,
            };
            match codec::read(&mut input, connected) {
                Ok(None) => break,
                Ok(Some(packet)) => match self.packet(index, now, packet) {
                    Flow::Next | Flow::Wait => {}
                    Flow::Elsewhere(shard, connect) => {
                        elsewhere = Some((shard, connect));
                        break;
                    }
                    Flow::End(why) => {
                        end = Some(why);
                        break;
                    }
                },
                Err(fault) => {
                    end = Some(self.fault(index, fault));
                    break;
                }
            }
        }
        self.sessions.finish();
        if input.len() > MAX_PACKET + 5 {
            // Only a client that does not wait for its CONNACK gets here.
            end = Some(End::Faulty);
        }
        if end.is_none() && elsewhere.is_none() && !input.is_empty() {
            let partial = if shared { BytesMut::from(&input[..]) } else { std::mem::take(&mut input) };
            self.sessions.keep_partial(index, partial);
        }
        let rest = elsewhere.is_some().then(|| BytesMut::from(&input[..]));
        if shared {
            input.clear();
            self.input = input;
        }
        if let Some(end) = end {
            self.end(index, end);
        }
        if let (Some((shard, connect)), Some(rest)) = (elsewhere, rest) {
            self.hand_over(index, shard, connect, rest);
        }
        self.settle();
    }

    fn fault(&mut self, index: u32, fault: Fault) -> End {
        tracing::debug!(session = index, %fault, "a connection is closed");
        if fault == Fault::OtherProtocol {
            codec::connack(ConnectReturnCode::RefusedProtocolVersion, false, self.sessions.answers());
        }
        End::Faulty
    }

    fn hand_over(&mut self, index: u32, shard: usize, connect: Box<Connect>, rest: BytesMut) {
        let Some(removed) = self.sessions.remove(index) else { return };
        let mut line = removed.line;
        if self.sessions.transports.release(&mut line) {
            self.shards[shard].send(Message::Handover { line, connect, rest });
        } else {
            // A client of the memory transport chose the shard, and chose wrong.
            self.sessions.transports.close(line);
        }
    }

    /// Deals with what sending has brought about.
    fn settle(&mut self) {
        while !self.sessions.aftermath.is_empty() {
            let aftermath = std::mem::take(&mut self.sessions.aftermath);
            for (device, delivery) in aftermath.completed {
                self.engine.acknowledge(device, delivery, &mut self.sessions);
            }
            for (device, serial) in aftermath.orphans {
                self.engine.disconnect(device, serial, &mut self.sessions);
            }
            for (index, serial, end) in aftermath.ended {
                if self.sessions.get(index).is_some_and(|session| session.serial == serial) {
                    self.end(index, end);
                }
            }
            for index in aftermath.resumed {
                self.arrived(index, &[]);
            }
        }
    }

    /// Ends a session.
    pub(crate) fn end(&mut self, index: u32, why: End) {
        let Some(removed) = self.sessions.remove(index) else { return };
        if let Some(tap) = &mut self.sessions.tap {
            tap.end(removed.serial, why);
        }
        let metrics = &mut self.engine.metrics;
        match why {
            End::Disconnected | End::Lost | End::Down => {}
            End::Refused => metrics.refused += 1,
            End::Faulty => metrics.faulty += 1,
            End::Expired => metrics.expired += 1,
            End::Slow => metrics.slow += 1,
            End::TakenOver => metrics.taken_over += 1,
        }
        self.sessions.close(removed.line, removed.unsent);
        let Some(device) = removed.device else { return };
        if let Some(will) = removed.will
            && !matches!(why, End::Disconnected | End::Down)
        {
            self.publish_will(device, removed.serial, &will);
        }
        self.engine.disconnect(device, removed.serial, &mut self.sessions);
    }

    fn publish_will(&mut self, device: DeviceIx, serial: u32, will: &codec::Will) {
        use fleetwave_protocol::{Profile, Up, bag};
        let decoded = Profile::IotHub.decode_up(self.engine.id(device), &will.topic, &will.body);
        if let Ok(Up::Telemetry { properties, body }) = decoded {
            let mut properties = properties.to_owned();
            bag::push(&mut properties, "iothub-MessageType", "Will");
            let message = Up::Telemetry { properties: &properties, body };
            self.engine.up(device, serial, message, &mut self.sessions);
        }
    }

    /// The device that a session belongs to, and the session's serial.
    pub(crate) fn open(&mut self, index: u32) -> Option<(DeviceIx, u32)> {
        let session = self.sessions.get(index)?;
        Some((session.device()?, session.serial))
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Stop => self.stopping = true,
            Command::Metrics { answer } => {
                let mut metrics = self.engine.counted();
                metrics.inbox = self.inbox.len() as u64;
                metrics.connections = self.sessions.open;
                metrics.accepted = self.sessions.accepted;
                metrics.refused_disabled = self.sessions.disabled;
                metrics.refused_throttled = self.sessions.throttled;
                metrics.withdrawn = self.sessions.withdrawn;
                metrics.packets_out = self.sessions.sending.packets;
                metrics.bytes_out = self.sessions.sending.bytes;
                metrics.buffered = self.sessions.buffered();
                answer.send(metrics);
            }
            Command::Restart { until, answer } => {
                let began = self.engine.now().at;
                for door in &mut self.doors {
                    door.listener = None;
                    door.accept_at = None;
                    door.port.close();
                }
                self.drop_connections();
                self.engine.forget_requests();
                self.down_until = Some(until);
                answer.send(began);
            }
            Command::Run(job) => {
                let release = job(&mut ShardView::new(&mut self.engine, &mut self.sessions));
                self.engine.release(release);
            }
            // The engine does all others.
            _ => {}
        }
    }

    fn drop_connections(&mut self) {
        for index in self.sessions.indices() {
            self.end(index, End::Down);
        }
    }
}

#[cfg(test)]
#[path = "reactor_tests.rs"]
mod tests;
