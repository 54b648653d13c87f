//! Cloud-to-device messages: a queue for each device that has any.
//!
//! Source: `articles/iot-hub/iot-hub-devguide-messages-c2d.md` in MicrosoftDocs/azure-docs. Over MQTT a message is
//! completed by its PUBACK, and one that is not acknowledged is delivered again when the device connects the next
//! time. The page's newest version says that only an explicit abandon, which MQTT does not have, counts as a delivery;
//! here, as in the versions before it, each delivery counts, so that a message that crashes its device ends.

use core::time::Duration;
use std::collections::VecDeque;
use std::sync::Arc;

use fleetwave_protocol::{Now, WallTime};

use crate::device::Device;
use crate::error::{ErrorCode, HubError};
use crate::hub::Hub;
use crate::io::{DeviceIx, Done, Output, Topics};
use crate::limits;
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

#[derive(Debug)]
struct Entry {
    message: Arc<C2dMessage>,
    expiry: Ticket,
    deliveries: u32,
    /// The delivery that waits for its acknowledgement.
    under_way: Option<u32>,
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
        queue.entries.push_back(Entry { message, expiry, deliveries: 0, under_way: None });
        Ok(Done::Queued { depth: queue.len() })
    }

    /// Delivers what waits, if the device is connected and listens.
    pub(crate) fn deliver_c2d(&mut self, ix: DeviceIx, out: &mut Vec<Output>) {
        if !self.device(ix).is_some_and(|device| device.hears(Topics::C2D)) {
            return;
        }
        let Some(queue) = self.c2d.get_mut(&ix) else { return };
        for entry in queue.entries.iter_mut().filter(|entry| entry.under_way.is_none()) {
            self.deliveries = self.deliveries.wrapping_add(1);
            entry.deliveries += 1;
            entry.under_way = Some(self.deliveries);
            let message = Arc::clone(&entry.message);
            out.push(Output::C2d { device: ix, delivery: self.deliveries, message });
        }
    }

    pub(crate) fn complete_c2d(&mut self, now: Now, ix: DeviceIx, delivery: u32, out: &mut Vec<Output>) {
        let connected = self.device(ix).is_some_and(Device::is_connected);
        if connected {
            self.end_c2d(now, ix, FeedbackStatus::Success, out, |entry| entry.under_way == Some(delivery));
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
        let worn = |entry: &Entry| entry.under_way.is_some() && entry.deliveries >= most;
        self.end_c2d(now, ix, FeedbackStatus::DeliveryCountExceeded, out, worn);
        if let Some(queue) = self.c2d.get_mut(&ix) {
            queue.entries.iter_mut().for_each(|entry| entry.under_way = None);
        }
    }

    /// A device is gone, and with it, as on the real hub, what feedback was due.
    pub(crate) fn forget_c2d(&mut self, ix: DeviceIx) {
        for entry in self.c2d.remove(&ix).into_iter().flat_map(|queue| queue.entries) {
            self.timers.cancel(entry.expiry);
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
        let timers = &mut self.timers;
        queue.entries.retain(|entry| {
            if !ends(entry) {
                return true;
            }
            timers.cancel(entry.expiry);
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
