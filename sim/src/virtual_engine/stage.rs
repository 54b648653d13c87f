//! What happens between windows, in one thread and in a fixed order: the timeline's actions, the throttles, the
//! blob store.

use fleetwave_hub_core::throttle::{self, Throttles};
use fleetwave_protocol::time::{Instant, micros};
use sha2::{Digest as _, Sha256};

use super::blob::Store;
use super::env::{Cuts, NotificationFault};
use super::gate::{self, Ask, Told};
use super::pool::Pool;
use super::shard::Window;
use super::wheel::Event;
use crate::measure::{Change, ChangeId};
use crate::progress::Progress;
use crate::run::EngineError;
use crate::scenario::fault::{CutMoment, Fault};
use crate::scenario::model::{Scenario, Tier};
use crate::scenario::step::{self, Configure, Connect};
use crate::timeline::{Action, Counts, End, Timeline};

/// A digest for a payload that does not exist.
pub(super) fn stand_in_digest(id: &str) -> [u8; 32] {
    Sha256::digest(id.as_bytes()).into()
}

/// The fewest latencies between a device's wish for a download and its first news of it: SYN, SYN-ACK, request, and
/// answer. What a device does within a window of so many can't come back to it, or to another, in the window.
const DOWNLOAD: u64 = 4;

/// Which trouble of the blob store ends.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mend {
    Refusals,
    Bandwidth,
    Corruption,
}

/// Everything between windows.
pub(super) struct Stage<'a> {
    pool: &'a Pool,
    scenario: &'a Scenario,
    width: u64,
    /// The most buckets of a window.
    longest: u64,
    /// The first bucket of the next window.
    bucket: u64,
    counts: Counts,
    store: Store,
    throttled: bool,
    throttles: Throttles,
    mends: Vec<(u64, Mend)>,
    /// Each shard's earliest bucket with events.
    next: Vec<u64>,
    active: Vec<u32>,
    asks: Vec<Ask>,
    told: Vec<(u32, u32, Told)>,
    sent: Vec<(u32, Event)>,
}

impl<'a> Stage<'a> {
    pub(super) fn new(pool: &'a Pool, scenario: &'a Scenario) -> Self {
        let env = pool.env();
        let devices: Vec<usize> = (0..pool.len())
            .map(|shard| {
                let numbers = pool.shard(shard).numbers();
                (numbers.end - numbers.start) as usize
            })
            .collect();
        let tier = match scenario.hub.tier {
            Tier::None => throttle::Tier::None,
            Tier::S1 => throttle::Tier::S1,
            Tier::S2 => throttle::Tier::S2,
            Tier::S3 => throttle::Tier::S3,
        };
        let bandwidth = scenario.blob.bandwidth.bytes_per_second();
        Self {
            pool,
            scenario,
            width: env.width(),
            longest: if env.throttled() { 1 } else { DOWNLOAD },
            bucket: 0,
            counts: Counts { total: env.world().fleet().devices(), ..Counts::default() },
            store: Store::new(bandwidth, scenario.blob.concurrency, &env.download_caps(), &devices),
            throttled: env.throttled(),
            throttles: Throttles::new(tier, scenario.hub.units),
            mends: Vec::new(),
            next: vec![0; devices.len()],
            active: Vec::new(),
            asks: Vec::new(),
            told: Vec::new(),
            sent: Vec::new(),
        }
    }

    /// The end of the last window, in microseconds.
    pub(super) fn now(&self) -> u64 {
        self.bucket * self.width
    }

    pub(super) fn counts(&self) -> Counts {
        self.counts
    }

    pub(super) fn show(&self, progress: &Progress, phase: &str) {
        progress.counts(&self.counts);
        progress.micros.set(self.now());
        progress.phase(phase);
    }

    /// Carries out an action that was due at `due`; the run's end if it is that.
    pub(super) fn act(
        &mut self,
        action: Action<'_>,
        due: Instant,
        timeline: &mut Timeline<'_>,
    ) -> Result<Option<End>, EngineError> {
        match action {
            Action::End(end) => return Ok(Some(end)),
            Action::Connect { from, connect } => self.connect(from, connect),
            Action::Configure { id, intended, configure } => {
                // A window's end is later than the time that was meant by less than a latency: it is made up for,
                // so that what is sent at that time arrives when it should. A planted delay is not.
                let sent = if due.as_micros() <= self.now() { due.max(intended) } else { intended };
                self.configure(id, intended, sent, configure)?;
                timeline.confirm(id);
            }
            Action::Cancel { configuration } => {
                let at = self.now();
                self.each_shard(|shard, env, worker| shard.cancel(at, configuration, env, worker));
            }
            Action::Fault { intended, fault } => self.fault(intended.as_micros(), fault),
        }
        Ok(None)
    }

    fn connect(&mut self, from: Instant, connect: &Connect) {
        let env = self.pool.env();
        let fleet = env.world().fleet();
        let group = connect.group.as_deref().and_then(|name| fleet.group_named(name));
        let step =
            self.step_of(|action| matches!(action, step::Action::Connect(it) if core::ptr::eq(it, connect)));
        for index in 0..self.pool.len() {
            let mut shard = self.pool.shard(index);
            for number in shard.numbers() {
                if let Some(offset) = fleet.arrival(number, step, group, connect.arrival) {
                    shard.switch_on(number, from.as_micros() + micros(offset), self.bucket * self.width);
                }
            }
        }
        drop(env);
        self.look_again();
    }

    /// The place of a step in the timeline, which its draws depend on.
    fn step_of(&self, is: impl Fn(&step::Action) -> bool) -> usize {
        self.scenario.steps.iter().position(|step| is(&step.action)).expect("an action is of a step")
    }

    fn configure(
        &mut self,
        id: ChangeId,
        intended: Instant,
        sent: Instant,
        configure: &Configure,
    ) -> Result<(), EngineError> {
        let env = self.pool.env();
        let catalogue = env.world().catalogue();
        let release = catalogue.given(configure);
        let configuration = catalogue.configuration(configure).map_err(|error| EngineError::Failed {
            what: format!("putting configuration {}", configure.id),
            source: Box::new(error),
        })?;
        drop(env);
        for mut worker in self.pool.workers() {
            worker.meter.change(id, Change { intended, sent, accepted: sent });
        }
        let at = sent.as_micros();
        self.each_shard(|shard, env, worker| shard.configure(at, id, release, &configuration, env, worker));
        Ok(())
    }

    /// Does something to every shard, in order.
    fn each_shard(
        &mut self,
        mut act: impl FnMut(&mut super::shard::Shard, &super::env::Env, &mut super::worker::Worker),
    ) {
        let env = self.pool.env();
        let mut worker = self.pool.workers().next().expect("there is a thread");
        for index in 0..self.pool.len() {
            act(&mut self.pool.shard(index), &env, &mut worker);
        }
        drop(worker);
        drop(env);
        self.collect();
        self.look_again();
    }

    fn fault(&mut self, at: u64, fault: &Fault) {
        let step =
            self.step_of(|action| matches!(action, step::Action::Fault(it) if core::ptr::eq(it, fault)));
        let victims = fault.scope().map(|scope| self.pool.env().victims(step, scope));
        let until = |lasts: Option<crate::scenario::quantity::Span>| {
            lasts.map_or(u64::MAX, |lasts| at.saturating_add(micros(lasts.duration())))
        };
        match (fault, victims) {
            (Fault::HubRestart(restart), _) => {
                let back = at + micros(restart.down_for.duration());
                self.each_shard(|shard, env, worker| shard.drop_connections(at, env, worker));
                self.pool.env_mut().hub_back = back;
            }
            (Fault::LinkDown(down), Some(victims)) => {
                let span = micros(down.lasts.duration());
                self.each_shard(|shard, env, worker| shard.break_links(at, span, &victims, env, worker));
            }
            (Fault::DropNotifications(drop), Some(victims)) => {
                let fault = NotificationFault { victims, until: until(drop.lasts), delay: None };
                self.pool.env_mut().notifications.push(fault);
            }
            (Fault::DelayNotifications(late), Some(victims)) => {
                let delay = Some(micros(late.by.duration()));
                let fault = NotificationFault { victims, until: until(late.lasts), delay };
                self.pool.env_mut().notifications.push(fault);
            }
            (Fault::PowerCut(cut), Some(victims)) => {
                let cuts = Cuts { victims, during: cut.during, off_for: cut.off_for };
                let mut env = self.pool.env_mut();
                env.cuts.push(cuts);
                let place = (env.cuts.len() - 1) as u32;
                drop(env);
                if cut.during == CutMoment::Now {
                    let now = self.now();
                    self.each_shard(|shard, env, _| shard.cut_now(place, &victims, now.max(at), env));
                }
            }
            (Fault::BlobError(error), _) => {
                self.store.trouble().refuse = Some((error.status.code(), error.share.fraction()));
                self.mend_at(until(error.lasts), Mend::Refusals);
            }
            (Fault::BlobSlow(slow), _) => {
                self.store.set_bandwidth(slow.bandwidth.bytes_per_second());
                self.mend_at(until(slow.lasts), Mend::Bandwidth);
            }
            (Fault::BlobCorrupt(corrupt), _) => {
                self.store.trouble().corrupt = corrupt.share.fraction();
                self.mend_at(until(corrupt.lasts), Mend::Corruption);
            }
            // Nothing stands still in virtual time: no clock runs on meanwhile.
            (Fault::HarnessStall(_) | Fault::LateStep(_), _) => {}
            (
                Fault::LinkDown(_)
                | Fault::DropNotifications(_)
                | Fault::DelayNotifications(_)
                | Fault::PowerCut(_),
                None,
            ) => unreachable!("these faults have a scope"),
        }
    }

    fn mend_at(&mut self, at: u64, mend: Mend) {
        self.mends.retain(|(_, other)| *other != mend);
        self.mends.push((at, mend));
    }

    fn mend(&mut self) {
        let now = self.now();
        let due: Vec<Mend> = self.mends.iter().filter(|(at, _)| *at <= now).map(|(_, mend)| *mend).collect();
        self.mends.retain(|(at, _)| *at > now);
        for mend in due {
            match mend {
                Mend::Refusals => self.store.trouble().refuse = None,
                Mend::Corruption => self.store.trouble().corrupt = 0.0,
                Mend::Bandwidth => {
                    self.store.set_bandwidth(self.scenario.blob.bandwidth.bytes_per_second());
                }
            }
        }
    }

    /// Shards have got events from outside.
    fn look_again(&mut self) {
        for index in 0..self.next.len() {
            self.next[index] = self.pool.shard(index).next_bucket(self.bucket, self.width);
        }
    }

    /// Plays the next window in which anything happens; at most up to `wake`.
    pub(super) fn advance(&mut self, wake: Instant) {
        let events = self.next.iter().copied().min().unwrap_or(u64::MAX);
        let store = self.store.next().map_or(u64::MAX, |at| at / self.width);
        let mend = self.mends.iter().map(|(at, _)| at.div_ceil(self.width)).min().unwrap_or(u64::MAX);
        // A wake-up within a bucket is seen at the bucket's end.
        let wake = wake.as_micros().div_ceil(self.width);
        let from = events.min(store).min(mend).max(self.bucket);
        if wake > self.bucket && wake <= from {
            self.bucket = wake;
            return;
        }
        self.bucket = from;
        self.mend();
        // Faults begin and end between windows.
        let mend = self.mends.iter().map(|(at, _)| at.div_ceil(self.width)).min().unwrap_or(u64::MAX);
        let until = (from + self.longest).min(wake).min(mend).max(from + 1);
        self.window(Window { from, until });
        self.bucket = until;
    }

    fn window(&mut self, window: Window) {
        self.active.clear();
        for (index, next) in self.next.iter().enumerate() {
            if *next < window.until {
                self.active.push(index as u32);
            }
        }
        if !self.active.is_empty() {
            if self.throttled {
                self.ask(&window);
            }
            self.pool.run(window, &self.active);
            self.collect();
        }
        let end = window.until * self.width;
        self.store.advance(end, &mut self.sent);
        for (shard, mut event) in self.sent.drain(..) {
            // Only word of a download that was given up can come from within the window.
            event.at = event.at.max(end);
            let next = &mut self.next[shard as usize];
            *next = (*next).min(event.at / self.width);
            self.pool.shard(shard as usize).push(event);
        }
        for &index in &self.active {
            let shard = self.pool.shard(index as usize);
            self.next[index as usize] = shard.next_bucket(window.until, self.width);
        }
    }

    /// Asks the throttles for everything that the window wants of the hub.
    fn ask(&mut self, window: &Window) {
        let env = self.pool.env();
        for &index in &self.active {
            self.pool.shard(index as usize).ask(window, &env, &mut self.asks);
        }
        gate::admit(&mut self.throttles, &mut self.asks, &mut self.told);
        self.asks.clear();
        for (shard, place, told) in self.told.drain(..) {
            self.pool.shard(shard as usize).hear(place, told);
        }
    }

    /// Takes what the threads have gathered.
    fn collect(&mut self) {
        for mut worker in self.pool.workers() {
            core::mem::take(&mut worker.delta).apply(&mut self.counts);
            for request in worker.requests.drain(..) {
                self.store.submit(request);
            }
        }
    }
}
