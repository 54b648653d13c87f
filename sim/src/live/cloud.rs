//! The cloud side in the hub: the grant service, and the ear that hears which reports the hub has accepted.

use std::sync::{Arc, RwLock};
use std::time::Duration;

use bytes::Bytes;
use crossbeam_channel::Sender;
use fleetwave_agent_core::grant::{Answer, METHOD, Outcome, PROPERTIES, Request};
use fleetwave_agent_core::twin::{self, Status};
use fleetwave_hub::blob::BlobControl;
use fleetwave_hub::{Hooks, Replies, Reply, Telemetry};
use fleetwave_protocol::{CounterRng, Instant, Now, WallTime};
use rustc_hash::FxHashMap;

use super::aim::Board;
use crate::device::World;
use crate::scenario::fleet::Purpose;
use crate::scenario::model::Channel;

/// Different reports that are remembered; a fleet sends few.
const MOST_TEXTS: usize = 256;
/// How long a device may take to answer the method that carries its grant.
pub(super) const METHOD_TIMEOUT: Duration = Duration::from_secs(30);

/// The hub has accepted a report.
#[derive(Clone, Copy, Debug)]
pub(super) struct Heard {
    /// The device's place in its shard.
    pub(super) index: u32,
    /// When the hub accepted it.
    pub(super) at: Instant,
    /// What it says.
    pub(super) status: Status,
}

/// The blob's name of the scenario's release of that index.
pub(super) fn blob_name(spec: usize) -> String {
    format!("release-{spec}")
}

/// Who grants downloads.
pub(super) struct Granter {
    world: Arc<World>,
    board: Arc<RwLock<Board>>,
    blobs: BlobControl,
    answers: u64,
}

impl Granter {
    pub(super) const fn new(world: Arc<World>, board: Arc<RwLock<Board>>, blobs: BlobControl) -> Self {
        Self { world, board, blobs, answers: 0 }
    }

    /// The answer to a device's request, and how long it takes.
    pub(super) fn answer(&mut self, device: u64, request: Request, now: WallTime) -> (Duration, Answer) {
        let who = self.world.who(device);
        let outcome = self.decide(who.group, &request, now);
        self.answers += 1;
        let stream = self.world.fleet().rng(device, Purpose::Grant).next_u64();
        let latency = &self.world.scenario().grant.latency;
        let latency = latency.sample(&mut CounterRng::of(stream, self.answers));
        (latency, Answer { id: request.id, seq: request.seq, target: request.target, outcome })
    }

    /// Grants what the device's configuration asks it to install, and nothing else.
    fn decide(&self, group: usize, request: &Request, now: WallTime) -> Outcome {
        let releases = self.world.releases();
        let board = self.board.read().expect("nothing panics under this lock");
        let asked = board.of_group(group).into_iter().chain(board.open()).map(|aim| aim.release);
        let wanted = asked
            .filter(|release| {
                let release = &releases[*release];
                *release.id == *request.id && release.sequence == request.seq
            })
            .find_map(|release| self.world.catalogue().place(release));
        let Some(spec) = wanted else {
            return Outcome::Refused("the device's twin does not ask for this release".to_owned());
        };
        let ttl = self.world.scenario().grant.url_ttl.duration();
        let expires = WallTime::from_unix_millis(now.as_unix_millis().saturating_add(ttl.as_millis() as u64));
        Outcome::Granted {
            url: self.blobs.sign_url(&blob_name(spec), expires),
            delta_url: None,
            expires: expires.as_unix_secs(),
        }
    }
}

/// What is plugged into each of the hub's shards.
pub(super) struct CloudSide {
    granter: Granter,
    /// The ear of each device shard.
    ears: Vec<Sender<Heard>>,
    /// Devices in each device shard but the last.
    share: u64,
    /// What reports mean, by their text.
    texts: FxHashMap<Vec<u8>, Option<Status>>,
}

impl CloudSide {
    pub(super) fn new(granter: Granter, ears: Vec<Sender<Heard>>, share: u64) -> Self {
        Self { granter, ears, share, texts: FxHashMap::default() }
    }

    fn meaning(&mut self, patch: &[u8]) -> Option<Status> {
        if let Some(known) = self.texts.get(patch) {
            return *known;
        }
        let value = serde_json::from_slice(patch).ok()?;
        let status = twin::read_status(&value, self.granter.world.releases());
        if self.texts.len() == MOST_TEXTS {
            self.texts.clear();
        }
        self.texts.insert(patch.to_vec(), status);
        status
    }
}

impl Hooks for CloudSide {
    fn telemetry(&mut self, now: Now, message: Telemetry<'_>, replies: &mut Replies) {
        if message.properties != PROPERTIES {
            return;
        }
        let world = &self.granter.world;
        let (Some(number), Ok(request)) =
            (world.fleet().device_of(message.device), serde_json::from_slice::<Request>(message.body))
        else {
            return;
        };
        let channel = world.scenario().grant.channel;
        let (latency, answer) = self.granter.answer(number, request, now.wall);
        let body: Bytes = serde_json::to_vec(&answer).expect("an answer is JSON").into();
        let reply = match channel {
            Channel::Method => {
                Reply::Method { name: METHOD.to_owned(), payload: body, timeout: METHOD_TIMEOUT }
            }
            Channel::C2d => Reply::CloudToDevice { properties: PROPERTIES.to_owned(), body },
        };
        replies.send_after(latency, reply);
    }

    fn reported(&mut self, now: Now, device: &str, _version: u64, patch: &[u8]) {
        let Some(number) = self.granter.world.fleet().device_of(device) else { return };
        let Some(status) = self.meaning(patch) else { return };
        let shard = ((number / self.share) as usize).min(self.ears.len() - 1);
        let index = (number - shard as u64 * self.share) as u32;
        // A shard that has ended listens no more.
        let _ = self.ears[shard].send(Heard { index, at: now.at, status });
    }
}
