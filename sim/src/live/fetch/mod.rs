//! Downloads: a bounded number at once, each a real HTTP range request on a connection of its own, as devices make
//! them. Bytes are hashed as they come and not kept.

mod http;

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::Sender;
use fleetwave_agent_core::FetchError;
use fleetwave_hub::Clock;
use fleetwave_protocol::Instant;
use mio::Waker;
use rustc_hash::FxHashMap;
use sha2::Sha256;
use tokio::sync::{mpsc, oneshot};

use super::beat::Beat;
use super::tally::Tally;
use crate::measure::Meter;

/// Whose download it is: a device's place in its shard, and the generation of its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Whose {
    pub(super) shard: u16,
    pub(super) index: u32,
    pub(super) generation: u32,
}

/// A download to make.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) whose: Whose,
    pub(super) url: String,
    /// From this byte.
    pub(super) offset: u64,
    /// Up to this one.
    pub(super) size: u64,
    /// The power goes when so many bytes of the payload are there.
    pub(super) stop_at: Option<u64>,
    /// The hash of what lies before `offset`.
    pub(super) hash: Sha256,
    /// Bytes from the start that have come before, whether or not they were kept.
    pub(super) seen: u64,
}

/// How a download ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// All bytes are there.
    Complete,
    /// It broke off.
    Failed(FetchError),
    /// The shard aborted it, or it has come to where the power goes.
    Stopped,
}

/// What came of a download.
#[derive(Debug)]
pub(super) struct Fetched {
    pub(super) whose: Whose,
    pub(super) ending: Ending,
    /// From this byte.
    pub(super) offset: u64,
    /// Bytes from the start that have come.
    pub(super) received: u64,
    /// Their hash.
    pub(super) hash: Sha256,
    /// The last checkpoint: what a power cut leaves.
    pub(super) checkpoint: u64,
    /// Its hash.
    pub(super) checkpoint_hash: Sha256,
}

/// Where a shard gets its results.
#[derive(Clone)]
pub(super) struct Mailbox {
    pub(super) results: Sender<Fetched>,
    pub(super) waker: Arc<Waker>,
}

enum Order {
    Start(Job),
    Abort(Whose),
}

/// How downloads are made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Settings {
    /// At most so many at once.
    pub(super) at_once: usize,
    /// Progress is durable at multiples of this.
    pub(super) checkpoint: u64,
    /// How long the store may be silent.
    pub(super) patience: Duration,
}

/// The thread that downloads. It ends when all handles are gone.
pub(super) struct Pool {
    thread: JoinHandle<Meter>,
    handle: Handle,
}

/// A shard's way to the pool.
#[derive(Clone)]
pub(super) struct Handle(mpsc::UnboundedSender<Order>);

impl Handle {
    pub(super) fn start(&self, job: Job) {
        let _ = self.0.send(Order::Start(job));
    }

    /// The result says how far it had come, unless it had ended before.
    pub(super) fn abort(&self, whose: Whose) {
        let _ = self.0.send(Order::Abort(whose));
    }
}

impl Pool {
    /// # Errors
    /// If no thread or runtime can be had.
    pub(super) fn start(
        settings: Settings,
        clock: Clock,
        mailboxes: Vec<Mailbox>,
        tally: Arc<Tally>,
    ) -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (orders, inbox) = mpsc::unbounded_channel();
        let worker = Worker {
            settings,
            beat: Beat::new(clock.now().at),
            clock,
            mailboxes,
            tally,
            meter: Meter::default(),
            queue: VecDeque::new(),
            active: FxHashMap::default(),
        };
        let thread = std::thread::Builder::new()
            .name("downloads".into())
            .spawn(move || runtime.block_on(worker.run(inbox)))?;
        Ok(Self { thread, handle: Handle(orders) })
    }

    pub(super) fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Ends what is under way, once every other handle is gone, and gives what was measured.
    pub(super) fn finish(self) -> Option<Meter> {
        drop(self.handle);
        self.thread.join().ok()
    }
}

/// The end of a task: its result, and when it began.
type Done = (Instant, u64, u64, Fetched);

struct Worker {
    settings: Settings,
    clock: Clock,
    beat: Beat,
    mailboxes: Vec<Mailbox>,
    tally: Arc<Tally>,
    meter: Meter,
    queue: VecDeque<Job>,
    /// What stops each download under way.
    active: FxHashMap<Whose, oneshot::Sender<()>>,
}

impl Worker {
    async fn run(mut self, mut inbox: mpsc::UnboundedReceiver<Order>) -> Meter {
        let (done, mut ended) = mpsc::unbounded_channel();
        loop {
            let pause = self.beat.next().since(self.clock.now().at);
            tokio::select! {
                order = inbox.recv() => match order {
                    Some(Order::Start(job)) => self.queue.push_back(job),
                    Some(Order::Abort(whose)) => self.abort(whose),
                    None => return self.meter,
                },
                Some(done) = ended.recv() => self.finish(done),
                () = tokio::time::sleep(pause) => {}
            }
            while self.active.len() < self.settings.at_once
                && let Some(job) = self.queue.pop_front()
            {
                self.begin(job, done.clone());
            }
            let now = self.clock.now().at;
            let meter = &mut self.meter;
            self.beat.strike(now, |late| meter.lag(late));
        }
    }

    fn begin(&mut self, job: Job, done: mpsc::UnboundedSender<Done>) {
        let (stop, stopped) = oneshot::channel();
        self.active.insert(job.whose, stop);
        let began = self.clock.now().at;
        self.meter.requested(1);
        let (offset, seen, settings) = (job.offset, job.seen, self.settings);
        tokio::spawn(async move {
            let fetched = http::download(job, settings, stopped).await;
            // The pool has ended: nobody counts any more.
            let _ = done.send((began, offset, seen, fetched));
        });
    }

    fn abort(&mut self, whose: Whose) {
        if let Some(stop) = self.active.get_mut(&whose) {
            let (gone, _) = oneshot::channel();
            // A receiver that is gone has ended by itself.
            let _ = std::mem::replace(stop, gone).send(());
            return;
        }
        if let Some(place) = self.queue.iter().position(|job| job.whose == whose) {
            let job = self.queue.remove(place).expect("the place was just found");
            self.deliver(http::unmoved(job, Ending::Stopped));
        }
    }

    fn finish(&mut self, (began, offset, seen, fetched): Done) {
        self.active.remove(&fetched.whose);
        let now = self.clock.now().at;
        let came = fetched.received.saturating_sub(offset);
        if came > 0 {
            let again = fetched.received.min(seen).saturating_sub(offset);
            self.meter.payload(began, now, came, again);
            self.tally.payload.add(came);
        }
        if fetched.ending == Ending::Complete {
            self.meter.downloaded(came, now.since(began));
        }
        self.deliver(fetched);
    }

    fn deliver(&self, fetched: Fetched) {
        let mailbox = &self.mailboxes[usize::from(fetched.whose.shard)];
        if mailbox.results.send(fetched).is_ok()
            && let Err(error) = mailbox.waker.wake()
        {
            // The shard looks at its mailbox at every beat, too.
            tracing::debug!(%error, "a shard could not be woken");
        }
    }
}
