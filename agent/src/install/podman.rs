//! `installer = "podman"`: pods of a Kubernetes manifest by `podman kube play`, where there is no cluster.
//!
//! A payload is the manifest, or an archive of the manifest and images that `podman load` takes. Images come in while
//! what runs is not touched yet. What runs is what podman says: each container has annotations with its target and
//! release, and pods without them are somebody else's.

mod manifest;

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use serde::Deserialize;
use tokio::time::sleep;

use super::component::unpack_apart;
use super::switch::{Runner, Switch, Version};
use super::unpack::{Rules, is_archive};
use super::{InstallError, Installer, Site};
use crate::command::{About, Program};
use crate::config::Rows;
use crate::health::{Checks, Verdict};
use crate::{crash, files};

/// The manifest of a release.
const MANIFEST: &str = "manifest.yaml";
/// The images that came with a release.
const LOADED: &str = "loaded";
/// The longest manifest.
const LONGEST: u64 = 1 << 20;

/// The installer's part of a workload's section.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Options {
    /// The program, with options that go before its subcommands.
    podman: Words,
    /// Options of `podman kube play`.
    play_options: Vec<String>,
    /// Whether images may be pulled that are neither in the payload nor on the device: bytes that no cap counts.
    pull: bool,
    /// How long one call of podman may take.
    timeout_seconds: u64,
    /// How a release on trial is judged, beside its containers' states.
    health: Checks,
    /// How long its containers must have run.
    steady_seconds: u64,
    /// The most bytes of a release with its images.
    max_bytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            podman: Words(vec!["podman".to_owned()]),
            play_options: Vec::new(),
            pull: false,
            timeout_seconds: 300,
            health: Checks::default(),
            steady_seconds: 5,
            max_bytes: 4 << 30,
        }
    }
}

/// A program and what always follows it.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "Vec<String>")]
struct Words(Vec<String>);

impl TryFrom<Vec<String>> for Words {
    type Error = &'static str;

    fn try_from(words: Vec<String>) -> Result<Self, Self::Error> {
        match words.first() {
            Some(program) if !program.is_empty() => Ok(Self(words)),
            _ => Err("podman is a program and its global options: at least the program"),
        }
    }
}

impl super::Options for Options {
    fn trial(&self) -> Option<(String, u64)> {
        let runs = format!("its containers run for {} s", self.steady_seconds);
        let checks: Vec<String> = std::iter::once(runs).chain(self.health.name()).collect();
        Some((checks.join(" and "), self.health.deadline_seconds))
    }

    fn describe(&self) -> Rows {
        let pull = if self.pull {
            "fetched by podman if they are missing: no cap counts that"
        } else {
            "from the release"
        };
        vec![("program", self.podman.0[0].clone()), ("images", pull.to_owned())]
    }

    fn installer(&self, site: Site) -> Rc<dyn Installer> {
        let dir = site.dir.clone();
        let podman = Podman {
            target: site.target.as_str().to_owned(),
            played: dir.join("played"),
            options: self.clone(),
        };
        Rc::new(Switch::new(podman, dir, site))
    }
}

#[derive(Debug)]
struct Podman {
    target: String,
    /// The boot of the machine in which something was played last.
    played: PathBuf,
    options: Options,
}

/// A container of ours, as podman describes it.
#[derive(Debug, PartialEq, Eq)]
struct Container {
    name: String,
    pod: String,
    /// The name of the release that it belongs to.
    version: String,
    status: String,
    exit_code: i64,
    restarts: u64,
    health: String,
}

#[derive(Deserialize)]
struct Inspected {
    target: Option<String>,
    version: Option<String>,
    name: String,
    pod: String,
    status: String,
    exit: i64,
    restarts: u64,
    health: String,
}

/// What is asked about a container: a line of JSON.
const FORMAT: &str = concat!(
    r#"{"target":{{json (index .Config.Annotations "fleetwave.target")}},"#,
    r#""version":{{json (index .Config.Annotations "fleetwave.version")}},"#,
    r#""name":{{json .Name}},"pod":{{json .Pod}},"status":{{json .State.Status}},"exit":{{json .State.ExitCode}},"#,
    r#""restarts":{{json .RestartCount}},"health":{{json .State.Health.Status}}}"#
);

fn name(version: &Version) -> String {
    version.dir.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Another one after each start of the machine.
fn boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default()
}

impl Podman {
    fn podman(&self, words: &[&str]) -> Program {
        let (program, always) = self.options.podman.0.split_first().expect("checked when it was read");
        Program::new(program)
            .args(always)
            .args(words)
            .within(Duration::from_secs(self.options.timeout_seconds.max(1)))
    }

    /// The containers of this target, of whatever release.
    async fn containers(&self) -> Result<Vec<Container>, InstallError> {
        let ids = self.podman(&["ps", "--all", "--quiet", "--no-trunc"]).succeed().await?;
        let ids = String::from_utf8_lossy(&ids).into_owned();
        let mut ours = Vec::new();
        // One that goes while it is asked for fails the whole answer, so each is asked for alone.
        for id in ids.split_whitespace() {
            let asked = self.podman(&["container", "inspect", "--format", FORMAT, id]).run().await?;
            if !asked.status.success() {
                continue;
            }
            let inspected: Inspected = serde_json::from_slice(&asked.output).map_err(|error| {
                InstallError::Command(format!("podman describes the container {id} in another way: {error}"))
            })?;
            if inspected.target.as_deref() == Some(&self.target) {
                ours.push(Container {
                    name: inspected.name,
                    pod: inspected.pod,
                    version: inspected.version.unwrap_or_default(),
                    status: inspected.status,
                    exit_code: inspected.exit,
                    restarts: inspected.restarts,
                    health: inspected.health,
                });
            }
        }
        Ok(ours)
    }

    /// Ends what runs of this target: what a manifest names, and whatever else is marked as ours.
    async fn take_down(&self, from: Option<&Version>) -> Result<(), InstallError> {
        if let Some(manifest) = from.map(|from| from.dir.join(MANIFEST)).filter(|path| path.is_file()) {
            // It fails if a pod is not there: what counts is what is left.
            let ended = self.podman(&["kube", "down"]).arg(&manifest).run().await?;
            tracing::debug!(status = %ended.status, "podman kube down");
        }
        crash::point("podman: half down");
        let mut pods: Vec<_> = self.containers().await?.into_iter().map(|container| container.pod).collect();
        pods.sort();
        pods.dedup();
        if !pods.is_empty() {
            let remove = self.podman(&["pod", "rm", "--force"]).args(&pods);
            remove.succeed().await?;
        }
        crash::point("podman: down");
        Ok(())
    }

    async fn play(&self, version: &Version) -> Result<(), InstallError> {
        let mut play = self.podman(&["kube", "play", "--replace", "--quiet"]);
        for (name, value) in [("target", &self.target), ("version", &name(version))] {
            play = play.arg("--annotation").arg(format!("fleetwave.{name}={value}"));
        }
        play.args(&self.options.play_options).arg(version.dir.join(MANIFEST)).succeed().await?;
        crash::point("podman: played");
        files::replace(&self.played, boot().as_bytes())
            .map_err(InstallError::io(format!("writing {}", self.played.display())))
    }

    /// Takes the images of an archive over. What podman has, the release need not keep.
    async fn load(&self, dir: &Path) -> Result<(), InstallError> {
        let mut loaded = String::new();
        for image in
            manifest::archives(dir).map_err(InstallError::io(format!("reading {}", dir.display())))?
        {
            let said = self.podman(&["load", "--quiet", "--input"]).arg(&image).succeed().await?;
            for line in String::from_utf8_lossy(&said).lines() {
                if let Some((_, name)) = line.split_once(": ") {
                    loaded.push_str(name.trim());
                    loaded.push('\n');
                }
            }
            fs::remove_file(&image).map_err(InstallError::io(format!("removing {}", image.display())))?;
            crash::point("podman: image loaded");
        }
        fs::write(dir.join(LOADED), loaded).map_err(InstallError::io(format!("writing in {}", dir.display())))
    }

    /// Sees to it that nothing has to be fetched when the manifest is played.
    async fn provide(&self, text: &str) -> Result<(), InstallError> {
        for image in manifest::images(text) {
            let exists = self.podman(&["image", "exists", &image]).run().await?;
            if exists.status.success() {
                continue;
            }
            if !self.options.pull {
                return Err(InstallError::Refused(format!(
                    "the image {image} is neither in the payload nor on the device, and `pull` does not allow to \
                     fetch it"
                )));
            }
            self.podman(&["pull", "--quiet", &image]).succeed().await?;
        }
        Ok(())
    }

    async fn look(&self, running: &Version) -> Verdict {
        match self.containers().await {
            Ok(containers) => judge(&containers, &name(running)),
            Err(error) => Verdict::NotYet(error.to_string()),
        }
    }
}

/// What the states of the containers say.
fn judge(containers: &[Container], version: &str) -> Verdict {
    let mut verdict = Verdict::NotYet("it has no containers".to_owned());
    for container in containers.iter().filter(|container| container.version == version) {
        let name = &container.name;
        match (container.status.as_str(), container.health.as_str()) {
            _ if container.restarts > 0 => {
                return Verdict::Broken(format!("{name} ended by itself, and was started again"));
            }
            ("running", "unhealthy") => return Verdict::Broken(format!("{name} is unhealthy")),
            ("running", "starting") => return Verdict::NotYet(format!("{name} is not healthy yet")),
            ("running", _) => verdict = Verdict::Healthy,
            // A job that is done.
            ("exited" | "stopped", _) if container.exit_code == 0 => verdict = Verdict::Healthy,
            ("exited" | "stopped", _) => {
                return Verdict::Broken(format!("{name} ended with {}", container.exit_code));
            }
            (status, _) => return Verdict::NotYet(format!("{name} is {status}")),
        }
    }
    verdict
}

impl Runner for Podman {
    async fn unpack(&self, payload: &Path, into: &Path) -> Result<(), InstallError> {
        let path = into.join(MANIFEST);
        let failed = |what: &str| InstallError::io(format!("{what} {}", path.display()));
        if is_archive(payload)? {
            let rules = Rules { files: 1000, bytes: self.options.max_bytes, setuid: false, owner: None };
            unpack_apart(payload, into, rules).await?;
            manifest::find(into, &path)?;
        } else {
            let length = fs::metadata(payload).map_err(failed("making"))?.len();
            if length > LONGEST {
                return Err(InstallError::Payload(format!(
                    "a manifest of {length} bytes: {LONGEST} at the most"
                )));
            }
            fs::create_dir(into).and_then(|()| fs::copy(payload, &path)).map_err(failed("making"))?;
        }
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return Err(InstallError::Payload("it is neither text nor an archive".to_owned()));
            }
            read => read.map_err(failed("reading"))?,
        };
        if !manifest::plausible(&text) {
            let why = "it is no Kubernetes manifest: there is no `kind` in it".to_owned();
            return Err(InstallError::Payload(why));
        }
        self.load(into).await?;
        self.provide(&text).await?;
        let synced = fs::File::open(into).and_then(|dir| Ok(rustix::fs::syncfs(dir)?));
        synced.map_err(failed("syncing"))
    }

    async fn start(&self, from: Option<&Version>, to: Option<&Version>, _: &str) -> Result<(), InstallError> {
        self.take_down(from).await?;
        match to {
            Some(to) => self.play(to).await,
            None => Ok(()),
        }
    }

    /// After a start of the machine no pod runs, unless something else has started it.
    async fn is_down(&self, committed: &Version) -> bool {
        let containers = match self.containers().await {
            Ok(containers) => containers,
            Err(error) => {
                tracing::error!(target = self.target, %error, "it cannot be told what runs");
                return false;
            }
        };
        let name = name(committed);
        if containers.is_empty() || containers.iter().any(|container| container.version != name) {
            return true;
        }
        let same_boot = fs::read_to_string(&self.played).is_ok_and(|played| played == boot());
        // One that ended since is podman's to start again, or the operator's to leave.
        !same_boot && containers.iter().any(|container| container.status != "running")
    }

    async fn healthy(&self, running: &Version) -> Result<(), InstallError> {
        let about = About::reference(&self.target, &running.reference);
        let env = [("FLEETWAVE_DIR", OsString::from(&running.dir))];
        let health = &self.options.health;
        let look = async || match self.look(running).await {
            Verdict::Healthy => health.ask(&about, &env).await,
            verdict => verdict,
        };
        health.until(look).await?;
        sleep(Duration::from_secs(self.options.steady_seconds)).await;
        match self.look(running).await {
            Verdict::Healthy => Ok(()),
            Verdict::NotYet(why) | Verdict::Broken(why) => Err(InstallError::Unhealthy(why)),
        }
    }

    /// The images that came with it, unless something uses them.
    async fn forget(&self, dir: &Path) {
        let Ok(loaded) = fs::read_to_string(dir.join(LOADED)) else { return };
        for image in loaded.lines() {
            match self.podman(&["image", "rm", image]).run().await {
                Ok(ended) => tracing::debug!(image, status = %ended.status, "podman image rm"),
                Err(error) => tracing::warn!(image, %error, "an image is left"),
            }
        }
    }
}

#[cfg(test)]
mod real_tests;

#[cfg(test)]
mod tests {
    use super::*;

    fn container(status: &str) -> Container {
        Container {
            name: "web-main".into(),
            pod: "p".into(),
            version: "web-2-2".into(),
            status: status.into(),
            exit_code: 0,
            restarts: 0,
            health: String::new(),
        }
    }

    fn said(containers: &[Container]) -> String {
        match judge(containers, "web-2-2") {
            Verdict::Healthy => "healthy".into(),
            Verdict::NotYet(why) => format!("not yet: {why}"),
            Verdict::Broken(why) => format!("broken: {why}"),
        }
    }

    #[test]
    fn a_release_works_if_all_of_its_containers_do() {
        assert_eq!(said(&[]), "not yet: it has no containers");
        assert_eq!(said(&[container("running"), container("exited")]), "healthy");
        assert_eq!(said(&[container("running"), container("created")]), "not yet: web-main is created");
        let failed = Container { exit_code: 1, ..container("exited") };
        assert_eq!(said(&[container("running"), failed]), "broken: web-main ended with 1");
        let looping = Container { restarts: 1, ..container("running") };
        assert_eq!(said(&[looping]), "broken: web-main ended by itself, and was started again");
        let sick = Container { health: "unhealthy".into(), ..container("running") };
        assert_eq!(said(&[sick]), "broken: web-main is unhealthy");
        let other = Container { version: "web-1-1".into(), ..container("running") };
        assert_eq!(said(&[other]), "not yet: it has no containers");
    }
}
