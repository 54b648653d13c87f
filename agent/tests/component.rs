//! A component from the twin to its service: archives, a systemd unit, hooks, a way back.
//!
//! `systemctl` is a script here: it writes down what it is told, and answers as systemd would for a unit that runs what
//! `current` leads to, and that has `StartLimitBurst=1`.

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use fleetwave_hub::blob::Content;
use serde_json::{Value, json};
use support::World;

/// A device with the component `app`.
struct Device {
    world: World,
    tools: tempfile::TempDir,
}

impl Device {
    fn new(sections: &str) -> Self {
        let tools = tempfile::tempdir().expect("a directory");
        let dir = tools.path().join("app");
        fs::create_dir(&dir).expect("created");
        let component = format!(
            "[component.app]\ninstaller = \"component\"\ninstalled = {{ id = \"app-1\", seq = 1 }}\ndir = {dir:?}\n\
             unit = \"app.service\"\nsteady_seconds = 1\n{sections}"
        );
        let mut world = World::with(None, &[], &component);
        let path = format!("{}:{}", tools.path().display(), std::env::var("PATH").unwrap_or_default());
        world.environment.push(("PATH", path));
        let systemctl = format!(
            "#!/bin/sh\ncd {tools}\nversion=$(cat app/current/version 2>/dev/null)\necho \"$@\" >>log\n\
             case \"$1 $version\" in\nreset-failed*) rm -f failed;;\n\
             restart*) test ! -e failed || exit 1; echo $version >>started;;\nesac\n\
             case \"$1 $version\" in\n\
             restart*crashes) touch failed; exit 1;;\nrestart*loops | restart*fails) touch failed;;\n\
             show*loops) echo ActiveState=active; echo NRestarts=3;;\n\
             show*fails) echo ActiveState=failed; echo NRestarts=0;;\n\
             show*) echo ActiveState=active; echo NRestarts=0;;\nesac\n",
            tools = tools.path().display()
        );
        let path = tools.path().join("systemctl");
        fs::write(&path, systemctl).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("it can be run");
        Self { world, tools }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.tools.path().join("app").join(name)
    }

    fn version(&self) -> String {
        fs::read_to_string(self.path("current/version")).unwrap_or_default()
    }

    /// What systemd was told to do.
    fn told(&self) -> Vec<String> {
        let log = fs::read_to_string(self.tools.path().join("log")).unwrap_or_default();
        let does = |line: &&str| !line.starts_with("show") && !line.starts_with("reset-failed");
        log.lines().filter(does).map(str::to_owned).collect()
    }

    /// What was started last.
    fn started(&self) -> String {
        let started = fs::read_to_string(self.tools.path().join("started")).unwrap_or_default();
        started.lines().last().unwrap_or_default().to_owned()
    }

    fn desire(&self, seq: u64, payload: Vec<u8>) {
        let content = Content::Bytes(payload.into());
        let id = format!("app-{seq}");
        let release = self.world.sign(Some("components.app"), &id, seq, &content, content.clone());
        self.world.desire(&json!({"components": {"app": release}}));
    }

    /// The reports of the component up to the one that says how the update ended.
    fn outcome(&self) -> String {
        loop {
            let report = self.world.report();
            let Some(app) = report.pointer("/components/app") else { continue };
            if let Some(code) = app["code"].as_str() {
                return format!("{} {code}", app["running"]["id"].as_str().unwrap_or("-"));
            }
        }
    }
}

/// An archive of a release with this version, compressed.
fn payload(version: &str) -> Vec<u8> {
    let mut tar = tar::Builder::new(zstd::Encoder::new(Vec::new(), 3).expect("an encoder"));
    let mut header = tar::Header::new_gnu();
    header.set_size(version.len() as u64);
    header.set_mode(0o644);
    tar.append_data(&mut header, "version", version.as_bytes()).expect("a vector takes it");
    tar.into_inner().and_then(zstd::Encoder::finish).expect("a vector takes it")
}

#[test]
fn a_component_takes_its_releases_and_leaves_those_that_do_not_work() {
    let device = Device::new("");
    let agent = device.world.start();
    device.desire(2, payload("good"));
    assert_eq!(device.outcome(), "app-2 ok", "{}", device.world.log());
    assert_eq!((device.version(), device.told()), ("good".into(), vec!["restart -- app.service".into()]));

    for (seq, version) in [(3, "fails"), (4, "loops"), (5, "crashes")] {
        device.desire(seq, payload(version));
        assert_eq!(device.outcome(), "app-2 unhealthy", "{}", device.world.log());
        assert_eq!(device.version(), "good", "{version}");
        assert_eq!(device.started(), "good", "although systemd starts no unit that {version} again");
    }
    assert_eq!(device.told().len(), 7, "each was started, and the one before after it: {:?}", device.told());
    let log = device.world.log();
    for why in ["app.service is failed", "ended by itself", "systemctl failed"] {
        assert!(log.contains(why), "{why}: {log}");
    }

    device.desire(6, b"no archive".to_vec());
    assert_eq!(device.outcome(), "app-2 payload_unfit", "{}", device.world.log());
    assert_eq!(device.told().len(), 7, "and nothing was restarted");
    assert!(agent.terminate().success());
}

#[test]
fn an_agent_that_dies_on_trial_comes_back_with_the_release_before_and_tries_again() {
    // The first check kills its agent.
    let marks = tempfile::tempdir().expect("a directory");
    let check = format!("mkdir {0} 2>/dev/null && kill -9 $PPID; true", marks.path().join("first").display());
    let device = Device::new(&format!("health = {{ command = [\"sh\", \"-c\", {check:?}] }}\n"));
    device.desire(2, payload("new"));
    assert!(!device.world.run_once().success());
    assert_eq!(device.version(), "new", "as the power cut left it");
    assert!(device.world.run_once().success(), "{}", device.world.log());
    assert_eq!(device.version(), "new");
    // New, away from it (there was nothing before), and new again.
    assert_eq!(device.told(), ["restart -- app.service", "stop -- app.service", "restart -- app.service"]);
    let status: Value = json!(device.world.status());
    assert!(status.as_str().is_some_and(|status| status.contains("app-2 (seq 2)")), "{status}");
}

#[test]
fn a_hook_stops_an_update_and_the_cause_is_reported() {
    for hook in ["before_install", "after_install", "before_activate"] {
        let hooks =
            format!("[component.app.hooks]\n{hook} = [\"sh\", \"-c\", \"echo not now >&2; exit 1\"]\n");
        let device = Device::new(&hooks);
        device.desire(2, payload("new"));
        assert_eq!(device.world.run_once().code(), Some(3), "{}", device.world.log());
        assert_eq!(device.outcome(), "app-1 hook_failed", "{hook}: {}", device.world.log());
        assert!(device.told().is_empty() && device.world.log().contains(&format!("the hook {hook}")));
    }
}

#[test]
fn a_workload_that_holds_a_lock_is_not_interrupted() {
    let dir = tempfile::tempdir().expect("a directory");
    let lock = dir.path().join("lock");
    fs::write(&lock, "reason = 'the arm is moving'").expect("written");
    let device = Device::new(&format!("[locks]\nfiles = [{lock:?}]\nretry_seconds = 1\n"));
    device.desire(2, payload("new"));
    let agent = device.world.start();
    support::eventually("the lock is asked", || device.world.log().contains("the arm is moving"));
    assert!(device.told().is_empty() && device.path("releases/app-2-2").is_dir(), "it lies ready");
    fs::remove_file(&lock).expect("removed");
    assert_eq!(device.outcome(), "app-2 ok", "{}", device.world.log());
    assert!(agent.terminate().success());
}
