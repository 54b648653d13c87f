//! The virtual engine: the same run on any number of threads, planted defects in the right figures, and invariants
//! that hold whatever breaks.

use fleetwave_report::record::{RunRecord, Verdict};

use crate::support::{Bench, FLEET};

fn passes(bench: &Bench) -> RunRecord {
    let record = bench.judged();
    assert_eq!(record.verdict, Verdict::Passed, "{:?}", record.notes);
    record
}

fn with_step(step: &str) -> Bench {
    Bench::before_rollout(FLEET, &format!("[[step]]\nfault = {step}\n")).virtually(1)
}

#[test]
fn one_seed_gives_one_run_on_any_number_of_threads() {
    let everything = "
[[step]]
fault = { power_cut = { share = '20%' } }
[[step]]
fault = { blob_error = { status = 503, share = '10%' } }
[[step]]
fault = { link_down = { share = '5%', lasts = '3s' } }
";
    // More than one shard, so that threads have something to share.
    let bench = |threads| {
        Bench::before_rollout(FLEET, everything)
            .with("fleet.devices=10000")
            .with("fleet.group.all.link.loss='1%'")
            .virtually(threads)
    };
    let first = bench(1).run_with_histories();
    for threads in [1, 2, 2, 3] {
        let again = bench(threads).run_with_histories();
        assert_eq!(again.0.event_hash, first.0.event_hash, "{threads} threads");
        assert_eq!(again.1, first.1, "{threads} threads");
        assert_eq!(
            bench(threads).judge(&again.0).twin_convergence,
            bench(1).judge(&first.0).twin_convergence
        );
    }
    let other = bench(1).with("seed=2").run();
    assert_ne!(other.event_hash, first.0.event_hash);
}

#[test]
fn throttled_runs_are_the_same_on_any_number_of_threads_too() {
    let bench = |threads| {
        Bench::of(FLEET)
            .with("fleet.devices=6000")
            .with("hub.tier='S1'")
            .with("step.connect.connect.over='70s'")
            .virtually(threads)
    };
    assert_eq!(bench(1).run().event_hash, bench(2).run().event_hash);
}

#[test]
fn fifty_milliseconds_on_the_way_to_devices_move_fan_out_by_fifty_and_nothing_before_it() {
    let plain = passes(&Bench::of(FLEET).virtually(1));
    let late = passes(&with_step("{ delay_notifications = { by = '50ms' } }"));
    let moved = |figure: fn(&RunRecord) -> Option<f64>| {
        figure(&late).expect("everybody answered") - figure(&plain).expect("everybody answered")
    };
    for (name, figure) in [
        ("p50", (|record| record.fan_out_latency.corrected.p50) as fn(&RunRecord) -> Option<f64>),
        ("p99", |record| record.fan_out_latency.corrected.p99),
        ("max", |record| record.fan_out_latency.corrected.max),
    ] {
        assert!((moved(figure) - 0.050).abs() < 0.001, "{name} moved by {}", moved(figure));
    }
    assert_eq!(late.connect_latency.corrected.p50, plain.connect_latency.corrected.p50);
    assert!(moved(|record| record.grant_latency.corrected.p50).abs() < 0.003);
    assert_eq!(late.messages_per_device, plain.messages_per_device);
}

#[test]
fn notifications_that_are_lost_for_good_leave_devices_missing_and_the_tail_infinite() {
    let record = with_step("{ drop_notifications = { share = '1%' } }")
        .with("step.done.wait.until='converged >= 99%'")
        .with("expect.devices.missing='= 10'")
        .judged();
    assert_eq!(record.verdict, Verdict::Passed, "{:?}", record.notes);
    assert_eq!((record.devices.targeted, record.devices.notified), (1000, 990));
    assert_eq!(record.fan_out_latency.missing, 10);
    assert_eq!(record.fan_out_latency.corrected.p99_9, None);
    assert!(record.fan_out_latency.corrected.p90.is_some());
    assert_eq!(record.fleet_convergence.p99_9, None);
}

#[test]
fn a_corrupt_payload_is_never_installed_and_shows_as_digest_mismatches() {
    let bench = Bench::of(FLEET)
        .with("release.corrupt=true")
        .with("step.done.wait.until='settled >= 100%'")
        .virtually(1);
    let record = passes(&bench);
    assert_eq!((record.devices.converged, record.devices.failed, record.devices.rolled_back), (0, 1000, 0));
    assert_eq!(record.failures.len(), 1);
    assert_eq!((record.failures[0].cause.as_str(), record.failures[0].devices), ("digest_mismatch", 1000));
    // Each tried twice, as its policy says.
    assert_eq!(record.blob.bytes, 2 * 1000 * 65_536);
    assert_eq!(record.blob.refetched_bytes, 1000 * 65_536);
}

#[test]
fn a_late_step_counts_from_when_it_was_meant_to_be_sent() {
    let plain = passes(&Bench::of(FLEET).virtually(1));
    let late = passes(&with_step("{ late_step = { by = '700ms' } }"));
    let p50 = |record: &RunRecord| record.fan_out_latency.corrected.p50.expect("everybody was notified");
    let moved = p50(&late) - p50(&plain);
    assert!((moved - 0.7).abs() < 0.001, "{moved}");
    let uncorrected = late.fan_out_latency.uncorrected.expect("they differ");
    assert_eq!(uncorrected.p50, plain.fan_out_latency.corrected.p50);
}

#[test]
fn a_release_that_does_not_boot_is_rolled_back_everywhere() {
    let bench = |defect: &str| {
        let bench = Bench::of(FLEET).with(&format!("release.{defect}='100%'"));
        bench.with("step.done.wait.until='settled >= 100%'").virtually(1)
    };
    for (defect, cause) in [("boot_failure", "boot_failed"), ("health_failure", "unhealthy")] {
        let record = passes(&bench(defect));
        assert_eq!(record.devices.rolled_back, 1000, "{defect}");
        assert_eq!(record.failures[0].cause, cause);
    }
    let record = passes(&bench("install_failure"));
    assert_eq!((record.devices.failed, record.devices.rolled_back), (1000, 0));
    assert_eq!(record.failures[0].cause, "storage_failed");
}

#[test]
fn a_release_that_nobody_signed_is_refused_before_a_byte_is_fetched() {
    let bench = Bench::of(FLEET).with("release.signature='bad'");
    let record = passes(&bench.with("step.done.wait.until='settled >= 100%'").virtually(1));
    assert_eq!(record.failures[0].cause, "signature_invalid");
    assert_eq!(record.blob.bytes, 0);
}

#[test]
fn power_cuts_in_any_state_leave_no_device_behind() {
    for state in [
        "random",
        "deferred",
        "granting",
        "downloading",
        "verifying",
        "staging",
        "rebooting",
        "probation",
        "committing",
    ] {
        let record = passes(&with_step(&format!("{{ power_cut = {{ during = '{state}' }} }}")));
        assert_eq!(record.devices.converged, 1000, "{state}");
        // Each device was off for a second at least, once.
        let plain = passes(&Bench::of(FLEET).virtually(1));
        assert!(record.messages_per_device > plain.messages_per_device, "{state}");
    }
}

#[test]
fn a_cut_download_goes_on_from_its_last_checkpoint() {
    let step = "{ power_cut = { during = 'downloading' } }";
    let record = passes(&with_step(step).with("release.size='4MiB'").with("agent.checkpoint='64KiB'"));
    let refetched = record.blob.refetched_bytes;
    assert!(refetched > 0 && refetched <= 1000 * 65_536, "{refetched} bytes were fetched twice");
    assert_eq!(record.blob.bytes, 1000 * (4 << 20) + refetched);
}

#[test]
fn everybody_comes_back_after_a_restart_of_the_hub_and_not_at_once() {
    let step = "{ hub_restart = { down_for = '2s' } }";
    let record = passes(&with_step(step).with("agent.reconnect={ first = '5s', max = '10s' }"));
    assert_eq!(record.devices.converged, 1000);
    let p99 = record.connect_latency.corrected.p99.expect("everybody came back");
    assert!(p99 > 2.0, "{p99}");
}

#[test]
fn links_that_are_down_delay_what_is_sent_and_lose_nothing() {
    let record = passes(&with_step("{ link_down = { share = '30%', lasts = '4s' } }"));
    let fan_out = record.fan_out_latency.corrected;
    assert!(fan_out.p50 < Some(0.2) && fan_out.p90 > Some(3.5), "{fan_out:?}");
}

#[test]
fn a_store_that_refuses_is_asked_again_and_one_that_always_refuses_is_given_up() {
    for status in [403, 404, 429, 503] {
        let record = passes(&with_step(&format!("{{ blob_error = {{ status = {status}, lasts = '4s' }} }}")));
        assert_eq!(record.devices.converged, 1000, "{status}");
    }
    let bench = with_step("{ blob_error = { status = 404 } }").with("agent.attempts=2");
    let record = passes(&bench.with("step.done.wait.until='settled >= 100%'"));
    assert_eq!(record.failures[0].cause, "download_not_found");
}

#[test]
fn downloads_share_the_stores_bandwidth() {
    let record = passes(&Bench::of(FLEET).with("blob.bandwidth='80Mbit/s'").virtually(1));
    let rate = record.blob.bytes_per_second;
    // 1000 times 64 KiB at 10 MB/s.
    assert!(rate <= 10e6 * 1.01 && rate > 8e6, "{rate}");
    let slow =
        passes(&with_step("{ blob_slow = { bandwidth = '40Mbit/s' } }").with("blob.bandwidth='80Mbit/s'"));
    assert!(slow.blob.bytes_per_second < 5.05e6, "{}", slow.blob.bytes_per_second);
}

#[test]
fn a_hub_of_tier_s1_holds_its_rates() {
    let patient = [
        "hub.tier='S1'",
        "fleet.devices=10000",
        "step.connect.connect.over='2m'",
        "step.done.wait.timeout='1h'",
        "agent.splay='4m'",
        "agent.request_timeout='1m'",
        "agent.grant_timeout='1m'",
        "agent.backoff={ first = '2s', max = '2m' }",
    ];
    let record = passes(&patient.iter().fold(Bench::of(FLEET).virtually(2), |bench, set| bench.with(set)));
    assert_eq!(record.devices.converged, 10_000);
    let seconds = record.fleet_convergence.p100.expect("all converged");
    // Two twin updates a device, at fifty a second and a minute's worth of burst.
    assert!(seconds > 20_000.0 / 50.0 - 60.0, "{seconds}");
}

#[test]
fn cancelled_devices_stay_counted_as_targeted_and_are_not_waited_for() {
    let cancel = "
[[step]]
configure = { id = 'rollout', release = 'fw-2' }
[[step]]
wait = { for = '12s' }
[[step]]
cancel = { configuration = 'rollout' }
[[step]]
wait = { for = '2m' }
";
    let text = FLEET.split("#rollout").next().expect("there is a start").to_owned() + cancel;
    let record = passes(&Bench::of(&text).virtually(1));
    let devices = record.devices;
    assert_eq!((devices.targeted, devices.notified), (1000, 1000));
    assert!(devices.converged > 0 && devices.converged < 1000, "{devices:?}");
    assert_eq!(devices.missing, 1000 - devices.converged);
    assert_eq!(record.twin_convergence.missing, 0, "nobody waits for what was cancelled");
}

#[test]
fn grants_by_message_do_as_well_as_by_method() {
    let record = passes(&Bench::of(FLEET).with("grant.channel='c2d'").virtually(1));
    assert_eq!(record.grant_latency.count, 1000);
}

#[test]
fn updates_wait_for_their_window() {
    let bench = Bench::of(FLEET).with("clock='01:58'").virtually(1);
    let bench = bench.with("fleet.group.all.window={ opens = '02:00', lasts = '1h' }");
    let record = passes(&bench.with("step.done.wait.timeout='10m'"));
    let first = record.twin_convergence.corrected.p50.expect("all converged");
    assert!(first > 50.0, "{first}");
}

#[test]
fn downloads_and_reboots_have_windows_of_their_own_in_local_time() {
    let bench = Bench::of(FLEET).with("clock='12:00'").virtually(1);
    let bench = bench.with("fleet.group.all.utc_offset_minutes=120");
    let bench = bench.with("fleet.group.all.download_window={ opens = '14:10', lasts = '10m' }");
    let bench = bench.with("fleet.group.all.install_window={ opens = '15:00', lasts = '10m', grace = '5m' }");
    let record = passes(&bench.with("step.done.wait.timeout='2h'"));
    let (first, last) = (record.twin_convergence.corrected.p50, record.twin_convergence.corrected.max);
    assert!(first.is_some_and(|first| first > 3_500.0), "{first:?}");
    assert!(last.is_some_and(|last| last < 4_200.0), "{last:?}");
}

#[test]
fn devices_that_are_busy_are_asked_again_and_at_the_deadline_interrupted_or_left() {
    let busy = |chance: &str, locks: &str| {
        let bench = Bench::of(FLEET).with("step.done.wait.timeout='2h'").virtually(1);
        let bench = bench.with(&format!("fleet.group.all.busy='{chance}'"));
        bench.with(&format!("agent.locks={locks}"))
    };
    let slowest = |record: &RunRecord| record.twin_convergence.corrected.max.expect("all converged");
    let some = passes(&busy("50%", "{ retry = '1m' }"));
    assert!(slowest(&some) > 120.0, "{}", slowest(&some));
    let all = passes(&busy("100%", "{ retry = '1m', deadline = '10m' }"));
    assert!(slowest(&all) > 600.0, "{}", slowest(&all));
    let record = busy("100%", "{ retry = '1m', deadline = '10m', at_deadline = 'give_up' }").judged();
    assert_eq!((record.failures[0].cause.as_str(), record.failures[0].devices), ("lock_timeout", 1000));
}

#[test]
fn an_update_that_would_cost_too_much_fails_before_or_between_its_downloads() {
    let capped = |cap: &str| Bench::of(FLEET).virtually(1).with(&format!("agent.update_cap='{cap}'"));
    passes(&capped("64KiB"));
    let record = capped("63KiB").judged();
    assert_eq!((record.failures[0].cause.as_str(), record.failures[0].devices), ("over_update_cap", 1000));
    assert_eq!(record.blob.bytes, 0);
    // Once is within the cap, and a second time is not.
    let record = capped("127KiB").with("release.corrupt=true").judged();
    assert_eq!((record.failures[0].cause.as_str(), record.failures[0].devices), ("over_update_cap", 1000));
    assert_eq!(record.blob.bytes, 1000 * 65_536);
}

#[test]
fn reports_of_plans_cost_bytes_and_no_report() {
    let plain = passes(&Bench::of(FLEET).virtually(1));
    let told = passes(&Bench::of(FLEET).virtually(1).with("agent.report_plan=true"));
    assert_eq!(plain.traffic.messages_up, told.traffic.messages_up);
    assert!(told.traffic.bytes_up > plain.traffic.bytes_up);
}
