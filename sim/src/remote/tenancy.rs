//! What a run has on a hub that is not ours: its devices and configurations, and that they go away again.

use std::future::Future;
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;

use fleetwave_hub::Clock;
use fleetwave_protocol::Instant;
use fleetwave_protocol::sas::Key;
use serde_json::{Value, json};
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

use super::client::ServiceError;
use super::service::{BATCH, Service};
use super::{PREFIX, Remote};
use crate::device::World;
use crate::progress::Progress;
use crate::scenario::model::Scenario;
use crate::scenario::step::Configure;

/// Looked at between requests: whether to go on.
type GoOn<'a> = &'a dyn Fn() -> bool;

/// A run's place on a hub.
#[derive(Debug)]
pub(crate) struct Tenancy {
    /// Configurations that were there before.
    others: usize,
    remote: Remote,
    service: Service,
    runtime: Handle,
    /// Ends the runtime's thread when it is dropped.
    over: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    /// Held to note what is done.
    holding: Mutex<Holding>,
}

/// What there is of the run on the hub, as far as it may be there.
#[derive(Debug, Default)]
struct Holding {
    /// Ids of devices whose creation was asked for.
    devices: Vec<String>,
    /// The scenario's name and the hub's id of each configuration.
    configurations: Vec<(String, String)>,
    /// Configurations that were ever put: none has the id of another.
    put: u32,
}

/// What is left on the hub.
#[derive(Debug, thiserror::Error)]
#[error(
    "{devices} devices and {configurations} configurations of this run may be left on the hub; remove them by `{command}`"
)]
pub(crate) struct Left {
    devices: usize,
    configurations: usize,
    command: String,
    source: ServiceError,
}

impl Left {
    /// Says it with its cause.
    pub(crate) fn tell(&self) -> String {
        format!("{self} ({})", self.source)
    }
}

impl Tenancy {
    /// Finds out that the hub is there and lets us in, before anything is created.
    pub(crate) fn open(remote: &Remote, scenario: &Scenario, clock: &Clock) -> Result<Self, ServiceError> {
        let service = remote.service(scenario, clock)?;
        let (handle, over, thread) = start_runtime();
        let mut tenancy = Self {
            others: 0,
            remote: remote.clone(),
            service,
            runtime: handle,
            over: Some(over),
            thread: Some(thread),
            holding: Mutex::default(),
        };
        tenancy.others = tenancy.wait(tenancy.service.configurations())?.len();
        Ok(tenancy)
    }

    /// The hub and the run.
    pub(crate) const fn remote(&self) -> &Remote {
        &self.remote
    }

    /// How many configurations were there before.
    pub(crate) const fn others(&self) -> usize {
        self.others
    }

    /// The service side.
    pub(crate) const fn service(&self) -> &Service {
        &self.service
    }

    /// Where tasks run.
    pub(crate) const fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// Waits for what is asked of the hub.
    pub(crate) fn wait<T>(&self, ask: impl Future<Output = T>) -> T {
        self.runtime.block_on(ask)
    }

    fn holding(&self) -> std::sync::MutexGuard<'_, Holding> {
        self.holding.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Creates the fleet's devices, with keys derived from `key`; false if it was stopped in the middle.
    pub(crate) fn create_fleet(
        &self,
        world: &World,
        key: &Key,
        progress: &Progress,
        go_on: GoOn<'_>,
    ) -> Result<bool, ServiceError> {
        let fleet = world.fleet();
        let tags: Vec<Value> = fleet.groups().iter().map(|group| self.tags(&group.tags)).collect();
        let total = fleet.devices();
        let mut number = 0;
        while number < total {
            if !go_on() {
                return Ok(false);
            }
            progress.phase(format!("creating devices: {number} of {total}"));
            let next = total.min(number + BATCH as u64);
            let ids: Vec<String> = (number..next).map(|device| fleet.id(device)).collect();
            let devices = (number..next)
                .zip(&ids)
                .map(|(device, id)| new_device(id, key, &tags[fleet.group_of(device)]))
                .collect();
            self.holding().devices.extend(ids);
            self.wait(self.service.create_devices(devices))?;
            number = next;
        }
        Ok(true)
    }

    /// A group's tags, and the one that shows whose the device is.
    fn tags(&self, group: &str) -> Value {
        let mut tags: Value = serde_json::from_str(group).unwrap_or_else(|_| json!({}));
        tags[PREFIX] = json!({ "run": self.remote.run });
        tags
    }

    /// A target condition, held to the run's devices.
    pub(crate) fn condition(&self, target: &str) -> String {
        let own = self.remote.condition();
        if target.trim() == "*" { own } else { format!("({target}) AND {own}") }
    }

    /// Puts a configuration, in place of the run's other one of that name; says when it was sent.
    pub(crate) fn put(&self, configure: &Configure, content: &str) -> Result<Instant, ServiceError> {
        let (id, old) = {
            let mut holding = self.holding();
            holding.put += 1;
            let id = format!("{}-{}-{}", self.remote.prefix(), holding.put, configure.id);
            let old: Vec<String> = holding.of(&configure.id).collect();
            holding.configurations.push((configure.id.clone(), id.clone()));
            (id, old)
        };
        let content: Value = serde_json::from_str(content).unwrap_or_default();
        let body = json!({
            "id": id,
            "schemaVersion": "1.0",
            "labels": { PREFIX: self.remote.run },
            "content": { "deviceContent": content },
            "targetCondition": self.condition(&configure.target),
            "priority": configure.priority,
            "metrics": { "queries": {} },
        });
        let sent = self.wait(self.service.put_configuration(&id, &body))?;
        // The hub lets nobody change a configuration's content. The new one is the newest of its priority, so that no
        // device is without either in between.
        old.iter().try_for_each(|old| self.delete_configuration(old))?;
        Ok(sent)
    }

    /// Removes a configuration by the scenario's name of it.
    pub(crate) fn cancel(&self, name: &str) -> Result<(), ServiceError> {
        let ids: Vec<String> = self.holding().of(name).collect();
        ids.iter().try_for_each(|id| self.delete_configuration(id))
    }

    fn delete_configuration(&self, id: &str) -> Result<(), ServiceError> {
        self.wait(self.service.delete_configuration(id))?;
        self.holding().configurations.retain(|(_, held)| held != id);
        Ok(())
    }

    /// Removes everything that the run has created.
    pub(crate) fn remove(&self, progress: &Progress) -> Result<(), Left> {
        self.try_remove(progress).map_err(|source| {
            let holding = self.holding();
            Left {
                devices: holding.devices.len(),
                configurations: holding.configurations.len(),
                command: self.remote.clean_command(),
                source,
            }
        })
    }

    fn try_remove(&self, progress: &Progress) -> Result<(), ServiceError> {
        progress.phase("removing the run's configurations");
        let configurations: Vec<String> =
            self.holding().configurations.iter().map(|(_, id)| id.clone()).collect();
        configurations.iter().try_for_each(|id| self.delete_configuration(id))?;
        let total = self.holding().devices.len();
        loop {
            let ids: Vec<String> = {
                let holding = self.holding();
                holding.devices[holding.devices.len().saturating_sub(BATCH)..].to_vec()
            };
            if ids.is_empty() {
                return Ok(());
            }
            progress.phase(format!(
                "removing the run's devices: {} of {total} left",
                self.holding().devices.len()
            ));
            self.wait(self.service.delete_devices(&ids))?;
            let mut holding = self.holding();
            let left = holding.devices.len() - ids.len();
            holding.devices.truncate(left);
        }
    }
}

impl Holding {
    /// The hub's ids of the configurations of that name.
    fn of<'a>(&'a self, name: &'a str) -> impl Iterator<Item = String> + 'a {
        self.configurations.iter().filter(move |(held, _)| held == name).map(|(_, id)| id.clone())
    }
}

/// A panic on the way leaves nothing behind either.
impl Drop for Tenancy {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Err(left) = self.remove(&Progress::default())
        {
            tracing::error!(%left, "not everything could be removed");
        }
        drop(self.over.take());
        if let Some(thread) = self.thread.take() {
            // What it did has been waited for.
            let _ = thread.join();
        }
    }
}

fn new_device(id: &str, key: &Key, tags: &Value) -> Value {
    let (primary, secondary) = (key.derive(id), key.derive(&format!("{id}/secondary")));
    json!({
        "id": id,
        "importMode": "create",
        "status": "enabled",
        "authentication": {
            "type": "sas",
            "symmetricKey": { "primaryKey": primary.to_base64(), "secondaryKey": secondary.to_base64() },
        },
        "tags": tags,
    })
}

/// A runtime on a thread of its own, until its sender is dropped.
fn start_runtime() -> (Handle, oneshot::Sender<()>, JoinHandle<()>) {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a process that runs devices has descriptors left");
    let handle = runtime.handle().clone();
    let (over, ends) = oneshot::channel();
    let thread = std::thread::Builder::new()
        .name("service".to_owned())
        .spawn(move || {
            // Ends when the sender is dropped.
            let _ = runtime.block_on(ends);
            runtime.shutdown_background();
        })
        .expect("a process that runs devices has threads left");
    (handle, over, thread)
}
