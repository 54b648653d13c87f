//! What IoT Hub has and this hub does not: refused by name.

use super::Operation;
use super::router::{Handler, Verb};
use crate::policy::Rights;

/// Of all of them.
const JOBS: Handler = Handler::NotModelled("import and export jobs: use bulk operations on /devices");

pub(super) const OPERATIONS: &[Operation] = &[
    Operation::new("Start an import or export job", Verb::Post, "/jobs/create", Rights::REGISTRY_WRITE, JOBS).sdk(
        "Node `Registry.importDevicesFromBlob`, `exportDevicesToBlob`; Java `RegistryClient.importDevices`, \
         `exportDevices`",
    ),
    Operation::new("List import and export jobs", Verb::Get, "/jobs", Rights::REGISTRY_READ, JOBS)
        .sdk("Node `Registry.listJobs`"),
    Operation::new("Read an import or export job", Verb::Get, "/jobs/{id}", Rights::REGISTRY_READ, JOBS)
        .sdk("Node `Registry.getJob`; Java `RegistryClient.getJob`"),
    Operation::new("Cancel an import or export job", Verb::Delete, "/jobs/{id}", Rights::REGISTRY_WRITE, JOBS)
        .sdk("Node `Registry.cancelJob`"),
];
