//! What the back end can read of a hub: its event log, C2D feedback, and file notifications.

use fleetwave_hub_core::Iso8601;
use fleetwave_protocol::Now;
use serde_json::json;

use super::log::{EventLog, Retention, Source};
use super::mailbox::Mailbox;
use super::routed::{routed, source};
use super::{EventKind, EventSink, HubEvent};
use crate::clock::Clock;

/// Which events go into the log, and how much of them is kept.
#[derive(Clone, Debug)]
pub struct EventOptions {
    /// How many partitions the log has.
    pub partitions: usize,
    /// How much each keeps.
    pub retention: Retention,
    /// What is logged; all unless set otherwise. In IoT Hub, routes decide it, which are not modelled: a new hub
    /// routes telemetry alone.
    pub sources: Vec<Source>,
    /// The name that the Event-Hub-compatible endpoint has, and that the hub has in its own events; if none is set,
    /// the first part of the hub's first name that is not `localhost`.
    pub name: Option<String>,
}

impl Default for EventOptions {
    fn default() -> Self {
        Self { partitions: 4, retention: Retention::default(), sources: Source::ALL.into(), name: None }
    }
}

/// A hub's event log and mailboxes, filled by its shards.
#[derive(Debug)]
pub struct CloudEvents {
    /// The events.
    pub log: EventLog,
    /// What became of C2D messages.
    pub feedback: Mailbox,
    /// Files that devices have uploaded.
    pub files: Mailbox,
    sources: Vec<Source>,
    name: String,
}

impl CloudEvents {
    /// Empty ones, made now.
    #[must_use]
    pub fn new(options: EventOptions, clock: &Clock) -> Self {
        Self {
            log: EventLog::new(options.partitions, options.retention, clock.now().wall),
            feedback: Mailbox::default(),
            files: Mailbox::default(),
            sources: options.sources,
            name: options.name.unwrap_or_else(|| "fleetwave".to_owned()),
        }
    }

    /// The name of the Event-Hub-compatible endpoint.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl EventSink for CloudEvents {
    fn event(&self, now: Now, event: &HubEvent<'_>) {
        if let EventKind::Feedback { message, status, at } = event.kind {
            let record = json!({
                "originalMessageId": message.message_id,
                "description": status.name(),
                "deviceGenerationId": event.generation,
                "deviceId": event.id,
                "enqueuedTimeUtc": Iso8601(at).to_string(),
                "statusCode": status.name(),
            });
            return self.feedback.push(record.to_string());
        }
        if source(&event.kind).is_some_and(|source| self.sources.contains(&source))
            && let Some(event) = routed(&self.name, now, event)
        {
            self.log.append(event, now.wall);
        }
    }
}

#[cfg(test)]
mod tests {
    use fleetwave_hub_core::{C2dMessage, FeedbackStatus};
    use fleetwave_protocol::{Instant, WallTime, bag};
    use serde_json::Value;

    use super::*;

    fn now() -> Now {
        Now { at: Instant::ZERO, wall: WallTime::from_unix_millis(1_456_789_012_345) }
    }

    fn cloud(sources: &[Source]) -> CloudEvents {
        let options = EventOptions { partitions: 1, sources: sources.into(), ..EventOptions::default() };
        CloudEvents::new(options, &Clock::new())
    }

    fn tell(cloud: &CloudEvents, id: &str, kind: EventKind<'_>) {
        cloud.event(now(), &HubEvent { id, generation: "g", authentication: "sas", model: None, kind });
    }

    #[test]
    fn only_what_is_routed_is_logged() {
        let cloud = cloud(&[Source::Telemetry]);
        tell(&cloud, "d", EventKind::Connected { sequence: 1 });
        tell(&cloud, "d", EventKind::Telemetry { properties: "a=1", body: b"x" });
        let entries = cloud.log.read(0, 0, 9);
        assert_eq!(entries.len(), 1);
        assert_eq!((&*entries[0].event.properties, &entries[0].event.body[..]), ("a=1", &b"x"[..]));
    }

    #[test]
    fn changes_carry_what_changed_and_say_what_it_was() {
        let cloud = cloud(&[Source::TwinChanges, Source::ConnectionState, Source::Lifecycle]);
        tell(&cloud, "d", EventKind::Reported { version: 3, patch: br#"{"a":1}"# });
        let desired = Some(&br#"{"b":2}"#[..]);
        tell(&cloud, "d", EventKind::TwinWritten { tags: Some(b"{}"), desired, version: 4, replaced: true });
        tell(&cloud, "d/m", EventKind::Disconnected { sequence: 255 });
        tell(&cloud, "d/m", EventKind::Created { twin: b"{}" });
        let entries = cloud.log.read(0, 0, 9);
        let seen: Vec<_> = entries
            .iter()
            .map(|entry| {
                let operation = bag::get(&entry.event.properties, "opType").unwrap();
                (operation.into_owned(), String::from_utf8_lossy(&entry.event.body).into_owned())
            })
            .collect();
        let expected = [
            ("updateTwin", r#"{"properties":{"reported":{"$version":3,"a":1}}}"#.to_owned()),
            ("replaceTwin", r#"{"properties":{"desired":{"$version":4,"b":2}},"tags":{}}"#.to_owned()),
            ("moduleDisconnected", format!(r#"{{"sequenceNumber":"{:0>64}"}}"#, "FF")),
            ("createModuleIdentity", "{}".to_owned()),
        ];
        assert_eq!(seen, expected.map(|(operation, body)| (operation.to_owned(), body)));
        let properties = &entries[2].event.properties;
        for (key, value) in [
            ("deviceId", "d"),
            ("moduleId", "m"),
            ("hubName", "fleetwave"),
            ("operationTimestamp", "2016-02-29T23:36:52.345Z"),
            ("iothub-message-schema", "deviceConnectionStateNotification"),
        ] {
            assert_eq!(bag::get(properties, key).as_deref(), Some(value));
        }
    }

    #[test]
    fn feedback_is_a_record_in_the_mailbox() {
        let cloud = cloud(&[]);
        let message = C2dMessage { message_id: Some("m-1".into()), ..C2dMessage::default() };
        let status = FeedbackStatus::Expired;
        tell(&cloud, "d", EventKind::Feedback { message: &message, status, at: now().wall });
        let taken = cloud.feedback.take(Instant::ZERO, 9).unwrap();
        let record: Value = serde_json::from_str(&taken.records[0]).unwrap();
        assert_eq!(
            record,
            json!({
                "originalMessageId": "m-1",
                "description": "Expired",
                "deviceGenerationId": "g",
                "deviceId": "d",
                "enqueuedTimeUtc": "2016-02-29T23:36:52.345Z",
                "statusCode": "Expired",
            })
        );
    }
}
