//! One AMQP connection from the service's side: bytes go in, bytes and [`Event`]s come out.
//!
//! It owns no socket, clock or thread. It knows AMQP and nothing of what the nodes behind the links do: whoever drives it
//! answers events with commands ([`Connection::accept`], [`Connection::send`], [`Connection::settle`]…).

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use fleetwave_protocol::Instant;

use super::frame::{self, Frame, Kind};
use super::link::{Link, LinkId};
use super::performative::{
    Attach, Close, Composite, Error, Open, Outcome, Performative, SaslInit, SaslOutcome,
};
use super::sasl::{self, Credentials};
use super::session::Session;
use super::value::{Malformed, Value};

const SASL_HEADER: [u8; 8] = *b"AMQP\x03\x01\x00\x00";
const AMQP_HEADER: [u8; 8] = *b"AMQP\x00\x01\x00\x00";

/// Before a client is let in, no frame may be longer; a token is some hundred bytes.
const SASL_FRAME: usize = 4096;
/// The smallest frame that every peer takes.
const MIN_FRAME: u32 = 512;
/// How long a peer has to answer a close.
const CLOSE_WAIT: Duration = Duration::from_secs(5);

/// What this side tells a peer of itself.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) container_id: String,
    pub(crate) max_frame_size: u32,
    pub(crate) channel_max: u16,
    /// The longest that a peer may be silent.
    pub(crate) idle: Duration,
    /// How long a peer has from connecting to its `open`.
    pub(crate) patience: Duration,
    /// The longest message that is put together.
    pub(crate) max_message: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            container_id: "fleetwave".to_owned(),
            max_frame_size: 65_536,
            channel_max: 255,
            idle: Duration::from_secs(240),
            patience: Duration::from_secs(30),
            max_message: 1 << 20,
        }
    }
}

/// What a peer did that someone has to answer.
#[derive(Debug, PartialEq)]
pub(crate) enum Event {
    /// It showed its credentials: [`Connection::sasl_outcome`] is due.
    Sasl(Credentials),
    /// It opened the connection, to this host.
    Opened(Option<String>),
    /// It attached a link: [`Connection::accept`] or [`Connection::refuse`] is due.
    Attach(LinkId, Box<Attach>),
    /// A message came: [`Connection::settle`] is due, also if it came settled.
    Message { link: LinkId, delivery: Delivery, payload: Bytes },
    /// A tracked delivery has its outcome, or is settled without (`None`).
    Settled { link: LinkId, tag: u64, outcome: Option<Outcome> },
    /// A link is gone.
    Detached(LinkId),
}

/// A delivery that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Delivery {
    pub(crate) id: u32,
    /// The sender wants no outcome.
    pub(crate) settled: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// A protocol header is due; the flag says whether SASL is done.
    Header {
        sasl_done: bool,
    },
    /// The client's SASL init is due.
    SaslInit,
    /// The outcome is due from whoever drives this.
    SaslOutcome,
    /// The peer's `open` is due.
    Open,
    Running,
    /// This side closed, and waits for the peer until then.
    Closing(Instant),
    Closed,
}

/// A connection.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(super) config: Config,
    phase: Phase,
    input: BytesMut,
    pub(super) output: Vec<u8>,
    pub(super) events: VecDeque<Event>,
    pub(super) sessions: BTreeMap<u16, Session>,
    pub(super) links: BTreeMap<LinkId, Link>,
    pub(super) next_link: u32,
    /// The longest frame that the peer takes.
    pub(super) remote_frame: usize,
    remote_idle: Option<Duration>,
    started: Instant,
    last_received: Instant,
    last_sent: Instant,
}

/// A connection that can't go on, with what the peer is told.
pub(super) type Violation = Error;

impl From<Malformed> for Error {
    fn from(malformed: Malformed) -> Self {
        Self::new("amqp:decode-error", malformed.to_string())
    }
}

impl Connection {
    pub(crate) fn new(config: Config, now: Instant) -> Self {
        Self {
            config,
            phase: Phase::Header { sasl_done: false },
            input: BytesMut::new(),
            output: Vec::new(),
            events: VecDeque::new(),
            sessions: BTreeMap::new(),
            links: BTreeMap::new(),
            next_link: 0,
            remote_frame: MIN_FRAME as usize,
            remote_idle: None,
            started: now,
            last_received: now,
            last_sent: now,
        }
    }

    /// Bytes came.
    pub(crate) fn receive(&mut self, now: Instant, bytes: &[u8]) {
        self.last_received = now;
        self.input.extend_from_slice(bytes);
        self.process(now);
    }

    /// The next thing that someone has to answer.
    pub(crate) fn next_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    pub(crate) fn has_events(&self) -> bool {
        !self.events.is_empty()
    }

    /// Bytes that wait to be sent.
    pub(crate) fn backlog(&self) -> usize {
        self.output.len()
    }

    /// The channel of a link's session.
    pub(crate) fn channel(&self, link: LinkId) -> Option<u16> {
        self.links.get(&link).map(|link| link.channel)
    }

    /// What has to be sent, and is now counted as sent.
    pub(crate) fn take_output(&mut self, now: Instant) -> Vec<u8> {
        if !self.output.is_empty() {
            self.last_sent = now;
        }
        std::mem::take(&mut self.output)
    }

    /// Whether nothing more will happen: the socket can be closed once the output is sent.
    pub(crate) fn is_closed(&self) -> bool {
        self.phase == Phase::Closed
    }

    /// Whether both sides have opened and neither has closed.
    pub(crate) fn is_running(&self) -> bool {
        self.phase == Phase::Running
    }

    /// When [`Connection::tick`] has something to do.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::Closed => None,
            Phase::Closing(until) => Some(until),
            Phase::Running => {
                // What waits to be sent will do as well.
                let heartbeat =
                    self.remote_idle.filter(|_| self.output.is_empty()).map(|idle| self.last_sent + idle);
                let silence = self.last_received + self.config.idle;
                Some(heartbeat.map_or(silence, |heartbeat| heartbeat.min(silence)))
            }
            _ => Some(self.started + self.config.patience),
        }
    }

    /// Time has passed.
    pub(crate) fn tick(&mut self, now: Instant) {
        match self.phase {
            Phase::Closed => {}
            Phase::Closing(until) if until <= now => self.phase = Phase::Closed,
            Phase::Closing(_) => {}
            Phase::Running => {
                if self.last_received + self.config.idle <= now {
                    let error = Error::new(
                        "amqp:resource-limit-exceeded",
                        "nothing was heard of the peer for longer than the idle time-out",
                    );
                    return self.close(now, error);
                }
                if self.output.is_empty() && self.remote_idle.is_some_and(|idle| self.last_sent + idle <= now)
                {
                    frame::put_empty(&mut self.output);
                }
            }
            _ if self.started + self.config.patience <= now => self.phase = Phase::Closed,
            _ => {}
        }
    }

    /// Answers [`Event::Sasl`].
    pub(crate) fn sasl_outcome(&mut self, now: Instant, accepted: bool) {
        if self.phase != Phase::SaslOutcome {
            return;
        }
        // 1: authentication failed.
        let outcome = SaslOutcome { code: u8::from(!accepted), additional_data: None };
        frame::put(Kind::Sasl, 0, &outcome.to_value(), &mut self.output);
        self.phase = if accepted { Phase::Header { sasl_done: true } } else { Phase::Closed };
        self.process(now);
    }

    /// Closes the connection with an error.
    pub(crate) fn close(&mut self, now: Instant, error: Error) {
        match self.phase {
            Phase::Closed | Phase::Closing(_) => {}
            Phase::Running => self.put(0, &Close { error: Some(error) }),
            Phase::Open => {
                let open = self.open();
                self.put(0, &open);
                self.put(0, &Close { error: Some(error) });
            }
            _ => return self.phase = Phase::Closed,
        }
        if !self.is_closed() {
            self.phase = Phase::Closing(now + CLOSE_WAIT);
        }
        self.forget_all();
    }

    pub(super) fn put(&mut self, channel: u16, composite: &impl Composite) {
        frame::put(Kind::Amqp, channel, &composite.to_value(), &mut self.output);
    }

    fn forget_all(&mut self) {
        self.sessions.clear();
        for (id, _) in std::mem::take(&mut self.links) {
            self.events.push_back(Event::Detached(id));
        }
    }

    fn process(&mut self, now: Instant) {
        loop {
            let step = match self.phase {
                Phase::Header { sasl_done } => self.header(sasl_done),
                Phase::SaslInit => self.sasl_init(),
                Phase::Open | Phase::Running | Phase::Closing(_) => self.amqp_frame(),
                Phase::SaslOutcome => return,
                Phase::Closed => return self.input.clear(),
            };
            match step {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    self.input.clear();
                    return self.close(now, error);
                }
            }
        }
    }

    /// A protocol header. A wrong one is answered with the right one, and the end.
    fn header(&mut self, sasl_done: bool) -> Result<bool, Violation> {
        let Some(header) = self.input.first_chunk::<8>().copied() else {
            let len = self.input.len().min(4);
            if self.input[..len] != SASL_HEADER[..len] {
                self.output.extend(SASL_HEADER);
                self.phase = Phase::Closed;
            }
            return Ok(false);
        };
        let _ = self.input.split_to(8);
        match header {
            SASL_HEADER if !sasl_done => {
                self.output.extend(SASL_HEADER);
                frame::put(Kind::Sasl, 0, &sasl::mechanisms().to_value(), &mut self.output);
                self.phase = Phase::SaslInit;
            }
            AMQP_HEADER => {
                self.output.extend(AMQP_HEADER);
                self.phase = Phase::Open;
            }
            _ => {
                self.output.extend(if sasl_done { AMQP_HEADER } else { SASL_HEADER });
                self.phase = Phase::Closed;
            }
        }
        Ok(true)
    }

    fn sasl_init(&mut self) -> Result<bool, Violation> {
        let init = match frame::take(&mut self.input, SASL_FRAME) {
            Ok(None) => return Ok(false),
            Ok(Some(Frame { kind: Kind::Sasl, mut body, .. })) => {
                Value::read(&mut body).and_then(SaslInit::from_value).ok()
            }
            Ok(Some(_)) | Err(_) => None,
        };
        self.phase = Phase::SaslOutcome;
        self.events.push_back(Event::Sasl(init.map_or(Credentials::Unusable, sasl::credentials)));
        Ok(true)
    }

    fn amqp_frame(&mut self) -> Result<bool, Violation> {
        let limit = self.config.max_frame_size as usize;
        let framing = |error: String| Error::new("amqp:connection:framing-error", error);
        let Some(frame) = frame::take(&mut self.input, limit).map_err(|error| framing(error.to_string()))?
        else {
            return Ok(false);
        };
        if frame.kind != Kind::Amqp {
            return Err(framing("a SASL frame after the SASL exchange".to_owned()));
        }
        let mut body = frame.body;
        if body.is_empty() {
            return Ok(true);
        }
        let performative = Performative::read(&mut body)?;
        match (self.phase, performative) {
            (Phase::Closing(_), Performative::Close(_)) => self.phase = Phase::Closed,
            (Phase::Closing(_), _) => {}
            (Phase::Open, Performative::Open(open)) => self.opened(open)?,
            (Phase::Running, Performative::Close(_)) => {
                self.put(0, &Close::default());
                self.phase = Phase::Closed;
                self.forget_all();
            }
            (Phase::Running, performative) => self.performative(frame.channel, performative)?,
            _ => return Err(Error::new("amqp:not-allowed", "an open was expected first")),
        }
        Ok(true)
    }

    fn open(&self) -> Open {
        Open {
            container_id: self.config.container_id.clone(),
            max_frame_size: Some(self.config.max_frame_size),
            channel_max: Some(self.config.channel_max),
            idle_time_out: Some(u32::try_from(self.config.idle.as_millis() / 2).unwrap_or(u32::MAX)),
            ..Open::default()
        }
    }

    fn opened(&mut self, open: Open) -> Result<(), Violation> {
        let theirs = open.max_frame_size.unwrap_or(u32::MAX);
        if theirs < MIN_FRAME {
            return Err(Error::new("amqp:invalid-field", "max-frame-size must be at least 512"));
        }
        self.remote_frame = theirs.min(self.config.max_frame_size) as usize;
        // Heartbeats at half of what the peer can bear; a peer that can bear next to nothing gets ten a second.
        self.remote_idle = open
            .idle_time_out
            .filter(|&millis| millis > 0)
            .map(|millis| Duration::from_millis((u64::from(millis) / 2).max(100)));
        let answer = self.open();
        self.put(0, &answer);
        self.phase = Phase::Running;
        self.events.push_back(Event::Opened(open.hostname));
        Ok(())
    }
}
