//! What was said, in a form in which two devices that do the same say the same.
//!
//! What is left out or made equal, and why:
//!
//! * PINGREQ and its answer: they depend on the time alone that passes without anything else.
//! * The user name in CONNECT: it names the client's library and the hub's interface. That the hub takes it shows in
//!   CONNACK. The token stands in the password, which is not recorded.
//! * Request ids: each side may choose them. They are numbered in the order in which they first come, so that an answer
//!   still belongs to its question.
//! * Links of grants: host, signature and end of a link are the run's. The blob's name stays.
//! * Ranges: a download that goes on in the middle does so from where its device had come to, which is a matter of time.
//!   That it goes on, and does not begin again, stays.
//! * What a refused method says to people: its status is what programs go by.
//! * `cause`, in which an agent says in words why an update failed: a simulated device has none, as it has no programs
//!   that fail. The code beside it stays.
//! * Log, version and uptime do not occur: what simulated devices do not have (`status`, `collect-logs`, `reboot`) no
//!   script calls.
//!
//! Who speaks when is compared for each voice alone: two sides of a connection, and the store, write at the same time,
//! and which of them comes first in the record is luck.

use std::collections::BTreeMap;

use fleetwave_hub::recorder::{Body, Entry, Voice};
use serde_json::Value;

/// What one voice said, a line each.
pub(crate) fn lines(entries: &[Entry], voice: Voice) -> Vec<String> {
    let mut ids = Ids::default();
    let mut lines = Vec::new();
    for entry in entries {
        let head = ids.told(entry);
        if entry.voice == voice {
            lines.extend(line(entry, head));
        }
    }
    lines
}

/// All that was said in its order, to read.
pub(crate) fn transcript(entries: &[Entry]) -> String {
    entries.iter().map(|entry| format!("  {entry}\n")).collect()
}

/// Request ids: which of its asker's requests each one was last. A device may begin with 1 again when it boots.
#[derive(Debug, Default)]
struct Ids {
    last: BTreeMap<(Asker, String), usize>,
    asked: BTreeMap<Asker, usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Asker {
    Device,
    Hub,
}

impl Ids {
    /// What stands beside the body, with the number of the request in place of its id.
    fn told(&mut self, Entry { head, .. }: &Entry) -> String {
        let Some((before, rest)) = head.split_once("$rid=") else { return head.clone() };
        let rid = rest.split('&').next().unwrap_or_default();
        let asker = if head.contains("$iothub/methods/") { Asker::Hub } else { Asker::Device };
        let key = (asker, rid.to_owned());
        let asks = ["$iothub/twin/GET", "$iothub/twin/PATCH/properties/reported", "$iothub/methods/POST"];
        if asks.iter().any(|topic| head.contains(topic)) {
            let asked = self.asked.entry(asker).or_default();
            *asked += 1;
            self.last.insert(key.clone(), *asked);
        }
        let number = self.last.get(&key).map_or_else(|| "?".to_owned(), usize::to_string);
        format!("{before}$rid=#{number}{}", &rest[rid.len()..])
    }
}

fn line(entry: &Entry, mut head: String) -> Option<String> {
    if head.starts_with("PING") {
        return None;
    }
    if let Some((before, rest)) = head.split_once(" user=") {
        let will = rest.split_once(' ').map_or(String::new(), |(_, will)| format!(" {will}"));
        head = format!("{before}{will}");
    }
    if entry.voice == Voice::Download {
        head = same_range(&head);
    }
    let mut body = entry.body.clone();
    if let Body::Json(value) = &mut body
        && (head.contains("$iothub/methods/POST/grant") || head.contains("/messages/devicebound/"))
    {
        same_link(value);
    }
    if let Body::Json(value) = &mut body
        && head.contains("$iothub/twin/")
    {
        without_cause(value);
    }
    if head.contains("$iothub/methods/res/4") {
        body = Body::Empty;
    }
    Some(Entry { head, body, ..entry.clone() }.to_string())
}

/// `bytes=4711-65535` is from the middle on, wherever that is.
fn same_range(head: &str) -> String {
    match head.split_once("bytes=") {
        Some((before, rest)) if !rest.starts_with("0-") => {
            let rest = rest.split_once('-').map_or(rest, |(_, rest)| rest);
            format!("{before}bytes=(from the middle)-{rest}")
        }
        _ => head.to_owned(),
    }
}

fn same_link(answer: &mut Value) {
    let Some(granted) = answer.as_object_mut() else { return };
    for (name, value) in granted {
        match (name.as_str(), &mut *value) {
            ("url", Value::String(url)) => {
                let path = url.split_once("/blobs/").map_or("?", |(_, path)| path);
                *url = path.split('?').next().unwrap_or_default().to_owned();
            }
            ("expires", value) => *value = "(a time)".into(),
            (_, value) => same_link(value),
        }
    }
}

fn without_cause(twin: &mut Value) {
    let Some(members) = twin.as_object_mut() else { return };
    if members.contains_key("running") {
        members.remove("cause");
    }
    members.values_mut().for_each(without_cause);
}

#[test]
fn lines_keep_what_was_meant_and_lose_what_is_the_runs() {
    let said =
        |voice, head: &str, body: Body| Entry { device: "d".into(), voice, head: head.to_owned(), body };
    let entries = [
        said(Voice::Device, "CONNECT clean=false keep_alive=60 user=hub/d/?api-version=1", Body::Empty),
        said(Voice::Device, "PUBLISH q0 $iothub/twin/GET/?$rid=41", Body::Empty),
        said(Voice::Device, "PINGREQ", Body::Empty),
        said(Voice::Hub, "PUBLISH q0 $iothub/twin/res/200/?$rid=41", Body::Json(Value::from(1))),
        said(
            Voice::Hub,
            "PUBLISH q0 $iothub/methods/POST/grant/?$rid=9",
            Body::Json(serde_json::json!({"url": "http://h:1/blobs/r-0?sig=x", "expires": 5})),
        ),
        said(Voice::Device, "PUBLISH q0 $iothub/methods/res/200/?$rid=9", Body::Empty),
        said(Voice::Download, "GET /blobs/r-0 bytes=0-9: 206", Body::Empty),
        said(Voice::Download, "GET /blobs/r-0 bytes=4-9: 206", Body::Empty),
    ];
    assert_eq!(
        lines(&entries, Voice::Device),
        [
            "-> CONNECT clean=false keep_alive=60",
            "-> PUBLISH q0 $iothub/twin/GET/?$rid=#1",
            "-> PUBLISH q0 $iothub/methods/res/200/?$rid=#1"
        ]
    );
    assert_eq!(
        lines(&entries, Voice::Hub),
        [
            "<- PUBLISH q0 $iothub/twin/res/200/?$rid=#1 1",
            r#"<- PUBLISH q0 $iothub/methods/POST/grant/?$rid=#1 {"expires":"(a time)","url":"r-0"}"#
        ]
    );
    assert_eq!(
        lines(&entries, Voice::Download),
        ["== GET /blobs/r-0 bytes=0-9: 206", "== GET /blobs/r-0 bytes=(from the middle)-9: 206"]
    );
}
