//! Programs of the operator around the steps of an update, for every installer alike.
//!
//! The ones before something happens, and `after_install`, can stop the update. The last two tell of what has
//! happened: each is run at least once for every trial, also when a power cut came between, and what it says changes
//! nothing.

use std::io;
use std::path::PathBuf;
use std::rc::Rc;

use fleetwave_agent_core::Release;
use serde::{Deserialize, Serialize};

use crate::command::{About, Command};
use crate::crash;
use crate::files;
use crate::install::{Activated, InstallError, Installer, Later, Place, Reference, Seed, Standing};

/// The programs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Hooks {
    /// Before a verified payload is put where it belongs.
    pub before_install: Option<Command>,
    /// When it lies there, and nothing of it runs yet.
    pub after_install: Option<Command>,
    /// Before it is made to run.
    pub before_activate: Option<Command>,
    /// When it is the one that stays.
    pub after_commit: Option<Command>,
    /// When the one before runs again.
    pub after_rollback: Option<Command>,
}

impl Hooks {
    /// Those that there are.
    pub(crate) fn names(&self) -> Vec<&'static str> {
        let all = [
            ("before_install", &self.before_install),
            ("after_install", &self.after_install),
            ("before_activate", &self.before_activate),
            ("after_commit", &self.after_commit),
            ("after_rollback", &self.after_rollback),
        ];
        all.into_iter().filter(|(_, hook)| hook.is_some()).map(|(name, _)| name).collect()
    }

    /// `inner` with these around it. What they need to know after a power cut is kept in `dir`.
    pub(crate) fn around(&self, inner: Rc<dyn Installer>, target: &str, dir: PathBuf) -> Rc<dyn Installer> {
        if *self == Self::default() {
            return inner;
        }
        Rc::new(Hooked { inner, hooks: self.clone(), target: target.to_owned(), dir })
    }
}

#[derive(Debug)]
struct Hooked {
    inner: Rc<dyn Installer>,
    hooks: Hooks,
    target: String,
    dir: PathBuf,
}

/// The release that was staged last.
#[derive(Debug, Serialize, Deserialize)]
struct Trial {
    reference: Reference,
    /// It was made to run, and its end has not been told yet.
    open: bool,
}

impl Hooked {
    fn path(&self) -> PathBuf {
        self.dir.join("hooks.json")
    }

    fn trial(&self) -> Option<Trial> {
        let text = std::fs::read(self.path()).ok()?;
        // It is replaced as a whole: one that cannot be read is none of ours.
        serde_json::from_slice(&text).ok()
    }

    fn keep(&self, trial: &Trial) -> Result<(), InstallError> {
        let path = self.path();
        let kept = || {
            std::fs::create_dir_all(&self.dir)?;
            files::replace(&path, &serde_json::to_vec(trial)?)
        };
        kept().map_err(InstallError::io(format!("writing {}", path.display())))
    }

    /// Runs a hook that may stop the update.
    async fn ask(
        &self,
        hook: Option<&Command>,
        reference: &Reference,
        phase: &str,
    ) -> Result<(), InstallError> {
        let Some(hook) = hook else { return Ok(()) };
        let about = About::reference(&self.target, reference);
        tracing::info!(target = self.target, hook = phase, program = hook.name(), "runs a hook");
        let ended = hook.program().about(&about, phase).succeed().await;
        ended.map(drop).map_err(|error| InstallError::Hook(format!("the hook {phase}: {error}")))
    }

    /// Runs a hook that tells how a trial ended, once it has ended.
    async fn tell(&self, hook: Option<&Command>, mut trial: Trial, phase: &str) {
        if let Err(error) = self.ask(hook, &trial.reference, phase).await {
            tracing::error!(%error, "what is done stays done");
        }
        crash::point("hooks: told");
        trial.open = false;
        if let Err(error) = self.keep(&trial) {
            tracing::error!(%error, "the hook will be run again at the next start");
        }
    }

    async fn settle(&self, standing: &Standing) {
        let Some(trial) = self.trial().filter(|trial| trial.open) else { return };
        let is = |reference: &Reference| {
            ["id", "seq"].iter().all(|member| reference.get(*member) == trial.reference.get(*member))
        };
        if is(&standing.committed) {
            self.tell(self.hooks.after_commit.as_ref(), trial, "after_commit").await;
        } else if !is(&standing.running) {
            self.tell(self.hooks.after_rollback.as_ref(), trial, "after_rollback").await;
        }
    }
}

impl Installer for Hooked {
    fn standing(self: Rc<Self>) -> Later<Result<Standing, InstallError>> {
        Box::pin(async move {
            let standing = Rc::clone(&self.inner).standing().await?;
            self.settle(&standing).await;
            Ok(standing)
        })
    }

    fn place(&self, release: &Release) -> io::Result<Place> {
        self.inner.place(release)
    }

    fn stage(self: Rc<Self>, release: Release) -> Later<Result<(), InstallError>> {
        Box::pin(async move {
            let reference = release.reference().clone();
            crash::point("hooks: staging");
            self.ask(self.hooks.before_install.as_ref(), &reference, "before_install").await?;
            Rc::clone(&self.inner).stage(release).await?;
            self.ask(self.hooks.after_install.as_ref(), &reference, "after_install").await?;
            self.keep(&Trial { reference, open: false })?;
            crash::point("hooks: staged");
            Ok(())
        })
    }

    fn activate(self: Rc<Self>) -> Later<Result<Activated, InstallError>> {
        Box::pin(async move {
            if let Some(mut trial) = self.trial() {
                self.ask(self.hooks.before_activate.as_ref(), &trial.reference, "before_activate").await?;
                trial.open = true;
                self.keep(&trial)?;
                crash::point("hooks: trial begun");
            }
            Rc::clone(&self.inner).activate().await
        })
    }

    fn go_back(self: Rc<Self>) -> Later<Result<Activated, InstallError>> {
        Box::pin(async move {
            let activated = Rc::clone(&self.inner).go_back().await?;
            // If something goes down on the way back, its next start tells.
            if activated == Activated::Running
                && let Some(trial) = self.trial().filter(|trial| trial.open)
            {
                self.tell(self.hooks.after_rollback.as_ref(), trial, "after_rollback").await;
            }
            Ok(activated)
        })
    }

    fn healthy(self: Rc<Self>) -> Later<Result<(), InstallError>> {
        Rc::clone(&self.inner).healthy()
    }

    fn commit(self: Rc<Self>) -> Later<Result<(), InstallError>> {
        Box::pin(async move {
            Rc::clone(&self.inner).commit().await?;
            crash::point("hooks: committed");
            if let Some(trial) = self.trial().filter(|trial| trial.open) {
                self.tell(self.hooks.after_commit.as_ref(), trial, "after_commit").await;
            }
            Ok(())
        })
    }

    fn discard(&self) -> io::Result<()> {
        files::remove(&self.path())?;
        self.inner.discard()
    }

    fn seeds(&self) -> Vec<Seed> {
        self.inner.seeds()
    }
}
