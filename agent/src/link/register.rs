//! Asking the provisioning service where the device belongs, over MQTT.
//!
//! Source: "Communicate with DPS using the MQTT protocol" of the service's documentation, and its REST reference.

use std::time::Duration;

use fleetwave_protocol::bag;
use rumqttc::{AsyncClient, Event, EventLoop, Packet, Publish, QoS};
use serde::Deserialize;
use serde_json::json;

use super::LinkError;
use super::access::Access;
use super::assignment::Assignment;
use super::settings::{Address, Provisioning};
use crate::identity::Proof;

const API: &str = "2019-03-31";
const ANSWERS: &str = "$dps/registrations/res/";
/// How long a token for the service is good: a registration takes seconds.
const TOKEN_LIFE: Duration = Duration::from_secs(600);
/// Between two questions, if the service names no time.
const PAUSE: Duration = Duration::from_secs(2);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// What the service answers.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Answer {
    operation_id: Option<String>,
    status: Option<String>,
    registration_state: State,
    error_code: Option<u64>,
    message: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct State {
    assigned_hub: Option<String>,
    device_id: Option<String>,
    error_code: Option<u64>,
    error_message: Option<String>,
}

pub(super) async fn register(
    access: &Access,
    of: &Provisioning,
    proof: &Proof,
) -> Result<Assignment, LinkError> {
    let Provisioning { endpoint, id_scope, registration_id: id, .. } = of;
    let peer = Address::parse("endpoint", endpoint).map_err(LinkError::Provisioning)?;
    let certificate = match proof {
        Proof::Certificate(certificate) => Some(certificate),
        _ => None,
    };
    let mut options = access.options(id, &peer.host, peer.port(None, access.hub.plain), certificate)?;
    let resource = format!("{id_scope}/registrations/{id}");
    let token = match proof {
        Proof::Sas(signer) => signer.token(&resource, access.expiry(TOKEN_LIFE), Some("registration"))?,
        _ => String::new(),
    };
    options.set_credentials(format!("{resource}/api-version={API}"), token).set_clean_session(true);
    let (client, mut events) = access.client(options);
    let broken = |error| LinkError::of(error, &peer.host, (access.clock)());
    events.poll().await.map_err(broken)?;
    let mut talk = Talk { client, events, asked: 0 };
    talk.client.try_subscribe(format!("{ANSWERS}#"), QoS::AtLeastOnce).map_err(|_| full())?;
    let body = json!({ "registrationId": id }).to_string();
    let mut question = ("PUT/iotdps-register/?".to_owned(), body);
    loop {
        let (status, pause, answer) =
            talk.ask(&question.0, &question.1).await.map_err(|error| match error {
                TalkError::Broken(error) => broken(error),
                TalkError::Nonsense(why) => LinkError::Provisioning(why),
            })?;
        let refused = |why: String| Err(LinkError::Provisioning(why));
        match (status, answer.status.as_deref()) {
            (200..300, Some("assigned")) => {
                let _ = talk.client.try_disconnect();
                let State { assigned_hub: Some(hub), device_id: Some(device), .. } =
                    answer.registration_state
                else {
                    return refused("it assigned the device and did not say where".to_owned());
                };
                return Ok(Assignment::new(of, hub, device));
            }
            (200..300, Some("assigning" | "unassigned")) => {
                if let Some(operation) = answer.operation_id {
                    let operation = bag::encode(&operation);
                    question =
                        (format!("GET/iotdps-get-operationstatus/?operationId={operation}&"), " ".to_owned());
                }
            }
            (200..300, status) => {
                let State { error_code, error_message, .. } = answer.registration_state;
                return refused(format!(
                    "the registration {id:?} is {}: {}{}",
                    status.unwrap_or("in no state"),
                    error_message.as_deref().unwrap_or("it may be disabled there"),
                    error_code.map(|code| format!(" ({code})")).unwrap_or_default()
                ));
            }
            // Too many at once, or a bad moment.
            (429 | 500.., _) => {
                let _ = talk.client.try_disconnect();
                access.is_asked_for_patience(status, pause.unwrap_or_default());
                return Err(LinkError::Unavailable(peer.host));
            }
            (status, _) => {
                return refused(format!(
                    "it refused the registration {id:?} with {}: {}",
                    answer.error_code.unwrap_or(status.into()),
                    answer.message.as_deref().unwrap_or("no cause given")
                ));
            }
        }
        tokio::time::sleep(pause.unwrap_or(PAUSE).min(LONGEST_PAUSE)).await;
    }
}

fn full() -> LinkError {
    LinkError::Provisioning("a question could not be queued".to_owned())
}

enum TalkError {
    Broken(rumqttc::ConnectionError),
    Nonsense(String),
}

/// A conversation of questions and answers.
struct Talk {
    client: AsyncClient,
    events: EventLoop,
    asked: u32,
}

impl Talk {
    /// Asks, and gives status, pause and content of the answer.
    async fn ask(&mut self, what: &str, body: &str) -> Result<(u16, Option<Duration>, Answer), TalkError> {
        self.asked += 1;
        let rid = self.asked.to_string();
        let topic = format!("$dps/registrations/{what}$rid={rid}");
        let queued = self.client.try_publish(topic, QoS::AtLeastOnce, false, body);
        queued.map_err(|error| TalkError::Nonsense(error.to_string()))?;
        loop {
            let event = self.events.poll().await.map_err(TalkError::Broken)?;
            let Event::Incoming(Packet::Publish(message)) = event else { continue };
            let Some((status, query)) = head(&message) else { continue };
            if bag::get(query, "$rid").as_deref() != Some(&rid) {
                continue;
            }
            let pause = bag::get(query, "retry-after").and_then(|seconds| seconds.parse().ok());
            let answer = serde_json::from_slice(&message.payload)
                .map_err(|error| TalkError::Nonsense(format!("its answer cannot be read: {error}")))?;
            return Ok((status, pause.map(Duration::from_secs), answer));
        }
    }
}

/// Status and query of `$dps/registrations/res/{status}/?…`.
fn head(message: &Publish) -> Option<(u16, &str)> {
    let (status, query) = message.topic.strip_prefix(ANSWERS)?.split_once("/?")?;
    Some((status.parse().ok()?, query))
}
