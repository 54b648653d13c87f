//! Twins as rows, and queries over a shard.

use std::borrow::Cow;

use core::cell::OnceCell;

use rustc_hash::FxHashMap;

use super::ast::{Collection, Path, Root, Side};
use super::rows::{JsonRow, Scope};
use super::value::{Value, walk};
use super::{Partial, Query};
use crate::configuration::ConfigurationSet;
use crate::device::{Device, Section};
use crate::hub::Hub;
use crate::identity::split;
use crate::io::DeviceIx;
use crate::store::{DocId, Layer, LayerId};
use crate::time_text::Iso8601;
use crate::tree::{Tree, unescape};
use crate::twin::{APPLIED, TARGETED};

/// A twin as conditions and queries see it.
pub(crate) struct TwinScope<'a> {
    id: &'a str,
    tags: &'a Tree,
    reported: &'a Tree,
    /// What only queries may ask for.
    twin: Option<Twin<'a>>,
}

struct Twin<'a> {
    hub: &'a Hub,
    ix: DeviceIx,
    device: &'a Device,
    /// All of it, as the back end reads it, for what is asked too seldom to have a way of its own.
    whole: OnceCell<serde_json::Value>,
}

impl<'a> TwinScope<'a> {
    /// What a target condition may ask for.
    pub(crate) const fn of_documents(id: &'a str, tags: &'a Tree, reported: &'a Tree) -> Self {
        Self { id, tags, reported, twin: None }
    }
}

impl<'a> Twin<'a> {
    fn whole(&self) -> JsonRow<'_> {
        JsonRow(self.whole.get_or_init(|| {
            let mut text = Vec::new();
            self.hub.write_service_twin(self.ix, &mut text);
            serde_json::from_slice(&text).unwrap_or_default()
        }))
    }

    fn section(&self, side: Side) -> (Section, &'a Tree) {
        let section = match side {
            Side::Desired => self.device.desired,
            Side::Reported => self.device.reported,
        };
        (section, &self.hub.store.doc(self.hub.store.pattern_doc(section.pattern)).tree)
    }

    /// When a property was written, if that is what a path into `$metadata` asks for.
    fn last_updated(&self, side: Side, path: &Path) -> Option<Value<'_>> {
        let (last, keys) = path.keys.split_last()?;
        if !path.rest.is_empty() || !matches!(&**last, "$lastUpdated" | "$lastUpdatedVersion") {
            return None;
        }
        let (section, tree) = self.section(side);
        let Some(node) = tree.find(keys) else { return Some(Value::Undefined) };
        let slot = self.hub.store.node_slots(section.pattern)[node];
        let stamps = self.hub.stamps.run(section.stamps, self.hub.store.slots(section.pattern));
        let stamp = stamps[slot as usize];
        Some(match &**last {
            "$lastUpdated" => Value::Text(Iso8601(stamp.at()).to_string().into()),
            _ => Value::Number(stamp.version().into()),
        })
    }

    /// What there is a short way to; `None` if there is none.
    fn shortcut(&self, path: &Path) -> Option<Value<'_>> {
        match path.root {
            Root::Version(side) if is_bare(path) => Some(Value::Number(self.section(side).0.version.into())),
            Root::Metadata(side) => self.last_updated(side, path),
            Root::Configurations => match (&*path.keys, &*path.rest) {
                ([id, status], []) if **status == *"status" => {
                    let layer = self.hub.store.layer(self.device.layer);
                    let status = status_of(layer, &self.hub.configurations, id);
                    Some(status.map_or(Value::Undefined, |status| Value::Text(status.into())))
                }
                _ => None,
            },
            Root::Member("connectionState") if is_bare(path) => Some(Value::Text(
                if self.device.is_connected() { "Connected" } else { "Disconnected" }.into(),
            )),
            Root::Member("status") if is_bare(path) => {
                Some(Value::Text(if self.device.enabled { "enabled" } else { "disabled" }.into()))
            }
            _ => None,
        }
    }
}

const fn is_bare(path: &Path) -> bool {
    path.keys.is_empty() && path.rest.is_empty()
}

fn status_of(layer: &Layer, configurations: &ConfigurationSet, id: &str) -> Option<&'static str> {
    let id: Cow<'_, str> = if id.contains('\\') { unescape(id).into() } else { id.into() };
    let slot = configurations.find(&id)?;
    if !layer.applied.and(slot).is_empty() {
        Some(APPLIED)
    } else if !layer.targeted.and(slot).is_empty() {
        Some(TARGETED)
    } else {
        None
    }
}

/// What follows in an array from its first index on.
fn in_array(tree: &Tree, path: &Path) -> Option<serde_json::Value> {
    let node = tree.find(&path.keys)?;
    let json: serde_json::Value = serde_json::from_str(tree.value(node)).ok()?;
    walk(&json, &[], &path.rest).cloned()
}

impl TwinScope<'_> {
    /// The document that a path leads into.
    fn document(&self, path: &Path) -> Option<&Tree> {
        match (path.root, &self.twin) {
            (Root::Tags, _) => Some(self.tags),
            (Root::Section(_), _) if path.keys.is_empty() => None,
            (Root::Section(Side::Reported), _) => Some(self.reported),
            (Root::Section(side), Some(twin)) => Some(twin.section(side).1),
            _ => None,
        }
    }
}

impl Scope for TwinScope<'_> {
    fn value(&self, path: &Path) -> Value<'_> {
        if let Some(tree) = self.document(path) {
            return match *path.rest {
                [] => Value::of(tree, tree.find(&path.keys)),
                _ => Value::of_json(in_array(tree, path).as_ref()).into_owned(),
            };
        }
        let (device, module) = split(self.id);
        match (path.root, &self.twin) {
            (Root::DeviceId, _) if is_bare(path) => Value::Text(device.into()),
            (Root::ModuleId, _) if is_bare(path) => {
                module.map_or(Value::Undefined, |module| Value::Text(module.into()))
            }
            (_, Some(twin)) => twin.shortcut(path).unwrap_or_else(|| Value::of_json(twin.whole().find(path))),
            (_, None) => Value::Undefined,
        }
    }

    fn json(&self, path: &Path) -> Option<Cow<'_, str>> {
        if let Some(tree) = self.document(path) {
            return match *path.rest {
                [] => tree.find(&path.keys).map(|node| tree.value(node).into()),
                _ => in_array(tree, path).map(|json| json.to_string().into()),
            };
        }
        match self.value(path) {
            Value::Undefined => None,
            Value::Text(text) => Some(serde_json::Value::from(text).to_string().into()),
            _ => self.twin.as_ref()?.whole().find(path).map(|json| json.to_string().into()),
        }
    }

    fn write(&self, out: &mut Vec<u8>) {
        if let Some(twin) = &self.twin {
            twin.hub.write_service_twin(twin.ix, out);
        }
    }
}

/// How much one call of [`Hub::query_page`] does at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageLimits {
    /// Rows.
    pub rows: usize,
    /// Twins that are looked at.
    pub twins: usize,
}

/// What [`Hub::query_page`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    /// How many rows were appended.
    pub rows: usize,
    /// Where to go on; `None` at the end.
    pub next: Option<DeviceIx>,
    /// There was no room for another row, and `next` is one; if not, there may be none any more.
    pub full: bool,
}

/// What twins with equal answers to a query that is not individual have in common.
type Alike = (DocId, DocId, LayerId);

impl Hub {
    /// Where a query's paths lead for a device.
    pub(crate) fn scope<'a>(&'a self, ix: DeviceIx, device: &'a Device) -> TwinScope<'a> {
        let reported = self.store.pattern_doc(device.reported.pattern);
        TwinScope {
            id: self.registry.id(ix),
            tags: &self.store.doc(device.tags).tree,
            reported: &self.store.doc(reported).tree,
            twin: Some(Twin { hub: self, ix, device, whole: OnceCell::new() }),
        }
    }

    fn alike(&self, device: &Device) -> Alike {
        (device.tags, self.store.pattern_doc(device.reported.pattern), device.layer)
    }

    /// The twins of a collection, from one on, in the order in which they were made.
    fn collection(
        &self,
        collection: Collection,
        from: DeviceIx,
    ) -> impl Iterator<Item = (DeviceIx, &Device)> {
        let is_in = move |device: &Device| match collection {
            Collection::Devices => !device.module,
            Collection::Modules => device.module,
            Collection::Jobs => false,
        };
        (from.0..self.registry.bound())
            .map(DeviceIx)
            .filter_map(|ix| Some((ix, self.registry.get(ix)?)))
            .filter(move |(_, device)| is_in(device))
    }

    /// Appends rows of a query without aggregates, from a device on, with commas between them and after what `out`
    /// ends with, unless that is nothing or a `[`. Rows of jobs are not the shard's: there are none.
    pub fn query_page(&self, query: &Query, from: DeviceIx, limits: PageLimits, out: &mut Vec<u8>) -> Page {
        let mut known: FxHashMap<Alike, bool> = FxHashMap::default();
        let mut rows = 0;
        for (looked_at, (ix, device)) in self.collection(query.collection(), from).enumerate() {
            if looked_at >= limits.twins {
                return Page { rows, next: Some(ix), full: false };
            }
            if !self.selects(query, ix, device, &mut known) {
                continue;
            }
            if rows >= limits.rows {
                return Page { rows, next: Some(ix), full: true };
            }
            query.write_row(&self.scope(ix, device), out);
            rows += 1;
        }
        Page { rows, next: None, full: false }
    }

    /// The devices or modules that a query selects, among as many as `twins` from one on, and where to go on.
    #[must_use]
    pub fn select(&self, query: &Query, from: DeviceIx, twins: usize) -> (Vec<DeviceIx>, Option<DeviceIx>) {
        let mut known: FxHashMap<Alike, bool> = FxHashMap::default();
        let mut found = Vec::new();
        for (looked_at, (ix, device)) in self.collection(query.collection(), from).enumerate() {
            if looked_at >= twins {
                return (found, Some(ix));
            }
            if self.selects(query, ix, device, &mut known) {
                found.push(ix);
            }
        }
        (found, None)
    }

    /// Whether a query selects a twin; `known` spares equal twins the work.
    fn selects(
        &self,
        query: &Query,
        ix: DeviceIx,
        device: &Device,
        known: &mut FxHashMap<Alike, bool>,
    ) -> bool {
        let matches = || query.matches(&self.scope(ix, device));
        if query.filters_individually() {
            matches()
        } else {
            *known.entry(self.alike(device)).or_insert_with(matches)
        }
    }

    /// What a query with aggregates makes of this shard's twins.
    #[must_use]
    pub fn query_partial(&self, query: &Query) -> Partial {
        let mut partial = Partial::default();
        let twins = self.collection(query.collection(), DeviceIx(0));
        if query.is_individual() {
            for (ix, device) in twins {
                query.add(&self.scope(ix, device), 1, &mut partial);
            }
            return partial;
        }
        let mut alike: FxHashMap<Alike, (DeviceIx, u64)> = FxHashMap::default();
        for (ix, device) in twins {
            alike.entry(self.alike(device)).or_insert((ix, 0)).1 += 1;
        }
        // Adding numbers in the order of a table would make sums depend on it.
        let mut alike: Vec<_> = alike.into_values().collect();
        alike.sort_unstable();
        for (ix, times) in alike {
            if let Some(device) = self.registry.get(ix) {
                query.add(&self.scope(ix, device), times, &mut partial);
            }
        }
        partial
    }

    /// How many twins of this shard a query selects, whatever it makes of them.
    #[must_use]
    pub fn count_where(&self, query: &Query) -> u64 {
        let mut known: FxHashMap<Alike, bool> = FxHashMap::default();
        let mut count = 0;
        for (ix, device) in self.collection(query.collection(), DeviceIx(0)) {
            count += u64::from(self.selects(query, ix, device, &mut known));
        }
        count
    }
}
