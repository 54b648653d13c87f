//! Makes a shard anew from the records that [`Hub::take_changes`] gave.

use std::sync::Arc;

use fleetwave_protocol::{Now, WallTime};
use rustc_hash::{FxHashMap, FxHashSet};

use crate::c2d::{C2dMessage, Queued};
use crate::changes::{Changes, Numbers, UNSTORED, configuration, device, part};
use crate::configuration::{Active, Configuration, ConfigurationSpec, Kind};
use crate::device::{NewTwin, Section};
use crate::hub::{Cycle, Hub, Options};
use crate::identities::Kept;
use crate::identity::split;
use crate::io::{DeviceIx, Output, Topics};
use crate::record::{RecordError, Value, fields, take_stamps, take_varint};
use crate::stamps::Stamp;
use crate::store::{DocId, LayerId, PatternId};
use crate::tree::Tree;

/// Where a shard that is restored finds parts.
pub trait Parts {
    /// The record of a part, and whether this shard is the one that keeps it: of shards that all need a part one keeps
    /// it, the others write it again under another number.
    fn part(&mut self, number: u64) -> Option<(&[u8], bool)>;
}

/// The id of the device or module that a record is of.
///
/// # Errors
/// If it is no record of a device.
pub fn device_id(record: &[u8]) -> Result<&str, RecordError> {
    match fields(record).next().transpose()? {
        Some((device::ID, id)) => id.text(),
        _ => Err(RecordError::Damaged("it does not begin with an id")),
    }
}

/// A shard on its way back: configurations first, then devices in the order of their numbers.
#[derive(Debug)]
pub struct Restore {
    hub: Hub,
    /// What parts have become, and whether this shard keeps them.
    documents: FxHashMap<u64, (DocId, bool)>,
    patterns: FxHashMap<u64, (PatternId, bool)>,
    layers: FxHashMap<u64, (LayerId, bool)>,
    /// Layers of configurations that have changed since: a change was under way, and this shard had not done it.
    stale: FxHashSet<u64>,
    /// Devices that the change concerns.
    torn: Vec<DeviceIx>,
}

/// What a device's record says, with its parts still to be found.
#[derive(Default)]
struct Fields<'a> {
    id: &'a str,
    disabled: bool,
    persistent: bool,
    topics: Topics,
    tags: u64,
    layer: u64,
    desired: SectionFields<'a>,
    reported: SectionFields<'a>,
    twin_version: u32,
    last_activity: WallTime,
    identity: Option<&'a [u8]>,
    model: Option<&'a str>,
    c2d: Vec<&'a [u8]>,
}

#[derive(Clone, Copy, Default)]
struct SectionFields<'a> {
    pattern: u64,
    version: u32,
    stamps: &'a [u8],
}

impl<'a> Fields<'a> {
    fn read(record: &'a [u8]) -> Result<Self, RecordError> {
        let mut read = Self::default();
        for field in fields(record) {
            let (field, value) = field?;
            match field {
                device::ID => read.id = value.text()?,
                device::DISABLED => read.disabled = value.number()? != 0,
                device::PERSISTENT => read.persistent = value.number()? != 0,
                device::TOPICS => read.topics = Topics::from_bits(value.number()?),
                device::TAGS => read.tags = value.number()?,
                device::LAYER => read.layer = value.number()?,
                device::DESIRED => read.desired.pattern = value.number()?,
                device::REPORTED => read.reported.pattern = value.number()?,
                device::DESIRED_VERSION => read.desired.version = value.small()?,
                device::REPORTED_VERSION => read.reported.version = value.small()?,
                device::DESIRED_STAMPS => read.desired.stamps = value.bytes()?,
                device::REPORTED_STAMPS => read.reported.stamps = value.bytes()?,
                device::TWIN_VERSION => read.twin_version = value.small()?,
                device::LAST_ACTIVITY => read.last_activity = value.time()?,
                device::IDENTITY => read.identity = Some(value.bytes()?),
                device::MODEL => read.model = Some(value.text()?),
                device::C2D => read.c2d.push(value.bytes()?),
                _ => {}
            }
        }
        Ok(read)
    }
}

impl Restore {
    /// Begins with an empty shard, whose new records will take their numbers from `numbers`.
    #[must_use]
    pub fn new(options: Options, numbers: Numbers) -> Self {
        let mut hub = Hub::new(options);
        hub.track_changes(numbers);
        Self {
            hub,
            documents: FxHashMap::default(),
            patterns: FxHashMap::default(),
            layers: FxHashMap::default(),
            stale: FxHashSet::default(),
            torn: Vec::new(),
        }
    }

    /// Puts all configurations back. They are to be given before any device.
    ///
    /// # Errors
    /// If a record is damaged, or says what this hub refuses. The place of the record comes with it.
    pub fn configurations<'a>(
        &mut self,
        records: impl IntoIterator<Item = &'a [u8]>,
    ) -> Result<(), (usize, RecordError)> {
        let mut read = Vec::new();
        for (place, record) in records.into_iter().enumerate() {
            let (order, configuration) = read_configuration(record).map_err(|error| (place, error))?;
            read.push((order, place, configuration));
        }
        read.sort_unstable_by_key(|&(order, place, _)| (order, place));
        for (order, place, configuration) in read {
            let restored = self.hub.configurations.restore(Arc::new(configuration), order);
            restored.map_err(|error| (place, error.into()))?;
        }
        Ok(())
    }

    /// Puts a device or module back. Its number must be higher than those before, and a module's device be there.
    ///
    /// # Errors
    /// If the record or a part of it is damaged or missing. The shard is then of no use.
    pub fn device(
        &mut self,
        now: Now,
        number: u64,
        record: &[u8],
        parts: &mut impl Parts,
    ) -> Result<(), RecordError> {
        let read = Fields::read(record)?;
        if read.id.is_empty() || self.hub.find(read.id).is_some() {
            return Err(RecordError::Damaged("its id is missing or another device has it"));
        }
        let (device_id, module) = split(read.id);
        let parent = match module {
            None => None,
            Some(_) => Some(
                self.hub.find(device_id).ok_or(RecordError::Damaged("it is a module without its device"))?,
            ),
        };
        let (tags, keeps_tags) = self.document(read.tags, parts)?;
        let (layer, keeps_layer) = self.layer(read.layer, parts)?;
        let (desired, keeps_desired) = self.section(read.desired, parts)?;
        let (reported, keeps_reported) = self.section(read.reported, parts)?;
        let identity = read.identity.map(Kept::read_record).transpose()?;
        let kind = match (&identity, parent) {
            (_, Some(_)) => Kind::Module,
            (Some(kept), None) if kept.identity.edge => Kind::EdgeDevice,
            (_, None) => Kind::Device,
        };
        let twin = NewTwin { tags, layer, desired, reported, enabled: !read.disabled, kind };
        let hub = &mut self.hub;
        hub.store.layer_mut(layer).devices += 1;
        let ix = hub.registry.add(read.id, twin);
        hub.changes.set_number(ix, number);
        if !(keeps_tags && keeps_layer && keeps_desired && keeps_reported) {
            hub.changes.device(ix);
        }
        if let Some(parent) = parent {
            hub.modules.entry(parent).or_default().push(ix);
        }
        let is_laid_over = hub.store.layer(layer).doc == hub.store.pattern_doc(desired.pattern);
        if !is_laid_over || self.stale.contains(&read.layer) {
            self.torn.push(ix);
        }
        let Some(entry) = hub.registry.get_mut(ix) else { return Ok(()) };
        (entry.persistent, entry.topics, entry.twin_version) =
            (read.persistent, read.topics, read.twin_version);
        entry.active(read.last_activity);
        if let Some(kept) = identity {
            entry.kept = true;
            hub.identities.insert(ix, kept);
        }
        hub.set_model(ix, read.model);
        for entry in read.c2d {
            self.message(now, ix, entry, parts)?;
        }
        Ok(())
    }

    /// Gives the shard back. Changes that a crash has torn are completed, and messages that were under way count as
    /// not acknowledged: what devices and services hear of that is appended to `out`.
    #[must_use]
    pub fn finish(self, now: Now, out: &mut Vec<Output>) -> Hub {
        let Self { mut hub, torn, .. } = self;
        for ix in torn {
            let Some(device) = hub.device(ix) else { continue };
            let edge = device.edge;
            hub.move_to(now, ix, device.layer, None, out);
            if edge {
                hub.deploy(now, ix, out);
            }
        }
        let mut queues: Vec<_> = hub.c2d.keys().copied().collect();
        queues.sort_unstable();
        for ix in queues {
            hub.return_c2d(now, ix, out);
        }
        hub.sweep();
        match hub.options.cycle {
            Cycle::Immediate => hub.evaluate(now, out),
            Cycle::Every(period) => hub.evaluate_later(now, period),
        }
        hub
    }

    fn document(&mut self, number: u64, parts: &mut impl Parts) -> Result<(DocId, bool), RecordError> {
        if let Some(&known) = self.documents.get(&number) {
            return Ok(known);
        }
        let (record, keeps) = parts.part(number).ok_or(RecordError::MissingPart(number))?;
        let mut text = None;
        for field in fields(record) {
            if let (part::DOCUMENT, value) = field? {
                text = Some(value.bytes()?);
            }
        }
        let id = self.hub.store.intern(Tree::restore(text.ok_or(RecordError::MissingPart(number))?)?);
        let kept = keep(&mut self.hub.store.doc_mut(id).stored, number, keeps, &mut self.hub.changes);
        self.documents.insert(number, (id, kept));
        Ok((id, kept))
    }

    fn pattern(&mut self, number: u64, parts: &mut impl Parts) -> Result<(PatternId, bool), RecordError> {
        if let Some(&known) = self.patterns.get(&number) {
            return Ok(known);
        }
        let (record, keeps) = parts.part(number).ok_or(RecordError::MissingPart(number))?;
        let (mut text, mut slots) = (None, None);
        for field in fields(record) {
            match field? {
                (part::PATTERN_TEXT, value) => text = Some(value.bytes()?),
                (part::PATTERN_SLOTS, value) => slots = Some(read_slots(value)?),
                _ => {}
            }
        }
        let tree = Tree::restore(text.ok_or(RecordError::MissingPart(number))?)?;
        let slots = slots.unwrap_or_else(|| vec![0; tree.len()]);
        let doc = self.hub.store.intern(tree);
        let id = self.hub.store.restore_pattern(doc, slots)?;
        let hub = &mut self.hub;
        let kept = keep(hub.store.pattern_stored(id), number, keeps, &mut hub.changes);
        self.patterns.insert(number, (id, kept));
        Ok((id, kept))
    }

    fn layer(&mut self, number: u64, parts: &mut impl Parts) -> Result<(LayerId, bool), RecordError> {
        if let Some(&known) = self.layers.get(&number) {
            return Ok(known);
        }
        let (record, keeps) = parts.part(number).ok_or(RecordError::MissingPart(number))?;
        let (mut own, mut targeted, mut current, mut module) = (None, Active::NONE, true, None);
        let mut slot = None;
        for field in fields(record) {
            match field? {
                (part::LAYER_OWN, value) => own = Some(value.number()?),
                (part::LAYER_TARGETED, value) => {
                    slot = self.hub.configurations.find(value.text()?);
                    targeted = targeted.with(slot.unwrap_or(Active::NONE));
                    current &= slot.is_some();
                }
                (part::LAYER_WRITES, value) => {
                    let written = slot.and_then(|slot| self.hub.configurations.written(slot).next());
                    current &= written.is_none_or(|(_, writes)| Ok(writes) == value.small());
                }
                (part::LAYER_MODULE, value) => module = Some(value.text()?.to_owned()),
                _ => {}
            }
        }
        let (own, keeps_own) = self.document(own.ok_or(RecordError::MissingPart(number))?, parts)?;
        let hub = &mut self.hub;
        let part = hub.configurations.part_of(targeted, module.as_deref());
        let id = hub.store.layer_of(own, targeted, part, &hub.configurations);
        let kept = if keeps && !(keeps_own && current) {
            // What it says is not so any more.
            hub.changes.part_gone(number);
            false
        } else {
            keep(&mut hub.store.layer_mut(id).stored, number, keeps, &mut hub.changes)
        };
        if !current {
            self.stale.insert(number);
        }
        self.layers.insert(number, (id, kept));
        Ok((id, kept))
    }

    fn section(
        &mut self,
        read: SectionFields<'_>,
        parts: &mut impl Parts,
    ) -> Result<(Section, bool), RecordError> {
        let (pattern, kept) = self.pattern(read.pattern, parts)?;
        let stamps: Vec<Stamp> = take_stamps(read.stamps)?;
        if stamps.len() != self.hub.store.slots(pattern) {
            return Err(RecordError::Damaged("its stamps do not fit its properties"));
        }
        let stamps = self.hub.stamps.restore(&stamps);
        Ok((Section { pattern, stamps, version: read.version }, kept))
    }

    fn message(
        &mut self,
        now: Now,
        ix: DeviceIx,
        entry: &[u8],
        parts: &mut impl Parts,
    ) -> Result<(), RecordError> {
        let mut queued = Queued::read_record(entry)?;
        let (record, keeps) = parts.part(queued.part).ok_or(RecordError::MissingPart(queued.part))?;
        let mut message = None;
        for field in fields(record) {
            if let (part::MESSAGE, value) = field? {
                message = Some(C2dMessage::read_record(value.bytes()?)?);
            }
        }
        let message = message.ok_or(RecordError::MissingPart(queued.part))?;
        if !keeps {
            queued.part = UNSTORED;
            self.hub.changes.device(ix);
        }
        self.hub.restore_c2d(now, ix, Arc::new(message), &queued);
        Ok(())
    }
}

/// Notes the number of a part that this shard keeps. It needs only one number for equal parts. Says whether it is this.
fn keep(place: &mut u64, number: u64, keeps: bool, changes: &mut Changes) -> bool {
    if keeps && *place == UNSTORED {
        *place = number;
    } else if keeps && *place != number {
        changes.part_gone(number);
    }
    *place == number
}

fn read_slots(value: Value<'_>) -> Result<Vec<u32>, RecordError> {
    let mut bytes = value.bytes()?;
    let mut slots = Vec::new();
    while !bytes.is_empty() {
        let slot = take_varint(&mut bytes)?;
        slots.push(u32::try_from(slot).map_err(|_| RecordError::Damaged("a slot is too large"))?);
    }
    Ok(slots)
}

/// The configuration of a record, and its place in the order of creation.
fn read_configuration(record: &[u8]) -> Result<(u64, Configuration), RecordError> {
    let mut spec = ConfigurationSpec::default();
    let (mut content, mut targets, mut order) = ("", 0, 0);
    let (mut created, mut writes) = (WallTime::default(), 0);
    let mut metrics = Vec::new();
    for field in fields(record) {
        let (field, value) = field?;
        match field {
            configuration::ID => spec.id = value.text()?,
            configuration::PRIORITY => spec.priority = value.small()?,
            configuration::CONDITION => spec.target_condition = value.text()?,
            configuration::CONTENT => content = value.text()?,
            configuration::TARGETS => targets = value.number()?,
            configuration::METRIC => metrics.push(read_metric(value.bytes()?)?),
            configuration::LABELS => spec.labels = value.text()?,
            configuration::SCHEMA_VERSION => spec.schema_version = value.text()?,
            configuration::WRITTEN => spec.written = value.time()?,
            configuration::CREATED => created = value.time()?,
            configuration::WRITES => writes = value.small()?,
            configuration::ORDER => order = value.number()?,
            _ => {}
        }
    }
    match targets {
        0 => spec.device_content = content,
        1 => spec.module_content = content,
        2 => spec.modules_content = content,
        _ => return Err(RecordError::Damaged("a configuration is for an unknown kind of twins")),
    }
    spec.metrics = &metrics;
    spec.stored = Some((created, writes));
    Ok((order, Configuration::new(&spec)?))
}

fn read_metric(record: &[u8]) -> Result<(&str, &str), RecordError> {
    let (mut name, mut query) = ("", "");
    for field in fields(record) {
        match field? {
            (configuration::METRIC_NAME, value) => name = value.text()?,
            (configuration::METRIC_QUERY, value) => query = value.text()?,
            _ => {}
        }
    }
    Ok((name, query))
}
