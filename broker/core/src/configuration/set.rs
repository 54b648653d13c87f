//! The configurations of a shard, and what several of them together make of a twin.

use std::sync::Arc;

use fleetwave_protocol::WallTime;

use super::content::{Path, covers};
use super::{Configuration, ConfigurationEtag, ConfigurationView, MAX_CONFIGURATIONS};
use crate::error::{ErrorCode, HubError};
use crate::identity::is_forced;
use crate::limits::Section;
use crate::tree::Tree;

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
    /// Those whose condition mentions the device's id.
    individual: Active,
    /// Those that target modules.
    modules: Active,
    /// The reported properties that conditions mention, with whose those are.
    mentions: Vec<(Path, Active)>,
}

impl ConfigurationSet {
    pub(crate) fn all(&self) -> Active {
        let used = |(slot, entry): (usize, &Option<Entry>)| entry.as_ref().map(|_| Active::only(slot));
        self.slots.iter().enumerate().filter_map(used).fold(Active::NONE, Active::with)
    }

    pub(crate) const fn individual(&self) -> Active {
        self.individual
    }

    /// Those that target modules, or those that target devices.
    pub(crate) fn of_kind(&self, modules: bool) -> Active {
        if modules { self.modules } else { self.all().without(self.modules) }
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
        let (mut individual, mut modules) = (Active::NONE, Active::NONE);
        let mut mentions = Vec::<(Path, Active)>::new();
        for (slot, configuration) in self.iter(self.all()) {
            if configuration.modules {
                modules = modules.with(slot);
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
        (self.individual, self.modules, self.mentions) = (individual, modules, mentions);
    }

    /// The configurations whose condition mentions a reported property that differs between two documents.
    pub(crate) fn affected(&self, from: &Tree, to: &Tree) -> Active {
        let differs = |path: &Path| {
            from.find(path).map(|node| from.value(node)) != to.find(path).map(|node| to.value(node))
        };
        self.mentions
            .iter()
            .filter(|(path, _)| differs(path))
            .fold(Active::NONE, |affected, (_, users)| affected.with(*users))
    }

    /// Desired properties with the content of a set of configurations over them, and those of which something is in
    /// the result. Where all together would be larger than a twin may be, the highest priorities that fit are taken.
    pub(crate) fn lay_over(&self, own: &Tree, set: Active) -> (Tree, Active) {
        let mut entries: Vec<_> = self.entries(set).collect();
        entries.sort_unstable_by_key(|(_, entry)| (entry.configuration.priority, entry.created));
        let lay = |entries: &[(Active, &Entry)]| {
            let contents = entries.iter().map(|(_, entry)| &entry.configuration.content);
            contents.fold(own.clone(), |tree, content| content.lay_over(&tree))
        };
        let mut tree = lay(&entries);
        if Section::Desired.check_size(tree.size()).is_err() {
            let mut fitting = Vec::new();
            for entry in entries.into_iter().rev() {
                fitting.insert(0, entry);
                if Section::Desired.check_size(lay(&fitting).size()).is_err() {
                    fitting.remove(0);
                }
            }
            tree = lay(&fitting);
            entries = fitting;
        }
        (tree, visible(&entries))
    }
}

/// Those configurations, given in rising order, that own a path which no later one takes from them.
fn visible(entries: &[(Active, &Entry)]) -> Active {
    let mut taken: Vec<&Path> = Vec::new();
    let mut visible = Active::NONE;
    for (slot, entry) in entries.iter().rev() {
        let paths = &entry.configuration.content.paths;
        if paths.is_empty() || paths.iter().any(|path| !taken.iter().any(|outer| covers(outer, path))) {
            visible = visible.with(*slot);
        }
        taken.extend(paths);
    }
    visible
}
