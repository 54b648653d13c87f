//! The operator's handle to a hub, whichever way the hub reaches its devices.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use fleetwave_hub_core::query::Query;
use fleetwave_hub_core::throttle::{Admission, Operation, Throttles};
use fleetwave_hub_core::{C2dMessage, Configuration, Counts, DeviceSpec, Done, HubError, MethodAnswer};
use fleetwave_protocol::sas::Key;
use fleetwave_protocol::{Instant, WallTime, sas};
use tokio::sync::oneshot;

use crate::Assign;
use crate::clock::Clock;
use crate::engine;
use crate::exposition::Instruments;
use crate::metrics::HubMetrics;
use crate::view::ShardView;

/// What a direct method gave: the device's answer, or why there is none.
pub type MethodOutcome = Result<MethodAnswer, Box<HubError>>;

/// Why an operator's request was not done.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The hub has stopped.
    #[error("the hub has stopped")]
    Stopped,
    /// The hub refused it.
    #[error(transparent)]
    Refused(#[from] Box<HubError>),
}

/// A change that the hub has made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// When the hub took it up, on the hub's [`Clock`]: the origin of fan-out latency. With several shards, the
    /// first of them.
    pub at: Instant,
}

/// A device to be created. What many devices have in common, they share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewDevice {
    /// Its id.
    pub id: String,
    /// The tags, a JSON object.
    pub tags: Option<Arc<str>>,
    /// The desired properties that the back end writes, a JSON object.
    pub desired: Option<Arc<str>>,
    /// The reported properties, a JSON object.
    pub reported: Option<Arc<str>>,
    /// Whether it may connect.
    pub enabled: bool,
}

impl NewDevice {
    /// An enabled device with an empty twin.
    #[must_use]
    pub fn new(id: impl Into<String>) -> Self {
        Self { id: id.into(), tags: None, desired: None, reported: None, enabled: true }
    }

    pub(crate) fn spec(&self) -> DeviceSpec<'_> {
        DeviceSpec {
            tags: self.tags.as_deref(),
            desired: self.desired.as_deref(),
            reported: self.reported.as_deref(),
            enabled: self.enabled,
            identity: None,
        }
    }
}

/// A direct method to call.
#[derive(Clone, Debug)]
pub struct MethodCall {
    /// Its name.
    pub name: String,
    /// Its JSON payload.
    pub payload: Bytes,
    /// How long to wait for the device to connect; zero: not at all.
    pub connect_timeout: Duration,
    /// How long the device may take to answer.
    pub response_timeout: Duration,
}

/// Changes of a twin that an operator asks for: JSON merge patches.
#[derive(Clone, Debug, Default)]
pub struct TwinChange {
    /// For the tags.
    pub tags: Option<Vec<u8>>,
    /// For the desired properties.
    pub desired: Option<Vec<u8>>,
    /// The etag that must be current; none or `*` forces.
    pub if_match: Option<String>,
}

/// What a shard is asked to do. Each carries where the answer goes.
pub(crate) enum Command {
    Create { devices: Vec<NewDevice>, answer: Answer<Result<u64, Box<HubError>>> },
    Put { configuration: Arc<Configuration>, answer: Answer<Applied> },
    Delete { configuration: Arc<str>, answer: Answer<Applied> },
    Counts { configuration: Arc<str>, answer: Answer<Option<Counts>> },
    CountWhere { query: Arc<Query>, answer: Answer<u64> },
    Invoke { device: String, call: MethodCall, answer: Answer<MethodOutcome> },
    SendC2d { device: String, message: Arc<C2dMessage>, answer: Answer<Applied> },
    PatchTwin { device: String, change: TwinChange, answer: Answer<Applied> },
    ReadTwin { device: String, answer: Answer<Result<Vec<u8>, Box<HubError>>> },
    Restart { until: Instant, answer: Answer<Instant> },
    Metrics { answer: Answer<HubMetrics> },
    Run(Job),
    Stop,
}

/// Something to be done on a shard's thread. What it gives back is called once all that it did is durable.
pub(crate) type Job = Box<dyn FnOnce(&mut ShardView<'_>) -> Release + Send>;

/// Lets an answer go.
pub(crate) type Release = Box<dyn FnOnce() + Send>;

/// When a shard took a change up, and how it ended.
pub(crate) type Applied = (Instant, Result<Done, Box<HubError>>);

/// Where an answer goes. Nobody waits any more: that is fine.
pub(crate) struct Answer<T>(oneshot::Sender<T>);

impl<T> Answer<T> {
    pub(crate) fn send(self, value: T) {
        let _ = self.0.send(value);
    }

    fn pair() -> (Self, oneshot::Receiver<T>) {
        let (sender, receiver) = oneshot::channel();
        (Self(sender), receiver)
    }
}

/// The way to a shard; false if it is gone.
pub(crate) type Shard = Arc<dyn Fn(Command) -> bool + Send + Sync>;

/// How many devices are handed to a shard at once.
const CREATE_BATCH: usize = 4096;

/// Commands a running hub, from any thread. Calls wait for the hub's answer; a hub that has stopped answers
/// [`ControlError::Stopped`].
#[derive(Clone)]
pub struct HubControl {
    shards: Arc<[Shard]>,
    assign: Assign,
    clock: Clock,
    group_key: Key,
    throttles: Option<Arc<Mutex<Throttles>>>,
    instruments: Instruments,
    /// Held while all shards are asked, so that they all hear of two changes in the same order.
    order: Arc<Mutex<()>>,
}

impl HubControl {
    pub(crate) fn new(
        shards: Arc<[Shard]>,
        assign: Assign,
        clock: Clock,
        group_key: Key,
        throttles: Option<Arc<Mutex<Throttles>>>,
        instruments: Instruments,
    ) -> Self {
        Self { shards, assign, clock, group_key, throttles, instruments, order: Arc::default() }
    }

    /// The clock that the hub's instants are of.
    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// What the hub measures beside its shards' counters.
    #[must_use]
    pub fn instruments(&self) -> &Instruments {
        &self.instruments
    }

    /// The key of a device: derived from the hub's group key, so that a million keys need no table.
    #[must_use]
    pub fn device_key(&self, device: &str) -> Key {
        self.group_key.derive(device)
    }

    /// A token with which `device`, or `device/module`, may connect to the hub that is called `host`.
    #[must_use]
    pub fn device_token(&self, host: &str, device: &str, expires: WallTime) -> String {
        let resource = match device.split_once('/') {
            Some((device, module)) => format!("{host}/devices/{device}/modules/{module}"),
            None => format!("{host}/devices/{device}"),
        };
        sas::token(&self.device_key(device), &resource, expires, None)
    }

    /// Creates devices, any number of them, and says how many.
    ///
    /// # Errors
    /// The first refusal, e.g. of an id that exists. Devices before it exist, and some behind it may.
    pub fn create_devices(&self, devices: impl IntoIterator<Item = NewDevice>) -> Result<u64, ControlError> {
        let mut batches: Vec<Vec<NewDevice>> = self.shards.iter().map(|_| Vec::new()).collect();
        let mut created = 0;
        for device in devices {
            let shard = self.assign.shard(&device.id, self.shards.len());
            batches[shard].push(device);
            if batches[shard].len() == CREATE_BATCH {
                created += self.create(shard, std::mem::take(&mut batches[shard]))?;
            }
        }
        for (shard, batch) in batches.into_iter().enumerate() {
            created += self.create(shard, batch)?;
        }
        Ok(created)
    }

    fn create(&self, shard: usize, devices: Vec<NewDevice>) -> Result<u64, ControlError> {
        Ok(self.ask(shard, |answer| Command::Create { devices, answer })??)
    }

    /// Creates a configuration, or changes the one of the same id; the twins that it targets follow at once.
    ///
    /// # Errors
    /// If the hub refuses it, or has stopped.
    pub fn put_configuration(&self, configuration: Configuration) -> Result<Accepted, ControlError> {
        let configuration = Arc::new(configuration);
        self.change_all(|answer| Command::Put { configuration: configuration.clone(), answer })
    }

    /// Deletes a configuration; its values leave the twins.
    ///
    /// # Errors
    /// If there is none of this id, or the hub has stopped.
    pub fn delete_configuration(&self, id: &str) -> Result<Accepted, ControlError> {
        let id: Arc<str> = id.into();
        self.change_all(|answer| Command::Delete { configuration: id.clone(), answer })
    }

    /// How many devices a configuration targets and is applied to; `None` if there is none of this id.
    ///
    /// # Errors
    /// If the hub has stopped.
    pub fn counts(&self, id: &str) -> Result<Option<Counts>, ControlError> {
        let configuration: Arc<str> = id.into();
        let counts =
            self.ask_all(|answer| Command::Counts { configuration: configuration.clone(), answer })?;
        Ok(counts.into_iter().flatten().reduce(|sum, shard| Counts {
            targeted: sum.targeted + shard.targeted,
            applied: sum.applied + shard.applied,
        }))
    }

    /// How many devices a query selects.
    ///
    /// # Errors
    /// If the hub has stopped.
    pub fn count_where(&self, query: Query) -> Result<u64, ControlError> {
        let query = Arc::new(query);
        let counts = self.ask_all(|answer| Command::CountWhere { query: query.clone(), answer })?;
        Ok(counts.into_iter().sum())
    }

    /// Calls a direct method, without waiting for its outcome.
    ///
    /// # Errors
    /// If the hub has stopped.
    pub fn invoke_method(&self, device: &str, call: MethodCall) -> Result<PendingMethod, ControlError> {
        let (answer, outcome) = Answer::pair();
        self.send(self.shard_of(device), Command::Invoke { device: device.to_owned(), call, answer })?;
        Ok(PendingMethod(outcome))
    }

    /// Queues a C2D message.
    ///
    /// # Errors
    /// If the device does not exist or its queue is full, or the hub has stopped.
    pub fn send_c2d(&self, device: &str, message: C2dMessage) -> Result<Accepted, ControlError> {
        let message = Arc::new(message);
        self.change(device, |device, answer| Command::SendC2d { device, message, answer })
    }

    /// Merges into a twin's tags and desired properties.
    ///
    /// # Errors
    /// If the device does not exist, the etag is stale, or a patch breaks a rule; or the hub has stopped.
    pub fn patch_twin(&self, device: &str, change: TwinChange) -> Result<Accepted, ControlError> {
        self.change(device, |device, answer| Command::PatchTwin { device, change, answer })
    }

    /// A device's twin, as the service sees it (JSON).
    ///
    /// # Errors
    /// If the device does not exist, or the hub has stopped.
    pub fn twin(&self, device: &str) -> Result<Vec<u8>, ControlError> {
        let device = device.to_owned();
        Ok(self.ask(self.shard_of(&device), |answer| Command::ReadTwin { device, answer })??)
    }

    /// Plays a restart: all connections end, nobody can connect for `down_for`, twins and queues survive. Says when
    /// it began.
    ///
    /// # Errors
    /// If the hub has stopped.
    pub fn restart(&self, down_for: Duration) -> Result<Instant, ControlError> {
        let until = self.clock.now().at + down_for;
        let began = self.ask_all(|answer| Command::Restart { until, answer })?;
        Ok(began.into_iter().min().unwrap_or(until))
    }

    /// What the hub has done so far.
    ///
    /// # Errors
    /// If the hub has stopped.
    pub fn metrics(&self) -> Result<HubMetrics, ControlError> {
        let metrics = self.ask_all(|answer| Command::Metrics { answer })?;
        Ok(metrics.into_iter().fold(HubMetrics::default(), HubMetrics::plus))
    }

    /// [`HubControl::metrics`] for async code.
    ///
    /// # Errors
    /// If the hub has stopped.
    pub async fn metrics_async(&self) -> Result<HubMetrics, ControlError> {
        let mut metrics = HubMetrics::default();
        for answered in self.begin_all(|answer| Command::Metrics { answer })? {
            metrics = metrics.plus(answered.await.map_err(|_| ControlError::Stopped)?);
        }
        Ok(metrics)
    }

    /// Runs `job` on the thread of the shard that has, or would have, the device or module `id`, and waits for
    /// what it gives. The answer comes once all that the job did is durable. The job holds the shard up: it should
    /// take microseconds. It is on its way when this returns, so that jobs for one id run in the order of the calls.
    ///
    /// # Errors
    /// If the hub has stopped.
    pub fn with_device<T, F>(
        &self,
        id: &str,
        job: F,
    ) -> impl Future<Output = Result<T, ControlError>> + Send + use<T, F>
    where
        T: Send + 'static,
        F: FnOnce(&mut ShardView<'_>) -> T + Send + 'static,
    {
        let answered = self.run(self.shard_of(id), job);
        async move { answered?.await.map_err(|_| ControlError::Stopped) }
    }

    /// Runs a job on each shard's thread, on all at once; what they give comes in the order of the shards.
    ///
    /// # Errors
    /// If the hub has stopped.
    pub async fn with_all<T: Send + 'static>(
        &self,
        job: impl Fn(&mut ShardView<'_>) -> T + Send + Sync + 'static,
    ) -> Result<Vec<T>, ControlError> {
        let job = Arc::new(job);
        let mut waiting = Vec::with_capacity(self.shards.len());
        {
            let _order = self.order.lock().expect("nothing panics under this lock");
            for shard in 0..self.shards.len() {
                let job = job.clone();
                waiting.push(self.run(shard, move |view| job(view))?);
            }
        }
        let mut answers = Vec::with_capacity(waiting.len());
        for answer in waiting {
            answers.push(answer.await.map_err(|_| ControlError::Stopped)?);
        }
        Ok(answers)
    }

    /// How many shards there are, and a job for one of them: for walks that go from shard to shard.
    ///
    /// # Errors
    /// If the hub has stopped, or has no such shard.
    pub async fn with_shard<T: Send + 'static>(
        &self,
        shard: usize,
        job: impl FnOnce(&mut ShardView<'_>) -> T + Send + 'static,
    ) -> Result<T, ControlError> {
        if shard >= self.shards.len() {
            return Err(ControlError::Stopped);
        }
        self.run(shard, job)?.await.map_err(|_| ControlError::Stopped)
    }

    /// How many shards the hub has.
    #[must_use]
    pub fn shards(&self) -> usize {
        self.shards.len()
    }

    /// Runs `job` like [`HubControl::with_device`], and blocks. Not for async code.
    ///
    /// # Errors
    /// If the hub has stopped.
    pub fn with_device_blocking<T: Send + 'static>(
        &self,
        id: &str,
        job: impl FnOnce(&mut ShardView<'_>) -> T + Send + 'static,
    ) -> Result<T, ControlError> {
        self.run(self.shard_of(id), job)?.blocking_recv().map_err(|_| ControlError::Stopped)
    }

    /// Runs `job` like [`HubControl::with_device`], and does not wait.
    ///
    /// # Errors
    /// If the hub has stopped.
    pub(crate) fn post(
        &self,
        id: &str,
        job: impl FnOnce(&mut ShardView<'_>) + Send + 'static,
    ) -> Result<(), ControlError> {
        self.run(self.shard_of(id), job).map(drop)
    }

    fn run<T: Send + 'static>(
        &self,
        shard: usize,
        job: impl FnOnce(&mut ShardView<'_>) -> T + Send + 'static,
    ) -> Result<oneshot::Receiver<T>, ControlError> {
        let (answer, answered) = Answer::pair();
        let job: Job = Box::new(move |view| {
            let value = job(view);
            Box::new(move || answer.send(value))
        });
        self.send(shard, Command::Run(job))?;
        Ok(answered)
    }

    /// Waits until the hub's limits admit an operation.
    ///
    /// # Errors
    /// 429001 if the limit and the queue behind it are used up.
    pub async fn admitted(&self, operation: Operation, cost: u32) -> Result<(), Box<HubError>> {
        match self.admission(operation, cost) {
            Admission::Now => Ok(()),
            Admission::At(at) => {
                tokio::time::sleep(at.since(self.clock.now().at)).await;
                Ok(())
            }
            Admission::Reject { retry_after } => Err(Box::new(engine::throttled(retry_after))),
        }
    }

    fn admission(&self, operation: Operation, cost: u32) -> Admission {
        let Some(throttles) = &self.throttles else { return Admission::Now };
        let now = self.clock.now().at;
        let admission = throttles.lock().expect("nothing panics under this lock").admit(operation, cost, now);
        self.instruments.admission(operation, admission);
        admission
    }

    /// Asks every shard to end; it does not wait.
    pub(crate) fn stop(&self) {
        for shard in self.shards.iter() {
            let _ = shard(Command::Stop);
        }
    }

    pub(crate) fn shard_of(&self, device: &str) -> usize {
        self.assign.shard(device, self.shards.len())
    }

    fn send(&self, shard: usize, command: Command) -> Result<(), ControlError> {
        if self.shards[shard](command) { Ok(()) } else { Err(ControlError::Stopped) }
    }

    fn ask<T>(&self, shard: usize, command: impl FnOnce(Answer<T>) -> Command) -> Result<T, ControlError> {
        let (answer, answered) = Answer::pair();
        self.send(shard, command(answer))?;
        answered.blocking_recv().map_err(|_| ControlError::Stopped)
    }

    /// Asks all shards at once.
    fn ask_all<T>(&self, command: impl Fn(Answer<T>) -> Command) -> Result<Vec<T>, ControlError> {
        self.begin_all(command)?
            .into_iter()
            .map(|answered| answered.blocking_recv().map_err(|_| ControlError::Stopped))
            .collect()
    }

    /// Asks all shards at once, without waiting for their answers.
    fn begin_all<T>(
        &self,
        command: impl Fn(Answer<T>) -> Command,
    ) -> Result<Vec<oneshot::Receiver<T>>, ControlError> {
        let mut waiting = Vec::with_capacity(self.shards.len());
        let _order = self.order.lock().expect("nothing panics under this lock");
        for shard in 0..self.shards.len() {
            let (answer, answered) = Answer::pair();
            self.send(shard, command(answer))?;
            waiting.push(answered);
        }
        Ok(waiting)
    }

    fn change(
        &self,
        device: &str,
        command: impl FnOnce(String, Answer<Applied>) -> Command,
    ) -> Result<Accepted, ControlError> {
        let (at, done) = self.ask(self.shard_of(device), |answer| command(device.to_owned(), answer))?;
        done?;
        Ok(Accepted { at })
    }

    /// A change of the whole hub. Shards hold the same configurations, so they agree about refusing one. The
    /// hub's limit of such changes is kept here, once for all shards: the call waits its turn.
    fn change_all(&self, command: impl Fn(Answer<Applied>) -> Command) -> Result<Accepted, ControlError> {
        match self.admission(Operation::Configuration, 1) {
            Admission::Now => {}
            Admission::At(at) => std::thread::sleep(at.since(self.clock.now().at)),
            Admission::Reject { retry_after } => {
                return Err(ControlError::Refused(Box::new(engine::throttled(retry_after))));
            }
        }
        let mut at = Instant::NEVER;
        for (began, done) in self.ask_all(command)? {
            done?;
            at = at.min(began);
        }
        Ok(Accepted { at })
    }
}

/// A direct method that was called.
#[derive(Debug)]
pub struct PendingMethod(oneshot::Receiver<MethodOutcome>);

impl PendingMethod {
    /// Waits for the outcome. The hub ends every call by its timeouts.
    ///
    /// # Errors
    /// If the hub has stopped, or refuses (not connected, no answer in time).
    pub fn wait(self) -> Result<MethodAnswer, ControlError> {
        Ok(self.0.blocking_recv().map_err(|_| ControlError::Stopped)??)
    }

    /// The outcome, if it is there.
    #[must_use]
    pub fn poll(&mut self) -> Option<MethodOutcome> {
        self.0.try_recv().ok()
    }
}
