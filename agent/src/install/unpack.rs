//! Archives into directories: tar, plain or compressed by gzip or zstd, with everything refused that could reach
//! outside of the directory or take more than was allowed.

mod source;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Read, Write as _};
use std::os::unix::fs::{
    DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown, lchown, symlink,
};
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, UNIX_EPOCH};

use tar::{Archive, Entry, EntryType};

use super::InstallError;
use super::owner::Owner;
pub(crate) use source::is_archive;
use source::{open, unreadable};

/// What is copied at once.
const PIECE: usize = 64 * 1024;
/// The mode of a directory that the archive does not name.
const DIRECTORY: u32 = 0o755;

/// What an archive may do.
#[derive(Clone, Debug)]
pub(crate) struct Rules {
    /// So many files, directories and links.
    pub(crate) files: u64,
    /// So many bytes in all files together.
    pub(crate) bytes: u64,
    /// Files may run as their owner or group.
    pub(crate) setuid: bool,
    /// Who owns what is unpacked; the agent's own user if nobody is named.
    pub(crate) owner: Option<Owner>,
}

/// Unpacks `archive` into the new directory `into` and makes that durable. It ends early, with an error, when
/// `given_up` is set.
pub(crate) fn unpack(
    archive: &Path,
    into: &Path,
    rules: &Rules,
    given_up: &AtomicBool,
) -> Result<(), InstallError> {
    let (source, budget) = open(archive, given_up)?;
    make_dir(into).map_err(failed("making", into))?;
    let directories = BTreeMap::from([(into.to_owned(), DIRECTORY)]);
    let mut tree = Tree { root: into, rules, files: 0, bytes: 0, directories };
    let mut archive = Archive::new(source);
    budget.between();
    let mut entries = archive.entries().map_err(unreadable)?;
    loop {
        budget.between();
        let Some(entry) = entries.next() else { break };
        let mut entry = entry.map_err(unreadable)?;
        budget.file(entry.size());
        tree.take(&mut entry)?;
    }
    tree.finish()
}

fn failed(what: &str, path: &Path) -> impl FnOnce(io::Error) -> InstallError + use<> {
    InstallError::io(format!("{what} {}", path.display()))
}

/// What is being unpacked.
struct Tree<'a> {
    root: &'a Path,
    rules: &'a Rules,
    files: u64,
    bytes: u64,
    /// Their modes wait for the end: one that may not be written to can still have files. So do their owners, who
    /// could otherwise put a link in the way of what is still to come.
    directories: BTreeMap<PathBuf, u32>,
}

impl Tree<'_> {
    fn take<R: Read>(&mut self, entry: &mut Entry<'_, R>) -> Result<(), InstallError> {
        let kind = entry.header().entry_type();
        if kind == EntryType::XGlobalHeader {
            return Ok(());
        }
        let name = entry.path().map_err(unreadable)?.into_owned();
        let Some(inside) = inside(&name) else {
            return Err(unsafe_entry(&name, "leads out of the archive"));
        };
        self.count()?;
        if inside.as_os_str().is_empty() {
            // `./`: the directory itself.
            return match kind {
                EntryType::Directory => {
                    let mode = self.mode(&name, entry)?;
                    self.directories.insert(self.root.to_owned(), mode);
                    Ok(())
                }
                _ => Err(unsafe_entry(&name, "has no name")),
            };
        }
        let path = self.root.join(&inside);
        self.parents(&inside, &name)?;
        match kind {
            EntryType::Directory => {
                let mode = self.mode(&name, entry)?;
                match fs::symlink_metadata(&path) {
                    Ok(there) if there.is_dir() => {}
                    Ok(_) => return Err(unsafe_entry(&name, "is in the archive twice")),
                    Err(_) => make_dir(&path).map_err(failed("making", &path))?,
                }
                self.directories.insert(path, mode);
                Ok(())
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                self.file(&name, &path, entry)
            }
            EntryType::Symlink => self.symbolic(&name, &inside, &path, entry),
            EntryType::Link => self.hard(&name, &path, entry),
            EntryType::Char | EntryType::Block => Err(unsafe_entry(&name, "is a device")),
            EntryType::Fifo => Err(unsafe_entry(&name, "is a pipe")),
            _ => Err(unsafe_entry(&name, "is neither file, directory nor link")),
        }
    }

    /// One more file, directory or link.
    fn count(&mut self) -> Result<(), InstallError> {
        self.files += 1;
        if self.files > self.rules.files {
            let most = self.rules.files;
            return Err(InstallError::Payload(format!(
                "more than {most} files: max_files would have to be higher"
            )));
        }
        Ok(())
    }

    /// Directories on the way that the archive did not name. None of them may be a link.
    fn parents(&mut self, inside: &Path, name: &Path) -> Result<(), InstallError> {
        let mut path = self.root.to_owned();
        for part in inside.parent().into_iter().flat_map(Path::components) {
            path.push(part);
            match fs::symlink_metadata(&path) {
                Ok(there) if there.is_dir() => {}
                Ok(_) => return Err(unsafe_entry(name, "goes through something that is no directory")),
                Err(_) => {
                    self.count()?;
                    make_dir(&path).map_err(failed("making", &path))?;
                    self.directories.insert(path.clone(), DIRECTORY);
                }
            }
        }
        Ok(())
    }

    fn mode<R: Read>(&self, name: &Path, entry: &Entry<'_, R>) -> Result<u32, InstallError> {
        let mode = entry.header().mode().map_err(unreadable)?;
        if mode & 0o6000 != 0 && !self.rules.setuid {
            return Err(unsafe_entry(name, "is setuid or setgid, which allow_setuid would have to permit"));
        }
        Ok(mode & 0o6777)
    }

    fn file<R: Read>(
        &mut self,
        name: &Path,
        path: &Path,
        entry: &mut Entry<'_, R>,
    ) -> Result<(), InstallError> {
        if has_holes(entry) {
            let why = "has holes, as `tar --sparse --format=posix` writes them: leave one of these out";
            return Err(unsafe_entry(name, why));
        }
        let size = entry.size();
        self.bytes = self.bytes.saturating_add(size);
        if self.bytes > self.rules.bytes {
            let most = self.rules.bytes;
            return Err(InstallError::Payload(format!(
                "more than {most} bytes: max_bytes would have to be higher"
            )));
        }
        let mode = self.mode(name, entry)?;
        let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        let mut file = match opened {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                return Err(unsafe_entry(name, "is in the archive twice"));
            }
            opened => opened.map_err(failed("making", path))?,
        };
        let mut piece = vec![0; PIECE];
        let mut left = size;
        while left > 0 {
            let length = match entry.read(&mut piece).map_err(unreadable)? {
                0 => {
                    return Err(InstallError::Payload("the archive ends in the middle of a file".to_owned()));
                }
                length => length,
            };
            file.write_all(&piece[..length]).map_err(failed("writing", path))?;
            left = left.saturating_sub(length as u64);
        }
        // Before the mode: a change of owner takes setuid away.
        self.own(|user, group| fchown(&file, user, group), path)?;
        file.set_permissions(Permissions::from_mode(mode)).map_err(failed("setting the mode of", path))?;
        if let Ok(seconds) = entry.header().mtime() {
            // Compiled Python compares it. That it cannot be set is no reason to stop.
            let _ = file.set_modified(UNIX_EPOCH + Duration::from_secs(seconds.min(u64::from(u32::MAX))));
        }
        Ok(())
    }

    /// A symbolic link may go up, then down: never down, and up from where another link may have led.
    fn symbolic<R: Read>(
        &self,
        name: &Path,
        inside: &Path,
        path: &Path,
        entry: &Entry<'_, R>,
    ) -> Result<(), InstallError> {
        let leads = link_name(name, entry)?;
        let mut depth = inside.parent().map_or(0, |parent| parent.components().count());
        let mut down = false;
        for part in leads.components() {
            match part {
                Component::Normal(_) => down = true,
                Component::CurDir => {}
                Component::ParentDir if !down && depth > 0 => depth -= 1,
                _ => return Err(unsafe_entry(name, "is a link out of the archive")),
            }
        }
        match symlink(&leads, path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                return Err(unsafe_entry(name, "is in the archive twice"));
            }
            made => made.map_err(failed("making", path))?,
        }
        self.own(|user, group| lchown(path, user, group), path)
    }

    /// A hard link leads to a file that was unpacked before.
    fn hard<R: Read>(&self, name: &Path, path: &Path, entry: &Entry<'_, R>) -> Result<(), InstallError> {
        let leads = link_name(name, entry)?;
        let out = || unsafe_entry(name, "is a link to no file of the archive");
        let leads = inside(&leads).ok_or_else(out)?;
        self.parents_exist(&leads).then_some(()).ok_or_else(out)?;
        let from = self.root.join(leads);
        if !fs::symlink_metadata(&from).is_ok_and(|there| there.is_file()) {
            return Err(out());
        }
        match fs::hard_link(&from, path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                Err(unsafe_entry(name, "is in the archive twice"))
            }
            made => made.map_err(failed("making", path)),
        }
    }

    fn parents_exist(&self, inside: &Path) -> bool {
        let mut path = self.root.to_owned();
        inside.parent().into_iter().flat_map(Path::components).all(|part| {
            path.push(part);
            fs::symlink_metadata(&path).is_ok_and(|there| there.is_dir())
        })
    }

    fn own(
        &self,
        give: impl FnOnce(Option<u32>, Option<u32>) -> io::Result<()>,
        path: &Path,
    ) -> Result<(), InstallError> {
        match self.rules.owner {
            None => Ok(()),
            Some(Owner { user, group }) => {
                give(Some(user), group).map_err(failed("changing the owner of", path))
            }
        }
    }

    /// Modes of directories, and everything onto the disk: one call, where an fsync for each file takes seconds.
    fn finish(self) -> Result<(), InstallError> {
        if self.files == 0 {
            return Err(InstallError::Payload("the archive holds nothing".to_owned()));
        }
        // What lies in a directory comes before it.
        for (path, mode) in self.directories.iter().rev() {
            self.own(|user, group| lchown(path, user, group), path)?;
            fs::set_permissions(path, Permissions::from_mode(*mode))
                .map_err(failed("setting the mode of", path))?;
        }
        let synced = File::open(self.root).and_then(|dir| Ok(rustix::fs::syncfs(dir)?));
        synced.map_err(failed("syncing", self.root))
    }
}

/// A directory that others can go through, whatever the umask is: what runs is not run by the agent's user.
fn make_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(path)?;
    fs::set_permissions(path, Permissions::from_mode(DIRECTORY))
}

/// Whether an entry is a list of pieces of a file, in place of the file: GNU tar's own way, which nobody else reads.
fn has_holes<R: Read>(entry: &mut Entry<'_, R>) -> bool {
    let Ok(Some(attributes)) = entry.pax_extensions() else { return false };
    attributes.flatten().any(|attribute| attribute.key_bytes().starts_with(b"GNU.sparse."))
}

fn link_name<R: Read>(name: &Path, entry: &Entry<'_, R>) -> Result<PathBuf, InstallError> {
    match entry.link_name().map_err(unreadable)? {
        Some(leads) if !leads.as_os_str().is_empty() => Ok(leads.into_owned()),
        _ => Err(unsafe_entry(name, "is a link to nowhere")),
    }
}

/// The path below the root, if it stays there.
fn inside(name: &Path) -> Option<PathBuf> {
    let mut path = PathBuf::new();
    for part in name.components() {
        match part {
            Component::Normal(part) => path.push(part),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(path)
}

fn unsafe_entry(name: &Path, why: &str) -> InstallError {
    InstallError::Payload(format!("{} {why}", name.display()))
}
