//! What a scenario asks for that a hub which is not ours cannot do, or must not be asked to.

use crate::scenario::fault::Fault;
use crate::scenario::model::{Channel, Scenario};
use crate::scenario::step::Action;

/// What works there, for messages.
const FAULTS: &str = "link_down, drop_notifications, delay_notifications, power_cut, blob_error, blob_slow and \
                      blob_corrupt work there";

/// Checks a scenario for what cannot be on a hub that is not ours.
///
/// # Errors
/// The problem, and what would be right.
pub fn fit(scenario: &Scenario) -> Result<(), (String, String)> {
    let wrong = |problem: String, fix: &str| Err((problem, fix.to_owned()));
    for (place, step) in scenario.steps.iter().enumerate() {
        let number = place + 1;
        match &step.action {
            Action::Fault(fault @ Fault::HubRestart(_)) => {
                return wrong(
                    format!(
                        "step {number} is fault.{}, and a hub that is not ours cannot be restarted",
                        fault.name()
                    ),
                    &format!("take the step out, or run with --target hub; {FAULTS}"),
                );
            }
            Action::Configure(configure) if configure.target.contains("deviceId") => {
                return wrong(
                    format!(
                        "the target of configuration {} in step {number} names device ids, which have the run's id in \
                         them on a hub that is not ours",
                        configure.id
                    ),
                    "give the devices a tag, and target that",
                );
            }
            _ => {}
        }
    }
    if scenario.grant.channel == Channel::C2d {
        return wrong(
            "grant.channel is c2d, and cloud-to-device messages are sent by AMQP, which the harness does not speak"
                .to_owned(),
            "use --set grant.channel=method",
        );
    }
    if let Some(group) = scenario.fleet.groups.iter().find(|group| group.tags.contains_key(super::PREFIX)) {
        return wrong(
            format!("group {} has the tag {}, which marks what a run has created", group.name, super::PREFIX),
            "give the tag another name",
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::load_text;

    fn problem(more: &str) -> String {
        let text = format!(
            "schema = 1\nname = 'x'\n[fleet]\ndevices = 10\n[[fleet.group]]\nname = 'all'\n[[release]]\nid = 'fw-2'\n\
             seq = 2\n{more}\n[[step]]\nconnect = {{ over = '1s' }}\n"
        );
        let loaded = load_text("x", &text, &[]).expect("the scenario is right");
        let (problem, fix) = fit(&loaded.scenario).expect_err("it does not fit");
        format!("{problem}; {fix}")
    }

    #[test]
    fn what_a_hub_elsewhere_cannot_do_is_refused_by_its_name() {
        let restart = problem("[[step]]\nfault.hub_restart = { down_for = '1s' }");
        assert!(
            restart.contains("step 1 is fault.hub_restart") && restart.contains("power_cut"),
            "{restart}"
        );
        let ids =
            problem("[[step]]\nconfigure = { id = 'c', release = 'fw-2', target = \"deviceId = 'dev-1'\" }");
        assert!(ids.contains("configuration c in step 1"), "{ids}");
        let channel = problem("[grant]\nchannel = 'c2d'");
        assert!(channel.contains("--set grant.channel=method"), "{channel}");
    }
}
