//! The commands, as a user types them, on a hub in a process of its own.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

const FREE: [&str; 8] = ["--mqtt-port", "0", "--https-port", "0", "--amqps-port", "0", "--admin-port", "0"];

fn fleetwave() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fleetwave"));
    command.env_remove("FLEETWAVE_TARGET").stdin(Stdio::null());
    command
}

/// `fleetwave hub`; it is killed when the test ends.
struct Hub {
    child: Child,
    ready: Value,
}

impl Hub {
    fn start(dir: &Path) -> Self {
        let mut child = fleetwave()
            .args(["hub", "--json", "--cert-dir"])
            .arg(dir)
            .args(FREE)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the binary can be run");
        let mut line = String::new();
        let mut stdout = BufReader::new(child.stdout.take().expect("it is piped"));
        stdout.read_line(&mut line).expect("it says when it is ready");
        Self { child, ready: serde_json::from_str(&line).expect("the line is JSON") }
    }

    fn text(&self, member: &str) -> &str {
        self.ready[member].as_str().unwrap_or_else(|| panic!("no {member} in {}", self.ready))
    }

    /// The arguments that reach it: the connection string is in a file.
    fn arguments(&self, dir: &Path) -> Vec<String> {
        let file = dir.join("hub.txt");
        std::fs::write(&file, self.text("service_connection_string")).expect("written");
        ["--target-file", &file.display().to_string(), "--target-ca", self.text("ca"), "--tier", "none"]
            .map(str::to_owned)
            .to_vec()
    }

    fn mqtt_port(&self) -> String {
        self.ready["mqtt_port"].to_string()
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn run(hub: &Hub, scenario: &Path, arguments: &[String], more: &[&str]) -> Command {
    let mut command = fleetwave();
    command
        .arg("run")
        .arg(scenario)
        .args(["--engine", "live", "--quiet", "--mqtt-port", &hub.mqtt_port()])
        .args(arguments)
        .args(more);
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn output(mut command: Command) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = command.output().expect("the binary can be run");
    (status.code(), text(&stdout), text(&stderr))
}

fn clean(arguments: &[String], more: &[&str]) -> (Option<i32>, String, String) {
    let mut command = fleetwave();
    command.arg("clean").args(arguments).args(more);
    output(command)
}

#[test]
fn a_user_runs_on_a_hub_of_another_process_stops_and_cleans() {
    let dir = tempfile::tempdir().expect("a directory");
    let scenario = dir.path().join("scenario.toml");
    std::fs::write(&scenario, super::SCENARIO).expect("written");
    let hub = Hub::start(&dir.path().join("certs"));
    let arguments = hub.arguments(dir.path());

    // Nobody said yes, and there is no terminal to ask on.
    let (code, _, said) = output(run(&hub, &scenario, &arguments, &[]));
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("30 devices, fleetwave-") && said.contains("add --yes"), "{said}");

    let (code, summary, said) = output(run(&hub, &scenario, &arguments, &["--yes", "--json"]));
    assert_eq!(code, Some(0), "{summary}\n{said}");
    let record: Value = serde_json::from_str(&summary).expect("a record");
    assert_eq!(record["devices"]["converged"], 30);
    let key = hub.text("service_connection_string").rsplit("SharedAccessKey=").next().expect("a key");
    assert!(!format!("{summary}{said}").contains(key), "the key is nowhere");
    let (code, found, said) = clean(&arguments, &[]);
    assert_eq!((code, found.contains("nothing")), (Some(0), true), "{found}{said}");

    // A run that was killed leaves its devices, and `clean` finds them.
    let wait = ["--yes", "--set", "agent.splay=1h", "--set", "harness.max_duration=1h"];
    let mut killed = run(&hub, &scenario, &arguments, &wait);
    let mut child = killed.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("it can be run");
    let left = loop {
        let (code, found, said) = clean(&arguments, &["--all", "--dry-run"]);
        assert_eq!(code, Some(0), "{said}");
        if !found.contains("nothing") {
            break found;
        }
        assert!(child.try_wait().expect("it can be asked").is_none(), "it runs until it is killed");
    };
    child.kill().expect("it runs");
    child.wait().expect("it ends");
    let mut plan = String::new();
    child.stderr.take().expect("it is piped").read_to_string(&mut plan).expect("text");
    let id =
        plan.strip_prefix("Run ").and_then(|rest| rest.split(' ').next()).expect("the plan names the run");
    assert!(left.contains(id), "{left}");
    let (code, _, said) = clean(&arguments, &["--run", id]);
    assert_eq!(code, Some(0), "{said}");
    let (_, found, _) = clean(&arguments, &[]);
    assert!(found.contains("nothing"), "{found}");
}
