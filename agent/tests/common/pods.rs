//! The real podman, with storage and images of a test's own.

use std::path::Path;
use std::process::Command;

use crate::real;

/// What works in a container without systemd; nothing that is shared with other storage on the machine.
const CONF: &str = "[containers]\ndefault_ulimits = [\"nofile=20000:20000\", \"nproc=10000:10000\"]\n\
                    [network]\nnetwork_backend = \"netavark\"\n\
                    [engine]\nruntime = \"runc\"\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\n\
                    infra_image = \"localhost/pause:1\"\nlock_type = \"file\"\n";

/// A container's script that goes on until it is told to end: as process 1 a shell ends on a signal only if it asks
/// for it.
pub(crate) const SERVE: &str = "trap 'exit 0' TERM; busybox sleep 1000 & wait";

/// Podman with an image of busybox, `localhost/app:1`.
pub(crate) struct Podman(tempfile::TempDir);

impl Podman {
    /// `None`, and a word about it, if podman is not here.
    pub(crate) fn new() -> Option<Self> {
        if !(real::have("podman") && real::have("runc") && real::have("busybox")) {
            return None;
        }
        let podman = Self(tempfile::tempdir().expect("a directory"));
        let path = |name: &str| podman.0.path().join(name);
        std::fs::write(path("containers.conf"), format!("{CONF}tmp_dir = {:?}\n", path("tmp")))
            .expect("written");
        let root = path("image/bin");
        std::fs::create_dir_all(&root).expect("created");
        let busybox = ["/usr/bin/busybox", "/bin/busybox"].into_iter().find(|path| Path::new(path).is_file());
        std::fs::copy(busybox.expect("busybox"), root.join("busybox")).expect("copied");
        std::os::unix::fs::symlink("busybox", root.join("sh")).expect("linked");
        let image = path("image.tar");
        let mut tar = tar::Builder::new(std::fs::File::create(&image).expect("created"));
        tar.follow_symlinks(false);
        tar.append_dir_all(".", path("image")).expect("packed");
        tar.into_inner().expect("packed");
        let idle = format!("CMD [\"/bin/sh\", \"-c\", \"{SERVE}\"]");
        for name in ["localhost/pause:1", "localhost/app:1"] {
            podman.run(&["import", "-c", &idle, image.to_str().expect("text"), name]);
        }
        Some(podman)
    }

    fn words(&self) -> [String; 9] {
        let path = |name: &str| self.0.path().join(name).display().to_string();
        let conf = format!("CONTAINERS_CONF={}", path("containers.conf"));
        let (root, run) = (path("root"), path("run"));
        ["env", &conf, "podman", "--root", &root, "--runroot", &run, "--storage-driver", "vfs"]
            .map(str::to_owned)
    }

    /// What the agent's configuration says of it.
    pub(crate) fn section(&self) -> String {
        format!("podman = {:?}\nplay_options = ['--network', 'none']\n", self.words())
    }

    /// Runs it, and gives what it prints.
    pub(crate) fn run(&self, words: &[&str]) -> String {
        let always = self.words();
        let output = Command::new(&always[0]).args(&always[1..]).args(words).output().expect("podman runs");
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// The running containers, by name.
    pub(crate) fn running(&self) -> Vec<String> {
        let names = self.run(&["ps", "--filter", "status=running", "--format", "{{.Names}}"]);
        let names = names.lines().filter(|name| !name.ends_with("-infra"));
        let mut names: Vec<_> = names.map(str::to_owned).collect();
        names.sort();
        names
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        let always = self.words();
        let ended =
            Command::new(&always[0]).args(&always[1..]).args(["pod", "rm", "--all", "--force"]).output();
        assert!(ended.is_ok_and(|output| output.status.success()), "pods are left");
    }
}

/// A pod whose only container runs `script`.
pub(crate) fn pod(name: &str, script: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\nspec:\n  restartPolicy: Never\n  containers:\n  \
         - name: main\n    image: localhost/app:1\n    command: [\"/bin/sh\", \"-c\", \"{script}\"]\n"
    )
}
