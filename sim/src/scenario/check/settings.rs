//! The agents' policy, the hub, the services, and the limits of the run.

use super::super::model::{Agent, Backoff, Cycle, Driver, Scenario, Tier};
use super::super::quantity::Span;
use super::super::read::{Path, Source};

pub(super) fn check(scenario: &Scenario, source: &mut Source) {
    agent(scenario, source);
    hub(scenario, source);
    let threads = [
        ("live.hub_threads", scenario.live.hub_threads),
        ("live.device_threads", scenario.live.device_threads),
        ("live.blob_threads", scenario.live.blob_threads),
    ];
    for (key, count) in threads {
        if !(1..=256).contains(&count) {
            source.error(&Path::of(key), format!("{count} threads are not possible; give 1 to 256"), None);
        }
    }
    for (key, span) in [
        ("grant.url_ttl", scenario.grant.url_ttl),
        ("harness.max_lag", scenario.harness.max_lag),
        ("harness.max_duration", scenario.harness.max_duration),
    ] {
        positive(key, span, source);
    }
}

fn positive(key: &str, span: Span, source: &mut Source) {
    if span == Span::ZERO {
        source.error(&Path::of(key), format!("`{key}` has to be longer than nothing"), None);
    }
}

fn agent(scenario: &Scenario, source: &mut Source) {
    let agent = &scenario.agent;
    positive("agent.request_timeout", agent.request_timeout, source);
    positive("agent.grant_timeout", agent.grant_timeout, source);
    positive("agent.probation_timeout", agent.probation_timeout, source);
    for (key, Backoff { first, max }) in
        [("agent.backoff", agent.backoff), ("agent.reconnect", agent.reconnect)]
    {
        positive(&format!("{key}.first"), first, source);
        if first > max {
            source.error(
                &Path::of(&format!("{key}.max")),
                format!("the longest pause, {max}, is shorter than the first one, {first}"),
                None,
            );
        }
    }
    for (key, tries) in [
        ("agent.attempts", agent.attempts),
        ("agent.verify_attempts", agent.verify_attempts),
        ("agent.boot_attempts", agent.boot_attempts),
        ("agent.start_attempts", agent.start_attempts),
    ] {
        if tries == 0 {
            source.error(&Path::of(key), "an agent that never tries never updates; give at least 1", None);
        }
    }
    if let Some(locks) = agent.locks {
        positive("agent.locks.retry", locks.retry, source);
    }
    if agent.update_cap.is_some_and(|cap| cap.bytes() == 0) {
        let help = Some("leave `update_cap` out for no limit".to_owned());
        source.error(&Path::of("agent.update_cap"), "an update that may cost nothing is never made", help);
    }
    if agent.checkpoint.bytes() == 0 {
        let help = Some("for no checkpoint but the end, give a size above the release's".to_owned());
        source.error(&Path::of("agent.checkpoint"), "a checkpoint every 0 bytes is not possible", help);
    }
    if scenario.fleet.groups.iter().any(|group| group.driver == Driver::Agent) {
        real_agents(agent, source);
    }
}

/// What is said of all agents, and real ones have no setting for.
fn real_agents(agent: &Agent, source: &mut Source) {
    let usual = Agent::default();
    for (key, said) in [
        ("request_timeout", agent.request_timeout != usual.request_timeout),
        ("grant_timeout", agent.grant_timeout != usual.grant_timeout),
        ("backoff.max", agent.backoff.max != usual.backoff.max),
        ("reconnect.max", agent.reconnect.max != usual.reconnect.max),
        ("attempts", agent.attempts != usual.attempts),
        ("verify_attempts", agent.verify_attempts != usual.verify_attempts),
        ("boot_attempts", agent.boot_attempts != usual.boot_attempts),
        ("start_attempts", agent.start_attempts != usual.start_attempts),
        ("probation_needs_hub", agent.probation_needs_hub != usual.probation_needs_hub),
        ("checkpoint", agent.checkpoint != usual.checkpoint),
    ] {
        if said {
            let why = format!("real agents have a `{key}` of their own: this is for simulated devices");
            source.warn(&Path::of(&format!("agent.{key}")), why, None);
        }
    }
}

fn hub(scenario: &Scenario, source: &mut Source) {
    let hub = &scenario.hub;
    let most = match hub.tier {
        Tier::None | Tier::S1 | Tier::S2 => 200,
        Tier::S3 => 10,
    };
    if hub.units == 0 || hub.units > most {
        source.error(
            &Path::of("hub.units"),
            format!("a hub of this tier has 1 to {most} units, not {}", hub.units),
            None,
        );
    } else if hub.units > 1 && hub.tier == Tier::None {
        let help = Some("give hub.tier = \"S1\", \"S2\" or \"S3\"".to_owned());
        source.warn(&Path::of("hub.units"), "a hub without a tier has no limits, whatever its units", help);
    }
    if hub.configuration_cycle == Cycle::Every(Span::ZERO) {
        let help = Some("write \"immediate\"".to_owned());
        source.error(&Path::of("hub.configuration_cycle"), "a cycle cannot have no length", help);
    }
}
