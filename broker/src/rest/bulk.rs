//! Many identities in one request.

use std::collections::HashSet;

use fleetwave_hub_core::{DeviceIx, ErrorCode, HubError, Input, throttle};
use hyper::StatusCode;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::devices::{change, check_scopes, create};
use super::identity::IdentityBody;
use super::router::{Verb, does};
use super::{ApiError, Call, Operation, Reply};
use crate::ShardView;
use crate::policy::Rights;

/// The most items of one request.
const MOST: usize = 100;

pub(super) const OPERATIONS: &[Operation] = &[Operation::new(
    "Create, change and delete up to 100 devices",
    Verb::Post,
    "/devices",
    Rights::REGISTRY_WRITE,
    does!(run),
)
.limited(throttle::Operation::Registry)
.sdk(
    "Python `IoTHubRegistryManager.bulk_create_or_update_devices`; \
     Node `Registry.addDevices`, `updateDevices`, `removeDevices`",
)
.test("rest::many_devices_are_made_changed_and_deleted_at_once")];

/// What is to be done with an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Create,
    Update,
    CreateOrUpdate,
    Delete,
    UpdateTwin,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Item {
    id: Option<String>,
    /// Node's SDK hands on what a device's description calls it.
    #[serde(alias = "etag")]
    e_tag: Option<String>,
    #[serde(alias = "twinEtag")]
    twin_e_tag: Option<String>,
    import_mode: Option<String>,
    tags: Option<Box<RawValue>>,
    properties: Option<Properties>,
    #[serde(flatten)]
    identity: IdentityBody,
}

#[derive(Deserialize)]
struct Properties {
    desired: Option<Box<RawValue>>,
}

fn invalid(message: impl Into<String>) -> Box<HubError> {
    Box::new(HubError { code: ErrorCode::ArgumentInvalid, message: message.into().into() })
}

impl Item {
    /// The device, and the module if the item is about one.
    fn names(&self) -> (&str, Option<&str>) {
        let device = self.id.as_deref().or(self.identity.device_id.as_deref());
        (device.unwrap_or_default(), self.identity.module_id.as_deref())
    }

    fn target(&self) -> Result<String, Box<HubError>> {
        let (device, module) = self.names();
        if device.is_empty() {
            return Err(Box::new(HubError {
                code: ErrorCode::ArgumentNull,
                message: "an item has no id".into(),
            }));
        }
        if let Some(id) = [Some(device), module].into_iter().flatten().find(|id| id.contains('/')) {
            return Err(invalid(format!("{id:?} is no id: it has a slash")));
        }
        Ok(module.map_or_else(|| device.to_owned(), |module| format!("{device}/{module}")))
    }

    /// What is to be done, and the etag that it depends on.
    fn mode(&self) -> Result<(Mode, Option<String>), Box<HubError>> {
        let text = self.import_mode.as_deref().unwrap_or_default();
        let etag = |given: Option<&String>, name: &str| {
            given.cloned().map(Some).ok_or_else(|| invalid(format!("importMode {text:?} needs {name}")))
        };
        let own = || etag(self.e_tag.as_ref(), "eTag");
        Ok(match text.to_ascii_lowercase().as_str() {
            "create" => (Mode::Create, None),
            "update" => (Mode::Update, None),
            "updateifmatchetag" => (Mode::Update, own()?),
            "createorupdate" => (Mode::CreateOrUpdate, None),
            "createorupdateifmatchetag" => (Mode::CreateOrUpdate, own()?),
            "delete" => (Mode::Delete, None),
            "deleteifmatchetag" => (Mode::Delete, own()?),
            "updatetwin" => (Mode::UpdateTwin, None),
            "updatetwinifmatchetag" => (Mode::UpdateTwin, etag(self.twin_e_tag.as_ref(), "twinETag")?),
            _ => {
                return Err(invalid(format!(
                    "importMode is {text:?}, one of create, update, updateIfMatchETag, createOrUpdate, \
                     createOrUpdateIfMatchETag, delete, deleteIfMatchETag, updateTwin, updateTwinIfMatchETag \
                     was expected"
                )));
            }
        })
    }

    fn tags(&self) -> Option<&str> {
        self.tags.as_deref().map(RawValue::get)
    }

    fn desired(&self) -> Option<&str> {
        self.properties.as_ref()?.desired.as_deref().map(RawValue::get)
    }

    /// Does it.
    fn apply(
        &self,
        shard: &mut ShardView<'_>,
        id: &str,
        mode: Mode,
        etag: Option<&str>,
    ) -> Result<(), Box<HubError>> {
        let exists = shard.hub().find(id).is_some();
        match mode {
            Mode::CreateOrUpdate if !exists => {
                create(shard, id, &self.identity, self.tags(), self.desired())?;
            }
            Mode::Create => {
                create(shard, id, &self.identity, self.tags(), self.desired())?;
            }
            Mode::Update | Mode::CreateOrUpdate => {
                let device = change(shard, id, &self.identity, etag)?;
                self.replace_twin(shard, device, None)?;
            }
            Mode::Delete => {
                let device = shard.find(id)?;
                shard.apply(Input::DeleteDevice { device, if_match: etag })?;
            }
            Mode::UpdateTwin => {
                let device = shard.find(id)?;
                self.replace_twin(shard, device, etag)?;
            }
        }
        Ok(())
    }

    /// Writes those sections of the twin that the item has.
    fn replace_twin(
        &self,
        shard: &mut ShardView<'_>,
        device: DeviceIx,
        if_match: Option<&str>,
    ) -> Result<(), Box<HubError>> {
        let (tags, desired) = (self.tags().map(str::as_bytes), self.desired().map(str::as_bytes));
        if tags.is_some() || desired.is_some() {
            shard.apply(Input::ReplaceTwin { device, tags, desired, if_match })?;
        }
        Ok(())
    }
}

/// A refused item as the result lists it.
fn refusal((device, module): (&str, Option<&str>), error: &HubError) -> Value {
    let mut refusal = json!({
        "deviceId": device,
        "errorCode": error.code.name(),
        "errorStatus": error.message,
    });
    if let Some(module) = module {
        refusal["moduleId"] = module.into();
    }
    refusal
}

async fn run(call: Call) -> Result<Reply, ApiError> {
    let items: Vec<Item> = call.json()?;
    if items.is_empty() || items.len() > MOST {
        let message = format!("a request has 1 to {MOST} devices, this one has {}", items.len());
        return Err(ApiError::new(ErrorCode::TooManyDevices, message));
    }
    let mut errors = Vec::new();
    let mut running = Vec::with_capacity(items.len());
    let mut seen = HashSet::new();
    for item in items {
        let (device, module) = item.names();
        let names = (device.to_owned(), module.map(str::to_owned));
        let checked = item.target().and_then(|id| Ok((item.mode()?, id)));
        let checked = checked.and_then(|(mode, id)| {
            if seen.insert(id.clone()) {
                return Ok((mode, id));
            }
            let message = format!("{id:?} stands more than once in the request").into();
            Err(Box::new(HubError { code: ErrorCode::DeviceDefinedMultipleTimes, message }))
        });
        let ((mode, etag), id) = match checked {
            Ok(checked) => checked,
            Err(error) => {
                errors.push(refusal((&names.0, names.1.as_deref()), &error));
                continue;
            }
        };
        match check_scopes(&call.api, &item.identity).await {
            Ok(()) => {}
            Err(ApiError::Hub(error)) => {
                errors.push(refusal((&names.0, names.1.as_deref()), &error));
                continue;
            }
            Err(error) => return Err(error),
        }
        // They run in this order where it matters: a device and its modules are of one shard.
        let done = call
            .api
            .control
            .with_device(&id.clone(), move |shard| item.apply(shard, &id, mode, etag.as_deref()));
        running.push((names, done));
    }
    for ((device, module), done) in running {
        if let Err(error) = done.await? {
            errors.push(refusal((&device, module.as_deref()), &error));
        }
    }
    let status = if errors.is_empty() { StatusCode::OK } else { StatusCode::BAD_REQUEST };
    Ok(Reply::json(status, &json!({ "isSuccessful": errors.is_empty(), "errors": errors, "warnings": [] })))
}
