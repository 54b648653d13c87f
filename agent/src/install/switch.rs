//! What components and pods have in common: releases that lie beside each other, one of them current, and a link that
//! says which. Making it run is left to a [`Runner`].
//!
//! A trial lasts no longer than the agent that began it: a start of the agent, after whatever end, goes back to what
//! was committed first. The machine's records decide how often it is tried again. That way a release that takes the
//! whole device down, or the agent with it, does not get to do so for ever.
//!
//! In the unit's part of the state directory:
//!
//! ```text
//! download.partial     the payload on its way
//! staged               the name of the release that lies ready
//! trial                the name of the one that may run without being committed: while it is there, nobody can be
//!                      sure that what was committed runs
//! ```

mod shelf;

use std::cell::{Cell, RefCell};
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use fleetwave_agent_core::Release;
use serde_json::json;
use tokio::task::spawn_blocking;

use self::shelf::{COMMITTED, CURRENT, PREVIOUS, Shelf, remove_tree};
use super::{Activated, InstallError, Installer, Later, Place, Reference, Seed, Site, Standing};
use crate::{crash, files};

/// A release on disk.
#[derive(Clone, Debug)]
pub(super) struct Version {
    /// Where it lies.
    pub(super) dir: PathBuf,
    pub(super) reference: Reference,
}

/// Makes releases run.
pub(super) trait Runner: fmt::Debug + 'static {
    /// Makes the new directory `into` out of a payload, whole and durable.
    async fn unpack(&self, payload: &Path, into: &Path) -> Result<(), InstallError>;

    /// Makes `to` run. `from` is what may run in its place, or a part of it.
    async fn start(
        &self,
        from: Option<&Version>,
        to: Option<&Version>,
        phase: &str,
    ) -> Result<(), InstallError>;

    /// Whether what was committed has to be started when the agent starts.
    async fn is_down(&self, _committed: &Version) -> bool {
        false
    }

    /// Whether what runs works.
    async fn healthy(&self, running: &Version) -> Result<(), InstallError>;

    /// Whether a payload is kept, for the chunks of it that stand in the next one, too.
    fn keeps_payload(&self) -> bool {
        false
    }

    /// Before a release is removed for good.
    async fn forget(&self, _dir: &Path) {}
}

/// An installer that switches between directories.
#[derive(Debug)]
pub(super) struct Switch<R> {
    runner: R,
    shelf: Shelf,
    site: Site,
    /// This agent has made something run, and not yet said so.
    trial: Cell<bool>,
    /// Why that does not work, if starting it has shown it.
    trouble: RefCell<Option<String>>,
    serial: Cell<u32>,
}

impl<R: Runner> Switch<R> {
    /// For releases in `dir`.
    pub(super) fn new(runner: R, dir: PathBuf, site: Site) -> Self {
        Self {
            runner,
            shelf: Shelf::new(dir),
            site,
            trial: Cell::new(false),
            trouble: RefCell::new(None),
            serial: Cell::new(0),
        }
    }

    fn download(&self) -> PathBuf {
        self.site.dir.join("download.partial")
    }

    /// The last payload that was made to run.
    fn kept(&self) -> PathBuf {
        self.site.dir.join("payload")
    }

    fn staged(&self) -> PathBuf {
        self.site.dir.join("staged")
    }

    fn mark(&self) -> PathBuf {
        self.site.dir.join("trial")
    }

    fn serial(&self) -> u32 {
        self.serial.set(self.serial.get() + 1);
        self.serial.get()
    }

    fn failed(&self, what: &str) -> impl FnOnce(io::Error) -> InstallError + use<R> {
        InstallError::io(format!("{what} in {}", self.shelf.dir().display()))
    }

    async fn blocking<T: Send + 'static>(
        &self,
        what: &str,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> Result<T, InstallError> {
        spawn_blocking(work).await.map_err(io::Error::other).flatten().map_err(self.failed(what))
    }

    /// What a link leads to.
    fn version(&self, leads: &Path) -> io::Result<Version> {
        let dir = self.shelf.behind(leads);
        let reference = if dir.exists() {
            self.shelf.reference(leads)?.unwrap_or_else(|| self.site.installed.clone())
        } else {
            // Somebody took it away. As if there were nothing it can be installed again.
            tracing::error!(target = %self.site.target, dir = %dir.display(), "the release is gone");
            Reference::from_iter([("id".into(), json!("none")), ("seq".into(), json!(0))])
        };
        Ok(Version { dir, reference })
    }

    fn current(&self) -> io::Result<Option<Version>> {
        self.shelf.link(CURRENT)?.map(|leads| self.version(&leads)).transpose()
    }

    fn reference(&self, version: Option<&Version>) -> Reference {
        version.map_or_else(|| self.site.installed.clone(), |version| version.reference.clone())
    }

    /// What is to run after a power cut. What an operator linked to before the first update counts.
    fn committed(&self) -> io::Result<Option<PathBuf>> {
        if let Some(committed) = self.shelf.link(COMMITTED)? {
            return Ok(Some(committed));
        }
        match self.shelf.link(CURRENT)? {
            Some(current) if self.shelf.reference(&current)?.is_none() => {
                self.shelf.point(COMMITTED, Some(&current))?;
                Ok(Some(current))
            }
            _ => Ok(None),
        }
    }

    /// What may run although it was not committed.
    fn on_trial(&self) -> io::Result<Option<Version>> {
        match fs::read_to_string(self.mark()) {
            Ok(name) => self.version(&Shelf::leads(&name)).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Lets the links say again that what was committed runs; gives back what may run in its place.
    fn point_back(&self) -> io::Result<(Option<Version>, Option<Version>)> {
        let committed = self.committed()?;
        let mut from = self.on_trial()?;
        if self.shelf.link(CURRENT)? != committed {
            if from.is_none() {
                from = self.current()?;
            }
            crash::point("switch: going back");
            self.shelf.point(CURRENT, committed.as_deref())?;
            crash::point("switch: links back");
        }
        Ok((from, self.current()?))
    }

    /// Starts what was committed in place of something else.
    async fn start_committed(
        &self,
        from: Option<&Version>,
        to: Option<&Version>,
    ) -> Result<(), InstallError> {
        self.runner.start(from, to, "rollback").await?;
        crash::point("switch: committed one started");
        files::remove(&self.mark()).map_err(self.failed("ending a trial"))?;
        crash::point("switch: trial ended");
        Ok(())
    }

    async fn settle(&self) -> Result<Standing, InstallError> {
        if self.trial.take() {
            let standing = || {
                let committed = self.committed()?.map(|leads| self.version(&leads)).transpose()?;
                let running = self.reference(self.current()?.as_ref());
                io::Result::Ok(Standing { running, committed: self.reference(committed.as_ref()) })
            };
            return standing().map_err(self.failed("reading links"));
        }
        let (from, committed) = self.point_back().map_err(self.failed("settling"))?;
        let down = match (&from, &committed) {
            (Some(_), _) => {
                tracing::warn!(target = %self.site.target, "a trial was interrupted: back to what was committed");
                true
            }
            (None, Some(committed)) => self.runner.is_down(committed).await,
            (None, None) => false,
        };
        if down && let Err(error) = self.start_committed(from.as_ref(), committed.as_ref()).await {
            // The links are right, and the mark is there: the next start of the agent tries again.
            tracing::error!(target = %self.site.target, %error, "what was committed cannot be started");
        }
        let shelf = self.shelf.clone();
        if let Err(error) = self.blocking("sweeping", move || shelf.sweep()).await {
            tracing::warn!(target = %self.site.target, %error, "what was begun is left");
        }
        let committed = self.reference(committed.as_ref());
        Ok(Standing { running: committed.clone(), committed })
    }

    async fn put(&self, release: &Release) -> Result<(), InstallError> {
        let name = shelf::name(release);
        let used = self.shelf.in_use(&name).map_err(self.failed("reading links"))?;
        if used && self.shelf.tree(&name).is_dir() {
            return Err(InstallError::Refused(format!("{name} runs already")));
        }
        self.shelf.furnish().map_err(self.failed("making room"))?;
        let scrap = self.shelf.scrap(&name, self.serial());
        crash::point("switch: unpacking");
        if let Err(error) = self.runner.unpack(&self.download(), &scrap).await {
            self.remove(scrap).await;
            return Err(error);
        }
        crash::point("switch: unpacked");
        let (shelf, named, reference) = (self.shelf.clone(), name.clone(), release.reference().clone());
        self.blocking("shelving", move || shelf.shelve(&scrap, &named, &reference)).await?;
        crash::point("switch: shelved");
        files::replace(&self.staged(), name.as_bytes()).map_err(self.failed("staging"))?;
        crash::point("switch: staged");
        Ok(())
    }

    async fn remove(&self, dir: PathBuf) {
        if let Err(error) = self.blocking("removing", move || remove_tree(&dir)).await {
            tracing::warn!(target = %self.site.target, %error, "what is not needed any more is left");
        }
    }

    /// Switches; gives back what ran before, and what is to run.
    fn point(&self) -> io::Result<(Option<Version>, Option<Version>)> {
        let name = fs::read_to_string(self.staged())?;
        if !self.shelf.tree(&name).is_dir() {
            return Err(io::Error::new(io::ErrorKind::NotFound, format!("{name} is not there any more")));
        }
        let from = self.current()?;
        // From now on nobody can be sure of what runs.
        files::replace(&self.mark(), name.as_bytes())?;
        crash::point("switch: marked");
        self.shelf.point(CURRENT, Some(&Shelf::leads(&name)))?;
        crash::point("switch: switched");
        Ok((from, self.current()?))
    }

    fn keep(&self) -> io::Result<()> {
        let (current, committed) = (self.shelf.link(CURRENT)?, self.shelf.link(COMMITTED)?);
        if current != committed {
            self.shelf.point(PREVIOUS, committed.as_deref())?;
            crash::point("switch: committing");
            self.shelf.point(COMMITTED, current.as_deref())?;
            crash::point("switch: committed");
        }
        files::remove(&self.mark())
    }

    /// Removes the releases that are not needed any more. What cannot be removed is left.
    async fn prune(&self) {
        let unused = match self.shelf.unused() {
            Ok(unused) => unused,
            Err(error) => {
                tracing::warn!(target = %self.site.target, %error, "old releases are left");
                return;
            }
        };
        for name in unused {
            self.runner.forget(&self.shelf.tree(&name)).await;
            match self.shelf.take(&name, self.serial()) {
                Ok(Some(scrap)) => self.remove(scrap).await,
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(target = %self.site.target, name, %error, "an old release is left");
                }
            }
        }
        crash::point("switch: pruned");
    }

    /// The payload is in the way once it has been unpacked.
    fn drop_payload(&self) {
        let dropped = if self.runner.keeps_payload() {
            match fs::rename(self.download(), self.kept()) {
                // It was done before.
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                renamed => renamed,
            }
        } else if self.kept().exists() {
            files::remove(&self.kept()).and_then(|()| files::remove(&self.download()))
        } else {
            files::remove(&self.download())
        };
        if let Err(error) = dropped {
            tracing::warn!(target = %self.site.target, %error, "the payload is left");
        }
    }
}

impl<R: Runner> Installer for Switch<R> {
    fn standing(self: Rc<Self>) -> Later<Result<Standing, InstallError>> {
        Box::pin(async move { self.settle().await })
    }

    fn place(&self, _: &Release) -> io::Result<Place> {
        fs::create_dir_all(&self.site.dir)?;
        Ok(Place { path: self.download(), capacity: None })
    }

    fn stage(self: Rc<Self>, release: Release) -> Later<Result<(), InstallError>> {
        Box::pin(async move { self.put(&release).await })
    }

    fn activate(self: Rc<Self>) -> Later<Result<Activated, InstallError>> {
        Box::pin(async move {
            let (from, to) = self.point().map_err(self.failed("switching"))?;
            self.drop_payload();
            let started = self.runner.start(from.as_ref(), to.as_ref(), "activate").await;
            crash::point("switch: started");
            // If it did not start it is on trial all the same, and fails it.
            self.trouble.replace(started.err().map(|error| error.to_string()));
            self.trial.set(true);
            Ok(Activated::Running)
        })
    }

    fn go_back(self: Rc<Self>) -> Later<Result<Activated, InstallError>> {
        Box::pin(async move {
            self.trial.set(false);
            let (from, committed) = self.point_back().map_err(self.failed("switching back"))?;
            self.start_committed(from.as_ref(), committed.as_ref()).await?;
            Ok(Activated::Running)
        })
    }

    fn healthy(self: Rc<Self>) -> Later<Result<(), InstallError>> {
        Box::pin(async move {
            if let Some(why) = self.trouble.take() {
                return Err(InstallError::Unhealthy(why));
            }
            match self.current().map_err(self.failed("reading links"))? {
                Some(current) => self.runner.healthy(&current).await,
                None => Err(InstallError::Unhealthy("nothing runs".to_owned())),
            }
        })
    }

    fn commit(self: Rc<Self>) -> Later<Result<(), InstallError>> {
        Box::pin(async move {
            self.keep().map_err(self.failed("committing"))?;
            self.prune().await;
            Ok(())
        })
    }

    fn discard(&self) -> io::Result<()> {
        files::remove(&self.download())?;
        let Ok(name) = fs::read_to_string(self.staged()) else { return Ok(()) };
        files::remove(&self.staged())?;
        if let Some(scrap) = self.shelf.take(&name, self.serial())? {
            // It counts no more; what is left of it after a power cut is swept.
            drop(spawn_blocking(move || remove_tree(&scrap)));
        }
        Ok(())
    }

    fn seeds(&self) -> Vec<Seed> {
        if self.runner.keeps_payload() {
            vec![Seed { path: self.kept(), length: u64::MAX }]
        } else {
            Vec::new()
        }
    }
}
