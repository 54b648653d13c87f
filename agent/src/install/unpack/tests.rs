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
fn devices_pipes_holes_and_setuid_are_refused_unless_allowed() {
    // What GNU tar writes in place of a file with holes.
    let holes = archive(|tar| {
        tar.append_pax_extensions([("GNU.sparse.major", &b"1"[..])]).expect("a vector takes it");
        add(tar, "GNUSparseFile.1/x", EntryType::Regular, b"1\n", "");
    });
    assert!(unpacked(&holes, &RULES).1.expect_err("refused").contains("x has holes"));
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
fn a_directory_is_given_away_only_when_all_of_it_is_there() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root gives files away");
        return;
    }
    let rules = Rules { owner: Some(Owner { user: 1, group: Some(1) }), ..RULES };
    let files = |tar: &mut Builder<Vec<u8>>| {
        add(tar, "named/", EntryType::Directory, b"", "");
        add(tar, "named/by/nobody", EntryType::Regular, b"", "");
    };
    let owner = |dir: &TempDir, name: &str| {
        fs::symlink_metadata(dir.path().join("tree").join(name)).expect("there").uid()
    };
    let (dir, result) = unpacked(&archive(files), &rules);
    assert_eq!(result, Ok(()));
    for name in ["", "named", "named/by", "named/by/nobody"] {
        assert_eq!(owner(&dir, name), 1, "{name}");
    }
    // Whoever owns a directory can put a link in the place of what is in it, while others still write there.
    let (dir, result) = unpacked(
        &archive(|tar| {
            files(tar);
            add(tar, "named/by/nobody", EntryType::Fifo, b"", "");
        }),
        &rules,
    );
    assert!(result.expect_err("refused").contains("is a pipe"));
    for name in ["", "named", "named/by"] {
        assert_eq!(owner(&dir, name), 0, "{name}");
    }
}

#[test]
fn modes_of_directories_hold_whatever_their_order_in_the_archive() {
    let bytes = archive(|tar| {
        for (name, mode) in [("a/b/c", 0o750), ("a/b", 0o500), ("a", 0o711)] {
            let mut header = header(EntryType::Directory, 0);
            header.set_mode(mode);
            tar.append_data(&mut header, name, io::empty()).expect("a vector takes it");
        }
        add(tar, "a/b/file", EntryType::Regular, b"", "");
    });
    let (dir, result) = unpacked(&bytes, &RULES);
    assert_eq!(result, Ok(()));
    let mode = |name: &str| fs::metadata(dir.path().join("tree").join(name)).expect("there").mode() & 0o7777;
    assert_eq!((mode("a/b/c"), mode("a/b"), mode("a")), (0o750, 0o500, 0o711));
}

#[test]
fn an_archive_that_unfolds_into_more_than_allowed_is_refused_in_time() {
    let many = archive(|tar| {
        (0..11).for_each(|n| add(tar, &format!("f{n}"), EntryType::Regular, b"", ""));
    });
    assert!(unpacked(&many, &RULES).1.expect_err("refused").contains("max_files"));
    let deep = archive(|tar| add(tar, "a/b/c/d/e/f/g/h/i/j/k", EntryType::Regular, b"", ""));
    assert!(unpacked(&deep, &RULES).1.expect_err("refused").contains("max_files"), "unnamed ones count");

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
