use proptest::prelude::*;

use super::ast::Root;
use super::*;
use crate::tree::Tree;

struct Twin {
    tags: Tree,
    reported: Tree,
}

impl<'a> Scope<'a> for &'a Twin {
    fn value(&self, path: &Path) -> Value<'a> {
        match path.root {
            Root::DeviceId => Value::Text("dev-7".into()),
            Root::Tags => Value::of(&self.tags, self.tags.find(&path.members)),
            Root::Reported => Value::of(&self.reported, self.reported.find(&path.members)),
            Root::ConfigurationStatus if &*path.members[0] == "fw-2" => Value::Text("Applied".into()),
            Root::Desired | Root::ConfigurationStatus => Value::Undefined,
        }
    }
}

fn twin() -> Twin {
    let tags =
        br#"{"floor":3,"site":"o'hare","on":true,"my-key":1,"list":[1],"o":{"x":"y"},"q":"say \"hi\""}"#;
    let reported = br#"{"state":"idle","load":0.5,"neg":-2}"#;
    Twin { tags: Tree::parse(tags).unwrap(), reported: Tree::parse(reported).unwrap() }
}

fn matches(condition: &str) -> bool {
    Condition::parse(condition).unwrap_or_else(|e| panic!("{condition}: {e}")).matches(&&twin())
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
    ] {
        assert!(!matches(condition), "{condition}");
    }
}

#[test]
fn errors_say_where_and_what_was_expected() {
    for (text, span, message) in [
        ("tags.floor =", 12..12, "expected a property or a value, found the end"),
        ("tags.floor 3", 11..12, "expected AND, OR or the end of the condition, found \"3\""),
        ("floor = 3", 0..5, "expected deviceId, tags, properties.reported"),
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
    ] {
        let error = Condition::parse(text).unwrap_err();
        assert_eq!(error.span, span, "{text}: {error}");
        assert!(error.problem.to_string().starts_with(message), "{text}: {error}");
    }
}

#[test]
fn what_is_not_done_is_refused_by_name() {
    for (text, feature) in [
        ("SELECT COUNT() AS n FROM devices", "the aggregate COUNT()"),
        ("SELECT * FROM devices GROUP BY tags.a", "GROUP BY"),
        ("SELECT TOP 5 * FROM devices", "SELECT TOP"),
        ("SELECT tags.a FROM devices", "selecting anything but * or deviceId"),
        ("SELECT deviceId, tags FROM devices", "selecting more than one value"),
        ("SELECT * FROM devices.jobs", "FROM devices.modules and devices.jobs"),
        ("SELECT * FROM devices WHERE tags.a + 1 = 2", "arithmetic"),
        ("SELECT * FROM devices WHERE tags.a = 2 * 3", "arithmetic"),
        ("SELECT * FROM devices WHERE LENGTH(tags.a) = 2", "the function LENGTH()"),
        ("SELECT * FROM devices WHERE tags.a[0] = 2", "access to an array's element"),
        ("SELECT * FROM devices WHERE connectionState = 'Connected'", "the twin's connectionState"),
        ("SELECT * FROM devices WHERE properties.reported.$version > 2", "the twin's $version"),
    ] {
        let error = Query::parse(text).unwrap_err();
        assert_eq!(error.problem, Problem::Unsupported { feature: feature.to_owned() }, "{text}");
    }
    for text in ["properties.desired.a = 1", "configurations.[[x]].status = 'Applied'"] {
        let error = Condition::parse(text).unwrap_err();
        assert!(matches!(error.problem, Problem::Unsupported { .. }), "{text}: {error}");
        assert_eq!(error.span.start, 0);
    }
}

#[test]
fn queries_select_twins_or_ids_and_may_filter() {
    let query = Query::parse("select deviceId from devices where configurations.[[fw-2]].status = 'Applied'")
        .unwrap();
    assert_eq!(query.projection(), Projection::DeviceId);
    assert!(query.matches(&&twin()));
    let query = Query::parse("SELECT * FROM devices").unwrap();
    assert_eq!(query.projection(), Projection::Twin);
    assert!(query.matches(&&twin()));
    assert!(Query::parse("SELECT * FROM devices WHERE").is_err());
}

#[test]
fn deep_nesting_is_refused_and_long_chains_are_not() {
    for open in ["(", "NOT "] {
        assert!(Condition::parse(&open.repeat(100_000)).is_err());
    }
    let chain = vec!["tags.floor = 9"; 5000].join(" OR ");
    assert!(!matches(&chain));
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
                Ok(condition) => { condition.matches(&&twin()); }
                Err(error) => prop_assert!(error.span.end <= text.len() + 9),
            }
        }
        if let Ok(query) = Query::parse(&format!("SELECT * FROM devices WHERE {text}")) {
            query.matches(&&twin());
        }
    }
}
