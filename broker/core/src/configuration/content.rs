//! What a configuration puts into desired properties.

use serde_json::{Map, Value};

use crate::error::{ErrorCode, HubError};
use crate::limits::Section;
use crate::tree::{Tree, escape};

/// A path of escaped keys.
pub(super) type Path = Box<[Box<str>]>;

#[derive(Debug)]
pub(crate) struct Content {
    /// The paths that it owns; the empty one if it owns all.
    pub(super) paths: Box<[Path]>,
    /// What all desired properties are before `set`, if it owns all.
    whole: Option<Tree>,
    /// The patch that removes what stands at the paths.
    clear: Tree,
    /// The patch that puts the values there.
    set: Tree,
}

pub(crate) fn bad_content(message: impl Into<String>) -> HubError {
    HubError::new(ErrorCode::InvalidConfigurationContent, message.into())
}

impl Content {
    pub(super) fn parse(json: &str) -> Result<Self, HubError> {
        let parsed = serde_json::from_str(json).map_err(|error| bad_content(format!("not JSON: {error}")))?;
        let Value::Object(members) = parsed else {
            return Err(bad_content("the content is not a JSON object"));
        };
        Self::of_any(members)
    }

    /// The content of an object like that of [`Content::of`], or with `properties.desired`, which replaces all that
    /// there is.
    pub(crate) fn of_any(mut members: Map<String, Value>) -> Result<Self, HubError> {
        let Some(whole) = members.remove("properties.desired") else { return Self::of(members) };
        let whole = Tree::from_value(&whole).map_err(|error| bad_content(error.message))?;
        let mut content = Self::of(members)?;
        // Nulls are removed.
        content.whole = Some(Tree::empty().merge(&whole).0);
        content.paths = Box::new([Path::default()]);
        Section::Desired
            .check_size(content.lay_over(&Tree::empty()).size())
            .map_err(|error| bad_content(error.message))?;
        Ok(content)
    }

    /// Whether it owns all desired properties.
    pub(super) const fn is_whole(&self) -> bool {
        self.whole.is_some()
    }

    /// The content of an object from `properties.desired.PATH` to values.
    pub(crate) fn of(members: Map<String, Value>) -> Result<Self, HubError> {
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
        Ok(Self { paths: paths.into_boxed_slice(), whole: None, clear, set })
    }

    pub(crate) fn lay_over(&self, tree: &Tree) -> Tree {
        self.whole.as_ref().unwrap_or(tree).merge(&self.clear).0.merge(&self.set).0
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
pub(super) fn covers(outer: &[Box<str>], inner: &[Box<str>]) -> bool {
    inner.starts_with(outer)
}
