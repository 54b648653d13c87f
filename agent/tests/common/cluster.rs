//! A real Kubernetes API server (`tools/devkube.sh`), for tests that play the machine below it.

#![allow(dead_code, reason = "each test crate uses its part")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Long enough for a loaded machine; nothing waits so long unless it fails.
const PATIENCE: Duration = Duration::from_secs(120);

/// A cluster, as a process that ends with this one.
pub(crate) struct Server {
    child: Child,
    dir: tempfile::TempDir,
}

impl Server {
    /// Starts one; `None` if there is none to start, which `FLEETWAVE_TEST_REAL=1` forbids.
    pub(crate) fn start() -> Option<Self> {
        let dir = tempfile::tempdir().expect("a directory");
        let child = Self::spawn(binary()?, dir.path(), 0);
        Some(Self { child, dir })
    }

    /// Between the choice of a port and its use somebody else may have taken it: then it is tried again.
    fn spawn(binary: &Path, dir: &Path, port: u16) -> Child {
        let give_up = Instant::now() + PATIENCE;
        loop {
            match Self::try_spawn(binary, dir, port, give_up) {
                Ok(child) => return child,
                Err(log) => {
                    let taken = log.contains("address already in use") && Instant::now() < give_up;
                    assert!(taken, "the cluster does not come up: {log}");
                }
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// The error is its log.
    fn try_spawn(binary: &Path, dir: &Path, port: u16, give_up: Instant) -> Result<Child, String> {
        let log = fs::File::create(dir.join("log")).expect("a log");
        let mut command = Command::new(binary);
        command.arg("-dir").arg(dir.join("cluster")).args(["-port", &port.to_string()]);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(log);
        let mut child = command.spawn().expect("the cluster starts");
        let ready = dir.join("cluster/kubeconfig");
        while !ready.exists() {
            let ended = child.try_wait().expect("a child").is_some();
            if ended || Instant::now() > give_up {
                let _ = child.kill();
                let _ = child.wait();
                return Err(fs::read_to_string(dir.join("log")).unwrap_or_default());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(child)
    }

    pub(crate) fn kubeconfig(&self, user: &str) -> PathBuf {
        let file = if user == "admin" { "kubeconfig".to_owned() } else { format!("{user}.kubeconfig") };
        self.dir.path().join("cluster").join(file)
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it ended");
    }

    /// The same cluster again, at the same address.
    pub(crate) fn restart(&mut self, port: u16) {
        let _ = fs::remove_file(self.kubeconfig("admin"));
        self.child = Self::spawn(binary().expect("it was started before"), self.dir.path(), port);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The program. Where it must be there, and nobody says where, it is built.
fn binary() -> Option<&'static Path> {
    static BINARY: OnceLock<Option<PathBuf>> = OnceLock::new();
    let find = || {
        if let Some(path) = std::env::var_os("FLEETWAVE_DEVKUBE") {
            return Some(path.into());
        }
        if std::env::var("FLEETWAVE_TEST_REAL").is_ok_and(|value| value == "1") {
            let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tools/devkube.sh");
            let built = Command::new(script).stderr(Stdio::inherit()).output().expect("the script runs");
            let path = String::from_utf8(built.stdout).expect("a path");
            assert!(built.status.success(), "FLEETWAVE_TEST_REAL=1, but there is no API server");
            return Some(path.trim_end().into());
        }
        eprintln!("skipped: there is no API server: FLEETWAVE_DEVKUBE=$(tools/devkube.sh) names one");
        None
    };
    BINARY.get_or_init(find).as_deref()
}
