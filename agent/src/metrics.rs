//! What the agent counts, and the page on loopback on which Prometheus reads it.
//!
//! Written by hand: what there is to say takes less room than a library that says it.

mod page;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fleetwave_agent_core::ResultCode;
use serde::Deserialize;

pub(crate) use page::Page;

/// `[metrics]`: the page for Prometheus.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Metrics {
    /// Where it is served, on loopback; nowhere if this is missing.
    pub listen: Option<Loopback>,
}

/// An address and a port of this machine that no other can reach.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(try_from = "String")]
pub struct Loopback(pub SocketAddr);

impl TryFrom<String> for Loopback {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.parse::<SocketAddr>() {
            Ok(address) if address.ip().is_loopback() => Ok(Self(address)),
            Ok(address) => Err(format!(
                "{address} can be reached from elsewhere, and the page has no password: 127.0.0.1:PORT or [::1]:PORT"
            )),
            Err(_) => Err(format!("{text:?} is no address with a port: for example 127.0.0.1:9099")),
        }
    }
}

/// The counters of one agent. Clones count together.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counters(Arc<Mutex<Counts>>);

#[derive(Debug, Default)]
struct Counts {
    connected: bool,
    connects: u64,
    losses: u64,
    reports: u64,
    requests: u64,
    bytes: u64,
    allowance: Option<u64>,
    untold: u64,
    targets: BTreeMap<Box<str>, Target>,
}

#[derive(Debug, Default)]
struct Target {
    state: &'static str,
    cost: Option<u64>,
    outcomes: BTreeMap<&'static str, u64>,
    unhealthy: u64,
    journal_errors: u64,
}

impl Counters {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn target(&self, target: &str, count: impl FnOnce(&mut Target)) {
        let mut counts = self.counts();
        if let Some(target) = counts.targets.get_mut(target) {
            count(target);
        } else {
            count(counts.targets.entry(target.into()).or_default());
        }
    }

    /// The hub took a connection.
    pub(crate) fn connected(&self) {
        let mut counts = self.counts();
        counts.connects += 1;
        counts.connected = true;
    }

    /// A connection ended, or never came to be.
    pub(crate) fn lost(&self) {
        let mut counts = self.counts();
        counts.losses += 1;
        counts.connected = false;
    }

    /// A report went to the hub.
    pub(crate) fn reported(&self) {
        self.counts().reports += 1;
    }

    /// A request went to a payload's store.
    pub(crate) fn requested(&self) {
        self.counts().requests += 1;
    }

    /// So many bytes came from a payload's store, all that is on the line counted.
    pub(crate) fn received(&self, bytes: u64) {
        self.counts().bytes += bytes;
    }

    /// What may still be downloaded in the current window, if that is limited.
    pub(crate) fn allowance(&self, bytes: Option<u64>) {
        self.counts().allowance = bytes;
    }

    /// What the update of a target that is under way costs in all, once that is known.
    pub(crate) fn planned(&self, target: &str, bytes: u64) {
        self.target(target, |target| target.cost = Some(bytes));
    }

    /// An outcome was not told, for want of a connection.
    pub(crate) fn untold(&self) {
        self.counts().untold += 1;
    }

    /// A target's machine entered a state.
    pub(crate) fn entered(&self, target: &str, state: &'static str) {
        self.target(target, |target| target.state = state);
    }

    /// An update of a target ended.
    pub(crate) fn ended(&self, target: &str, code: ResultCode) {
        self.target(target, |target| {
            target.cost = None;
            *target.outcomes.entry(code.name()).or_default() += 1;
        });
    }

    /// A release on trial failed a check.
    pub(crate) fn unhealthy(&self, target: &str) {
        self.target(target, |target| target.unhealthy += 1);
    }

    /// A record could not be made durable.
    pub(crate) fn journal_failed(&self, target: &str) {
        self.target(target, |target| target.journal_errors += 1);
    }

    /// The page.
    pub(crate) fn text(&self) -> String {
        let counts = self.counts();
        let mut page = Text::default();
        page.family("info", "gauge", "The agent's version.");
        page.sample("info", &[("version", env!("CARGO_PKG_VERSION"))], 1);
        page.single("connected", "gauge", "Whether the hub has a connection.", u64::from(counts.connected));
        page.single("connects_total", "counter", "Connections that the hub took.", counts.connects);
        page.single(
            "connection_losses_total",
            "counter",
            "Connections that ended or never came to be.",
            counts.losses,
        );
        page.single("reports_total", "counter", "Reports to the twin.", counts.reports);
        page.single("download_requests_total", "counter", "Requests to stores of payloads.", counts.requests);
        page.single(
            "download_bytes_total",
            "counter",
            "Bytes that came for payloads, all that is on the line counted.",
            counts.bytes,
        );
        if let Some(allowance) = counts.allowance {
            page.single(
                "download_allowance_bytes",
                "gauge",
                "What may still be downloaded in this window.",
                allowance,
            );
        }
        page.single(
            "telemetry_dropped_total",
            "counter",
            "Outcomes of updates that were not told, for want of a connection.",
            counts.untold,
        );
        page.family("update_cost_bytes", "gauge", "What the update under way costs in all, as planned.");
        for (name, target) in &counts.targets {
            if let Some(cost) = target.cost {
                page.sample("update_cost_bytes", &[("target", name)], cost);
            }
        }
        page.family("target_state", "gauge", "The state that a target is in.");
        for (name, target) in &counts.targets {
            page.sample("target_state", &[("target", name), ("state", target.state)], 1);
        }
        page.family("updates_total", "counter", "Updates that ended, by result code.");
        for (name, target) in &counts.targets {
            for (code, count) in &target.outcomes {
                page.sample("updates_total", &[("target", name), ("code", code)], *count);
            }
        }
        page.family("health_failures_total", "counter", "Checks that a release on trial failed.");
        for (name, target) in &counts.targets {
            page.sample("health_failures_total", &[("target", name)], target.unhealthy);
        }
        page.family("journal_errors_total", "counter", "Records that could not be made durable.");
        for (name, target) in &counts.targets {
            page.sample("journal_errors_total", &[("target", name)], target.journal_errors);
        }
        page.0
    }
}

/// The text format of Prometheus.
#[derive(Default)]
struct Text(String);

impl Text {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        self.add(format_args!(
            "# HELP fleetwave_agent_{name} {help}\n# TYPE fleetwave_agent_{name} {kind}\n"
        ));
    }

    /// The names of targets are of letters that need no quoting, and so is everything else.
    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: u64) {
        self.add(format_args!("fleetwave_agent_{name}"));
        for (at, (label, value)) in labels.iter().enumerate() {
            let open = if at == 0 { '{' } else { ',' };
            self.add(format_args!("{open}{label}=\"{value}\""));
        }
        let close = if labels.is_empty() { "" } else { "}" };
        self.add(format_args!("{close} {value}\n"));
    }

    fn single(&mut self, name: &str, kind: &str, help: &str, value: u64) {
        self.family(name, kind, help);
        self.sample(name, &[], value);
    }

    fn add(&mut self, text: std::fmt::Arguments<'_>) {
        self.0.write_fmt(text).expect("a String never fails to grow");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_says_what_was_counted() {
        let counters = Counters::default();
        counters.connected();
        counters.lost();
        counters.connected();
        counters.requested();
        counters.received(700);
        counters.received(300);
        counters.entered("firmware", "downloading");
        counters.entered("components.app", "idle");
        counters.ended("components.app", ResultCode::Ok);
        counters.ended("components.app", ResultCode::Ok);
        counters.ended("firmware", ResultCode::Cancelled);
        counters.unhealthy("firmware");
        let page = counters.text();
        for line in [
            "fleetwave_agent_connected 1",
            "fleetwave_agent_connects_total 2",
            "fleetwave_agent_connection_losses_total 1",
            "fleetwave_agent_download_requests_total 1",
            "fleetwave_agent_download_bytes_total 1000",
            "# TYPE fleetwave_agent_target_state gauge",
            "fleetwave_agent_target_state{target=\"firmware\",state=\"downloading\"} 1",
            "fleetwave_agent_updates_total{target=\"components.app\",code=\"ok\"} 2",
            "fleetwave_agent_updates_total{target=\"firmware\",code=\"cancelled\"} 1",
            "fleetwave_agent_health_failures_total{target=\"firmware\"} 1",
            "fleetwave_agent_journal_errors_total{target=\"firmware\"} 0",
        ] {
            assert!(page.lines().any(|found| found == line), "{line} is not in\n{page}");
        }
        assert!(!page.contains("allowance"), "nothing is limited:\n{page}");
        counters.allowance(Some(5));
        assert!(counters.text().contains("fleetwave_agent_download_allowance_bytes 5\n"));
    }

    #[test]
    fn the_page_is_for_this_machine_alone() {
        for (address, right) in [("127.0.0.1:9099", true), ("[::1]:9099", true), ("0.0.0.0:9099", false)] {
            assert_eq!(Loopback::try_from(address.to_owned()).is_ok(), right, "{address}");
        }
        let error = Loopback::try_from("localhost".to_owned()).expect_err("no port");
        assert!(error.contains("127.0.0.1:9099"), "{error}");
    }
}
