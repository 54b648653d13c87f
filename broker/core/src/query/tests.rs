use std::borrow::Cow;

use proptest::prelude::*;

use super::*;
use crate::tree::Tree;

struct Twin {
    tags: Tree,
    reported: Tree,
}

impl Twin {
    fn tree(&self, path: &Path) -> Option<(&Tree, Option<usize>)> {
        let tree = match path.root {
            Root::Tags => &self.tags,
            Root::Section(Side::Reported) => &self.reported,
            _ => return None,
        };
        let node = tree.find(&path.keys);
        Some((tree, if path.rest.is_empty() { node } else { None }))
    }
}

impl Scope for Twin {
    fn value(&self, path: &Path) -> Value<'_> {
        match (path.root, self.tree(path)) {
            (_, Some((tree, node))) => Value::of(tree, node),
            (Root::DeviceId, _) => Value::Text("dev-7".into()),
            (Root::Configurations, _) if path.keys.first().is_some_and(|id| **id == *"fw-2") => {
                Value::Text("Applied".into())
            }
            _ => Value::Undefined,
        }
    }

    fn json(&self, path: &Path) -> Option<Cow<'_, str>> {
        let (tree, node) = self.tree(path)?;
        node.map(|node| tree.value(node).into())
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{}");
    }
}

fn twin() -> Twin {
    let tags =
        br#"{"floor":3,"site":"o'hare","on":true,"my-key":1,"list":[1],"o":{"x":"y"},"q":"say \"hi\""}"#;
    let reported = br#"{"state":"idle","load":0.5,"neg":-2}"#;
    Twin { tags: Tree::parse(tags).unwrap(), reported: Tree::parse(reported).unwrap() }
}

fn matches(condition: &str) -> bool {
    Condition::parse(condition).unwrap_or_else(|e| panic!("{condition}: {e}")).matches(&twin())
}

#[test]
fn conditions_that_hold() {
    for condition in [
        "*",
        " * ",
        "tags.floor = 3",
        "TAGS_ARE_FINE_TOO = 1 OR tags.on".replace("TAGS_ARE_FINE_TOO", "tags.floor").as_str(),
        "tags.floor>2 and tags.floor<4",
        "tags.floor != 4 AND tags.floor <> 5",
        "3 <= tags.floor",
        "tags.site = 'o\\'hare'",
        "tags.site = \"o'hare\"",
        "tags.site = 'o\\u0027hare'",
        "tags.q = 'say \"hi\"'",
        "tags.[[my-key]] = 0x1",
        "tags.floor IN [1, 2, 3]",
        "tags.on IN [true]",
        "tags.floor NIN ['3']",
        "NOT tags.floor = 4",
        "NOT (tags.floor = 4 OR tags.site = 'x')",
        "tags.on",
        "deviceId = 'dev-7'",
        "STARTSWITH(deviceId, 'dev-') AND EndsWith(deviceId, '7') AND contains(tags.site, 'ha')",
        "is_defined(tags.o) AND IS_OBJECT(tags.o) AND IS_DEFINED(tags.list) AND NOT IS_OBJECT(tags.list)",
        "IS_BOOL(tags.on) AND IS_NUMBER(tags.floor) AND IS_STRING(tags.site)",
        "NOT IS_DEFINED(tags.nothing) AND NOT IS_NULL(tags.nothing)",
        "properties.reported.load = 5e-1 AND properties.reported.neg = -2 AND properties.reported.neg IN [-2]",
        "tags.nothing = 1 OR tags.floor = 3",
        "tags.o.x > 'x' AND tags.o.x <= 'y'",
        "null = null",
        "tags.floor = 9 AND tags.on OR tags.on",
        "tags.floor NOT IN [4, 5]",
        "tags.floor + 1 = 2 * 2 AND 7 % 4 = tags.floor AND 1 - 2 - 3 = -4 AND 8 / 2 / 2 = 2",
        "2 + 3 * 4 = 14 AND (2 + 3) * 4 = 20 AND -(tags.floor) = -3 AND - -tags.floor = 3",
        "(tags.floor = 3) = true AND IS_DEFINED(tags.nothing) = false",
        "tags.floor > properties.reported.load AND tags.floor * 2 > tags.floor",
        "ABS(properties.reported.neg) = 2 AND POWER(2, 10) = 1024 AND SQUARE(tags.floor) = 9 AND SQRT(16) = 4",
        "FLOOR(1.5) = 1 AND CEILING(1.5) = 2 AND SIGN(-7) = -1 AND SIGN(0) = 0 AND EXP(0) = 1",
        "LENGTH('äö') = 2 AND LOWER('AbC') = 'abc' AND UPPER('abc') = 'ABC' AND CONCAT('a', 'b', 'c', 'd') = 'abcd'",
        "SUBSTRING('hello', 1, 3) = 'ell' AND SUBSTRING('hello', 3) = 'lo' AND INDEX_OF('äbc', 'c') = 2",
        "INDEX_OF('abc', 'z') = -1 AND AS_NUMBER('12') = 12 AND NOT IS_DEFINED(AS_NUMBER('inf'))",
        "IS_ARRAY(tags.list) AND IS_ARRAY([1, [2]]) AND IS_PRIMITIVE(null) AND NOT IS_PRIMITIVE(tags.o)",
        "DEVICEID = 'dev-7' AND Properties.Reported.state = 'idle'",
        "CONTAINS(LOWER(CONCAT('A', deviceId)), 'adev')",
    ] {
        assert!(matches(condition), "{condition}");
    }
}

#[test]
fn conditions_that_do_not_hold() {
    for condition in [
        "",
        "tags.floor = '3'",
        "tags.floor != '3'",
        "tags.nothing = 1",
        "tags.nothing != 1",
        "NOT tags.nothing = 1",
        "NOT tags.nothing",
        "tags.nothing IN [1]",
        "tags.nothing NIN [1]",
        "tags.floor IN []",
        "tags.o = tags.o",
        "tags.list = 1",
        "tags.floor",
        "'true'",
        "tags.on < true",
        "undefined = undefined",
        "tags.nothing = 1 AND tags.floor = 3",
        "STARTSWITH(tags.floor, '3') OR NOT STARTSWITH(tags.floor, '3')",
        "NOT (tags.nothing = 1 AND tags.on)",
        "1 / 0 = 1 OR 1 / 0 != 1",
        "tags.site + 'x' = 'o\\'harex'",
        "SQRT(-1) = 0 OR ABS('x') = 0 OR LENGTH(5) = 1 OR SUBSTRING('x', -1) = 'x'",
        "[1] = [1]",
    ] {
        assert!(!matches(condition), "{condition}");
    }
}

#[test]
fn errors_say_where_and_what_was_expected() {
    for (text, span, message) in [
        ("tags.floor =", 12..12, "expected a property or a value, found the end"),
        ("tags.floor 3", 11..12, "expected AND, OR or the end of the condition, found \"3\""),
        ("floor = 3", 0..5, "expected deviceId, moduleId, tags or properties.reported, found"),
        ("tags.a = 'x", 9..10, "expected a string with its closing quote"),
        ("tags.a = 3 AND", 14..14, "expected a property or a value, found the end"),
        ("(tags.a = 3", 11..11, "expected AND, OR or ), found the end"),
        ("tags. = 3", 6..7, "expected a property's name"),
        ("tags.a IN 3", 10..11, "expected [ and a list of values, found \"3\""),
        ("tags.a IN [1 2]", 13..14, "expected , or ] after a value"),
        ("properties.other.a = 1", 11..16, "expected reported or desired"),
        ("tags.é = ~", 10..11, "expected a name, a number, a string or an operator"),
        ("tags.a = 12abc", 9..10, "expected a number"),
        ("FOO(tags.a)", 0..3, "expected a function of the query language"),
        ("tags.a = 1e999", 9..10, "expected a number"),
        ("CONTAINS(tags.a)", 15..16, "expected , and one more argument"),
        ("ABS(1, 2)", 5..6, "expected ) after the function's arguments"),
        ("tags.a[1.5] = 1", 7..10, "expected an element's number, from 0"),
        ("tags[[a]] = 1", 4..9, "expected . before a name in [[ ]]"),
        ("FROM devices.module", 13..19, "expected modules or jobs"),
    ] {
        let error = Condition::parse(text).unwrap_err();
        assert_eq!(error.span, span, "{text}: {error}");
        assert!(error.problem.to_string().starts_with(message), "{text}: {error}");
    }
}

#[test]
fn carets_point_at_what_is_wrong() {
    let text = "tags.ö = 1\n  AND tags.floor LIKE 'x'";
    let error = Condition::parse(text).unwrap_err();
    assert_eq!(error.caret(text), "  AND tags.floor LIKE 'x'\n                 ^^^^");
    let text = "tags.ö =";
    assert_eq!(Condition::parse(text).unwrap_err().caret(text), "tags.ö =\n        ^");
}

#[test]
fn what_is_not_done_is_refused_by_name() {
    for (text, feature) in [
        ("SELECT DISTINCT tags.a FROM devices", "SELECT DISTINCT"),
        ("SELECT * FROM devices ORDER BY tags.a", "ORDER BY"),
        ("SELECT tags.a FROM devices GROUP BY tags.a HAVING 1", "HAVING"),
        ("SELECT * FROM devices AS d", "a name for the collection"),
        ("SELECT * FROM devices JOIN x", "JOIN"),
        ("SELECT tags.a + 1 AS x FROM devices", "selecting anything but properties and aggregates"),
        ("SELECT 1 FROM devices", "selecting anything but properties and aggregates"),
        ("SELECT LOWER(tags.a) FROM devices", "selecting anything but properties and aggregates"),
        ("SELECT jobId FROM devices.jobs", "selecting anything but * from devices.jobs"),
        ("SELECT COUNT() FROM devices.jobs", "selecting anything but * from devices.jobs"),
        ("SELECT * FROM devices WHERE tags.a LIKE 'x'", "LIKE"),
        ("SELECT * FROM devices WHERE tags.a BETWEEN 1 AND 2", "BETWEEN"),
        ("SELECT * FROM devices WHERE TRIM(tags.a) = 'x'", "the function TRIM()"),
        ("SELECT * FROM devices WHERE COUNT() > 2", "the aggregate COUNT() outside SELECT"),
        ("SELECT * FROM devices WHERE tags['a'] = 2", "a property's name in [' ']; write .[[name]]"),
    ] {
        let error = Query::parse(text).unwrap_err();
        assert_eq!(error.problem, Problem::Unsupported { feature: feature.to_owned() }, "{text}");
    }
    for text in [
        "properties.desired.a = 1",
        "configurations.[[x]].status = 'Applied'",
        "connectionState = 'Connected'",
        "properties.reported.$version > 2",
        "IS_DEFINED(properties.reported)",
    ] {
        let error = Condition::parse(text).unwrap_err();
        assert!(matches!(error.problem, Problem::Unsupported { .. }), "{text}: {error}");
    }
}

#[test]
fn clauses_that_do_not_fit_together_are_refused() {
    for (text, span, expected) in [
        ("SELECT * FROM devices GROUP BY tags.a", 7..8, "the grouped properties and aggregates"),
        ("SELECT tags.b, COUNT() FROM devices GROUP BY tags.a", 7..22, "only aggregates and properties"),
        ("SELECT tags.b, COUNT() FROM devices", 7..22, "only aggregates and properties"),
        ("SELECT tags.a, properties.reported.a FROM devices", 15..36, "names that differ"),
        ("SELECT TOP 0 * FROM devices", 11..12, "a whole number of rows"),
        ("SELECT COUNT(*) AS n FROM devices", 13..14, ") or a property"),
        ("SELECT * FROM device", 14..20, "devices, devices.modules or devices.jobs"),
        ("SELECT * FROM devices tags.a = 1", 22..26, "WHERE, GROUP BY or the end of the query"),
        ("SELECT * FROM devices WHERE", 27..27, "a property or a value"),
        ("SELECT jobId FROM devices", 7..12, "deviceId, moduleId, tags"),
        ("SELECT properties.desired.$x FROM devices", 7..28, "$version or $metadata"),
        ("SELECT * FROM devices.jobs WHERE devices.jobId = 1", 41..46, "the collection that FROM names"),
    ] {
        let error = Query::parse(text).unwrap_err();
        let Problem::Expected { expected: seen, .. } = &error.problem else { panic!("{text}: {error}") };
        assert!(seen.starts_with(expected), "{text}: {error}");
        assert_eq!(error.span, span, "{text}: {error}");
    }
}

fn query(text: &str) -> Query {
    Query::parse(text).unwrap_or_else(|error| panic!("{error}\n{}", error.caret(text)))
}

fn row(text: &str) -> String {
    let mut out = Vec::new();
    query(text).write_row(&twin(), &mut out);
    String::from_utf8(out).unwrap()
}

#[test]
fn rows_have_the_last_part_of_each_path_or_its_alias() {
    for (selected, expected) in [
        ("tags.floor", r#"{"floor":3}"#),
        ("tags.floor AS level, properties.reported.state", r#"{"level":3,"state":"idle"}"#),
        ("tags.nothing, tags.o", r#"{"o":{"x":"y"}}"#),
        ("tags.[[my-key]] as [[a \"b\"]]", r#"{"a \"b\"":1}"#),
        ("tags.nothing", "{}"),
    ] {
        assert_eq!(row(&format!("SELECT {selected} FROM devices")), expected, "{selected}");
    }
    let mut out = b"[".to_vec();
    let query = query("SELECT tags.floor FROM devices");
    query.write_row(&twin(), &mut out);
    query.write_row(&twin(), &mut out);
    assert_eq!(out, br#"[{"floor":3},{"floor":3}"#);
}

#[test]
fn queries_say_what_their_rows_are() {
    for (text, item, collection, aggregate, top) in [
        ("select * from devices", ItemType::Twin, Collection::Devices, false, None),
        ("SELECT TOP 5 * FROM devices.modules", ItemType::Twin, Collection::Modules, false, Some(5)),
        ("SELECT * FROM Devices.Jobs", ItemType::DeviceJob, Collection::Jobs, false, None),
        ("SELECT deviceId FROM devices", ItemType::Raw, Collection::Devices, false, None),
        ("SELECT COUNT() AS n FROM devices", ItemType::Raw, Collection::Devices, true, None),
        ("SELECT tags.a FROM devices GROUP BY tags.a", ItemType::Raw, Collection::Devices, true, None),
    ] {
        let query = query(text);
        assert_eq!(
            (query.item_type(), query.collection(), query.is_aggregate(), query.top()),
            (item, collection, aggregate, top),
            "{text}"
        );
    }
    let modules = Condition::parse("from devices.modules where moduleId = 'm'").unwrap();
    assert_eq!(modules.collection(), Collection::Modules);
    assert_eq!(Condition::parse("tags.a = 1").unwrap().collection(), Collection::Devices);
    assert!(query("SELECT * FROM devices WHERE configurations.[[fw-2]].status = 'Applied'").matches(&twin()));
}

#[test]
fn jobs_are_json_rows_whose_members_any_path_may_name() {
    let job = serde_json::json!({"jobId": "j", "deviceId": "d", "outcome": {"deviceMethodResponse": {"status": 200}}});
    for (filter, selected) in [
        ("devices.jobs.jobId = 'j' AND devices.jobs.deviceId = 'd'", true),
        ("jobId = 'j' AND outcome.deviceMethodResponse.status = 200", true),
        ("devices.jobs.createdTimeUtc > '2016-09-01'", false),
    ] {
        let query = query(&format!("SELECT * FROM devices.jobs WHERE {filter}"));
        assert_eq!(query.matches(&JsonRow(&job)), selected, "{filter}");
    }
    let mut out = Vec::new();
    query("SELECT * FROM devices.jobs").write_row(&JsonRow(&job), &mut out);
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&out).unwrap(), job);
}

fn aggregate(text: &str, shards: &[&[serde_json::Value]]) -> serde_json::Value {
    let query = query(text);
    let mut total = Partial::default();
    for shard in shards {
        let mut partial = Partial::default();
        shard.iter().for_each(|row| query.add(&JsonRow(row), 1, &mut partial));
        query.merge(&mut total, partial);
    }
    let mut out = b"[".to_vec();
    query.write_rows(total, &mut out);
    out.push(b']');
    serde_json::from_slice(&out).unwrap()
}

#[test]
fn shards_aggregate_together() {
    use serde_json::json;
    let one = [json!({"tags": {"s": "a", "n": 1}}), json!({"tags": {"s": "b", "n": 2.5, "x": "t"}})];
    let two = [json!({"tags": {"s": "a", "n": -4, "x": 1}}), json!({"tags": {"n": 1}})];
    let shards: [&[_]; 3] = [&one, &two, &[]];
    let all = "SELECT COUNT() AS n, COUNT(tags.s), SUM(tags.n) AS sum, AVG(tags.n) AS avg, MIN(tags.n) AS min, \
               MAX(tags.x) AS max, SUM(tags.x) AS bad, AVG(tags.none) AS none FROM devices";
    assert_eq!(
        aggregate(all, &shards),
        json!([{"n": 4, "$1": 3, "sum": 0.5, "avg": 0.125, "min": -4, "max": "t"}])
    );
    assert_eq!(aggregate(all, &[]), json!([{"n": 0, "$1": 0, "sum": 0, "bad": 0}]));
    let grouped = "SELECT tags.s AS site, COUNT() AS n, SUM(tags.n) AS sum FROM devices GROUP BY tags.s";
    assert_eq!(
        aggregate(grouped, &shards),
        json!([{"n": 1, "sum": 1}, {"site": "a", "n": 2, "sum": -3}, {"site": "b", "n": 1, "sum": 2.5}])
    );
    assert_eq!(aggregate(grouped, &[]), json!([]));
    let filtered = "SELECT TOP 1 tags.s, COUNT() FROM devices WHERE tags.n > 0 GROUP BY tags.s, tags.x";
    assert_eq!(aggregate(filtered, &shards), json!([{"$1": 1}]));
    let equal = [json!({"tags": {"n": 1.0}}), json!({"tags": {"n": 1}})];
    assert_eq!(
        aggregate("SELECT tags.n, COUNT() AS c FROM devices GROUP BY tags.n", &[&equal]),
        json!([{"n": 1, "c": 2}])
    );
}

#[test]
fn functions_are_listed_in_the_order_of_their_enum() {
    for function in ast::Function::all() {
        assert_eq!(ast::Function::called(&function.name().to_lowercase()), Some(function));
    }
}

#[test]
fn nesting_and_length_have_limits_and_chains_are_flat() {
    for open in ["(", "NOT ", "-", "ABS(", "[ "] {
        let error = Condition::parse(&open.repeat(8192 / open.len())).unwrap_err();
        let Problem::Unsupported { feature } = &error.problem else { panic!("{open}: {error}") };
        assert_eq!(feature, "nesting deeper than 64", "{open}");
    }
    for (part, join) in [("1 = 9", " OR "), ("1", "+"), ("1", "*"), ("- 1", " - "), ("tags.a", ".a")] {
        let chain = vec![part; 8000 / (part.len() + join.len())].join(join);
        let condition = Condition::parse(&chain).unwrap_or_else(|error| panic!("{join}: {error}"));
        assert!(!condition.matches(&twin()), "{join}");
    }
    let long = format!("tags.a = '{}'", "ö".repeat(8200));
    let error = Condition::parse(&long).unwrap_err();
    assert_eq!(error.problem, Problem::TooLong { limit: 8192 });
    assert_eq!(long[error.span].chars().count(), 19);
}

proptest! {
    /// Text of any kind is a condition, a query or an error whose span lies in it; never a panic.
    #[test]
    fn arbitrary_text_never_panics(text in "\\PC{0,40}") {
        for error in [Condition::parse(&text).err(), Query::parse(&text).err()].into_iter().flatten() {
            prop_assert!(text.get(error.span).is_some());
        }
    }

    /// The same for sequences of the language's own words, which get further into the parser.
    #[test]
    fn arbitrary_words_never_panic(words in prop::collection::vec(prop::sample::select(vec![
        "SELECT", "*", "deviceId", "FROM", "devices", "WHERE", "tags", ".", "a", "=", "<", "(", ")", "[", "]", "[[b]]",
        "'s'", "1", "-", "AND", "OR", "NOT", "IN", "NIN", "IS_NULL", "CONTAINS", ",", "null", "properties", "reported",
        "configurations", "status",
    ]), 0..16)) {
        let text = words.join(" ");
        for condition in [Condition::parse(&text), Condition::parse(&format!("tags.a = {text}"))] {
            match condition {
                Ok(condition) => { condition.matches(&twin()); }
                Err(error) => prop_assert!(error.span.end <= text.len() + 9),
            }
        }
        if let Ok(query) = Query::parse(&format!("SELECT * FROM devices WHERE {text}")) {
            let _ = query.matches(&twin());
        }
    }
}

mod hub;
mod properties;
