//! What each value of a scenario allows by itself, and all of them together do not.

mod expect;
mod fleet;
mod settings;
mod steps;

use super::model::Scenario;
use super::read::{Path, Source};

/// Tells `source` what keeps `scenario` from making sense, and what is only suspicious.
pub(super) fn check(scenario: &Scenario, source: &mut Source) {
    if scenario.name.trim().is_empty() {
        source.error(&Path::of("name"), "a scenario needs a name", None);
    }
    fleet::check(scenario, source);
    settings::check(scenario, source);
    steps::check(scenario, source);
    expect::check(scenario, source);
}

/// Reports the second one of each name that comes twice.
fn unique<'a>(
    names: impl Iterator<Item = &'a str>,
    what: &str,
    path: impl Fn(usize) -> Path,
    source: &mut Source,
) {
    let mut seen: Vec<&str> = Vec::new();
    for (index, name) in names.enumerate() {
        if seen.contains(&name) {
            let help = Some("each needs a name of its own".to_owned());
            source.error(&path(index), format!("there is already a {what} `{name}`"), help);
        }
        seen.push(name);
    }
}
