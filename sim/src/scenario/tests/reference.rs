//! `docs/scenario.md` is checked against the schema: a key that the program takes stands there, with what it is.

use serde_json::{Map, Value};

use crate::scenario::schema;

const START: &str = "<!-- generated from the schema: UPDATE_DOCS=1 cargo test -p fleetwave reference -->\n";
const END: &str = "<!-- end -->\n";

#[test]
fn the_reference_has_every_key_of_the_schema() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/scenario.md");
    let text = std::fs::read_to_string(path).unwrap();
    let (before, rest) = text.split_once(START).expect("the generated part begins");
    let (_, after) = rest.split_once(END).expect("the generated part ends");
    let wanted = format!("{before}{START}{}{END}{after}", Reference { schema: schema() }.write());
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(path, &wanted).unwrap();
    }
    assert!(
        text == wanted || std::env::var_os("UPDATE_DOCS").is_some(),
        "run the command in docs/scenario.md"
    );
}

#[test]
fn the_schema_accepts_the_shipped_scenarios_and_refuses_unknown_keys() {
    let validator = jsonschema::validator_for(&schema()).unwrap();
    for shipped in crate::scenario::shipped() {
        let mut json: Value = toml_edit::de::from_str(shipped.text).unwrap();
        let problems: Vec<String> = validator.iter_errors(&json).map(|error| error.to_string()).collect();
        assert!(problems.is_empty(), "{}: {problems:?}", shipped.name);
        json["fleet"]["devcies"] = 5.into();
        assert!(!validator.is_valid(&json));
    }
}

struct Reference {
    schema: Value,
}

impl Reference {
    fn follow<'a>(&'a self, node: &'a Value) -> &'a Value {
        node.get("$ref").and_then(Value::as_str).map_or(node, |reference| {
            self.follow(self.schema.pointer(reference.trim_start_matches('#')).unwrap())
        })
    }

    /// What a node can be, references followed and `null` left out.
    fn alternatives<'a>(&'a self, node: &'a Value) -> Vec<&'a Value> {
        let node = self.follow(node);
        let all = ["anyOf", "oneOf"].iter().find_map(|kind| node.get(kind)?.as_array());
        let all =
            all.map_or_else(|| vec![node], |all| all.iter().flat_map(|one| self.alternatives(one)).collect());
        all.into_iter().filter(|one| one.get("type") != Some(&"null".into())).collect()
    }

    fn write(&self) -> String {
        let mut out = String::new();
        self.table("", &self.schema, &mut out);
        out
    }

    fn table(&self, path: &str, node: &Value, out: &mut String) {
        let keys: Map<String, Value> = self
            .alternatives(node)
            .iter()
            .filter_map(|one| one.get("properties")?.as_object())
            .flatten()
            .map(|(key, node)| (key.clone(), node.clone()))
            .collect();
        let required: Vec<&str> = match self.alternatives(node)[..] {
            [one] => one
                .get("required")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .collect(),
            _ => Vec::new(),
        };
        let title = if path.is_empty() { "The file".to_owned() } else { format!("`{path}`") };
        *out += &format!("\n### {title}\n\n");
        if let Some(text) = description(self.follow(node)) {
            *out += &format!("{text}\n\n");
        }
        *out += "| key | value | default | meaning |\n|---|---|---|---|\n";
        for (key, node) in &keys {
            let default = match node.get("default") {
                _ if required.contains(&key.as_str()) => "required".to_owned(),
                Some(value) if value.is_object() || value.is_array() || *value == Value::Null => {
                    String::new()
                }
                Some(value) => format!("`{value}`"),
                None => String::new(),
            };
            let meaning = description(node).or_else(|| description(self.follow(node))).unwrap_or_default();
            *out += &format!("| `{key}` | {} | {default} | {meaning} |\n", self.kind(node));
        }
        for (key, node) in &keys {
            let alternatives = self.alternatives(node);
            let inner = alternatives.iter().find_map(|one| one.get("items")).unwrap_or(node);
            let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            let is_table = |one: &&Value| one.get("properties").is_some();
            let is_dist =
                self.alternatives(inner).iter().any(|one| one.get("type") == Some(&"string".into()));
            if path != "expect" && !is_dist && self.alternatives(inner).iter().any(is_table) {
                self.table(&path, inner, out);
            }
        }
    }

    /// What may stand there, in a few words.
    fn kind(&self, node: &Value) -> String {
        let name =
            node.get("$ref").and_then(Value::as_str).and_then(|reference| reference.rsplit('/').next());
        if let Some(kind) = name.and_then(quantity) {
            return kind.to_owned();
        }
        let mut kinds = Vec::new();
        let name = |one: &Value| one.get("$ref")?.as_str()?.rsplit('/').next().map(str::to_owned);
        let direct = ["anyOf", "oneOf"].iter().find_map(|kind| self.follow(node).get(kind)?.as_array());
        let quantities = direct.into_iter().flatten().filter_map(name);
        kinds.extend(quantities.filter_map(|name| quantity(&name).map(str::to_owned)));
        let quantity_found = !kinds.is_empty();
        for one in self.alternatives(node) {
            let example = one.get("examples").and_then(|all| all.get(0));
            kinds.push(match (one.get("const"), one.get("enum").and_then(Value::as_array), example) {
                (Some(value), ..) => format!("`{value}`"),
                (_, Some(values), _) => {
                    values.iter().map(|v| format!("`{v}`")).collect::<Vec<_>>().join(", ")
                }
                (.., Some(_)) if quantity_found => continue,
                (.., Some(example)) => format!("such as `{example}`"),
                _ => match one.get("type").map(|kind| kind.get(0).unwrap_or(kind)).and_then(Value::as_str) {
                    Some("array") => match one.get("items").map(|items| self.follow(items)) {
                        Some(items) if items.get("properties").is_none() => {
                            format!("array of {}", self.kind(items))
                        }
                        _ => "array of tables".to_owned(),
                    },
                    Some("object") => "table".to_owned(),
                    Some(kind) => kind.to_owned(),
                    None => panic!("{one} has no type"),
                },
            });
        }
        kinds.dedup();
        kinds.join(", ")
    }
}

/// What a quantity is called in the document's table of quantities.
fn quantity(name: &str) -> Option<&'static str> {
    Some(match name {
        "Span" => "span of time",
        "ByteSize" => "size",
        "Bandwidth" => "bandwidth",
        "Rate" => "rate",
        "Percent" => "percentage",
        "Count" => "count",
        "TimeOfDay" => "time of the day",
        "Dist" => "distribution",
        "ProgressCondition" => "condition",
        _ => return None,
    })
}

fn description(node: &Value) -> Option<String> {
    Some(node.get("description")?.as_str()?.replace("\n\n", " ").replace('\n', " ").replace('|', "\\|"))
}
