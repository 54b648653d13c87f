//! The releases of a target on disk, and the links that say which is which.
//!
//! ```text
//! DIR/releases/app-2-2/       a release, unpacked; app-2-2.json beside it is its reference
//! DIR/current                 what runs
//! DIR/committed               what runs after the next power cut
//! DIR/previous                what was committed before
//! ```
//!
//! A release gets its name by a rename, when all of it is durable. A link changes by a rename, too. Whatever else lies
//! in `DIR` is somebody else's and stays as it is.

use std::fs::{self, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use fleetwave_agent_core::Release;

use crate::files;
use crate::install::Reference;

/// What runs.
pub(super) const CURRENT: &str = "current";
/// What runs after the next power cut.
pub(super) const COMMITTED: &str = "committed";
/// What was committed before.
pub(super) const PREVIOUS: &str = "previous";
/// The end of the name of what is not finished, or not wanted any more.
const SCRAP: &str = ".new";

/// A target's directory.
#[derive(Clone, Debug)]
pub(super) struct Shelf {
    dir: PathBuf,
}

impl Shelf {
    pub(super) fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    fn releases(&self) -> PathBuf {
        self.dir.join("releases")
    }

    /// Where a release of this name is.
    pub(super) fn tree(&self, name: &str) -> PathBuf {
        self.releases().join(name)
    }

    fn sidecar(&self, name: &str) -> PathBuf {
        self.releases().join(format!("{name}.json"))
    }

    /// A place for a release that is on its way, another one each time: somebody may still write to the one before.
    pub(super) fn scrap(&self, name: &str, serial: u32) -> PathBuf {
        self.releases().join(format!(".{name}.{}.{serial}{SCRAP}", std::process::id()))
    }

    /// Makes the place for releases.
    pub(super) fn furnish(&self) -> io::Result<()> {
        let releases = self.releases();
        if !releases.is_dir() {
            fs::create_dir_all(&self.dir)?;
            // Under a name of its own until it has its mode.
            let made = self.dir.join(SCRAP);
            if !made.is_dir() {
                fs::create_dir(&made)?;
            }
            // The agent's umask lets nobody in, but a component is mostly run by another user.
            fs::set_permissions(&made, Permissions::from_mode(0o755))?;
            fs::rename(&made, &releases)?;
        }
        files::sync_dir(&self.dir)
    }

    /// Where a link leads, as it is written.
    pub(super) fn link(&self, link: &str) -> io::Result<Option<PathBuf>> {
        let path = self.dir.join(link);
        match fs::read_link(&path) {
            Ok(leads) => Ok(Some(leads)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) if error.kind() == ErrorKind::InvalidInput => Err(io::Error::other(format!(
                "{} is no link: move it into {} and link to it from {link}",
                path.display(),
                self.releases().display()
            ))),
            Err(error) => Err(error),
        }
    }

    /// The directory that a link leads to.
    pub(super) fn behind(&self, leads: &Path) -> PathBuf {
        self.dir.join(leads)
    }

    /// Lets a link lead there, or removes it.
    pub(super) fn point(&self, link: &str, leads: Option<&Path>) -> io::Result<()> {
        let path = self.dir.join(link);
        match leads {
            None => files::remove(&path),
            Some(leads) => {
                let new = self.dir.join(format!("{link}{SCRAP}"));
                files::remove(&new)?;
                symlink(leads, &new)?;
                fs::rename(&new, &path)?;
                files::sync_dir(&self.dir)
            }
        }
    }

    /// What a link to a release of this name says.
    pub(super) fn leads(name: &str) -> PathBuf {
        Path::new("releases").join(name)
    }

    /// The name of the release that a link leads to, if it is one of ours.
    pub(super) fn name(leads: &Path) -> Option<&str> {
        let name = leads.strip_prefix("releases").ok()?.to_str()?;
        (!name.is_empty() && !name.contains('/')).then_some(name)
    }

    /// The reference of the release that a link leads to: `Ok(None)` if no agent put it there.
    pub(super) fn reference(&self, leads: &Path) -> io::Result<Option<Reference>> {
        let Some(name) = Self::name(leads) else { return Ok(None) };
        match fs::read(self.sidecar(name)) {
            Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Gives what was unpacked its name. Until then nothing of it counts.
    pub(super) fn shelve(&self, scrap: &Path, name: &str, reference: &Reference) -> io::Result<()> {
        let tree = self.tree(name);
        if tree.exists() {
            // A trial may have changed it since it was unpacked.
            remove_tree(&tree)?;
        }
        files::replace(&self.sidecar(name), &serde_json::to_vec(reference)?)?;
        fs::rename(scrap, &tree)?;
        files::sync_dir(&self.releases())
    }

    /// Takes a release away, unless a link leads to it. It goes in one step, and gives back what is left to remove.
    pub(super) fn take(&self, name: &str, serial: u32) -> io::Result<Option<PathBuf>> {
        if self.in_use(name)? {
            return Ok(None);
        }
        let (tree, scrap) = (self.tree(name), self.scrap(name, serial));
        match fs::rename(&tree, &scrap) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            taken => taken?,
        }
        files::remove(&self.sidecar(name))?;
        files::sync_dir(&self.releases())?;
        Ok(Some(scrap))
    }

    /// Whether what runs, or would after a power cut, is a release of this name.
    pub(super) fn in_use(&self, name: &str) -> io::Result<bool> {
        let leads = Self::leads(name);
        for link in [CURRENT, COMMITTED] {
            if self.link(link)?.is_some_and(|there| there == leads) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Removes what was begun and not finished.
    pub(super) fn sweep(&self) -> io::Result<()> {
        for name in self.names()? {
            if name.ends_with(SCRAP) {
                let path = self.tree(&name);
                if path.is_dir() { remove_tree(&path)? } else { fs::remove_file(path)? }
            }
        }
        Ok(())
    }

    /// The releases that no link leads to. What has no reference beside it is none of ours.
    pub(super) fn unused(&self) -> io::Result<Vec<String>> {
        let mut kept = Vec::new();
        for link in [CURRENT, COMMITTED, PREVIOUS] {
            kept.extend(self.link(link)?);
        }
        let unused = |name: &String| self.sidecar(name).exists() && !kept.contains(&Self::leads(name));
        Ok(self.names()?.into_iter().filter(unused).collect())
    }

    fn names(&self) -> io::Result<Vec<String>> {
        let entries = match fs::read_dir(self.releases()) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let name = |entry: io::Result<fs::DirEntry>| entry.map(|entry| entry.file_name().into_string().ok());
        entries.filter_map(|entry| name(entry).transpose()).collect()
    }
}

/// The name of a release's directory: readable, and another one for another release.
pub(super) fn name(release: &Release) -> String {
    let fine = |c: char| c.is_ascii_alphanumeric() || "-+_.".contains(c);
    let plain: String = release.id.chars().map(|c| if fine(c) { c } else { '_' }).collect();
    let plain = plain.trim_start_matches('.');
    let sequence = release.sequence;
    if plain == &*release.id {
        format!("{plain}-{sequence}")
    } else {
        let [a, b, c, d, ..] = release.digest;
        format!("{plain}-{sequence}-{a:02x}{b:02x}{c:02x}{d:02x}")
    }
}

/// Removes a directory with all that is in it, also where an archive forbade to write.
pub(super) fn remove_tree(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            permit(path)?;
            fs::remove_dir_all(path)
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

fn permit(path: &Path) -> io::Result<()> {
    fs::set_permissions(path, Permissions::from_mode(0o700))?;
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            permit(&entry.path())?;
        }
    }
    Ok(())
}
