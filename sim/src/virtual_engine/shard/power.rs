//! Power: devices are switched on, boot, and lose it at the moments that the scenario chose.

use fleetwave_agent_core::{Event as AgentEvent, State};
use fleetwave_protocol::time::micros;

use super::super::blob::{Part, part};
use super::super::env::{Cuts, Victims};
use super::super::event::Kind;
use super::{Env, Event, NEVER, Shard, Worker, flag, life};
use crate::device::state_of;

impl Shard {
    /// The agent starts, from what survived.
    pub(super) fn power_on(&mut self, index: u16, at: u64, env: &Env, worker: &mut Worker) {
        let device = &mut self.devices[usize::from(index)];
        device.set(flag::ON);
        device.wake = NEVER;
        // A first start was timed by the scenario.
        if device.has(flag::KNOWN) {
            device.intended = at;
        }
        let boot = device.hardware.booted();
        self.tell(index, at, AgentEvent::Booted(boot), env, worker);
    }

    /// The device goes down in good order, and comes up again.
    pub(super) fn reboot(&mut self, index: u16, at: u64, env: &Env, worker: &mut Worker) {
        let who = self.who(index);
        let device = &mut self.devices[usize::from(index)];
        let session = device.session;
        let span = micros(device.hardware.begin_boot(env.world(), who));
        self.go_off(index, at, worker);
        let arrives = self.arrival(index, at, 2, true, env);
        worker.meter.up(2);
        let generation = session as u8;
        let kind = Kind::HubDisconnect;
        self.schedule(Event { at: arrives, device: index, kind, generation, a: session, b: 0 });
        self.boot_at(index, at + span);
        self.doom(index, at, span);
    }

    /// Nothing that was under way on the device goes on.
    fn go_off(&mut self, index: u16, at: u64, worker: &mut Worker) {
        self.stop_fetching(index, at, worker);
        let device = &mut self.devices[usize::from(index)];
        device.clear(flag::ON | flag::SUBSCRIBE);
        device.life &= life::HEADER;
        device.session += 1;
        device.work = device.work.wrapping_add(1);
        device.wake = NEVER;
        if device.has(flag::CONNECTING) {
            // It is switched on again, and means to connect still.
            device.intended = device.intended.min(at);
        }
    }

    fn boot_at(&mut self, index: u16, at: u64) {
        let generation = self.devices[usize::from(index)].work;
        self.schedule(Event { at, device: index, kind: Kind::PowerOn, generation, a: 0, b: 0 });
    }

    /// The power goes, and comes back after the time that cut `cut` gives it.
    pub(super) fn power_cut(&mut self, index: u16, at: u64, cut: u32, env: &Env, worker: &mut Worker) {
        let who = self.who(index);
        let Some(&Cuts { off_for, .. }) = env.cuts.get(cut as usize) else { return };
        let device = &mut self.devices[usize::from(index)];
        if !device.has(flag::KNOWN) && !device.has(flag::ON) {
            // Never switched on: there is no power to lose.
            return;
        }
        let downloading = device.has(flag::FETCHING);
        device.clear(flag::DOOMED);
        let off = device.hardware.off_time(env.world(), who, &off_for);
        let boot = device.hardware.begin_boot(env.world(), who);
        self.go_off(index, at, worker);
        if downloading {
            self.devices[usize::from(index)].set(flag::SALVAGE);
        }
        self.boot_at(index, at + micros(off) + micros(boot));
    }

    /// The power goes in the middle of a step that takes no time.
    pub(super) fn power_cut_now(&mut self, index: u16, at: u64, env: &Env, worker: &mut Worker) {
        let cut = self.devices[usize::from(index)].cuts.checked_ilog2().unwrap_or(0);
        self.power_cut(index, at, cut, env, worker);
    }

    /// A download was stopped that nobody waits for; after a power cut the whole checkpoints of it are left.
    pub(super) fn salvage(&mut self, event: Event, env: &Env, worker: &mut Worker) {
        let index = event.device;
        self.count_payload(&event, env, worker);
        let reached = self.reached(&event, env);
        let device = &mut self.devices[usize::from(index)];
        if !device.has(flag::SALVAGE) {
            return;
        }
        device.clear(flag::SALVAGE);
        if !device.has(flag::ON) && part(&event) != Part::Header {
            let checkpoint = env.world().scenario().agent.checkpoint.bytes().max(1);
            let whole_ones = reached / checkpoint * checkpoint;
            let stored = device.hardware.stored().max(whole_ones);
            device.hardware.keep(stored);
        }
    }

    /// The agent has entered a state: is it the one in which the scenario cuts this device's power?
    pub(super) fn consider_doom(&mut self, index: u16, state: State, env: &Env) {
        if env.cuts.is_empty() {
            return;
        }
        let number = self.first + u64::from(index);
        for (place, cut) in env.cuts.iter().enumerate().take(8) {
            let device = &mut self.devices[usize::from(index)];
            let bit = 1 << place;
            if device.cuts & bit != 0 || !env.hits(&cut.victims, number) {
                continue;
            }
            let (moment, fraction) = env.world().fleet().power_cut(number, cut.victims.step, cut.during);
            if state_of(moment) == Some(state) {
                device.cuts |= bit;
                device.doom = fraction as f32;
                device.set(flag::DOOMED);
            }
        }
    }

    /// A step of the device takes `span`: if its power is to be cut in this step, this is when.
    pub(super) fn doom(&mut self, index: u16, at: u64, span: u64) {
        let device = &mut self.devices[usize::from(index)];
        if !device.has(flag::DOOMED) {
            return;
        }
        device.clear(flag::DOOMED);
        let at = at + (f64::from(device.doom) * span as f64) as u64;
        let cut = device.cuts.checked_ilog2().unwrap_or(0);
        let generation = device.work;
        self.schedule(Event { at, device: index, kind: Kind::PowerCut, generation, a: cut, b: 0 });
    }

    /// Cuts the power of the victims at once.
    pub(in super::super) fn cut_now(&mut self, cut: u32, victims: &Victims, at: u64, env: &Env) {
        for index in 0..self.devices.len() as u16 {
            let number = self.first + u64::from(index);
            if env.hits(victims, number) {
                let generation = self.devices[usize::from(index)].work;
                self.wheel.push(Event { at, device: index, kind: Kind::PowerCut, generation, a: cut, b: 0 });
            }
        }
    }
}
