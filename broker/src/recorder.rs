//! What a hub sees of its devices, message by message: for comparisons of one device with another.
//!
//! A [`Recorder`] is given to a hub and a blob endpoint, before they start. It keeps everything in memory: it is for
//! tests, not for service.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use bytes::BytesMut;
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::{Connect, Packet, Publish, SubscribeReasonCode};
use rustc_hash::FxHashMap;
use serde_json::Value;

use crate::session::End;

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Voice {
    /// A device, to the hub.
    Device,
    /// The hub, to a device.
    Hub,
    /// Whoever downloads, to the blob endpoint, which does not know devices.
    Download,
}

/// What a message carries.
#[derive(Clone, Debug, PartialEq)]
pub enum Body {
    /// Nothing.
    Empty,
    /// JSON.
    Json(Value),
    /// Something else, of so many bytes.
    Bytes(usize),
}

impl Body {
    fn read(bytes: &[u8]) -> Self {
        match serde_json::from_slice(bytes) {
            _ if bytes.is_empty() => Self::Empty,
            Ok(value) => Self::Json(value),
            Err(_) => Self::Bytes(bytes.len()),
        }
    }
}

/// One message, or the end of a connection.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The device's id; empty for a download.
    pub device: Arc<str>,
    /// Who speaks.
    pub voice: Voice,
    /// The packet's kind and what stands beside its body: `PUBLISH q0 $iothub/twin/GET/?$rid=1`.
    pub head: String,
    /// Its body.
    pub body: Body,
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.voice {
            Voice::Device => "-> ",
            Voice::Hub => "<- ",
            Voice::Download => "== ",
        })?;
        f.write_str(&self.head)?;
        match &self.body {
            Body::Empty => Ok(()),
            Body::Json(value) => write!(f, " {value}"),
            Body::Bytes(length) => write!(f, " ({length} bytes)"),
        }
    }
}

/// Keeps what was said, in the order in which the hub read and wrote it.
#[derive(Debug, Default)]
pub struct Recorder {
    entries: Mutex<Vec<Entry>>,
    more: Condvar,
    over: AtomicBool,
}

impl Recorder {
    /// All that was said so far.
    ///
    /// # Panics
    /// If a thread that recorded something has panicked.
    #[must_use]
    pub fn entries(&self) -> Vec<Entry> {
        self.entries.lock().expect("nothing panics under this lock").clone()
    }

    /// Waits for an entry that `wanted` accepts, from the `from`th on; gives the place behind it.
    ///
    /// # Panics
    /// If a thread that recorded something has panicked.
    #[must_use]
    pub fn wait(&self, from: usize, patience: Duration, wanted: impl Fn(&Entry) -> bool) -> Option<usize> {
        let mut entries = self.entries.lock().expect("nothing panics under this lock");
        let mut next = from;
        let give_up = std::time::Instant::now() + patience;
        loop {
            let found = entries.iter().skip(next).position(&wanted);
            if let Some(found) = found {
                return Some(next + found + 1);
            }
            next = next.max(entries.len());
            let left = give_up.checked_duration_since(std::time::Instant::now())?;
            entries = self.more.wait_timeout(entries, left).expect("nothing panics under this lock").0;
        }
    }

    /// Keeps nothing of what is said from now on.
    pub fn stop(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    pub(crate) fn download(&self, head: String) {
        self.add(Entry { device: "".into(), voice: Voice::Download, head, body: Body::Empty });
    }

    fn add(&self, entry: Entry) {
        if self.over.load(Ordering::Relaxed) {
            return;
        }
        self.entries.lock().expect("nothing panics under this lock").push(entry);
        self.more.notify_all();
    }
}

/// A shard's part of a recorder: which session is whose.
#[derive(Debug)]
pub(crate) struct Tap {
    recorder: Arc<Recorder>,
    names: FxHashMap<u32, Arc<str>>,
}

impl Tap {
    pub(crate) fn new(recorder: Arc<Recorder>) -> Self {
        Self { recorder, names: FxHashMap::default() }
    }

    fn add(&self, session: u32, voice: Voice, (head, body): (String, Body)) {
        if let Some(device) = self.names.get(&session).cloned() {
            self.recorder.add(Entry { device, voice, head, body });
        }
    }

    /// A session says who it is.
    pub(crate) fn connect(&mut self, session: u32, connect: &Connect) {
        self.names.insert(session, connect.client_id.as_str().into());
        let will = connect.last_will.as_ref().map_or(String::new(), |will| format!(" will={}", will.topic));
        let login = connect.login.as_ref().map_or("", |login| login.username.as_str());
        let (clean, keep_alive) = (connect.clean_session, connect.keep_alive);
        let head = format!("CONNECT clean={clean} keep_alive={keep_alive} user={login}{will}");
        self.add(session, Voice::Device, (head, Body::Empty));
    }

    /// A session's packet has come.
    pub(crate) fn up(&self, session: u32, packet: &Packet) {
        self.add(session, Voice::Device, told(packet));
    }

    /// Packets go to a session.
    pub(crate) fn down(&self, session: u32, bytes: &[u8]) {
        let mut bytes = BytesMut::from(bytes);
        while !bytes.is_empty()
            && let Ok(packet) = Packet::read(&mut bytes, usize::MAX)
        {
            self.add(session, Voice::Hub, told(&packet));
        }
    }

    /// A session has ended.
    pub(crate) fn end(&mut self, session: u32, why: End) {
        let (voice, head) = match why {
            // It has said so.
            End::Disconnected => (Voice::Device, None),
            End::Lost => (Voice::Device, Some("(the connection is lost)".to_owned())),
            other => (Voice::Hub, Some(format!("(the hub ends the connection: {other:?})"))),
        };
        if let Some(head) = head {
            self.add(session, voice, (head, Body::Empty));
        }
        self.names.remove(&session);
    }
}

fn told(packet: &Packet) -> (String, Body) {
    let head = match packet {
        Packet::Publish(publish) => return published(publish),
        Packet::ConnAck(ack) => format!("CONNACK {:?} session_present={}", ack.code, ack.session_present),
        Packet::PubAck(_) => "PUBACK".to_owned(),
        Packet::Subscribe(subscribe) => {
            let filters = subscribe.filters.iter();
            let filters: Vec<String> =
                filters.map(|filter| format!("{}@{}", filter.path, filter.qos as u8)).collect();
            format!("SUBSCRIBE {}", filters.join(" "))
        }
        Packet::SubAck(ack) => {
            let codes = ack.return_codes.iter().map(|code| match code {
                SubscribeReasonCode::Success(QoS::AtMostOnce) => "0",
                SubscribeReasonCode::Success(QoS::AtLeastOnce) => "1",
                SubscribeReasonCode::Success(QoS::ExactlyOnce) => "2",
                SubscribeReasonCode::Failure => "refused",
            });
            format!("SUBACK {}", codes.collect::<Vec<_>>().join(" "))
        }
        Packet::Unsubscribe(unsubscribe) => format!("UNSUBSCRIBE {}", unsubscribe.topics.join(" ")),
        Packet::UnsubAck(_) => "UNSUBACK".to_owned(),
        Packet::PingReq => "PINGREQ".to_owned(),
        Packet::PingResp => "PINGRESP".to_owned(),
        Packet::Disconnect => "DISCONNECT".to_owned(),
        other => format!("{other:?}"),
    };
    (head, Body::Empty)
}

fn published(publish: &Publish) -> (String, Body) {
    let retain = if publish.retain { " retain" } else { "" };
    let head = format!("PUBLISH q{}{retain} {}", publish.qos as u8, publish.topic);
    (head, Body::read(&publish.payload))
}
