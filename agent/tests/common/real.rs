//! Programs of the system that tests run for real.

#![allow(dead_code, reason = "each test crate uses its part")]

use std::path::Path;

/// Whether a program is there. Without it a test is skipped, and says so; where `FLEETWAVE_TEST_REAL` is 1 it fails.
pub(crate) fn have(tool: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // What only root needs is not in everybody's path.
    let dirs = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    let found = dirs.map(|dir| dir.join(tool)).any(|file| Path::is_file(&file));
    found || missing(&format!("{tool} is not installed"))
}

/// Whether a file of a package is there.
pub(crate) fn have_file(path: &str, package: &str) -> bool {
    Path::new(path).is_file() || missing(&format!("{package} is not installed"))
}

/// Whether this is root, with devices: what mounts and loop devices need.
pub(crate) fn have_loop_devices() -> bool {
    let root = std::process::Command::new("losetup").arg("-f").output().is_ok_and(|out| out.status.success());
    root || missing("there are no loop devices")
}

fn missing(what: &str) -> bool {
    let must = std::env::var("FLEETWAVE_TEST_REAL").is_ok_and(|value| value == "1");
    assert!(!must, "FLEETWAVE_TEST_REAL=1, but {what}");
    eprintln!("skipped: {what}");
    false
}
