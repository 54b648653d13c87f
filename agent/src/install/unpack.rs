//! Archives into directories: tar, plain or compressed by gzip or zstd, with everything refused that could reach
//! outside of the directory or take more than was allowed.

use std::cell::Cell;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, BufReader, ErrorKind, Read, Seek as _, Write as _};
use std::os::unix::fs::{
    DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown, lchown, symlink,
};
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use tar::{Archive, Entry, EntryType};

use super::InstallError;
use super::owner::Owner;

/// zstd may need 8 MiB (`-19`), not more: the agent's memory is small.
const WINDOW_LOG: u32 = 23;
/// What may stand between two files of an archive: long names, attributes.
const BETWEEN: u64 = 1 << 20;
/// What is copied at once.
const PIECE: usize = 64 * 1024;

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
    let budget = Rc::new(Cell::new(0));
    let source = Metered { inner: open(archive)?, budget: Rc::clone(&budget), given_up };
    make_dir(into).map_err(failed("making", into))?;
    let mut tree = Tree { root: into, rules, files: 0, bytes: 0, directories: Vec::new() };
    let mut archive = Archive::new(source);
    budget.set(BETWEEN);
    let mut entries = archive.entries().map_err(unreadable)?;
    loop {
        budget.set(BETWEEN);
        let Some(entry) = entries.next() else { break };
        let mut entry = entry.map_err(unreadable)?;
        // A file that is longer than allowed is refused before it is read.
        budget.set(entry.size().saturating_add(BETWEEN));
        tree.take(&mut entry)?;
    }
    tree.finish()
}

/// How an archive is compressed.
enum Kind {
    Plain,
    Gzip,
    Zstd,
}

/// What the first bytes of a file say that it is.
fn kind(file: &File) -> io::Result<Option<Kind>> {
    let mut magic = Vec::with_capacity(512);
    file.take(512).read_to_end(&mut magic)?;
    Ok(match magic.as_slice() {
        [0x1f, 0x8b, ..] => Some(Kind::Gzip),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(Kind::Zstd),
        _ if magic.get(257..262) == Some(b"ustar") => Some(Kind::Plain),
        _ => None,
    })
}

/// Whether a file is an archive.
pub(crate) fn is_archive(path: &Path) -> Result<bool, InstallError> {
    let kind = File::open(path).and_then(|file| kind(&file));
    Ok(kind.map_err(failed("reading", path))?.is_some())
}

/// The archive without its compression.
fn open(path: &Path) -> Result<Box<dyn Read>, InstallError> {
    let mut file = File::open(path).map_err(failed("opening", path))?;
    let kind = kind(&file).and_then(|kind| file.rewind().map(|()| kind)).map_err(failed("reading", path))?;
    match kind {
        Some(Kind::Plain) => Ok(Box::new(file)),
        Some(Kind::Gzip) => Ok(Box::new(flate2::read::MultiGzDecoder::new(BufReader::new(file)))),
        Some(Kind::Zstd) => {
            let mut decoder = zstd::stream::read::Decoder::new(file).map_err(failed("reading", path))?;
            decoder.window_log_max(WINDOW_LOG).map_err(failed("reading", path))?;
            Ok(Box::new(decoder))
        }
        None => Err(InstallError::Payload(
            "it is no archive: tar, tar.gz and tar.zst are known by their first bytes".to_owned(),
        )),
    }
}

fn failed(what: &str, path: &Path) -> impl FnOnce(io::Error) -> InstallError + use<> {
    InstallError::io(format!("{what} {}", path.display()))
}

/// An archive that cannot be read is at fault itself, unless the disk is.
fn unreadable(error: io::Error) -> InstallError {
    if error.raw_os_error().is_some() {
        return InstallError::io("reading the archive")(error);
    }
    InstallError::Payload(format!("the archive cannot be read: {error}"))
}

/// Reads no more than it is allowed to: a few bytes of a compressed archive can stand for terabytes.
struct Metered<'a> {
    inner: Box<dyn Read>,
    budget: Rc<Cell<u64>>,
    given_up: &'a AtomicBool,
}

impl Read for Metered<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.given_up.load(Ordering::Relaxed) {
            return Err(io::Error::other("nobody wants it any more"));
        }
        let left = self.budget.get();
        if left == 0 {
            return Err(io::Error::new(
                ErrorKind::InvalidData,
                "more stands between two files than any name takes",
            ));
        }
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(into.len());
        let read = self.inner.read(&mut into[..most])?;
        self.budget.set(left - read as u64);
        Ok(read)
    }
}

/// What is being unpacked.
struct Tree<'a> {
    root: &'a Path,
    rules: &'a Rules,
    files: u64,
    bytes: u64,
    /// Their modes wait for the end: one that may not be written to can still have files.
    directories: Vec<(PathBuf, u32)>,
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
        self.files += 1;
        if self.files > self.rules.files {
            let most = self.rules.files;
            return Err(InstallError::Payload(format!(
                "more than {most} files: max_files would have to be higher"
            )));
        }
        if inside.as_os_str().is_empty() {
            // `./`: the directory itself.
            return match kind {
                EntryType::Directory => {
                    let mode = self.mode(&name, entry)?;
                    self.directories.push((self.root.to_owned(), mode));
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
                self.directories.push((path, mode));
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

    /// Directories on the way that the archive did not name. None of them may be a link.
    fn parents(&self, inside: &Path, name: &Path) -> Result<(), InstallError> {
        let mut path = self.root.to_owned();
        for part in inside.parent().into_iter().flat_map(Path::components) {
            path.push(part);
            match fs::symlink_metadata(&path) {
                Ok(there) if there.is_dir() => {}
                Ok(_) => return Err(unsafe_entry(name, "goes through something that is no directory")),
                Err(_) => {
                    make_dir(&path).map_err(failed("making", &path))?;
                    self.own(|user, group| lchown(&path, user, group), &path)?;
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
        self.own(|user, group| lchown(self.root, user, group), self.root)?;
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
    fs::set_permissions(path, Permissions::from_mode(0o755))
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use tar::{Builder, Header};
    use tempfile::TempDir;

    use super::*;

    const RULES: Rules = Rules { files: 10, bytes: 10_000, setuid: false, owner: None };

    fn header(kind: EntryType, size: u64) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(0o755);
        header
    }

    /// A name as no careful program would write it.
    fn add(tar: &mut Builder<Vec<u8>>, name: &str, kind: EntryType, content: &[u8], leads: &str) {
        let mut header = header(kind, content.len() as u64);
        header.as_gnu_mut().expect("GNU").name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_gnu_mut().expect("GNU").linkname[..leads.len()].copy_from_slice(leads.as_bytes());
        header.set_cksum();
        tar.append(&header, content).expect("a vector takes it");
    }

    fn archive(fill: impl FnOnce(&mut Builder<Vec<u8>>)) -> Vec<u8> {
        let mut tar = Builder::new(Vec::new());
        fill(&mut tar);
        tar.into_inner().expect("a vector takes it")
    }

    fn unpacked(bytes: &[u8], rules: &Rules) -> (TempDir, Result<(), String>) {
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join("archive"), bytes).expect("written");
        let (from, into) = (dir.path().join("archive"), dir.path().join("tree"));
        let result = unpack(&from, &into, rules, &AtomicBool::new(false)).map_err(|error| error.to_string());
        (dir, result)
    }

    fn good() -> Vec<u8> {
        archive(|tar| {
            add(tar, "./", EntryType::Directory, b"", "");
            add(tar, "./bin/run", EntryType::Regular, b"#!/bin/sh\n", "");
            add(tar, "bin/again", EntryType::Link, b"", "bin/run");
            add(tar, "lib/v1", EntryType::Symlink, b"", "../bin/run");
        })
    }

    #[test]
    fn an_archive_is_unpacked_whatever_compresses_it() {
        let plain = good();
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&plain).expect("a vector takes it");
        let zstd = zstd::encode_all(&plain[..], 3).expect("compressed");
        for bytes in [plain, gzip.finish().expect("compressed"), zstd] {
            let (dir, result) = unpacked(&bytes, &RULES);
            assert_eq!(result, Ok(()));
            let tree = dir.path().join("tree");
            let run = fs::metadata(tree.join("bin/run")).expect("a file");
            assert_eq!((run.len(), run.mode() & 0o7777, run.nlink()), (10, 0o755, 2));
            assert_eq!(fs::read(tree.join("lib/v1")).expect("a link to it"), b"#!/bin/sh\n");
        }
    }

    #[test]
    fn whatever_leads_out_of_the_archive_is_refused_and_nothing_is_written_there() {
        use EntryType::{Link, Regular, Symlink};
        let cases: [(&str, EntryType, &str, &str); 11] = [
            ("../evil", Regular, "", "leads out"),
            ("/tmp/evil", Regular, "", "leads out"),
            ("a/../../evil", Regular, "", "leads out"),
            ("here/evil", Regular, "", "goes through something that is no directory"),
            ("link", Symlink, "/etc/passwd", "a link out"),
            ("link", Symlink, "../x", "a link out"),
            // By way of the link `here`, which leads to its own directory, this would go up.
            ("link", Symlink, "here/here/../../x", "a link out"),
            ("link", Link, "/etc/passwd", "a link to no file"),
            ("link", Link, "here", "a link to no file"),
            ("link", Link, "here/passwd", "a link to no file"),
            ("here", Regular, "", "twice"),
        ];
        for (name, kind, leads, why) in cases {
            let bytes = archive(|tar| {
                add(tar, "here", Symlink, b"", ".");
                add(tar, name, kind, b"", leads);
            });
            let (dir, result) = unpacked(&bytes, &RULES);
            let error = result.expect_err(name);
            assert!(error.starts_with("the payload is unfit") && error.contains(why), "{name}: {error}");
            assert!(!dir.path().join("evil").exists());
        }
    }

    #[test]
    fn devices_pipes_and_setuid_are_refused_unless_allowed() {
        for (kind, why) in [
            (EntryType::Char, "is a device"),
            (EntryType::Block, "is a device"),
            (EntryType::Fifo, "is a pipe"),
            (EntryType::new(b'V'), "neither file"),
        ] {
            let error = unpacked(&archive(|tar| add(tar, "x", kind, b"", "")), &RULES).1.expect_err(why);
            assert!(error.contains(why), "{error}");
        }
        let bytes = archive(|tar| {
            let mut header = header(EntryType::Regular, 0);
            header.set_mode(0o4755);
            tar.append_data(&mut header, "su", io::empty()).expect("a vector takes it");
        });
        assert!(unpacked(&bytes, &RULES).1.expect_err("refused").contains("allow_setuid"));
        let (dir, result) = unpacked(&bytes, &Rules { setuid: true, ..RULES });
        assert_eq!(result, Ok(()));
        assert_eq!(fs::metadata(dir.path().join("tree/su")).expect("a file").mode() & 0o7777, 0o4755);
    }

    #[test]
    fn an_archive_that_unfolds_into_more_than_allowed_is_refused_in_time() {
        let many = archive(|tar| {
            (0..11).for_each(|n| add(tar, &format!("f{n}"), EntryType::Regular, b"", ""));
        });
        assert!(unpacked(&many, &RULES).1.expect_err("refused").contains("max_files"));

        let large = archive(|tar| add(tar, "zeros", EntryType::Regular, &vec![0; 10_001], ""));
        let (dir, result) = unpacked(&zstd::encode_all(&large[..], 3).expect("compressed"), &RULES);
        assert!(result.expect_err("refused").contains("max_bytes"));
        assert!(!dir.path().join("tree/zeros").exists(), "before it was written");

        // A name that never ends would lie in memory.
        let name = archive(|tar| {
            add(tar, "././@LongLink", EntryType::GNULongName, &vec![b'a'; 2 << 20], "");
            add(tar, "x", EntryType::Regular, b"", "");
        });
        let name = zstd::encode_all(&name[..], 3).expect("compressed");
        assert!(unpacked(&name, &RULES).1.expect_err("refused").contains("between two files"));

        // So would a window of 128 MiB.
        let mut wide = zstd::Encoder::new(Vec::new(), 3).expect("an encoder");
        wide.window_log(27).expect("a window");
        wide.write_all(&good()).expect("a vector takes it");
        let error = unpacked(&wide.finish().expect("compressed"), &RULES).1.expect_err("refused");
        assert!(error.contains("memory"), "{error}");
    }

    #[test]
    fn what_is_no_archive_or_a_part_of_one_is_refused() {
        let good = good();
        let truncated = &good[..2000];
        for (bytes, why) in [
            (&b"#!/bin/sh\n"[..], "no archive"),
            (b"", "no archive"),
            (&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 1, 2][..], "cannot be read"),
            (truncated, ""),
        ] {
            let error = unpacked(bytes, &RULES).1.expect_err(why);
            assert!(error.starts_with("the payload is unfit") && error.contains(why), "{error}");
        }
    }

    #[test]
    fn nobody_waits_for_it_any_more_and_it_ends() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join("archive"), good()).expect("written");
        let given_up = AtomicBool::new(true);
        let result = unpack(&dir.path().join("archive"), &dir.path().join("tree"), &RULES, &given_up);
        assert!(result.is_err() && !dir.path().join("tree/bin").exists());
    }
}
