//! What is on disk, told to people. Reads only, also while an agent runs.

use std::fmt::Write as _;

use fleetwave_agent_core::{Durable, Phase, Releases};

use crate::StateError;
use crate::config::{Config, TargetConfig};
use crate::fetch;
use crate::install::Standing;
use crate::journal::Replay;

/// Some lines about each target and its last update.
///
/// # Errors
/// If the state directory cannot be read.
pub fn status(config: &Config) -> Result<String, StateError> {
    let mut out = String::new();
    for target in &config.targets {
        if config.targets.len() > 1 {
            writeln!(out, "{}", target.target).expect("a String never fails to grow");
        }
        out.push_str(&of_target(config, target)?);
    }
    if let Some(costs) = fetch::costs(&config.state, &config.ledger).map_err(StateError::io(&config.state))? {
        writeln!(out, "{:<11}{costs}", "downloads").expect("a String never fails to grow");
    }
    Ok(out)
}

fn of_target(config: &Config, target: &TargetConfig) -> Result<String, StateError> {
    let dir = target.target.dir(&config.state);
    let Some(standing) = Standing::read(&dir).map_err(StateError::io(&dir))? else {
        return Ok(format!("no agent has run in {} yet\n", dir.display()));
    };
    let mut releases = Releases::new(config.trust.0.clone());
    let replay = Replay::read(&dir, &mut releases).map_err(StateError::io(&dir))?;
    let (committed, running) = (releases.intern(&standing.committed), releases.intern(&standing.running));
    let mut durable = Durable::new(committed);
    replay.records.iter().for_each(|record| durable.apply(*record));
    let name = |release| format!("{} (seq {})", releases[release].id, releases[release].sequence);

    let mut out = String::new();
    let mut line = |label: &str, text: String| {
        writeln!(out, "{label:<11}{text}").expect("a String never fails to grow");
    };
    line("committed", name(committed));
    if running != committed && durable.pending.is_some() {
        line("on trial", name(running));
    }
    line(
        "in flight",
        match durable.pending {
            None => "nothing".to_owned(),
            Some(pending) => {
                let release = &releases[pending.release];
                let how_far = match pending.phase {
                    Phase::Started { starts } => {
                        let stored = fetch::recorded(&dir, release);
                        format!("started {starts} times, {stored} of {} bytes", release.size)
                    }
                    Phase::Staged { boots } => format!("staged, booted {boots} times"),
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
