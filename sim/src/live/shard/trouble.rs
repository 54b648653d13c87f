//! Planted trouble on the way between devices and hub. Few devices have any at a time: what it needs stands apart.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use fleetwave_agent_core::{Event, State};
use fleetwave_protocol::Instant;

use super::slot::flag;
use super::{Shard, Victims};
use crate::live::transport::{Kind, Line};
use crate::scenario::dist::Dist;

/// Trouble of the whole shard.
#[derive(Debug, Default)]
pub(super) struct Trouble {
    /// Victims, until when, and the delay; lost without one.
    pub(super) notifications: Vec<(Victims, Instant, Option<Duration>)>,
    /// When links come back, and whose.
    links: Vec<(Instant, Vec<u32>)>,
    unreachable_until: Instant,
    /// Nobody is busy any more.
    pub(super) free: bool,
}

impl Trouble {
    /// Whether nobody can connect now.
    pub(super) fn is_unreachable(&self, at: Instant) -> bool {
        at < self.unreachable_until
    }
}

/// A power cut that waits for its device to come to a state.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cut {
    pub(super) state: State,
    /// How far through the state: 0 to 1.
    pub(super) through: f64,
    pub(super) off_for: Dist,
}

/// What few devices have.
#[derive(Debug, Default)]
pub(super) struct Rare {
    pub(super) armed: Vec<Cut>,
    /// The device is in the state in which its power is cut.
    pub(super) doomed: Option<(f64, Dist)>,
    /// When that happens.
    pub(super) cut: Option<(Instant, Dist)>,
    /// It happens when the download comes to a certain byte.
    pub(super) fetch_cut: Option<Dist>,
    /// Notifications that are late: when they arrive, their versions and texts.
    late: VecDeque<(Instant, u64, Bytes)>,
    held: Option<Held>,
}

/// What waits while a device's link is down: both sides' network sends it again when it is back.
#[derive(Debug)]
struct Held {
    until: Instant,
    up: BytesMut,
    down: BytesMut,
    closed: bool,
}

impl Rare {
    /// Keeps what the device sends while its link is down; false if it is not.
    pub(super) fn hold_up(&mut self, bytes: &[u8]) -> bool {
        match &mut self.held {
            Some(held) => {
                held.up.extend_from_slice(bytes);
                true
            }
            None => false,
        }
    }

    fn due(&self) -> Instant {
        let late = self.late.front().map_or(Instant::NEVER, |(at, ..)| *at);
        self.cut.map_or(Instant::NEVER, |(at, _)| at).min(late)
    }
}

impl Shard {
    pub(super) fn is_victim(&self, index: u32, victims: &Victims) -> bool {
        let number = self.first + u64::from(index);
        !self.slots[index as usize].has(flag::REAL)
            && self.world.fleet().is_hit(number, victims.step, victims.group, victims.share)
    }

    pub(super) fn rare_due(&self, index: u32) -> Instant {
        if !self.slots[index as usize].has(flag::RARE) {
            return Instant::NEVER;
        }
        self.rare.get(&index).map_or(Instant::NEVER, Rare::due)
    }

    /// Lets happen what is due among the rare things.
    pub(super) fn rare_turn(&mut self, index: u32, now: Instant) {
        if self.rare_due(index) > now {
            return;
        }
        let Some(rare) = self.rare.get_mut(&index) else { return };
        if let Some((_, off_for)) = rare.cut.take_if(|(at, _)| *at <= now) {
            self.power_cut(index, &off_for);
        }
        while let Some(rare) = self.rare.get_mut(&index)
            && rare.late.front().is_some_and(|(at, ..)| *at <= now)
            && let Some((_, version, patch)) = rare.late.pop_front()
        {
            self.desired(index, version, &patch);
        }
    }

    /// A notification has come as far as the device: does it arrive?
    pub(super) fn notification(&mut self, index: u32, version: u64, patch: &Bytes) {
        if self.trouble.notifications.is_empty() {
            self.desired(index, version, patch);
            return;
        }
        let now = self.clock.now().at;
        let mut delay = Duration::ZERO;
        for (victims, until, by) in &self.trouble.notifications {
            if now >= *until || !self.is_victim(index, victims) {
                continue;
            }
            match by {
                Some(by) => delay += *by,
                None => return,
            }
        }
        if delay.is_zero() {
            self.desired(index, version, patch);
        } else {
            let late = (now + delay, version, Bytes::copy_from_slice(patch));
            self.rare_mut(index).late.push_back(late);
            self.ask_for_turn(index);
        }
    }

    pub(super) fn is_link_down(&self, index: u32) -> bool {
        self.slots[index as usize].has(flag::RARE)
            && self.rare.get(&index).is_some_and(|rare| rare.held.is_some())
    }

    /// Keeps what comes for a device whose link is down; false if it is not.
    pub(super) fn is_cut_off(&mut self, index: u32, kind: Kind, bytes: &[u8]) -> bool {
        if !self.slots[index as usize].has(flag::RARE) {
            return false;
        }
        let Some(held) = self.rare.get_mut(&index).and_then(|rare| rare.held.as_mut()) else { return false };
        held.down.extend_from_slice(bytes);
        held.closed |= kind == Kind::Closed;
        true
    }

    /// Nothing of a connection that is over will be sent again.
    pub(super) fn forget_held(&mut self, index: u32) {
        if let Some(rare) = self.rare.get_mut(&index) {
            rare.late.clear();
            if let Some(held) = &mut rare.held {
                held.up.clear();
                held.down.clear();
                held.closed = false;
            }
        }
    }

    /// The victims' links go down: nothing passes until then, downloads break off.
    pub(super) fn break_links(&mut self, victims: &Victims, until: Instant) {
        let broken: Vec<u32> =
            (0..self.slots.len() as u32).filter(|index| self.is_victim(*index, victims)).collect();
        for &index in &broken {
            let rare = self.rare_mut(index);
            let held = Held { until, up: BytesMut::new(), down: BytesMut::new(), closed: false };
            let held = rare.held.get_or_insert(held);
            held.until = held.until.max(until);
            self.interrupt_fetching(index);
        }
        self.trouble.links.push((until, broken));
    }

    /// Links come back whose time is over.
    pub(super) fn end_trouble(&mut self) {
        if self.trouble.links.is_empty() {
            return;
        }
        let now = self.clock.now().at;
        let over: Vec<(Instant, Vec<u32>)> =
            self.trouble.links.extract_if(.., |(until, _)| *until <= now).collect();
        for index in over.into_iter().flat_map(|(_, devices)| devices) {
            let held = self.rare.get_mut(&index).and_then(|rare| rare.held.take_if(|held| held.until <= now));
            let Some(held) = held else { continue };
            let line = self.slots[index as usize].line;
            if line == Line::NONE {
                continue;
            }
            self.transport.send(line, &held.up);
            if !held.down.is_empty() {
                self.incoming(index, &held.down);
            }
            if held.closed && self.slots[index as usize].line == line {
                self.closed(index);
            }
        }
    }

    /// All connections break, and none can be made until then.
    pub(super) fn break_connections(&mut self, until: Instant) {
        self.trouble.unreachable_until = until;
        for index in 0..self.slots.len() as u32 {
            if self.slots[index as usize].line != Line::NONE {
                self.lose_line(index);
                self.tell(index, Event::Disconnected);
            }
        }
    }
}
