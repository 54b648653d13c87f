//! Messages to a device that fetches them over HTTPS, one by one.
//!
//! Source: the reference of the operations "Receive device bound notification", "Complete …" and "Abandon …", and what
//! the Node and Java device SDKs read of them.

use fleetwave_hub_core::{Done, Input, Iso8601, ReceivedC2d, Settlement};
use fleetwave_protocol::bag;
use hyper::StatusCode;
use uuid::Uuid;

use super::messages::lock_lost;
use super::router::{Verb, does};
use super::{ApiError, Call, Operation, Reply};

const SDK: &str =
    "Node `Client.on('message')`, `complete`, `reject`, `abandon` and Java `DeviceClient` over HTTPS";
const TEST: &str = "rest::a_device_fetches_a_message_and_settles_it";

pub(super) const OPERATIONS: &[Operation] = &[
    Operation::of_device("Fetch a message", Verb::Get, "/devices/{id}/messages/devicebound", does!(receive))
        .sdk(SDK)
        .test(TEST)
        .short("`iothub-sequencenumber` and `iothub-enqueuedtime`; properties whose names can't be headers are left out"),
    Operation::of_device(
        "Complete or reject a message",
        Verb::Delete,
        "/devices/{id}/messages/devicebound/{lock}",
        does!(complete),
    )
    .sdk(SDK)
    .test(TEST),
    Operation::of_device(
        "Abandon a message",
        Verb::Post,
        "/devices/{id}/messages/devicebound/{lock}/abandon",
        does!(abandon),
    )
    .sdk(SDK)
    .test(TEST),
];

async fn receive(call: Call) -> Result<Reply, ApiError> {
    let id = call.identity.clone().unwrap_or_default();
    let lock = Uuid::new_v4();
    let received = call.api.control.with_device(&id.clone(), move |shard| {
        let device = shard.find(&id)?;
        shard.apply(Input::ReceiveC2d { device, lock: lock.as_u128() })
    });
    match received.await?? {
        Done::Received(Some(received)) => Ok(reply(&received, lock)),
        _ => Ok(Reply::no_content()),
    }
}

fn reply(received: &ReceivedC2d, lock: Uuid) -> Reply {
    let message = &received.message;
    let mut reply = Reply::no_content();
    reply.status = StatusCode::OK;
    reply.body = message.body.to_vec().into();
    reply = reply
        .etag(&lock.to_string())
        .with("iothub-deliverycount", received.deliveries.to_string())
        .with("iothub-expiry", Iso8601(received.expires).to_string());
    for (key, value) in bag::members(&message.properties).flatten() {
        let name = match key.as_ref() {
            "$.mid" => "iothub-messageid".to_owned(),
            "$.to" => "iothub-to".to_owned(),
            "$.cid" => "iothub-correlationid".to_owned(),
            "$.uid" => "iothub-userid".to_owned(),
            "$.ct" => "iothub-contenttype".to_owned(),
            "$.ce" => "iothub-contentencoding".to_owned(),
            "iothub-ack" => "iothub-ack".to_owned(),
            // It is told already.
            "$.exp" => continue,
            key => format!("iothub-app-{key}"),
        };
        reply = reply.with(name, value.into_owned());
    }
    reply
}

async fn complete(call: Call) -> Result<Reply, ApiError> {
    let reject = call.query_param("reject").is_some();
    settle(call, if reject { Settlement::Reject } else { Settlement::Complete }).await
}

async fn abandon(call: Call) -> Result<Reply, ApiError> {
    settle(call, Settlement::Abandon).await
}

async fn settle(call: Call, outcome: Settlement) -> Result<Reply, ApiError> {
    let id = call.identity.clone().unwrap_or_default();
    let text = call.param(1);
    let lock = Uuid::try_parse(text.trim_matches('"')).map_err(|_| lock_lost(text))?.as_u128();
    let settled = call.api.control.with_device(&id.clone(), move |shard| {
        let device = shard.find(&id)?;
        shard.apply(Input::SettleC2d { device, lock, outcome })
    });
    settled.await??;
    Ok(Reply::no_content())
}
