//! The cloud side of a hub that is not ours: hears which grants devices have asked for, and answers by direct methods.

use std::sync::Arc;

use fleetwave_agent_core::grant::METHOD;
use fleetwave_hub::Clock;
use fleetwave_protocol::Instant;
use tokio::sync::Semaphore;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::cloud::{Granter, METHOD_TIMEOUT};
use crate::device::World;
use crate::remote::{Asked, Tenancy};

/// Method calls that are under way at once.
const AT_ONCE: usize = 64;

/// Answers from now on what comes through the sender that this gives.
pub(super) fn start(
    tenancy: &Tenancy,
    world: Arc<World>,
    granter: Granter,
    clock: Clock,
) -> UnboundedSender<Asked> {
    let (sender, requests) = unbounded_channel();
    let service = tenancy.service().clone();
    tenancy.runtime().spawn(answer_all(service, world, granter, clock, requests));
    sender
}

async fn answer_all(
    service: crate::remote::Service,
    world: Arc<World>,
    mut granter: Granter,
    clock: Clock,
    mut requests: UnboundedReceiver<Asked>,
) {
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let patience = world.scenario().agent.grant_timeout.duration();
    while let Some(Asked { device, request }) = requests.recv().await {
        let asked: Instant = clock.now().at;
        let (latency, answer) = granter.answer(device, request, clock.now().wall);
        let payload = serde_json::to_value(&answer).expect("an answer is JSON");
        let id = world.fleet().id(device);
        let (service, clock, places) = (service.clone(), clock.clone(), places.clone());
        tokio::spawn(async move {
            tokio::time::sleep(latency).await;
            let Ok(_place) = places.acquire().await else { return };
            // The device has asked again by now.
            if clock.now().at.since(asked) > patience {
                return;
            }
            if let Err(error) = service.invoke(&id, METHOD, &payload, METHOD_TIMEOUT).await {
                tracing::debug!(%error, device = id, "a grant did not arrive; the device will ask again");
            }
        });
    }
}
