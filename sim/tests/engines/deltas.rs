//! What deltas cost a fleet: the core's plans, in the virtual engine's figures.

use fleetwave_report::record::{RunRecord, Transport, Verdict};

use crate::support::{Bench, FLEET, QUICK};

const HEADER: u64 = 4_000;
/// What a device lacks that runs the release before: 10 % of the archive's chunks.
const LACKS: u64 = 39_600;
const SIZE: u64 = 1_000_000;

const DELTA: &str = "release.delta={ archive = '400kB', header = '4kB', changed = '10%', ranges = 4 }";

/// A fleet that gets a release of a megabyte with an archive.
fn bench(step: &str) -> Bench {
    let bench = Bench::before_rollout(FLEET, step).virtually(1);
    bench.with("release.size='1MB'").with(DELTA).with("agent.checkpoint='1kB'")
}

fn passes(bench: &Bench) -> RunRecord {
    let record = bench.judged();
    assert_eq!(record.verdict, Verdict::Passed, "{:?}", record.notes);
    assert_eq!(record.devices.converged, 1000);
    record
}

fn fault(fault: &str) -> Bench {
    bench(&format!("[[step]]\nfault = {fault}\n"))
}

#[test]
fn devices_fetch_the_header_and_what_has_changed() {
    let blob = passes(&bench("")).blob;
    assert_eq!((blob.bytes, blob.delta_bytes), (1000 * (HEADER + LACKS), 1000 * (HEADER + LACKS)));
    assert_eq!((blob.requests, blob.downloads, blob.delta_downloads), (1000 * 5, 1000, 1000));
    assert_eq!(blob.refetched_bytes, 0);
}

#[test]
fn a_scenario_without_an_archive_fetches_payloads_as_a_whole() {
    let blob = passes(&Bench::of(FLEET).virtually(1)).blob;
    assert_eq!((blob.bytes, blob.requests), (1000 * 65_536, 1000));
    assert_eq!((blob.delta_bytes, blob.delta_downloads), (0, 0));
}

#[test]
fn devices_that_have_nothing_in_common_fetch_the_archive_or_all_of_the_payload() {
    // Between what they run and what they get lies a release of which nothing is known.
    let text = FLEET.replace(
        "[[step]]\nname = 'connect'",
        "[[release]]\nid = 'fw-0'\nseq = 2\n[[step]]\nname = 'connect'",
    );
    let text = text.replace("seq = 2\nsize = '64KiB'", "seq = 3\nsize = '1MB'");
    let strange = |delta: &str| Bench::of(&text).virtually(1).with(&format!("release.fw-2.delta={delta}"));
    let blob = passes(&strange("{ archive = '400kB', header = '4kB', changed = '10%' }")).blob;
    assert_eq!((blob.bytes, blob.delta_bytes), (1000 * 400_000, 1000 * 400_000));
    let blob = passes(&strange("{ archive = '1100kB', header = '4kB', changed = '10%' }")).blob;
    assert_eq!((blob.bytes, blob.delta_bytes), (1000 * (HEADER + SIZE), 1000 * HEADER));
    assert_eq!((blob.delta_downloads, blob.downloads), (0, 1000));
}

#[test]
fn one_seed_gives_one_run_with_deltas_too() {
    let everything = "
[[step]]
fault = { power_cut = { share = '20%' } }
[[step]]
fault = { blob_error = { status = 503, share = '10%', lasts = '5s' } }
[[step]]
fault = { link_down = { share = '5%', lasts = '3s' } }
";
    let run = |threads| {
        let bench = Bench::before_rollout(FLEET, everything).virtually(threads).with(DELTA);
        bench.with("release.size='1MB'").with("fleet.devices=6000").run()
    };
    let first = run(1);
    assert_eq!(first.event_hash, run(2).event_hash);
    assert!(first.violations.is_empty(), "{:?}", first.violations);
}

#[test]
fn power_cuts_leave_no_device_behind_and_nothing_is_fetched_again() {
    for state in ["granting", "downloading", "verifying", "staging", "rebooting", "probation"] {
        let record = passes(&fault(&format!("{{ power_cut = {{ during = '{state}' }} }}")));
        let blob = record.blob;
        assert_eq!(blob.delta_downloads, 1000, "{state}");
        // A header that was on its way, and what lies behind the last checkpoint.
        let most = 1000 * (2 * HEADER + LACKS + 2_000);
        assert!((1000 * (HEADER + LACKS)..=most).contains(&blob.bytes), "{state}: {}", blob.bytes);
        assert!(blob.refetched_bytes <= 1000 * 2_000, "{state}: {}", blob.refetched_bytes);
    }
}

#[test]
fn a_store_that_refuses_or_spoils_leads_to_all_of_the_payload() {
    for status in [403, 429, 503] {
        passes(&fault(&format!("{{ blob_error = {{ status = {status}, lasts = '4s' }} }}")));
    }
    // Neither headers nor chunks pass.
    let spoilt = fault("{ blob_corrupt = { share = '60%', lasts = '8s' } }").with("agent.verify_attempts=50");
    let blob = passes(&spoilt).blob;
    assert!(blob.delta_downloads < 1000 && blob.delta_downloads > 0, "{blob:?}");
    let blob = passes(&fault("{ blob_error = { status = 404, share = '50%', lasts = '8s' } }")).blob;
    assert!(blob.delta_downloads < 1000, "{blob:?}");
}

#[test]
fn a_payload_that_its_chunks_do_not_make_is_fetched_whole_the_second_time() {
    let bench = bench("").with("release.corrupt=true").with("step.done.wait.until='settled >= 100%'");
    let record = bench.judged();
    assert_eq!((record.failures[0].cause.as_str(), record.failures[0].devices), ("digest_mismatch", 1000));
    assert_eq!(record.blob.delta_bytes, 1000 * (HEADER + LACKS));
    assert_eq!(record.blob.bytes, 1000 * (HEADER + LACKS + SIZE));
}

#[test]
fn a_cap_is_compared_with_what_the_delta_costs() {
    let capped = |cap: u64| bench("").with(&format!("agent.update_cap='{cap}B'"));
    passes(&capped(HEADER + LACKS));
    let record = capped(HEADER + LACKS - 1).judged();
    assert_eq!((record.failures[0].cause.as_str(), record.failures[0].devices), ("over_update_cap", 1000));
    assert_eq!(record.blob.bytes, 1000 * HEADER);
}

#[test]
fn the_way_back_costs_what_the_way_there_did() {
    let back = "
[[step]]
configure = { id = 'rollout', release = 'fw-2' }
[[step]]
wait = { until = 'converged >= 100%', timeout = '20m' }
[[step]]
configure = { id = 'back', release = 'fw-1', downgrade = true }
[[step]]
";
    let text = FLEET
        .replace("#rollout\n[[step]]\nconfigure = { id = 'rollout', release = 'fw-2' }\n[[step]]\n", back);
    let first = "[[release]]\nid = 'fw-1'\nseq = 1\nsize = '1MB'\n\
                 delta = { archive = '400kB', header = '4kB', changed = '100%' }\n[[step]]\nname = 'connect'";
    let text = text.replace("[[step]]\nname = 'connect'", first);
    let there = "release.fw-2.delta={ archive = '400kB', header = '4kB', changed = '10%', ranges = 4 }";
    let bench = Bench::of(&text).virtually(1).with("release.fw-2.size='1MB'").with(there);
    assert_eq!(passes(&bench).blob.bytes, 2 * 1000 * (HEADER + LACKS));
}

#[test]
fn a_live_run_fetches_payloads_whole_and_says_so() {
    let bench = Bench::of(QUICK).over(Transport::Memory).with("release.size='1MB'").with(DELTA);
    let record = bench.judged();
    assert_eq!((record.devices.converged, record.blob.bytes, record.blob.requests), (50, 50 * SIZE, 50));
    assert_eq!(record.blob.delta_bytes, 0);
    assert!(
        record.notes.iter().any(|note| note.contains("only virtual runs have deltas")),
        "{:?}",
        record.notes
    );
}
