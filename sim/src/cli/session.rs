//! `fleetwave run`: from arguments to an exit code.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::SystemTime;

use fleetwave_report::summary;

use super::args::Run;
use super::output::{self, OutDir};
use super::{CliError, elsewhere, plan};
use crate::progress::{Display, Progress, Show};
use crate::remote;
use crate::run::{self, EngineError, Target};

/// The exit code of a run that was interrupted.
const INTERRUPTED: u8 = 130;

pub(super) fn run(arguments: &Run) -> Result<u8, CliError> {
    let (plan, warnings) = plan::plan(arguments)?;
    for warning in warnings {
        say(&warning.to_string());
    }
    if let Target::Remote(remote) = &plan.target {
        remote::fit(&plan.scenario).map_err(|(problem, fix)| EngineError::Unfit { problem, fix })?;
        say(&remote::estimate(remote, &plan.scenario));
        if !elsewhere::confirm(arguments.yes)? {
            say("nothing was created\n");
            return Ok(INTERRUPTED);
        }
    }
    let out = arguments.out.as_deref().map(OutDir::prepare).transpose()?;
    let stop = stop_on_ctrl_c(&plan.target)?;

    let progress = Arc::new(Progress::default());
    progress.phase("making the fleet");
    let show = if arguments.quiet { Show::Quiet } else { Show::Auto };
    let display = Display::start(Arc::clone(&progress), show);
    let started = SystemTime::now();
    let outcome = run::engine(plan.engine)(&plan, &progress, &stop);
    display.finish();

    let outcome = outcome?;
    let record = run::judge(&plan, &outcome);
    // What was measured is shown before anything is written, so that a full disk does not take it away.
    output::print(&if arguments.json { output::json(&record) } else { summary(&record) })?;
    if let Some(out) = out {
        out.write(&record, &outcome.meter, started)?;
    }
    Ok(record.exit_code)
}

/// The flag that the first Ctrl-C (or a termination signal) sets, so that the run ends cleanly; the second ends
/// the process.
fn stop_on_ctrl_c(target: &Target) -> Result<Arc<AtomicBool>, ctrlc::Error> {
    let stopping = match target {
        Target::Remote(_) => {
            "stopping the run and removing what it created; press Ctrl-C again to leave that\n"
        }
        Target::Hub | Target::Rumqttd | Target::Broker { .. } => {
            "stopping the run; press Ctrl-C again to end at once\n"
        }
    };
    let left = match target {
        Target::Remote(remote) => format!(
            "devices and configurations whose ids begin with {}- may be left on {remote}; remove them by `{}`\n",
            remote.prefix(),
            remote.clean_command()
        ),
        Target::Hub | Target::Rumqttd | Target::Broker { .. } => String::new(),
    };
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    ctrlc::set_handler(move || {
        if flag.swap(true, SeqCst) {
            say(&left);
            std::process::exit(INTERRUPTED.into());
        }
        say(stopping);
    })?;
    Ok(stop)
}

fn say(text: &str) {
    // There is nowhere left to complain when standard error is gone.
    let _ = io::stderr().write_all(text.as_bytes());
}
