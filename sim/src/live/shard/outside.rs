//! A hub that is not ours: what devices do there stays within its limits, and what happens inside it shows only by
//! what devices see.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use fleetwave_agent_core::Effect;
use fleetwave_agent_core::grant::Request;
use fleetwave_agent_core::twin::Status;
use fleetwave_hub_core::throttle::Operation;
use fleetwave_protocol::Instant;
use rustc_hash::FxHashMap;
use tokio::sync::mpsc::UnboundedSender;

use super::Shard;
use super::slot::flag;
use crate::live::cloud::Heard;
use crate::live::transport::Line;
use crate::remote::{Asked, Pacer};

/// The first identifier of an acknowledged message: the subscription has one as well.
const FIRST_PACKET: u16 = 2;

/// What of an agent's effects the hub limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Limited {
    Connect,
    TwinRead,
    Report,
    Telemetry,
}

impl Limited {
    const ALL: [Self; 4] = [Self::Connect, Self::TwinRead, Self::Report, Self::Telemetry];

    const fn of(effect: &Effect) -> Option<Self> {
        match effect {
            Effect::Connect => Some(Self::Connect),
            Effect::GetTwin { .. } => Some(Self::TwinRead),
            Effect::Report { .. } => Some(Self::Report),
            Effect::RequestGrant { .. } => Some(Self::Telemetry),
            _ => None,
        }
    }

    const fn operation(self) -> Operation {
        match self {
            Self::Connect => Operation::Connect,
            Self::TwinRead => Operation::TwinRead,
            Self::Report => Operation::TwinUpdate,
            Self::Telemetry => Operation::DeviceToCloud,
        }
    }
}

/// A shard's side of a hub that is not ours.
pub(in crate::live) struct Outside {
    pacer: Arc<Pacer>,
    grants: UnboundedSender<Asked>,
    /// Who waits for a place, in order; entries that nothing stands behind any more are passed over.
    lines: [VecDeque<u32>; Limited::ALL.len()],
    /// What waits: the newest of its kind for each device.
    waiting: FxHashMap<(u32, Limited), Effect>,
    /// When there may be a place.
    next: Instant,
    /// Grant requests that the hub has not acknowledged.
    asked: FxHashMap<u32, (u16, Request)>,
    packets: u16,
    /// What each device has reported and not had an answer to.
    reported: FxHashMap<u32, (u32, Status)>,
}

impl Outside {
    pub(in crate::live) fn new(pacer: Arc<Pacer>, grants: UnboundedSender<Asked>) -> Self {
        Self {
            pacer,
            grants,
            lines: Default::default(),
            waiting: FxHashMap::default(),
            next: Instant::NEVER,
            asked: FxHashMap::default(),
            packets: FIRST_PACKET,
            reported: FxHashMap::default(),
        }
    }

    /// An identifier for a message that the hub acknowledges.
    pub(super) fn packet(&mut self) -> u16 {
        self.packets = self.packets.checked_add(1).unwrap_or(FIRST_PACKET);
        self.packets
    }

    /// A grant request goes out under that identifier.
    pub(super) fn asks(&mut self, index: u32, packet: u16, request: Request) {
        self.asked.insert(index, (packet, request));
    }

    /// A report goes out.
    pub(super) fn reports(&mut self, index: u32, rid: u32, status: Status) {
        self.reported.insert(index, (rid, status));
    }

    /// Nothing of a connection that is over comes any more.
    fn forget(&mut self, index: u32) {
        for kind in Limited::ALL {
            self.waiting.remove(&(index, kind));
        }
        self.asked.remove(&index);
        self.reported.remove(&index);
    }
}

impl Shard {
    /// The effect if it may be carried out now; else it waits for its place.
    pub(super) fn within_limits(&mut self, index: u32, effect: Effect) -> Option<Effect> {
        let Some(outside) = &mut self.outside else { return Some(effect) };
        if matches!(effect, Effect::Disconnect) {
            outside.forget(index);
        }
        let Some(kind) = Limited::of(&effect) else { return Some(effect) };
        let line = &mut outside.lines[kind as usize];
        if line.is_empty() {
            match outside.pacer.take(kind.operation(), 1) {
                Ok(()) => return Some(effect),
                Err(at) => outside.next = outside.next.min(at),
            }
        }
        if outside.waiting.insert((index, kind), effect).is_none() {
            line.push_back(index);
        }
        if kind == Limited::Connect {
            let at = self.clock.now().at;
            self.begin_connecting(index, at);
        }
        None
    }

    /// Nothing of a device's connection, or of its wish to have one, is left.
    pub(super) fn forget_outside(&mut self, index: u32) {
        if let Some(outside) = &mut self.outside {
            outside.forget(index);
        }
    }

    /// When something may find its place.
    pub(super) fn next_place(&self) -> Instant {
        self.outside.as_ref().map_or(Instant::NEVER, |outside| outside.next)
    }

    /// Carries out what has found its place.
    pub(super) fn take_places(&mut self) {
        if self.next_place() > self.clock.now().at {
            return;
        }
        let mut next = Instant::NEVER;
        for kind in Limited::ALL {
            loop {
                let Some(outside) = &mut self.outside else { return };
                let line = &mut outside.lines[kind as usize];
                let Some(&index) = line.front() else { break };
                let slot = &self.slots[index as usize];
                // A device that went down meanwhile, or lost its connection, takes nobody's place.
                let wanted = outside.waiting.contains_key(&(index, kind))
                    && slot.has(flag::ON)
                    && (kind == Limited::Connect) == (slot.line == Line::NONE);
                if wanted && let Err(at) = outside.pacer.take(kind.operation(), 1) {
                    next = next.min(at);
                    break;
                }
                line.pop_front();
                if let Some(effect) = outside.waiting.remove(&(index, kind))
                    && wanted
                {
                    self.carry_out_late(index, effect);
                }
            }
        }
        if let Some(outside) = &mut self.outside {
            // Others take places as well: the question is asked again after a moment, not at once.
            let soon = self.clock.now().at + Duration::from_millis(1);
            outside.next = if next == Instant::NEVER { next } else { next.max(soon) };
        }
    }

    /// The hub has acknowledged a message: if it was a grant request, the cloud side has it now.
    pub(super) fn acknowledged(&mut self, index: u32, packet: u16) {
        let Some(outside) = &mut self.outside else { return };
        if outside.asked.get(&index).is_none_or(|(asked, _)| *asked != packet) {
            return;
        }
        if let Some((_, request)) = outside.asked.remove(&index) {
            let device = self.first + u64::from(index);
            // Nobody grants any more when the run is over.
            let _ = outside.grants.send(Asked { device, request });
        }
    }

    /// The hub has answered a report: if it has accepted it, everybody can know what it says.
    pub(super) fn report_answered(&mut self, index: u32, rid: u32, status: u16) {
        let Some(outside) = &mut self.outside else { return };
        if !(200..300).contains(&status) || outside.reported.get(&index).is_none_or(|(sent, _)| *sent != rid)
        {
            return;
        }
        if let Some((_, status)) = outside.reported.remove(&index) {
            let at = self.clock.now().at;
            self.hear(Heard { index, at, status });
        }
    }
}
