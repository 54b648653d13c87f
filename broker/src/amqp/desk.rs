//! One client at the hub's AMQP endpoint: what its links lead to.
//!
//! A [`Desk`] puts IoT Hub's nodes behind a [`Connection`]. It has no socket and no clock, and what the shards have to do
//! it gives out as [`Work`]; what it reads are the hub's event log and mailboxes.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fleetwave_hub_core::HubError;
use fleetwave_protocol::{Instant, Now, WallTime};

use super::access::{self, Access};
use super::address::{self, Node};
use super::connection::{Config, Connection, Delivery, Event};
use super::devicebound::{self, Addressed};
use super::endpoint::{self, Accept};
use super::link::LinkId;
use super::management::{self, Status};
use super::message::{Body, Message};
use super::performative::{Attach, Error, Outcome, Symbol};
use super::readers::Readers;
use super::sasl::Credentials;
use super::source::{Mail, Reader};
use super::value::Value;
use crate::events::CloudEvents;
use crate::exposition::Instruments;
use crate::policy::{Policies, PolicyError, Rights};

/// How long a client may stay without showing a token.
const UNAUTHORISED: Duration = Duration::from_secs(60);
/// Bytes that may wait for the socket before no more is read from the log.
const BACKLOG: usize = 512 * 1024;
/// Answers that may wait for a client's credit.
const ANSWERS: usize = 64;
/// Messages that a client may have open on a link.
const WINDOW: u32 = 200;
/// A reader with this is told of the newest event with each.
const RUNTIME_METRIC: &str = "com.microsoft:enable-receiver-runtime-metric";

/// What all clients share.
pub(crate) struct Shared {
    pub(crate) policies: Arc<Policies>,
    pub(crate) cloud: Arc<CloudEvents>,
    pub(crate) readers: Arc<Readers>,
    pub(crate) instruments: Instruments,
    /// The port that clients are redirected to.
    pub(crate) port: u16,
}

/// What the shards have to do for a client. [`Desk::done`] is due for each.
#[derive(Debug, PartialEq)]
pub(crate) struct Work {
    pub(crate) link: LinkId,
    pub(crate) delivery: Delivery,
    pub(crate) send: Addressed,
}

/// The nodes to which requests are sent, and answers come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Office {
    Cbs,
    Management,
}

/// What is behind a link.
#[derive(Debug)]
enum Role {
    Requests(Office),
    Answers { office: Office, address: Option<String>, waiting: VecDeque<Bytes> },
    DeviceBound,
    Mail(Mail),
    Reader(Box<Reader>),
}

/// A client.
pub(crate) struct Desk {
    shared: Arc<Shared>,
    connection: Connection,
    access: Access,
    links: BTreeMap<LinkId, Role>,
    host: Option<String>,
    opened: Option<Instant>,
    work: VecDeque<Work>,
}

impl Desk {
    pub(crate) fn new(shared: Arc<Shared>, now: Instant) -> Self {
        let config = Config { container_id: shared.cloud.name().to_owned(), ..Config::default() };
        Self {
            shared,
            connection: Connection::new(config, now),
            access: Access::default(),
            links: BTreeMap::new(),
            host: None,
            opened: None,
            work: VecDeque::new(),
        }
    }

    /// Bytes came.
    pub(crate) fn receive(&mut self, now: Now, bytes: &[u8]) {
        self.connection.receive(now.at, bytes);
        self.pump(now);
    }

    /// The client has shown a token, without one.
    #[cfg(fuzzing)]
    pub(crate) fn authorise(&mut self, grant: access::Grant) {
        self.access.add(grant);
    }

    /// A piece of work is done.
    pub(crate) fn done(
        &mut self,
        now: Now,
        link: LinkId,
        delivery: Delivery,
        result: Result<(), Box<HubError>>,
    ) {
        let outcome = match result {
            Ok(()) => Outcome::Accepted,
            Err(error) => Outcome::Rejected(Some(devicebound::refusal(&error))),
        };
        self.connection.settle(link, delivery, &outcome);
        self.pump(now);
    }

    /// Time has passed, or there may be something new in the log or a mailbox.
    pub(crate) fn tick(&mut self, now: Now) {
        self.connection.tick(now.at);
        if self.access.ends().is_some_and(|ends| ends <= now.wall) {
            let error = Error::new("amqp:unauthorized-access", "ExpiredToken: the token has expired");
            self.connection.close(now.at, error);
        } else if self.access.is_empty() && self.opened.is_some_and(|opened| opened + UNAUTHORISED <= now.at)
        {
            let error = Error::new("amqp:unauthorized-access", "no token was shown on $cbs within a minute");
            self.connection.close(now.at, error);
        }
        self.pump(now);
    }

    /// When [`Desk::tick`] has something to do.
    pub(crate) fn deadline(&self, now: Now) -> Option<Instant> {
        let connection = self.connection.deadline();
        if !self.connection.is_running() {
            return connection;
        }
        let ends = self.access.ends().map(|ends| now.at + until(ends, now.wall));
        let silent = self.opened.filter(|_| self.access.is_empty()).map(|opened| opened + UNAUTHORISED);
        // Records whose lock expires can be sent, if they can be sent.
        let mail = self.links.iter().filter_map(|(&id, role)| match role {
            Role::Mail(mail) if self.may_send(id) => mail.mailbox(&self.shared.cloud).next_expiry(),
            _ => None,
        });
        [connection, ends, silent].into_iter().flatten().chain(mail).min()
    }

    fn may_send(&self, link: LinkId) -> bool {
        self.connection.backlog() < BACKLOG && self.connection.can_send(link)
    }

    /// Closes the connection, as the hub ends.
    pub(crate) fn close(&mut self, now: Now) {
        self.connection.close(now.at, Error::new("amqp:connection:forced", "the hub stops"));
        self.pump(now);
    }

    pub(crate) fn take_output(&mut self, now: Now) -> Vec<u8> {
        self.connection.take_output(now.at)
    }

    pub(crate) fn take_work(&mut self) -> Option<Work> {
        self.work.pop_front()
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.connection.is_closed()
    }

    /// Whether a change of the log or of a mailbox concerns this client.
    pub(crate) fn listens(&self) -> bool {
        self.links.values().any(|role| matches!(role, Role::Mail(_) | Role::Reader(_)))
    }

    /// Answers what the client did, and sends what there is for it.
    fn pump(&mut self, now: Now) {
        loop {
            while let Some(event) = self.connection.next_event() {
                self.event(now, event);
            }
            self.deliver(now);
            if !self.connection.has_events() {
                return;
            }
        }
    }

    fn event(&mut self, now: Now, event: Event) {
        match event {
            Event::Sasl(credentials) => {
                let accepted = self.credentials(&credentials, now.wall);
                self.connection.sasl_outcome(now.at, accepted);
            }
            Event::Opened(host) => {
                self.host = host;
                self.opened = Some(now.at);
            }
            Event::Attach(link, attach) => match self.attach(&attach, now) {
                Ok((role, accept)) => {
                    self.connection.accept(link, &attach, accept);
                    self.links.insert(link, role);
                    self.shared.instruments.link_attached();
                }
                Err(error) => {
                    tracing::debug!(condition = error.condition.0, why = error.description, "link refused");
                    self.connection.refuse(link, &attach, error);
                }
            },
            Event::Message { link, delivery, payload } => self.message(now, link, delivery, payload),
            Event::Settled { link, tag, outcome } => {
                if let Some(Role::Mail(mail)) = self.links.get_mut(&link) {
                    mail.settled(tag, outcome.as_ref(), now.at, &self.shared.cloud);
                }
            }
            Event::Detached(link) => {
                let Some(role) = self.links.remove(&link) else { return };
                self.shared.instruments.link_detached();
                if let Role::Mail(mut mail) = role {
                    mail.abandon(now.at, &self.shared.cloud);
                }
            }
        }
    }

    fn credentials(&mut self, credentials: &Credentials, wall: WallTime) -> bool {
        match credentials {
            Credentials::Later => true,
            Credentials::Unusable => false,
            Credentials::Plain { user, password } => {
                match access::check_plain(&self.shared.policies, user, password, wall) {
                    Ok(grant) => {
                        self.access.add(grant);
                        true
                    }
                    Err(error) => {
                        tracing::debug!(user, %error, "SASL PLAIN refused");
                        false
                    }
                }
            }
        }
    }

    /// What a link leads to, if the client may have it.
    fn attach(&self, attach: &Attach, now: Now) -> Result<(Role, Accept), Error> {
        let shared = &self.shared;
        let name = shared.cloud.name();
        let address = endpoint::address(attach).unwrap_or_default();
        let node = Node::of(&address, name);
        let requests = Accept { window: WINDOW, ..Accept::default() };
        match &node {
            Node::Device => {
                tracing::warn!(address, "devices over AMQP are not modelled");
                let text = "devices over AMQP are not modelled: use MQTT, or MQTT over WebSocket";
                return Err(Error::new("amqp:not-implemented", text));
            }
            Node::Unknown => {
                return Err(Error::new("amqp:not-found", format!("there is no node {address:?}")));
            }
            _ => {}
        }
        if let Some(resource) = node.resource(name) {
            self.access
                .check(&resource, Rights::SERVICE_CONNECT, now.wall)
                .map_err(|denied| Error::new("amqp:unauthorized-access", denied.to_string()))?;
        }
        let office = |office| match attach.role {
            false => Ok((Role::Requests(office), requests)),
            true => {
                let target = endpoint::target_address(attach);
                let answers = Role::Answers { office, address: target, waiting: VecDeque::new() };
                Ok((answers, Accept::default()))
            }
        };
        match (node, attach.role) {
            (Node::Cbs, _) => office(Office::Cbs),
            (Node::Management, _) => office(Office::Management),
            (Node::DeviceBound, false) => {
                Ok((Role::DeviceBound, Accept { window: WINDOW, ..Accept::default() }))
            }
            (Node::Feedback, true) => Ok((Role::Mail(Mail::feedback()), Accept::default())),
            (Node::FileNotifications, true) => Ok((Role::Mail(Mail::files()), Accept::default())),
            (Node::Events(rest), _) => Err(self.redirect(&rest)),
            (Node::Partition { group, partition }, true) => {
                let capabilities: Vec<Symbol> = attach
                    .desired_capabilities
                    .iter()
                    .filter(|capability| capability.0 == RUNTIME_METRIC)
                    .cloned()
                    .collect();
                let source = attach.source.clone().unwrap_or_default();
                let epoch = attach.properties.get("com.microsoft:epoch").and_then(Value::integer);
                let mut reader = Reader::new(shared, &group, &partition, epoch, &source.filter)?;
                reader.tells_newest = !capabilities.is_empty();
                let accept = Accept { capabilities, filter: source.filter, ..Accept::default() };
                Ok((Role::Reader(Box::new(reader)), accept))
            }
            (Node::EventHub, false) => Err(Error::new(
                "amqp:unauthorized-access",
                "Unauthorized access. 'Send' claim(s) are required to perform this operation: only devices send to \
                 the hub's event log",
            )),
            (Node::OtherEventHub(other), _) => Err(Error::new("amqp:not-found", self.no_event_hub(&other))),
            _ => Err(Error::new("amqp:not-allowed", format!("{address} is not for that direction"))),
        }
    }

    fn no_event_hub(&self, other: &str) -> String {
        let name = self.shared.cloud.name();
        format!(
            "The messaging entity {other:?} could not be found: the Event-Hub-compatible name is {name:?}"
        )
    }

    /// Sends a client to the Event-Hub-compatible name.
    fn redirect(&self, rest: &str) -> Error {
        let host = self.host.as_deref().unwrap_or("localhost");
        let host = host.split_once(':').map_or(host, |(host, _)| host);
        let address = format!("amqps://{host}:{}/{}/{rest}", self.shared.port, self.shared.cloud.name());
        let pairs = [
            ("hostname", Value::string(host)),
            ("network-host", Value::string(host)),
            ("port", Value::Uint(self.shared.port.into())),
            ("address", Value::String(address)),
        ];
        Error {
            info: Value::Map(pairs.map(|(key, value)| (Value::symbol(key), value)).into()),
            ..Error::new("amqp:link:redirect", "the events are at the Event-Hub-compatible endpoint")
        }
    }

    fn message(&mut self, now: Now, link: LinkId, delivery: Delivery, payload: Bytes) {
        let message = match Message::read(payload) {
            Ok(message) => message,
            Err(malformed) => {
                return self.connection.settle(link, delivery, &Outcome::Rejected(Some(malformed.into())));
            }
        };
        let outcome = match self.links.get(&link) {
            Some(Role::DeviceBound) => match devicebound::read(&message) {
                Ok(send) => return self.work.push_back(Work { link, delivery, send }),
                Err(error) => Outcome::Rejected(Some(error)),
            },
            Some(&Role::Requests(office)) => {
                let status = match office {
                    Office::Cbs => self.put_token(&message, now.wall),
                    Office::Management => {
                        management::read(&message, self.shared.cloud.name(), &self.shared.cloud.log)
                    }
                };
                self.answer(link, office, &message, status)
            }
            _ => Outcome::Released,
        };
        self.connection.settle(link, delivery, &outcome);
    }

    /// A token is shown on `$cbs`.
    fn put_token(&mut self, request: &Message, wall: WallTime) -> Status {
        let operation = request.property("operation").and_then(Value::text).unwrap_or_default();
        if operation != "put-token" {
            return Status::new(400, format!("the operation is {operation:?}: put-token was expected"));
        }
        let kind = request.property("type").and_then(Value::text).unwrap_or_default();
        let token = match &request.body {
            Body::Value(value) => value.text().unwrap_or_default(),
            Body::Data(data) => std::str::from_utf8(data).unwrap_or_default(),
            Body::Sequence => "",
        };
        if token.starts_with("Bearer ") || matches!(kind, "bearer" | "jwt") {
            tracing::warn!(kind, "asked for, and not modelled: tokens of Microsoft Entra ID");
            return Status::new(
                501,
                "tokens of Microsoft Entra ID are not modelled: use a shared access policy",
            );
        }
        let name = request.property("name").and_then(Value::text).unwrap_or_default();
        if let Some(other) = address::other_event_hub(name, self.shared.cloud.name()) {
            return Status::new(404, self.no_event_hub(other));
        }
        match access::check(&self.shared.policies, token, wall) {
            Ok(grant) => {
                self.access.add(grant);
                Status::new(200, "OK")
            }
            Err(PolicyError::NoPolicy) => {
                tracing::warn!("devices over AMQP are not modelled");
                Status::new(501, "the token names no policy, and devices over AMQP are not modelled")
            }
            Err(error) => {
                tracing::debug!(%error, "a token was refused");
                Status::new(401, error.to_string())
            }
        }
    }

    /// Puts an answer on the link that the request names, or on one of the same session, or on the newest.
    fn answer(&mut self, from: LinkId, office: Office, request: &Message, status: Status) -> Outcome {
        let reply_to = request.properties.reply_to.text();
        let session = self.connection.channel(from);
        let connection = &self.connection;
        let rank = |id: LinkId, address: &Option<String>| {
            (reply_to.is_some() && address.as_deref() == reply_to, connection.channel(id) == session, id)
        };
        let waiting = self
            .links
            .iter_mut()
            .filter_map(|(id, role)| match role {
                Role::Answers { office: of, address, waiting } if *of == office => {
                    Some((rank(*id, address), waiting))
                }
                _ => None,
            })
            .max_by_key(|(rank, _)| *rank)
            .map(|(_, waiting)| waiting);
        match waiting {
            Some(waiting) if waiting.len() < ANSWERS => {
                waiting.push_back(management::answer(request, status).to_bytes());
                Outcome::Accepted
            }
            Some(_) => Outcome::Rejected(Some(Error::new(
                "amqp:resource-limit-exceeded",
                "answers wait for credit on the receiving link",
            ))),
            None => Outcome::Rejected(Some(Error::new(
                "amqp:not-found",
                "there is no link for the answer: attach a receiver first",
            ))),
        }
    }

    /// Sends what there is on the links that have credit.
    fn deliver(&mut self, now: Now) {
        let (connection, cloud) = (&mut self.connection, &self.shared.cloud);
        let mut stolen = Vec::new();
        for (&id, role) in &mut self.links {
            if let Role::Reader(reader) = role
                && reader.is_stolen()
            {
                stolen.push(id);
                continue;
            }
            while connection.backlog() < BACKLOG && connection.can_send(id) {
                let (payload, tag) = match role {
                    Role::Answers { waiting, .. } => (waiting.pop_front(), None),
                    Role::Reader(reader) => (reader.next(cloud, now.wall), None),
                    Role::Mail(mail) => match mail.next(cloud, now) {
                        Some((payload, tag)) => (Some(payload), Some(tag)),
                        None => (None, None),
                    },
                    Role::Requests(_) | Role::DeviceBound => (None, None),
                };
                let Some(payload) = payload else {
                    connection.drained(id);
                    break;
                };
                let tracked = connection.send(id, payload, tag);
                if let (Role::Mail(mail), Some(tag), false) = (&mut *role, tag, tracked) {
                    // Sent settled: there will be no word of it.
                    mail.settled(tag, Some(&Outcome::Accepted), now.at, cloud);
                }
            }
        }
        for id in stolen {
            let text = "a receiver with a higher or the same epoch has taken the partition";
            self.connection.detach(id, Some(Error::new("amqp:link:stolen", text)));
        }
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        // Whatever was under way comes again at once, not when its lock expires.
        for role in self.links.values_mut() {
            self.shared.instruments.link_detached();
            if let Role::Mail(mail) = role {
                mail.abandon(Instant::ZERO, &self.shared.cloud);
            }
        }
    }
}

fn until(then: WallTime, now: WallTime) -> Duration {
    Duration::from_millis(then.as_unix_millis().saturating_sub(now.as_unix_millis()))
}
