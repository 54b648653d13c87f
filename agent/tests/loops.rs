//! An update that ends the agent again and again, at the same place each time, is given up with a cause.

mod support;

use std::os::unix::process::ExitStatusExt as _;

use fleetwave_agent_core::Policy;
use fleetwave_hub::blob::Content;
use support::World;

fn content(seed: u64) -> Content {
    Content::Generated { seed, size: 100_000 }
}

/// Starts an agent that dies at each `point`, again and again, until it does not; how often it died, and the last
/// report.
fn loop_of(world: &mut World, point: &str) -> (u8, String) {
    world.environment = vec![("FLEETWAVE_CRASH_ON", point.to_owned())];
    world.release("fw-2", 2, &content(2), content(2));
    let mut deaths = 0;
    loop {
        let status = world.run_once();
        if status.signal() == Some(9) {
            deaths += 1;
            assert!(deaths < 100, "for ever at {point}: {}", world.log());
            continue;
        }
        assert_eq!(status.code(), Some(3), "{point}: {}", world.log());
        let reports = world.reports_until(|report| report["state"] == "failed");
        return (deaths, reports.last().cloned().unwrap_or_default());
    }
}

#[test]
fn an_agent_that_dies_whenever_it_downloads_verifies_or_stages_gives_the_release_up() {
    for point in ["effect: fetch", "effect: verify", "effect: stage"] {
        let mut world = World::new(None, &[]);
        let (deaths, report) = loop_of(&mut world, point);
        assert_eq!(
            (deaths, &*report),
            (Policy::default().start_attempts, "fw-1 failed start_loop"),
            "{point}"
        );
        let served = world.blobs.control().counters().bytes;
        assert!(served <= 100_000, "{point}: no byte twice, but {served}");
        // And it is not begun again.
        world.environment.clear();
        assert_eq!(world.run_once().code(), Some(3), "{}", world.log());
        assert_eq!(world.blobs.control().counters().bytes, served);
    }
}

#[test]
fn an_agent_that_dies_whenever_it_starts_a_trial_or_in_each_one_gives_the_release_up() {
    for point in ["effect: reboot into the candidate", "effect: check health", "effect: commit"] {
        let mut world = World::new(None, &[]);
        let (deaths, report) = loop_of(&mut world, point);
        assert_eq!(
            (deaths, &*report),
            (Policy::default().boot_attempts, "fw-1 failed boot_failed"),
            "{point}"
        );
        assert_eq!(world.blobs.control().counters().bytes, 100_000, "{point}");
        // The next release is another matter.
        world.environment.clear();
        world.release("fw-3", 3, &content(3), content(3));
        assert!(world.run_once().success(), "{}", world.log());
    }
}
