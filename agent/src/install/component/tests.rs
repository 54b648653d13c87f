use std::fs;
use std::os::unix::fs::symlink;
use std::rc::Rc;

use super::*;
use crate::crash::testing::cut_at;
use crate::hooks::Hooks;
use crate::install::bench::{Bench, activate, archive, names, stage, stands};
use crate::target::Kind;

fn bench() -> Bench {
    let bench = Bench::new(Kind::Component, "app");
    fs::create_dir(bench.path("app")).expect("created");
    bench
}

/// What starts the component writes down which one.
fn options(bench: &Bench, more: &str) -> String {
    let script =
        format!("echo $FLEETWAVE_PHASE $(cat $FLEETWAVE_DIR/version) >>{}", bench.path("log").display());
    format!("dir = {:?}\nrestart_command = ['sh', '-c', '''{script}''']\n{more}", bench.path("app"))
}

fn component(bench: &Bench, more: &str) -> Rc<dyn Installer> {
    bench.installer::<Options>(&options(bench, more))
}

fn payload(version: &str) -> Vec<u8> {
    archive(&[("version", version.as_bytes())])
}

fn log(bench: &Bench) -> Vec<String> {
    let log = fs::read_to_string(bench.path("log")).unwrap_or_default();
    log.lines().map(str::to_owned).collect()
}

/// Has a release run on trial: what runs then, and what is committed.
async fn try_out(installer: &Rc<dyn Installer>, bench: &Bench, id: &str, seq: u64) -> (String, String) {
    let release = bench.release(id, seq, &payload(id));
    stage(installer, &release, &payload(id)).await.expect("staged");
    activate(installer).await
}

/// Installs a release for good.
async fn install(installer: &Rc<dyn Installer>, bench: &Bench, id: &str, seq: u64) {
    try_out(installer, bench, id, seq).await;
    Rc::clone(installer).healthy().await.expect("healthy");
    Rc::clone(installer).commit().await.expect("committed");
}

/// A device with `app-1`.
async fn with_one() -> (Bench, Rc<dyn Installer>) {
    let bench = bench();
    let installer = component(&bench, "");
    stands(&installer).await;
    install(&installer, &bench, "app-1", 1).await;
    (bench, installer)
}

fn version(bench: &Bench, link: &str) -> String {
    fs::read_to_string(bench.path("app").join(link).join("version")).expect("a release")
}

#[tokio::test]
async fn a_payload_is_kept_for_the_next_one_if_the_operator_wants_it() {
    let bench = bench();
    let keeping = component(&bench, "keep_payload = true");
    stands(&keeping).await;
    install(&keeping, &bench, "app-1", 1).await;
    let seeds = keeping.seeds();
    assert_eq!(seeds.len(), 1);
    assert_eq!(fs::read(&seeds[0].path).expect("kept"), payload("app-1"));
    install(&keeping, &bench, "app-2", 2).await;
    assert_eq!(fs::read(&seeds[0].path).expect("kept"), payload("app-2"), "one of them alone");
    // Not any more: the next one takes it away.
    let not = component(&bench, "");
    stands(&not).await;
    assert!(not.seeds().is_empty());
    install(&not, &bench, "app-3", 3).await;
    assert!(!seeds[0].path.exists());
}

#[tokio::test]
async fn a_release_is_switched_to_started_and_committed() {
    let bench = bench();
    let installer = component(&bench, "");
    assert_eq!(stands(&installer).await, ("app-0".into(), "app-0".into()), "what was installed");
    let release = bench.release("app-1", 1, &payload("1"));
    stage(&installer, &release, &payload("1")).await.expect("staged");
    assert!(!bench.path("app/current").exists() && log(&bench).is_empty(), "nothing runs yet");
    assert_eq!(activate(&installer).await, ("app-1".into(), "app-0".into()), "on trial");
    Rc::clone(&installer).healthy().await.expect("healthy");
    Rc::clone(&installer).commit().await.expect("committed");
    assert_eq!(log(&bench), ["activate 1"]);

    let installer = component(&bench, "");
    assert_eq!(stands(&installer).await, ("app-1".into(), "app-1".into()), "after a start, too");
    assert_eq!(log(&bench), ["activate 1"], "and it is not disturbed");
}

#[tokio::test]
async fn the_release_before_is_kept_older_ones_go_and_what_is_not_ours_stays() {
    let bench = bench();
    let installer = component(&bench, "");
    stands(&installer).await;
    fs::create_dir_all(bench.path("app/releases/by-hand")).expect("created");
    fs::write(bench.path("app/data"), "precious").expect("written");
    for seq in 1..=4 {
        install(&installer, &bench, &format!("app-{seq}"), seq).await;
    }
    let kept = ["app-3-3", "app-3-3.json", "app-4-4", "app-4-4.json", "by-hand"];
    assert_eq!(names(&bench.path("app/releases")), kept);
    assert_eq!((version(&bench, "current"), version(&bench, "previous")), ("app-4".into(), "app-3".into()));
    assert_eq!(fs::read(bench.path("app/data")).expect("there"), b"precious");
    assert!(!bench.path("state/download.partial").exists());
}

#[tokio::test]
async fn one_that_is_not_healthy_is_left_for_the_one_before() {
    let bench = bench();
    let check =
        "[health]\ncommand = ['sh', '-c', 'grep -q good $FLEETWAVE_DIR/version']\ndeadline_seconds = 1";
    let installer = component(&bench, check);
    stands(&installer).await;
    install(&installer, &bench, "good-1", 1).await;
    assert_eq!(try_out(&installer, &bench, "bad-2", 2).await, ("bad-2".into(), "good-1".into()));
    let error = Rc::clone(&installer).healthy().await.expect_err("unhealthy");
    assert!(matches!(&error, InstallError::Unhealthy(why) if why.contains("sh failed")), "{error}");
    Rc::clone(&installer).go_back().await.expect("back");
    assert_eq!(stands(&installer).await, ("good-1".into(), "good-1".into()));
    assert_eq!(log(&bench), ["activate good-1", "activate bad-2", "rollback good-1"]);
    installer.discard().expect("discarded");
    assert!(!bench.path("app/releases/bad-2-2").exists());
}

#[tokio::test]
async fn a_trial_that_its_agent_does_not_outlive_is_taken_back_once() {
    let (bench, installer) = with_one().await;
    try_out(&installer, &bench, "app-2", 2).await;

    let installer = component(&bench, "");
    assert_eq!(stands(&installer).await, ("app-1".into(), "app-1".into()));
    assert_eq!(version(&bench, "current"), "app-1");
    let installer = component(&bench, "");
    stands(&installer).await;
    assert_eq!(log(&bench)[2..], ["rollback app-1"], "once");
    // The machine may try it again: nothing is fetched or unpacked for that.
    assert_eq!(activate(&installer).await, ("app-2".into(), "app-1".into()));
}

#[tokio::test]
async fn a_power_cut_after_the_links_went_back_still_starts_what_was_committed() {
    let (bench, installer) = with_one().await;
    try_out(&installer, &bench, "app-2", 2).await;
    // As it is between the link and the start.
    fs::remove_file(bench.path("app/current")).expect("removed");
    symlink("releases/app-1-1", bench.path("app/current")).expect("linked");
    let installer = component(&bench, "");
    assert_eq!(stands(&installer).await, ("app-1".into(), "app-1".into()));
    assert_eq!(log(&bench)[2..], ["rollback app-1"]);
}

#[tokio::test]
async fn one_that_cannot_be_started_fails_its_trial_with_the_cause() {
    let bench = bench();
    let installer =
        bench.installer::<Options>(&format!("dir = {:?}\nrestart_command = ['false']", bench.path("app")));
    stands(&installer).await;
    let release = bench.release("app-1", 1, &payload("1"));
    stage(&installer, &release, &payload("1")).await.expect("staged");
    activate(&installer).await;
    let error = Rc::clone(&installer).healthy().await.expect_err("unhealthy");
    assert_eq!(error.to_string(), "false failed with exit status: 1");
}

#[tokio::test]
async fn the_first_release_of_all_leaves_nothing_behind_if_it_fails() {
    let bench = bench();
    let installer = component(&bench, "");
    stands(&installer).await;
    let release = bench.release("app-1", 1, &payload("1"));
    stage(&installer, &release, &payload("1")).await.expect("staged");
    activate(&installer).await;
    let installer = component(&bench, "");
    assert_eq!(stands(&installer).await, ("app-0".into(), "app-0".into()));
    assert!(fs::symlink_metadata(bench.path("app/current")).is_err(), "no link");
}

#[tokio::test]
async fn what_an_operator_linked_to_counts_as_installed_and_is_gone_back_to() {
    let bench = bench();
    fs::create_dir(bench.path("app/by-hand")).expect("created");
    fs::write(bench.path("app/by-hand/version"), "by-hand").expect("written");
    symlink("by-hand", bench.path("app/current")).expect("linked");
    let installer = component(&bench, "");
    assert_eq!(stands(&installer).await, ("app-0".into(), "app-0".into()));
    let release = bench.release("app-1", 1, &payload("1"));
    stage(&installer, &release, &payload("1")).await.expect("staged");
    activate(&installer).await;
    Rc::clone(&installer).go_back().await.expect("back");
    assert_eq!(version(&bench, "current"), "by-hand");
    assert_eq!(log(&bench), ["activate 1", "rollback by-hand"]);
}

#[tokio::test]
async fn a_committed_release_that_somebody_removed_counts_as_none_and_can_be_installed_again() {
    let (bench, _) = with_one().await;
    fs::remove_dir_all(bench.path("app/releases/app-1-1")).expect("removed");
    let installer = component(&bench, "");
    assert_eq!(stands(&installer).await, ("none".into(), "none".into()));
    install(&installer, &bench, "app-1", 1).await;
    assert_eq!(stands(&installer).await, ("app-1".into(), "app-1".into()));
}

#[tokio::test]
async fn a_directory_where_a_link_should_be_is_told_and_left() {
    let bench = bench();
    fs::create_dir(bench.path("app/current")).expect("created");
    let installer = component(&bench, "");
    let error = Rc::clone(&installer).standing().await.expect_err("no link");
    assert!(error.to_string().contains("is no link: move it into"), "{error}");
}

#[tokio::test]
async fn an_unfit_payload_is_refused_and_leaves_nothing() {
    let bench = bench();
    let installer = component(&bench, "max_bytes = 10");
    stands(&installer).await;
    for (payload, why) in [(archive(&[("big", &[0; 11])]), "max_bytes"), (b"text".to_vec(), "no archive")] {
        let release = bench.release("app-1", 1, &payload);
        let error = stage(&installer, &release, &payload).await.expect_err("unfit");
        assert!(matches!(&error, InstallError::Payload(text) if text.contains(why)), "{error}");
        assert!(names(&bench.path("app/releases")).is_empty());
        Rc::clone(&installer).activate().await.expect_err("nothing is staged");
    }
}

#[tokio::test]
async fn staging_that_is_cut_short_is_begun_again_and_swept() {
    let bench = bench();
    let installer = component(&bench, "");
    stands(&installer).await;
    let release = bench.release("app-1", 1, &payload("1"));
    fs::write(installer.place(&release).expect("a place").path, payload("1")).expect("written");
    let staging = Rc::clone(&installer).stage(release.clone());
    tokio::select! {
        biased;
        _ = staging => panic!("it takes more than one turn"),
        () = async {} => {}
    }
    let scrap = bench.path("app/releases/.app-1-1.1.1.new");
    fs::create_dir_all(&scrap).expect("created");
    stage(&installer, &release, &payload("1")).await.expect("staged");
    stands(&component(&bench, "")).await;
    assert_eq!(names(&bench.path("app/releases")), ["app-1-1", "app-1-1.json"]);
}

#[tokio::test]
async fn a_release_that_runs_is_not_overwritten() {
    let (bench, installer) = with_one().await;
    let release = bench.release("app-1", 1, &payload("another"));
    let error = stage(&installer, &release, &payload("another")).await.expect_err("it runs");
    assert_eq!(error.to_string(), "app-1-1 runs already");
    assert_eq!(version(&bench, "current"), "app-1");
}

#[test]
fn mistakes_in_the_section_are_told() {
    for (text, why) in [
        ("dir = 'app'", "an absolute path"),
        ("dir = '/app'\nunit = '--all'", "like app.service"),
        ("dir = '/app'\nunit = 'app'", "like app.service"),
        ("dir = '/app'\nunit_action = 'start'", "unknown variant"),
        ("dir = '/app'\nrestart_command = 'run'", "no shell runs it"),
        ("dir = '/app'\nowner = ':'", "user, or user:group"),
        ("", "missing field `dir`"),
    ] {
        let error = toml::from_str::<Options>(text).expect_err(text);
        assert!(error.message().contains(why), "{text}: {error}");
    }
}

// Hooks, around this installer as around any other.

fn hooked(bench: &Bench, more: &str) -> Rc<dyn Installer> {
    let log = bench.path("log");
    let say = format!("echo $FLEETWAVE_PHASE $FLEETWAVE_RELEASE hook >>{}", log.display());
    let hook = |name: &str| format!("{name} = ['sh', '-c', '''{say}''']\n");
    let all = ["before_install", "after_install", "before_activate", "after_commit", "after_rollback"];
    let text: String = all.into_iter().filter(|name| !more.contains(name)).map(hook).collect();
    let hooks: Hooks = toml::from_str(&format!("{text}{more}")).expect("well-formed");
    hooks.around(component(bench, ""), "components.app", bench.state())
}

#[tokio::test]
async fn hooks_run_around_the_steps() {
    let bench = bench();
    let installer = hooked(&bench, "");
    stands(&installer).await;
    install(&installer, &bench, "app-1", 1).await;
    assert_eq!(
        log(&bench),
        [
            "before_install app-1 hook",
            "after_install app-1 hook",
            "before_activate app-1 hook",
            "activate app-1",
            "after_commit app-1 hook"
        ]
    );
    stands(&hooked(&bench, "")).await;
    assert_eq!(log(&bench).len(), 5, "nothing is told twice");
    try_out(&installer, &bench, "app-2", 2).await;
    Rc::clone(&installer).go_back().await.expect("back");
    assert_eq!(log(&bench)[8..], ["activate app-2", "rollback app-1", "after_rollback app-2 hook"]);
}

#[tokio::test]
async fn a_hook_that_fails_before_a_step_stops_it() {
    let bench = bench();
    for (name, ran) in [("before_install", 0), ("after_install", 1), ("before_activate", 2)] {
        let installer = hooked(&bench, &format!("{name} = ['sh', '-c', 'echo not now >&2; exit 1']"));
        stands(&installer).await;
        let release = bench.release("app-1", 1, &payload("1"));
        let error = match stage(&installer, &release, &payload("1")).await {
            Ok(()) => Rc::clone(&installer).activate().await.expect_err("stopped"),
            Err(error) => error,
        };
        let told = format!("the hook {name}: sh failed with exit status: 1: not now");
        assert!(matches!(&error, InstallError::Hook(why) if *why == told), "{error}");
        assert_eq!(log(&bench).len(), ran, "{:?}", log(&bench));
        let _ = fs::remove_file(bench.path("log"));
        assert!(!bench.path("app/current").exists(), "what runs is not touched");
    }
}

#[tokio::test]
async fn the_end_of_a_trial_is_told_after_a_power_cut_too() {
    let bench = bench();
    let installer = hooked(&bench, "");
    stands(&installer).await;
    let release = bench.release("app-1", 1, &payload("1"));
    stage(&installer, &release, &payload("1")).await.expect("staged");
    activate(&installer).await;
    fs::remove_file(bench.path("log")).expect("removed");
    stands(&hooked(&bench, "")).await;
    assert_eq!(log(&bench), ["rollback", "after_rollback app-1 hook"]);

    let inner = component(&bench, "");
    let installer = hooked(&bench, "");
    stands(&installer).await;
    activate(&installer).await;
    // The power goes between the commit and its hook.
    inner.commit().await.expect("committed");
    stands(&hooked(&bench, "")).await;
    assert_eq!(log(&bench).last().map(String::as_str), Some("after_commit app-1 hook"));
}

/// What a step of an update without a machine may have come to by the next start.
fn run(work: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(work);
}

async fn update(installer: &Rc<dyn Installer>, bench: &Bench, keep: bool) {
    stands(installer).await;
    let release = bench.release("app-2", 2, &payload("app-2"));
    stage(installer, &release, &payload("app-2")).await.expect("staged");
    activate(installer).await;
    Rc::clone(installer).healthy().await.expect("healthy");
    if keep {
        Rc::clone(installer).commit().await.expect("committed");
    } else {
        Rc::clone(installer).go_back().await.expect("back");
    }
}

/// Cuts the power at each point of an update in turn; gives the names of the points.
fn cut_everywhere(keep: bool) -> Vec<&'static str> {
    let mut points = Vec::new();
    loop {
        let bench = bench();
        run(async { install(&component(&bench, ""), &bench, "app-1", 1).await });
        let number = u32::try_from(points.len()).expect("few") + 1;
        let cut = cut_at(number, || run(update(&hooked(&bench, ""), &bench, keep)));
        run(async {
            let installer = hooked(&bench, "");
            let (running, committed) = stands(&installer).await;
            assert_eq!(running, committed, "after a start nothing is on trial; cut at {cut:?}");
            assert_eq!(version(&bench, "current"), running, "cut at {cut:?}");
            let log = log(&bench);
            let started = log.iter().rfind(|line| !line.ends_with("hook")).expect("something was started");
            assert!(
                started.ends_with(&running),
                "{started} was started last, {running} stands; cut at {cut:?}"
            );
            let begun = log.iter().any(|line| line == "activate app-2");
            let told =
                log.iter().any(|line| line.starts_with("after_commit") || line.starts_with("after_rollback"));
            assert!(told || !begun, "the end of a trial is told; cut at {cut:?}: {log:?}");
            if committed == "app-1" {
                update(&installer, &bench, true).await;
                assert_eq!(stands(&installer).await, ("app-2".into(), "app-2".into()));
            }
            let kept = ["app-1-1", "app-1-1.json", "app-2-2", "app-2-2.json"];
            assert_eq!(names(&bench.path("app/releases")), kept, "nothing is left over; cut at {cut:?}");
        });
        match cut {
            Some(point) => points.push(point),
            None => return points,
        }
    }
}

#[test]
fn wherever_the_power_goes_what_was_committed_is_what_runs() {
    let points = cut_everywhere(true);
    assert!(points.len() >= 12 && points.contains(&"switch: committed"), "{points:?}");
    let points = cut_everywhere(false);
    assert!(points.len() >= 12 && points.contains(&"switch: links back"), "{points:?}");
}
