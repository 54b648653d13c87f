//! Where values come from, and what a query shows of it.

use std::borrow::Cow;

use super::ast::{Item, Path, Selection, What};
use super::value::{Value, walk};

/// A row that a query goes over.
pub trait Scope {
    /// What stands at a path.
    fn value(&self, path: &Path) -> Value<'_>;

    /// The JSON of what stands at a path, as results show it; `None` if nothing does.
    fn json(&self, path: &Path) -> Option<Cow<'_, str>>;

    /// Appends the whole row, as `SELECT *` shows it.
    fn write(&self, out: &mut Vec<u8>);
}

/// A row that is there as JSON, one of `devices.jobs` for instance.
#[derive(Clone, Copy, Debug)]
pub struct JsonRow<'a>(pub &'a serde_json::Value);

impl<'a> JsonRow<'a> {
    pub(crate) fn find(self, path: &Path) -> Option<&'a serde_json::Value> {
        let top = path.root.names().iter().try_fold(self.0, |json, name| json.get(name))?;
        walk(top, &path.keys, &path.rest)
    }
}

impl Scope for JsonRow<'_> {
    fn value(&self, path: &Path) -> Value<'_> {
        Value::of_json(self.find(path))
    }

    fn json(&self, path: &Path) -> Option<Cow<'_, str>> {
        self.find(path).map(|json| json.to_string().into())
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.0.to_string().as_bytes());
    }
}

/// Appends what separates a row from the one before it.
pub(super) fn separate(out: &mut Vec<u8>) {
    if !matches!(out.last(), None | Some(b'[')) {
        out.push(b',');
    }
}

/// Appends what a query without aggregates shows of a row.
pub(super) fn write_row(selection: &Selection, scope: &impl Scope, out: &mut Vec<u8>) {
    separate(out);
    let Selection::Items(items) = selection else { return scope.write(out) };
    write_members(items, out, |item| match &item.what {
        What::Path(path) => scope.json(path),
        What::Aggregate(..) => None,
    });
}

/// Appends an object with a member for each item that has a value.
pub(super) fn write_members<'v>(
    items: &'v [Item],
    out: &mut Vec<u8>,
    mut json: impl FnMut(&'v Item) -> Option<Cow<'v, str>>,
) {
    out.push(b'{');
    let mut first = true;
    for item in items {
        let Some(value) = json(item) else { continue };
        if !std::mem::take(&mut first) {
            out.push(b',');
        }
        out.push(b'"');
        out.extend_from_slice(item.name.as_bytes());
        out.extend_from_slice(b"\":");
        out.extend_from_slice(value.as_bytes());
    }
    out.push(b'}');
}
