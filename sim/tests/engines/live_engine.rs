//! The live engine on small fleets: it converges on every target, and a planted defect shows in the right figure.

use crate::support::{Bench, QUICK};

use fleetwave::run::Target;
use fleetwave::timeline::End;
use fleetwave_report::record::{Transport, Verdict};

fn converges(bench: &Bench) {
    let record = bench.judged();
    assert_eq!(record.verdict, Verdict::Passed, "{:?}", record.notes);
    let devices = record.devices;
    assert_eq!((devices.targeted, devices.converged, devices.missing), (50, 50, 0), "{devices:?}");
    assert_eq!(record.fan_out_latency.count, 50);
    assert_eq!(record.grant_latency.missing, 0);
    assert_eq!(record.blob.bytes, 50 * 65536);
    assert_eq!(record.blob.refetched_bytes, 0);
    assert!(record.failures.is_empty(), "{:?}", record.failures);
    let floor = record.harness.floor.expect("a live run measures its floor");
    assert!(floor.messages_per_second > Some(0.0));
}

#[test]
fn a_fleet_converges_over_tcp() {
    converges(&Bench::of(QUICK));
}

#[test]
fn a_fleet_converges_over_memory() {
    converges(&Bench::of(QUICK).over(Transport::Memory));
}

#[test]
fn a_fleet_converges_behind_rumqttd() {
    converges(&Bench::of(QUICK).at(Target::Rumqttd));
}

#[test]
fn grants_by_cloud_to_device_message_do_as_well_as_by_method() {
    converges(&Bench::of(QUICK).with("grant.channel='c2d'"));
}

#[test]
fn several_threads_of_each_kind_share_the_fleet() {
    let bench = Bench::of(QUICK).over(Transport::Memory);
    converges(&bench.with("live.device_threads=3").with("live.hub_threads=2"));
}

#[test]
fn notifications_that_are_late_show_in_fan_out_and_nowhere_before() {
    let late = "[[step]]\nfault = { delay_notifications = { by = '400ms' } }\n";
    let plain = Bench::of(QUICK).over(Transport::Memory).judged();
    let record = Bench::before_rollout(QUICK, late).over(Transport::Memory).judged();
    let p50 = record.fan_out_latency.corrected.p50.expect("everybody was notified");
    assert!(p50 >= 0.4, "{p50}");
    assert!(plain.fan_out_latency.corrected.p50.expect("everybody was notified") < 0.4);
    assert_eq!(record.devices.missing, 0);
    assert!(record.connect_latency.corrected.p50 < Some(0.4), "connections come before");
    assert!(record.grant_latency.corrected.p50 < Some(0.4), "grants are not notifications");
}

#[test]
fn notifications_that_are_lost_leave_devices_missing_and_the_tail_infinite() {
    let lost = "[[step]]\nfault = { drop_notifications = { share = '2%' } }\n";
    let bench = Bench::before_rollout(QUICK, lost)
        .over(Transport::Memory)
        .with("step.done.wait.until='converged >= 98%'")
        .with("expect.devices.missing='= 1'");
    let record = bench.judged();
    assert_eq!(record.devices.missing, 1, "{:?}", record.notes);
    assert_eq!(record.fan_out_latency.missing, 1);
    assert_eq!(
        record.fan_out_latency.corrected.p99_9, None,
        "a device that was never told is infinitely late"
    );
    assert!(record.fan_out_latency.corrected.p50.is_some());
}

#[test]
fn a_corrupt_store_makes_digest_mismatches_and_no_installation() {
    let bench = Bench::of(QUICK)
        .over(Transport::Memory)
        .with("release.corrupt=true")
        .with("agent.verify_attempts=1")
        .with("step.done.wait.until='settled >= 100%'")
        .with("expect.devices.missing='= 0'");
    let outcome = bench.run();
    assert_eq!((outcome.counts.converged, outcome.counts.failed), (0, 50));
    assert_eq!(outcome.violations, Vec::<String>::new());
    let record = bench.judge(&outcome);
    let causes: Vec<_> = record.failures.iter().map(|f| (f.cause.as_str(), f.devices)).collect();
    assert_eq!(causes, [("digest_mismatch", 50)]);
}

#[test]
fn a_stalled_harness_makes_the_run_invalid() {
    let stall = "[[step]]\nfault = { harness_stall = { for = '600ms' } }\n";
    let record = Bench::before_rollout(QUICK, stall).over(Transport::Memory).judged();
    assert_eq!(record.verdict, Verdict::Invalid, "{:?}", record.notes);
    assert_eq!(record.exit_code, 3);
    assert!(record.harness.lag_max >= 0.5, "{}", record.harness.lag_max);
}

#[test]
fn latencies_count_from_when_a_late_step_was_meant_to_be_sent() {
    let late = "[[step]]\nfault = { late_step = { by = '700ms' } }\n";
    let record = Bench::before_rollout(QUICK, late).over(Transport::Memory).judged();
    assert!(record.fan_out_latency.corrected.p50 >= Some(0.7), "{:?}", record.fan_out_latency);
}

#[test]
fn everybody_comes_back_after_a_restart_of_the_hub() {
    for transport in [Transport::Memory, Transport::Tcp] {
        let restart = "[[step]]\nfault = { hub_restart = { down_for = '300ms' } }\n";
        let record = Bench::before_rollout(QUICK, restart).over(transport).judged();
        assert_eq!(record.verdict, Verdict::Passed, "{:?}", record.notes);
        assert_eq!(record.devices.converged, 50);
    }
}

#[test]
fn power_cuts_in_every_state_leave_no_device_behind() {
    let cuts = "[[step]]\nfault = { power_cut = { share = '100%', off_for = '100ms' } }\n";
    let bench = Bench::before_rollout(QUICK, cuts).over(Transport::Memory);
    let record = bench.judged();
    assert_eq!(record.devices.converged, 50, "{:?}", record.notes);
    assert_eq!(record.verdict, Verdict::Passed, "{:?}", record.notes);
}

#[test]
fn links_that_were_down_pass_again_what_waited() {
    let down = "[[step]]\nfault = { link_down = { share = '50%', lasts = '500ms' } }\n";
    let record = Bench::before_rollout(QUICK, down).over(Transport::Tcp).judged();
    assert_eq!(record.devices.converged, 50, "{:?}", record.notes);
    assert!(record.fan_out_latency.corrected.max >= Some(0.4), "{:?}", record.fan_out_latency);
}

#[test]
fn devices_that_failed_before_a_rollout_was_cancelled_still_count_as_failed() {
    let bench = Bench::of(QUICK)
        .over(Transport::Memory)
        .with("release.health_failure='100%'")
        .with("step.done.wait.abort_if='failed >= 100%'")
        .with("harness.settle='100ms'");
    let outcome = bench.run();
    assert!(matches!(outcome.end, Some(End::Aborted { .. })), "{:?}", outcome.end);
    let devices = bench.judge(&outcome).devices;
    assert_eq!((devices.targeted, devices.failed, devices.rolled_back), (50, 50, 50));
    assert_eq!(outcome.violations, Vec::<String>::new());
}

#[test]
fn a_target_that_depends_on_what_devices_report_is_followed() {
    let target = r#"release = 'fw-2', target = "properties.reported.firmware.running.id = 'fw-1'" }"#;
    let bench = Bench::of(&QUICK.replace("release = 'fw-2' }", target));
    let record = bench.over(Transport::Memory).with("step.done.wait.until='notified >= 100%'").judged();
    assert_eq!((record.devices.targeted, record.devices.notified), (50, 50), "{:?}", record.notes);
}

#[test]
fn a_run_that_is_stopped_gives_what_there_is_so_far() {
    let bench = Bench::of(QUICK).over(Transport::Memory);
    let outcome = bench.run_until(|progress| progress.connected.get() > 0);
    assert_eq!(outcome.end, None);
    let record = bench.judge(&outcome);
    assert_eq!((record.verdict, record.exit_code), (Verdict::Interrupted, 130));
}

#[test]
fn a_run_that_ends_by_itself_says_so() {
    assert_eq!(Bench::of(QUICK).over(Transport::Memory).run().end, Some(End::Completed));
}

#[test]
fn a_port_that_is_taken_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = taken.local_addr().expect("it is bound").port();
    let error = Bench::of(QUICK).with(&format!("live.port={port}")).error();
    assert!(error.contains(&port.to_string()), "{error}");
    let error = Bench::of(QUICK).with(&format!("live.blob_port={port}")).error();
    assert!(error.contains(&port.to_string()), "{error}");
}

#[test]
fn a_broker_that_is_not_there_is_named() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = free.local_addr().expect("it is bound").port();
    drop(free);
    let target = Target::Broker { host: "127.0.0.1".into(), port };
    let error = Bench::of(QUICK).at(target).error();
    assert!(error.contains(&port.to_string()), "{error}");
}

#[test]
fn a_fleet_beyond_the_descriptor_limit_is_sent_to_the_memory_transport() {
    let error = Bench::of(QUICK).with("fleet.devices='20M'").error();
    assert!(error.contains("file descriptors") && error.contains("--transport memory"), "{error}");
}

#[test]
fn the_way_of_each_device_is_told() {
    let run = Bench::of(QUICK).over(Transport::Memory).run_with_stories();
    assert_eq!(run.histories.len(), 50);
    assert!(run.histories.iter().all(|history| *history == run.histories[0]), "all go the same way");
    let names: Vec<_> = run.stories[0].iter().map(|state| state.name()).collect();
    let way = "idle deferred granting downloading verifying staging rebooting idle probation committing idle";
    assert_eq!(names.join(" "), way);
}

/// A third of the fleet.
const REAL: &str =
    "[[fleet.group]]\nname = 'real'\ndriver = 'agent'\nshare = '30%'\nreboot = '50ms..100ms'\n[[release]]";

#[test]
fn real_agents_converge_among_simulated_devices_and_are_measured_with_them() {
    let record = Bench::of(&QUICK.replace("[[release]]", REAL)).with("harness.max_lag=2s").judged();
    assert_eq!(record.verdict, Verdict::Passed, "{:?}", record.notes);
    assert_eq!((record.devices.converged, record.devices.missing), (50, 0));
    assert!(
        record.notes.iter().any(|note| note.contains("15 of the devices are real agents")),
        "{:?}",
        record.notes
    );
}

#[test]
fn real_agents_are_refused_where_there_can_be_none() {
    let bench = || Bench::of(&QUICK.replace("[[release]]", REAL));
    let why = [
        bench().over(Transport::Memory).error(),
        bench().at(Target::Rumqttd).error(),
        bench().virtually(1).error(),
    ];
    for (why, says) in why.iter().zip(["--transport tcp", "leave --target out", "--engine live"]) {
        assert!(why.contains("`real` has driver = \"agent\"") && why.contains(says), "{why}");
    }
}
