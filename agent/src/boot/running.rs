//! Which slot runs, by what the kernel was started with: never by what the agent remembers.

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{Pair, Slot};
use crate::command::Command;
use crate::install::InstallError;

/// `running`: who says which slot runs.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Running {
    /// A file like the kernel's command line, and in it `fleetwave.slot=a`, or `root=` with a slot.
    Cmdline(PathBuf),
    /// A file that says `a` or `b`.
    File(PathBuf),
    /// A program that says `a` or `b`.
    Command(Command),
}

impl Default for Running {
    fn default() -> Self {
        Self::Cmdline("/proc/cmdline".into())
    }
}

/// The slot that runs.
pub(crate) async fn running(by: &Running, slots: &Pair<PathBuf>) -> Result<Slot, InstallError> {
    let read = |path: &Path| {
        let what = format!("reading {}, which says which slot runs", path.display());
        fs::read_to_string(path).map_err(InstallError::io(what))
    };
    let named = |text: &str, by: &dyn std::fmt::Display| {
        let text = text.trim();
        Slot::from_name(text)
            .ok_or_else(|| InstallError::Refused(format!("{by} says {text:?} runs: it must be a or b")))
    };
    match by {
        Running::Cmdline(path) => cmdline(&read(path)?, Path::new("/dev/disk"), slots),
        Running::File(path) => named(&read(path)?, &path.display()),
        Running::Command(command) => {
            named(&String::from_utf8_lossy(&command.program().succeed().await?), &command.name())
        }
    }
}

fn cmdline(line: &str, disks: &Path, slots: &Pair<PathBuf>) -> Result<Slot, InstallError> {
    // The last one counts, as it does for the kernel.
    let value = |name: &str| {
        line.split_whitespace().filter_map(|word| word.strip_prefix(name)?.strip_prefix('=')).next_back()
    };
    if let Some(name) = value("fleetwave.slot") {
        return Slot::from_name(name).ok_or_else(|| {
            InstallError::Refused(format!("the kernel was told fleetwave.slot={name}: it must be a or b"))
        });
    }
    let found = value("root").and_then(|root| {
        let root = device(root, disks);
        Slot::BOTH.into_iter().find(|slot| same(slots.of(*slot), &root))
    });
    found.ok_or_else(|| {
        InstallError::Refused(
            "the kernel's command line does not say which slot runs: its root= is no slot, so it needs \
             fleetwave.slot=a or b, or set `running` in [firmware]"
                .into(),
        )
    })
}

/// The device that `root=` means.
fn device(root: &str, disks: &Path) -> PathBuf {
    for (tag, dir) in [
        ("PARTUUID", "by-partuuid"),
        ("UUID", "by-uuid"),
        ("PARTLABEL", "by-partlabel"),
        ("LABEL", "by-label"),
    ] {
        if let Some(name) = root.strip_prefix(tag).and_then(|rest| rest.strip_prefix('=')) {
            let dir = disks.join(dir);
            // Identifiers of partitions are written in either case.
            return if dir.join(name).exists() {
                dir.join(name)
            } else {
                dir.join(name.to_ascii_lowercase())
            };
        }
    }
    PathBuf::from(root)
}

/// Whether two names lead to the same device, or the same file.
pub(crate) fn same(one: &Path, other: &Path) -> bool {
    let (Ok(one), Ok(other)) = (fs::metadata(one), fs::metadata(other)) else { return false };
    if one.file_type().is_block_device() && other.file_type().is_block_device() {
        one.rdev() == other.rdev()
    } else {
        (one.dev(), one.ino()) == (other.dev(), other.ino())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_command_line_says_which_slot_runs() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = |name: &str| dir.path().join(name);
        for name in ["a", "b", "c"] {
            fs::write(path(name), b"").expect("writes");
        }
        fs::create_dir(path("by-partuuid")).expect("a directory");
        std::os::unix::fs::symlink(path("b"), path("by-partuuid/0c1d-02")).expect("a link");
        let slots = Pair { a: path("a"), b: path("b") };
        let slot = |line: &str| cmdline(line, dir.path(), &slots).map_err(|error| error.to_string());
        assert_eq!(slot(&format!("quiet root={} rw", path("a").display())), Ok(Slot::A));
        assert_eq!(slot("root=PARTUUID=0C1D-02 rw"), Ok(Slot::B));
        assert_eq!(slot("root=/dev/dm-0 fleetwave.slot=B"), Ok(Slot::B));
        assert!(slot("fleetwave.slot=c").expect_err("no slot").contains("must be a or b"));
        for line in [format!("root={}", path("c").display()), "root=PARTUUID=1".into(), "quiet".into()] {
            assert!(slot(&line).expect_err("no slot").contains("needs fleetwave.slot=a or b"), "{line}");
        }
    }

    #[tokio::test]
    async fn a_file_or_a_program_may_say_it_and_nothing_else_than_a_slot() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("slot");
        let slots = Pair { a: "a".into(), b: "b".into() };
        fs::write(&file, "b\n").expect("writes");
        assert_eq!(running(&Running::File(file.clone()), &slots).await.expect("a slot"), Slot::B);
        fs::write(&file, "boot\n").expect("writes");
        let error = running(&Running::File(file), &slots).await.expect_err("no slot").to_string();
        assert!(error.ends_with("says \"boot\" runs: it must be a or b"), "{error}");
        let program = Running::Command(Command::new(["echo", "a"]));
        assert_eq!(running(&program, &slots).await.expect("a slot"), Slot::A);
    }
}
