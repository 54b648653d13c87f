//! The timeline: names that steps refer to, and waits that cannot end.

use super::super::audience::{self, Audience};
use super::super::fault::{CutMoment, Fault};
use super::super::model::Scenario;
use super::super::near;
use super::super::progress::{Bound, Progress, ProgressCondition};
use super::super::quantity::{Count, Span};
use super::super::read::{Path, Source};
use super::super::step::{Action, Arrival, Cancel, Configure, Connect, Wait, WaitFor};
use super::unique;

fn at(step: usize, key: &str) -> Path {
    Path::of(&format!("step.{step}.{key}"))
}

pub(super) fn check(scenario: &Scenario, source: &mut Source) {
    let names = scenario.steps.iter().enumerate();
    let named: Vec<(usize, &str)> = names.filter_map(|(i, step)| Some((i, step.name.as_deref()?))).collect();
    unique(named.iter().map(|(_, name)| *name), "step", |i| at(named[i].0, "name"), source);
    if scenario.steps.is_empty() {
        let help = "add [[step]] tables: connect the fleet, configure a release, wait for it".to_owned();
        source.warn(&Path::default(), "the scenario has no steps: nothing happens", Some(help));
    }
    let audience = Audience::of_scenario(scenario);
    let mut timeline = Timeline { scenario, source, audience, connects: false, configurations: Vec::new() };
    for i in 0..scenario.steps.len() {
        timeline.step(i);
    }
    times(scenario, source);
}

/// What the steps so far have done.
struct Timeline<'a> {
    scenario: &'a Scenario,
    source: &'a mut Source,
    audience: Audience,
    connects: bool,
    configurations: Vec<&'a Configure>,
}

impl<'a> Timeline<'a> {
    fn step(&mut self, i: usize) {
        match &self.scenario.steps[i].action {
            Action::Connect(connect) => self.connect(i, connect),
            Action::Configure(configure) => self.configure(i, configure),
            Action::Wait(wait) => self.wait(i, wait),
            Action::Fault(fault) => self.fault(i, fault),
            Action::Cancel(cancel) => self.cancel(i, cancel),
        }
    }

    fn connect(&mut self, i: usize, connect: &Connect) {
        self.connects = true;
        self.group(&at(i, "connect.group"), connect.group.as_deref());
    }

    fn group(&mut self, path: &Path, name: Option<&str>) {
        let Some(name) = name else { return };
        let groups = &self.scenario.fleet.groups;
        if groups.is_empty() && name == "all" || groups.iter().any(|group| group.name == name) {
            return;
        }
        let names = groups.iter().map(|group| group.name.as_str());
        let help = if groups.is_empty() {
            "the fleet has no groups: leave it out for the whole fleet".to_owned()
        } else {
            format!("the fleet has {}", near::list(names.clone()))
        };
        let problem = format!("there is no group `{name}`{}", near::did_you_mean(name, names));
        self.source.error(path, problem, Some(help));
    }

    fn configure(&mut self, i: usize, put: &'a Configure) {
        self.target(&at(i, "configure.target"), &put.target);
        if let Err(error) = audience::configuration(&put.id, "*") {
            self.source.error(&at(i, "configure.id"), error.message, None);
        }
        let releases = &self.scenario.releases;
        if let Some(release) = releases.iter().find(|release| release.id == put.release) {
            let running = &self.scenario.fleet.release;
            let earlier = self.configurations.iter().filter_map(|earlier| {
                releases.iter().find(|release| release.id == earlier.release).map(|r| (r.seq, r.id.as_str()))
            });
            let newest = earlier
                .chain([(running.seq, running.id.as_str())])
                .filter(|(_, id)| *id != put.release)
                .max()
                .filter(|(seq, _)| *seq >= release.seq && !put.downgrade);
            if let Some((seq, id)) = newest {
                self.source.error(
                    &at(i, "configure.release"),
                    format!(
                        "devices on `{id}` (seq {seq}) refuse `{}` (seq {}): its sequence number does not rise",
                        release.id, release.seq
                    ),
                    Some("raise the release's `seq`, or permit it with downgrade = true".to_owned()),
                );
            }
        } else {
            let ids = releases.iter().map(|release| release.id.as_str());
            let problem = format!(
                "there is no release `{}`{}",
                put.release,
                near::did_you_mean(&put.release, ids.clone())
            );
            let help = if releases.is_empty() {
                "add a [[release]] table with id, seq and size".to_owned()
            } else {
                format!("the scenario has {}", near::list(ids))
            };
            self.source.error(&at(i, "configure.release"), problem, Some(help));
        }
        self.configurations.push(put);
    }

    fn target(&mut self, path: &Path, target: &str) {
        if let Err(error) = fleetwave_hub_core::query::Condition::parse(target) {
            self.source.error_within(
                path,
                error.span.clone(),
                format!("the target condition cannot be read: {}", error.problem),
                Some("write `*`, or for instance tags.site = 'berlin' AND tags.ring != 'canary'".to_owned()),
            );
        } else if target.trim().is_empty() {
            let help = Some("write * for all devices".to_owned());
            self.source.warn(path, "an empty target condition is for no device", help);
        } else if self.audience.of(target) == Some(0) {
            self.source.warn(path, "this target condition is for no device of the fleet", None);
        }
    }

    fn cancel(&mut self, i: usize, cancel: &Cancel) {
        let ids = self.configurations.iter().map(|put| put.id.as_str());
        if !ids.clone().any(|id| id == cancel.configuration) {
            let problem = format!(
                "no step before this one puts a configuration `{}`{}",
                cancel.configuration,
                near::did_you_mean(&cancel.configuration, ids.clone())
            );
            let help = (!self.configurations.is_empty()).then(|| format!("they put {}", near::list(ids)));
            self.source.error(&at(i, "cancel.configuration"), problem, help);
        }
    }

    fn wait(&mut self, i: usize, wait: &Wait) {
        if let WaitFor::Progress { until, .. } = &wait.what {
            self.can_happen(&at(i, "wait.until"), until);
        }
        if let Some(condition) = &wait.abort_if {
            let path = at(i, "wait.abort_if");
            if self.configurations.is_empty() {
                self.source.error(
                    &path,
                    "no step before this one starts a rollout that could be aborted",
                    None,
                );
            } else {
                self.can_happen(&path, condition);
                if condition.holds(0, 1) && condition.progress != Progress::Connected {
                    let problem = format!(
                        "\"{condition}\" is true from the start: the rollout would be aborted at once"
                    );
                    self.source.error(&path, problem, None);
                }
            }
        }
    }

    fn can_happen(&mut self, path: &Path, condition: &ProgressCondition) {
        let name = condition.progress.name();
        if condition.progress == Progress::Connected && !self.connects {
            let help = Some("put a connect step before it".to_owned());
            self.source.error(path, "no device connects before this: it cannot happen", help);
        } else if condition.progress != Progress::Connected && self.configurations.is_empty() {
            let help = Some("put a configure step before it".to_owned());
            self.source.error(
                path,
                format!("no device can be `{name}` before a configuration targets it"),
                help,
            );
        }
        let whole = match condition.bound {
            Bound::Devices(Count(_)) => self.scenario.fleet.devices.0,
            Bound::Share(_) => 1_000_000,
        };
        // A condition on a count is monotone but for `=`: if neither end nor its own bound fulfils it, nothing does.
        let bound = match condition.bound {
            Bound::Devices(Count(count)) => count.min(whole),
            Bound::Share(share) => u64::from(share.millionths()),
        };
        if ![0, bound, whole].iter().any(|count| condition.holds(*count, whole)) {
            let problem = match condition.bound {
                Bound::Devices(_) => format!("\"{condition}\" cannot happen: the fleet has {whole} devices"),
                Bound::Share(_) => format!("\"{condition}\" cannot happen: a share lies between 0% and 100%"),
            };
            self.source.error(path, problem, None);
        }
    }

    fn fault(&mut self, i: usize, fault: &Fault) {
        if let Some(scope) = fault.scope() {
            let path = |key: &str| at(i, &format!("fault.{}.{key}", fault.name()));
            self.group(&path("group"), scope.group);
            if scope.share.millionths() == 0 {
                self.source.warn(&path("share"), "this fault happens to no device", None);
            }
        }
        if matches!(fault, Fault::LateStep(_)) && i + 1 == self.scenario.steps.len() {
            let help = Some("put it before the step that is to be late".to_owned());
            self.source.error(&at(i, "fault"), "no step follows that could be late", help);
        }
        if matches!(fault, Fault::PowerCut(cut) if cut.during != CutMoment::Now)
            && !self.scenario.steps.iter().any(|step| matches!(step.action, Action::Configure(_)))
        {
            self.source.warn(
                &at(i, "fault"),
                "no device updates in this scenario: none is cut in an update",
                None,
            );
        }
    }
}

/// Steps start in order, and before the run ends.
fn times(scenario: &Scenario, source: &mut Source) {
    let limit = scenario.harness.max_duration;
    let mut earliest = 0u64;
    for (i, step) in scenario.steps.iter().enumerate() {
        if let Some(start) = step.at {
            if start.as_micros() < earliest {
                source.error(
                    &at(i, "at"),
                    format!(
                        "the steps before this one end at {} at the earliest",
                        Span::from_micros(earliest)
                    ),
                    Some("leave `at` out to start then, or give a later time".to_owned()),
                );
            }
            earliest = earliest.max(start.as_micros());
        }
        let lasts = match &step.action {
            Action::Connect(Connect { arrival: Arrival::Over(span), .. })
            | Action::Wait(Wait { what: WaitFor::Time(span), .. }) => span.as_micros(),
            Action::Connect(Connect { arrival: Arrival::At(rate), group: None }) => {
                let last = rate.nth(scenario.fleet.devices.0.saturating_sub(1));
                u64::try_from(last.as_micros()).unwrap_or(u64::MAX)
            }
            _ => 0,
        };
        let before = earliest;
        earliest = earliest.saturating_add(lasts);
        if limit != Span::ZERO && before <= limit.as_micros() && earliest > limit.as_micros() {
            source.error(
                &Path::of(&format!("step.{i}")),
                format!(
                    "this step ends at {} at the earliest; the run ends at {limit}",
                    Span::from_micros(earliest)
                ),
                Some("shorten it, or raise harness.max_duration".to_owned()),
            );
        }
    }
}
