//! Workloads from the twin to their containers: the whole agent, a real podman, a real Kubernetes API server.

#[path = "common/cluster.rs"]
mod cluster;
#[path = "common/pods.rs"]
mod pods;
#[path = "common/real.rs"]
mod real;
mod support;

use cluster::Server;
use fleetwave_hub::blob::Content;
use pods::{Podman, SERVE, pod};
use serde_json::json;
use support::{World, eventually};

fn desire(world: &World, seq: u64, manifest: String) {
    let content = Content::Bytes(manifest.into_bytes().into());
    let release = world.sign(Some("workloads.web"), &format!("web-{seq}"), seq, &content, content.clone());
    world.desire(&json!({"workloads": {"web": release}}));
}

/// The reports of the workload up to the one that says how the update ended.
fn outcome(world: &World) -> String {
    loop {
        let report = world.report();
        let Some(web) = report.pointer("/workloads/web") else { continue };
        if let Some(code) = web["code"].as_str() {
            return format!("{} {code}", web["running"]["id"].as_str().unwrap_or("-"));
        }
    }
}

#[test]
fn podman_runs_what_the_twin_says_and_again_after_the_plug_was_pulled() {
    let Some(podman) = Podman::new() else { return };
    let section = podman.section();
    let world = World::with(
        None,
        &[],
        &format!("[workload.web]\ninstaller = \"podman\"\n{section}steady_seconds = 1\n"),
    );
    let agent = world.start();
    desire(&world, 2, pod("two", SERVE));
    assert_eq!(outcome(&world), "web-2 ok", "{}", world.log());
    assert_eq!(podman.running(), ["two-main"]);

    desire(&world, 3, pod("three", "exit 1"));
    assert_eq!(outcome(&world), "web-2 unhealthy", "{}", world.log());
    assert_eq!(podman.running(), ["two-main"], "what ran before runs again");

    // The plug is pulled, and with it all containers end.
    desire(&world, 4, pod("four", SERVE));
    eventually("the next one runs", || podman.running() == ["four-main"]);
    agent.kill();
    podman.run(&["pod", "stop", "--all", "--time", "0"]);
    let agent = world.start();
    assert_eq!(outcome(&world), "web-4 ok", "{}", world.log());
    assert_eq!(podman.running(), ["four-main"]);
    assert!(agent.terminate().success());
}

#[cfg(feature = "kubernetes")]
#[test]
fn a_cluster_runs_what_the_twin_says_and_what_ran_before_if_that_fails() {
    let deployment = |image: &str| {
        format!(
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: web}}\nspec:\n  replicas: 2\n  \
             progressDeadlineSeconds: 2\n  selector: {{matchLabels: {{app: web}}}}\n  template:\n    \
             metadata: {{labels: {{app: web}}}}\n    spec: {{containers: [{{name: main, image: {image:?}}}]}}\n"
        )
    };
    let Some(server) = Server::start() else { return };
    let world = World::with(
        None,
        &[],
        &format!(
            "[workload.web]\ninstaller = \"kubernetes\"\nnamespace = \"default\"\nkubeconfig = {:?}\n",
            server.kubeconfig("admin")
        ),
    );
    let agent = world.start();
    desire(&world, 2, deployment("good/web:2"));
    assert_eq!(outcome(&world), "web-2 ok", "{}", world.log());
    desire(&world, 3, deployment("bad/web:3"));
    assert_eq!(outcome(&world), "web-2 unhealthy", "{}", world.log());
    desire(&world, 4, "kind: Deployment".to_owned());
    assert_eq!(outcome(&world), "web-2 payload_unfit", "{}", world.log());

    agent.kill();
    desire(&world, 5, deployment("good/web:5"));
    let agent = world.start();
    assert_eq!(outcome(&world), "web-5 ok", "{}", world.log());
    assert!(agent.terminate().success());
}
