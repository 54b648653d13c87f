//! Mistakes that can be told better than the parser does: a name that was mistyped, a path that leads nowhere certain,
//! values with which nothing could ever happen.

use std::ops::Range;

use fleetwave_agent_core::PolicyError;
use toml::Spanned;
use toml::de::{DeTable, DeValue, Error};

use super::target::at;

/// What the parser says of a name that there is not, with the one that was probably meant. `more` names stand beside
/// those that the parser knows of.
pub(super) fn explain(message: &str, more: &[&str]) -> String {
    let Some((what, rest)) = message.split_once(", expected ") else { return message.to_owned() };
    let Some(wrong) = what.strip_prefix("unknown field `").or_else(|| what.strip_prefix("unknown variant `"))
    else {
        return message.to_owned();
    };
    let wrong = wrong.trim_end_matches('`');
    // Between each second pair of backticks.
    let known: Vec<&str> = rest.split('`').skip(1).step_by(2).chain(more.iter().copied()).collect();
    let meant = match nearest(wrong, &known) {
        Some(meant) => format!("did you mean `{meant}`? "),
        None => String::new(),
    };
    format!("{what}: {meant}There are {}", known.join(", "))
}

/// The name that was probably mistyped.
pub(crate) fn nearest<'a>(wrong: &str, known: &[&'a str]) -> Option<&'a str> {
    let likely = |name: &&str| {
        let distance = distance(wrong.as_bytes(), name.as_bytes());
        // A third of it may be wrong, or its end, as in `splay_secs`.
        let start = wrong.bytes().zip(name.bytes()).take_while(|(a, b)| a == b).count();
        let near = distance <= wrong.len().max(name.len()) / 3 || start >= 5;
        (near || sorted(wrong) == sorted(name)).then_some(distance)
    };
    let found = known.iter().filter_map(|name| Some((likely(name)?, *name)));
    found.min_by_key(|(distance, _)| *distance).map(|(_, name)| name)
}

/// Letters that stand in another order are one slip.
fn sorted(name: &str) -> Vec<u8> {
    let mut letters = name.as_bytes().to_vec();
    letters.sort_unstable();
    letters
}

/// How many letters have to be changed, added or removed.
fn distance(a: &[u8], b: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let changed = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

/// The settings that are paths; what a component or a workload is called is left out.
const PATHS: [&str; 23] = [
    "component.dir",
    "download.ca",
    "firmware.boot.autoboot",
    "firmware.boot.config",
    "firmware.boot.device_tree",
    "firmware.boot.environment",
    "firmware.running.cmdline",
    "firmware.running.file",
    "firmware.slots.a",
    "firmware.slots.b",
    "hub.ca",
    "hub.connection_string_file",
    "hub.password_file",
    "identity.certificate",
    "identity.key",
    "locks.files",
    "locks.flocks",
    "provisioning.group_key_file",
    "provisioning.key_file",
    "state",
    "watchdog.device",
    "workload.dir",
    "workload.kubeconfig",
];

/// Thirty years: what is longer is a slip, and no clock can add it up.
const LONGEST_SECONDS: i64 = 1_000_000_000;

/// Refuses paths that depend on where the agent is started (as a service it is in `/`), and times that cannot be meant.
pub(super) fn of_values(table: &DeTable<'_>) -> Result<(), Error> {
    table.iter().try_for_each(|(name, value)| match (&**name.get_ref(), value.get_ref()) {
        ("component" | "workload", DeValue::Table(targets)) => {
            targets.values().try_for_each(|value| below(name.get_ref().to_string(), value))
        }
        _ => below(name.get_ref().to_string(), value),
    })
}

fn below(path: String, value: &Spanned<DeValue<'_>>) -> Result<(), Error> {
    match value.get_ref() {
        DeValue::Table(table) => {
            table.iter().try_for_each(|(name, value)| below(format!("{path}.{}", name.get_ref()), value))
        }
        DeValue::Array(values) => values.iter().try_for_each(|value| below(path.clone(), value)),
        DeValue::String(text) if PATHS.contains(&&*path) => {
            // A key may be in a token, too.
            if text.starts_with('/') || text.starts_with("pkcs11:") {
                return Ok(());
            }
            let message = format!("{text:?} is not an absolute path: as a service the agent is started in /");
            Err(at(value.span(), message))
        }
        DeValue::Integer(number) if path.ends_with("_seconds") => {
            let least = i64::from(path == "watchdog.timeout_seconds");
            if number
                .as_str()
                .parse::<i64>()
                .is_ok_and(|seconds| (least..=LONGEST_SECONDS).contains(&seconds))
            {
                return Ok(());
            }
            Err(at(value.span(), format!("a number of seconds, from {least} to {LONGEST_SECONDS}")))
        }
        _ => Ok(()),
    }
}

/// What the machine cannot work with, as the operator calls it, and where it stands.
pub(super) fn of_policy(error: PolicyError, table: &DeTable<'_>) -> Error {
    let (section, key) = match error.member {
        "probation_timeout" => ("limits", "probation_seconds"),
        "retry" => ("limits", "retry_seconds"),
        "reconnect" => ("limits", "reconnect_seconds"),
        "locks.retry" => ("locks", "retry_seconds"),
        "caps" => ("ledger", "per_update"),
        "download_window" => ("windows", "download"),
        "install_window" => ("windows", "install"),
        // Nothing in the file is about it.
        member => ("", member),
    };
    at(place(table, section, key), format!("{key} of [{section}] {}", error.problem))
}

/// Where a setting stands, or its section; the beginning if neither is there.
fn place(table: &DeTable<'_>, section: &str, key: &str) -> Range<usize> {
    let Some(found) = table.get(section) else { return 0..0 };
    let inner = found.get_ref().as_table().and_then(|table| table.get(key));
    inner.unwrap_or(found).span()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_that_was_meant_is_the_one_that_is_nearest_or_begins_alike() {
        let known = ["splay_seconds", "retry_seconds", "reconnect_seconds", "slot_bytes"];
        for (wrong, meant) in [
            ("splay_secs", Some("splay_seconds")),
            ("retry_second", Some("retry_seconds")),
            ("slotbytes", Some("slot_bytes")),
            ("retry", Some("retry_seconds")),
            ("bandwidth", None),
            ("", None),
            ("ryter_seconds", Some("retry_seconds")),
        ] {
            assert_eq!(nearest(wrong, &known), meant, "{wrong}");
        }
    }

    #[test]
    fn what_the_parser_says_of_other_mistakes_stays() {
        assert_eq!(explain("missing field `state`", &[]), "missing field `state`");
        let told = explain("unknown field `ca`, expected `url` or `cap`", &["hooks"]);
        assert_eq!(told, "unknown field `ca`: did you mean `cap`? There are url, cap, hooks");
    }
}
