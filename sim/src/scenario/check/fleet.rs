//! The fleet, its groups and the releases.

use fleetwave_agent_core::Archive;
use fleetwave_agent_core::delta::worth_a_look;

use super::super::audience;
use super::super::fault::Fault;
use super::super::model::{Delta, Driver, Group, Release, Scenario, Share};
use super::super::quantity::{Percent, Span};
use super::super::read::{Path, Source};
use super::super::step::Action;
use super::unique;

/// Device numbers are 32 bits wide, with room for what engines mark in them.
const MOST_DEVICES: u64 = 1_000_000_000;
/// Engines run devices apart from each other for as long as no message can pass between them.
const SHORTEST_LATENCY: Span = Span::from_millis(1);
const MINUTE: Span = Span::from_secs(60);
const DAY: Span = Span::from_secs(86_400);
const WEEK: Span = Span::from_secs(7 * 86_400);
/// Places in which a release may differ from the one before.
const MOST_RANGES: u32 = 10_000;
/// Local time is at most 14 hours from UTC.
const MOST_MINUTES: u32 = 14 * 60;

pub(super) fn check(scenario: &Scenario, source: &mut Source) {
    let devices = scenario.fleet.devices.0;
    if devices == 0 || devices > MOST_DEVICES {
        source.error(
            &Path::of("fleet.devices"),
            format!("a fleet has 1 to {MOST_DEVICES} devices, not {devices}"),
            None,
        );
    }
    groups(scenario, source);
    releases(scenario, source);
}

fn groups(scenario: &Scenario, source: &mut Source) {
    let groups = &scenario.fleet.groups;
    unique(groups.iter().map(|group| group.name.as_str()), "group", |i| at(i, "name"), source);
    shares(scenario, source);
    for (i, problem) in audience::bad_tags(scenario) {
        source.error(&at(i, "tags"), problem, None);
    }
    for (i, group) in groups.iter().enumerate() {
        if group.link.latency.min() < SHORTEST_LATENCY.duration() {
            source.error(
                &at(i, "link.latency"),
                format!("a link's latency can be as low as {:?} here", group.link.latency.min()),
                Some(format!("engines need at least {SHORTEST_LATENCY}")),
            );
        }
        if let Some(window) = &group.window
            && (window.lasts == Span::ZERO || window.lasts > DAY)
        {
            source.error(
                &at(i, "window.lasts"),
                format!("a window that opens every day cannot last {}", window.lasts),
                Some("it lasts more than nothing and at most 24h; leave `window` out for always".to_owned()),
            );
        }
        real(i, group, scenario, source);
        windows(i, group, scenario.agent.locks.is_some(), source);
        if group.probation.max() > scenario.agent.probation_timeout.duration() {
            source.warn(
                &at(i, "probation"),
                format!(
                    "health checks can take longer than agent.probation_timeout = \"{}\": such devices roll back",
                    scenario.agent.probation_timeout
                ),
                None,
            );
        }
    }
}

/// What is asked of real agents and only simulated devices do.
fn real(i: usize, group: &Group, scenario: &Scenario, source: &mut Source) {
    if group.driver != Driver::Agent {
        return;
    }
    let steps = [("download_window", &group.download_window), ("install_window", &group.install_window)];
    let steps = steps
        .into_iter()
        .filter_map(|(key, window)| window.as_ref().map(|window| (key, window.lasts, window.grace)));
    let both = group.window.map(|window| ("window", window.lasts, Span::ZERO));
    for (key, lasts, grace) in steps.chain(both) {
        let whole = |span: Span| span.as_micros().is_multiple_of(MINUTE.as_micros());
        if !whole(lasts) || !whole(grace) || lasts > DAY {
            let help = Some("make it so, or take driver = \"simulated\"".to_owned());
            let why =
                "windows of real agents, and their grace, are in whole minutes, and no longer than a day";
            source.error(&at(i, key), why.to_owned(), help);
        }
    }
    if group.busy != Percent::ZERO && group.busy != Percent::FULL {
        let help = Some("make it 0% or 100%, in a group of their own for those who are busy".to_owned());
        let why = "real agents may be interrupted always or never: nobody draws for each question";
        source.error(&at(i, "busy"), why.to_owned(), help);
    }
    for (number, step) in scenario.steps.iter().enumerate() {
        let Action::Fault(fault) = &step.action else { continue };
        let Some(scope) = fault.scope().filter(|_| !matches!(fault, Fault::PowerCut(_))) else { continue };
        let help = Some("give it another group, or let the hub or the blob store fail".to_owned());
        let path = Path::of(&format!("step.{number}.fault"));
        if scope.group == Some(&*group.name) {
            source.error(
                &path,
                format!("this fault reaches no real agents, and all of `{}` are", group.name),
                help,
            );
        } else if scope.group.is_none() {
            source.warn(
                &path,
                format!("this fault reaches no real agents, those of `{}` among them", group.name),
                None,
            );
        }
    }
}

/// The windows of single steps, and local time.
fn windows(i: usize, group: &Group, asks: bool, source: &mut Source) {
    for (key, window) in
        [("download_window", &group.download_window), ("install_window", &group.install_window)]
    {
        let Some(window) = window else { continue };
        if group.window.is_some() {
            let help = Some("`window` stands for both: give the one or the other two".to_owned());
            source.error(&at(i, key), "a group has `window` or windows for single steps", help);
        }
        if window.days.is_empty() {
            let help = Some("leave `days` out for every day".to_owned());
            source.error(&at(i, &format!("{key}.days")), "a window that has no day never opens", help);
        }
        if window.lasts == Span::ZERO || window.lasts > WEEK {
            let problem = format!("a window that opens every week cannot last {}", window.lasts);
            let help =
                Some(format!("it lasts more than nothing and at most 7d; leave `{key}` out for always"));
            source.error(&at(i, &format!("{key}.lasts")), problem, help);
        }
    }
    if group.utc_offset_minutes.unsigned_abs() > MOST_MINUTES {
        let problem = format!("no local time is {} minutes from UTC", group.utc_offset_minutes);
        source.error(&at(i, "utc_offset_minutes"), problem, Some("it is at most 840, both ways".to_owned()));
    }
    if group.busy != Percent::ZERO && !asks {
        let help = Some("give `agent.locks = {}` for agents that ask".to_owned());
        source.warn(&at(i, "busy"), "agents interrupt their devices without asking".to_owned(), help);
    }
}

fn at(group: usize, key: &str) -> Path {
    Path::of(&format!("fleet.group.{group}.{key}"))
}

fn shares(scenario: &Scenario, source: &mut Source) {
    let groups = &scenario.fleet.groups;
    let mut sum = 0u64;
    let mut rest = false;
    for (i, group) in groups.iter().enumerate() {
        match group.share {
            Share::Rest => rest = true,
            Share::Of(share) => {
                let before = sum;
                sum += u64::from(share.millionths());
                if before <= 1_000_000 && sum > 1_000_000 {
                    source.error(
                        &at(i, "share"),
                        format!("with this group the shares add up to {}%", sum as f64 / 1e4),
                        Some(format!("the groups before it leave {}%", (1_000_000 - before) as f64 / 1e4)),
                    );
                }
            }
        }
    }
    if !groups.is_empty() && !rest && sum < 1_000_000 {
        source.error(
            &at(groups.len() - 1, "share"),
            format!("the groups' shares add up to {}% only", sum as f64 / 1e4),
            Some("give one group share = \"rest\"".to_owned()),
        );
    } else if rest && sum == 1_000_000 {
        let i = groups.iter().position(|group| group.share == Share::Rest).unwrap_or_default();
        source.warn(&at(i, "name"), "the other groups leave nothing for this one", None);
    }
}

fn releases(scenario: &Scenario, source: &mut Source) {
    let releases = &scenario.releases;
    let path = |i: usize, key: &str| Path::of(&format!("release.{i}.{key}"));
    unique(releases.iter().map(|release| release.id.as_str()), "release", |i| path(i, "id"), source);
    for (i, release) in releases.iter().enumerate() {
        if release.size.bytes() == 0 {
            source.error(&path(i, "size"), "a release has at least one byte", None);
        }
        if let Some(delta) = &release.delta {
            archive(release, delta, |key| path(i, key), source);
        }
        let running = &scenario.fleet.release;
        if release.id == running.id && release.seq != running.seq {
            source.error(
                &path(i, "seq"),
                format!(
                    "release `{}` has seq = {} here and {} in fleet.release",
                    release.id, release.seq, running.seq
                ),
                Some("a release's sequence number never changes".to_owned()),
            );
        }
        let used = scenario
            .steps
            .iter()
            .any(|step| matches!(&step.action, Action::Configure(put) if put.release == release.id));
        if !used {
            source.warn(&path(i, "id"), format!("no step rolls out release `{}`", release.id), None);
        }
    }
}

fn archive(release: &Release, delta: &Delta, path: impl Fn(&str) -> Path, source: &mut Source) {
    if delta.header > delta.archive {
        source.error(
            &path("delta.header"),
            format!("the header, {}, is longer than the whole archive, {}", delta.header, delta.archive),
            Some("an archive begins with its header, and `archive` is the size of both".to_owned()),
        );
    }
    if !(1..=MOST_RANGES).contains(&delta.ranges) {
        source.error(
            &path("delta.ranges"),
            format!("what changed cannot lie in {} places; give 1 to {MOST_RANGES}", delta.ranges),
            None,
        );
    }
    let archive =
        Archive { size: delta.archive.bytes(), header_size: delta.header.bytes(), header_digest: [0; 32] };
    if !worth_a_look(&archive, release.size.bytes()) {
        let help = Some("devices do not look at such an archive, and fetch all of the payload".to_owned());
        let why = format!("the header, {}, is more than 1% of the payload, {}", delta.header, release.size);
        source.warn(&path("delta.header"), why, help);
    }
}
