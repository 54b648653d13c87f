//! `fleetwave hub device`, `twin` and `configure`: what an operator does at a hub on this machine.

use std::net::IpAddr;

use fleetwave_protocol::bag;
use hyper::Method;
use serde_json::{Map, Value, json};

use super::HubError;
use super::args::{Configure, Place};
use super::local::Running;
use crate::release::{read_reference, target_of};

/// Creates a device, and gives its connection string.
pub(super) fn add(id: &str, tags: Option<&str>, place: &Place) -> Result<String, HubError> {
    let tags: Option<Map<String, Value>> = match tags {
        None => None,
        Some(text) => Some(serde_json::from_str(text).map_err(|error| {
            let problem = format!("--tags is not a JSON object: {error}");
            HubError::Usage { problem, fix: "in a shell, `--tags '{\"site\": \"berlin\"}'`".to_owned() }
        })?),
    };
    let running = Running::find(place)?;
    let path = format!("/devices/{}", bag::encode(id));
    let created = running.ask(Method::PUT, &path, Some(&json!({ "deviceId": id })))?;
    if let Some(tags) = tags {
        let path = format!("/twins/{}", bag::encode(id));
        running.ask(Method::PATCH, &path, Some(&json!({ "tags": tags })))?;
    }
    let key = created["authentication"]["symmetricKey"]["primaryKey"].as_str();
    let key = key.ok_or_else(|| HubError::Answer("the hub told no key of the device".to_owned()))?;
    let name = &running.hub_name;
    let gateway = gateway(name, running.address);
    Ok(format!("HostName={name};DeviceId={id};SharedAccessKey={key}{gateway}"))
}

/// A name of the cloud leads to a hub there, and one that was made up for this machine may lead nowhere; the SDKs go where
/// the gateway is, and say the name. A hub that other machines reach is called by its name, by all of them.
fn gateway(name: &str, address: IpAddr) -> &'static str {
    let elsewhere = !address.is_loopback() && !name.ends_with(".azure-devices.net");
    if elsewhere || name == "localhost" || name.parse::<IpAddr>().is_ok() {
        ""
    } else {
        ";GatewayHostName=localhost"
    }
}

/// A device's twin.
pub(super) fn twin(id: &str, place: &Place) -> Result<Value, HubError> {
    Running::find(place)?.ask(Method::GET, &format!("/twins/{}", bag::encode(id)), None)
}

/// Puts a configuration that asks the devices of a condition for a release; gives it as the hub has it.
pub(super) fn configure(arguments: &Configure) -> Result<Value, HubError> {
    let configuration = configuration(arguments)?;
    let path = format!("/configurations/{}", bag::encode(&arguments.id));
    Running::find(&arguments.place)?.ask(Method::PUT, &path, Some(&configuration)).map_err(|error| match error {
        HubError::Answer(text) if text.contains("ConfigurationAlreadyExists") => HubError::Answer(format!(
            "there is a configuration {id} already, and what one asks for does not change\n  = help: choose another id \
             and a higher --priority, or delete that one first: `fleetwave hub unconfigure {id}`",
            id = arguments.id
        )),
        other => other,
    })
}

fn configuration(arguments: &Configure) -> Result<Value, HubError> {
    let reference = read_reference(&arguments.release)?;
    let target = target_of(&reference);
    let member = |name: &str| reference.get(name).cloned().unwrap_or_default();
    let (id, seq) = (member("id"), member("seq"));
    // The query language's strings double what quotes them.
    let id = id.as_str().unwrap_or_default().replace('\'', "''");
    let reported = format!("properties.reported.{target}");
    let devices = "SELECT deviceId FROM devices WHERE";
    let of_release = format!("{reported}.target = '{id}'");
    let mut reference = reference;
    if arguments.cancel {
        reference.insert("cancel".to_owned(), true.into());
    }
    Ok(json!({
        "id": arguments.id,
        "content": { "deviceContent": { format!("properties.desired.{target}"): reference } },
        "targetCondition": arguments.condition,
        "priority": arguments.priority,
        "metrics": { "queries": {
            "converged": format!("{devices} {reported}.running.id = '{id}' AND {reported}.running.seq = {seq}"),
            "updating": format!("{devices} {of_release} AND {reported}.state = 'updating'"),
            "failed": format!("{devices} {of_release} AND {reported}.state = 'failed'"),
        } },
    }))
}

/// Deletes a configuration.
pub(super) fn unconfigure(id: &str, place: &Place) -> Result<(), HubError> {
    let path = format!("/configurations/{}", bag::encode(id));
    Running::find(place)?.ask(Method::DELETE, &path, None).map(drop)
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::gateway;

    #[test]
    fn a_hub_for_other_machines_is_called_by_its_name_and_any_other_by_this_machines() {
        let [here, all] = [Ipv4Addr::LOCALHOST, Ipv4Addr::UNSPECIFIED].map(IpAddr::from);
        for (name, address, expected) in [
            ("hub.example", all, ""),
            ("hub.example", here, ";GatewayHostName=localhost"),
            ("contoso.azure-devices.net", all, ";GatewayHostName=localhost"),
            ("localhost", here, ""),
            ("192.0.2.1", all, ""),
        ] {
            assert_eq!(gateway(name, address), expected, "{name} at {address}");
        }
    }
}
