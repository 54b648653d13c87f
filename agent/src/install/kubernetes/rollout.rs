//! Whether an object has become what was asked for, as `kubectl rollout status` has it.

use serde_json::Value;

/// How far an object is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Rollout {
    Done,
    /// Not yet; why.
    Waiting(String),
    /// It will not get there; why.
    Failed(String),
}

/// How far `object` is. What has no rollout is done as soon as it exists.
pub(super) fn rollout(group: &str, kind: &str, object: &Value) -> Rollout {
    let known = match (group, kind) {
        ("apps", "Deployment" | "StatefulSet" | "DaemonSet") => observed(object),
        _ => Ok(()),
    };
    let verdict = known.and_then(|()| match (group, kind) {
        ("apps", "Deployment") => deployment(object),
        ("apps", "StatefulSet") => stateful_set(object),
        ("apps", "DaemonSet") => daemon_set(object),
        ("batch", "Job") => job(object),
        _ => Ok(()),
    });
    verdict.err().unwrap_or(Rollout::Done)
}

type Verdict = Result<(), Rollout>;

fn wait(why: String) -> Verdict {
    Err(Rollout::Waiting(why))
}

/// Whether the controller has seen what was asked for last: until then the status is about what was before.
fn observed(object: &Value) -> Verdict {
    let generation = object["metadata"]["generation"].as_i64().unwrap_or_default();
    if number(object, "observedGeneration") >= generation {
        return Ok(());
    }
    wait("its controller has not seen it yet".to_owned())
}

fn deployment(object: &Value) -> Verdict {
    if let Some(progressing) = condition(object, "Progressing")
        && progressing["reason"] == "ProgressDeadlineExceeded"
    {
        return Err(Rollout::Failed(words(progressing)));
    }
    let (wanted, updated) = (wanted(object), number(object, "updatedReplicas"));
    if updated < wanted {
        return wait(format!("{updated} of {wanted} replicas are new"));
    }
    let old = number(object, "replicas") - updated;
    if old > 0 {
        return wait(format!("{old} old replicas have not ended"));
    }
    let available = number(object, "availableReplicas");
    if available < updated {
        return wait(format!("{available} of {updated} new replicas are available"));
    }
    Ok(())
}

fn stateful_set(object: &Value) -> Verdict {
    let (wanted, ready) = (wanted(object), number(object, "readyReplicas"));
    if ready < wanted {
        return wait(format!("{ready} of {wanted} replicas are ready"));
    }
    let strategy = &object["spec"]["updateStrategy"];
    if strategy["type"] == "OnDelete" {
        return Ok(());
    }
    let partition = strategy["rollingUpdate"]["partition"].as_i64().unwrap_or_default();
    let status = &object["status"];
    if partition == 0 && status["currentRevision"] == status["updateRevision"] {
        return Ok(());
    }
    let (wanted, updated) = (wanted - partition, number(object, "updatedReplicas"));
    if updated < wanted || partition == 0 {
        return wait(format!("{updated} of {wanted} replicas are new"));
    }
    Ok(())
}

fn daemon_set(object: &Value) -> Verdict {
    if object["spec"]["updateStrategy"]["type"] == "OnDelete" {
        return Ok(());
    }
    let wanted = number(object, "desiredNumberScheduled");
    let (updated, available) = (number(object, "updatedNumberScheduled"), number(object, "numberAvailable"));
    if updated < wanted {
        return wait(format!("{updated} of {wanted} pods are new"));
    }
    if available < wanted {
        return wait(format!("{available} of {wanted} pods are available"));
    }
    Ok(())
}

fn job(object: &Value) -> Verdict {
    if let Some(failed) = condition(object, "Failed").filter(|failed| failed["status"] == "True") {
        return Err(Rollout::Failed(words(failed)));
    }
    let complete = condition(object, "Complete").is_some_and(|complete| complete["status"] == "True");
    if complete || object["spec"]["suspend"] == true {
        return Ok(());
    }
    wait("it has not completed".to_owned())
}

fn number(object: &Value, name: &str) -> i64 {
    object["status"][name].as_i64().unwrap_or_default()
}

fn wanted(object: &Value) -> i64 {
    object["spec"]["replicas"].as_i64().unwrap_or(1)
}

fn condition<'a>(object: &'a Value, name: &str) -> Option<&'a Value> {
    object["status"]["conditions"].as_array()?.iter().find(|condition| condition["type"] == name)
}

fn words(condition: &Value) -> String {
    let word = |name: &str| condition[name].as_str().unwrap_or_default().to_owned();
    format!("{}: {}", word("reason"), word("message"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn waits(kind: &str, group: &str, object: &Value) -> String {
        match rollout(group, kind, object) {
            Rollout::Waiting(why) => why,
            other => panic!("{kind} is {other:?}: {object}"),
        }
    }

    #[test]
    fn a_deployment_is_done_when_all_its_replicas_are_new_and_available() {
        let at = |generation: i64, updated: i64, all: i64, available: i64| {
            json!({
                "metadata": {"generation": generation}, "spec": {"replicas": 2},
                "status": {"observedGeneration": 2, "updatedReplicas": updated, "replicas": all,
                           "availableReplicas": available},
            })
        };
        assert_eq!(rollout("apps", "Deployment", &at(2, 2, 2, 2)), Rollout::Done);
        assert_eq!(waits("Deployment", "apps", &at(3, 2, 2, 2)), "its controller has not seen it yet");
        assert_eq!(waits("Deployment", "apps", &at(2, 1, 2, 2)), "1 of 2 replicas are new");
        assert_eq!(waits("Deployment", "apps", &at(2, 2, 3, 2)), "1 old replicas have not ended");
        assert_eq!(waits("Deployment", "apps", &at(2, 2, 2, 1)), "1 of 2 new replicas are available");
        assert_eq!(
            rollout("apps", "Deployment", &at(0, 0, 0, 0)),
            Rollout::Waiting("0 of 2 replicas are new".into())
        );
    }

    #[test]
    fn a_deployment_past_its_progress_deadline_has_failed_unless_that_is_about_what_was_before() {
        let at = |observed: i64| {
            json!({
                "metadata": {"generation": 2}, "spec": {"replicas": 1},
                "status": {"observedGeneration": observed, "conditions": [
                    {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded", "message": "late"},
                ]},
            })
        };
        let failed = Rollout::Failed("ProgressDeadlineExceeded: late".into());
        assert_eq!(rollout("apps", "Deployment", &at(2)), failed);
        assert_ne!(rollout("apps", "Deployment", &at(1)), failed);
    }

    #[test]
    fn a_stateful_set_waits_for_its_revision_and_honours_partition_and_on_delete() {
        let at = |strategy: Value, ready: i64, updated: i64, current: &str| {
            json!({
                "metadata": {"generation": 1}, "spec": {"replicas": 3, "updateStrategy": strategy},
                "status": {"observedGeneration": 1, "readyReplicas": ready, "updatedReplicas": updated,
                           "currentRevision": current, "updateRevision": "b"},
            })
        };
        let rolling = json!({"type": "RollingUpdate"});
        assert_eq!(rollout("apps", "StatefulSet", &at(rolling.clone(), 3, 3, "b")), Rollout::Done);
        assert_eq!(
            waits("StatefulSet", "apps", &at(rolling.clone(), 2, 3, "b")),
            "2 of 3 replicas are ready"
        );
        assert_eq!(waits("StatefulSet", "apps", &at(rolling, 3, 1, "a")), "1 of 3 replicas are new");
        let canary = json!({"type": "RollingUpdate", "rollingUpdate": {"partition": 2}});
        assert_eq!(rollout("apps", "StatefulSet", &at(canary.clone(), 3, 1, "a")), Rollout::Done);
        assert_eq!(waits("StatefulSet", "apps", &at(canary, 3, 0, "a")), "0 of 1 replicas are new");
        let by_hand = json!({"type": "OnDelete"});
        assert_eq!(rollout("apps", "StatefulSet", &at(by_hand, 3, 0, "a")), Rollout::Done);
    }

    #[test]
    fn a_daemon_set_is_done_when_every_node_has_the_new_pod() {
        let at = |updated: i64, available: i64| {
            json!({
                "metadata": {"generation": 1},
                "status": {"observedGeneration": 1, "desiredNumberScheduled": 2, "updatedNumberScheduled": updated,
                           "numberAvailable": available},
            })
        };
        assert_eq!(rollout("apps", "DaemonSet", &at(2, 2)), Rollout::Done);
        assert_eq!(waits("DaemonSet", "apps", &at(1, 2)), "1 of 2 pods are new");
        assert_eq!(waits("DaemonSet", "apps", &at(2, 0)), "0 of 2 pods are available");
    }

    #[test]
    fn a_job_is_done_when_it_has_completed_and_what_has_no_rollout_is_done_at_once() {
        let at = |kind: &str| json!({"status": {"conditions": [{"type": kind, "status": "True", "reason": "R", "message": "m"}]}});
        assert_eq!(rollout("batch", "Job", &at("Complete")), Rollout::Done);
        assert_eq!(rollout("batch", "Job", &at("Failed")), Rollout::Failed("R: m".into()));
        assert_eq!(waits("Job", "batch", &json!({})), "it has not completed");
        assert_eq!(rollout("", "ConfigMap", &json!({})), Rollout::Done);
        assert_eq!(
            rollout("example.com", "Deployment", &json!({"metadata": {"generation": 1}})),
            Rollout::Done
        );
    }
}
