//! The machine. Its five parts have a file each: the connection to the hub ([`link`]), the update ([`update`]), when
//! its steps may be taken ([`turn`]), its payload ([`download`]) and what is said about it ([`report`]). They meet in
//! [`Agent::handle`].

mod download;
mod link;
mod report;
mod turn;
mod update;

use fleetwave_protocol::CounterRng;
use fleetwave_protocol::time::{Instant, Now, WallTime};

use self::link::Link;
use self::report::Reporting;
use self::update::Step;
use crate::twin::{Desired, Status};
use crate::{Durable, Effect, Event, Method, Policy, ReleaseId, Releases, State};

/// What all devices of a group share, passed to each call.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// Delays and limits.
    pub policy: &'a Policy,
    /// The releases that ids refer to.
    pub releases: &'a Releases,
}

/// What a driver knows at a start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Boot {
    /// The sum of the journal.
    pub durable: Durable,
    /// The release that runs: what the booted image says of itself, whatever the journal expects.
    pub running: ReleaseId,
    /// The release in the slot that boots by default, as the boot loader has it; another one than `running`
    /// while that is on trial.
    pub committed: ReleaseId,
    /// Bytes from the start of the payload in flight that survived.
    pub partial: u64,
}

/// The agent of one device. Small, and without references: a million of them are an array.
#[derive(Clone, Debug)]
pub struct Agent {
    rng: CounterRng,
    durable: Durable,
    link: Link,
    step: Step,
    reporting: Reporting,
    /// What the hub was last known to believe of this device.
    told: Option<Status>,
    desired: Desired,
    /// The newest version of the desired properties that was heard of on this connection, or on the last one
    /// before there is one; what is not newer is ignored.
    heard_version: u64,
    /// Bytes of the payload in flight that are durable.
    fetched: u64,
    /// The most that `fetched` ever was for this payload: only what is beyond it is progress.
    furthest: u64,
    /// When the link that the driver holds ends; zero without one.
    grant_expires: WallTime,
    /// The wake-up that was last asked for.
    wake: Instant,
    next_rid: u32,
    /// Connection attempts since the last success.
    link_tries: u8,
    /// Tries of grant, download and records since the last progress.
    tries: u8,
    /// Payloads that did not match.
    mismatches: u8,
    /// How often the cloud side has put this update off.
    postponed: u8,
    /// How the payload is fetched, once that is known and if it is to be told.
    method: Option<Method>,
    /// Reports since the last success.
    report_tries: u8,
    /// What is or is not so.
    flags: Flags,
    /// Where observers were last told that the update stands.
    shown: State,
}

/// One bit each: there are a million agents.
#[derive(Clone, Copy, Debug, Default)]
struct Flags(u8);

impl Flags {
    /// Nothing has come yet over the subscriptions, which may not be in force.
    const UNHEARD: u8 = 1;
    /// What is fetched was planned, where plans are made.
    const PLANNED: u8 = 2;
    /// What is desired is what runs: a failure of another release before is not news any more.
    const CONTENT: u8 = 4;

    const fn has(self, flag: u8) -> bool {
        self.0 & flag != 0
    }

    const fn set(&mut self, flag: u8, on: bool) {
        self.0 = if on { self.0 | flag } else { self.0 & !flag };
    }
}

/// One call of [`Agent::handle`]: what it was given, and where effects go.
struct Turn<'a> {
    cx: Context<'a>,
    now: Now,
    out: &'a mut Vec<Effect>,
}

impl Turn<'_> {
    fn emit(&mut self, effect: Effect) {
        self.out.push(effect);
    }
}

impl Agent {
    /// A device that is off. `seed` makes its random delays its own; it runs `committed` until
    /// [`Event::Booted`] says otherwise.
    #[must_use]
    pub fn new(seed: u64, committed: ReleaseId) -> Self {
        Self {
            rng: CounterRng::new(seed),
            durable: Durable::new(committed),
            link: Link::Off,
            step: Step::Idle,
            reporting: Reporting::Quiet,
            told: None,
            desired: Desired::Nothing,
            heard_version: 0,
            fetched: 0,
            furthest: 0,
            grant_expires: WallTime::default(),
            wake: Instant::NEVER,
            next_rid: 0,
            link_tries: 0,
            tries: 0,
            mismatches: 0,
            postponed: 0,
            method: None,
            report_tries: 0,
            flags: Flags::default(),
            shown: State::Idle,
        }
    }

    /// Where the update stands.
    #[must_use]
    pub fn state(&self) -> State {
        self.shown
    }

    /// What the twin asked for last: the base for reading the next patch.
    #[must_use]
    pub fn desired(&self) -> Desired {
        self.desired
    }

    /// The newest version of the desired properties that was heard of on the present connection; on the last one
    /// while there is none.
    #[must_use]
    pub fn desired_version(&self) -> u64 {
        self.heard_version
    }

    /// The release that boots by default.
    #[must_use]
    pub fn committed(&self) -> ReleaseId {
        self.durable.committed
    }

    /// Whether the twin has been read on the present connection.
    #[must_use]
    pub fn is_online(&self) -> bool {
        matches!(self.link, Link::Online)
    }

    /// Takes one event and appends what is to be done to `out`.
    pub fn handle(&mut self, cx: &Context<'_>, now: Now, event: Event, out: &mut Vec<Effect>) {
        let turn = &mut Turn { cx: *cx, now, out };
        match event {
            Event::Booted(boot) => self.boot(turn, boot),
            Event::Connected { session_present } => self.connected(turn, session_present),
            Event::Disconnected => self.disconnected(turn),
            Event::Twin { version, desired, reported } => self.take_twin(turn, version, desired, reported),
            Event::TwinRefused(_) => self.twin_refused(turn),
            Event::Desired { version, desired } => self.take_desired(turn, version, desired),
            Event::Reported { rid, status } => self.reported(turn, rid, status),
            Event::Grant { release, answer } => self.granted(turn, release, answer),
            Event::Planned(result) => self.planned(turn, result),
            Event::FetchFailed { error, durable } => self.fetch_failed(turn, error, durable),
            Event::Fetched => self.fetched(turn),
            Event::Verified(result) => self.verified(turn, result),
            Event::Staged(result) => self.staged(turn, result),
            Event::Locks(answer) => self.locks(turn, answer),
            Event::NotActivated(error) => self.not_activated(turn, error),
            Event::Persisted(result) => self.persisted(turn, result),
            Event::Health(result) => self.health(turn, result),
            Event::SlotCommitted(result) => self.slot_committed(turn, result),
            Event::Abort => self.abort(turn),
            Event::Timer => {}
        }
        // The machine may have slept past any of its deadlines, whatever woke it.
        self.link_deadline(turn);
        // What is desired comes first: a deadline must not take a step that nobody wants any more.
        self.reconcile(turn);
        self.step_deadline(turn);
        self.advance(turn);
        self.report_if_due(turn);
        self.ask_to_be_woken(turn);
    }

    fn boot(&mut self, turn: &mut Turn<'_>, boot: Boot) {
        *self = Self {
            rng: self.rng,
            next_rid: self.next_rid,
            durable: boot.durable,
            fetched: boot.partial,
            furthest: boot.partial,
            ..Self::new(0, boot.durable.committed)
        };
        // Observers hear of the first state even if it is the one that a new machine is in.
        turn.emit(Effect::Entered(State::Idle));
        self.resume(turn, boot);
        // When a device is switched on is the driver's business: no delay of the machine's own.
        self.link = Link::Waiting(turn.now.at);
    }

    fn rid(&mut self) -> u32 {
        self.next_rid = self.next_rid.wrapping_add(1);
        self.next_rid
    }

    /// Asks for a timer at the earliest deadline, if that has changed.
    fn ask_to_be_woken(&mut self, turn: &mut Turn<'_>) {
        let wake = self.link.deadline().min(self.step.deadline()).min(self.reporting.deadline());
        // Deadlines of the past have just been handled.
        if wake != self.wake || (wake <= turn.now.at && wake != Instant::NEVER) {
            self.wake = wake;
            if wake != Instant::NEVER {
                turn.emit(Effect::Wake(wake));
            }
        }
    }

    fn show(&mut self, turn: &mut Turn<'_>, state: State) {
        if self.shown != state {
            self.shown = state;
            turn.emit(Effect::Entered(state));
        }
    }
}
