//! What all shards are told: the world, and what holds at present. It changes only between windows.

use std::time::Duration;

use fleetwave_agent_core::{Policy, ReleaseId};
use fleetwave_hub_core::Cycle;
use fleetwave_protocol::rng::mix;
use fleetwave_protocol::time::{Instant, Now, WallTime, micros};

use super::delta::Deltas;
use super::sizes::{GrantTexts, Sizes};
use crate::device::World;
use crate::scenario::dist::Dist;
use crate::scenario::fault::{CutMoment, Scope};
use crate::scenario::model::{self, Tier};
use crate::scenario::quantity::Percent;

/// Shorter latencies are taken as this: it bounds how many windows a second of virtual time has.
const SHORTEST: u64 = 200;

/// A segment of a connection over the internet, for the effect of loss on its throughput.
const SEGMENT: f64 = 1460.0;

/// What a group's links do to messages.
#[derive(Clone, Copy, Debug)]
pub(super) struct LinkSpec {
    /// Bytes a microsecond.
    pub(super) up: f64,
    pub(super) down: f64,
    pub(super) loss: f64,
}

/// The devices that a fault is about.
#[derive(Clone, Copy, Debug)]
pub(super) struct Victims {
    /// The step that it belongs to, for its draw.
    pub(super) step: usize,
    pub(super) group: Option<usize>,
    pub(super) share: Percent,
}

/// Notifications are lost or late.
#[derive(Clone, Copy, Debug)]
pub(super) struct NotificationFault {
    pub(super) victims: Victims,
    pub(super) until: u64,
    /// Lost, if `None`.
    pub(super) delay: Option<u64>,
}

/// Power cuts that wait for their devices to come to a state.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cuts {
    pub(super) victims: Victims,
    pub(super) during: CutMoment,
    pub(super) off_for: Dist,
}

/// What all shards are told.
pub(super) struct Env {
    world: World,
    width: u64,
    links: Vec<LinkSpec>,
    sizes: Sizes,
    deltas: Deltas,
    grants: Vec<GrantTexts>,
    ids: Vec<ReleaseId>,
    clock: WallTime,
    /// The hub is down until then.
    pub(super) hub_back: u64,
    pub(super) notifications: Vec<NotificationFault>,
    pub(super) cuts: Vec<Cuts>,
}

impl Env {
    pub(super) fn new(world: World) -> Self {
        let groups = world.fleet().groups();
        let shortest = groups.iter().map(|group| micros(group.spec.link.latency.min())).min().unwrap_or(0);
        let links = groups
            .iter()
            .map(|group| LinkSpec {
                up: group.spec.link.up.bytes_per_second() / 1e6,
                down: group.spec.link.down.bytes_per_second() / 1e6,
                loss: group.spec.link.loss.fraction().min(0.9),
            })
            .collect();
        let sizes = Sizes::new(&world);
        let grants = world.releases().iter().map(|(id, _)| GrantTexts::new(world.releases(), id)).collect();
        let clock =
            WallTime::from_unix_millis(super::EPOCH.as_unix_millis() + world.scenario().clock.millis());
        Self {
            width: shortest.max(SHORTEST),
            links,
            sizes,
            deltas: Deltas::new(&world),
            grants,
            ids: world.releases().iter().map(|(id, _)| id).collect(),
            clock,
            hub_back: 0,
            notifications: Vec::new(),
            cuts: Vec::new(),
            world,
        }
    }

    pub(super) fn world(&self) -> &World {
        &self.world
    }

    /// The width of a window: the shortest latency.
    pub(super) fn width(&self) -> u64 {
        self.width
    }

    pub(super) fn sizes(&self) -> &Sizes {
        &self.sizes
    }

    pub(super) fn deltas(&self) -> &Deltas {
        &self.deltas
    }

    pub(super) fn policy(&self, group: u16) -> &Policy {
        self.world.policy(usize::from(group))
    }

    pub(super) fn link(&self, group: u16) -> LinkSpec {
        self.links[usize::from(group)]
    }

    /// The release at a place of the catalogue, as events carry it.
    pub(super) fn release_at(&self, place: usize) -> ReleaseId {
        self.ids[place]
    }

    pub(super) fn grant_texts(&self, release: usize) -> &GrantTexts {
        &self.grants[release]
    }

    pub(super) fn throttled(&self) -> bool {
        self.world.scenario().hub.tier != Tier::None
    }

    pub(super) fn cycle(&self) -> Cycle {
        match self.world.scenario().hub.configuration_cycle {
            model::Cycle::Immediate => Cycle::Immediate,
            model::Cycle::Every(span) => Cycle::Every(span.duration()),
        }
    }

    pub(super) fn now(&self, at: u64) -> Now {
        let wall = WallTime::from_unix_millis(self.clock.as_unix_millis() + at / 1000);
        Now { at: Instant::from_micros(at), wall }
    }

    /// A fault's victims.
    pub(super) fn victims(&self, step: usize, scope: Scope<'_>) -> Victims {
        let group = scope.group.and_then(|name| self.world.fleet().group_named(name));
        Victims { step, group, share: scope.share }
    }

    pub(super) fn hits(&self, victims: &Victims, device: u64) -> bool {
        self.world.fleet().is_hit(device, victims.step, victims.group, victims.share)
    }

    /// The next of a device's draws for its messages and downloads: 0 to 1.
    pub(super) fn draw(&self, device: u64, draws: &mut u32) -> f64 {
        (self.draw_bits(device, draws) >> 11) as f64 / (1u64 << 53) as f64
    }

    pub(super) fn draw_bits(&self, device: u64, draws: &mut u32) -> u64 {
        *draws = draws.wrapping_add(1);
        mix(mix(self.world.scenario().seed ^ mix(device)) ^ u64::from(*draws))
    }

    /// A span of `dist`, by the next of a device's draws.
    pub(super) fn span(&self, dist: &Dist, device: u64, draws: &mut u32) -> u64 {
        let seed = self.draw_bits(device, draws);
        micros(dist.sample(&mut fleetwave_protocol::CounterRng::new(seed)))
    }

    /// What a link of each group takes of a download, in bytes a second: its rate, or what loss leaves of it
    /// (Mathis, Semke, Mahdavi, Ott: "The macroscopic behavior of the TCP congestion avoidance algorithm", 1997).
    pub(super) fn download_caps(&self) -> Vec<f64> {
        let groups = self.world.fleet().groups();
        let cap = |(group, link): (&crate::scenario::fleet::PlannedGroup, &LinkSpec)| {
            let rate = link.down * 1e6;
            let round_trip = (2 * group.spec.link.latency.median()).max(Duration::from_micros(2 * SHORTEST));
            if link.loss > 0.0 {
                rate.min(SEGMENT / round_trip.as_secs_f64() * (1.5 / link.loss).sqrt())
            } else {
                rate
            }
        };
        groups.iter().zip(&self.links).map(cap).collect()
    }
}
