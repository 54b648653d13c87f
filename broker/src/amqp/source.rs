//! What the hub sends on links: events of a partition, and mail.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use fleetwave_protocol::{Instant, Now, WallTime};

use super::desk::Shared;
use super::event_message::{self, timestamp};
use super::management;
use super::message::{Body, Message};
use super::performative::{Error, Outcome, Properties};
use super::readers::{NoPlace, Place};
use super::selector;
use super::value::Value;
use crate::events::{CloudEvents, Entry, LockToken, Mailbox};

/// Events that are taken out of the log at once.
const BATCH: usize = 64;
/// Feedback records in one message.
const RECORDS: usize = 100;

/// A reader of a partition.
#[derive(Debug)]
pub(crate) struct Reader {
    place: Place,
    partition: usize,
    next: u64,
    /// What was taken out of the log and not sent yet.
    ahead: VecDeque<Arc<Entry>>,
    /// Each event comes with word of the newest.
    pub(crate) tells_newest: bool,
}

impl Reader {
    pub(crate) fn new(
        shared: &Shared,
        group: &str,
        partition: &str,
        epoch: Option<i64>,
        filter: &Value,
    ) -> Result<Self, Error> {
        let log = &shared.cloud.log;
        let start = selector::start(filter)
            .map_err(|unknown| Error::new("amqp:invalid-field", unknown.to_string()))?;
        let partition = management::partition(partition, log).ok_or_else(|| {
            let text = format!("there is no partition {partition:?}: they are 0 to {}", log.partitions() - 1);
            Error::new("com.microsoft:argument-out-of-range", text)
        })?;
        let place = shared.readers.enter(group, partition, epoch).map_err(|no_place| {
            let condition = match no_place {
                NoPlace::HigherEpoch(_) => "amqp:link:stolen",
                NoPlace::Full => "amqp:resource-limit-exceeded",
            };
            Error::new(condition, no_place.to_string())
        })?;
        if epoch.is_some() {
            // Those who lost their place shall hear of it.
            log.wake();
        }
        let next = log.position(partition, start);
        Ok(Self { place, partition, next, ahead: VecDeque::new(), tells_newest: false })
    }

    pub(crate) fn is_stolen(&self) -> bool {
        self.place.is_stolen()
    }

    /// The next event's bytes, if there is one.
    pub(crate) fn next(&mut self, cloud: &CloudEvents, wall: WallTime) -> Option<Bytes> {
        if self.ahead.is_empty() {
            self.ahead.extend(cloud.log.read(self.partition, self.next, BATCH));
        }
        let entry = self.ahead.pop_front()?;
        self.next = entry.sequence + 1;
        let newest = self.tells_newest.then(|| (cloud.log.info(self.partition), wall));
        Some(event_message::message(&entry, newest).to_bytes())
    }
}

/// A receiver of feedback or of file notifications.
#[derive(Debug)]
pub(crate) struct Mail {
    files: bool,
    locks: HashMap<u64, LockToken>,
    next_tag: u64,
}

impl Mail {
    pub(crate) fn feedback() -> Self {
        Self { files: false, locks: HashMap::new(), next_tag: 0 }
    }

    pub(crate) fn files() -> Self {
        Self { files: true, ..Self::feedback() }
    }

    pub(crate) fn mailbox<'a>(&self, cloud: &'a CloudEvents) -> &'a Mailbox {
        if self.files { &cloud.files } else { &cloud.feedback }
    }

    /// The next message's bytes, with what settles it. Feedback comes in batches, a notification of a file alone.
    pub(crate) fn next(&mut self, cloud: &CloudEvents, now: Now) -> Option<(Bytes, u64)> {
        let taken = self.mailbox(cloud).take(now.at, if self.files { 1 } else { RECORDS })?;
        let tag = self.next_tag;
        self.next_tag += 1;
        self.locks.insert(tag, taken.lock);
        let records = taken.records.join(",");
        let (kind, to, json) = if self.files {
            ("application/vnd.microsoft.iothub.filenotification.json", "filenotifications", records)
        } else {
            ("application/vnd.microsoft.iothub.feedback.json", "feedback", format!("[{records}]"))
        };
        let message = Message {
            properties: Properties {
                message_id: Value::string(taken.lock.to_string()),
                user_id: Value::Binary(cloud.name().to_owned().into()),
                to: Value::String(format!("/messages/serviceBound/{to}")),
                content_type: Value::symbol(kind),
                content_encoding: Value::symbol("utf-8"),
                creation_time: timestamp(now.wall),
                ..Properties::default()
            },
            annotations: vec![(Value::symbol("iothub-enqueuedtime"), timestamp(now.wall))],
            body: Body::Data(json.into()),
            ..Message::default()
        };
        Some((message.to_bytes(), tag))
    }

    /// The receiver has settled a message. Without an outcome it comes again.
    pub(crate) fn settled(&mut self, tag: u64, outcome: Option<&Outcome>, now: Instant, cloud: &CloudEvents) {
        let Some(lock) = self.locks.remove(&tag) else { return };
        match outcome {
            Some(Outcome::Accepted | Outcome::Rejected(_)) => self.mailbox(cloud).complete(now, lock),
            Some(Outcome::Released | Outcome::Modified(_)) | None => self.mailbox(cloud).abandon(now, lock),
        };
    }

    /// The receiver is gone: what it did not settle comes again.
    pub(crate) fn abandon(&mut self, now: Instant, cloud: &CloudEvents) {
        for (_, lock) in std::mem::take(&mut self.locks) {
            self.mailbox(cloud).abandon(now, lock);
        }
    }
}
