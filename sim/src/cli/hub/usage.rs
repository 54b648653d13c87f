//! Options of `fleetwave hub` that say nothing without another one, or contradict each other.

use super::HubError;
use super::args::{Serve, TierName};

/// The port from which devices download releases, unless another one is given.
pub(super) const RELEASES_PORT: u16 = 8444;

/// Refuses what would be passed over in silence. `storage`: whether there is a storage account.
pub(super) fn check(arguments: &Serve, storage: bool) -> Result<(), HubError> {
    let wrong =
        |problem: &str, fix: &str| Err(HubError::Usage { problem: problem.to_owned(), fix: fix.to_owned() });
    if arguments.releases_port.is_some() && arguments.releases.is_none() {
        return wrong(
            "--releases-port says where releases are downloaded, and there are none",
            "name their directory, too, by `--releases DIR` (`fleetwave release create` makes releases), or leave \
             the port out",
        );
    }
    if !arguments.set.is_empty() && arguments.devices.is_none() {
        return wrong(
            "--set changes a scenario, and there is none",
            "name it, too, by --devices, e.g. `--devices quickstart --set fleet.devices=50`",
        );
    }
    let account = "name the storage account, too: `--storage FILE` with a file that holds its connection string, or \
                   FLEETWAVE_STORAGE in the environment";
    if arguments.storage_container.is_some() && !storage {
        return wrong("--storage-container is a container in a storage account, and there is none", account);
    }
    if arguments.storage_ca.is_some() && !storage {
        return wrong("--storage-ca vouches for a storage account, and there is none", account);
    }
    if arguments.units.is_some() && arguments.tier == TierName::None {
        return wrong(
            "--units counts for the limits of a tier, and there is none",
            "name the tier, too: `--tier S1`",
        );
    }
    if arguments.config_cycle.is_some_and(|cycle| cycle.duration().is_zero()) {
        return wrong(
            "--config-cycle is a time above zero",
            "leave it out to have configurations in twins at once; IoT Hub's cycle is `--config-cycle 5m`",
        );
    }
    ports(arguments)
}

/// No port is for two things. 0 is a free one for each.
fn ports(arguments: &Serve) -> Result<(), HubError> {
    let releases = arguments.releases.as_ref().map(|_| arguments.releases_port.unwrap_or(RELEASES_PORT));
    let ports = [
        (Some(arguments.mqtt_port), "--mqtt-port"),
        (Some(arguments.https_port), "--https-port"),
        (Some(arguments.amqps_port), "--amqps-port"),
        (Some(arguments.admin_port), "--admin-port"),
        (releases, "--releases-port"),
        (arguments.plain_mqtt_port, "--plain-mqtt-port"),
        (arguments.bus_port, "--bus-port"),
    ];
    for (place, (port, option)) in ports.iter().enumerate() {
        let same =
            ports[..place].iter().find(|(other, _)| port.is_some_and(|port| port != 0) && other == port);
        if let (Some((_, other)), Some(port)) = (same, port) {
            return Err(HubError::Usage {
                problem: format!("{other} and {option} are the same port, {port}"),
                fix: format!("give each its own, e.g. `{option} 0` for a free one"),
            });
        }
    }
    Ok(())
}
