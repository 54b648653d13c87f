use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::*;

/// RFC 7396's own pseudocode, on plain values.
pub(crate) fn merge_patch(target: Value, patch: &Value) -> Value {
    let Value::Object(patch) = patch else { return patch.clone() };
    let mut target = match target {
        Value::Object(members) => members,
        _ => Map::new(),
    };
    for (key, value) in patch {
        if value.is_null() {
            target.remove(key);
        } else {
            let old = target.remove(key).unwrap_or(Value::Null);
            target.insert(key.clone(), merge_patch(old, value));
        }
    }
    Value::Object(target)
}

fn value(depth: u32) -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-9_i64..9).prop_map(Value::from),
        "[a-c\"\\\\ é]{0,3}".prop_map(Value::from),
    ];
    leaf.prop_recursive(depth, 24, 4, |inner| {
        prop_oneof![prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from), object(inner).boxed(),]
    })
}

fn object(member: impl Strategy<Value = Value> + 'static) -> impl Strategy<Value = Value> {
    prop::collection::btree_map("[a-d]|\"|\\\\|é", member, 0..4)
        .prop_map(|members| Value::Object(members.into_iter().collect()))
}

fn tree(value: &Value) -> Tree {
    Tree::from_value(value).unwrap()
}

fn plain(tree: &Tree) -> Value {
    serde_json::from_str(tree.text()).unwrap()
}

fn document(patch: &Value) -> Tree {
    Tree::empty().merge(&tree(patch)).0
}

/// The size of a section by the twin page's rules, from the plain value.
fn size(value: &Value) -> usize {
    value_size(value)
}

/// The node table says the same as the text.
fn assert_consistent(tree: &Tree) {
    fn walk(tree: &Tree, node: usize, value: &Value, seen: &mut usize) {
        *seen += 1;
        assert_eq!(&serde_json::from_str::<Value>(tree.value(node)).unwrap(), value);
        assert_eq!(tree.kind(node), kind_of(value));
        if let Value::Object(members) = value {
            assert_eq!(tree.members(node).count(), members.len());
            let keys: Vec<_> = tree.members(node).map(|member| tree.key(member)).collect();
            assert!(keys.is_sorted());
            for (key, value) in members {
                walk(tree, tree.member(node, &escape(key)).unwrap(), value, seen);
            }
        }
    }
    let mut seen = 0;
    walk(tree, ROOT, &plain(tree), &mut seen);
    assert_eq!(seen, tree.len());
    assert_eq!(tree.size(), size(&plain(tree)));
}

proptest! {
    /// Merging agrees with RFC 7396 for any two objects, and keeps text, nodes and size consistent.
    #[test]
    fn merging_is_what_the_rfc_says(old in object(value(3)), patch in object(value(3))) {
        let old = document(&old);
        let (new, origins) = old.merge(&tree(&patch));
        prop_assert_eq!(plain(&new), merge_patch(plain(&old), &patch));
        prop_assert_eq!(origins.len(), new.len());
        assert_consistent(&new);
        // What kept its origin is untouched.
        for (node, origin) in origins.iter().enumerate() {
            if let Some(origin) = *origin {
                prop_assert_eq!(new.key(node), old.key(origin as usize));
                prop_assert_eq!(new.value(node), old.value(origin as usize));
            }
        }
        // A second time changes nothing.
        let again = new.merge(&tree(&patch)).0;
        prop_assert_eq!(again.text(), new.text());
    }

    /// The difference of two objects, merged into the first, gives the second; equal objects have none.
    #[test]
    fn a_difference_leads_from_one_object_to_the_other(from in object(value(3)), to in object(value(3))) {
        let (from, to) = (document(&from), document(&to));
        let patch = from.diff(&to);
        assert_consistent(&patch);
        let merged = from.merge(&patch).0;
        prop_assert_eq!(merged.text(), to.text());
        prop_assert_eq!(patch.is_empty(), from.text() == to.text());
    }

    /// Bytes of any kind are a document or an error, never a panic.
    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        if let Ok(parsed) = Tree::parse(&bytes) {
            assert_consistent(&parsed);
        }
    }
}

#[test]
fn text_is_canonical() {
    let parsed = Tree::parse(br#" { "b" : [ {"z":1,"a":2} ], "a" : 1.50, "\u0062" : "\u00e9" } "#).unwrap();
    assert_eq!(parsed.text(), r#"{"a":1.5,"b":"é"}"#);
    assert_consistent(&parsed);
}

#[test]
fn origins_tell_what_a_patch_named() {
    let old = tree(&json!({"a": {"b": 1, "c": 2}, "d": 3}));
    let (new, origins) = old.merge(&tree(&json!({"a": {"b": 1}})));
    let origin = |path: &[&str]| origins[new.find(path).unwrap()];
    assert_eq!(origin(&[]), None);
    assert_eq!(origin(&["a"]), None);
    assert_eq!(origin(&["a", "b"]), None);
    assert_eq!(origin(&["a", "c"]), old.find(&["a", "c"]).map(|n| n as u32));
    assert_eq!(origin(&["d"]), old.find(&["d"]).map(|n| n as u32));
}

#[test]
fn sizes_count_keys_strings_numbers_and_booleans() {
    let section = tree(&json!({"key": "four", "n": 1.5, "t": true, "o": {"é": [1, "ab"]}, "e\"": 2}));
    assert_eq!(section.size(), (3 + 4) + (1 + 8) + (1 + 4) + 1 + (1 + 8 + 2) + (2 + 8));
}

#[test]
fn what_is_not_an_object_is_a_format_error() {
    for bad in ["", "{", "[]", "1", "null", "{\"a\":1}x", "\u{feff}{}"] {
        assert_eq!(Tree::parse(bad.as_bytes()).unwrap_err().code, ErrorCode::IotHubFormatError, "{bad:?}");
    }
}
