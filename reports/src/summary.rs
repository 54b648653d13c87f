//! The end-of-run summary: what one run showed, on one screen.

use core::fmt::Write as _;

use crate::metric::{self, MetricValue};
use crate::record::{Engine, Expectation, Floor, Latency, Percentiles, RunRecord, Transport, Verdict};
use crate::text::{bytes, count, per_device, percent, seconds, value};

/// Columns of the summary.
const WIDTH: usize = 100;
const EXPECTATIONS: usize = 7;
const CAUSES: usize = 3;
const NOTES: usize = 2;

/// The summary of a run: at most 40 lines of at most 100 columns, expectations first.
///
/// Only the command that replays the run may take more lines, if its scenario's path or changes are long.
#[must_use]
pub fn summary(record: &RunRecord) -> String {
    let mut lines = vec![head(record)];
    lines.push(String::new());
    expectations(record, &mut lines);
    lines.push(String::new());
    latencies(record, &mut lines);
    lines.push(String::new());
    outcomes(record, &mut lines);
    rates(record, &mut lines);
    harness(record, &mut lines);
    lines.push(String::new());
    end(record, &mut lines);
    let mut text = String::new();
    for line in lines {
        text.push_str(&fit(line.trim_end()));
        text.push('\n');
    }
    text.push_str(&wrapped("replay    ", &record.replay));
    text
}

fn head(record: &RunRecord) -> String {
    let engine = match record.engine {
        Engine::Virtual => "virtual engine",
        Engine::Live => "live engine",
    };
    let transport = match record.transport {
        Transport::Model => "modelled links",
        Transport::Memory => "memory transport",
        Transport::Tcp => "TCP",
    };
    format!(
        "{}: {} devices, {engine}, target {}, {transport}, seed {}",
        record.scenario.name,
        count(record.devices.total as f64),
        record.target,
        record.seed
    )
}

fn expectations(record: &RunRecord, lines: &mut Vec<String>) {
    let all = &record.expectations;
    let met = all.iter().filter(|expectation| expectation.passed).count();
    if all.is_empty() {
        lines.push("EXPECTATIONS  none: this run can only fail by not coming to its end".to_owned());
        return;
    }
    lines.push(format!("EXPECTATIONS  {met} of {} met", all.len()));
    // When there are more than fit, the missed ones stay.
    let mut room = EXPECTATIONS.saturating_sub(all.len() - met);
    let shown: Vec<&Expectation> = all
        .iter()
        .filter(|expectation| {
            let fits = room > 0;
            if expectation.passed && fits {
                room -= 1;
            }
            !expectation.passed || fits
        })
        .take(EXPECTATIONS)
        .collect();
    lines.extend(shown.iter().map(|expectation| expectation_line(expectation)));
    if shown.len() < all.len() {
        lines.push(format!("  and {} more, see the run record", all.len() - shown.len()));
    }
}

fn expectation_line(expectation: &Expectation) -> String {
    let got = match (&expectation.note, metric::find(&expectation.metric)) {
        (Some(note), _) => note.clone(),
        (None, Some(metric)) => {
            let got = expectation.got.map_or(MetricValue::Infinite, MetricValue::Finite);
            format!("got {}", value(metric.unit, got))
        }
        (None, None) => "unknown metric".to_owned(),
    };
    let mark = if expectation.passed { "✓" } else { "✗" };
    format!("  {mark} {:<36} {:<16} {got}", expectation.metric, expectation.want)
}

fn latencies(record: &RunRecord, lines: &mut Vec<String>) {
    lines.push(format!(
        "{:<18}{:>12}{:>12}{:>12}{:>12}{:>12}{:>11}{:>10}",
        "LATENCY", "p50", "p90", "p99", "p99.9", "max", "of", "missing"
    ));
    let rows = [
        ("fan-out", &record.fan_out_latency),
        ("twin convergence", &record.twin_convergence),
        ("connect", &record.connect_latency),
        ("grant", &record.grant_latency),
    ];
    for (name, latency) in rows {
        lines.push(latency_line(name, latency));
        if let Some(uncorrected) = &latency.uncorrected {
            lines.push(format!("{:<18}{}", "  uncorrected", columns(uncorrected)));
        }
    }
    let fleet = &record.fleet_convergence;
    let targeted = record.devices.targeted;
    if targeted > 0 {
        let times = Percentiles {
            p50: fleet.p50,
            p90: fleet.p90,
            p99: fleet.p99,
            p99_9: fleet.p99_9,
            max: fleet.p100,
        };
        lines.push(format!(
            "{:<18}{}{:>11}{:>10}",
            "fleet convergence",
            columns(&times),
            count(targeted as f64),
            count(record.twin_convergence.missing as f64)
        ));
    }
}

fn latency_line(name: &str, latency: &Latency) -> String {
    let population = latency.count + latency.missing;
    if population == 0 {
        return format!("{name:<18}{:>12}", "none");
    }
    format!(
        "{name:<18}{}{:>11}{:>10}",
        columns(&latency.corrected),
        count(population as f64),
        count(latency.missing as f64)
    )
}

fn columns(percentiles: &Percentiles) -> String {
    let Percentiles { p50, p90, p99, p99_9, max } = *percentiles;
    [p50, p90, p99, p99_9, max].iter().fold(String::new(), |mut line, figure| {
        write!(line, "{:>12}", seconds(*figure)).expect("a string takes everything");
        line
    })
}

fn outcomes(record: &RunRecord, lines: &mut Vec<String>) {
    let devices = &record.devices;
    let n = |number: u64| count(number as f64);
    lines.push(format!(
        "devices   {} targeted: {} converged, {} failed ({} rolled back), {} missing",
        n(devices.targeted),
        n(devices.converged),
        n(devices.failed),
        n(devices.rolled_back),
        n(devices.missing)
    ));
    for (i, failure) in record.failures.iter().take(CAUSES).enumerate() {
        lines.push(format!(
            "{}{} × {} on {} devices",
            if i == 0 { "failures  " } else { "          " },
            failure.cause,
            n(failure.count),
            n(failure.devices)
        ));
    }
    if record.failures.len() > CAUSES {
        lines.push(format!(
            "          and {} more causes, see the run record",
            record.failures.len() - CAUSES
        ));
    }
    lines.push(format!(
        "traffic   {} messages and {} a device, both directions, downloads not included",
        per_device(record.messages_per_device),
        bytes(record.bytes_per_device)
    ));
}

fn rates(record: &RunRecord, lines: &mut Vec<String>) {
    let blob = &record.blob;
    let floor = record.harness.floor.unwrap_or_default();
    let against = |rate: f64, limit: Option<f64>, unit: fn(f64) -> String| match limit {
        Some(limit) if limit > 0.0 => {
            format!(", {} of this machine's {}/s", percent(rate / limit), unit(limit))
        }
        _ => String::new(),
    };
    let Floor { connects_per_second, messages_per_second, blob_bytes_per_second, events_per_second } = floor;
    let rates = &record.rates;
    lines.push(format!(
        "connects  {}/s{}",
        count(rates.connects_per_second),
        against(rates.connects_per_second, connects_per_second, count)
    ));
    lines.push(format!(
        "notified  {}/s{}",
        count(rates.notifications_per_second),
        against(rates.notifications_per_second, messages_per_second, count)
    ));
    if blob.bytes > 0 {
        lines.push(format!(
            "blob      {}/s{}; {} in all, {} of it twice",
            bytes(blob.bytes_per_second),
            against(blob.bytes_per_second, blob_bytes_per_second, bytes),
            bytes(blob.bytes as f64),
            bytes(blob.refetched_bytes as f64)
        ));
    }
    if blob.delta_bytes > 0 {
        lines.push(format!(
            "deltas    {} of that from archives, for {} of {} downloads; {} requests",
            bytes(blob.delta_bytes as f64),
            count(blob.delta_downloads as f64),
            count(blob.downloads as f64),
            count(blob.requests as f64)
        ));
    }
    if record.engine == Engine::Virtual {
        lines.push(format!(
            "events    {}/s of wall time{}",
            count(rates.events_per_second),
            against(rates.events_per_second, events_per_second, count)
        ));
    }
}

fn harness(record: &RunRecord, lines: &mut Vec<String>) {
    let harness = &record.harness;
    if record.engine == Engine::Live {
        lines.push(format!(
            "harness   late by {} at p99, {} at most; above {} the run is invalid",
            seconds(Some(harness.lag_p99)),
            seconds(Some(harness.lag_max)),
            seconds(Some(harness.lag_limit))
        ));
    }
    lines.push(format!(
        "memory    {} resident at most, {} a device, hub included",
        bytes(harness.peak_rss_bytes as f64),
        bytes(harness.resident_bytes_per_device)
    ));
    lines.push(format!(
        "time      {} on the engine's clock, {} of wall time, {} threads",
        seconds(Some(record.duration_seconds)),
        seconds(Some(harness.wall_seconds)),
        harness.threads
    ));
}

fn end(record: &RunRecord, lines: &mut Vec<String>) {
    lines.extend(record.notes.iter().take(NOTES).map(|note| format!("note      {note}")));
    if record.notes.len() > NOTES {
        lines.push(format!("          and {} more, see the run record", record.notes.len() - NOTES));
    }
    let verdict = match record.verdict {
        Verdict::Passed => "PASSED",
        Verdict::Failed => "FAILED",
        Verdict::Invalid => "INVALID, the harness was in the way",
        Verdict::Interrupted => "INTERRUPTED",
    };
    let hash = record.event_hash.as_ref().map_or_else(String::new, |hash| format!(", event hash {hash}"));
    lines.push(format!("verdict   {verdict}, exit code {}{hash}", record.exit_code));
}

/// Cuts what does not fit; the record has it whole.
fn fit(line: &str) -> String {
    if line.chars().count() <= WIDTH {
        return line.to_owned();
    }
    line.chars().take(WIDTH - 1).chain(['…']).collect()
}

/// A command over as many lines as it needs, in a form that a shell takes.
fn wrapped(head: &str, command: &str) -> String {
    let mut text = head.to_owned();
    let mut column = head.len();
    for (i, word) in command.split(' ').enumerate() {
        let length = word.chars().count() + 1;
        if i > 0 && column + length + 2 > WIDTH {
            text.push_str(" \\\n");
            text.push_str(&" ".repeat(head.len()));
            column = head.len();
        } else if i > 0 {
            text.push(' ');
        }
        text.push_str(word);
        column += length;
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests;
