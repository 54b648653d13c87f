//! Keys that do not exist, keys that are missing, and values whose kind cannot be right: found by walking the file
//! beside the schema, so that all of them are found at once and each comes with the names that would have been right.

use serde_json::{Map, Value as Json};
use toml_edit::{InlineTable, Value};

use super::path::Path;
use super::source::Source;
use crate::scenario::near;

/// The scenario's schema, with its references followed.
pub(super) struct Keys {
    root: Json,
}

impl Keys {
    pub(super) fn new() -> Self {
        Self { root: crate::scenario::schema() }
    }

    /// Reports every unknown and every missing key of `root`, and removes the unknown ones.
    pub(super) fn check(&self, root: &mut InlineTable, source: &mut Source) {
        self.table(&self.root, root, &Path::default(), source);
    }

    fn follow<'a>(&'a self, schema: &'a Json) -> &'a Json {
        let mut schema = schema;
        while let Some(reference) = schema.get("$ref").and_then(Json::as_str) {
            let Some(target) = reference.strip_prefix('#').and_then(|pointer| self.root.pointer(pointer))
            else {
                break;
            };
            schema = target;
        }
        schema
    }

    /// The alternatives of a schema, references followed.
    fn alternatives<'a>(&'a self, schema: &'a Json) -> Vec<&'a Json> {
        let schema = self.follow(schema);
        ["anyOf", "oneOf"]
            .iter()
            .find_map(|kind| schema.get(kind)?.as_array())
            .map_or_else(|| vec![schema], |all| all.iter().flat_map(|one| self.alternatives(one)).collect())
    }

    fn value(&self, schema: &Json, value: &mut Value, path: &Path, source: &mut Source) {
        match value {
            Value::InlineTable(table) => self.table(schema, table, path, source),
            Value::Array(array) => {
                let alternatives = self.alternatives(schema);
                if let Some(items) = alternatives.iter().find_map(|one| one.get("items")) {
                    for (index, member) in array.iter_mut().enumerate() {
                        self.value(items, member, &path.index(index), source);
                    }
                }
            }
            Value::Datetime(_) => {
                let text = value.to_string();
                let help = format!("write it as text: \"{}\"", text.trim());
                source.error(path, "a date or time has to be quoted here", Some(help));
            }
            _ => {}
        }
    }

    fn table(&self, schema: &Json, table: &mut InlineTable, path: &Path, source: &mut Source) {
        let objects: Vec<&Map<String, Json>> = self
            .alternatives(schema)
            .into_iter()
            .filter(|one| one.get("type").and_then(Json::as_str) == Some("object"))
            .filter_map(Json::as_object)
            .collect();
        // Anything goes in a table that the schema leaves open, such as tags; and a table where none belongs is the
        // decoder's to report.
        let open =
            |object: &&Map<String, Json>| object.get("additionalProperties") != Some(&Json::Bool(false));
        if objects.is_empty() || objects.iter().any(open) {
            return;
        }
        let known: Map<String, Json> = objects
            .iter()
            .filter_map(|object| object.get("properties")?.as_object())
            .flatten()
            .map(|(name, schema)| (name.clone(), schema.clone()))
            .collect();
        let names: Vec<&str> = known.keys().map(String::as_str).collect();
        let mut unknown = Vec::new();
        for (key, value) in table.iter_mut() {
            let at = path.key(key.get());
            if let Some(schema) = known.get(key.get()) {
                self.value(schema, value, &at, source);
            } else {
                unknown.push(key.get().to_owned());
                report_unknown(key.get(), &names, path, source);
            }
        }
        for key in unknown {
            table.remove(&key);
        }
        // A choice of tables, such as the kinds of faults, requires what its decoder will say.
        if let [object] = objects[..] {
            let required = object.get("required").and_then(Json::as_array).into_iter().flatten();
            for name in required.filter_map(Json::as_str).filter(|name| !table.contains_key(name)) {
                let what = known.get(name).and_then(|schema| {
                    let description =
                        schema.get("description").or_else(|| self.follow(schema).get("description"));
                    description?.as_str()
                });
                let help = what.map(|what| format!("`{name}`: {}", what.lines().next().unwrap_or_default()));
                source.error(path, format!("`{name}` is missing in {}", path.table_name()), help);
            }
        }
    }
}

fn report_unknown(key: &str, names: &[&str], path: &Path, source: &mut Source) {
    let nearest = near::nearest(key, names.iter().copied());
    let (noun, list) = if path.0.first() == Path::of("expect").0.first() {
        // There are some ninety metrics: the ones that start the same way are enough.
        let family = nearest.unwrap_or(key).split('.').next().unwrap_or_default();
        let members: Vec<&str> = names.iter().copied().filter(|name| name.starts_with(family)).collect();
        let list = if members.is_empty() {
            let mut families: Vec<&str> = names.iter().filter_map(|name| name.split('.').next()).collect();
            families.dedup();
            format!("metrics start with {}", near::list(families))
        } else {
            format!("metrics of that name are {}", near::list(members))
        };
        ("metric", list)
    } else {
        ("key", format!("valid keys are {}", near::list(names.iter().copied())))
    };
    let help = nearest.map_or_else(|| list.clone(), |name| format!("did you mean `{name}`? {list}"));
    source.key_error(&path.key(key), format!("unknown {noun} `{key}` in {}", path.table_name()), Some(help));
}
