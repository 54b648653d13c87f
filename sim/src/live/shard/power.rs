//! Power: devices are switched on, boot, and lose it at the moments that the scenario chose.

use fleetwave_agent_core::{Event, State};
use fleetwave_protocol::Instant;
use std::time::Duration;

use super::slot::{Work, flag};
use super::trouble::{Cut, Rare};
use super::{Shard, Victims};
use crate::device::state_of;
use crate::live::transport::Line;
use crate::scenario::dist::Dist;
use crate::scenario::fault::CutMoment;
use crate::scenario::step::Arrival;

impl Shard {
    /// Devices are told to connect, each at its time.
    pub(super) fn switch_on(&mut self, from: Instant, step: usize, group: Option<usize>, arrival: Arrival) {
        for index in 0..self.slots.len() as u32 {
            let number = self.first + u64::from(index);
            let Some(offset) = self.world.fleet().arrival(number, step, group, arrival) else { continue };
            let slot = &mut self.slots[index as usize];
            if slot.has(flag::ON) || slot.work == Work::Boot {
                continue;
            }
            if slot.has(flag::REAL) {
                slot.set(flag::ON);
                slot.intended = from + offset;
                continue;
            }
            slot.work = Work::Boot;
            slot.done = from + offset;
            slot.intended = slot.done;
            self.ask_for_turn(index);
        }
    }

    /// The agent starts, from what survived.
    pub(super) fn power_on(&mut self, index: u32) {
        let at = self.clock.now().at;
        let slot = &mut self.slots[index as usize];
        slot.set(flag::ON);
        slot.wake = Instant::NEVER;
        // A first start was timed by the scenario.
        if slot.has(flag::KNOWN) && !slot.has(flag::CONNECTING) {
            slot.intended = at;
        }
        let boot = slot.hardware.booted();
        self.tell(index, Event::Booted(boot));
    }

    /// The device goes down in good order, and comes up again.
    pub(super) fn reboot(&mut self, index: u32, at: Instant) {
        let who = self.who(index);
        // What the agent had to say before goes out first.
        self.transmit(index, at);
        self.disconnect(index, at);
        let span = self.slots[index as usize].hardware.begin_boot(&self.world, who);
        self.go_off(index);
        self.work(index, at, Work::Boot, span);
    }

    /// The power goes, and comes back after a time of `off_for`.
    pub(super) fn power_cut(&mut self, index: u32, off_for: &Dist) {
        let at = self.clock.now().at;
        let who = self.who(index);
        let slot = &mut self.slots[index as usize];
        // Never switched on: there is no power to lose.
        if !slot.has(flag::ON) && !slot.has(flag::KNOWN) {
            return;
        }
        self.salvage_fetching(index);
        if self.slots[index as usize].line != Line::NONE {
            self.lose_line(index);
        }
        let hardware = &mut self.slots[index as usize].hardware;
        let off = hardware.off_time(&self.world, who, off_for);
        let boot = hardware.begin_boot(&self.world, who);
        self.go_off(index);
        let slot = &mut self.slots[index as usize];
        slot.work = Work::Boot;
        slot.done = at + off + boot;
        self.ask_for_turn(index);
    }

    /// Nothing that was under way on the device goes on.
    fn go_off(&mut self, index: u32) {
        self.stop_fetching(index);
        self.cancel_cut(index);
        self.forget_outside(index);
        self.writer.clear();
        let slot = &mut self.slots[index as usize];
        slot.give_up_work();
        slot.clear(flag::ON);
        slot.wake = Instant::NEVER;
        slot.twin_rid = 0;
    }

    /// The victims lose power: now, or in the state that was drawn for each.
    pub(super) fn doom_victims(&mut self, victims: &Victims, during: CutMoment, off_for: Dist) {
        for index in 0..self.slots.len() as u32 {
            if !self.is_victim(index, victims) {
                continue;
            }
            let number = self.first + u64::from(index);
            let (moment, through) = self.world.fleet().power_cut(number, victims.step, during);
            match state_of(moment) {
                Some(state) => self.rare_mut(index).armed.push(Cut { state, through, off_for }),
                None => self.power_cut(index, &off_for),
            }
        }
    }

    /// The agent has entered a state: is it the one in which the scenario cuts this device's power?
    pub(super) fn enter_doom(&mut self, index: u32, state: State) {
        if !self.slots[index as usize].has(flag::RARE) {
            return;
        }
        let rare = self.rare_mut(index);
        if let Some(place) = rare.armed.iter().position(|cut| cut.state == state) {
            let Cut { through, off_for, .. } = rare.armed.remove(place);
            rare.doomed = Some((through, off_for));
        }
    }

    /// A step of the device takes `span`: if its power is to be cut in this step, this is when.
    pub(super) fn doom(&mut self, index: u32, at: Instant, span: Duration) {
        if let Some((through, off_for)) = self.take_doom(index) {
            self.rare_mut(index).cut = Some((at + span.mul_f64(through), off_for));
        }
    }

    /// The cut of the step that the device is in, if there is one.
    pub(super) fn take_doom(&mut self, index: u32) -> Option<(f64, Dist)> {
        if !self.slots[index as usize].has(flag::RARE) {
            return None;
        }
        self.rare.get_mut(&index).and_then(|rare| rare.doomed.take())
    }

    /// The power goes when the download under way stops itself.
    pub(super) fn fetch_doom(&mut self, index: u32, off_for: Dist) {
        self.rare_mut(index).fetch_cut = Some(off_for);
    }

    /// The step in which the power was to be cut is over.
    pub(super) fn cancel_cut(&mut self, index: u32) {
        if let Some(rare) = self.rare.get_mut(&index) {
            rare.cut = None;
            rare.fetch_cut = None;
        }
    }

    /// The rare things of a device, which it has from now on.
    pub(super) fn rare_mut(&mut self, index: u32) -> &mut Rare {
        self.slots[index as usize].set(flag::RARE);
        self.rare.entry(index).or_default()
    }
}
