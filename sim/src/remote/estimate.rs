//! What a run will create and send on a hub that is not ours, and how long that takes within its limits: told before
//! anything is done.

use core::fmt::Write as _;

use fleetwave_hub_core::throttle::{Operation, Throttles};

use super::service::BATCH;
use super::{Remote, limits_of};
use crate::scenario::audience;
use crate::scenario::fleet::Fleet;
use crate::scenario::model::{Scenario, Tier};
use crate::scenario::step::Action;

/// Reports of an update that goes well: it begins, and the new release is committed.
const REPORTS_AN_UPDATE: u64 = 2;

/// Operations of one kind.
struct Line {
    what: &'static str,
    count: u64,
    operation: Operation,
    /// How much of the limit each one takes.
    cost: f64,
    /// Whether it counts against the day's messages.
    message: bool,
}

/// The plan of a run, as text for people.
#[must_use]
pub fn estimate(remote: &Remote, scenario: &Scenario) -> String {
    let fleet = Fleet::plan(scenario);
    let devices = fleet.devices();
    let (mut configurations, mut cancelled, mut updates) = (0, 0, 0);
    for step in &scenario.steps {
        match &step.action {
            Action::Configure(configure) => {
                configurations += 1;
                updates += match audience::groups(scenario, &configure.target) {
                    Some(groups) => {
                        let sizes = fleet.groups().iter().zip(groups);
                        sizes.filter(|(_, is_for)| *is_for).map(|(group, _)| group.devices()).sum()
                    }
                    None => devices,
                };
            }
            Action::Cancel(_) => cancelled += 1,
            Action::Connect(_) | Action::Wait(_) | Action::Fault(_) => {}
        }
    }
    let connects = devices + updates;
    let batches = 2 * devices.div_ceil(BATCH as u64);
    let changes = 2 * configurations + cancelled;
    let line = |what, count, operation, message| Line { what, count, operation, cost: 1.0, message };
    let lines = [
        line("requests to create and delete them", batches, Operation::Registry, false),
        line("changes of configurations", changes, Operation::Configuration, false),
        line("connections", connects, Operation::Connect, false),
        line("twin reads by devices", connects, Operation::TwinRead, true),
        line("twin reports by devices", devices + REPORTS_AN_UPDATE * updates, Operation::TwinUpdate, true),
        line("grant requests by devices", updates, Operation::DeviceToCloud, true),
        Line { cost: 4096.0, ..line("direct methods with grants", updates, Operation::Method, true) },
    ];
    let (tier, units) = remote.limits(scenario);
    let throttles = Throttles::new(limits_of(tier), units);
    let mut text = format!(
        "Run {} of scenario {} on {remote}, with the rights of policy {}\n\n",
        remote.run,
        scenario.name,
        remote.access.policy()
    );
    let plural = if configurations == 1 { "configuration" } else { "configurations" };
    let mut say = |line: String| writeln!(text, "{line}").expect("a string takes everything");
    say(format!("  it creates   {devices} devices, {}-…", remote.prefix()));
    say(format!(
        "               {configurations} {plural}, for devices with tags.fleetwave.run = '{}' alone",
        remote.run
    ));
    say("  it removes   all of these when it is over, after Ctrl-C too".to_owned());
    say(format!("  limits       {}\n", limits(tier, units)));
    say(format!("  {:>10}  {:<36}{:>12}", "about", "", "at least"));
    let mut longest: f64 = 0.0;
    let mut around: f64 = 0.0;
    for line in &lines {
        let seconds =
            throttles.per_second(line.operation).map_or(0.0, |rate| line.count as f64 * line.cost / rate);
        match line.operation {
            Operation::Registry | Operation::Configuration => around += seconds,
            _ => longest = longest.max(seconds),
        }
        say(format!("  {:>10}  {:<36}{:>12}", line.count, line.what, span(seconds)));
    }
    let messages: u64 = lines.iter().filter(|line| line.message).map(|line| line.count).sum();
    let quota = quota(tier).map_or(String::new(), |quota| {
        format!(", of {} that the hub may take in a day", u64::from(units) * quota)
    });
    say(format!("  {messages:>10}  messages in all{quota}"));
    say(format!(
        "\nThe limits alone make it last {} at least, beside what the scenario itself takes. Updates that fail, faults \
         and tries that are repeated cost more.",
        span(around + longest)
    ));
    text
}

fn limits(tier: Tier, units: u32) -> String {
    let name = match tier {
        Tier::None => return "none are kept".to_owned(),
        Tier::S1 => "S1",
        Tier::S2 => "S2",
        Tier::S3 => "S3",
    };
    let plural = if units == 1 { "unit" } else { "units" };
    format!("those of {name} with {units} {plural}; the run sends no faster")
}

/// Messages a day and unit.
const fn quota(tier: Tier) -> Option<u64> {
    match tier {
        Tier::None => None,
        Tier::S1 => Some(400_000),
        Tier::S2 => Some(6_000_000),
        Tier::S3 => Some(300_000_000),
    }
}

fn span(seconds: f64) -> String {
    match seconds.ceil() as u64 {
        seconds @ 0..=119 => format!("{seconds} s"),
        seconds @ 120..=7199 => format!("{} min", seconds.div_ceil(60)),
        seconds => format!("{:.1} h", seconds as f64 / 3600.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::load;

    #[test]
    fn the_plan_says_what_is_created_what_is_sent_and_how_long_that_takes() {
        let access =
            "HostName=hub.azure-devices.net;SharedAccessKeyName=iothubowner;SharedAccessKey=c2VjcmV0"
                .parse()
                .expect("well formed");
        let remote = Remote { run: "1a2b3c4d".to_owned(), ..Remote::new(access) };
        let loaded = load("quickstart", &["fleet.devices=2000".to_owned()]).expect("it is shipped");
        let text = estimate(&remote, &loaded.scenario);
        assert!(!text.contains("c2VjcmV0"), "{text}");
        insta::assert_snapshot!(text);
    }
}
