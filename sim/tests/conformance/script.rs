//! A script: a scenario of one device, and what is done to it when something was said.

use serde::Deserialize;
use serde_json::{Map, Value};
use toml_edit::DocumentMut;

/// What all scripts begin with. Times are short, and so that no draw decides what is said.
const BASE: &str = "
schema = 1
name = 'conformance'
[fleet]
devices = 1
[[fleet.group]]
name = 'all'
verify = '1Gbit/s'
install = '10ms'
reboot = '10ms'
probation = '10ms'
[grant]
latency = '150ms'
[agent]
splay = '0s'
backoff = { first = '50ms', max = '10m' }
reconnect = { first = '50ms', max = '5m' }
request_timeout = '60s'
grant_timeout = '2m'
keep_alive = '60s'
report_plan = true
checkpoint = '64MiB'
[harness]
max_lag = '1h'
max_duration = '60s'
[[step]]
connect = { storm = true }
[[step]]
wait = { until = 'connected >= 100%', timeout = '20s' }
[[step]]
wait = { for = '200ms' }
";

/// What all scripts end with: the last answers.
const END: &str = "
[[step]]
wait = { for = '400ms' }
";

/// A script, as its file has it beside the steps, releases and so on of a scenario.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Extras {
    /// Changes of the scenario, as `--set` makes them.
    pub(crate) set: Vec<String>,
    /// What is done, one after the other.
    pub(crate) act: Vec<Act>,
    /// What has to be among what was said, so that a script that misses its point is noticed.
    pub(crate) seen: Vec<String>,
    /// What the device's calendar is ahead of the scenario's `clock`, in milliseconds.
    pub(crate) ahead: u64,
}

/// Something that is done to the device.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Act {
    /// When something was said that contains this, after what the act before waited for.
    pub(crate) after: String,
    /// It waits so many milliseconds first.
    #[serde(default)]
    pub(crate) pause: u64,
    /// What is wrong with the blob store from now on; nothing if that is empty.
    pub(crate) store: Option<Trouble>,
    /// Calls a direct method.
    pub(crate) call: Option<Call>,
    /// Merges this into the desired properties.
    pub(crate) desire: Option<Map<String, Value>>,
    /// Gives it a release that no configuration gives, signed as all are.
    pub(crate) release: Option<Release>,
    /// Cuts its power for so many milliseconds.
    pub(crate) cut: Option<u64>,
    /// Lets it be interrupted from now on.
    #[serde(default)]
    pub(crate) free: bool,
    /// Takes the hub away for so many milliseconds.
    pub(crate) restart: Option<u64>,
}

/// What is wrong with the blob store.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Trouble {
    /// It answers with this status.
    pub(crate) status: Option<u16>,
    /// And asks for so many seconds.
    pub(crate) retry_after: Option<u32>,
    /// It ends each answer in the middle.
    #[serde(default)]
    pub(crate) truncated: bool,
    /// It sends other bytes than it has.
    #[serde(default)]
    pub(crate) corrupted: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Call {
    pub(crate) method: String,
    #[serde(default)]
    pub(crate) payload: Value,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Release {
    pub(crate) id: String,
    pub(crate) seq: u64,
    pub(crate) size: u64,
    pub(crate) target: Option<String>,
    #[serde(default)]
    pub(crate) compatible: Vec<String>,
}

/// The scenario's text, and the rest.
pub(crate) fn read(name: &str, text: &str) -> (String, Extras) {
    let mut scenario: DocumentMut = text.parse().unwrap_or_else(|error| panic!("{name}: {error}"));
    let mut extras = DocumentMut::new();
    for key in ["set", "act", "seen", "ahead"] {
        if let Some((key, item)) = scenario.remove_entry(key) {
            extras.insert(&key, item);
        }
    }
    let extras = toml_edit::de::from_document(extras).unwrap_or_else(|error| panic!("{name}: {error}"));
    (format!("{BASE}{scenario}{END}"), extras)
}
