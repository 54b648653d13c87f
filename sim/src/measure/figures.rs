//! How a [`Meter`] becomes the figures of a run record.

use std::time::Duration;

use fleetwave_protocol::Instant;
use fleetwave_report::intervallog::Interval;
use fleetwave_report::record::{Blob, Failure, FleetConvergence, Latency, Traffic};

use super::Distribution;
use super::meter::{ChangeTally, Meter};

impl Meter {
    /// From configuration changes to their arrival at the devices that they targeted.
    #[must_use]
    pub fn fan_out_latency(&self) -> Latency {
        let missing =
            self.waiting(|tally| tally.notified, |tally| tally.withdrawn - tally.withdrawn_notified);
        latency(&self.fan_out, Some(&self.fan_out_uncorrected), missing)
    }

    /// From configuration changes to the accepted reports of the devices that they targeted.
    #[must_use]
    pub fn twin_convergence(&self) -> Latency {
        latency(&self.convergence, Some(&self.convergence_uncorrected), self.unconverged())
    }

    /// From the first change until shares of all targets had converged.
    #[must_use]
    pub fn fleet_convergence(&self) -> FleetConvergence {
        let targets = self.fleet.count() + self.unconverged();
        let at = |per_mille| self.fleet.seconds_at(per_mille, targets);
        FleetConvergence { p50: at(500), p90: at(900), p99: at(990), p99_9: at(999), p100: at(1000) }
    }

    /// From intended connections to their CONNACK.
    #[must_use]
    pub fn connect_latency(&self) -> Latency {
        latency(&self.connect, Some(&self.connect_uncorrected), self.connections.open())
    }

    /// From requests for a download to its URL.
    #[must_use]
    pub fn grant_latency(&self) -> Latency {
        latency(&self.grant, None, self.grants.open())
    }

    /// What was downloaded, `concurrency` at once at most.
    #[must_use]
    pub fn blob(&self, concurrency: Option<u64>) -> Blob {
        let rates = &self.download_rate;
        let rate = |per_mille| rates.at_rank(per_mille, rates.count()).map_or(0.0, |rate| rate as f64);
        Blob {
            bytes: self.payload,
            refetched_bytes: self.refetched,
            bytes_per_second: per_second(self.payload, self.payload_from, self.payload_to),
            peak_bytes_per_second: self.payload_windows.peak_per_second(),
            requests: self.requests,
            downloads: rates.count(),
            delta_bytes: self.deltas.bytes,
            delta_downloads: self.deltas.downloads,
            download_p50_bytes_per_second: rate(500),
            download_p1_bytes_per_second: rate(10),
            concurrency,
        }
    }

    /// First connections a second.
    #[must_use]
    pub fn connects_per_second(&self) -> f64 {
        per_second(self.first_connections, self.first_start, self.last_first_connack)
    }

    /// Devices notified, over the spans between each change and its last device notified.
    #[must_use]
    pub fn notifications_per_second(&self) -> f64 {
        let (devices, span) = self.changes.iter().filter(|tally| tally.notified > 0).fold(
            (0, Duration::ZERO),
            |(devices, span), tally| {
                let accepted = tally.change.map_or(tally.last_notified, |change| change.accepted);
                (devices + tally.notified, span + tally.last_notified.since(accepted))
            },
        );
        over(devices, span)
    }

    /// MQTT traffic.
    #[must_use]
    pub fn traffic_totals(&self) -> Traffic {
        let [messages_up, messages_down] = self.messages;
        let [bytes_up, bytes_down] = self.bytes;
        Traffic { messages_up, messages_down, bytes_up, bytes_down }
    }

    /// Failures, the most frequent first.
    #[must_use]
    pub fn failures(&self) -> Vec<Failure> {
        let mut failures: Vec<Failure> = self
            .failures
            .iter()
            .map(|known| Failure {
                cause: known.cause.to_owned(),
                count: known.count,
                devices: known.devices,
            })
            .collect();
        failures.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.cause.cmp(&b.cause)));
        failures
    }

    /// How late the harness's own timers and writes ran: p99 and the worst, in seconds.
    #[must_use]
    pub fn lag_seconds(&self) -> (f64, f64) {
        let p99 = self.lag.seconds_at(990, self.lag.count()).unwrap_or(0.0);
        (p99, self.lag.max().as_secs_f64())
    }

    /// Events that the engine handled.
    #[must_use]
    pub fn events_handled(&self) -> u64 {
        self.events
    }

    /// Every histogram, for the interval log.
    #[must_use]
    pub fn intervals(&self) -> Vec<Interval<'_>> {
        [
            ("fan_out_latency", &self.fan_out),
            ("fan_out_latency.uncorrected", &self.fan_out_uncorrected),
            ("twin_convergence", &self.convergence),
            ("twin_convergence.uncorrected", &self.convergence_uncorrected),
            ("fleet_convergence", &self.fleet),
            ("connect_latency", &self.connect),
            ("connect_latency.uncorrected", &self.connect_uncorrected),
            ("grant_latency", &self.grant),
            ("harness.lag", &self.lag),
            ("blob.download_bytes_per_second", &self.download_rate),
        ]
        .into_iter()
        .map(|(tag, distribution)| Interval { tag, histogram: distribution.histogram() })
        .collect()
    }

    fn unconverged(&self) -> u64 {
        self.waiting(|tally| tally.converged, |tally| tally.withdrawn)
    }

    /// Targets that were neither met nor withdrawn.
    fn waiting(&self, met: fn(&ChangeTally) -> u64, withdrawn: fn(&ChangeTally) -> u64) -> u64 {
        self.changes.iter().map(|tally| tally.targeted.saturating_sub(met(tally) + withdrawn(tally))).sum()
    }
}

/// The corrected percentiles, and the uncorrected ones where they differ.
fn latency(corrected: &Distribution, uncorrected: Option<&Distribution>, missing: u64) -> Latency {
    let percentiles = corrected.percentiles(missing);
    Latency {
        corrected: percentiles,
        count: corrected.count(),
        missing,
        uncorrected: uncorrected
            .map(|other| other.percentiles(missing))
            .filter(|other| *other != percentiles),
    }
}

fn per_second(amount: u64, from: Option<Instant>, to: Instant) -> f64 {
    over(amount, to.since(from.unwrap_or(to)))
}

/// 0 over no time: a single instant has no rate.
fn over(amount: u64, span: Duration) -> f64 {
    if span.is_zero() { 0.0 } else { amount as f64 / span.as_secs_f64() }
}

#[cfg(test)]
mod tests {
    use super::super::{Change, ChangeId, Connection};
    use super::*;

    const FIRST: ChangeId = ChangeId(0);
    const SECOND: ChangeId = ChangeId(1);

    fn ms(millis: u64) -> Instant {
        Instant::from_micros(millis * 1000)
    }

    /// In whole milliseconds: finer than a histogram's three digits at these spans.
    fn millis(figure: Option<f64>) -> Option<u64> {
        figure.map(|seconds| (seconds * 1e3).round() as u64)
    }

    fn on_time(at: u64) -> Change {
        Change { intended: ms(at), sent: ms(at), accepted: ms(at + 10) }
    }

    #[test]
    fn a_late_step_counts_in_the_corrected_latency_and_not_in_the_other() {
        let mut meter = Meter::default();
        meter.change(FIRST, Change { intended: ms(1000), sent: ms(1400), accepted: ms(1410) });
        meter.targeted(FIRST, 1);
        meter.notified(FIRST, ms(1450));
        let latency = meter.fan_out_latency();
        assert_eq!(millis(latency.corrected.max), Some(440));
        assert_eq!(millis(latency.uncorrected.expect("they differ").max), Some(40));
    }

    #[test]
    fn a_step_that_was_sent_on_time_has_one_latency() {
        let mut meter = Meter::default();
        meter.change(FIRST, on_time(0));
        meter.targeted(FIRST, 1);
        meter.notified(FIRST, ms(30));
        assert_eq!(millis(meter.fan_out_latency().corrected.max), Some(20));
        assert_eq!(meter.fan_out_latency().uncorrected, None);
    }

    #[test]
    fn in_a_staged_rollout_a_device_counts_from_its_own_change_and_the_fleet_from_the_first() {
        let mut meter = Meter::default();
        meter.change(FIRST, on_time(0));
        meter.targeted(FIRST, 1);
        meter.converged(FIRST, ms(110));
        meter.change(SECOND, on_time(5000));
        meter.targeted(SECOND, 9);
        for _ in 0..9 {
            meter.converged(SECOND, ms(5210));
        }
        let convergence = meter.twin_convergence();
        assert_eq!((convergence.count, convergence.missing), (10, 0));
        assert_eq!(millis(convergence.corrected.max), Some(200));
        let fleet = meter.fleet_convergence().p50.expect("all converged");
        assert!((fleet - 5.2).abs() < 0.006, "{fleet}");
    }

    #[test]
    fn devices_that_were_never_notified_are_missing_and_infinitely_late() {
        let mut meter = Meter::default();
        meter.change(FIRST, on_time(0));
        meter.targeted(FIRST, 100);
        for _ in 0..99 {
            meter.notified(FIRST, ms(30));
        }
        let latency = meter.fan_out_latency();
        assert_eq!((latency.count, latency.missing), (99, 1));
        assert_eq!(millis(latency.corrected.p99), Some(20));
        assert_eq!(latency.corrected.p99_9, None);
        assert_eq!(meter.fleet_convergence().p50, None);
    }

    #[test]
    fn nobody_waits_for_a_target_that_was_withdrawn() {
        let mut meter = Meter::default();
        meter.change(FIRST, on_time(0));
        meter.targeted(FIRST, 3);
        meter.notified(FIRST, ms(20));
        meter.withdrawn(FIRST, true);
        meter.withdrawn(FIRST, false);
        assert_eq!(meter.fan_out_latency().missing, 1);
        assert_eq!(meter.twin_convergence().missing, 1);
    }

    #[test]
    fn connections_and_grants_that_never_came_are_missing() {
        let mut meter = Meter::default();
        for _ in 0..2 {
            meter.connecting();
            meter.grant_requested();
        }
        meter.connected(Connection { intended: ms(0), started: ms(100), accepted: ms(150), first: true });
        meter.granted(ms(200), ms(300));
        let connect = meter.connect_latency();
        assert_eq!((connect.count, connect.missing, millis(connect.corrected.p50)), (1, 1, Some(150)));
        assert_eq!(connect.corrected.p90, None);
        assert_eq!(meter.grant_latency().missing, 1);
        assert_eq!(meter.connects_per_second(), 20.0);
    }

    #[test]
    fn merged_meters_say_what_one_meter_would() {
        let fill = |meter: &mut Meter, base: u64| {
            meter.change(FIRST, on_time(0));
            meter.targeted(FIRST, 2);
            meter.notified(FIRST, ms(base));
            meter.converged(FIRST, ms(base * 3));
            meter.payload(ms(base), ms(base * 2), 1000 + base, base);
            meter.downloaded(1000, Duration::from_millis(base));
            meter.failed("digest_mismatch", base == 40);
            meter.up(10);
            meter.down(20);
            meter.lag(Duration::from_millis(base));
            meter.events(base);
        };
        let (mut whole, mut a, mut b) = (Meter::default(), Meter::default(), Meter::default());
        fill(&mut whole, 40);
        fill(&mut whole, 70);
        fill(&mut b, 40);
        fill(&mut a, 70);
        a.merge(&b);
        assert_eq!(a.fan_out_latency(), whole.fan_out_latency());
        assert_eq!(a.twin_convergence(), whole.twin_convergence());
        assert_eq!(a.fleet_convergence(), whole.fleet_convergence());
        assert_eq!(a.blob(None), whole.blob(None));
        assert_eq!(a.failures(), whole.failures());
        assert_eq!(a.failures()[0].devices, 1);
        assert_eq!(a.traffic_totals(), whole.traffic_totals());
        assert_eq!(a.lag_seconds(), whole.lag_seconds());
        assert_eq!(a.notifications_per_second(), whole.notifications_per_second());
        assert_eq!(a.events_handled(), 110);
    }
}
