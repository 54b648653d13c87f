//! What has changed since a driver last made a shard durable, as records for a store.
//!
//! A store keeps four kinds of records. A *device* is small and refers to *parts* by number: documents, patterns,
//! layers and C2D messages, which are written once and, but for messages, shared by all devices of a shard that have
//! them. *Configurations* are kept by id, the same in every shard. Numbers are unique in the whole store and never
//! given twice: a shard takes every so-many-th.

use fleetwave_protocol::WallTime;

use crate::hub::Hub;
use crate::io::DeviceIx;
use crate::record::{put_bytes, put_nested, put_number, put_stamps, put_text, put_varint};
use crate::store::{DocId, LayerId, PatternId};

/// A change of what a store has to keep. All that [`Hub::take_changes`] gives at once belongs together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change<'a> {
    /// A part is new, or (`None`) nobody needs it any more.
    Part {
        /// Its number.
        number: u64,
        /// Its record.
        record: Option<&'a [u8]>,
    },
    /// A device or module is new or different, or (`None`) gone.
    Device {
        /// Its number. Devices that were made later have higher ones.
        number: u64,
        /// Its record.
        record: Option<&'a [u8]>,
    },
    /// A configuration is new or different, or (`None`) gone.
    Configuration {
        /// Its id.
        id: &'a str,
        /// Its record.
        record: Option<&'a [u8]>,
    },
}

/// Where a shard's numbers come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Numbers {
    /// The next one.
    pub next: u64,
    /// How far it is from one to the next: the number of shards.
    pub step: u64,
}

impl Numbers {
    fn take(&mut self) -> u64 {
        let number = self.next;
        self.next += self.step;
        number
    }
}

/// No number: it is not in the store.
pub(crate) const UNSTORED: u64 = 0;

/// What changed, noted only if somebody wants to know.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    numbers: Option<Numbers>,
    /// The devices that changed, once each, and a bit for each that is among them.
    devices: Vec<DeviceIx>,
    marks: Vec<u64>,
    /// The number of each device.
    device_numbers: Vec<u64>,
    /// Numbers of devices and C2D messages that are gone.
    devices_gone: Vec<u64>,
    parts_gone: Vec<u64>,
    configurations: Vec<Box<str>>,
}

impl Changes {
    /// Notes that a device has changed.
    pub(crate) fn device(&mut self, ix: DeviceIx) {
        if self.numbers.is_none() {
            return;
        }
        let (word, bit) = (ix.index() / 64, 1 << (ix.index() % 64));
        if self.marks.len() <= word {
            self.marks.resize(word + 1, 0);
        }
        if self.marks[word] & bit == 0 {
            self.marks[word] |= bit;
            self.devices.push(ix);
        }
    }

    /// Notes that a device is gone.
    pub(crate) fn device_gone(&mut self, ix: DeviceIx) {
        if let Some(number) = self.device_numbers.get(ix.index()).filter(|&&number| number != UNSTORED) {
            self.devices_gone.push(*number);
        }
    }

    /// Notes that nobody needs a part any more.
    pub(crate) fn part_gone(&mut self, number: u64) {
        if number != UNSTORED {
            self.parts_gone.push(number);
        }
    }

    /// Notes that a configuration has changed or is gone.
    pub(crate) fn configuration(&mut self, id: &str) {
        if self.numbers.is_some() && !self.configurations.iter().any(|known| **known == *id) {
            self.configurations.push(id.into());
        }
    }

    /// Says which number a device has in the store.
    pub(crate) fn set_number(&mut self, ix: DeviceIx, number: u64) {
        if self.device_numbers.len() <= ix.index() {
            self.device_numbers.resize(ix.index() + 1, UNSTORED);
        }
        self.device_numbers[ix.index()] = number;
    }

    fn number_of(&mut self, ix: DeviceIx) -> u64 {
        match self.device_numbers.get(ix.index()) {
            Some(&number) if number != UNSTORED => number,
            _ => {
                let number = self.fresh();
                self.set_number(ix, number);
                number
            }
        }
    }

    fn fresh(&mut self) -> u64 {
        self.numbers.as_mut().expect("changes are taken only where they are tracked").take()
    }

    fn is_empty(&self) -> bool {
        self.devices.is_empty()
            && self.devices_gone.is_empty()
            && self.parts_gone.is_empty()
            && self.configurations.is_empty()
    }
}

/// The fields of a device's record. The id comes first.
pub(crate) mod device {
    pub(crate) const ID: u64 = 1;
    pub(crate) const DISABLED: u64 = 2;
    pub(crate) const PERSISTENT: u64 = 3;
    pub(crate) const TOPICS: u64 = 4;
    pub(crate) const TAGS: u64 = 5;
    pub(crate) const LAYER: u64 = 6;
    pub(crate) const DESIRED: u64 = 7;
    pub(crate) const REPORTED: u64 = 8;
    pub(crate) const DESIRED_VERSION: u64 = 9;
    pub(crate) const REPORTED_VERSION: u64 = 10;
    pub(crate) const DESIRED_STAMPS: u64 = 11;
    pub(crate) const REPORTED_STAMPS: u64 = 12;
    pub(crate) const TWIN_VERSION: u64 = 13;
    pub(crate) const LAST_ACTIVITY: u64 = 14;
    pub(crate) const IDENTITY: u64 = 15;
    pub(crate) const MODEL: u64 = 16;
    pub(crate) const C2D: u64 = 17;
}

/// The fields of parts. Each kind has its own, so that the first one says what a part is.
pub(crate) mod part {
    pub(crate) const DOCUMENT: u64 = 1;
    pub(crate) const PATTERN_TEXT: u64 = 2;
    pub(crate) const PATTERN_SLOTS: u64 = 3;
    pub(crate) const LAYER_OWN: u64 = 4;
    pub(crate) const LAYER_TARGETED: u64 = 5;
    pub(crate) const MESSAGE: u64 = 6;
    pub(crate) const LAYER_MODULE: u64 = 7;
    /// Of the configuration named before: how often it had been written.
    pub(crate) const LAYER_WRITES: u64 = 8;
}

/// The fields of a configuration's record.
pub(crate) mod configuration {
    pub(crate) const ID: u64 = 1;
    pub(crate) const PRIORITY: u64 = 2;
    pub(crate) const CONDITION: u64 = 3;
    pub(crate) const CONTENT: u64 = 4;
    pub(crate) const TARGETS: u64 = 5;
    pub(crate) const METRIC: u64 = 6;
    pub(crate) const METRIC_NAME: u64 = 1;
    pub(crate) const METRIC_QUERY: u64 = 2;
    pub(crate) const LABELS: u64 = 7;
    pub(crate) const SCHEMA_VERSION: u64 = 8;
    pub(crate) const WRITTEN: u64 = 9;
    pub(crate) const CREATED: u64 = 10;
    pub(crate) const WRITES: u64 = 11;
    pub(crate) const ORDER: u64 = 12;
}

impl Hub {
    /// From now on notes what changes, for [`Hub::take_changes`]. To be called on a hub without devices.
    pub fn track_changes(&mut self, numbers: Numbers) {
        self.changes.numbers = Some(numbers);
    }

    /// Whether [`Hub::take_changes`] has something to give.
    #[must_use]
    pub fn has_changes(&self) -> bool {
        !(self.changes.is_empty() && self.store.gone.is_empty())
    }

    /// Gives what has changed since the last call, in an order in which nothing refers to what comes later. Nothing, if
    /// changes are not tracked.
    pub fn take_changes(&mut self, mut each: impl FnMut(Change<'_>)) {
        if self.changes.numbers.is_none() {
            return;
        }
        let mut record = Vec::new();
        for number in self.store.gone.drain(..).chain(self.changes.parts_gone.drain(..)) {
            each(Change::Part { number, record: None });
        }
        for number in self.changes.devices_gone.drain(..) {
            each(Change::Device { number, record: None });
        }
        for id in std::mem::take(&mut self.changes.configurations) {
            record.clear();
            let written = self.configurations.write_record(&id, &mut record);
            each(Change::Configuration { id: &id, record: written.then_some(&record[..]) });
        }
        let devices = std::mem::take(&mut self.changes.devices);
        self.changes.marks.fill(0);
        for ix in devices {
            if self.exists(ix) {
                self.write_device(ix, &mut record, &mut each);
            }
        }
    }

    fn write_device(&mut self, ix: DeviceIx, record: &mut Vec<u8>, each: &mut impl FnMut(Change<'_>)) {
        let Some(device) = self.device(ix) else { return };
        let (tags, layer) = (device.tags, device.layer);
        let (desired, reported) = (device.desired, device.reported);
        let tags = self.document_part(tags, record, each);
        let layer = self.layer_part(layer, record, each);
        let desired_part = self.pattern_part(desired.pattern, record, each);
        let reported_part = self.pattern_part(reported.pattern, record, each);
        self.message_parts(ix, record, each);
        let number = self.changes.number_of(ix);
        let Some(device) = self.device(ix) else { return };
        record.clear();
        put_bytes(device::ID, self.id(ix).as_bytes(), record);
        put_number(device::DISABLED, u64::from(!device.enabled), record);
        let (persistent, topics) = device.lasting();
        put_number(device::PERSISTENT, u64::from(persistent), record);
        put_number(device::TOPICS, u64::from(topics.bits()), record);
        put_number(device::TAGS, tags, record);
        put_number(device::LAYER, layer, record);
        put_number(device::DESIRED, desired_part, record);
        put_number(device::REPORTED, reported_part, record);
        put_number(device::DESIRED_VERSION, u64::from(desired.version), record);
        put_number(device::REPORTED_VERSION, u64::from(reported.version), record);
        for (field, section) in [(device::DESIRED_STAMPS, desired), (device::REPORTED_STAMPS, reported)] {
            let stamps = self.stamps.run(section.stamps, self.store.slots(section.pattern));
            put_nested(field, record, |out| put_stamps(stamps, out));
        }
        put_number(device::TWIN_VERSION, u64::from(device.twin_version), record);
        let last_activity = device.last_activity().map_or(0, WallTime::as_unix_millis);
        put_number(device::LAST_ACTIVITY, last_activity, record);
        if let Some(kept) = self.identities.get(&ix).filter(|_| device.kept) {
            put_nested(device::IDENTITY, record, |out| kept.write_record(out));
        }
        put_text(device::MODEL, self.models.get(&ix).map(|model| &**model), record);
        if let Some(queue) = self.c2d.get(&ix) {
            queue.write_records(device::C2D, record);
        }
        each(Change::Device { number, record: Some(record) });
    }

    fn document_part(&mut self, id: DocId, record: &mut Vec<u8>, each: &mut impl FnMut(Change<'_>)) -> u64 {
        if self.store.doc(id).stored == UNSTORED {
            let number = self.changes.fresh();
            record.clear();
            put_bytes(part::DOCUMENT, self.store.doc(id).text().as_bytes(), record);
            each(Change::Part { number, record: Some(record) });
            self.store.doc_mut(id).stored = number;
        }
        self.store.doc(id).stored
    }

    fn pattern_part(
        &mut self,
        id: PatternId,
        record: &mut Vec<u8>,
        each: &mut impl FnMut(Change<'_>),
    ) -> u64 {
        if *self.store.pattern_stored(id) == UNSTORED {
            let number = self.changes.fresh();
            record.clear();
            let text = self.store.doc(self.store.pattern_doc(id)).text();
            put_bytes(part::PATTERN_TEXT, text.as_bytes(), record);
            let slots = self.store.node_slots(id);
            // Nothing: it was written all at once.
            if slots.iter().any(|&slot| slot != 0) {
                put_nested(part::PATTERN_SLOTS, record, |out| {
                    slots.iter().for_each(|&slot| put_varint(u64::from(slot), out));
                });
            }
            each(Change::Part { number, record: Some(record) });
            *self.store.pattern_stored(id) = number;
        }
        *self.store.pattern_stored(id)
    }

    fn layer_part(&mut self, id: LayerId, record: &mut Vec<u8>, each: &mut impl FnMut(Change<'_>)) -> u64 {
        if self.store.layer(id).stored == UNSTORED {
            let own = self.document_part(self.store.layer(id).own, record, each);
            let number = self.changes.fresh();
            record.clear();
            put_number(part::LAYER_OWN, own, record);
            let layer = self.store.layer(id);
            for (id, writes) in self.configurations.written(layer.targeted) {
                put_bytes(part::LAYER_TARGETED, id.as_bytes(), record);
                put_number(part::LAYER_WRITES, u64::from(writes), record);
            }
            put_text(part::LAYER_MODULE, self.configurations.name_of(layer.part), record);
            each(Change::Part { number, record: Some(record) });
            self.store.layer_mut(id).stored = number;
        }
        self.store.layer(id).stored
    }

    fn message_parts(&mut self, ix: DeviceIx, record: &mut Vec<u8>, each: &mut impl FnMut(Change<'_>)) {
        let Some(queue) = self.c2d.get_mut(&ix) else { return };
        for (message, number) in queue.unstored() {
            *number = self.changes.fresh();
            record.clear();
            put_nested(part::MESSAGE, record, |out| message.write_record(out));
            each(Change::Part { number: *number, record: Some(record) });
        }
    }
}
