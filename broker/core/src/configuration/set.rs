//! The configurations of a shard, and what several of them together make of a twin.

use std::sync::Arc;

use fleetwave_protocol::WallTime;

use super::content::{Content, Path, covers};
use super::{Configuration, ConfigurationEtag, ConfigurationView, MAX_CONFIGURATIONS, Targets};
use crate::changes::configuration as field;
use crate::error::{ErrorCode, HubError};
use crate::identity::is_forced;
use crate::limits::Section;
use crate::record::put_number;
use crate::tree::{self, ROOT, Tree};

/// A set of the configurations of a shard, by slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Active(u128);

impl Active {
    pub(crate) const NONE: Self = Self(0);

    const fn only(slot: usize) -> Self {
        Self(1 << slot)
    }

    pub(crate) const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(crate) const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    pub(crate) const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    pub(crate) const fn is_empty(self) -> bool {
        self.0 == 0
    }

    fn slots(self) -> impl Iterator<Item = usize> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let slot = rest.trailing_zeros() as usize;
            (rest != 0).then(|| {
                rest &= rest - 1;
                slot
            })
        })
    }
}

#[derive(Debug)]
struct Entry {
    configuration: Arc<Configuration>,
    /// The order of creation, which a change keeps.
    created: u64,
    created_at: WallTime,
    writes: u32,
}

impl Entry {
    /// The higher wins.
    fn rank(&self) -> (u32, u64) {
        (self.configuration.priority, self.created)
    }

    fn view(&self) -> ConfigurationView<'_> {
        ConfigurationView {
            configuration: &self.configuration,
            created: self.created_at,
            updated: self.configuration.written,
            etag: ConfigurationEtag(self.writes),
            writes: self.writes,
        }
    }
}

/// The configurations of a shard. A slot's content never changes while it is in use: a changed configuration gets a
/// new slot, so that what was computed for a set of slots stays right.
#[derive(Debug, Default)]
pub(crate) struct ConfigurationSet {
    slots: Vec<Option<Entry>>,
    created: u64,
    all: Active,
    /// Those whose condition mentions the device's id.
    individual: Active,
    /// Those that target modules.
    modules: Active,
    /// Edge deployments.
    edge: Active,
    /// The names of modules that edge deployments had so far.
    names: Vec<Box<str>>,
    /// The reported properties that conditions mention, with whose those are.
    mentions: Vec<(Path, Active)>,
}

impl ConfigurationSet {
    pub(crate) const fn all(&self) -> Active {
        self.all
    }

    pub(crate) const fn individual(&self) -> Active {
        self.individual
    }

    /// Those whose conditions are asked for twins of a kind.
    pub(crate) const fn of_kind(&self, kind: Kind) -> Active {
        match kind {
            Kind::Device => self.all().without(self.modules).without(self.edge),
            Kind::EdgeDevice => self.all().without(self.modules),
            Kind::Module => self.modules,
        }
    }

    /// Edge deployments.
    pub(crate) const fn edge(&self) -> Active {
        self.edge
    }

    /// Of edge deployments that target a device, those that apply: the highest that says all, and the layers above.
    fn effective(&self, targeted: Active) -> Active {
        let mut entries: Vec<_> = self.entries(targeted.and(self.edge)).collect();
        entries.sort_unstable_by_key(|(_, entry)| entry.rank());
        let base = entries.iter().rposition(|(_, entry)| entry.configuration.is_base());
        let effective = base.map_or(&[][..], |base| &entries[base..]);
        effective.iter().fold(Active::NONE, |set, (slot, _)| set.with(*slot))
    }

    /// Of edge deployments that target a device, those that apply and have something for its module of a name.
    pub(crate) fn deployed(&self, targeted: Active, module: &str) -> Active {
        self.iter(self.effective(targeted))
            .filter(|(_, configuration)| configuration.content_for(Some(module)).is_some())
            .fold(Active::NONE, |set, (slot, _)| set.with(slot))
    }

    /// The modules for which edge deployments that target a device have something.
    pub(crate) fn deployed_names(&self, targeted: Active) -> Vec<Box<str>> {
        let effective = self.effective(targeted);
        let mut names: Vec<Box<str>> = self
            .iter(effective)
            .flat_map(|(_, configuration)| configuration.module_names())
            .map(Into::into)
            .collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// What tells modules apart for which edge deployments have different content.
    pub(crate) fn part_of(&self, targeted: Active, module: Option<&str>) -> Part {
        if targeted.and(self.edge).is_empty() {
            return Part::default();
        }
        let place = module.and_then(|module| self.names.iter().position(|name| **name == *module));
        Part(place.map_or(0, |place| u32::try_from(place).map_or(0, |place| place + 1)))
    }

    /// All as they are in force, in the order of their creation.
    pub(crate) fn views(&self) -> Vec<ConfigurationView<'_>> {
        let mut entries: Vec<_> = self.entries(self.all()).map(|(_, entry)| entry).collect();
        entries.sort_unstable_by_key(|entry| entry.created);
        entries.into_iter().map(Entry::view).collect()
    }

    /// The one of an id.
    pub(crate) fn view(&self, id: &str) -> Option<ConfigurationView<'_>> {
        let slot = self.find(id)?;
        self.entries(slot).next().map(|(_, entry)| entry.view())
    }

    /// Finds the one of an id, if the etag that must be current is.
    pub(crate) fn find_matching(&self, id: &str, if_match: Option<&str>) -> Result<Active, HubError> {
        let missing =
            || HubError::new(ErrorCode::ConfigurationNotFound, format!("there is no configuration {id:?}"));
        let slot = self.find(id).ok_or_else(missing)?;
        self.view(id).ok_or_else(missing)?.etag.check(if_match)?;
        Ok(slot)
    }

    fn entries(&self, set: Active) -> impl Iterator<Item = (Active, &Entry)> {
        set.slots().filter_map(|slot| Some((Active::only(slot), self.slots[slot].as_ref()?)))
    }

    /// The configurations of a set, in the order of their slots.
    pub(crate) fn iter(&self, set: Active) -> impl Iterator<Item = (Active, &Configuration)> {
        self.entries(set).map(|(slot, entry)| (slot, &*entry.configuration))
    }

    pub(crate) fn find(&self, id: &str) -> Option<Active> {
        self.iter(self.all()).find(|(_, configuration)| configuration.id() == id).map(|(slot, _)| slot)
    }

    /// Puts a configuration beside the one of the same id that it will replace. Answers both slots.
    pub(crate) fn add(
        &mut self,
        configuration: Arc<Configuration>,
        if_match: Option<&str>,
    ) -> Result<(Active, Active), HubError> {
        let old = match is_forced(if_match) {
            true => self.find(configuration.id()).unwrap_or(Active::NONE),
            false => self.find_matching(configuration.id(), if_match)?,
        };
        if old.is_empty() && self.entries(self.all()).count() >= MAX_CONFIGURATIONS {
            return Err(HubError::new(
                ErrorCode::ConfigurationCountLimitExceeded,
                format!("a hub has at most {MAX_CONFIGURATIONS} configurations"),
            ));
        }
        for name in configuration.module_names() {
            if !self.names.iter().any(|known| **known == *name) {
                self.names.push(name.into());
            }
        }
        self.created += 1;
        let entry = match (self.entries(old).next(), configuration.stored) {
            (Some((_, old)), _) => {
                let Entry { created, created_at, writes, .. } = *old;
                Entry { configuration, created, created_at, writes: writes.wrapping_add(1) }
            }
            (None, Some((created_at, writes))) => {
                Entry { configuration, created: self.created, created_at, writes }
            }
            (None, None) => {
                let created_at = configuration.written;
                Entry { configuration, created: self.created, created_at, writes: 1 }
            }
        };
        let slot = match self.slots.iter().position(Option::is_none) {
            Some(free) => {
                self.slots[free] = Some(entry);
                free
            }
            None => {
                self.slots.push(Some(entry));
                self.slots.len() - 1
            }
        };
        self.index();
        Ok((Active::only(slot), old))
    }

    /// Puts a configuration back that a store kept, at its place in the order of creation.
    pub(crate) fn restore(&mut self, configuration: Arc<Configuration>, order: u64) -> Result<(), HubError> {
        let (slot, _) = self.add(configuration, None)?;
        for place in slot.slots() {
            if let Some(entry) = &mut self.slots[place] {
                entry.created = order;
            }
        }
        self.created = self.created.max(order);
        Ok(())
    }

    /// The configurations of a set, and how often each was written.
    pub(crate) fn written(&self, set: Active) -> impl Iterator<Item = (&str, u32)> {
        self.entries(set).map(|(_, entry)| (entry.configuration.id(), entry.writes))
    }

    /// Appends what a store keeps of the configuration of an id. False if there is none.
    pub(crate) fn write_record(&self, id: &str, out: &mut Vec<u8>) -> bool {
        let Some((_, entry)) = self.find(id).and_then(|slot| self.entries(slot).next()) else { return false };
        entry.configuration.write_record(out);
        put_number(field::CREATED, entry.created_at.as_unix_millis(), out);
        put_number(field::WRITES, u64::from(entry.writes), out);
        put_number(field::ORDER, entry.created, out);
        true
    }

    /// The etag of a slot that is in use.
    pub(crate) fn etag(&self, slot: Active) -> ConfigurationEtag {
        let entry = self.entries(slot).next();
        entry.map_or(ConfigurationEtag(0), |(_, entry)| entry.view().etag)
    }

    /// Frees the slots of a set.
    pub(crate) fn remove(&mut self, set: Active) {
        for slot in set.slots() {
            self.slots[slot] = None;
        }
        self.index();
    }

    fn index(&mut self) {
        let used = |(slot, entry): (usize, &Option<Entry>)| entry.as_ref().map(|_| Active::only(slot));
        self.all = self.slots.iter().enumerate().filter_map(used).fold(Active::NONE, Active::with);
        let (mut individual, mut modules, mut edge) = (Active::NONE, Active::NONE, Active::NONE);
        let mut mentions = Vec::<(Path, Active)>::new();
        for (slot, configuration) in self.iter(self.all()) {
            match configuration.targets() {
                Targets::Devices => {}
                Targets::Modules => modules = modules.with(slot),
                Targets::Edge => edge = edge.with(slot),
            }
            if configuration.condition.is_individual() {
                individual = individual.with(slot);
            }
            for path in configuration.condition.reported_paths() {
                match mentions.iter_mut().find(|(other, _)| **other == *path) {
                    Some((_, users)) => *users = users.with(slot),
                    None => mentions.push((path.into(), slot)),
                }
            }
        }
        (self.individual, self.modules, self.edge, self.mentions) = (individual, modules, edge, mentions);
    }

    /// The configurations whose condition mentions a reported property that `patch` changed from one document to
    /// another. What the patch does not name is not looked for: a report costs little with many other mentions.
    pub(crate) fn affected(&self, from: &Tree, to: &Tree, patch: &Tree) -> Active {
        let differs = |path: &Path| {
            touches(patch, path)
                && from.find(path).map(|node| from.value(node)) != to.find(path).map(|node| to.value(node))
        };
        self.mentions
            .iter()
            .filter(|(path, _)| differs(path))
            .fold(Active::NONE, |affected, (_, users)| affected.with(*users))
    }

    /// Desired properties with the content of a set of configurations over them, and those of which something is in
    /// the result. Where all together would be larger than a twin may be, the highest priorities that fit are taken.
    pub(crate) fn lay_over(&self, own: &Tree, set: Active, part: Part) -> (Tree, Active) {
        let module = self.name_of(part);
        let mut entries: Vec<_> = self.entries(set).collect();
        entries.sort_unstable_by_key(|(_, entry)| entry.rank());
        let mut contents: Vec<(Active, &Content)> = entries
            .iter()
            .filter_map(|(slot, entry)| Some((*slot, entry.configuration.content_for(module)?)))
            .collect();
        let lay = |contents: &[(Active, &Content)]| {
            contents.iter().fold(own.clone(), |tree, (_, content)| content.lay_over(&tree))
        };
        let mut tree = lay(&contents);
        if Section::Desired.check_size(tree.size()).is_err() {
            let mut fitting = Vec::new();
            for content in contents.into_iter().rev() {
                fitting.insert(0, content);
                if Section::Desired.check_size(lay(&fitting).size()).is_err() {
                    fitting.remove(0);
                }
            }
            tree = lay(&fitting);
            contents = fitting;
        }
        (tree, visible(&contents).with(self.effective(set)))
    }

    pub(crate) fn name_of(&self, part: Part) -> Option<&str> {
        let place = part.0.checked_sub(1)?;
        self.names.get(place as usize).map(|name| &**name)
    }
}

/// Kinds of twins that configurations tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Device,
    EdgeDevice,
    Module,
}

/// The part of edge deployments that a twin gets: that of a module's name, or none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Part(u32);

impl Part {
    pub(crate) fn is_none(self) -> bool {
        self == Self::default()
    }
}

/// Whether a patch may change what stands at a path: it names all of it, or replaces something above.
fn touches(patch: &Tree, path: &[Box<str>]) -> bool {
    let mut node = ROOT;
    for key in path {
        if patch.kind(node) != tree::Kind::Object {
            return true;
        }
        let Some(member) = patch.member(node, key) else { return false };
        node = member;
    }
    true
}

/// Those contents, given in rising order, that own a path which no later one takes from them.
fn visible(contents: &[(Active, &Content)]) -> Active {
    let mut taken: Vec<&Path> = Vec::new();
    let mut visible = Active::NONE;
    for (slot, content) in contents.iter().rev() {
        let paths = &content.paths;
        if paths.is_empty() || paths.iter().any(|path| !taken.iter().any(|outer| covers(outer, path))) {
            visible = visible.with(*slot);
        }
        taken.extend(paths);
    }
    visible
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patch_touches_what_it_names_and_what_is_below_what_it_replaces() {
        for (patch, path, touched) in [
            (r#"{"a":1}"#, "a", true),
            (r#"{"a":1}"#, "a.b", true),
            (r#"{"a":null}"#, "a.b.c", true),
            (r#"{"a":{"b":1}}"#, "a", true),
            (r#"{"a":{"b":1}}"#, "a.b", true),
            (r#"{"a":{"b":1}}"#, "a.c", false),
            (r#"{"a":{"b":1}}"#, "b", false),
            ("{}", "a", false),
        ] {
            let path: Vec<Box<str>> = path.split('.').map(Box::from).collect();
            assert_eq!(touches(&Tree::parse(patch.as_bytes()).unwrap(), &path), touched, "{patch} {path:?}");
        }
    }
}
