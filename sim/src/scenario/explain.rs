//! A scenario in words: what a run of it will do, and about how much that is.

use core::fmt::{self, Display, Write as _};

use fleetwave_hub_core::throttle::{Operation, Throttles, Tier as HubTier};

use super::audience::Audience;
use super::fault::{CutMoment, Fault};
use super::fleet::{Fleet, PlannedGroup};
use super::model::{Cycle, Delta, Driver, Group, Release, Scenario, Signature, Tier, Weekday};
use super::quantity::{ByteSize, Percent, Span};
use super::read::Loaded;
use super::step::{Action, Arrival, Configure, OnTimeout, Step, Wait, WaitFor};

/// MQTT packets of one connection: CONNECT, SUBSCRIBE and twin read, each with its answer.
const CONNECT_PACKETS: u64 = 6;
/// The report of what the device runs, and its answer.
const REPORT_PACKETS: u64 = 2;
/// Notification, two reports with answers, grant request, grant with answer, and a connection after the reboot.
const UPDATE_PACKETS: u64 = 1 + 2 * REPORT_PACKETS + 1 + 2 + CONNECT_PACKETS;

/// What a run of the scenario will do, in words, with what may not be as it was meant.
#[must_use]
pub fn explain(loaded: &Loaded) -> String {
    let mut text = String::new();
    write(&mut text, loaded).expect("a string takes everything");
    text
}

fn write(out: &mut String, loaded: &Loaded) -> fmt::Result {
    let scenario = &loaded.scenario;
    let audience = Audience::of_scenario(scenario);
    writeln!(out, "{}", scenario.name)?;
    if !scenario.description.is_empty() {
        writeln!(out, "{}", scenario.description)?;
    }
    fleet(out, scenario, audience.fleet())?;
    surroundings(out, scenario)?;
    writeln!(out, "\ntimeline")?;
    for (i, step) in scenario.steps.iter().enumerate() {
        write!(out, "  {:>2}  {}", i + 1, start(step, i == 0))?;
        if let Some(name) = &step.name {
            write!(out, "[{name}] ")?;
        }
        describe(out, scenario, &audience, &step.action)?;
        writeln!(out)?;
    }
    writeln!(out, "      the run ends with its last step, or after {}", scenario.harness.max_duration)?;
    if !scenario.expect.0.is_empty() {
        writeln!(out, "\nexpectations")?;
        for expectation in &scenario.expect.0 {
            let metric = expectation.metric;
            writeln!(out, "  {:<32} {:<12} {}", metric.name, expectation.want, metric.doc)?;
        }
    }
    estimate(out, scenario, &audience)?;
    for warning in &loaded.warnings {
        write!(out, "\n{warning}")?;
    }
    Ok(())
}

fn fleet(out: &mut String, scenario: &Scenario, fleet: &Fleet) -> fmt::Result {
    let running = &scenario.fleet.release;
    writeln!(
        out,
        "\nfleet: {} on {} (seq {}), seed {}",
        devices(fleet.devices()),
        running.id,
        running.seq,
        scenario.seed
    )?;
    for group in fleet.groups() {
        describe_group(out, group)?;
    }
    for release in &scenario.releases {
        write!(out, "  release {} (seq {}), {}", release.id, release.seq, release.size)?;
        if let Some(Delta { archive, changed, .. }) = release.delta {
            write!(out, ", as an archive {archive}, of which {changed} changed")?;
        }
        for defect in defects(release) {
            write!(out, ", {defect}")?;
        }
        writeln!(out)?;
    }
    Ok(())
}

fn describe_group(out: &mut String, group: &PlannedGroup) -> fmt::Result {
    let spec = &group.spec;
    write!(out, "  {} x {}", Thousands(group.devices()), spec.name)?;
    if !spec.tags.is_empty() {
        write!(out, " {}", group.tags)?;
    }
    if spec.driver == Driver::Agent {
        write!(out, "\n    real agents, as fast as this machine is, reboot {}", spec.reboot)?;
    } else {
        write!(out, "\n    latency {}", spec.link.latency)?;
        if spec.link.loss != Percent::ZERO {
            write!(out, ", loss {}", spec.link.loss)?;
        }
        write!(
            out,
            ", {} down, install {}, reboot {}, health checks {}",
            spec.link.down, spec.install, spec.reboot, spec.probation
        )?;
    }
    let failures =
        [("install", spec.install_failure), ("boot", spec.boot_failure), ("health", spec.health_failure)];
    for (what, chance) in failures.into_iter().filter(|(_, chance)| *chance != Percent::ZERO) {
        write!(out, ", {chance} {what} failures")?;
    }
    if let Some(window) = &spec.window {
        write!(out, ", updates from {}{} for {}", window.opens, zone(spec), window.lasts)?;
    }
    for (what, window) in [("downloads", &spec.download_window), ("reboots", &spec.install_window)] {
        let Some(window) = window else { continue };
        write!(out, ", {what} from {}{} for {}", window.opens, zone(spec), window.lasts)?;
        if window.days.len() < Weekday::ALL.len() {
            write!(out, " on {} days of the week", window.days.len())?;
        }
    }
    if spec.busy != Percent::ZERO {
        write!(out, ", {} busy", spec.busy)?;
    }
    writeln!(out)
}

/// What windows are in.
fn zone(spec: &Group) -> &'static str {
    if spec.utc_offset_minutes == 0 { " UTC" } else { " local time" }
}

fn defects(release: &Release) -> Vec<String> {
    let chances = [
        ("cannot be installed", release.install_failure),
        ("does not boot", release.boot_failure),
        ("boots and is unhealthy", release.health_failure),
    ];
    let mut defects: Vec<String> = chances
        .into_iter()
        .filter(|(_, chance)| *chance != Percent::ZERO)
        .map(|(what, chance)| format!("{what} on {chance} of devices"))
        .collect();
    if release.corrupt {
        defects.push("its bytes do not match its digest".to_owned());
    }
    if release.signature == Signature::Bad {
        defects.push("its signature is bad".to_owned());
    }
    defects
}

fn surroundings(out: &mut String, scenario: &Scenario) -> fmt::Result {
    let (hub, blob) = (&scenario.hub, &scenario.blob);
    match hub.tier {
        Tier::None => write!(out, "hub: no limits")?,
        tier => write!(out, "hub: {tier:?} x {}", hub.units)?,
    }
    match hub.configuration_cycle {
        Cycle::Immediate => write!(out, ", configurations apply at once")?,
        Cycle::Every(span) => write!(out, ", configurations apply every {span}")?,
    }
    write!(out, "\nblob store: {} shared, first byte after {}", blob.bandwidth, blob.latency)?;
    if blob.concurrency > 0 {
        write!(out, ", {} downloads at once", blob.concurrency)?;
    }
    writeln!(out)
}

fn start(step: &Step, first: bool) -> String {
    match step.at {
        Some(at) => format!("at {at}: "),
        None if first => "at once: ".to_owned(),
        None => "then: ".to_owned(),
    }
}

fn describe(out: &mut String, scenario: &Scenario, audience: &Audience, action: &Action) -> fmt::Result {
    match action {
        Action::Connect(connect) => {
            let group = connect.group.as_deref().and_then(|name| audience.fleet().group_named(name));
            let count = audience.fleet().member_count(group);
            write!(out, "{} connect", devices(count))?;
            match connect.arrival {
                Arrival::Over(span) => write!(out, " evenly over {span}"),
                Arrival::At(rate) => {
                    let last = connect.arrival.offset(count.saturating_sub(1), count);
                    write!(out, " at {rate}, which takes {}", rounded(last.as_secs_f64()))
                }
                Arrival::Storm => write!(out, " all at once"),
            }
        }
        Action::Configure(put) => describe_configure(out, scenario, audience, put),
        Action::Wait(wait) => describe_wait(out, wait),
        Action::Fault(fault) => describe_fault(out, audience.fleet(), fault),
        Action::Cancel(cancel) => write!(out, "configuration {} is cancelled", cancel.configuration),
    }
}

fn describe_configure(
    out: &mut String,
    scenario: &Scenario,
    audience: &Audience,
    put: &Configure,
) -> fmt::Result {
    write!(out, "configuration {} gives {} to ", put.id, put.release)?;
    match audience.of(&put.target) {
        Some(count) => write!(out, "{} ({})", devices(count), put.target)?,
        None => write!(out, "the devices of {}", put.target)?,
    }
    if put.downgrade {
        write!(out, ", downgrade permitted")?;
    }
    if let Cycle::Every(span) = scenario.hub.configuration_cycle {
        write!(out, ", within {span}")?;
    }
    Ok(())
}

fn describe_wait(out: &mut String, wait: &Wait) -> fmt::Result {
    match &wait.what {
        WaitFor::Time(span) => write!(out, "wait {span}")?,
        WaitFor::Progress { until, timeout, on_timeout } => {
            write!(out, "wait until {until}")?;
            if let Some(timeout) = timeout {
                let follows = match on_timeout {
                    OnTimeout::Stop => "end the run",
                    OnTimeout::Continue => "go on",
                };
                write!(out, "; after {timeout} {follows}")?;
            }
        }
    }
    if let Some(condition) = &wait.abort_if {
        write!(out, "; if {condition}, cancel the rollout and end the run")?;
    }
    Ok(())
}

fn describe_fault(out: &mut String, fleet: &Fleet, fault: &Fault) -> fmt::Result {
    if let Some(scope) = fault.scope() {
        let group = scope.group.and_then(|name| fleet.group_named(name));
        write!(out, "for {}, ", devices(scope.share.of(fleet.member_count(group))))?;
    }
    let lasting = |lasts: Option<Span>| lasts.map_or("from now on".to_owned(), |span| format!("for {span}"));
    match fault {
        Fault::HubRestart(fault) => write!(out, "the hub goes down for {}", fault.down_for),
        Fault::LinkDown(fault) => write!(out, "the link is down for {}", fault.lasts),
        Fault::DropNotifications(fault) => {
            write!(out, "notifications are lost {}", lasting(fault.lasts))
        }
        Fault::DelayNotifications(fault) => {
            write!(out, "notifications take {} longer {}", fault.by, lasting(fault.lasts))
        }
        Fault::PowerCut(fault) => {
            match fault.during {
                CutMoment::Now => write!(out, "the power goes")?,
                CutMoment::Random => write!(out, "the power goes once in a random state of the update")?,
                state => {
                    let name = format!("{state:?}").to_lowercase();
                    write!(out, "the power goes once while {name}")?;
                }
            }
            write!(out, ", off for {}", fault.off_for)
        }
        Fault::BlobError(fault) => write!(
            out,
            "the blob store answers {} of requests with {} {}",
            fault.share,
            fault.status.code(),
            lasting(fault.lasts)
        ),
        Fault::BlobSlow(fault) => {
            write!(out, "the blob store sends {} in all {}", fault.bandwidth, lasting(fault.lasts))
        }
        Fault::BlobCorrupt(fault) => {
            write!(out, "the blob store corrupts {} of downloads {}", fault.share, lasting(fault.lasts))
        }
        Fault::HarnessStall(fault) => {
            write!(out, "planted: a thread of the harness stands still for {}", fault.span)
        }
        Fault::LateStep(fault) => write!(out, "planted: the next step is sent {} late", fault.by),
    }
}

/// What the run comes to if nothing fails: each device's connections, and each configuration's updates.
fn estimate(out: &mut String, scenario: &Scenario, audience: &Audience) -> fmt::Result {
    let (mut connections, mut updates, mut bytes) = (0u64, 0u64, 0u64);
    let fleet = audience.fleet();
    for step in &scenario.steps {
        match &step.action {
            Action::Connect(connect) => {
                let group = connect.group.as_deref().and_then(|name| fleet.group_named(name));
                connections = connections.saturating_add(fleet.member_count(group));
            }
            Action::Configure(put) => {
                let count = audience.of(&put.target).unwrap_or(fleet.devices());
                let size = scenario.releases.iter().find(|release| release.id == put.release);
                updates = updates.saturating_add(count);
                bytes = bytes.saturating_add(count.saturating_mul(size.map_or(0, |r| r.size.bytes())));
            }
            Action::Wait(_) | Action::Fault(_) | Action::Cancel(_) => {}
        }
    }
    let packets = connections
        .saturating_mul(CONNECT_PACKETS + REPORT_PACKETS)
        .saturating_add(updates.saturating_mul(UPDATE_PACKETS));
    writeln!(
        out,
        "\nestimate, if nothing fails: at most {} MQTT packets ({:.1} a device), {} of downloads",
        Thousands(packets),
        packets as f64 / fleet.devices() as f64,
        size(bytes)
    )?;
    let downloads = bytes as f64 / scenario.blob.bandwidth.bytes_per_second();
    if downloads >= 1.0 {
        writeln!(out, "  the blob store needs at least {} for them", rounded(downloads))?;
    }
    let tier = match scenario.hub.tier {
        Tier::None => return Ok(()),
        Tier::S1 => HubTier::S1,
        Tier::S2 => HubTier::S2,
        Tier::S3 => HubTier::S3,
    };
    let throttles = Throttles::new(tier, scenario.hub.units);
    // Each update reboots the device, which connects again.
    let demands = [
        ("connections", Operation::Connect, connections.saturating_add(updates)),
        ("twin reads", Operation::TwinRead, connections.saturating_add(updates)),
        ("twin updates", Operation::TwinUpdate, connections.saturating_add(updates.saturating_mul(2))),
        ("device-to-cloud messages", Operation::DeviceToCloud, updates),
    ];
    for (what, operation, count) in demands {
        if let Some(rate) = throttles.per_second(operation) {
            let count_text = Thousands(count);
            writeln!(
                out,
                "  the hub takes {count_text} {what} at {rate:.1}/s: {}, less what its burst takes",
                rounded(count as f64 / rate)
            )?;
        }
    }
    Ok(())
}

/// So many devices.
fn devices(count: u64) -> String {
    if count == 1 { "1 device".to_owned() } else { format!("{} devices", Thousands(count)) }
}

/// A number with its thousands set apart.
struct Thousands(u64);

impl Display for Thousands {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.0.to_string();
        for (i, digit) in digits.chars().enumerate() {
            if i > 0 && (digits.len() - i).is_multiple_of(3) {
                f.write_char(',')?;
            }
            f.write_char(digit)?;
        }
        Ok(())
    }
}

/// A span to two or three digits.
fn rounded(seconds: f64) -> String {
    match seconds {
        s if s < 10.0 => format!("{s:.1} s"),
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}

/// A size to three digits, or exactly if it is small.
fn size(bytes: u64) -> String {
    let units = [("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)];
    units.into_iter().find(|(_, unit)| bytes as f64 >= *unit).map_or_else(
        || ByteSize::from_bytes(bytes).to_string(),
        |(name, unit)| format!("{:.1} {name}", bytes as f64 / unit),
    )
}
