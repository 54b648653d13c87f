//! What the tests of both engines share: a small scenario, and a way to run it with changes.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fleetwave::live::{self, LiveRun};
use fleetwave::measure::EngineOutcome;
use fleetwave::progress::Progress;
use fleetwave::run::{EngineError, RunPlan, Target, engine, judge};
use fleetwave::scenario::load_text;
use fleetwave::virtual_engine;
use fleetwave_report::record::{Engine, RunRecord, Transport};

/// The whole firmware path in a second or two.
pub(crate) const QUICK: &str = "
schema = 1
name = 'quick'
[fleet]
devices = 50
[[fleet.group]]
name = 'all'
verify = '1Gbit/s'
install = '50ms..100ms'
reboot = '50ms..100ms'
probation = '20ms..50ms'
[[release]]
id = 'fw-2'
seq = 2
size = '64KiB'
[agent]
splay = '200ms'
backoff = { first = '100ms', max = '1s' }
reconnect = { first = '100ms', max = '500ms' }
[harness]
max_lag = '450ms'
max_duration = '40s'
[[step]]
connect = { over = '200ms' }
[[step]]
wait = { until = 'connected >= 100%', timeout = '20s' }
#rollout
[[step]]
configure = { id = 'rollout', release = 'fw-2' }
[[step]]
name = 'done'
wait = { until = 'converged >= 100%', timeout = '25s' }
[expect]
'devices.missing' = '= 0'
";

/// A fleet of virtual time, with times as a real one has them.
pub(crate) const FLEET: &str = "
schema = 1
name = 'fleet'
[fleet]
devices = 1000
[[fleet.group]]
name = 'all'
[[release]]
id = 'fw-2'
seq = 2
size = '64KiB'
[[step]]
name = 'connect'
connect = { over = '2s' }
[[step]]
wait = { until = 'connected >= 100%', timeout = '5m' }
[[step]]
wait = { for = '5s' }
#rollout
[[step]]
configure = { id = 'rollout', release = 'fw-2' }
[[step]]
name = 'done'
wait = { until = 'converged >= 100%', timeout = '20m' }
";

/// A run to be made.
pub(crate) struct Bench {
    text: String,
    sets: Vec<String>,
    transport: Transport,
    target: Target,
    /// Threads of the virtual engine; the live one if there are none.
    threads: Option<NonZeroUsize>,
}

impl Bench {
    /// Of this scenario, over TCP against the embedded hub.
    pub(crate) fn of(text: &str) -> Self {
        let (transport, target) = (Transport::Tcp, Target::Hub);
        Self { text: text.to_owned(), sets: Vec::new(), transport, target, threads: None }
    }

    /// Of this scenario, with one more step before the rollout.
    pub(crate) fn before_rollout(text: &str, step: &str) -> Self {
        Self::of(&text.replace("#rollout\n", step))
    }

    pub(crate) fn over(mut self, transport: Transport) -> Self {
        self.transport = transport;
        self
    }

    pub(crate) fn at(mut self, target: Target) -> Self {
        self.target = target;
        self
    }

    /// In virtual time, on so many threads.
    pub(crate) fn virtually(mut self, threads: usize) -> Self {
        self.threads = NonZeroUsize::new(threads);
        self.transport = Transport::Model;
        self
    }

    /// With a key of the scenario changed, as `--set` does it.
    pub(crate) fn with(mut self, set: &str) -> Self {
        self.sets.push(set.to_owned());
        self
    }

    fn plan(&self) -> RunPlan {
        let loaded =
            load_text("quick.toml", &self.text, &self.sets).unwrap_or_else(|problems| panic!("{problems}"));
        RunPlan {
            scenario: loaded.scenario,
            sha256: loaded.sha256,
            overrides: self.sets.clone(),
            engine: if self.threads.is_some() { Engine::Virtual } else { Engine::Live },
            target: self.target.clone(),
            transport: self.transport,
            threads: self.threads,
            replay: String::new(),
        }
    }

    fn try_run(&self) -> Result<EngineOutcome, EngineError> {
        let plan = self.plan();
        engine(plan.engine)(&plan, &Progress::default(), &AtomicBool::new(false))
    }

    pub(crate) fn run(&self) -> EngineOutcome {
        self.try_run().unwrap_or_else(|error| panic!("{}", chain(&error)))
    }

    /// Why it cannot be run, with all reasons.
    pub(crate) fn error(&self) -> String {
        match self.try_run() {
            Ok(_) => panic!("it ran"),
            Err(error) => chain(&error),
        }
    }

    pub(crate) fn run_with_stories(&self) -> LiveRun {
        live::run_with_stories(&self.plan(), &Progress::default(), &AtomicBool::new(false))
            .unwrap_or_else(|error| panic!("{}", chain(&error)))
    }

    pub(crate) fn run_with_histories(&self) -> (EngineOutcome, Vec<u64>) {
        virtual_engine::run_with_histories(&self.plan(), &Progress::default(), &AtomicBool::new(false))
            .unwrap_or_else(|error| panic!("{}", chain(&error)))
    }

    /// Runs until the condition holds, and then stops as Ctrl-C does.
    pub(crate) fn run_until(&self, condition: impl Fn(&Progress) -> bool + Sync) -> EngineOutcome {
        let (progress, stop, over) = (Progress::default(), AtomicBool::new(false), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) && !condition(&progress) {
                    std::thread::sleep(Duration::from_millis(1));
                }
                stop.store(true, Ordering::Relaxed);
            });
            let outcome = live::run(&self.plan(), &progress, &stop);
            over.store(true, Ordering::Relaxed);
            outcome.unwrap_or_else(|error| panic!("{}", chain(&error)))
        })
    }

    pub(crate) fn judge(&self, outcome: &EngineOutcome) -> RunRecord {
        judge(&self.plan(), outcome)
    }

    pub(crate) fn judged(&self) -> RunRecord {
        self.judge(&self.run())
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(&format!(": {error}"));
        source = error.source();
    }
    text
}
