//! With the real podman, its storage and its images in a directory of the test's own.

use std::time::Duration;

use tokio::time::timeout;

use super::*;
use crate::install::bench::{Bench, activate, archive, stage, stands};
use crate::pods::{Podman, SERVE, pod};
use crate::target::Kind;

struct Pods {
    bench: Bench,
    podman: Podman,
}

impl Pods {
    fn new() -> Option<Self> {
        Some(Self { podman: Podman::new()?, bench: Bench::new(Kind::Workload, "web") })
    }

    fn podman(&self, words: &[&str]) -> String {
        self.podman.run(words)
    }

    fn running(&self) -> Vec<String> {
        self.podman.running()
    }

    fn installer(&self, more: &str) -> Rc<dyn Installer> {
        let section = self.podman.section();
        self.bench.installer::<Options>(&format!("{section}steady_seconds = 1\n{more}"))
    }

    async fn stage(&self, installer: &Rc<dyn Installer>, id: &str, seq: u64, payload: &[u8]) {
        let release = self.bench.release(id, seq, payload);
        stage(installer, &release, payload).await.expect("staged");
    }

    async fn install(&self, installer: &Rc<dyn Installer>, id: &str, seq: u64, payload: &[u8]) {
        self.stage(installer, id, seq, payload).await;
        activate(installer).await;
        Rc::clone(installer).healthy().await.expect("healthy");
        Rc::clone(installer).commit().await.expect("committed");
    }
}

#[tokio::test]
async fn pods_are_replaced_and_ones_that_fail_leave_the_ones_before() {
    let Some(pods) = Pods::new() else { return };
    let installer = pods.installer("[health]\ndeadline_seconds = 20\nretry_seconds = 1");
    stands(&installer).await;
    pods.install(&installer, "web-1", 1, pod("one", SERVE).as_bytes()).await;
    assert_eq!(pods.running(), ["one-main"]);

    // Another name: nothing of the one before may stay.
    pods.install(&installer, "web-2", 2, pod("two", SERVE).as_bytes()).await;
    assert_eq!(pods.running(), ["two-main"]);

    pods.stage(&installer, "web-3", 3, pod("two", "exit 1").as_bytes()).await;
    assert_eq!(pods.running(), ["two-main"], "staging disturbs nothing");
    assert_eq!(activate(&installer).await, ("web-3".into(), "web-2".into()));
    let error = Rc::clone(&installer).healthy().await.expect_err("unhealthy").to_string();
    assert_eq!(error, "two-main ended with 1");
    Rc::clone(&installer).go_back().await.expect("back");
    assert_eq!(stands(&installer).await, ("web-2".into(), "web-2".into()));
    assert_eq!(pods.running(), ["two-main"]);

    // One that podman itself does not start.
    let missing = pod("four", SERVE).replace("/bin/sh", "/bin/nothing");
    pods.stage(&installer, "web-4", 4, missing.as_bytes()).await;
    activate(&installer).await;
    let error = Rc::clone(&installer).healthy().await.expect_err("unhealthy").to_string();
    assert!(error.starts_with("env failed"), "{error}");
    Rc::clone(&installer).go_back().await.expect("back");
    assert_eq!(pods.running(), ["two-main"]);
}

#[tokio::test]
async fn images_come_with_the_release_and_go_with_it() {
    let Some(pods) = Pods::new() else { return };
    let installer = pods.installer("");
    stands(&installer).await;
    let payload = |n: u64| {
        let (image, file) = (format!("localhost/own:{n}"), pods.bench.path("own.tar"));
        pods.podman(&["tag", "localhost/app:1", &image]);
        pods.podman(&["save", "--quiet", "--output", file.to_str().expect("text"), &image]);
        pods.podman(&["untag", "localhost/app:1", &image]);
        let manifest = pod("web", SERVE).replace("localhost/app:1", &image);
        let saved = std::fs::read(&file).expect("saved");
        std::fs::remove_file(file).expect("removed");
        archive(&[("web.yaml", manifest.as_bytes()), ("images/own.tar", &saved)])
    };
    for n in 1..=3 {
        pods.install(&installer, &format!("web-{n}"), n, &payload(n)).await;
    }
    assert_eq!(pods.running(), ["web-main"]);
    let images = pods.podman(&["images", "--format", "{{.Repository}}:{{.Tag}}"]);
    let mut images: Vec<_> = images.lines().filter(|name| name.contains("/own:")).collect();
    images.sort_unstable();
    assert_eq!(images, ["localhost/own:2", "localhost/own:3"], "the release before is kept");
    let stored = crate::install::bench::names(&pods.bench.path("state/releases/web-3-3/images"));
    assert!(stored.is_empty(), "podman has them: {stored:?}");
}

#[tokio::test]
async fn an_image_that_would_have_to_be_fetched_is_refused_before_anything_is_touched() {
    let Some(pods) = Pods::new() else { return };
    let installer = pods.installer("");
    stands(&installer).await;
    let manifest = pod("web", SERVE).replace("localhost/app:1", "registry.invalid/app:9");
    let release = pods.bench.release("web-1", 1, manifest.as_bytes());
    let error = stage(&installer, &release, manifest.as_bytes()).await.expect_err("refused");
    assert!(
        matches!(&error, InstallError::Refused(why) if why.contains("registry.invalid/app:9")),
        "{error}"
    );
    for (payload, why) in
        [(&b"#!/bin/sh\n"[..], "no Kubernetes manifest"), (&archive(&[("x", b"")])[..], "no manifest")]
    {
        let release = pods.bench.release("web-1", 1, payload);
        let error = stage(&installer, &release, payload).await.expect_err("unfit");
        assert!(matches!(&error, InstallError::Payload(text) if text.contains(why)), "{error}");
    }
}

#[tokio::test]
async fn wherever_it_is_cut_off_the_next_start_runs_what_was_committed() {
    let Some(pods) = Pods::new() else { return };
    let installer = pods.installer("");
    stands(&installer).await;
    pods.install(&installer, "web-1", 1, pod("one", SERVE).as_bytes()).await;
    for after in [1, 60, 200, 400, 700, 1100] {
        let installer = pods.installer("");
        assert_eq!(stands(&installer).await, ("web-1".into(), "web-1".into()));
        pods.stage(&installer, "web-2", 2, pod("two", SERVE).as_bytes()).await;
        // podman dies with it, in the middle of what it does.
        let cut = timeout(Duration::from_millis(after), Rc::clone(&installer).activate()).await;
        drop(installer);
        assert_eq!(
            stands(&pods.installer("")).await,
            ("web-1".into(), "web-1".into()),
            "{after} ms: {cut:?}"
        );
        assert_eq!(pods.running(), ["one-main"], "{after} ms: {cut:?}");
    }
}

#[tokio::test]
async fn what_was_committed_is_played_again_after_a_start_of_the_machine() {
    let Some(pods) = Pods::new() else { return };
    let installer = pods.installer("");
    stands(&installer).await;
    pods.install(&installer, "web-1", 1, pod("one", SERVE).as_bytes()).await;
    pods.podman(&["pod", "stop", "one"]);
    stands(&pods.installer("")).await;
    assert!(pods.running().is_empty(), "the same boot: somebody stopped it");
    std::fs::write(pods.bench.path("state/played"), "another boot").expect("written");
    stands(&pods.installer("")).await;
    assert_eq!(pods.running(), ["one-main"]);
    pods.podman(&["pod", "rm", "--force", "one"]);
    stands(&pods.installer("")).await;
    assert_eq!(pods.running(), ["one-main"], "gone is gone, whoever removed it");
}
