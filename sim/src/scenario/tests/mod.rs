//! Tests of the whole way from a text to a scenario: what is accepted, what is said about what is not.

mod errors;
mod overrides;
mod quantities;
mod reference;
mod whole;

use super::{Loaded, load_text};

/// The least that a scenario can be.
const MINIMAL: &str = r#"schema = 1
name = "minimal"

[fleet]
devices = 100

[[release]]
id = "fw-2"
seq = 2

[[step]]
connect = { over = "10s" }

[[step]]
configure = { id = "c", release = "fw-2" }

[[step]]
wait = { until = "converged >= 100%" }

[expect]
"devices.missing" = 0
"#;

fn loaded(text: &str, sets: &[&str]) -> Loaded {
    let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
    load_text("test.toml", text, &sets).unwrap_or_else(|problems| panic!("{problems}"))
}

/// What is said about a scenario that cannot be run.
fn refused(text: &str, sets: &[&str]) -> String {
    let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
    match load_text("test.toml", text, &sets) {
        Ok(loaded) => panic!("it was accepted: {:#?}", loaded.scenario),
        Err(problems) => problems.to_string(),
    }
}
