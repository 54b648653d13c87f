//! What the addresses of links name.
//!
//! SDKs write them with and without `amqps://host`, with and without a slash before, and in different case.

/// A node that a link can be attached to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Node {
    /// Where tokens are shown.
    Cbs,
    /// Where C2D messages are sent to.
    DeviceBound,
    /// Feedback of C2D messages.
    Feedback,
    /// Files that devices have uploaded.
    FileNotifications,
    /// The hub's own name of its events, with what follows it: clients are redirected to the Event-Hub-compatible name.
    Events(String),
    /// Questions about the event log.
    Management,
    /// A partition of the event log, for a consumer group (in lower case).
    Partition { group: String, partition: String },
    /// The event log as something to send to.
    EventHub,
    /// An event log that there is not.
    OtherEventHub(String),
    /// A device's own endpoints.
    Device,
    /// Nothing of these.
    Unknown,
}

impl Node {
    /// The node of an address, in a hub whose Event-Hub-compatible endpoint is called `name`.
    pub(crate) fn of(address: &str, name: &str) -> Self {
        let path = path(address);
        let lower = path.to_ascii_lowercase();
        let segments: Vec<&str> = lower.split('/').collect();
        match segments.as_slice() {
            ["$cbs"] => Self::Cbs,
            ["$management"] => Self::Management,
            ["messages", "devicebound"] => Self::DeviceBound,
            ["messages", "servicebound", "feedback"] => Self::Feedback,
            ["messages", "servicebound", "filenotifications"] => Self::FileNotifications,
            ["messages", "events", ..] => {
                Self::Events(path["messages/events".len()..].trim_matches('/').to_owned())
            }
            ["devices", _, ..] => Self::Device,
            [hub, rest @ ..] => match rest {
                ["$management"] if hub.eq_ignore_ascii_case(name) => Self::Management,
                ["consumergroups", group, "partitions", partition] if hub.eq_ignore_ascii_case(name) => {
                    Self::Partition { group: (*group).to_owned(), partition: (*partition).to_owned() }
                }
                [] | ["partitions", _] if hub.eq_ignore_ascii_case(name) => Self::EventHub,
                [] | ["consumergroups" | "partitions" | "$management", ..] => {
                    Self::OtherEventHub((*hub).to_owned())
                }
                _ => Self::Unknown,
            },
            [] => Self::Unknown,
        }
    }

    /// The path of the resource that a token must cover, in lower case; `None` if no token is needed.
    pub(crate) fn resource(&self, name: &str) -> Option<String> {
        let name = name.to_ascii_lowercase();
        Some(match self {
            Self::Cbs => return None,
            Self::DeviceBound => "messages/devicebound".to_owned(),
            Self::Feedback => "messages/servicebound/feedback".to_owned(),
            Self::FileNotifications => "messages/servicebound/filenotifications".to_owned(),
            Self::Events(rest) => format!("messages/events/{}", rest.to_ascii_lowercase()),
            Self::Management => format!("{name}/$management"),
            Self::Partition { group, partition } => {
                format!("{name}/consumergroups/{group}/partitions/{partition}")
            }
            Self::EventHub | Self::OtherEventHub(_) => name,
            Self::Device | Self::Unknown => String::new(),
        })
    }
}

/// The path of an address or of a resource: without scheme, host, and slashes at its ends.
fn path(address: &str) -> &str {
    match address.split_once("://") {
        Some((_, rest)) => rest.split_once('/').map_or("", |(_, path)| path),
        None => address,
    }
    .trim_matches('/')
}

/// The host and the path of a resource that a token is for, in whichever scheme it was written.
pub(crate) fn resource(text: &str) -> (&str, &str) {
    let rest = text.split_once("://").map_or(text, |(_, rest)| rest);
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    (host, path.trim_matches('/'))
}

/// The event log that an Event Hubs client shows a token for, if it is not the one called `name`.
pub(crate) fn other_event_hub<'a>(audience: &'a str, name: &str) -> Option<&'a str> {
    let (_, path) = resource(audience.strip_prefix("sb://")?);
    let hub = path.split('/').next().unwrap_or(path);
    (!hub.is_empty() && !hub.eq_ignore_ascii_case(name) && !hub.eq_ignore_ascii_case("messages"))
        .then_some(hub)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_name_nodes_however_they_are_written() {
        let partition = Node::Partition { group: "$default".into(), partition: "0".into() };
        for (address, node) in [
            ("$cbs", Node::Cbs),
            ("/messages/devicebound", Node::DeviceBound),
            ("amqps://localhost:8443/messages/deviceBound", Node::DeviceBound),
            ("/messages/serviceBound/feedback", Node::Feedback),
            ("/messages/servicebound/FileNotifications/", Node::FileNotifications),
            ("amqps://h/messages/events/$management", Node::Events("$management".into())),
            ("messages/events", Node::Events(String::new())),
            ("$management", Node::Management),
            ("Hub/$management", Node::Management),
            ("amqps://localhost/hub/ConsumerGroups/$Default/Partitions/0", partition.clone()),
            ("hub/ConsumerGroups/$Default/Partitions/0", partition),
            ("hub", Node::EventHub),
            ("hub/Partitions/1", Node::EventHub),
            ("other/ConsumerGroups/a/Partitions/0", Node::OtherEventHub("other".into())),
            ("/devices/d/messages/events", Node::Device),
            ("hub/x", Node::Unknown),
            ("", Node::OtherEventHub(String::new())),
        ] {
            assert_eq!(Node::of(address, "hub"), node, "{address}");
        }
    }

    #[test]
    fn audiences_of_event_hubs_clients_name_their_log() {
        for (audience, other) in [
            ("sb://localhost/Hub/consumergroups/$default", None),
            ("sb://localhost:5671/hub", None),
            ("sb://localhost/messages/events", None),
            ("sb://localhost", None),
            ("https://localhost/else", None),
            ("sb://localhost/else/x", Some("else")),
        ] {
            assert_eq!(other_event_hub(audience, "hub"), other, "{audience}");
        }
    }
}
