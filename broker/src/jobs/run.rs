//! Walks a job through its devices.

use std::sync::Arc;
use std::time::Duration;

use fleetwave_hub_core::throttle::Operation;
use fleetwave_hub_core::{DeviceIx, Input};
use tokio::sync::{Semaphore, oneshot};
use tokio::time::{Instant, sleep, timeout_at};

use super::request::Work;
use super::{Job, Jobs, Outcome, Status};
use crate::HubControl;
use crate::control::{ControlError, MethodCall};

/// Methods that one job has open at once.
const METHODS: usize = 256;
/// Devices that are looked at in one visit to a shard.
const LOOK: usize = 4096;

/// Runs a job from its start to its end.
pub(super) async fn run(jobs: Arc<Jobs>, control: HubControl, id: String) {
    let now = || control.clock().now().wall;
    // A clock that is moved forward is noticed within a second.
    while let Ok(left) = jobs.with(&id, |job| {
        let left = job.start().as_unix_millis().saturating_sub(now().as_unix_millis());
        if job.status.has_ended() { 0 } else { left }
    }) && left > 0
    {
        sleep(Duration::from_millis(left.min(1000))).await;
    }
    let Ok(_place) = jobs.places.clone().acquire_owned().await else { return };
    let Ok(request) = jobs.with(&id, |job| job.request.clone()) else { return };
    let ended = match targets(&control, &request.query).await {
        Err(error) => Err(error.to_string()),
        Ok(targets) => {
            if !jobs.with(&id, |job| job.begin(targets.clone(), now())).unwrap_or(false) {
                return;
            }
            // What a job began must not begin anew after a restart.
            if jobs.keep(&id).await.is_err() {
                return;
            }
            let deadline = Instant::now() + request.max_execution;
            match timeout_at(deadline, work(&jobs, &control, &id, &request.work, targets)).await {
                Ok(()) => Ok(()),
                Err(_) => Err("the job did not end within maxExecutionTimeInSeconds".to_owned()),
            }
        }
    };
    let _ = jobs.with(&id, |job: &mut Job| match ended {
        Ok(()) => job.end(Status::Completed, None, now()),
        Err(why) => job.end(Status::Failed, Some(why), now()),
    });
    if let Err(error) = jobs.keep(&id).await {
        tracing::error!(job = id, %error, "a job's end could not be kept");
    }
}

/// The ids of the devices that a query selects.
async fn targets(
    control: &HubControl,
    query: &fleetwave_hub_core::query::Query,
) -> Result<Vec<String>, ControlError> {
    let mut ids = Vec::new();
    for shard in 0..control.shards() {
        let mut from = Some(DeviceIx::from_index(0));
        while let Some(start) = from {
            let query = query.clone();
            let (some, next) = control
                .with_shard(shard, move |view| {
                    let hub = view.hub();
                    let (found, next) = hub.select(&query, start, LOOK);
                    (found.into_iter().map(|ix| hub.id(ix).to_owned()).collect::<Vec<_>>(), next)
                })
                .await?;
            ids.extend(some);
            from = next;
        }
    }
    Ok(ids)
}

async fn work(jobs: &Arc<Jobs>, control: &HubControl, id: &str, work: &Work, targets: Vec<String>) {
    let open = Arc::new(Semaphore::new(METHODS));
    for target in targets {
        if control.admitted(Operation::JobDevice, 1).await.is_err() {
            // The queue behind the limit is full; its turn comes.
            sleep(Duration::from_secs(1)).await;
        }
        let now = control.clock().now().wall;
        if !jobs.with(id, |job| job.turn(&target, now)).unwrap_or(false) {
            return;
        }
        match work {
            Work::Update { tags, desired, etag } => {
                let (device, tags, desired, etag) =
                    (target.clone(), tags.clone(), desired.clone(), etag.clone());
                let written = control
                    .with_device(&target, move |view| {
                        let ix = view.find(&device)?;
                        view.apply(Input::PatchTwin {
                            device: ix,
                            tags: tags.as_deref(),
                            desired: desired.as_deref(),
                            if_match: etag.as_deref(),
                        })
                    })
                    .await;
                let outcome = match written {
                    Ok(Ok(_)) => Outcome::Written,
                    Ok(Err(error)) => error.into(),
                    Err(_) => return,
                };
                done(jobs, control, id, &target, outcome);
            }
            Work::Method(call) => {
                let Ok(place) = open.clone().acquire_owned().await else { return };
                let (jobs, control, id, call) = (jobs.clone(), control.clone(), id.to_owned(), call.clone());
                tokio::spawn(async move {
                    if let Some(outcome) = call_method(&control, &target, call).await {
                        done(&jobs, &control, &id, &target, outcome);
                    }
                    drop(place);
                });
            }
        }
    }
    // All places are free once the last call has ended.
    let _ = open.acquire_many(u32::try_from(METHODS).expect("a small number")).await;
}

async fn call_method(control: &HubControl, target: &str, call: MethodCall) -> Option<Outcome> {
    let (answer, answered) = oneshot::channel();
    let device = target.to_owned();
    control
        .with_device(target, move |view| match view.find(&device) {
            Ok(ix) => view.invoke(ix, &call, move |outcome| drop(answer.send(outcome))),
            Err(error) => drop(answer.send(Err(error))),
        })
        .await
        .ok()?;
    Some(match answered.await.ok()? {
        Ok(answer) => Outcome::Answered(answer),
        Err(error) => error.into(),
    })
}

fn done(jobs: &Jobs, control: &HubControl, id: &str, target: &str, outcome: Outcome) {
    let now = control.clock().now().wall;
    let _ = jobs.with(id, |job| job.done(target, outcome, now));
}
