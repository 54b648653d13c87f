//! What the agent's machine costs: time for each event of a whole update, and memory for each device.
//!
//! Nothing but [`Agent::handle`] runs: each effect is answered at once with the event that says that it went well.

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ed25519_dalek::SigningKey;
use fleetwave_agent_core::twin::{Desired, Status};
use fleetwave_agent_core::{
    Agent, Boot, Context, Durable, Effect, Event, GrantAnswer, Policy, ReleaseId, Releases, TrustRoot, sign,
};
use fleetwave_protocol::time::{Instant, Now, WallTime};

/// Everything about a device but its agent, as little of it as an update needs.
struct Rest {
    now: Now,
    durable: Durable,
    running: ReleaseId,
    committed: ReleaseId,
    wanted: ReleaseId,
    told: Option<Status>,
    wake: Instant,
    events: u64,
}

impl Rest {
    fn new(first: ReleaseId, wanted: ReleaseId) -> Self {
        Self {
            now: Now { at: Instant::ZERO, wall: WallTime::from_unix_millis(1_767_225_600_000) },
            durable: Durable::new(first),
            running: first,
            committed: first,
            wanted,
            told: None,
            wake: Instant::NEVER,
            events: 0,
        }
    }

    fn boot(&self) -> Event {
        let (durable, running, committed) = (self.durable, self.running, self.committed);
        Event::Booted(Boot { durable, running, committed, partial: 0 })
    }

    /// The event that answers `effect`, if one does.
    fn answer(&mut self, effect: Effect) -> Option<Event> {
        Some(match effect {
            Effect::Connect => Event::Connected { session_present: false },
            Effect::GetTwin { .. } => {
                Event::Twin { version: 2, desired: Desired::Release(self.wanted), reported: self.told }
            }
            Effect::Report { rid, status } => {
                self.told = Some(status);
                Event::Reported { rid, status: 204 }
            }
            Effect::RequestGrant { release } => {
                let expires = WallTime::from_unix_millis(u64::MAX);
                Event::Grant { release, answer: GrantAnswer::Granted { expires } }
            }
            Effect::Fetch { .. } => Event::Fetched,
            Effect::Verify(_) => Event::Verified(Ok(())),
            Effect::Stage(_) => Event::Staged(Ok(())),
            Effect::Persist(record) => {
                self.durable.apply(record);
                Event::Persisted(Ok(()))
            }
            Effect::RebootIntoCandidate => {
                self.running = self.wanted;
                self.boot()
            }
            Effect::CheckHealth => Event::Health(Ok(())),
            Effect::CommitSlot => {
                self.committed = self.running;
                Event::SlotCommitted(Ok(()))
            }
            Effect::Wake(at) => {
                self.wake = at;
                return None;
            }
            _ => return None,
        })
    }

    /// Runs one update from the first boot to the last report.
    fn update(&mut self, agent: &mut Agent, cx: &Context<'_>, out: &mut Vec<Effect>, todo: &mut Vec<Event>) {
        todo.push(self.boot());
        while agent.committed() != self.wanted || self.told != Some(agent.status()) {
            let event = todo.pop().unwrap_or_else(|| {
                assert!(self.wake != Instant::NEVER, "{:?} waits for nothing", agent.state());
                self.now.at = self.wake;
                Event::Timer
            });
            out.clear();
            agent.handle(cx, self.now, event, out);
            self.events += 1;
            todo.extend(out.iter().rev().filter_map(|&effect| self.answer(effect)));
        }
        todo.clear();
    }
}

fn update(c: &mut Criterion) {
    println!(
        "bytes: Agent {}, Event {}, Effect {}, Durable {}",
        size_of::<Agent>(),
        size_of::<Event>(),
        size_of::<Effect>(),
        size_of::<Durable>()
    );
    let key = SigningKey::from_bytes(&[1; 32]);
    let mut releases = Releases::new(TrustRoot::new(vec![("k1".into(), key.verifying_key())], 1));
    let first = releases.preinstalled("fw-1", 1);
    let wanted = releases.intern(&sign("fw-2", 2, 65_536, &[2; 32], false, &[("k1", &key)]));
    let policy = Policy { splay: Duration::from_secs(10), ..Policy::default() };
    let cx = Context { policy: &policy, releases: &releases };
    let (mut out, mut todo) = (Vec::new(), Vec::new());

    let mut once = Rest::new(first, wanted);
    once.update(&mut Agent::new(1, first), &cx, &mut out, &mut todo);

    let mut group = c.benchmark_group("agent");
    group.throughput(Throughput::Elements(once.events));
    // An element is an event.
    group.bench_function(format!("a whole update of {} events", once.events), |b| {
        let mut seed = 0;
        b.iter(|| {
            seed += 1;
            let mut agent = Agent::new(seed, first);
            Rest::new(first, wanted).update(&mut agent, &cx, &mut out, &mut todo);
            black_box(agent.status())
        });
    });
    group.finish();
}

criterion_group!(benches, update);
criterion_main!(benches);
