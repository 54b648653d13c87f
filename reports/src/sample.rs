//! A record of a run that might have been, for tests.

use crate::record::{
    Blob, Devices, Engine, Expectation, FleetConvergence, Harness, Latency, Percentiles, Rates, RunRecord,
    SCHEMA_VERSION, ScenarioRef, Traffic, Transport, Verdict,
};

fn latency(count: u64, [p50, p90, p99, p99_9, max]: [f64; 5]) -> Latency {
    let corrected =
        Percentiles { p50: Some(p50), p90: Some(p90), p99: Some(p99), p99_9: Some(p99_9), max: Some(max) };
    Latency { corrected, count, missing: 0, uncorrected: None }
}

fn met(metric: &str, want: &str, got: f64) -> Expectation {
    Expectation { metric: metric.to_owned(), want: want.to_owned(), got: Some(got), passed: true, note: None }
}

/// 10,000 devices, all of which converged, in virtual time.
pub(crate) fn passed() -> RunRecord {
    RunRecord {
        schema_version: SCHEMA_VERSION,
        fleetwave_version: "0.1.0".to_owned(),
        scenario: ScenarioRef {
            name: "quickstart".to_owned(),
            sha256: "ab".repeat(32),
            overrides: Vec::new(),
        },
        engine: Engine::Virtual,
        target: "hub".to_owned(),
        transport: Transport::Model,
        seed: 7,
        event_hash: Some("9f3c5d0a11e2b347".to_owned()),
        verdict: Verdict::Passed,
        notes: Vec::new(),
        exit_code: 0,
        replay: "fleetwave run quickstart --seed 7".to_owned(),
        duration_seconds: 21.7,
        devices: Devices {
            total: 10_000,
            targeted: 10_000,
            notified: 10_000,
            converged: 10_000,
            ..Devices::default()
        },
        fan_out_latency: latency(10_000, [0.041, 0.068, 0.079, 0.081, 0.0815]),
        twin_convergence: latency(10_000, [9.12, 12.3, 14.0, 14.9, 15.31]),
        connect_latency: latency(20_000, [0.102, 0.151, 0.159, 0.160, 0.1604]),
        grant_latency: latency(10_000, [0.113, 0.161, 0.178, 0.18, 0.181]),
        fleet_convergence: FleetConvergence {
            p50: Some(9.12),
            p90: Some(12.3),
            p99: Some(14.0),
            p99_9: Some(14.9),
            p100: Some(15.31),
        },
        blob: Blob {
            bytes: 655_360_000,
            refetched_bytes: 0,
            bytes_per_second: 123.4e6,
            peak_bytes_per_second: 140e6,
            requests: 10_000,
            downloads: 10_000,
            delta_bytes: 0,
            delta_downloads: 0,
            download_p50_bytes_per_second: 2.1e6,
            download_p1_bytes_per_second: 1.4e6,
            concurrency: None,
        },
        rates: Rates {
            connects_per_second: 1_960.0,
            notifications_per_second: 123_000.0,
            events_per_second: 1_900_000.0,
        },
        messages_per_device: 21.0,
        bytes_per_device: 5_230.0,
        traffic: Traffic {
            messages_up: 110_000,
            messages_down: 100_000,
            bytes_up: 22_300_000,
            bytes_down: 30_000_000,
        },
        failures: Vec::new(),
        expectations: vec![
            met("fleet_convergence.99.9", "<= 30s", 14.9),
            met("devices.missing", "= 0", 0.0),
            met("fan_out_latency.p99", "<= 500ms", 0.079),
        ],
        harness: Harness {
            wall_seconds: 0.21,
            lag_limit: 0.25,
            peak_rss_bytes: 21_000_000,
            resident_bytes_per_device: 812.0,
            events: 400_000,
            threads: 2,
            ..Harness::default()
        },
    }
}
