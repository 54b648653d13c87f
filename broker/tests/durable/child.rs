//! The hub's process, from within and from without.

use std::env;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use fleetwave_hub::store::Table;
use fleetwave_hub::{HubControl, HubServer, NewDevice, TwinChange};
use fleetwave_hub_core::{C2dMessage, Configuration, ConfigurationSpec, Options};
use serde_json::Value;

const DIR: &str = "FLEETWAVE_TEST_HUB_DIR";
const SHARDS: &str = "FLEETWAVE_TEST_HUB_SHARDS";
/// Stands before what is meant for the test; the test runner says things, too.
const MARK: &str = "hub: ";

/// The hub under test: this binary, started again with a folder in the environment. Otherwise nothing.
#[test]
fn hub_process() {
    let Ok(dir) = env::var(DIR) else { return };
    say("starts");
    let shards = env::var(SHARDS).unwrap().parse().unwrap();
    let hub = HubServer::builder()
        .shards(shards)
        .data(dir)
        .options(Options { c2d_max_deliveries: u32::MAX, ..Options::default() })
        .tcp(SocketAddr::from(([127, 0, 0, 1], 0)))
        .start()
        .unwrap();
    say(&format!("ready {}", hub.address().unwrap().port()));
    let (control, rows) = (hub.control(), hub.store().table::<u64>("rows"));
    for line in std::io::stdin().lines() {
        say(&obey(&control, &rows, &line.unwrap()));
    }
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{MARK}{line}").unwrap();
    out.flush().unwrap();
}

fn obey(control: &HubControl, rows: &Table<u64>, line: &str) -> String {
    let words: Vec<_> = line.split(' ').collect();
    let patch = |text: String| Some(text.into_bytes());
    let done = match words[..] {
        ["create", id] => control.create_devices([NewDevice::new(id)]).map(drop),
        ["tags", id, n] => {
            let tags = patch(format!("{{\"n\":{n}}}"));
            control.patch_twin(id, TwinChange { tags, ..TwinChange::default() }).map(drop)
        }
        ["desired", id, n] => {
            let desired = patch(format!("{{\"n\":{n}}}"));
            control.patch_twin(id, TwinChange { desired, ..TwinChange::default() }).map(drop)
        }
        ["configuration", n] => {
            let configuration = Configuration::new(&ConfigurationSpec {
                id: "c",
                target_condition: "*",
                device_content: &format!("{{\"properties.desired.c\":{n}}}"),
                ..ConfigurationSpec::default()
            });
            control.put_configuration(configuration.unwrap()).map(drop)
        }
        ["c2d", id, n] => {
            let body = n.as_bytes().into();
            control.send_c2d(id, C2dMessage { body, ..C2dMessage::default() }).map(drop)
        }
        ["row", n] => {
            rows.write_blocking([("k", Some(&n.parse().unwrap()))]).unwrap();
            Ok(())
        }
        ["read-row"] => {
            return rows.load_all().unwrap().first().map_or_else(|| "0".into(), |(_, n)| n.to_string());
        }
        ["twin", id] => {
            return control.twin(id).map_or_else(|_| "null".into(), |twin| String::from_utf8(twin).unwrap());
        }
        _ => panic!("{line:?} is no command"),
    };
    done.map_or_else(|error| format!("no: {error}"), |()| "ok".into())
}

/// The process, as the test holds it.
pub(crate) struct HubProcess {
    child: Child,
    /// There until they are taken.
    pipes: Option<(ChildStdin, BufReader<ChildStdout>)>,
}

/// The next line that the hub said, or `None` if it is dead.
pub(crate) fn answer(answers: &mut BufReader<ChildStdout>) -> Option<String> {
    loop {
        let mut line = String::new();
        // A line that is cut off was not said.
        if answers.read_line(&mut line).unwrap() == 0 || !line.ends_with('\n') {
            return None;
        }
        if let Some((_, said)) = line.trim_end().split_once(MARK) {
            return Some(said.to_owned());
        }
    }
}

impl HubProcess {
    pub(crate) fn spawn(dir: &Path, shards: usize) -> Self {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "child::hub_process", "--nocapture"])
            .env(DIR, dir)
            .env(SHARDS, shards.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let commands = child.stdin.take().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        Self { child, pipes: Some((commands, answers)) }
    }

    pub(crate) fn wait_until_it_starts(&mut self) {
        assert_eq!(answer(self.answers()).as_deref(), Some("starts"));
    }

    /// Waits until it serves, and says on which port.
    pub(crate) fn ready(&mut self) -> u16 {
        self.wait_until_it_starts();
        let line = answer(self.answers()).expect("the hub starts");
        line.strip_prefix("ready ").and_then(|port| port.parse().ok()).expect("a port")
    }

    /// Asks for something of a hub that lives.
    pub(crate) fn ask(&mut self, command: &str) -> String {
        writeln!(self.pipes.as_mut().unwrap().0, "{command}").unwrap();
        answer(self.answers()).expect("the hub answers")
    }

    pub(crate) fn twin(&mut self, id: &str) -> Value {
        serde_json::from_str(&self.ask(&format!("twin {id}"))).unwrap()
    }

    fn answers(&mut self) -> &mut BufReader<ChildStdout> {
        &mut self.pipes.as_mut().unwrap().1
    }

    /// The ways to and from it, for somebody else to use from now on.
    pub(crate) fn take_pipes(&mut self) -> (ChildStdin, BufReader<ChildStdout>) {
        self.pipes.take().unwrap()
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for HubProcess {
    fn drop(&mut self) {
        self.kill();
    }
}
