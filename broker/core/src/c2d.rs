//! Cloud-to-device messages: a queue for each device that has any.
//!
//! Source: `articles/iot-hub/iot-hub-devguide-messages-c2d.md` in MicrosoftDocs/azure-docs. Over MQTT a message is
//! completed by its PUBACK, and one that is not acknowledged is delivered again when the device connects the next
//! time; over HTTPS the device fetches a message under a lock. The page's newest version says that only an explicit abandon, which MQTT does not have, counts as a delivery;
//! here, as in the versions before it, each delivery counts, so that a message that crashes its device ends.

mod lock;

use core::time::Duration;
use std::collections::VecDeque;
use std::sync::Arc;

use fleetwave_protocol::{Now, WallTime};

use crate::changes::UNSTORED;
use crate::device::Device;
use crate::error::{ErrorCode, HubError};
use crate::hub::Hub;
use crate::io::{DeviceIx, Done, Output, Topics};
use crate::limits;
use crate::record::{RecordError, fields, put_bytes, put_nested, put_number, put_text};
use crate::timers::{Due, Ticket};

/// Which ends of a message its sender wants to hear of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Feedback {
    /// None.
    #[default]
    None,
    /// That it was completed.
    Positive,
    /// That it was not.
    Negative,
    /// Either.
    Full,
}

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FeedbackStatus {
    /// The device acknowledged it.
    Success,
    /// Its time to live passed.
    Expired,
    /// It was delivered as often as allowed and never acknowledged.
    DeliveryCountExceeded,
    /// The device rejected it.
    Rejected,
    /// The queue was purged.
    Purged,
}

impl FeedbackStatus {
    /// The name that stands in feedback records.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Success => "Success",
            Self::Expired => "Expired",
            Self::DeliveryCountExceeded => "DeliveryCountExceeded",
            Self::Rejected => "Rejected",
            Self::Purged => "Purged",
        }
    }
}

/// A cloud-to-device message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct C2dMessage {
    /// The sender's id of the message, which feedback repeats.
    pub message_id: Option<Box<str>>,
    /// The encoded property bag.
    pub properties: Box<str>,
    /// The payload.
    pub body: Box<[u8]>,
    /// What the sender wants to hear.
    pub feedback: Feedback,
    /// When it expires; `None` is the hub's default time to live.
    pub expires: Option<WallTime>,
}

impl C2dMessage {
    pub(crate) fn write_record(&self, out: &mut Vec<u8>) {
        put_text(message::ID, self.message_id.as_deref(), out);
        put_bytes(message::PROPERTIES, self.properties.as_bytes(), out);
        put_bytes(message::BODY, &self.body, out);
        let feedback = match self.feedback {
            Feedback::None => 0,
            Feedback::Positive => 1,
            Feedback::Negative => 2,
            Feedback::Full => 3,
        };
        put_number(message::FEEDBACK, feedback, out);
        put_number(message::EXPIRES, self.expires.map_or(0, WallTime::as_unix_millis), out);
    }

    pub(crate) fn read_record(record: &[u8]) -> Result<Self, RecordError> {
        let mut read = Self::default();
        for field in fields(record) {
            let (field, value) = field?;
            match field {
                message::ID => read.message_id = Some(value.text()?.into()),
                message::PROPERTIES => read.properties = value.text()?.into(),
                message::BODY => read.body = value.bytes()?.into(),
                message::FEEDBACK => {
                    read.feedback = match value.number()? {
                        0 => Feedback::None,
                        1 => Feedback::Positive,
                        2 => Feedback::Negative,
                        3 => Feedback::Full,
                        _ => return Err(RecordError::Damaged("a message asks for an unknown feedback")),
                    };
                }
                message::EXPIRES => read.expires = Some(value.time()?),
                _ => {}
            }
        }
        Ok(read)
    }
}

/// The fields of a message's record.
mod message {
    pub(super) const ID: u64 = 1;
    pub(super) const PROPERTIES: u64 = 2;
    pub(super) const BODY: u64 = 3;
    pub(super) const FEEDBACK: u64 = 4;
    pub(super) const EXPIRES: u64 = 5;
}

/// The fields of an entry of a queue.
mod queued {
    pub(super) const PART: u64 = 1;
    pub(super) const EXPIRES: u64 = 2;
    pub(super) const DELIVERIES: u64 = 3;
}

/// What a store keeps of an entry beside its message.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Queued {
    /// The message's number in the store, or zero.
    pub(crate) part: u64,
    expires: WallTime,
    deliveries: u32,
}

impl Queued {
    pub(crate) fn read_record(record: &[u8]) -> Result<Self, RecordError> {
        let mut read = Self::default();
        for field in fields(record) {
            match field? {
                (queued::PART, value) => read.part = value.number()?,
                (queued::EXPIRES, value) => read.expires = value.time()?,
                (queued::DELIVERIES, value) => read.deliveries = value.small()?,
                _ => {}
            }
        }
        Ok(read)
    }
}

#[derive(Debug)]
struct Entry {
    message: Arc<C2dMessage>,
    queued: Queued,
    expiry: Ticket,
    holder: Holder,
}

#[cfg(test)]
impl Entry {
    fn is_worn(&self, most: u32) -> bool {
        self.holder != Holder::Nobody && self.queued.deliveries >= most
    }
}

/// Who has a message that waits to be completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holder {
    Nobody,
    /// The device, by a delivery on its connection.
    Connection(u32),
    /// The device, by a lock.
    Lock {
        token: u128,
        until: Ticket,
    },
}

/// The messages of one device, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    entries: VecDeque<Entry>,
}

impl Queue {
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// What would come back from a store, if a message may be delivered as often as that.
    #[cfg(test)]
    pub(crate) fn durable(&self, most: u32) -> Vec<(Arc<C2dMessage>, WallTime, u32)> {
        let entries = self.entries.iter().filter(|entry| !entry.is_worn(most));
        entries.map(|entry| (entry.message.clone(), entry.queued.expires, entry.queued.deliveries)).collect()
    }

    /// Whether a message is being delivered for the last time.
    #[cfg(test)]
    pub(crate) fn has_worn(&self, most: u32) -> bool {
        self.entries.iter().any(|entry| entry.is_worn(most))
    }

    /// The messages that have no number in the store, and where to note one.
    pub(crate) fn unstored(&mut self) -> impl Iterator<Item = (&C2dMessage, &mut u64)> {
        let entries = self.entries.iter_mut().filter(|entry| entry.queued.part == UNSTORED);
        entries.map(|entry| (&*entry.message, &mut entry.queued.part))
    }

    /// Writes what a store keeps of each entry, oldest first.
    pub(crate) fn write_records(&self, field: u64, out: &mut Vec<u8>) {
        for Entry { queued, .. } in &self.entries {
            put_nested(field, out, |out| {
                put_number(queued::PART, queued.part, out);
                put_number(queued::EXPIRES, queued.expires.as_unix_millis(), out);
                put_number(queued::DELIVERIES, u64::from(queued.deliveries), out);
            });
        }
    }
}

impl Hub {
    pub(crate) fn send_c2d(
        &mut self,
        now: Now,
        ix: DeviceIx,
        message: Arc<C2dMessage>,
        out: &mut Vec<Output>,
    ) {
        let result = self.enqueue(now, ix, message);
        let queued = result.is_ok();
        out.push(Output::Service(result.map_err(Box::new)));
        if queued {
            self.deliver_c2d(ix, out);
        }
    }

    fn enqueue(&mut self, now: Now, ix: DeviceIx, message: Arc<C2dMessage>) -> Result<Done, HubError> {
        if self.existing(ix)?.module {
            return Err(HubError::new(
                ErrorCode::InvalidOperation,
                "C2D messages are for devices: call a method of the module, or write its desired properties",
            ));
        }
        let size = message.properties.len() + message.body.len();
        if size > limits::C2D_SIZE {
            return Err(HubError::new(
                ErrorCode::MessageTooLarge,
                format!("the message has {size} bytes, the limit is {}", limits::C2D_SIZE),
            ));
        }
        let life = match message.expires {
            None => self.options.c2d_ttl,
            Some(expires) if expires > now.wall => {
                Duration::from_millis(expires.as_unix_millis() - now.wall.as_unix_millis())
            }
            Some(_) => {
                return Err(HubError::new(ErrorCode::InvalidMessageExpiryTime, "the message has expired"));
            }
        };
        let queue = self.c2d.entry(ix).or_default();
        if queue.len() >= limits::C2D_QUEUE {
            return Err(HubError::new(
                ErrorCode::DeviceMaximumQueueDepthExceeded,
                format!("{} messages wait for the device already", limits::C2D_QUEUE),
            ));
        }
        let expiry = self.timers.set(now.at + life, Due::C2dExpiry(ix));
        let expires =
            now.wall.as_unix_millis().saturating_add(life.as_millis().try_into().unwrap_or(u64::MAX));
        let queued = Queued { expires: WallTime::from_unix_millis(expires), ..Queued::default() };
        queue.entries.push_back(Entry { message, queued, expiry, holder: Holder::Nobody });
        self.changes.device(ix);
        Ok(Done::Queued { depth: queue.len() })
    }

    /// Delivers what waits, if the device is connected and listens.
    pub(crate) fn deliver_c2d(&mut self, ix: DeviceIx, out: &mut Vec<Output>) {
        if !self.device(ix).is_some_and(|device| device.hears(Topics::C2D)) {
            return;
        }
        let Some(queue) = self.c2d.get_mut(&ix) else { return };
        for entry in queue.entries.iter_mut().filter(|entry| entry.holder == Holder::Nobody) {
            self.deliveries = self.deliveries.wrapping_add(1);
            entry.queued.deliveries += 1;
            self.changes.device(ix);
            entry.holder = Holder::Connection(self.deliveries);
            let message = Arc::clone(&entry.message);
            out.push(Output::C2d { device: ix, delivery: self.deliveries, message });
        }
    }

    pub(crate) fn complete_c2d(&mut self, now: Now, ix: DeviceIx, delivery: u32, out: &mut Vec<Output>) {
        let connected = self.device(ix).is_some_and(Device::is_connected);
        if connected {
            let held = Holder::Connection(delivery);
            self.end_c2d(now, ix, FeedbackStatus::Success, out, |entry| entry.holder == held);
        }
    }

    pub(crate) fn expire_c2d(&mut self, now: Now, ix: DeviceIx, ticket: Ticket, out: &mut Vec<Output>) {
        self.end_c2d(now, ix, FeedbackStatus::Expired, out, |entry| entry.expiry == ticket);
    }

    pub(crate) fn purge_c2d(&mut self, now: Now, ix: DeviceIx, out: &mut Vec<Output>) {
        let waiting = self.c2d.get(&ix).map_or(0, Queue::len);
        let result = self.existing(ix).map(|_| Done::Purged { dropped: waiting });
        out.push(Output::Service(result.map_err(Box::new)));
        self.end_c2d(now, ix, FeedbackStatus::Purged, out, |_| true);
    }

    /// A connection ended: what was under way waits again, unless it was delivered as often as allowed.
    pub(crate) fn return_c2d(&mut self, now: Now, ix: DeviceIx, out: &mut Vec<Output>) {
        let most = self.options.c2d_max_deliveries;
        let held = |entry: &Entry| matches!(entry.holder, Holder::Connection(_));
        let worn = |entry: &Entry| held(entry) && entry.queued.deliveries >= most;
        self.end_c2d(now, ix, FeedbackStatus::DeliveryCountExceeded, out, worn);
        if let Some(queue) = self.c2d.get_mut(&ix) {
            let back = queue.entries.iter_mut().filter(|entry| held(entry));
            back.for_each(|entry| entry.holder = Holder::Nobody);
        }
    }

    /// Puts a message back that a store kept. One that was under way when the hub ended is so until
    /// [`Hub::return_c2d`].
    pub(crate) fn restore_c2d(&mut self, now: Now, ix: DeviceIx, message: Arc<C2dMessage>, queued: &Queued) {
        let left = queued.expires.as_unix_millis().saturating_sub(now.wall.as_unix_millis());
        let expiry = self.timers.set(now.at + Duration::from_millis(left), Due::C2dExpiry(ix));
        let holder = if queued.deliveries > 0 { Holder::Connection(0) } else { Holder::Nobody };
        let entry = Entry { message, queued: *queued, expiry, holder };
        self.c2d.entry(ix).or_default().entries.push_back(entry);
    }

    /// A device is gone, and with it, as on the real hub, what feedback was due.
    pub(crate) fn forget_c2d(&mut self, ix: DeviceIx) {
        for entry in self.c2d.remove(&ix).into_iter().flat_map(|queue| queue.entries) {
            self.timers.cancel(entry.expiry);
            if let Holder::Lock { until, .. } = entry.holder {
                self.timers.cancel(until);
            }
            self.changes.part_gone(entry.queued.part);
        }
    }

    fn end_c2d(
        &mut self,
        now: Now,
        ix: DeviceIx,
        status: FeedbackStatus,
        out: &mut Vec<Output>,
        ends: impl Fn(&Entry) -> bool,
    ) {
        let Some(queue) = self.c2d.get_mut(&ix) else { return };
        let (timers, changes) = (&mut self.timers, &mut self.changes);
        queue.entries.retain(|entry| {
            if !ends(entry) {
                return true;
            }
            timers.cancel(entry.expiry);
            if let Holder::Lock { until, .. } = entry.holder {
                timers.cancel(until);
            }
            changes.device(ix);
            changes.part_gone(entry.queued.part);
            let wanted = match entry.message.feedback {
                Feedback::None => false,
                Feedback::Positive => status == FeedbackStatus::Success,
                Feedback::Negative => status != FeedbackStatus::Success,
                Feedback::Full => true,
            };
            if wanted {
                let message = Arc::clone(&entry.message);
                out.push(Output::Feedback { device: ix, message, status, at: now.wall });
            }
            false
        });
        if queue.entries.is_empty() {
            self.c2d.remove(&ix);
        }
    }
}
