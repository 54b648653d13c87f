//! The run itself: the timeline's actions, at their time, on a stage.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use fleetwave_hub::blob::{Fault as BlobFault, FaultKind};
use fleetwave_protocol::{Instant, Now};

use super::Wish;
use super::aim::{Aim, Audience};
use super::beat::Beat;
use super::shard::{Order, Victims};
use super::stage::Stage;
use crate::measure::{Change, ChangeId, Meter};
use crate::progress::Progress;
use crate::run::EngineError;
use crate::scenario::audience;
use crate::scenario::dist::Dist;
use crate::scenario::fault::{CutMoment, Fault, Scope};
use crate::scenario::model::Scenario;
use crate::scenario::quantity::{Percent, Span};
use crate::scenario::step::{self, Configure};
use crate::timeline::{Action, Counts, End, Timeline};

/// How often the counts are looked at.
const LOOK: Duration = Duration::from_millis(10);
/// What a store that is out of order asks for.
const RETRY_AFTER: u32 = 1;

/// A run under way.
pub(super) struct Play<'s> {
    stage: &'s Stage,
    scenario: &'s Scenario,
    /// When it began, on the stage's clock.
    origin: Instant,
    /// Downloads at once: what a slow store shares its bandwidth between.
    at_once: u64,
    pub(super) meter: Meter,
    /// Configurations whose audience only devices show, and how many the hub said that they are for.
    open: Vec<(String, u64)>,
    /// What is wrong with the blob store, and until when.
    blob_faults: Vec<(Instant, BlobFault)>,
    beat: Beat,
    /// When the timeline was looked at last.
    looked: Instant,
    /// What the timeline knows nothing of.
    wishes: Option<mpsc::Receiver<Wish>>,
}

impl<'s> Play<'s> {
    pub(super) fn new(
        stage: &'s Stage,
        scenario: &'s Scenario,
        at_once: u64,
        wishes: Option<mpsc::Receiver<Wish>>,
    ) -> Self {
        let origin = stage.clock.now().at;
        Self {
            stage,
            scenario,
            origin,
            at_once,
            meter: Meter::default(),
            open: Vec::new(),
            blob_faults: Vec::new(),
            beat: Beat::new(origin),
            looked: Instant::ZERO,
            wishes,
        }
    }

    /// How far the devices are.
    pub(super) fn counts(&self) -> Counts {
        let mut counts = self.stage.tally.counts(self.stage.world.fleet().devices());
        counts.targeted += self.open.iter().map(|(_, devices)| devices).sum::<u64>();
        counts
    }

    /// The run's own time.
    pub(super) fn now(&self) -> Instant {
        Instant::ZERO + self.stage.clock.now().at.since(self.origin)
    }

    /// A time of the timeline on the stage's clock.
    fn staged(&self, at: Instant) -> Instant {
        self.origin + at.since(Instant::ZERO)
    }

    /// Plays to the end; `None` if it was stopped before.
    pub(super) fn run(
        &mut self,
        timeline: &mut Timeline<'s>,
        progress: &Progress,
        stop: &AtomicBool,
    ) -> Result<Option<End>, EngineError> {
        loop {
            let due = timeline.next_wake();
            let now = self.now();
            if due > self.looked && due <= now {
                self.meter.lag(now.since(due));
            }
            self.looked = now;
            let counts = self.counts();
            for action in timeline.poll(now, &counts) {
                if let Some(end) = self.act(action, timeline)? {
                    self.show(progress, timeline);
                    return Ok(Some(end));
                }
            }
            self.mend();
            self.grant_wishes();
            self.show(progress, timeline);
            if stop.load(Ordering::Relaxed) {
                return Ok(None);
            }
            let at = self.stage.clock.now().at;
            let meter = &mut self.meter;
            self.beat.strike(at, |late| meter.lag(late));
            let next = self.staged(timeline.next_wake()).min(self.beat.next());
            thread::sleep(next.since(self.stage.clock.now().at).min(LOOK));
        }
    }

    fn show(&self, progress: &Progress, timeline: &Timeline<'_>) {
        progress.phase(timeline.phase());
        progress.counts(&self.counts());
        progress.payload.set(self.stage.tally.payload.get());
        progress.micros.set(self.now().as_micros());
    }

    fn act(&mut self, action: Action<'s>, timeline: &mut Timeline<'s>) -> Result<Option<End>, EngineError> {
        match action {
            Action::End(end) => return Ok(Some(end)),
            Action::Connect { from, connect } => {
                let step = self.step_of(
                    |action| matches!(action, step::Action::Connect(it) if std::ptr::eq(it, connect)),
                );
                let from = self.staged(from);
                let group = self.group(connect.group.as_deref());
                self.stage.tell(&Order::Connect { from, step, group, arrival: connect.arrival });
            }
            Action::Configure { id, intended, configure } => {
                self.configure(id, self.staged(intended), configure)?;
                timeline.confirm(id);
            }
            Action::Cancel { configuration } => {
                self.cancel(configuration)?;
            }
            Action::Fault { intended, fault } => self.fault(self.staged(intended), fault)?,
        }
        Ok(None)
    }

    fn group(&self, name: Option<&str>) -> Option<usize> {
        name.and_then(|name| self.stage.world.fleet().group_named(name))
    }

    /// The place of a step in the timeline, which its draws depend on.
    fn step_of(&self, is: impl Fn(&step::Action) -> bool) -> usize {
        self.scenario.steps.iter().position(|step| is(&step.action)).expect("an action is of a step")
    }

    fn configure(
        &mut self,
        id: ChangeId,
        intended: Instant,
        configure: &Configure,
    ) -> Result<(), EngineError> {
        let aim = Aim { change: id, release: self.stage.world.catalogue().given(configure) };
        let audience =
            audience::groups(self.scenario, &configure.target).map_or(Audience::Open, Audience::Groups);
        let open = audience == Audience::Open;
        self.stage.board.write().expect("nothing panics under this lock").put(
            &configure.id,
            configure.priority,
            aim,
            audience,
        );
        self.aim();
        let sent = self.stage.clock.now().at;
        let accepted = self.stage.operator.put(&self.stage.world, configure)?;
        let change = Change { intended, sent, accepted };
        self.meter.change(id, change);
        self.stage.tell(&Order::Accepted { id, change });
        self.open.retain(|(open, _)| *open != configure.id);
        if open {
            let targeted = self.stage.operator.targeted(configure)?;
            self.meter.targeted(id, targeted);
            self.open.push((configure.id.clone(), targeted));
        }
        self.rest();
        Ok(())
    }

    fn cancel(&mut self, configuration: &str) -> Result<(), EngineError> {
        self.stage.board.write().expect("nothing panics under this lock").remove(configuration);
        self.aim();
        self.stage.operator.cancel(configuration)?;
        self.rest();
        Ok(())
    }

    /// The hub kept this thread waiting: that is the hub's time, not the harness's lag.
    fn rest(&mut self) {
        self.beat = Beat::new(self.stage.clock.now().at);
        self.looked = self.now();
    }

    /// Tells the shards what their devices are to have, and waits until they know: a notification must not come
    /// before that, and no wait of the timeline may be judged by what was counted before it.
    fn aim(&self) {
        let board = self.stage.board.read().expect("nothing panics under this lock");
        let groups =
            (0..self.stage.world.fleet().groups().len()).map(|group| board.of_group(group)).collect();
        let (taken, all_taken) = mpsc::channel();
        self.stage.tell(&Order::Aims { groups, open: board.open().collect(), taken });
        // Ends when every shard has dropped its sender; nothing is ever sent.
        let _ = all_taken.recv();
    }

    fn fault(&mut self, at: Instant, fault: &Fault) -> Result<(), EngineError> {
        let step =
            self.step_of(|action| matches!(action, step::Action::Fault(it) if std::ptr::eq(it, fault)));
        let victims =
            fault.scope().map(|Scope { share, group }| Victims { step, group: self.group(group), share });
        let until = |lasts: Option<Span>| lasts.map_or(Instant::NEVER, |lasts| at + lasts.duration());
        match (fault, victims) {
            (Fault::HubRestart(restart), _) => {
                let down_for = restart.down_for.duration();
                if self.stage.behind_broker() {
                    self.stage.tell(&Order::Unreachable { until: at + down_for });
                }
                self.stage.operator.restart(down_for)?;
                self.rest();
            }
            (Fault::LinkDown(down), Some(victims)) => {
                self.stage.tell(&Order::LinkDown { victims, until: at + down.lasts.duration() });
            }
            (Fault::DropNotifications(drop), Some(victims)) => {
                self.stage.tell(&Order::Notifications { victims, until: until(drop.lasts), delay: None });
            }
            (Fault::DelayNotifications(late), Some(victims)) => {
                let delay = Some(late.by.duration());
                self.stage.tell(&Order::Notifications { victims, until: until(late.lasts), delay });
            }
            (Fault::PowerCut(cut), Some(victims)) => {
                self.stage.tell(&Order::PowerCut { victims, during: cut.during, off_for: cut.off_for });
            }
            (Fault::BlobError(error), _) => {
                let code = error.status.code();
                let retry_after = matches!(code, 429 | 503).then_some(RETRY_AFTER);
                let kind = FaultKind::Status { code, retry_after };
                self.spoil(until(error.lasts), BlobFault { kind, share: error.share.fraction() });
            }
            (Fault::BlobSlow(slow), _) => {
                let share = slow.bandwidth.bytes_per_second() / self.at_once.max(1) as f64;
                let kind = FaultKind::Slow { bytes_per_second: (share as u64).max(1) };
                self.spoil(until(slow.lasts), BlobFault { kind, share: 1.0 });
            }
            (Fault::BlobCorrupt(corrupt), _) => {
                let fault = BlobFault { kind: FaultKind::Corrupted, share: corrupt.share.fraction() };
                self.spoil(until(corrupt.lasts), fault);
            }
            (Fault::HarnessStall(stall), _) => self.stage.tell_one(0, Order::Stall(stall.span.duration())),
            // The timeline does this one itself.
            (Fault::LateStep(_), _) => {}
            (
                Fault::LinkDown(_)
                | Fault::DropNotifications(_)
                | Fault::DelayNotifications(_)
                | Fault::PowerCut(_),
                None,
            ) => unreachable!("these faults have a scope"),
        }
        Ok(())
    }

    /// Something is wrong with the blob store, until then.
    fn spoil(&mut self, until: Instant, fault: BlobFault) {
        self.blob_faults.push((until, fault));
        self.set_blob_faults();
    }

    fn mend(&mut self) {
        let Now { at, .. } = self.stage.clock.now();
        let before = self.blob_faults.len();
        self.blob_faults.retain(|(until, _)| *until > at);
        if self.blob_faults.len() != before {
            self.set_blob_faults();
        }
    }

    fn grant_wishes(&self) {
        let Some(wishes) = &self.wishes else { return };
        for wish in wishes.try_iter() {
            self.stage.tell(&match wish {
                Wish::Cut(off_for) => Order::PowerCut {
                    victims: Victims { step: 0, group: None, share: Percent::FULL },
                    during: CutMoment::Now,
                    off_for: Dist::fixed(Span::from_micros(off_for.as_micros() as u64)),
                },
                Wish::Free => Order::Free,
            });
        }
    }

    fn set_blob_faults(&self) {
        let faults: Vec<BlobFault> = self.blob_faults.iter().map(|(_, fault)| *fault).collect();
        self.stage.blobs.control().set_faults(&faults);
    }
}
