//! Workloads in a Kubernetes cluster, such as the K3s of the device: a release is a manifest, put there by server-side
//! apply and judged by its rollout.
//!
//! Nothing of the trial goes away with a power cut: the cluster goes on with what was applied. So there is a record of
//! what is on trial, written before the first object is; a start that finds all objects of the trial applied says that
//! it runs, and one that finds only some applies again what was committed. Each object carries the release that it is
//! of, so that what runs is read from the cluster.

mod access;
mod cluster;
mod manifest;
mod records;
mod rollout;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use fleetwave_agent_core::Release;
use serde::Deserialize;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::{Activated, InstallError, Installer, Later, Place, Reference, Site, Standing};
use crate::config::Rows;
use crate::target::Target;
use cluster::{Cluster, ClusterError};
use manifest::{Item, Mark};
use records::{Committed, Records, Staged, Trial};
use rollout::{Rollout, rollout};

/// How long a look at the cluster may take that nothing depends on.
const GLANCE: Duration = Duration::from_secs(5);
/// Pauses between looks at a rollout: the first, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// The installer's part of a target's section.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Options {
    /// The namespace of its objects. It has to be there.
    namespace: String,
    /// How to get at the cluster; without it as K3s has it, or from within the cluster.
    #[serde(default)]
    kubeconfig: Option<PathBuf>,
    /// The context in it; without it the current one.
    #[serde(default)]
    context: Option<String>,
    /// How long each step may take: applying, and the rollout.
    #[serde(default = "default_timeout")]
    timeout_seconds: u64,
    /// Whether a release takes fields over that others hold.
    #[serde(default)]
    force: bool,
    /// The kinds that a release may have, as `Deployment.apps`; without it what workloads are made of.
    #[serde(default = "default_kinds")]
    kinds: BTreeSet<String>,
}

const fn default_timeout() -> u64 {
    300
}

fn default_kinds() -> BTreeSet<String> {
    manifest::USUAL_KINDS.into_iter().map(str::to_owned).collect()
}

impl super::Options for Options {
    fn trial(&self) -> Option<(String, u64)> {
        Some(("its objects roll out".to_owned(), self.timeout_seconds))
    }

    fn describe(&self) -> Rows {
        let config = self.kubeconfig.as_ref().map(|path| path.display().to_string());
        let config = config.unwrap_or_else(|| "K3s's own, or from within the cluster".to_owned());
        vec![("namespace", self.namespace.clone()), ("kubeconfig", config)]
    }

    fn installer(&self, site: Site) -> Rc<dyn Installer> {
        Rc::new(Workload::new(self.clone(), site))
    }
}

/// The installer of one workload.
#[derive(Debug)]
struct Workload {
    options: Options,
    target: Target,
    records: Records,
}

impl Workload {
    fn new(options: Options, site: Site) -> Self {
        Self { options, target: site.target, records: Records::new(site.dir, site.installed) }
    }

    fn deadline(&self) -> Instant {
        Instant::now() + Duration::from_secs(self.options.timeout_seconds)
    }

    async fn cluster(&self) -> Result<Cluster, ClusterError> {
        Cluster::reach(&self.options, self.deadline()).await
    }

    fn mark(&self, reference: &Reference) -> Mark {
        let release = reference.get("id").and_then(Value::as_str).unwrap_or_default().to_owned();
        let sequence = reference.get("seq").and_then(Value::as_u64).unwrap_or_default().to_string();
        Mark { target: self.target.to_string(), release, sequence }
    }

    async fn settle(&self) -> Result<Standing, InstallError> {
        self.records.prepare().map_err(InstallError::io("the workload's directory"))?;
        let committed = self.records.committed()?;
        if let Some(trial) = self.records.trial()? {
            if trial.release == committed.release {
                // It was committed, and only the record of the trial is left.
                self.records.end_trial()?;
            } else {
                let cluster = self.cluster().await?;
                if !trial.over && self.is_applied(&cluster, &trial).await? {
                    return Ok(Standing { running: trial.release, committed: committed.release });
                }
                tracing::warn!(
                    "a release was applied only in part, or given up: what was committed is applied again"
                );
                self.restore(&cluster, &committed, trial).await?;
            }
        }
        if let Err(error) = self.look_after(&committed).await {
            tracing::warn!(%error, "what the cluster has of the committed release is not known for now");
        }
        Ok(Standing { running: committed.release.clone(), committed: committed.release })
    }

    /// Whether all objects of the trial have been applied.
    async fn is_applied(&self, cluster: &Cluster, trial: &Trial) -> Result<bool, ClusterError> {
        let mark = self.mark(&trial.release);
        for item in &trial.items {
            let object = cluster.get(item).await?;
            if object.and_then(|object| mark_of(&object)).as_ref() != Some(&mark) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Applies again what the cluster has lost of the committed release, and deletes what is still there of former
    /// ones. It does not wait for a cluster that is away.
    async fn look_after(&self, committed: &Committed) -> Result<(), InstallError> {
        if committed.items.is_empty() && committed.obsolete.is_empty() {
            return Ok(());
        }
        let cluster = Cluster::reach(&self.options, Instant::now() + GLANCE).await?;
        let mark = self.mark(&committed.release);
        for item in &committed.items {
            let object = cluster.get(item).await?;
            let lost = match object.as_ref().map(mark_of) {
                None => "gone",
                Some(found) if found.as_ref() != Some(&mark) => "of another release",
                Some(_) => continue,
            };
            tracing::warn!(
                object = item.title(),
                lost,
                "an object of the committed release is applied again"
            );
            cluster.apply(item, &item.body, false).await?;
        }
        self.prune(&cluster, committed.clone()).await
    }

    async fn prepare(&self, release: &Release) -> Result<(), InstallError> {
        let path = self.records.payload();
        let read = read_manifest(&path);
        let text = match read {
            // It was staged before, and a power cut came while that was tidied up.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let staged = self.records.staged()?;
                let same = staged.is_some_and(|staged| staged.release == *release.reference());
                return if same { Ok(()) } else { Err(InstallError::io(path.display().to_string())(error)) };
            }
            read => read.map_err(InstallError::io(path.display().to_string()))?,
        };
        let text = String::from_utf8(text).map_err(|error| {
            InstallError::Payload(format!("not UTF-8 after byte {}", error.utf8_error().valid_up_to()))
        })?;
        let documents = manifest::parse(&text, &self.options.kinds)?;
        drop(text);
        let cluster = self.cluster().await?;
        let mark = self.mark(release.reference());
        let mut items = Vec::with_capacity(documents.len());
        for document in documents {
            let (resource, namespaced) = cluster.resolve(&document).await?;
            items.push(document.settle(resource, namespaced, &self.options.namespace, &mark)?);
        }
        for item in &items {
            if let Some(there) = cluster.get(item).await?.as_ref().and_then(mark_of)
                && there.target != self.target.as_str()
            {
                let what = format!("{} belongs to {}", item.title(), there.target);
                return Err(InstallError::Refused(what));
            }
            cluster.apply(item, &item.body, true).await?;
        }
        self.records.stage(&Staged { release: release.reference().clone(), items })
    }

    async fn run_trial(&self) -> Result<Activated, InstallError> {
        let staged = self.records.staged()?;
        let staged = staged.ok_or_else(|| InstallError::Payload("nothing was staged".to_owned()))?;
        let committed = self.records.committed()?;
        let cluster = self.cluster().await?;
        let trial = match self.records.trial()? {
            Some(trial) if trial.release == staged.release && !trial.over => trial,
            before => {
                if let Some(before) = before {
                    self.restore(&cluster, &committed, before).await?;
                }
                let mut made = Vec::with_capacity(staged.items.len());
                for item in &staged.items {
                    made.push(!item.is_in(&committed.items) && cluster.get(item).await?.is_none());
                }
                let trial = Trial { release: staged.release, items: staged.items, made, over: false };
                self.records.try_out(&trial)?;
                trial
            }
        };
        let mut applied = Ok(());
        for item in &trial.items {
            applied = cluster.apply(item, &item.body, false).await;
            if applied.is_err() {
                break;
            }
        }
        if let Err(error) = applied {
            if let Err(error) = self.restore(&cluster, &committed, trial).await {
                tracing::error!(%error, "what was committed cannot be applied again for now");
            }
            return Err(error.into());
        }
        Ok(Activated::Running)
    }

    /// Gives a trial up: what was committed is applied again, what the trial made is deleted, and what it changed of
    /// others is given back to them.
    async fn restore(
        &self,
        cluster: &Cluster,
        committed: &Committed,
        trial: Trial,
    ) -> Result<(), InstallError> {
        let trial = Trial { over: true, ..trial };
        self.records.try_out(&trial)?;
        for item in &committed.items {
            cluster.apply(item, &item.body, false).await?;
        }
        for (item, &made) in trial.items.iter().zip(&trial.made) {
            if item.is_in(&committed.items) {
                continue;
            }
            let Some(object) = cluster.get(item).await? else { continue };
            let ours = mark_of(&object).is_some_and(|mark| mark.target == self.target.as_str());
            if made && ours && item.is_disposable() {
                cluster.delete(item, &object).await?;
            } else if ours {
                cluster.apply(item, &item.bare(), false).await?;
            }
        }
        self.records.end_trial()
    }

    async fn return_to_committed(&self) -> Result<Activated, InstallError> {
        let Some(trial) = self.records.trial()? else { return Ok(Activated::Running) };
        let committed = self.records.committed()?;
        let cluster = self.cluster().await?;
        self.restore(&cluster, &committed, trial).await?;
        // Nothing better is left to go back to, so this decides nothing.
        if let Err(error) = self.watch(&cluster, &committed.release, &committed.items).await {
            tracing::error!(%error, "the committed release runs again, but not well");
        }
        Ok(Activated::Running)
    }

    /// Waits until all objects are what was asked for, one of them cannot become that, or time is over.
    async fn watch(
        &self,
        cluster: &Cluster,
        release: &Reference,
        items: &[Item],
    ) -> Result<(), InstallError> {
        let mark = self.mark(release);
        let (mut pause, longest) = PAUSES;
        let mut open: Vec<&Item> = items.iter().collect();
        loop {
            let mut waits = None;
            let mut still = Vec::new();
            for item in open {
                let failed = |why: &str| InstallError::Unhealthy(format!("{}: {why}", item.title()));
                let object = cluster.get(item).await?.ok_or_else(|| failed("it is gone"))?;
                if mark_of(&object).as_ref() != Some(&mark) {
                    return Err(failed("something else was applied to it"));
                }
                let object = serde_json::to_value(&object).map_err(|error| failed(&error.to_string()))?;
                match rollout(&item.resource.group, &item.resource.kind, &object) {
                    Rollout::Done => {}
                    Rollout::Failed(why) => return Err(failed(&why)),
                    Rollout::Waiting(why) => {
                        waits = Some(failed(&format!("not rolled out in time: {why}")));
                        still.push(item);
                    }
                }
            }
            let Some(late) = waits else { return Ok(()) };
            if Instant::now() + pause >= cluster.deadline() {
                return Err(late);
            }
            open = still;
            sleep(pause).await;
            pause = (pause * 2).min(longest);
        }
    }

    async fn judge(&self) -> Result<(), InstallError> {
        let (release, items) = match self.records.trial()? {
            Some(trial) => (trial.release, trial.items),
            None => {
                let committed = self.records.committed()?;
                (committed.release, committed.items)
            }
        };
        let cluster = self.cluster().await?;
        self.watch(&cluster, &release, &items).await
    }

    async fn keep(&self) -> Result<(), InstallError> {
        let Some(trial) = self.records.trial()?.filter(|trial| !trial.over) else {
            // Done before; or else there is nothing that could have been asked to commit.
            return Ok(());
        };
        let before = self.records.committed()?;
        let obsolete = before.items.into_iter().chain(before.obsolete);
        let obsolete = obsolete.filter(|item| !item.is_in(&trial.items)).collect();
        let committed = Committed { release: trial.release, items: trial.items, obsolete };
        self.records.commit(&committed)?;
        self.records.end_trial()?;
        self.records.unstage().map_err(InstallError::io("the staged manifest"))?;
        // It is committed. What is too much is deleted at the next start, if not now.
        let pruned = match Cluster::reach(&self.options, Instant::now() + GLANCE).await {
            Ok(cluster) => self.prune(&cluster, committed).await,
            Err(error) => Err(error.into()),
        };
        if let Err(error) = pruned {
            tracing::warn!(%error, "objects of the former release are still there");
        }
        Ok(())
    }

    /// Deletes objects that no release has any more, unless they have become somebody else's.
    async fn prune(&self, cluster: &Cluster, committed: Committed) -> Result<(), InstallError> {
        if committed.obsolete.is_empty() {
            return Ok(());
        }
        for item in &committed.obsolete {
            let Some(object) = cluster.get(item).await? else { continue };
            let ours = mark_of(&object).is_some_and(|mark| mark.target == self.target.as_str());
            if ours && item.is_disposable() {
                cluster.delete(item, &object).await?;
            } else {
                tracing::warn!(
                    object = item.title(),
                    "no release has it any more; it is left in the cluster"
                );
            }
        }
        self.records.commit(&Committed { obsolete: Vec::new(), ..committed })
    }
}

impl Installer for Workload {
    fn standing(self: Rc<Self>) -> Later<Result<Standing, InstallError>> {
        Box::pin(async move { self.settle().await })
    }

    fn place(&self, release: &Release) -> io::Result<Place> {
        // Before it is fetched: it would be refused anyway.
        check_length(release.size)?;
        self.records.prepare()?;
        Ok(Place { path: self.records.payload(), capacity: None })
    }

    fn stage(self: Rc<Self>, release: Release) -> Later<Result<(), InstallError>> {
        Box::pin(async move { self.prepare(&release).await })
    }

    fn activate(self: Rc<Self>) -> Later<Result<Activated, InstallError>> {
        Box::pin(async move { self.run_trial().await })
    }

    fn go_back(self: Rc<Self>) -> Later<Result<Activated, InstallError>> {
        Box::pin(async move { self.return_to_committed().await })
    }

    fn healthy(self: Rc<Self>) -> Later<Result<(), InstallError>> {
        Box::pin(async move { self.judge().await })
    }

    fn commit(self: Rc<Self>) -> Later<Result<(), InstallError>> {
        Box::pin(async move { self.keep().await })
    }

    fn discard(&self) -> io::Result<()> {
        self.records.unstage()
    }
}

/// The mark on an object of the cluster.
fn mark_of(object: &kube::api::DynamicObject) -> Option<Mark> {
    let annotations = object.metadata.annotations.as_ref()?;
    Mark::read(|name| annotations.get(name).cloned())
}

fn read_manifest(path: &Path) -> io::Result<Vec<u8>> {
    check_length(std::fs::metadata(path)?.len())?;
    std::fs::read(path)
}

fn check_length(length: u64) -> io::Result<()> {
    if length <= manifest::LARGEST {
        return Ok(());
    }
    let what = format!("{length} bytes: a manifest has {} at the most", manifest::LARGEST);
    Err(io::Error::new(io::ErrorKind::FileTooLarge, what))
}
