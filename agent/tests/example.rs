//! The example of a configuration that is in the package is complete, and right.
//!
//! In it, what is optional stands behind a `#` without a blank. A table that stands there several times has alternatives.
//! Where the hub is can be said in one way only: see [`only_one_way`].

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

const EXAMPLE: &str = include_str!("../packaging/config.toml");
/// A setting that no table has.
const UNKNOWN: &str = "no_such_setting";

/// One table of the example, everything optional included.
#[derive(Clone, Debug)]
struct Table {
    /// Empty for what stands before the first one.
    name: String,
    lines: Vec<String>,
}

fn tables() -> Vec<Table> {
    let mut tables = vec![Table { name: String::new(), lines: Vec::new() }];
    for line in EXAMPLE.lines() {
        let line = match line.strip_prefix('#') {
            Some(rest) if rest.is_empty() || rest.starts_with([' ', '#']) => continue,
            Some(setting) => setting,
            None => line,
        };
        match line.strip_prefix('[').and_then(|line| line.trim_end().strip_suffix(']')) {
            Some(name) => tables.push(Table { name: name.to_owned(), lines: Vec::new() }),
            None => tables.last_mut().expect("never empty").lines.push(line.to_owned()),
        }
    }
    tables
}

/// Each of these has every table that goes with the others, and of those with alternatives another one; together they
/// have all.
fn configurations() -> Vec<Vec<Table>> {
    let mut order = Vec::new();
    let mut alternatives = BTreeMap::<String, Vec<Table>>::new();
    for table in tables() {
        let found = alternatives.entry(table.name.clone()).or_default();
        if found.is_empty() {
            order.push(table.name.clone());
        }
        found.push(table);
    }
    let hubs = alternatives["hub"].len();
    let most = hubs + alternatives.values().map(Vec::len).max().unwrap_or(0);
    (0..most)
        .map(|at| {
            let pick = |name: &String| {
                let all = &alternatives[name];
                // The last one is for a device that is provisioned, and that can be in several ways.
                if name == "hub" { all[at.min(hubs - 1)].clone() } else { all[at % all.len()].clone() }
            };
            only_one_way(order.iter().map(pick).collect())
        })
        .collect()
}

/// Leaves out what `[hub]` has no room for: the hub is found, and the device shows itself, in one way.
fn only_one_way(mut tables: Vec<Table>) -> Vec<Table> {
    let says = |tables: &[Table], name: &str, wanted: &[&str]| {
        let lines = tables.iter().filter(|table| table.name == name).flat_map(|table| &table.lines);
        lines.filter_map(|line| line.split_once(" = ")).any(|(key, _)| wanted.contains(&key))
    };
    let complete = ["connection_string", "connection_string_file", "profile"];
    let keys = ["key", "key_file", "group_key", "group_key_file"];
    if says(&tables, "hub", &complete) {
        tables.retain(|table| !["identity", "provisioning"].contains(&table.name.as_str()));
    } else if says(&tables, "hub", &["host"]) {
        tables.retain(|table| table.name != "provisioning");
    } else if says(&tables, "provisioning", &keys) {
        tables.retain(|table| table.name != "identity");
    }
    tables
}

/// The text of a configuration; `planted` has a setting that is unknown.
fn text(tables: &[Table], planted: Option<&str>) -> String {
    let mut text = String::new();
    for Table { name, lines } in tables {
        if !name.is_empty() {
            text.push_str(&format!("[{name}]\n"));
        }
        if planted == Some(name) {
            text.push_str(&format!("{UNKNOWN} = 1\n"));
        }
        text.extend(lines.iter().flat_map(|line| [line, "\n"]));
    }
    text
}

fn check(file: &Path, text: &str) -> Output {
    fs::write(file, text).expect("written");
    Command::new(env!("CARGO_BIN_EXE_fleetwave-agent"))
        .arg("check-config")
        .arg(file)
        .output()
        .expect("the agent runs")
}

#[test]
fn the_example_is_right_as_it_stands_and_with_all_that_is_optional() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("config.toml");
    let output = check(&file, EXAMPLE);
    assert!(output.status.success(), "{output:?}");
    for tables in configurations() {
        let text = text(&tables, None);
        let output = check(&file, &text);
        assert!(output.status.success(), "{}\n{text}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn every_setting_that_there_is_stands_in_the_example() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("config.toml");
    // Names of settings and of tables within it, by table.
    let mut told = BTreeMap::<String, BTreeSet<String>>::new();
    for Table { name, lines } in tables() {
        if let Some((parent, child)) = name.rsplit_once('.') {
            told.entry(parent.to_owned()).or_default().insert(child.to_owned());
            // `component` of `[component.app]` stands in the root.
            let first = parent.split('.').next().expect("never empty");
            told.entry(String::new()).or_default().insert(first.to_owned());
        } else if !name.is_empty() {
            told.entry(String::new()).or_default().insert(name.clone());
        }
        let keys = lines.iter().filter_map(|line| line.split_once(" = ")).map(|(key, _)| key);
        told.entry(name).or_default().extend(keys.filter(|key| !key.starts_with(' ')).map(str::to_owned));
    }
    let mut missing = Vec::new();
    let mut known = 0;
    for tables in configurations() {
        for Table { name, .. } in &tables {
            let output = check(&file, &text(&tables, Some(name)));
            let error = String::from_utf8(output.stderr).expect("text");
            let (_, expected) =
                error.split_once(&format!("unknown field `{UNKNOWN}`: There are ")).unwrap_or_else(|| {
                    panic!("[{name}] takes any setting, or cannot be asked for them: {error}")
                });
            for setting in expected.trim_end().split(", ") {
                known += 1;
                if !told[name].contains(setting) {
                    missing.push(format!("[{name}] {setting}"));
                }
            }
        }
    }
    assert!(known > 10, "the settings can be had from the error messages");
    assert!(missing.is_empty(), "not in agent/packaging/config.toml: {missing:#?}");
}
