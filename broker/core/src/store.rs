//! What the twins of a shard share: documents, patterns of stamps, patches, and the ways between them.
//!
//! Twins that say the same share one [`Doc`]. `$metadata` differs between them only in *when* things were written, so
//! that is taken apart: a *pattern* is a document together with a slot number for each of its nodes, and a device
//! keeps one stamp (time and version) for each slot, see [`crate::stamps`]. Merging a patch into a pattern is
//! computed once and remembered as a *transition*; the millionth equal report finds it by one look-up.
//!
//! Tables are bounded: when they have doubled since the last time, [`Store::sweep`] forgets what no twin uses and all
//! that was remembered. Ids are only compared within that time; serial numbers are never used twice.

use std::hash::Hasher as _;
use std::io::Write as _;
use std::sync::Arc;

use hashbrown::HashTable;
use rustc_hash::{FxHashMap, FxHasher};

use crate::changes::UNSTORED;
use crate::configuration::{Active, ConfigurationSet, Part};
use crate::error::HubError;
use crate::record::RecordError;
use crate::slab::Slab;
use crate::tree::{Tree, escape};

/// A section of a twin: an immutable JSON object that all twins of the shard with the same content share.
#[derive(Debug)]
pub struct Doc {
    pub(crate) tree: Tree,
    serial: u64,
    /// Its number in what keeps the hub durable, or zero.
    pub(crate) stored: u64,
}

impl Doc {
    /// Canonical JSON, without `$version` and `$metadata`.
    #[must_use]
    pub fn text(&self) -> &str {
        self.tree.text()
    }

    /// A number that no other content of this shard has or will have, for what a driver decodes only once.
    #[must_use]
    pub const fn serial(&self) -> u64 {
        self.serial
    }

    /// The JSON text of the value at a path of keys.
    #[must_use]
    pub fn get(&self, path: &[&str]) -> Option<&str> {
        let path: Vec<String> = path.iter().map(|key| escape(key)).collect();
        self.tree.find(&path).map(|node| self.tree.value(node))
    }
}

/// A change of desired properties, shared by all devices that get the same one.
#[derive(Debug)]
pub struct DesiredPatch {
    pub(crate) tree: Tree,
    serial: u64,
}

impl DesiredPatch {
    /// The merge patch, without `$version`.
    #[must_use]
    pub fn text(&self) -> &str {
        self.tree.text()
    }

    /// A number that no other patch of this shard has or will have, for what a driver decodes only once.
    #[must_use]
    pub const fn serial(&self) -> u64 {
        self.serial
    }

    /// Appends the patch as a device gets it: with `$version`.
    pub fn write(&self, version: u64, out: &mut Vec<u8>) {
        write_versioned(&self.tree, version, out);
    }

    /// How many bytes [`DesiredPatch::write`] appends.
    #[must_use]
    pub fn len(&self, version: u64) -> usize {
        versioned_len(&self.tree, version)
    }

    /// Whether it changes nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tree.is_empty()
    }
}

/// Appends an object with a `$version` member.
pub(crate) fn write_versioned(tree: &Tree, version: u64, out: &mut Vec<u8>) {
    write_open(tree, out);
    write!(out, "\"$version\":{version}}}").expect("a vector takes all that is written to it");
}

/// Appends an object up to where one more member can follow.
pub(crate) fn write_open(tree: &Tree, out: &mut Vec<u8>) {
    let text = tree.text();
    out.extend_from_slice(&text.as_bytes()[..text.len() - 1]);
    if !tree.is_empty() {
        out.push(b',');
    }
}

pub(crate) fn versioned_len(tree: &Tree, version: u64) -> usize {
    let comma = usize::from(!tree.is_empty());
    tree.text().len() + comma + "\"$version\":".len() + digits(version)
}

const fn digits(number: u64) -> usize {
    match number.checked_ilog10() {
        Some(log) => log as usize + 1,
        None => 1,
    }
}

/// A patch that was interned for [`Patch::Interned`](crate::Patch::Interned). It stays valid as long as the hub.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PatchId(pub(crate) u32);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct DocId(u32);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PatternId(u32);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct LayerId(u32);

/// A remembered transition; valid until the next sweep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct TransitionId(u32);

#[derive(Debug)]
struct Pattern {
    doc: DocId,
    /// For each node the slot of its stamp. Slots are numbered in the order in which the nodes first use them.
    slots: Box<[u32]>,
    count: u32,
    /// As a document's.
    stored: u64,
}

#[derive(Debug)]
struct PatchEntry {
    /// The bytes that it was found by.
    raw: Box<[u8]>,
    patch: Arc<DesiredPatch>,
    pinned: bool,
}

/// In a slot map: the slot takes the stamp of the change itself.
pub(crate) const NEW: u32 = u32::MAX;

#[derive(Debug)]
pub(crate) struct Transition {
    pub(crate) to: PatternId,
    /// For each slot of the new pattern the slot of the old one that it continues, or [`NEW`].
    pub(crate) map: Box<[u32]>,
    /// The configurations whose target condition mentions a property that changed.
    pub(crate) affected: Active,
}

/// The back end's own desired properties with the content of configurations over them.
#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) own: DocId,
    /// The configurations that target the twin; of a module also the edge deployments of its device that have
    /// something for it.
    pub(crate) targeted: Active,
    /// Which part of edge deployments it gets.
    pub(crate) part: Part,
    /// Those of which something is in the twin.
    pub(crate) applied: Active,
    pub(crate) doc: DocId,
    pub(crate) devices: u32,
    /// As a document's.
    pub(crate) stored: u64,
}

/// What a device holds on to.
pub(crate) struct Held {
    pub(crate) tags: DocId,
    pub(crate) reported: PatternId,
    pub(crate) desired: PatternId,
}

/// Tables smaller than this are not worth a sweep.
const SMALL: usize = 1024;

#[derive(Debug)]
pub(crate) struct Store {
    docs: Slab<Doc>,
    docs_by_text: HashTable<u32>,
    patterns: Slab<Pattern>,
    patterns_by_slots: HashTable<u32>,
    patches: Slab<PatchEntry>,
    patches_by_raw: HashTable<u32>,
    layers: Slab<Layer>,
    layers_by_parts: FxHashMap<(DocId, Active, Part), LayerId>,
    transitions: Vec<Transition>,
    transitions_by_step: FxHashMap<(PatternId, PatchId), TransitionId>,
    diffs: FxHashMap<(DocId, DocId), PatchId>,
    merges: FxHashMap<(DocId, PatchId), DocId>,
    last_serial: u64,
    /// How many entries all tables together may have before the next sweep.
    room: usize,
    /// The least that `room` may be.
    small: usize,
    /// The part numbers of what was forgotten.
    pub(crate) gone: Vec<u64>,
}

/// Notes that a part goes, unless it stays.
fn kept(keep: bool, part: u64, gone: &mut Vec<u64>) -> bool {
    if !keep && part != UNSTORED {
        gone.push(part);
    }
    keep
}

fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = FxHasher::default();
    hasher.write(bytes);
    hasher.finish()
}

fn hash_pattern(doc: DocId, slots: &[u32]) -> u64 {
    let mut hasher = FxHasher::default();
    hasher.write_u32(doc.0);
    for &slot in slots {
        hasher.write_u32(slot);
    }
    hasher.finish()
}

impl Store {
    pub(crate) fn new() -> Self {
        Self {
            docs: Slab::new(),
            docs_by_text: HashTable::new(),
            patterns: Slab::new(),
            patterns_by_slots: HashTable::new(),
            patches: Slab::new(),
            patches_by_raw: HashTable::new(),
            layers: Slab::new(),
            layers_by_parts: FxHashMap::default(),
            transitions: Vec::new(),
            transitions_by_step: FxHashMap::default(),
            diffs: FxHashMap::default(),
            merges: FxHashMap::default(),
            last_serial: 0,
            room: SMALL,
            small: SMALL,
            gone: Vec::new(),
        }
    }

    fn serial(&mut self) -> u64 {
        self.last_serial += 1;
        self.last_serial
    }

    pub(crate) fn doc(&self, id: DocId) -> &Doc {
        self.docs.get(id.0)
    }

    pub(crate) fn doc_mut(&mut self, id: DocId) -> &mut Doc {
        self.docs.get_mut(id.0)
    }

    pub(crate) fn intern(&mut self, tree: Tree) -> DocId {
        let hash_of = hash(tree.text().as_bytes());
        let docs = &self.docs;
        if let Some(&id) = self.docs_by_text.find(hash_of, |&id| docs.get(id).text() == tree.text()) {
            return DocId(id);
        }
        let serial = self.serial();
        let id = self.docs.insert(Doc { tree, serial, stored: UNSTORED });
        let docs = &self.docs;
        self.docs_by_text.insert_unique(hash_of, id, |&id| hash(docs.get(id).text().as_bytes()));
        DocId(id)
    }

    /// The document of a pattern.
    pub(crate) fn pattern_doc(&self, id: PatternId) -> DocId {
        self.patterns.get(id.0).doc
    }

    /// How many stamps a device with this pattern keeps.
    pub(crate) fn slots(&self, id: PatternId) -> usize {
        self.patterns.get(id.0).count as usize
    }

    /// For each node of a pattern's document the slot of its stamp.
    pub(crate) fn node_slots(&self, id: PatternId) -> &[u32] {
        &self.patterns.get(id.0).slots
    }

    /// The pattern of a document that was written all at once.
    pub(crate) fn fresh(&mut self, doc: DocId) -> PatternId {
        let nodes = self.doc(doc).tree.len();
        self.intern_pattern(Pattern {
            doc,
            slots: vec![0; nodes].into_boxed_slice(),
            count: 1,
            stored: UNSTORED,
        })
    }

    /// The pattern of a document and the slots of its nodes, as they were.
    pub(crate) fn restore_pattern(&mut self, doc: DocId, slots: Vec<u32>) -> Result<PatternId, RecordError> {
        let mut count = 0;
        let in_order = slots.iter().all(|&slot| {
            let known = slot <= count;
            count = count.max(slot.saturating_add(1));
            known
        });
        if !in_order || slots.len() != self.doc(doc).tree.len() {
            return Err(RecordError::Damaged("a pattern does not fit its document"));
        }
        Ok(self.intern_pattern(Pattern { doc, slots: slots.into_boxed_slice(), count, stored: UNSTORED }))
    }

    /// The number of a pattern in what keeps the hub durable, or zero.
    pub(crate) fn pattern_stored(&mut self, id: PatternId) -> &mut u64 {
        &mut self.patterns.get_mut(id.0).stored
    }

    fn intern_pattern(&mut self, pattern: Pattern) -> PatternId {
        let hash = hash_pattern(pattern.doc, &pattern.slots);
        let patterns = &self.patterns;
        let same = |&id: &u32| {
            let other = patterns.get(id);
            other.doc == pattern.doc && other.slots == pattern.slots
        };
        if let Some(&id) = self.patterns_by_slots.find(hash, same) {
            return PatternId(id);
        }
        let id = self.patterns.insert(pattern);
        let patterns = &self.patterns;
        self.patterns_by_slots.insert_unique(hash, id, |&id| {
            let pattern = patterns.get(id);
            hash_pattern(pattern.doc, &pattern.slots)
        });
        PatternId(id)
    }

    pub(crate) fn patch(&self, id: PatchId) -> &Arc<DesiredPatch> {
        &self.patches.get(id.0).patch
    }

    /// The patch that a text is. A text that was seen before is not parsed again.
    pub(crate) fn patch_of(&mut self, raw: &[u8]) -> Result<PatchId, HubError> {
        match self.known_patch(raw) {
            Some(id) => Ok(id),
            None => Ok(self.add_patch(raw.into(), Tree::parse(raw)?)),
        }
    }

    fn known_patch(&self, raw: &[u8]) -> Option<PatchId> {
        self.patches_by_raw.find(hash(raw), |&id| *self.patches.get(id).raw == *raw).copied().map(PatchId)
    }

    pub(crate) fn intern_patch(&mut self, tree: Tree) -> PatchId {
        match self.known_patch(tree.text().as_bytes()) {
            Some(id) => id,
            None => self.add_patch(tree.text().as_bytes().into(), tree),
        }
    }

    fn add_patch(&mut self, raw: Box<[u8]>, tree: Tree) -> PatchId {
        let hash_of = hash(&raw);
        let patch = Arc::new(DesiredPatch { tree, serial: self.serial() });
        let id = self.patches.insert(PatchEntry { raw, patch, pinned: false });
        let patches = &self.patches;
        self.patches_by_raw.insert_unique(hash_of, id, |&id| hash(&patches.get(id).raw));
        PatchId(id)
    }

    /// Keeps a patch through sweeps.
    pub(crate) fn pin(&mut self, id: PatchId) {
        self.patches.get_mut(id.0).pinned = true;
    }

    pub(crate) fn transition(&self, id: TransitionId) -> &Transition {
        &self.transitions[id.0 as usize]
    }

    /// What a patch makes of a pattern.
    pub(crate) fn step(
        &mut self,
        from: PatternId,
        patch: PatchId,
        configurations: &ConfigurationSet,
    ) -> TransitionId {
        if let Some(&known) = self.transitions_by_step.get(&(from, patch)) {
            return known;
        }
        let transition = self.compute(from, patch, configurations);
        let id = TransitionId(u32::try_from(self.transitions.len()).expect("sweeps keep the table small"));
        self.transitions.push(transition);
        self.transitions_by_step.insert((from, patch), id);
        id
    }

    fn compute(&mut self, from: PatternId, patch: PatchId, configurations: &ConfigurationSet) -> Transition {
        let old = self.patterns.get(from.0);
        let old_tree = &self.docs.get(old.doc.0).tree;
        let patch = &self.patches.get(patch.0).patch.tree;
        let (tree, origins) = old_tree.merge(patch);
        let affected = configurations.affected(old_tree, &tree, patch);
        let mut renumbered = vec![None; old.count as usize];
        let mut fresh = None;
        let mut map = Vec::new();
        let slots = origins
            .iter()
            .map(|origin| {
                let old_slot = origin.map(|node| old.slots[node as usize]);
                let place = match old_slot {
                    Some(slot) => &mut renumbered[slot as usize],
                    None => &mut fresh,
                };
                *place.get_or_insert_with(|| {
                    map.push(old_slot.unwrap_or(NEW));
                    u32::try_from(map.len() - 1).expect("fewer slots than nodes")
                })
            })
            .collect();
        let doc = self.intern(tree);
        let count = u32::try_from(map.len()).expect("fewer slots than nodes");
        let to = self.intern_pattern(Pattern { doc, slots, count, stored: UNSTORED });
        Transition { to, map: map.into_boxed_slice(), affected }
    }

    /// What a patch makes of a document without stamps.
    pub(crate) fn merge(&mut self, from: DocId, patch: PatchId) -> DocId {
        if let Some(&known) = self.merges.get(&(from, patch)) {
            return known;
        }
        let (tree, _) = self.doc(from).tree.merge(&self.patch(patch).tree);
        let to = self.intern(tree);
        self.merges.insert((from, patch), to);
        to
    }

    /// The patch that leads from one document to another.
    pub(crate) fn diff(&mut self, from: DocId, to: DocId) -> PatchId {
        if let Some(&known) = self.diffs.get(&(from, to)) {
            return known;
        }
        let patch = self.doc(from).tree.diff(&self.doc(to).tree);
        let patch = self.intern_patch(patch);
        self.diffs.insert((from, to), patch);
        patch
    }

    pub(crate) fn layer(&self, id: LayerId) -> &Layer {
        self.layers.get(id.0)
    }

    pub(crate) fn layer_mut(&mut self, id: LayerId) -> &mut Layer {
        self.layers.get_mut(id.0)
    }

    pub(crate) fn layers(&self) -> impl Iterator<Item = &Layer> {
        self.layers.iter().map(|(_, layer)| layer)
    }

    /// The layer of `targeted` configurations over the back end's own properties.
    pub(crate) fn layer_of(
        &mut self,
        own: DocId,
        targeted: Active,
        part: Part,
        configurations: &ConfigurationSet,
    ) -> LayerId {
        if let Some(&known) = self.layers_by_parts.get(&(own, targeted, part)) {
            return known;
        }
        let (tree, applied) = configurations.lay_over(&self.doc(own).tree, targeted, part);
        let doc = self.intern(tree);
        let layer = Layer { own, targeted, part, applied, doc, devices: 0, stored: UNSTORED };
        let layer = LayerId(self.layers.insert(layer));
        self.layers_by_parts.insert((own, targeted, part), layer);
        layer
    }

    /// Forgets what depends on which configurations there are: called when one comes or goes, after all devices have
    /// been moved to layers without those that went.
    pub(crate) fn configurations_changed(&mut self) {
        self.drop_layers();
        self.forget_transitions();
    }

    fn drop_layers(&mut self) {
        let gone = &mut self.gone;
        self.layers.retain(|_, layer| kept(layer.devices > 0, layer.stored, gone));
        let layers = &self.layers;
        self.layers_by_parts.retain(|_, id| layers.contains(id.0));
    }

    fn forget_transitions(&mut self) {
        self.transitions.clear();
        self.transitions_by_step.clear();
    }

    /// How many entries all tables together have.
    pub(crate) fn entries(&self) -> usize {
        self.docs.len()
            + self.patterns.len()
            + self.patches.len()
            + self.layers.len()
            + self.transitions.len()
            + self.diffs.len()
            + self.merges.len()
    }

    /// Whether the tables, with `more` entries elsewhere that go by the same ids, have grown enough for a sweep.
    pub(crate) fn is_full(&self, more: usize) -> bool {
        self.entries() + more > self.room
    }

    /// Lets sweeps come as soon as the tables have `small` entries.
    #[cfg(test)]
    pub(crate) const fn sweep_above(&mut self, small: usize) {
        (self.room, self.small) = (small, small);
    }

    /// Whether a document has this number in the store.
    #[cfg(test)]
    pub(crate) fn has_document(&self, stored: u64) -> bool {
        self.docs.iter().any(|(_, doc)| doc.stored == stored)
    }

    /// Forgets all but `root` and what is held.
    pub(crate) fn sweep(&mut self, root: DocId, held: impl Iterator<Item = Held>) {
        self.drop_layers();
        self.forget_transitions();
        self.diffs = FxHashMap::default();
        self.merges = FxHashMap::default();
        let mut docs = vec![false; self.docs.bound()];
        let mut patterns = vec![false; self.patterns.bound()];
        docs[root.0 as usize] = true;
        for Held { tags, reported, desired } in held {
            docs[tags.0 as usize] = true;
            patterns[reported.0 as usize] = true;
            patterns[desired.0 as usize] = true;
        }
        for (_, layer) in self.layers.iter() {
            docs[layer.own.0 as usize] = true;
            docs[layer.doc.0 as usize] = true;
        }
        let gone = &mut self.gone;
        self.patterns.retain(|id, pattern| {
            let keep = patterns[id as usize];
            docs[pattern.doc.0 as usize] |= keep;
            kept(keep, pattern.stored, gone)
        });
        self.patterns_by_slots.retain(|id| patterns[*id as usize]);
        self.docs.retain(|id, doc| kept(docs[id as usize], doc.stored, gone));
        self.docs_by_text.retain(|id| docs[*id as usize]);
        self.patches.retain(|_, entry| entry.pinned);
        let patches = &self.patches;
        self.patches_by_raw.retain(|id| patches.contains(*id));
        self.room = self.small.max(2 * self.entries());
    }
}
