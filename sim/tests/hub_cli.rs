//! `fleetwave hub` as a process: what it says, keeps, refuses, and how it ends.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use serde_json::Value;

/// Free ports, so that tests and a hub of the user's do not meet.
const FREE: [&str; 8] = ["--mqtt-port", "0", "--https-port", "0", "--amqps-port", "0", "--admin-port", "0"];

fn fleetwave() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fleetwave"));
    command.env("RUST_LOG", "trace").stdin(Stdio::null());
    command
}

/// A hub that runs; it is killed if the test ends before it is asked to end.
struct Hub {
    child: Child,
    stdout: BufReader<ChildStdout>,
    ready: Value,
}

impl Hub {
    fn start(data: &Path, more: &[&str]) -> Self {
        let mut child = fleetwave()
            .args(["hub", "--json", "--data"])
            .arg(data)
            .args(FREE)
            .args(more)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary can be run");
        let mut stdout = BufReader::new(child.stdout.take().expect("it is piped"));
        let mut line = String::new();
        stdout.read_line(&mut line).expect("it says when it is ready");
        if line.is_empty() {
            let mut log = String::new();
            child.stderr.take().expect("it is piped").read_to_string(&mut log).expect("logs are text");
            panic!("the hub did not start:\n{log}");
        }
        let ready = serde_json::from_str(&line).expect("the line is JSON");
        Self { child, stdout, ready }
    }

    fn text(&self, member: &str) -> &str {
        self.ready[member].as_str().unwrap_or_else(|| panic!("no {member} in {}", self.ready))
    }

    fn get(&self, path: &str) -> String {
        let address = self.text("admin").strip_prefix("http://").expect("a URL");
        let mut stream = TcpStream::connect(address).expect("the admin port listens");
        let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it answers");
        answer
    }

    /// Ends it by a signal; gives the exit code, the rest of its output, and its log.
    fn end(mut self, signal: &str) -> (Option<i32>, String, String) {
        let pid = self.child.id().to_string();
        let kill = Command::new("kill").args([signal, &pid]).status().expect("there is a `kill`");
        assert!(kill.success());
        let (mut rest, mut log) = (String::new(), String::new());
        self.stdout.read_to_string(&mut rest).expect("output is text");
        self.child.stderr.take().expect("it is piped").read_to_string(&mut log).expect("logs are text");
        let status = self.child.wait().expect("it ends");
        (status.code(), rest, log)
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn run(arguments: &[&str]) -> Output {
    fleetwave().args(arguments).output().expect("the binary can be run")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn it_says_how_to_reach_it_and_ends_in_good_order_by_either_signal() {
    let dir = tempfile::tempdir().expect("a directory for the test");
    for signal in ["-TERM", "-INT"] {
        let hub = Hub::start(dir.path(), &["--name", "my-hub.azure-devices.net"]);
        assert_eq!(hub.ready["event"], "ready");
        assert_eq!(hub.text("hub_name"), "my-hub.azure-devices.net");
        assert!(hub.text("service_connection_string").starts_with("HostName=my-hub.azure-devices.net"));
        for port in ["mqtt_port", "https_port", "amqps_port"] {
            let port = hub.ready[port].as_u64().unwrap_or_else(|| panic!("no {port} in {}", hub.ready));
            TcpStream::connect(("127.0.0.1", port as u16)).expect("it listens");
        }
        assert!(hub.get("/healthz").starts_with("HTTP/1.1 200"));
        let pem = std::fs::read_to_string(hub.text("ca")).expect("the certificate is where it says");
        assert!(hub.get("/ca.pem").ends_with(&pem));
        let (code, rest, _) = hub.end(signal);
        assert_eq!((code, rest.as_str()), (Some(0), "{\"event\":\"draining\"}\n"), "{signal}");
    }
}

#[test]
fn keys_and_certificate_stay_and_no_key_is_in_a_log_or_for_others_to_read() {
    let dir = tempfile::tempdir().expect("a directory for the test");
    let first = Hub::start(dir.path(), &[]);
    let keys = std::fs::read_to_string(dir.path().join("keys.json")).expect("keys are kept");
    for secret in ["keys.json", "running.json", "certs/ca.key", "certs/server.key"] {
        let mode = std::fs::metadata(dir.path().join(secret)).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o077, 0, "{secret} is for its owner alone");
    }
    let known = |hub: &Hub| {
        let key = hub.text("service_connection_string").rsplit("SharedAccessKey=").next().map(str::to_owned);
        (key, hub.text("id_scope").to_owned(), std::fs::read_to_string(hub.text("ca")).ok())
    };
    let before = known(&first);
    let added = run(&["hub", "device", "add", "d1", "--data", &dir.path().display().to_string()]);
    assert!(added.status.success(), "{}", text(&added.stderr));
    let device_key = text(&added.stdout).trim().rsplit("SharedAccessKey=").next().map(str::to_owned);
    let (_, _, log) = first.end("-TERM");
    assert!(log.contains("the hub ends"), "the log has something to hide keys in");
    let keys: Value = serde_json::from_str(&keys).expect("keys are JSON");
    let mut secrets: Vec<String> = device_key.into_iter().collect();
    secrets.push(keys["group_key"].as_str().expect("a key").to_owned());
    for pair in keys["policies"].as_object().expect("policies").values() {
        secrets.extend(pair.as_array().expect("two").iter().filter_map(Value::as_str).map(str::to_owned));
    }
    assert!(secrets.len() > 10 && secrets.iter().all(|secret| secret.len() >= 32));
    for secret in secrets {
        assert!(!log.contains(&secret) && !text(&added.stderr).contains(&secret), "a key is in the log");
    }
    assert!(!dir.path().join("running.json").exists());
    let again = Hub::start(dir.path(), &[]);
    assert_eq!(known(&again), before);
    assert!(again.get("/metrics").contains("fleetwave_hub_devices 1\n"), "the device is there again");
}

#[test]
fn devices_are_created_at_the_hub_that_runs_and_a_refusal_is_told() {
    let dir = tempfile::tempdir().expect("a directory for the test");
    let data = dir.path().display().to_string();
    let add = |id: &str| run(&["hub", "device", "add", id, "--data", &data]);
    let nobody = add("d1");
    assert_eq!(nobody.status.code(), Some(1));
    assert!(text(&nobody.stderr).contains("start `fleetwave hub`"), "{}", text(&nobody.stderr));
    let hub = Hub::start(dir.path(), &[]);
    let added = add("d#1");
    assert!(text(&added.stdout).starts_with("HostName=localhost;DeviceId=d#1;SharedAccessKey="));
    assert!(hub.get("/metrics").contains("fleetwave_hub_devices 1\n"));
    let again = add("d#1");
    assert_eq!(again.status.code(), Some(1));
    assert!(text(&again.stderr).contains("DeviceAlreadyExists"), "{}", text(&again.stderr));
}

#[test]
fn two_hubs_do_not_share_a_directory() {
    let dir = tempfile::tempdir().expect("a directory for the test");
    let hub = Hub::start(dir.path(), &[]);
    let mut arguments = vec!["hub", "--data", dir.path().to_str().expect("text")];
    arguments.extend(FREE);
    let output = run(&arguments);
    assert_eq!(output.status.code(), Some(1));
    let message = text(&output.stderr);
    assert!(message.contains("in use by another hub"), "{message}");
    assert!(message.contains(&dir.path().display().to_string()), "{message}");
    assert_eq!(hub.end("-TERM").0, Some(0));
}

#[test]
fn a_port_in_use_is_named_with_its_option_and_a_way_out() {
    let dir = tempfile::tempdir().expect("a directory for the test");
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let port = taken.local_addr().expect("it is bound").port().to_string();
    for option in
        ["--mqtt-port", "--https-port", "--amqps-port", "--admin-port", "--plain-mqtt-port", "--bus-port"]
    {
        let mut arguments = vec!["hub", "--data", dir.path().to_str().expect("text")];
        let others = FREE.chunks(2).filter(|pair| pair[0] != option).flatten();
        arguments.extend(others.copied().chain([option, &port]));
        let output = run(&arguments);
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{option}: {message}");
        assert!(message.contains(&format!("127.0.0.1:{port} ({option})")), "{message}");
        assert!(message.contains(&format!("choose another port: `{option} ")), "{message}");
        assert!(output.stdout.is_empty(), "it is not ready");
    }
}

#[test]
fn the_table_fits_a_hundred_columns_as_far_as_names_let_it() {
    // A short path, as users have.
    let dir = tempfile::Builder::new().prefix("h").tempdir_in("/tmp").expect("a directory for the test");
    let mut child = fleetwave()
        .args(["hub", "--data"])
        .arg(dir.path())
        .args(FREE)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the binary can be run");
    let mut lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
    let table: Vec<String> = lines
        .by_ref()
        .map(|line| line.expect("output is text"))
        .take_while(|line| !line.contains("docs/sdks.md"))
        .collect();
    child.kill().expect("it runs");
    child.wait().expect("it ends");
    assert!(table.len() > 15, "{table:#?}");
    for line in table.iter().filter(|line| !line.starts_with("HostName=")) {
        assert!(line.chars().count() <= 100, "{line}");
    }
}

#[test]
fn a_second_hub_answers_beside_the_first() {
    let dirs = [0, 1].map(|_| tempfile::tempdir().expect("a directory for the test"));
    let hubs = [0, 1].map(|hub| Hub::start(dirs[hub].path(), &["--tier", "s1"]));
    assert_ne!(hubs[0].text("service_connection_string"), hubs[1].text("service_connection_string"));
    for hub in &hubs {
        assert!(hub.get("/healthz").contains(r#""status":"ok""#));
    }
}

#[test]
fn scripted_devices_come_as_the_scenario_says() {
    let dir = tempfile::tempdir().expect("a directory for the test");
    let arguments = ["--devices", "quickstart", "--set", "fleet.devices=20", "--set", "script.answer=0ms"];
    let hub = Hub::start(dir.path(), &arguments);
    assert_eq!(hub.ready["scripted_devices"], 20);
    while !hub.get("/metrics").contains("fleetwave_hub_sessions 20\n") {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let (code, _, _) = hub.end("-TERM");
    assert_eq!(code, Some(0));
    // They are the hub's now, and come again.
    let hub = Hub::start(dir.path(), &arguments);
    while !hub.get("/metrics").contains("fleetwave_hub_sessions 20\n") {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

#[test]
fn the_storage_account_comes_from_a_file_and_what_is_wrong_with_it_is_said_without_its_key() {
    let dir = tempfile::tempdir().expect("a directory for the test");
    let file = dir.path().join("storage");
    let file_name = file.to_str().expect("text");
    std::fs::write(&file, "AccountName=a;AccountKey=no base64, but secret\n").expect("it is writable");
    let mut arguments = vec!["hub", "--data", dir.path().to_str().expect("text"), "--storage", file_name];
    arguments.extend(FREE);
    let output = run(&arguments);
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2));
    assert!(message.contains("AccountKey") && !message.contains("secret"), "{message}");
    std::fs::write(&file, "UseDevelopmentStorage=true").expect("it is writable");
    let hub = Hub::start(dir.path(), &["--storage", file_name]);
    assert_eq!(hub.end("-TERM").0, Some(0));
}

#[test]
fn a_wrong_scenario_or_option_is_wrong_usage() {
    let dir = tempfile::tempdir().expect("a directory for the test");
    let data = dir.path().to_str().expect("text");
    let certificate = dir.path().join("no-certificate");
    std::fs::write(&certificate, "hello").expect("it is writable");
    let certificate = certificate.to_str().expect("text");
    for (arguments, expected) in [
        (&["--devices", "no-such-scenario"][..], "no-such-scenario"),
        (&["--tier", "S4"], "S1"),
        (&["--set", "fleet.devices=5"], "name it, too, by --devices"),
        (&["--releases-port", "9000"], "name their directory, too, by `--releases DIR`"),
        (&["--storage-container", "logs"], "name the storage account, too"),
        (&["--storage-ca", certificate], "name the storage account, too"),
        (&["--storage", "AccountName=a;AccountKey=eA==", "--storage-container", "Logs"], "lower-case"),
        (&["--units", "2"], "name the tier, too: `--tier S1`"),
        (&["--config-cycle", "0s"], "leave it out"),
        (
            &["--mqtt-port", "9100", "--https-port", "9100"],
            "--mqtt-port and --https-port are the same port, 9100",
        ),
        (&["--name", "my hub"], "\"my hub\" cannot stand in a certificate"),
        (&["--device-ca", certificate], "give a file with the authority's certificate"),
        (&["device", "add", "d1"], "--data <DIR> cannot stand before `device`"),
    ] {
        let output = fleetwave()
            .args(["hub", "--data", data])
            .args(arguments)
            .env_remove("FLEETWAVE_STORAGE")
            .output()
            .expect("the binary can be run");
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(text(&output.stderr).contains(expected), "{}", text(&output.stderr));
    }
}

#[test]
fn a_release_is_called_off_by_a_configuration_and_one_id_is_not_given_twice() {
    let dir = tempfile::tempdir().expect("a directory for the test");
    let data = dir.path().to_str().expect("text");
    let at = |name: &str| dir.path().join(name).display().to_string();
    assert!(run(&["release", "key", &at("key")]).status.success());
    std::fs::write(at("image"), "an image").expect("it is writable");
    let key = format!("k1={}", at("key"));
    let create =
        ["release", "create", &at("image"), "--id", "fw-2", "--seq", "2", "--key", &key, "--out", &at("out")];
    assert!(run(&create).status.success());
    let mut hub = Hub::start(dir.path(), &[]);
    // What is logged at `trace` is more than a pipe holds.
    let mut log = hub.child.stderr.take().expect("it is piped");
    std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
    assert!(run(&["hub", "device", "add", "d1", "--data", data]).status.success());
    let release = at("out/fw-2-2");
    let configure = |id, more: &[&str]| {
        let mut arguments =
            vec!["hub", "configure", id, "--release", &release, "--condition", "*", "--data", data];
        arguments.extend(more);
        run(&arguments)
    };
    let desired = || {
        let twin: Value =
            serde_json::from_slice(&run(&["hub", "twin", "d1", "--data", data]).stdout).expect("JSON");
        (
            twin["properties"]["desired"]["firmware"]["id"].clone(),
            twin["properties"]["desired"]["firmware"]["cancel"].clone(),
        )
    };
    assert!(configure("rollout", &[]).status.success());
    assert_eq!(desired(), ("fw-2".into(), Value::Null));
    let again = configure("rollout", &["--cancel"]);
    assert_eq!(again.status.code(), Some(1));
    assert!(text(&again.stderr).contains("`fleetwave hub unconfigure rollout`"), "{}", text(&again.stderr));
    assert!(configure("stop", &["--cancel", "--priority", "20"]).status.success());
    assert_eq!(desired(), ("fw-2".into(), true.into()));
    assert!(run(&["hub", "unconfigure", "stop", "--data", data]).status.success());
    assert_eq!(desired(), ("fw-2".into(), Value::Null));
}
