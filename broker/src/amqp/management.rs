//! Requests on `$cbs` and `$management`, and the messages that answer them.

use super::event_message::{long, timestamp};
use super::message::{Body, Message};
use super::performative::Properties;
use super::value::Value;
use crate::events::EventLog;

/// An answer's status.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Status {
    pub(crate) code: u16,
    pub(crate) description: String,
    pub(crate) body: Value,
}

impl Status {
    pub(crate) fn new(code: u16, description: impl Into<String>) -> Self {
        Self { code, description: description.into(), body: Value::Null }
    }
}

/// The message that answers a request: the correlation id is the request's message id, in the type that it has there;
/// the status is an int, as one SDK takes no other type.
pub(crate) fn answer(request: &Message, status: Status) -> Message {
    Message {
        properties: Properties {
            message_id: Value::string(uuid::Uuid::new_v4().to_string()),
            to: request.properties.reply_to.clone(),
            correlation_id: match &request.properties.message_id {
                Value::Null => request.properties.correlation_id.clone(),
                id => id.clone(),
            },
            ..Properties::default()
        },
        application: vec![
            (Value::string("status-code"), Value::Int(status.code.into())),
            (Value::string("status-description"), Value::String(status.description)),
        ],
        body: Body::Value(status.body),
        ..Message::default()
    }
}

/// Does what a request on `$management` asks for.
pub(crate) fn read(request: &Message, name: &str, log: &EventLog) -> Status {
    let text = |key| request.property(key).and_then(Value::text).unwrap_or_default();
    if text("operation") != "READ" {
        let message = format!("the operation {:?} is not modelled: READ was expected", text("operation"));
        return Status::new(501, message);
    }
    if !text("name").eq_ignore_ascii_case(name) {
        let message = format!(
            "The messaging entity {:?} could not be found: the Event-Hub-compatible name is {name:?}",
            text("name")
        );
        return Status::new(404, message);
    }
    match text("type") {
        "com.microsoft:eventhub" => {
            let ids = (0..log.partitions()).map(|id| Value::string(id.to_string())).collect::<Vec<_>>();
            ok([
                ("name", Value::string(name)),
                ("type", Value::string("com.microsoft:eventhub")),
                ("created_at", timestamp(log.created())),
                ("partition_count", Value::Int(i32::try_from(ids.len()).unwrap_or(i32::MAX))),
                ("partition_ids", Value::Array(ids)),
            ])
        }
        "com.microsoft:partition" => {
            let Some(partition) = partition(text("partition"), log) else {
                let message = format!(
                    "there is no partition {:?}: they are 0 to {}",
                    text("partition"),
                    log.partitions() - 1
                );
                return Status::new(404, message);
            };
            let info = log.info(partition);
            let (offset, time) = match info.last {
                Some((offset, time)) => (offset.to_string(), timestamp(time)),
                None => ("-1".to_owned(), Value::Timestamp(0)),
            };
            let newest = info.next.checked_sub(1).map_or(Value::Long(-1), long);
            ok([
                ("name", Value::string(name)),
                ("type", Value::string("com.microsoft:partition")),
                ("partition", Value::string(partition.to_string())),
                ("begin_sequence_number", long(info.first)),
                ("last_enqueued_sequence_number", newest),
                ("last_enqueued_offset", Value::String(offset)),
                ("last_enqueued_time_utc", time),
                ("is_partition_empty", Value::Bool(info.is_empty())),
            ])
        }
        other => Status::new(501, format!("the type {other:?} is not modelled")),
    }
}

/// The partition of an id, if the log has it.
pub(crate) fn partition(id: &str, log: &EventLog) -> Option<usize> {
    id.parse().ok().filter(|&partition| partition < log.partitions())
}

fn ok<const N: usize>(pairs: [(&str, Value); N]) -> Status {
    let pairs = pairs.into_iter().map(|(key, value)| (Value::string(key), value)).collect();
    Status { body: Value::Map(pairs), ..Status::new(200, "OK") }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use fleetwave_protocol::WallTime;

    use super::*;
    use crate::events::{Event, Retention, Source};

    fn request(pairs: &[(&str, &str)]) -> Message {
        let application =
            pairs.iter().map(|(key, value)| (Value::string(*key), Value::string(*value))).collect();
        Message { application, ..Message::default() }
    }

    fn ask(pairs: &[(&str, &str)]) -> Status {
        let log = EventLog::new(2, Retention::default(), WallTime::from_unix_millis(7));
        let event = Event {
            id: "d".into(),
            generation: "".into(),
            authentication: "sas",
            model: None,
            source: Source::Telemetry,
            properties: "".into(),
            body: Bytes::new(),
        };
        log.append(event.clone(), WallTime::from_unix_millis(8));
        log.append(event, WallTime::from_unix_millis(9));
        read(&request(pairs), "hub", &log)
    }

    #[test]
    fn the_log_and_its_partitions_are_described() {
        let hub = ask(&[("operation", "READ"), ("name", "Hub"), ("type", "com.microsoft:eventhub")]);
        assert_eq!(hub.code, 200);
        assert_eq!(hub.body.get("created_at"), Some(&Value::Timestamp(7)));
        let ids = Value::Array(vec![Value::string("0"), Value::string("1")]);
        assert_eq!(hub.body.get("partition_ids"), Some(&ids));
        let of = |id| {
            let request = [("operation", "READ"), ("name", "hub"), ("type", "com.microsoft:partition")];
            ask(&[&request[..], &[("partition", id)]].concat())
        };
        let full = [of("0"), of("1")]
            .into_iter()
            .find(|status| status.body.get("is_partition_empty") == Some(&Value::Bool(false)))
            .unwrap();
        assert_eq!(full.body.get("last_enqueued_sequence_number"), Some(&Value::Long(1)));
        assert_eq!(full.body.get("last_enqueued_time_utc"), Some(&Value::Timestamp(9)));
        assert_eq!(of("2").code, 404);
    }

    #[test]
    fn what_is_not_there_and_what_is_not_modelled_have_their_status() {
        let of =
            |operation, name, kind| ask(&[("operation", operation), ("name", name), ("type", kind)]).code;
        assert_eq!(of("READ", "other", "com.microsoft:eventhub"), 404);
        assert_eq!(of("WRITE", "hub", "com.microsoft:eventhub"), 501);
        assert_eq!(of("READ", "hub", "com.microsoft:other"), 501);
    }

    #[test]
    fn an_answer_repeats_the_requests_id_in_its_type() {
        for id in [Value::Ulong(0), Value::Uuid([1; 16]), Value::string("x")] {
            let mut request = request(&[]);
            request.properties.message_id = id.clone();
            request.properties.reply_to = Value::string("me");
            let answer = answer(&request, Status::new(200, "OK"));
            assert_eq!(answer.properties.correlation_id, id);
            assert_eq!(answer.properties.to, Value::string("me"));
            assert_eq!(answer.property("status-code"), Some(&Value::Int(200)));
        }
    }
}
