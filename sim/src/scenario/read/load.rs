//! The way in: a file or a shipped scenario, and arguments that override it.

use core::fmt::Write as _;
use std::io::Read as _;

use sha2::{Digest as _, Sha256};

use super::decode::decode;
use super::diagnostic::{Diagnostic, Diagnostics};
use super::keys::Keys;
use super::sets;
use super::source::Source;
use crate::scenario::check::check;
use crate::scenario::model::Scenario;
use crate::scenario::{near, shipped};

/// No scenario is larger than this: it is a text that somebody wrote.
const LARGEST: u64 = 4 << 20;

/// A scenario that can be run, and where it came from.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The scenario, overrides applied.
    pub scenario: Scenario,
    /// SHA-256 of the file's bytes and the overrides, in lower-case hexadecimal: two runs with the same one ran the
    /// same scenario.
    pub sha256: String,
    /// The file's text, without overrides.
    pub text: String,
    /// What may not be as it was meant.
    pub warnings: Vec<Diagnostic>,
}

/// Reads a scenario: a path, or the name of a shipped one. `sets` are `KEY=VALUE` overrides, the last one wins.
///
/// # Errors
/// Everything that is wrong with it, each with its place and what would have been right.
pub fn load(path_or_name: &str, sets: &[String]) -> Result<Loaded, Diagnostics> {
    let looks_like_a_path = path_or_name.contains(['/', '\\', '.']);
    if !looks_like_a_path && let Some(shipped) = shipped::find(path_or_name) {
        return load_text(&format!("scenarios/{}.toml", shipped.name), shipped.text, sets);
    }
    let text = read(path_or_name).map_err(|problem| {
        let names = shipped::SHIPPED.iter().map(|shipped| shipped.name);
        let help = format!(
            "give a file or the name of a shipped scenario{}: {}",
            near::did_you_mean(path_or_name, names.clone()),
            near::list(names)
        );
        Diagnostics::whole(format!("cannot read the scenario `{path_or_name}`: {problem}"), Some(help))
    })?;
    load_text(path_or_name, &text, sets)
}

fn read(path: &str) -> Result<String, String> {
    let file = std::fs::File::open(path).map_err(|error| error.to_string())?;
    let mut bytes = Vec::new();
    file.take(LARGEST + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    if bytes.len() as u64 > LARGEST {
        return Err(format!("it is larger than {} MiB", LARGEST >> 20));
    }
    String::from_utf8(bytes)
        .map_err(|error| format!("it is not UTF-8 text (byte {})", error.utf8_error().valid_up_to()))
}

/// As [`load`], of a text that was read already; `file` is what messages call it.
///
/// # Errors
/// As [`load`].
pub fn load_text(file: &str, text: &str, sets: &[String]) -> Result<Loaded, Diagnostics> {
    let mut source = Source::parse(file, text)?;
    let mut root = source.document().as_table().clone().into_inline_table();
    for argument in sets {
        sets::apply(argument, &mut root, &mut source);
    }
    Keys::new().check(&mut root, &mut source);
    let scenario = decode(&root, &mut source);
    if let Some(scenario) = &scenario {
        check(scenario, &mut source);
    }
    let failed = source.failed();
    let problems = source.into_problems();
    match scenario {
        Some(scenario) if !failed => {
            Ok(Loaded { scenario, sha256: digest(text, sets), text: text.to_owned(), warnings: problems })
        }
        _ => Err(Diagnostics(problems.into_iter().filter(|problem| !problem.warning).collect())),
    }
}

fn digest(text: &str, sets: &[String]) -> String {
    let mut hash = Sha256::new();
    hash.update(text);
    for argument in sets {
        hash.update([0]);
        hash.update(argument);
    }
    hash.finalize().iter().fold(String::new(), |mut hex, byte| {
        write!(hex, "{byte:02x}").expect("a string takes everything");
        hex
    })
}
