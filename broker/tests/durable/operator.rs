//! The back end: one write after the other, each noted before and after.

use std::collections::BTreeSet;
use std::io::{BufReader, Write as _};
use std::process::{ChildStdin, ChildStdout};
use std::sync::mpsc::Sender;

use rand::RngExt as _;
use rand::rngs::StdRng;

use crate::child::{HubProcess, answer};
use crate::{REPORTERS, Register};

/// The device whose twin it writes.
const TWIN: &str = "op";
/// The device that it sends messages to.
pub(crate) const QUEUE: &str = "q";

/// What it wrote.
#[derive(Debug, Default)]
pub(crate) struct Operator {
    prepared: bool,
    created: Register,
    tags: Register,
    desired: Register,
    configuration: Register,
    row: Register,
    sent: Register,
    /// Messages that are there or not.
    pub(crate) uncertain: BTreeSet<u64>,
}

/// What happened to a message: it was queued.
pub(crate) struct Queued(pub(crate) u64);

impl Operator {
    /// The newest message that was certainly queued.
    pub(crate) fn last_queued(&self) -> u64 {
        self.sent.acknowledged
    }

    /// Makes the devices that everybody needs.
    pub(crate) fn prepare(&mut self, hub: &mut HubProcess) {
        if std::mem::replace(&mut self.prepared, true) {
            return;
        }
        let names = (0..REPORTERS).map(|n| format!("r{n}")).chain([TWIN.into(), QUEUE.into()]);
        for name in names {
            assert_eq!(hub.ask(&format!("create {name}")), "ok");
        }
    }

    /// Compares all that was acknowledged with what is there.
    pub(crate) fn check(&mut self, hub: &mut HubProcess) {
        let twin = hub.twin(TWIN);
        let number = |value: &serde_json::Value| value.as_u64().unwrap_or_default();
        self.tags.check("tags.n", number(&twin["tags"]["n"]));
        let desired = &twin["properties"]["desired"];
        self.desired.check("desired.n", number(&desired["n"]));
        self.configuration.check("the configuration's value", number(&desired["c"]));
        self.row.check("the row", hub.ask("read-row").parse().unwrap());
        let exists = |hub: &mut HubProcess, n: u64| hub.twin(&format!("new-{n}")).is_object();
        for n in 1..=self.created.acknowledged {
            assert!(exists(hub, n), "new-{n} was acknowledged");
        }
        if self.configuration.acknowledged > 0 {
            for id in (0..REPORTERS).map(|n| format!("r{n}")) {
                let value = number(&hub.twin(&id)["properties"]["desired"]["c"]);
                assert_eq!(value, self.configuration.acknowledged, "{id} in another shard has the same");
            }
        }
        if self.created.tried > self.created.acknowledged && exists(hub, self.created.tried) {
            self.created.acknowledge(self.created.tried);
        }
        self.created.tried = self.created.acknowledged;
    }

    /// Writes until the hub is dead.
    pub(crate) fn run(
        &mut self,
        mut commands: ChildStdin,
        mut answers: BufReader<ChildStdout>,
        mut rng: StdRng,
        ack: &Sender<&'static str>,
        queued: &Sender<Queued>,
    ) {
        loop {
            let (kind, register, target) = match rng.random_range(0..12) {
                0..3 => ("tags", &mut self.tags, Some(TWIN)),
                3..6 => ("desired", &mut self.desired, Some(TWIN)),
                6..8 => ("configuration", &mut self.configuration, None),
                8 => ("row", &mut self.row, None),
                9 => ("create", &mut self.created, None),
                _ => ("c2d", &mut self.sent, Some(QUEUE)),
            };
            let number = register.next();
            let command = match (kind, target) {
                ("create", _) => format!("create new-{number}"),
                (kind, Some(target)) => format!("{kind} {target} {number}"),
                (kind, None) => format!("{kind} {number}"),
            };
            let said = match writeln!(commands, "{command}") {
                Ok(()) => answer(&mut answers),
                Err(_) => None,
            };
            match said.as_deref() {
                Some("ok") => {
                    register.acknowledge(number);
                    let _ = ack.send(kind);
                    if kind == "c2d" {
                        let _ = queued.send(Queued(number));
                    }
                }
                // The queue is full.
                Some(refused) if kind == "c2d" => {
                    assert!(refused.contains("50 messages wait"), "{refused}");
                    register.tried -= 1;
                }
                Some(refused) => panic!("{command}: {refused}"),
                None => {
                    if kind == "c2d" {
                        self.uncertain.insert(number);
                    }
                    return;
                }
            }
        }
    }
}
