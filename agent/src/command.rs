//! Programs of the system and of the operator: hooks, health checks, `systemctl`, `podman`. No shell is between, each
//! has a time limit and a process group of its own, and what it says goes into the log, bounded.

mod program;

use std::fmt;
use std::time::Duration;

use serde::de::{MapAccess, SeqAccess, Visitor, value};
use serde::{Deserialize, Deserializer};

pub(crate) use self::program::Program;
use crate::install::Reference;

/// How long a program may take if nothing else is said.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// A program that the operator names: `["/usr/bin/check", "--fast"]`, or with a time limit of its own
/// `{ run = ["/usr/bin/check"], timeout_seconds = 10 }`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// The program and its arguments; never empty.
    words: Vec<String>,
    /// How long it may take.
    timeout: Duration,
}

impl Command {
    /// A program with its arguments, for a default.
    pub(crate) fn new<const N: usize>(words: [&str; N]) -> Self {
        const { assert!(N > 0, "a command is at least a program") };
        Self { words: words.map(str::to_owned).into(), timeout: LIMIT }
    }

    /// The program, to be run.
    pub(crate) fn program(&self) -> Program {
        let (first, rest) = self.words.split_first().expect("checked when it was read");
        Program::new(first).args(rest).within(self.timeout)
    }

    /// How long it may take.
    pub(crate) const fn limit(&self) -> Duration {
        self.timeout
    }

    /// The program as the operator wrote it, without its arguments: those may hold a password.
    pub(crate) fn name(&self) -> &str {
        &self.words[0]
    }
}

impl<'de> Deserialize<'de> for Command {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(CommandVisitor)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CommandTable {
    run: Vec<String>,
    timeout_seconds: Option<u64>,
}

struct CommandVisitor;

impl CommandVisitor {
    fn command<E: serde::de::Error>(words: Vec<String>, seconds: Option<u64>) -> Result<Command, E> {
        match words.first() {
            None => Err(E::custom("a command is a program and its arguments: at least the program")),
            Some(program) if program.is_empty() => Err(E::custom("the program of a command is empty")),
            Some(_) if seconds == Some(0) => Err(E::custom("timeout_seconds is 0: at least 1")),
            Some(_) => Ok(Command { words, timeout: seconds.map_or(LIMIT, Duration::from_secs) }),
        }
    }
}

impl<'de> Visitor<'de> for CommandVisitor {
    type Value = Command;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of a program and its arguments, or { run = [...], timeout_seconds = ... }")
    }

    fn visit_str<E: serde::de::Error>(self, _: &str) -> Result<Command, E> {
        Err(E::custom("no shell runs it: a command is a list, [\"program\", \"argument\"]"))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Command, A::Error> {
        Self::command(Vec::deserialize(value::SeqAccessDeserializer::new(seq))?, None)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Command, A::Error> {
        let table = CommandTable::deserialize(value::MapAccessDeserializer::new(map))?;
        Self::command(table.run, table.timeout_seconds)
    }
}

/// What a program is told in its environment of the update that it is run for.
#[derive(Clone, Debug, Default)]
pub(crate) struct About {
    /// The target: `firmware`, `components.app`.
    pub(crate) target: String,
    /// The release's name and sequence, if it is known.
    pub(crate) release: Option<(String, u64)>,
}

impl About {
    /// Of the release of a reference.
    pub(crate) fn reference(target: &str, reference: &Reference) -> Self {
        let id = reference.get("id").and_then(serde_json::Value::as_str);
        let release = id.map(|id| {
            (id.to_owned(), reference.get("seq").and_then(serde_json::Value::as_u64).unwrap_or_default())
        });
        Self { target: target.to_owned(), release }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct Section {
        command: Command,
    }

    fn read(text: &str) -> Result<Command, String> {
        toml::from_str::<Section>(text).map(|section| section.command).map_err(|e| e.message().to_owned())
    }

    #[test]
    fn a_command_is_a_list_or_a_table_with_a_time_limit() {
        let plain = read("command = ['check', '--fast']").expect("a list");
        assert_eq!((plain.name(), plain.timeout), ("check", LIMIT));
        let table = read("command = { run = ['check'], timeout_seconds = 5 }").expect("a table");
        assert_eq!((table.name(), table.timeout), ("check", Duration::from_secs(5)));
    }

    #[test]
    fn a_command_that_cannot_be_meant_is_refused_with_what_would_be_right() {
        for (text, why) in [
            ("command = 'check --fast'", "no shell runs it"),
            ("command = []", "at least the program"),
            ("command = ['']", "is empty"),
            ("command = { run = ['x'], timeout_seconds = 0 }", "at least 1"),
            ("command = { run = ['x'], limit = 3 }", "unknown field `limit`"),
        ] {
            let error = read(text).expect_err(text);
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
