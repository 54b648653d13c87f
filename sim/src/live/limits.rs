//! Descriptors: how many a run needs, and how many this process may have.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::run::{EngineError, RunPlan, Target};
use fleetwave_report::record::Transport;

/// What a run needs beside its connections: listeners, polls, files, the floor's sockets in passing.
const RESERVE: u64 = 256;

/// Files that a real agent may have open.
const FILES: u64 = 4;

/// Downloads at once, if the scenario does not say: more do not make one machine faster.
const USUAL_DOWNLOADS: u64 = 256;

/// How many downloads the run makes at once.
pub(super) fn downloads_at_once(plan: &RunPlan) -> u64 {
    match plan.scenario.blob.concurrency {
        0 => USUAL_DOWNLOADS,
        some => u64::from(some),
    }
}

/// Raises this process's limit as far as it goes, and checks that the run fits.
///
/// # Errors
/// [`EngineError::Unfit`] if it does not, with what to change.
pub(super) fn make_room(plan: &RunPlan) -> Result<(), EngineError> {
    let limit = raise();
    let downloads = downloads_at_once(plan);
    let files = plan.real_agents() * FILES;
    check(plan.scenario.fleet.devices.0, downloads, plan.transport, &plan.target, limit.saturating_sub(files))
}

fn check(
    devices: u64,
    downloads: u64,
    transport: Transport,
    target: &Target,
    limit: u64,
) -> Result<(), EngineError> {
    // Both ends of a connection are in this process, unless the broker is another one.
    let ends = match (transport, target) {
        (Transport::Memory, _) => 0,
        (_, Target::Broker { .. } | Target::Remote(_)) => 1,
        _ => 2,
    };
    let needed = devices * ends + downloads * 2 + RESERVE;
    if needed <= limit {
        return Ok(());
    }
    let most = limit.saturating_sub(downloads * 2 + RESERVE) / ends.max(1);
    let fix = if ends == 0 {
        "allow fewer downloads at once with blob.concurrency, or raise the limit (ulimit -n)".to_owned()
    } else if *target == Target::Hub {
        format!("use --transport memory, at most {most} devices, or raise the limit (ulimit -n)")
    } else {
        format!("take at most {most} devices, or raise the limit (ulimit -n)")
    };
    Err(EngineError::Unfit {
        problem: format!(
            "{devices} devices and {downloads} downloads at once over {} need {needed} file descriptors, and this \
             process may have {limit}",
            if ends == 0 { "memory" } else { "TCP" },
        ),
        fix,
    })
}

/// Raises the soft limit to the hard one; gives what holds then.
fn raise() -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
    {
        tracing::debug!(%error, "the limit of file descriptors stays as it is");
    }
    // Without a limit there is none to come up against.
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(devices: u64, transport: Transport, target: &Target) -> Option<String> {
        check(devices, 100, transport, target, 20_000).err().map(|error| error.to_string())
    }

    #[test]
    fn a_fleet_that_needs_too_many_descriptors_is_told_what_would_do() {
        assert_eq!(text(9_000, Transport::Tcp, &Target::Hub), None);
        let error = text(10_000, Transport::Tcp, &Target::Hub).expect("2 descriptors each are too many");
        assert!(
            error.contains("need 20456 file descriptors") && error.contains("--transport memory"),
            "{error}"
        );
        assert_eq!(text(1_000_000, Transport::Memory, &Target::Hub), None);
    }

    #[test]
    fn a_broker_elsewhere_has_its_own_descriptors() {
        let broker = Target::Broker { host: "h".into(), port: 1883 };
        assert_eq!(text(19_000, Transport::Tcp, &broker), None);
        let error = text(20_000, Transport::Tcp, &broker).expect("1 descriptor each is too many");
        assert!(error.contains("at most 19544 devices") && !error.contains("memory,"), "{error}");
    }
}
