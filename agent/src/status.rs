//! What is on disk, told to people. Reads only, also while an agent runs.

use std::fmt::Write as _;

use fleetwave_agent_core::{Durable, Phase, Releases};

use crate::config::Config;
use crate::journal::Replay;
use crate::slots::{Slots, StateError};

/// Some lines about the device's slots and its last update.
///
/// # Errors
/// If the state directory cannot be read.
pub fn status(config: &Config) -> Result<String, StateError> {
    let Some(slots) = Slots::read(&config.state)? else {
        return Ok(format!("no agent has run in {} yet\n", config.state.display()));
    };
    let mut releases = Releases::new(config.trust.0.clone());
    let replay = Replay::read(&config.state, &mut releases).map_err(StateError::io(&config.state))?;
    let committed = releases.intern(&slots.committed()?);
    let mut durable = Durable::new(committed);
    replay.records.iter().for_each(|record| durable.apply(*record));
    let name = |release| format!("{} (seq {})", releases[release].id, releases[release].sequence);

    let mut out = String::new();
    let mut line = |label: &str, text: String| {
        writeln!(out, "{label:<11}{text}").expect("a String never fails to grow");
    };
    line("committed", format!("{} in {}", name(committed), slots.default().name()));
    line(
        "in flight",
        match durable.pending {
            None => "nothing".to_owned(),
            Some(pending) => {
                let release = &releases[pending.release];
                let how_far = match pending.phase {
                    Phase::Started { starts } => {
                        format!("started {starts} times, {} of {} bytes", slots.stored(release), release.size)
                    }
                    Phase::Staged { boots } => {
                        format!("in {}, booted {boots} times", slots.candidate().name())
                    }
                    Phase::Reverting(code) => format!("failed its trial: {}", code.name()),
                };
                format!("{}: {how_far}", name(pending.release))
            }
        },
    );
    line(
        "last",
        match durable.last {
            None => "no update yet".to_owned(),
            Some((release, code)) => format!("{}: {}", name(release), code.name()),
        },
    );
    if replay.torn > 0 {
        line("journal", format!("{} bytes at its end are torn; the next start cuts them off", replay.torn));
    }
    Ok(out)
}
