//! What happens to a payload's bytes at the same time: they are hashed, they are written, and what has gone both ways
//! is made durable. Each has a thread of the runtime's pool as long as there is something to do, and waits for none of
//! the others, so that many downloads can share few threads.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use sha2::Sha256;
use sha2::digest::Update as _;
use tokio::sync::{Notify, Semaphore};
use tokio::task::spawn_blocking;

use super::progress::Origin;
use super::sink::Sink;

/// What is hashed and written at once.
pub(super) const BUFFER: usize = 128 * 1024;
/// Buffers of a download: one is filled while the others are hashed and written.
const BUFFERS: usize = 12;
/// So much is made durable at once if it comes fast …
const CHECKPOINT: u64 = 16 << 20;
/// … and no more than this is taken over before it is: what a power cut costs of a fast link, and a slow disk.
const UNSURE: u64 = 64 << 20;

/// The lanes of one try.
#[derive(Debug)]
pub(super) struct Lanes {
    sink: Sink,
    state: Mutex<State>,
    /// A lane has nothing to do any more.
    changed: Notify,
    pool: Arc<Pool>,
}

#[derive(Debug)]
struct State {
    to_hash: VecDeque<Arc<Buffer>>,
    to_write: VecDeque<Arc<Buffer>>,
    /// Away while something is hashed.
    hash: Option<Sha256>,
    writing: bool,
    /// What is durable is about to change.
    syncing: bool,
    /// Positions in the payload: what was taken over, and how far each lane is.
    given: u64,
    hashed: u64,
    written: u64,
    durable: u64,
    /// All up to here is to be made durable, however little it is.
    asked: Option<u64>,
    origin: Option<Origin>,
    /// The first thing that went wrong, until somebody asks.
    error: Option<io::Error>,
    /// Nothing more is taken over.
    failed: bool,
    /// Nothing more is called durable: a disk says only once that it failed to make something so.
    closed: bool,
}

impl State {
    /// Up to where the bytes have gone both ways.
    fn both(&self) -> u64 {
        self.hashed.min(self.written)
    }

    fn is_idle(&self) -> bool {
        self.hash.is_some() && !self.writing
    }

    fn fail(&mut self, error: io::Error) {
        self.error.get_or_insert(error);
        self.stop();
    }

    fn stop(&mut self) {
        self.failed = true;
        self.to_hash.clear();
        self.to_write.clear();
    }
}

impl Lanes {
    /// Goes on behind `offset`, with the hash of what lies before.
    pub(super) fn new(sink: Sink, (offset, hash): (u64, Sha256)) -> Arc<Self> {
        let state = State {
            to_hash: VecDeque::new(),
            to_write: VecDeque::new(),
            hash: Some(hash),
            writing: false,
            syncing: false,
            given: offset,
            hashed: offset,
            written: offset,
            durable: offset,
            asked: None,
            origin: None,
            error: None,
            failed: false,
            closed: false,
        };
        let pool = Pool { spare: Mutex::default(), free: Semaphore::new(BUFFERS) };
        let (state, changed, pool) = (Mutex::new(state), Notify::new(), Arc::new(pool));
        Arc::new(Self { sink, state, changed, pool })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nobody panics while holding it")
    }

    /// Waits for something that a lane does. Only the pipe does that: who is told is one.
    async fn until(&self, done: impl Fn(&State) -> bool) {
        while !done(&self.state()) {
            self.changed.notified().await;
        }
    }

    /// An empty buffer. Waits if the lanes are slower than the bytes come.
    pub(super) async fn buffer(&self) -> Vec<u8> {
        self.until(|state| state.failed || state.given - state.durable < UNSURE).await;
        self.pool.take().await
    }

    /// Takes bytes over, in a buffer that came from here.
    pub(super) fn give(self: &Arc<Self>, bytes: Vec<u8>) {
        let buffer = Arc::new(Buffer { bytes, pool: self.pool.clone() });
        let mut state = self.state();
        if state.failed {
            return;
        }
        state.given += buffer.bytes.len() as u64;
        state.to_hash.push_back(buffer.clone());
        state.to_write.push_back(buffer);
        if let Some(hash) = state.hash.take() {
            let lanes = self.clone();
            spawn_blocking(move || lanes.hash(hash));
        }
        if !state.writing {
            state.writing = true;
            let lanes = self.clone();
            spawn_blocking(move || lanes.write());
        }
    }

    /// All that was taken over is to be made durable as soon as it has gone both ways.
    pub(super) fn ask(self: &Arc<Self>) {
        let mut state = self.state();
        state.asked = Some(state.given);
        self.checkpoint(&mut state);
    }

    /// The first thing that went wrong, once.
    pub(super) fn error(&self) -> io::Result<()> {
        self.state().error.take().map_or(Ok(()), Err)
    }

    /// Waits until all that was taken over has gone both ways, or cannot.
    pub(super) async fn idle(&self) {
        self.until(State::is_idle).await;
    }

    /// Names the bytes to come.
    pub(super) fn name(&self, origin: Option<Origin>) {
        self.state().origin = origin;
    }

    /// Begins again at the first byte.
    pub(super) async fn restart(self: &Arc<Self>) -> io::Result<()> {
        self.until(|state| state.is_idle() && !state.syncing).await;
        // Whoever ends the try meanwhile waits for it.
        self.state().syncing = true;
        let lanes = self.clone();
        let restarted = spawn_blocking(move || {
            lanes.name(None);
            let forgotten = lanes.sink.forget();
            if forgotten.is_ok() {
                let mut state = lanes.state();
                state.hash = Some(Sha256::default());
                (state.given, state.hashed, state.written, state.durable) = (0, 0, 0, 0);
                state.asked = None;
            }
            let emptied = forgotten.and_then(|()| lanes.sink.empty());
            lanes.state().syncing = false;
            lanes.changed.notify_one();
            emptied
        });
        restarted.await.map_err(io::Error::other)?
    }

    /// Ends the try: what has come is kept if it can be. Says how many bytes from the start are durable.
    pub(super) async fn finish(self: &Arc<Self>) -> (u64, io::Result<()>) {
        self.until(|state| state.is_idle() && !state.syncing).await;
        let lanes = self.clone();
        let finished = spawn_blocking(move || {
            let (bytes, more) = {
                let state = lanes.state();
                (state.both(), !state.closed && state.both() > state.durable)
            };
            if more {
                lanes.make_durable();
            }
            let mut state = lanes.state();
            if let Some(hash) = state.hash.clone()
                && state.hashed == state.written
                && state.durable == bytes
            {
                lanes.sink.keep(hash, bytes);
            }
            (state.durable, state.error.take().map_or(Ok(()), Err))
        });
        finished.await.unwrap_or_else(|error| (0, Err(io::Error::other(error))))
    }

    /// Nobody waits for the bytes any more: what has not begun does not begin.
    pub(super) fn close(&self) {
        let mut state = self.state();
        state.stop();
        state.closed = true;
    }

    fn hash(self: Arc<Self>, mut hash: Sha256) {
        loop {
            let mut state = self.state();
            let Some(buffer) = state.to_hash.pop_front() else {
                state.hash = Some(hash);
                break;
            };
            drop(state);
            hash.update(&buffer.bytes);
            let mut state = self.state();
            state.hashed += buffer.bytes.len() as u64;
            self.checkpoint(&mut state);
        }
        self.changed.notify_one();
    }

    fn write(self: Arc<Self>) {
        loop {
            let mut state = self.state();
            let at = state.written;
            let Some(buffer) = state.to_write.pop_front() else {
                state.writing = false;
                break;
            };
            drop(state);
            let written = self.sink.write(&buffer.bytes, at);
            let mut state = self.state();
            match written {
                Ok(()) => {
                    state.written += buffer.bytes.len() as u64;
                    self.checkpoint(&mut state);
                }
                Err(error) => state.fail(error),
            }
        }
        self.changed.notify_one();
    }

    /// Makes durable what has gone both ways, if it is time.
    fn checkpoint(self: &Arc<Self>, state: &mut State) {
        let both = state.both();
        let asked = state.asked.is_some_and(|asked| both >= asked) && both > state.durable;
        if !state.syncing && !state.closed && (asked || both - state.durable >= CHECKPOINT) {
            state.syncing = true;
            let lanes = self.clone();
            spawn_blocking(move || lanes.sync());
        }
    }

    fn sync(self: Arc<Self>) {
        self.make_durable();
        let mut state = self.state();
        state.syncing = false;
        self.checkpoint(&mut state);
        drop(state);
        self.changed.notify_one();
    }

    /// Makes durable what has gone both ways. Blocks, and nobody else may do it meanwhile.
    fn make_durable(&self) {
        let (bytes, origin) = {
            let state = self.state();
            (state.both(), state.origin.clone())
        };
        let synced = self.sink.sync(bytes, origin.as_ref());
        let mut state = self.state();
        match synced {
            Ok(()) => {
                state.durable = bytes;
                state.asked = state.asked.filter(|asked| *asked > bytes);
            }
            Err(error) => {
                state.closed = true;
                state.fail(error);
            }
        }
    }
}

/// Bytes that were taken over. When all lanes are through with them, their memory is used again.
#[derive(Debug)]
struct Buffer {
    bytes: Vec<u8>,
    pool: Arc<Pool>,
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.clear();
        self.pool.spare().push(bytes);
        self.pool.free.add_permits(1);
    }
}

/// The buffers of a download: as many as were needed so far.
#[derive(Debug)]
struct Pool {
    spare: Mutex<Vec<Vec<u8>>>,
    /// How many may be taken.
    free: Semaphore,
}

impl Pool {
    fn spare(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.spare.lock().expect("nobody panics while holding it")
    }

    async fn take(&self) -> Vec<u8> {
        self.free.acquire().await.expect("nobody closes it").forget();
        self.spare().pop().unwrap_or_else(|| Vec::with_capacity(BUFFER))
    }
}
