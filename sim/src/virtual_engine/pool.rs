//! Threads that run shards. Who runs which shard is left to chance; nothing depends on it.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::thread::{self, Scope, ScopedJoinHandle};

use super::env::Env;
use super::shard::{SHARD, Shard, Window};
use super::worker::Worker;
use crate::device::Violations;
use crate::measure::Meter;
use crate::run::EngineError;

/// Fewer active shards than this are not worth waking anybody for.
const WORTH_SHARING: usize = 4;

/// How often a thread looks for work before it lets others have its core.
const SPINS: u32 = 2_000;

/// Shards, what they are told, and the threads that run them.
pub(super) struct Pool {
    env: RwLock<Env>,
    shards: Vec<Mutex<Shard>>,
    workers: Vec<Mutex<Worker>>,
    /// What is being run.
    job: RwLock<Job>,
    /// How many of the job's shards were taken.
    cursor: AtomicUsize,
    /// Counts jobs.
    jobs: AtomicU64,
    /// Threads that have finished the job under way.
    done: AtomicUsize,
    over: AtomicBool,
}

/// A window, and the shards that have something to do in it.
#[derive(Default)]
struct Job {
    window: Window,
    shards: Vec<u32>,
}

/// The threads beside the calling one.
pub(super) struct Crew<'scope>(Vec<ScopedJoinHandle<'scope, ()>>);

impl Pool {
    /// The shards of a fleet, made by `threads` threads.
    pub(super) fn new(env: Env, threads: usize) -> Result<Self, EngineError> {
        let devices = env.world().fleet().devices();
        let count = devices.div_ceil(SHARD).max(1);
        let make = |index: u64| {
            let (first, end) = (devices * index / count, devices * (index + 1) / count);
            Shard::new(index as u32, first, end - first, &env)
        };
        let next = AtomicU64::new(0);
        let mut made: Vec<(u64, Result<Shard, EngineError>)> = thread::scope(|scope| {
            let work = || {
                let mut mine = Vec::new();
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= count {
                        return mine;
                    }
                    mine.push((index, make(index)));
                }
            };
            let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
            let mut all = work();
            for other in others {
                all.extend(other.join().expect("making shards does not panic"));
            }
            all
        });
        made.sort_unstable_by_key(|(index, _)| *index);
        let shards = made.into_iter().map(|(_, shard)| shard.map(Mutex::new)).collect::<Result<_, _>>()?;
        Ok(Self {
            env: RwLock::new(env),
            shards,
            workers: (0..threads.max(1)).map(|_| Mutex::default()).collect(),
            job: RwLock::default(),
            cursor: AtomicUsize::new(0),
            jobs: AtomicU64::new(0),
            done: AtomicUsize::new(0),
            over: AtomicBool::new(false),
        })
    }

    /// Starts the threads beside the calling one.
    pub(super) fn start<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>) -> Crew<'scope> {
        Crew((1..self.workers.len()).map(|number| scope.spawn(move || self.serve(number))).collect())
    }

    /// Ends the threads, and adds up what they counted.
    pub(super) fn finish(&self, crew: Crew<'_>) -> (Meter, Violations) {
        self.over.store(true, Ordering::Release);
        for thread in crew.0 {
            thread.join().expect("a worker that panics has ended the run");
        }
        let (mut meter, mut violations) = (Meter::default(), Violations::default());
        for worker in &self.workers {
            let worker = lock(worker);
            meter.merge(&worker.meter);
            meter.events(worker.handled);
            violations.merge(&worker.violations);
        }
        (meter, violations)
    }

    pub(super) fn env(&self) -> RwLockReadGuard<'_, Env> {
        self.env.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn env_mut(&self) -> RwLockWriteGuard<'_, Env> {
        self.env.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn job_mut(&self) -> RwLockWriteGuard<'_, Job> {
        self.job.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn len(&self) -> usize {
        self.shards.len()
    }

    pub(super) fn shard(&self, index: usize) -> MutexGuard<'_, Shard> {
        lock(&self.shards[index])
    }

    /// Every thread's worker, for the calling one between jobs.
    pub(super) fn workers(&self) -> impl Iterator<Item = MutexGuard<'_, Worker>> {
        self.workers.iter().map(lock)
    }

    /// Runs a window on the shards of `active`, and returns when all are done.
    pub(super) fn run(&self, window: Window, active: &[u32]) {
        let mut job = self.job_mut();
        job.window = window;
        job.shards.clear();
        job.shards.extend_from_slice(active);
        drop(job);
        self.cursor.store(0, Ordering::Relaxed);
        if self.workers.len() == 1 || active.len() < WORTH_SHARING {
            self.work(0);
            return;
        }
        self.done.store(0, Ordering::Relaxed);
        self.jobs.fetch_add(1, Ordering::Release);
        self.work(0);
        let others = self.workers.len() - 1;
        wait_until(|| self.done.load(Ordering::Acquire) == others);
    }

    fn serve(&self, number: usize) {
        let mut seen = 0;
        loop {
            wait_until(|| self.jobs.load(Ordering::Acquire) != seen || self.over.load(Ordering::Acquire));
            if self.over.load(Ordering::Acquire) {
                return;
            }
            seen = self.jobs.load(Ordering::Acquire);
            self.work(number);
            self.done.fetch_add(1, Ordering::Release);
        }
    }

    fn work(&self, number: usize) {
        let env = self.env();
        let job = self.job.read().unwrap_or_else(PoisonError::into_inner);
        let mut worker = lock(&self.workers[number]);
        while let Some(&shard) = job.shards.get(self.cursor.fetch_add(1, Ordering::Relaxed)) {
            self.shard(shard as usize).run(&job.window, &env, &mut worker);
        }
    }

    /// The hash of all events, and that of each device's states.
    pub(super) fn hashes(&self) -> (u64, Vec<u64>) {
        let mut sum = 0_u64;
        let mut histories = Vec::new();
        for shard in &self.shards {
            let shard = lock(shard);
            sum = sum.wrapping_add(shard.hash());
            histories.extend(shard.histories());
        }
        (sum, histories)
    }
}

/// A lock whose holder panicked is taken all the same: the panic itself ends the run.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Windows follow each other within microseconds, too soon for a thread to sleep.
fn wait_until(done: impl Fn() -> bool) {
    let mut spins = 0;
    while !done() {
        spins += 1;
        if spins < SPINS {
            core::hint::spin_loop();
        } else {
            thread::yield_now();
        }
    }
}
