//! Expectations that no run can meet.

use fleetwave_report::metric::Unit;

use super::super::expect::Expectation;
use super::super::model::Scenario;
use super::super::read::{Path, Source};

/// Figures of one distribution, from the smallest: none can be above the next.
const ORDERED: [&[&str]; 5] = [
    &[
        "fan_out_latency.p50",
        "fan_out_latency.p90",
        "fan_out_latency.p99",
        "fan_out_latency.p99_9",
        "fan_out_latency.max",
    ],
    &[
        "twin_convergence.p50",
        "twin_convergence.p90",
        "twin_convergence.p99",
        "twin_convergence.p99_9",
        "twin_convergence.max",
    ],
    &[
        "connect_latency.p50",
        "connect_latency.p90",
        "connect_latency.p99",
        "connect_latency.p99_9",
        "connect_latency.max",
    ],
    &[
        "grant_latency.p50",
        "grant_latency.p90",
        "grant_latency.p99",
        "grant_latency.p99_9",
        "grant_latency.max",
    ],
    &[
        "fleet_convergence.50",
        "fleet_convergence.90",
        "fleet_convergence.99",
        "fleet_convergence.99.9",
        "fleet_convergence.100",
    ],
];

fn path(expectation: &Expectation) -> Path {
    Path::of("expect").key(expectation.metric.name)
}

pub(super) fn check(scenario: &Scenario, source: &mut Source) {
    let all = &scenario.expect.0;
    for expectation in all {
        alone(scenario, expectation, source);
    }
    for (i, second) in all.iter().enumerate() {
        for first in &all[..i] {
            pair(first, second, source);
        }
    }
    if all.is_empty() && !scenario.steps.is_empty() {
        source.warn(
            &Path::default(),
            "the scenario expects nothing: every run of it passes",
            Some("add an [expect] table, for instance with \"devices.missing\" = \"= 0\"".to_owned()),
        );
    }
}

/// The largest value that a metric can have, if there is one, and why.
fn largest(scenario: &Scenario, expectation: &Expectation) -> Option<(f64, &'static str)> {
    let name = expectation.metric.name;
    match expectation.metric.unit {
        Unit::Fraction => Some((1.0, "a share is at most 100%")),
        Unit::Count if name.starts_with("devices.") => {
            Some((scenario.fleet.devices.0 as f64, "the fleet has fewer devices"))
        }
        _ => None,
    }
}

fn alone(scenario: &Scenario, expectation: &Expectation, source: &mut Source) {
    let Expectation { metric, comparison, bound, want } = expectation;
    let reason = if comparison.is_upper() && !comparison.is_inclusive() && *bound <= 0.0 {
        Some("no metric is ever below 0")
    } else {
        largest(scenario, expectation)
            .filter(|(largest, _)| {
                comparison.is_lower() && (bound > largest || (bound == largest && !comparison.is_inclusive()))
            })
            .map(|(_, reason)| reason)
    };
    if let Some(reason) = reason {
        source.error(&path(expectation), format!("`{}` can never be `{want}`: {reason}", metric.name), None);
    }
}

/// Reports `second` if no run can meet both.
fn pair(first: &Expectation, second: &Expectation, source: &mut Source) {
    let place = |expectation: &Expectation| {
        ORDERED.iter().enumerate().find_map(|(family, names)| {
            Some((family, names.iter().position(|name| *name == expectation.metric.name)?))
        })
    };
    // Of two figures of one distribution the lower one's lower bound must not lie above the higher one's upper bound.
    let ordered = match (place(first), place(second)) {
        _ if first.metric.name == second.metric.name => vec![(first, second), (second, first)],
        (Some((a, i)), Some((b, j))) if a == b && i < j => vec![(first, second)],
        (Some((a, _)), Some((b, _))) if a == b => vec![(second, first)],
        _ => return,
    };
    let clash = |(low, high): &(&Expectation, &Expectation)| {
        low.comparison.is_lower()
            && high.comparison.is_upper()
            && (low.bound > high.bound
                || (low.bound == high.bound
                    && !(low.comparison.is_inclusive() && high.comparison.is_inclusive())))
    };
    if ordered.iter().any(clash) {
        source.error(
            &path(second),
            format!(
                "no run can have both `{}` {} and `{}` {}",
                first.metric.name, first.want, second.metric.name, second.want
            ),
            None,
        );
    }
}
