//! Releases that go well, and releases that do not.

use super::*;

#[test]
fn a_release_is_rolled_out_and_the_next_one_takes_its_place() {
    with_world(async |world| {
        assert_eq!(world.standing().await, ("web-0".into(), "web-0".into()));
        world.update(&release(1, &web("good/web:1"))).await;
        assert_eq!(world.serving("good/web:1").await, 2);
        let names = async || {
            let pods = world.api("v1", "Pod").list(&ListParams::default()).await.expect("pods");
            pods.iter().map(|pod| pod.metadata.name.clone()).collect::<BTreeSet<_>>()
        };
        let before = names().await;

        // The same again under another name: no pod starts anew for that.
        world.update(&release(2, &web("good/web:1"))).await;
        assert_eq!(names().await, before);
        let deployment = world.deployment().await;
        let annotations = &deployment["metadata"]["annotations"];
        assert_eq!(annotations["fleetwave-agent/release"], "web-2");
        assert_eq!(annotations["fleetwave-agent/sequence"], "2");
        assert_eq!(annotations["fleetwave-agent/target"], "workloads.web");
        assert_eq!(deployment["metadata"]["labels"]["app.kubernetes.io/managed-by"], "fleetwave-agent");

        world.update(&release(3, &web("good/web:3"))).await;
        assert_eq!(world.serving("good/web:3").await, 2);
    });
}

#[test]
fn an_image_that_is_not_there_leads_back_and_the_old_pods_serve_all_the_time() {
    with_world(async |world| {
        world.update(&release(1, &(web("good/web:1") + &map("settings", "one")))).await;
        let bad = release(2, &(web("bad/web:2") + &map("settings", "two") + &map("more", "x")));
        world.stage(&bad).await.expect("nothing is wrong with it as far as the cluster can tell");
        world.workload().activate().await.expect("activated");

        let mut fewest = 2;
        let error = {
            let mut verdict = world.workload().healthy();
            loop {
                tokio::select! {
                    verdict = &mut verdict => break verdict.expect_err("unhealthy"),
                    () = tokio::time::sleep(Duration::from_millis(50)) => {
                        fewest = fewest.min(world.serving("good/web:1").await);
                    }
                }
            }
        };
        let InstallError::Unhealthy(words) = error else { panic!("{error}") };
        assert!(words.contains("Deployment web: ProgressDeadlineExceeded"), "{words}");
        assert_eq!(world.standing().await, ("web-2".into(), "web-1".into()));

        assert_eq!(world.workload().go_back().await.expect("back"), Activated::Running);
        assert_eq!(world.standing().await, ("web-1".into(), "web-1".into()));
        fewest = fewest.min(world.serving("good/web:1").await);
        assert_eq!(fewest, 2);
        assert_eq!(world.serving("bad/web:2").await, 0);
        let settings = world.get("v1", "ConfigMap", "settings").await.expect("there before");
        assert_eq!(settings["data"]["key"], "one");
        assert_eq!(world.get("v1", "ConfigMap", "more").await, None);
        // There is no trial any more: nothing to do, and nothing to commit.
        world.workload().go_back().await.expect("back already");
        world.workload().commit().await.expect("nothing");
        assert_eq!(world.standing().await, ("web-1".into(), "web-1".into()));
    });
}

#[test]
fn what_a_release_lacks_is_deleted_after_the_commit_but_data_and_what_others_took_over_stay() {
    with_world(async |world| {
        let claim = "---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}
";
        let all = web("good/web:1") + &map("own", "x") + &map("taken", "x") + claim;
        world.update(&release(1, &all)).await;
        let mine = json!({"metadata": {"annotations": {"fleetwave-agent/target": "workloads.other"}}});
        world.apply_as("other", "v1", "ConfigMap", "taken", mine).await;

        let fewer = release(2, &web("good/web:1"));
        world.stage(&fewer).await.expect("staged");
        world.workload().activate().await.expect("activated");
        world.workload().healthy().await.expect("healthy");
        assert!(world.get("v1", "ConfigMap", "own").await.is_some(), "the way back needs it");
        world.workload().commit().await.expect("committed");
        assert_eq!(world.get("v1", "ConfigMap", "own").await, None);
        assert!(world.get("v1", "ConfigMap", "taken").await.is_some());
        assert!(world.get("v1", "PersistentVolumeClaim", "data").await.is_some());
    });
}

#[test]
fn what_others_had_in_the_cluster_is_given_back_to_them() {
    with_world(async |world| {
        world.apply_as("people", "v1", "ConfigMap", "shared", json!({"data": {"theirs": "x"}})).await;
        world.stage(&release(1, &(web("bad/web:1") + &map("shared", "ours")))).await.expect("staged");
        world.workload().activate().await.expect("activated");
        let shared = world.get("v1", "ConfigMap", "shared").await.expect("there before");
        assert_eq!(shared["data"], json!({"theirs": "x", "key": "ours"}));

        world.workload().go_back().await.expect("back");
        let shared = world.get("v1", "ConfigMap", "shared").await.expect("still there");
        assert_eq!(shared["data"], json!({"theirs": "x"}));
        assert_eq!(shared["metadata"].get("annotations"), None);
        assert_eq!(world.get("apps/v1", "Deployment", "web").await, None);
        assert_eq!(world.standing().await, ("web-0".into(), "web-0".into()));
    });
}

#[test]
fn what_the_cluster_has_lost_is_applied_again_at_the_next_start() {
    with_world(async |world| {
        world.update(&release(1, &(web("good/web:1") + &map("settings", "one")))).await;
        world.api("v1", "ConfigMap").delete("settings", &Default::default()).await.expect("deleted");
        assert_eq!(world.standing().await, ("web-1".into(), "web-1".into()));
        let settings = world.get("v1", "ConfigMap", "settings").await.expect("there again");
        assert_eq!(settings["data"]["key"], "one");
    });
}

#[test]
fn sets_with_names_and_jobs_are_waited_for_and_a_job_that_fails_fails_the_release_at_once() {
    with_world(async |world| {
        let job = |name: &str, image: &str| {
            format!(
                "---
apiVersion: batch/v1
kind: Job
metadata: {{name: {name}}}
spec:
  backoffLimit: 0
  template: {{spec: {{restartPolicy: Never, containers: [{{name: main, image: {image}}}]}}}}
"
            )
        };
        let set = |image: &str| {
            web(image).replace("Deployment", "StatefulSet").replace("  progressDeadlineSeconds: 2\n", "")
        };
        world.update(&release(1, &(set("good/web:1") + &job("migrate-1", "good/migrate:1")))).await;
        world.update(&release(2, &(set("good/web:2") + &job("migrate-2", "good/migrate:2")))).await;
        assert_eq!(world.serving("good/web:2").await, 2);

        let bad = release(3, &(set("good/web:2") + &job("migrate-3", "crash/migrate:3")));
        world.stage(&bad).await.expect("staged");
        world.workload().activate().await.expect("activated");
        let error = world.workload().healthy().await.expect_err("unhealthy");
        assert!(
            matches!(&error, InstallError::Unhealthy(words) if words.contains("BackoffLimitExceeded")),
            "{error}"
        );
        world.workload().go_back().await.expect("back");
        assert_eq!(world.standing().await, ("web-2".into(), "web-2".into()));

        // What of a job may not change is known before anything is applied.
        let same = release(4, &(set("good/web:2") + &job("migrate-2", "good/migrate:4")));
        let error = world.stage(&same).await.expect_err("refused");
        assert!(matches!(&error, InstallError::Payload(words) if words.contains("immutable")), "{error}");
    });
}
