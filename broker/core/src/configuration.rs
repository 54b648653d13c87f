//! Automatic device configurations: what they say, and what they make of a twin's desired properties.
//!
//! A configuration *owns* the paths that its content names (`properties.desired.firmware` owns `firmware`): while it
//! applies, what stands there is its value and nothing else. Of several that name the same path, or one inside the
//! other's, the higher priority wins, and of equal ones the newest. What the back end itself wrote at such a path is
//! hidden as long as a configuration applies and comes back when none does. The real hub overwrites it for good; ours
//! keeps both, because then the desired properties are a function of what was written and which configurations
//! apply, and no order of events can leave a twin with remains of a configuration that is gone.

use std::sync::Arc;

use serde_json::{Map, Value};

use crate::error::{ErrorCode, HubError};
use crate::limits::{self, Section};
use crate::query::{Condition, Query};
use crate::tree::{Tree, escape};

/// Most configurations that a hub may have.
pub const MAX_CONFIGURATIONS: usize = 100;

/// What a configuration is made from.
#[derive(Clone, Copy, Debug, Default)]
pub struct ConfigurationSpec<'a> {
    /// The id.
    pub id: &'a str,
    /// The higher wins.
    pub priority: u32,
    /// `*` or an expression; nothing targets nothing.
    pub target_condition: &'a str,
    /// The `deviceContent`: a JSON object from `properties.desired.PATH` to values.
    pub device_content: &'a str,
    /// Own metrics: names and queries.
    pub metrics: &'a [(&'a str, &'a str)],
}

/// A configuration, checked and compiled; shards share it.
#[derive(Debug)]
pub struct Configuration {
    id: Box<str>,
    priority: u32,
    condition: Condition,
    content: Content,
    metrics: Box<[(Box<str>, Query)]>,
}

/// A path of escaped keys.
type Path = Box<[Box<str>]>;

#[derive(Debug)]
struct Content {
    paths: Box<[Path]>,
    /// The patch that removes what stands at the paths.
    clear: Tree,
    /// The patch that puts the values there.
    set: Tree,
}

impl Configuration {
    /// Checks and compiles a configuration.
    ///
    /// # Errors
    /// 400401 for the condition, 400402 for the content, 400404 for a metric, 400004 for the id.
    pub fn new(spec: &ConfigurationSpec<'_>) -> Result<Self, HubError> {
        check_id(spec.id)?;
        let condition = Condition::parse(spec.target_condition).map_err(|error| {
            HubError::new(
                ErrorCode::InvalidConfigurationTargetCondition,
                format!("target condition: {error}"),
            )
        })?;
        let metrics = spec
            .metrics
            .iter()
            .map(|(name, query)| match Query::parse(query) {
                Ok(query) => Ok((Box::from(*name), query)),
                Err(error) => Err(HubError::new(
                    ErrorCode::InvalidConfigurationCustomMetricsQuery,
                    format!("metric {name:?}: {error}"),
                )),
            })
            .collect::<Result<_, _>>()?;
        Ok(Self {
            id: spec.id.into(),
            priority: spec.priority,
            condition,
            content: Content::parse(spec.device_content)?,
            metrics,
        })
    }

    /// The id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The priority.
    #[must_use]
    pub const fn priority(&self) -> u32 {
        self.priority
    }

    /// Its own metrics, for [`Hub::count_where`](crate::Hub::count_where).
    #[must_use]
    pub fn metrics(&self) -> &[(Box<str>, Query)] {
        &self.metrics
    }

    pub(crate) const fn condition(&self) -> &Condition {
        &self.condition
    }
}

fn check_id(id: &str) -> Result<(), HubError> {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-:+%_#*?!(),=@;$'".contains(&b);
    if (1..=128).contains(&id.len()) && id.bytes().all(allowed) {
        return Ok(());
    }
    Err(limits::invalid(format!(
        "the configuration id {id:?} is not 1 to 128 lowercase letters, digits and -:+%_#*?!(),=@;$'"
    )))
}

fn bad_content(message: impl Into<String>) -> HubError {
    HubError::new(ErrorCode::InvalidConfigurationContent, message.into())
}

impl Content {
    fn parse(json: &str) -> Result<Self, HubError> {
        let parsed = serde_json::from_str(json).map_err(|error| bad_content(format!("not JSON: {error}")))?;
        let Value::Object(members) = parsed else {
            return Err(bad_content("the device content is not a JSON object"));
        };
        let mut paths: Vec<Path> = Vec::new();
        let (mut clear, mut set) = (Value::Object(Map::new()), Value::Object(Map::new()));
        for (name, value) in members {
            let Some(keys) = name.strip_prefix("properties.desired.") else {
                return Err(bad_content(format!("{name:?} does not begin with \"properties.desired.\"")));
            };
            if has_null(&value) {
                return Err(bad_content(format!("{name:?} holds null, which can't be a desired property")));
            }
            let keys: Vec<&str> = keys.split('.').collect();
            let path: Path = keys.iter().map(|key| escape(key).into_boxed_str()).collect();
            if paths.iter().any(|other| covers(other, &path) || covers(&path, other)) {
                return Err(bad_content(format!("{name:?} and another path lie inside each other")));
            }
            insert(&mut clear, &keys, Value::Null);
            insert(&mut set, &keys, value);
            paths.push(path);
        }
        let tree = |value| Tree::from_value(value).map_err(|error| bad_content(error.message));
        let (clear, set) = (tree(&clear)?, tree(&set)?);
        Section::Desired.check_size(set.size()).map_err(|error| bad_content(error.message))?;
        Ok(Self { paths: paths.into_boxed_slice(), clear, set })
    }

    fn lay_over(&self, tree: &Tree) -> Tree {
        tree.merge(&self.clear).0.merge(&self.set).0
    }
}

/// Whether a value would remove something, were it a patch.
fn has_null(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(members) => members.values().any(has_null),
        _ => false,
    }
}

/// Puts a value at a path on which nothing but objects stands.
fn insert(object: &mut Value, keys: &[&str], value: Value) {
    match keys {
        [] => *object = value,
        [key, rest @ ..] => {
            if let Value::Object(members) = object {
                let member = members.entry(*key).or_insert_with(|| Value::Object(Map::new()));
                insert(member, rest, value);
            }
        }
    }
}

/// Whether what stands at `inner` is part of what stands at `outer`.
fn covers(outer: &[Box<str>], inner: &[Box<str>]) -> bool {
    inner.starts_with(outer)
}

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
}

/// The configurations of a shard. A slot's content never changes while it is in use: a changed configuration gets a
/// new slot, so that what was computed for a set of slots stays right.
#[derive(Debug, Default)]
pub(crate) struct ConfigurationSet {
    slots: Vec<Option<Entry>>,
    created: u64,
    /// Those whose condition mentions the device's id.
    individual: Active,
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
    pub(crate) fn add(&mut self, configuration: Arc<Configuration>) -> Result<(Active, Active), HubError> {
        let old = self.find(configuration.id()).unwrap_or(Active::NONE);
        if old.is_empty() && self.entries(self.all()).count() >= MAX_CONFIGURATIONS {
            return Err(HubError::new(
                ErrorCode::ConfigurationCountLimitExceeded,
                format!("a hub has at most {MAX_CONFIGURATIONS} configurations"),
            ));
        }
        self.created += 1;
        let created = self.entries(old).next().map_or(self.created, |(_, entry)| entry.created);
        let entry = Entry { configuration, created };
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

    /// Frees the slots of a set.
    pub(crate) fn remove(&mut self, set: Active) {
        for slot in set.slots() {
            self.slots[slot] = None;
        }
        self.index();
    }

    fn index(&mut self) {
        let (mut individual, mut mentions) = (Active::NONE, Vec::<(Path, Active)>::new());
        for (slot, configuration) in self.iter(self.all()) {
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
        (self.individual, self.mentions) = (individual, mentions);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn error(spec: ConfigurationSpec<'_>) -> ErrorCode {
        Configuration::new(&spec).unwrap_err().code
    }

    const GOOD: ConfigurationSpec<'_> = ConfigurationSpec {
        id: "fw-2",
        priority: 1,
        target_condition: "*",
        device_content: r#"{"properties.desired.a.b":1,"properties.desired.c":{"d":[null]}}"#,
        metrics: &[("done", "SELECT deviceId FROM devices WHERE properties.reported.a = 1")],
    };

    #[test]
    fn a_configuration_is_checked_before_it_is_taken() {
        assert!(Configuration::new(&GOOD).is_ok());
        for id in ["", "Upper", "a b", "a/b", &"x".repeat(129)] {
            assert_eq!(error(ConfigurationSpec { id, ..GOOD }), ErrorCode::ArgumentInvalid, "{id}");
        }
        let target_condition = "tags.a =";
        assert_eq!(
            error(ConfigurationSpec { target_condition, ..GOOD }),
            ErrorCode::InvalidConfigurationTargetCondition
        );
        let metrics = &[("n", "SELECT COUNT() FROM devices")];
        assert_eq!(
            error(ConfigurationSpec { metrics, ..GOOD }),
            ErrorCode::InvalidConfigurationCustomMetricsQuery
        );
    }

    #[test]
    fn content_that_can_not_be_desired_properties_is_refused() {
        for device_content in [
            "",
            "[]",
            r#"{"properties.reported.a":1}"#,
            r#"{"properties.desired":{}}"#,
            r#"{"properties.desired.a":null}"#,
            r#"{"properties.desired.a":{"b":null}}"#,
            r#"{"properties.desired.a":1,"properties.desired.a.b":2}"#,
            r#"{"properties.desired.a b":1}"#,
            &format!(r#"{{"properties.desired.a":[{}"x"]}}"#, format!("\"{}\",", "x".repeat(4000)).repeat(9)),
        ] {
            let code = error(ConfigurationSpec { device_content, ..GOOD });
            assert_eq!(code, ErrorCode::InvalidConfigurationContent, "{device_content}");
        }
    }
}
