//! Immutable JSON objects: canonical text with a table of their members beside it.
//!
//! Canonical means: members ordered by their escaped keys, no white space, numbers and escapes as `serde_json`
//! writes them. Equal objects have equal text, so that text is what documents are interned by, and merging copies
//! text instead of parsing it again.

use serde_json::Value;

use crate::error::{ErrorCode, HubError};
use crate::limits;
use crate::record::RecordError;

/// What a node is. An array is one value: merge patches don't look into it, and neither does metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Null,
    False,
    True,
    Number,
    String,
    Array,
    Object,
}

/// A member, or the root. Offsets are into the tree's text.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Node {
    /// The escaped key, without its quotes.
    key: (u32, u32),
    value: (u32, u32),
    /// The index after the last node of this one's subtree; nodes stand in preorder.
    end: u32,
    /// What the node itself counts towards the section's size: its key, and its value if that is not an object.
    weight: u32,
    kind: Kind,
}

/// A JSON object. Node 0 is the root.
#[derive(Clone, Debug)]
pub(crate) struct Tree {
    text: Box<str>,
    nodes: Box<[Node]>,
    size: usize,
}

/// The index of the root.
pub(crate) const ROOT: usize = 0;

impl Tree {
    /// `{}`.
    pub(crate) fn empty() -> Self {
        let mut builder = Builder::default();
        builder.object(None, |_| {});
        builder.finish()
    }

    /// Parses and checks an object as it may stand in a twin or a merge patch.
    pub(crate) fn parse(json: &[u8]) -> Result<Self, HubError> {
        let value: Value = serde_json::from_slice(json)
            .map_err(|error| HubError::new(ErrorCode::IotHubFormatError, format!("not JSON: {error}")))?;
        Self::from_value(&value)
    }

    /// Parses an object that stood in a twin before, whatever today's limits are.
    pub(crate) fn restore(json: &[u8]) -> Result<Self, RecordError> {
        let value =
            serde_json::from_slice(json).map_err(|_| RecordError::Damaged("a document is not JSON"))?;
        match value {
            value @ Value::Object(_) => {
                let mut builder = Builder::default();
                builder.value(None, &value);
                Ok(builder.finish())
            }
            _ => Err(RecordError::Damaged("a document is not an object")),
        }
    }

    /// Checks an object and makes it canonical.
    pub(crate) fn from_value(value: &Value) -> Result<Self, HubError> {
        if !value.is_object() {
            return Err(HubError::new(ErrorCode::IotHubFormatError, "not a JSON object"));
        }
        limits::check_value(value, 0)?;
        let mut builder = Builder::default();
        builder.value(None, value);
        Ok(builder.finish())
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// The size that counts against the section's limit.
    pub(crate) const fn size(&self) -> usize {
        self.size
    }

    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.nodes.len() == 1
    }

    pub(crate) fn key(&self, node: usize) -> &str {
        let (start, end) = self.nodes[node].key;
        &self.text[start as usize..end as usize]
    }

    pub(crate) fn value(&self, node: usize) -> &str {
        let (start, end) = self.nodes[node].value;
        &self.text[start as usize..end as usize]
    }

    pub(crate) fn kind(&self, node: usize) -> Kind {
        self.nodes[node].kind
    }

    /// The members of an object, in order; none for anything else.
    pub(crate) fn members(&self, node: usize) -> Members<'_> {
        Members { tree: self, next: node + 1, end: self.nodes[node].end as usize }
    }

    /// The member of `node` whose escaped key is `key`.
    pub(crate) fn member(&self, node: usize, key: &str) -> Option<usize> {
        self.members(node).find(|&member| self.key(member) == key)
    }

    /// The node at a path of escaped keys.
    pub(crate) fn find<K: AsRef<str>>(&self, path: &[K]) -> Option<usize> {
        path.iter().try_fold(ROOT, |node, key| self.member(node, key.as_ref()))
    }

    /// The patch that turns this object into `to`; it is empty if they are equal.
    pub(crate) fn diff(&self, to: &Self) -> Self {
        let mut builder = Builder::default();
        builder.object(None, |builder| diff_members(self, ROOT, to, ROOT, builder));
        builder.finish()
    }

    /// This object with `patch` merged in (RFC 7396), and where each of its nodes came from.
    pub(crate) fn merge(&self, patch: &Self) -> (Self, Origins) {
        let mut merge = Merge { old: self, patch, builder: Builder::default(), origins: vec![None] };
        merge.builder.open(None);
        merge.members(Some(ROOT), ROOT);
        merge.builder.close(ROOT);
        (merge.builder.finish(), merge.origins)
    }
}

/// For each node of a merged object the node of the old one that it is, or `None` if the patch named it, or a
/// member of it, or brought it.
pub(crate) type Origins = Vec<Option<u32>>;

pub(crate) struct Members<'a> {
    tree: &'a Tree,
    next: usize,
    end: usize,
}

impl Iterator for Members<'_> {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        if self.next >= self.end {
            return None;
        }
        let node = self.next;
        self.next = self.tree.nodes[node].end as usize;
        Some(node)
    }
}

fn diff_members(from: &Tree, from_node: usize, to: &Tree, to_node: usize, builder: &mut Builder) {
    for step in zip(from, from_node, to, to_node) {
        match step {
            Step::Left(gone) => builder.leaf(from.key(gone), "null", Kind::Null, 0),
            Step::Right(new) => {
                builder.copy(to, new);
            }
            Step::Both(old, new) if from.value(old) == to.value(new) => {}
            Step::Both(old, new) if from.kind(old) == Kind::Object && to.kind(new) == Kind::Object => {
                builder.object(Some(to.key(new)), |builder| diff_members(from, old, to, new, builder));
            }
            Step::Both(_, new) => {
                builder.copy(to, new);
            }
        }
    }
}

/// A step through the members of two objects in their common order.
enum Step {
    Left(usize),
    Right(usize),
    Both(usize, usize),
}

fn zip<'a>(
    left: &'a Tree,
    left_node: usize,
    right: &'a Tree,
    right_node: usize,
) -> impl Iterator<Item = Step> + 'a {
    let mut lefts = left.members(left_node).peekable();
    let mut rights = right.members(right_node).peekable();
    std::iter::from_fn(move || {
        let order = match (lefts.peek(), rights.peek()) {
            (None, None) => return None,
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (Some(&l), Some(&r)) => left.key(l).cmp(right.key(r)),
        };
        match order {
            std::cmp::Ordering::Less => lefts.next().map(Step::Left),
            std::cmp::Ordering::Greater => rights.next().map(Step::Right),
            std::cmp::Ordering::Equal => lefts.next().zip(rights.next()).map(|(l, r)| Step::Both(l, r)),
        }
    })
}

struct Merge<'a> {
    old: &'a Tree,
    patch: &'a Tree,
    builder: Builder,
    origins: Origins,
}

impl Merge<'_> {
    /// Merges the members of `patch`'s object into those of `old`'s, or into none.
    fn members(&mut self, old: Option<usize>, patch: usize) {
        let (old_tree, patch_tree) = (self.old, self.patch);
        match old {
            Some(old) => {
                for step in zip(old_tree, old, patch_tree, patch) {
                    match step {
                        Step::Left(kept) => self.keep(kept),
                        Step::Right(new) => self.put(None, new),
                        Step::Both(old, new) => self.put(Some(old), new),
                    }
                }
            }
            None => {
                for new in patch_tree.members(patch) {
                    self.put(None, new);
                }
            }
        }
    }

    fn keep(&mut self, old: usize) {
        let nodes = self.builder.copy(self.old, old);
        self.origins.extend((old..old + nodes).map(|node| u32::try_from(node).ok()));
    }

    fn put(&mut self, old: Option<usize>, patch: usize) {
        match self.patch.kind(patch) {
            Kind::Null => {}
            Kind::Object => {
                self.origins.push(None);
                let node = self.builder.open(Some(self.patch.key(patch)));
                self.members(old, patch);
                self.builder.close(node);
            }
            _ => {
                self.origins.push(None);
                self.builder.copy(self.patch, patch);
            }
        }
    }
}

/// Writes a tree's text and nodes in one go.
#[derive(Default)]
struct Builder {
    text: String,
    nodes: Vec<Node>,
}

impl Builder {
    fn finish(self) -> Tree {
        let size = self.nodes.iter().map(|node| node.weight as usize).sum();
        Tree { text: self.text.into_boxed_str(), nodes: self.nodes.into_boxed_slice(), size }
    }

    /// Offsets are 32 bits wide: a packet is far smaller.
    fn at(&self) -> u32 {
        u32::try_from(self.text.len()).expect("a twin section is smaller than 4 GiB")
    }

    /// Writes a key, with what has to stand before and after it.
    fn key(&mut self, key: Option<&str>) -> (u32, u32) {
        let Some(key) = key else { return (0, 0) };
        if !self.text.ends_with('{') {
            self.text.push(',');
        }
        self.text.push('"');
        let start = self.at();
        self.text.push_str(key);
        let end = self.at();
        self.text.push_str("\":");
        (start, end)
    }

    fn open(&mut self, key: Option<&str>) -> usize {
        let weight = key.map_or(0, key_weight);
        let key = self.key(key);
        let start = self.at();
        self.text.push('{');
        self.nodes.push(Node { key, value: (start, start), end: 0, weight, kind: Kind::Object });
        self.nodes.len() - 1
    }

    fn close(&mut self, node: usize) {
        self.text.push('}');
        let at = self.at();
        let end = u32::try_from(self.nodes.len()).expect("fewer nodes than bytes");
        self.nodes[node].value.1 = at;
        self.nodes[node].end = end;
    }

    fn object(&mut self, key: Option<&str>, members: impl FnOnce(&mut Self)) {
        let node = self.open(key);
        members(self);
        self.close(node);
    }

    fn leaf(&mut self, key: &str, value: &str, kind: Kind, size: usize) {
        let weight = key_weight(key) + u32::try_from(size).unwrap_or(u32::MAX);
        let key = self.key(Some(key));
        let start = self.at();
        self.text.push_str(value);
        let end = u32::try_from(self.nodes.len() + 1).expect("fewer nodes than bytes");
        self.nodes.push(Node { key, value: (start, self.at()), end, weight, kind });
    }

    /// Copies a member with all below it; answers how many nodes that were.
    fn copy(&mut self, from: &Tree, node: usize) -> usize {
        let first = from.nodes[node];
        let shift_node = self.nodes.len();
        let (key_start, _) = self.key(Some(from.key(node)));
        let value_start = self.at();
        self.text.push_str(from.value(node));
        for (place, source) in from.nodes[node..first.end as usize].iter().enumerate() {
            // The member's own key and value need not be a fixed distance apart; below it, all is.
            let moved = |at: u32| at - first.value.0 + value_start;
            let key = match place {
                0 => (key_start, key_start + (first.key.1 - first.key.0)),
                _ => (moved(source.key.0), moved(source.key.1)),
            };
            self.nodes.push(Node {
                key,
                value: (moved(source.value.0), moved(source.value.1)),
                end: u32::try_from(source.end as usize - node + shift_node).expect("fewer nodes than bytes"),
                ..*source
            });
        }
        first.end as usize - node
    }

    fn value(&mut self, key: Option<&str>, value: &Value) {
        match (key, value) {
            (key, Value::Object(members)) => self.object(key, |builder| {
                for (key, value) in sorted(members) {
                    builder.value(Some(&key), value);
                }
            }),
            (Some(key), value) => {
                let mut text = String::new();
                canonical(value, &mut text);
                self.leaf(key, &text, kind_of(value), value_size(value));
            }
            (None, _) => unreachable!("a root is an object"),
        }
    }
}

fn key_weight(escaped: &str) -> u32 {
    let size = match escaped.contains('\\') {
        true => limits::text_size(&unescape(escaped)),
        false => limits::text_size(escaped),
    };
    u32::try_from(size).unwrap_or(u32::MAX)
}

const fn kind_of(value: &Value) -> Kind {
    match value {
        Value::Null => Kind::Null,
        Value::Bool(false) => Kind::False,
        Value::Bool(true) => Kind::True,
        Value::Number(_) => Kind::Number,
        Value::String(_) => Kind::String,
        Value::Array(_) => Kind::Array,
        Value::Object(_) => Kind::Object,
    }
}

fn value_size(value: &Value) -> usize {
    match value {
        Value::Null => 0,
        Value::Bool(_) => 4,
        Value::Number(_) => 8,
        Value::String(text) => limits::text_size(text),
        Value::Array(items) => items.iter().map(value_size).sum(),
        Value::Object(members) => {
            members.iter().map(|(key, value)| limits::text_size(key) + value_size(value)).sum()
        }
    }
}

fn sorted(members: &serde_json::Map<String, Value>) -> Vec<(String, &Value)> {
    let mut members: Vec<_> = members.iter().map(|(key, value)| (escape(key), value)).collect();
    members.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
    members
}

/// Writes any value canonically: objects inside arrays are ordered too, whatever order the map keeps.
fn canonical(value: &Value, out: &mut String) {
    match value {
        Value::Array(items) => {
            out.push('[');
            for (place, item) in items.iter().enumerate() {
                if place > 0 {
                    out.push(',');
                }
                canonical(item, out);
            }
            out.push(']');
        }
        Value::Object(members) => {
            out.push('{');
            for (place, (key, value)) in sorted(members).into_iter().enumerate() {
                if place > 0 {
                    out.push(',');
                }
                out.push('"');
                out.push_str(&key);
                out.push_str("\":");
                canonical(value, out);
            }
            out.push('}');
        }
        simple => out.push_str(&simple.to_string()),
    }
}

/// A key as it stands between the quotes.
pub(crate) fn escape(key: &str) -> String {
    let quoted = Value::from(key).to_string();
    quoted[1..quoted.len() - 1].to_owned()
}

/// The text of an escaped key or string, given without its quotes.
pub(crate) fn unescape(escaped: &str) -> String {
    serde_json::from_str(&format!("\"{escaped}\"")).expect("canonical text is JSON")
}

#[cfg(test)]
#[path = "tree_tests.rs"]
pub(crate) mod tests;
