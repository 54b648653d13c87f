//! The payload's way from a server onto the disk, and the comparison with what was signed.
//!
//! * [`Fetcher`]: what all targets of a device share: proxies, authorities, the bandwidth limit, the byte ledger.
//! * [`Payload`]: what one target has of its payload.
//!
//! Bytes go straight to the installer's [`Place`]. They are hashed as they come; what is durable is written down every
//! few seconds, so that a power cut costs that much and no more.

mod answer;
mod ask;
mod connect;
#[cfg(feature = "delta")]
mod delta;
mod gather;
mod get;
mod hash;
mod lanes;
mod ledger;
mod link;
mod local;
mod pair;
mod pipe;
mod progress;
mod rate;
mod settings;
mod sink;

use std::cell::{Cell, RefCell};
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{SystemTime, UNIX_EPOCH};

use fleetwave_agent_core::{Event, FetchError, Plan, Release, VerifyError};
use hyper::Uri;
use rustls::ClientConfig;
use sha2::Digest as _;
use tokio::sync::Notify;
use tokio::task::spawn_blocking;

pub use settings::{Download, LedgerLimits, Proxy};

pub(crate) use connect::HttpClient;
#[cfg(feature = "kubernetes")]
pub(crate) use connect::direct_client;
pub(crate) use ledger::{Ledger, Read as LedgerRead, Spent};
pub(crate) use link::LinkError;

use crate::files::storage_error;
use crate::install::{Later, Place, Seed};
use crate::link::TlsPool;
use crate::metrics::Counters;
use connect::Proxies;
use progress::{Progress, Subject};
use rate::Limiter;

/// The file of the byte ledger, in the state directory.
const LEDGER: &str = "ledger";
/// The file of a payload's progress, in its target's directory.
const PROGRESS: &str = "partial";

/// What all downloads of a device share.
#[derive(Debug)]
pub(crate) struct Fetcher {
    download: Download,
    tls: TlsPool,
    proxies: Arc<Proxies>,
    limiter: Option<Arc<Limiter>>,
    ledger: Arc<Ledger>,
    counters: Counters,
}

impl Fetcher {
    /// The ledger is kept in the directory `state`.
    pub(crate) fn new(
        download: &Download,
        limits: &LedgerLimits,
        state: &Path,
        tls: &TlsPool,
        counters: Counters,
    ) -> Rc<Self> {
        let fetcher = Rc::new(Self {
            download: download.clone(),
            tls: tls.clone(),
            proxies: Arc::new(Proxies::new(download)),
            limiter: download.rate.map(|rate| Arc::new(Limiter::new(rate.0))),
            ledger: Arc::new(Ledger::open(state.join(LEDGER), limits.clone())),
            counters,
        });
        fetcher.tell_allowance();
        fetcher
    }

    /// Tells the counters what may still be downloaded, if that is limited.
    fn tell_allowance(&self) {
        let left = self.ledger.allowance(unix_now());
        self.counters.allowance((left < u64::MAX).then_some(left));
    }

    /// A client for what is no payload, by the same proxies: what goes over it is counted nowhere.
    pub(crate) fn http(&self, tls: Arc<ClientConfig>) -> HttpClient {
        let connect = self.download.connect_timeout.duration();
        connect::client(tls, self.proxies.clone(), self.limiter.clone(), Arc::default(), connect)
    }

    /// How TLS with stores is made.
    pub(crate) async fn store_tls(&self) -> Result<Arc<ClientConfig>, crate::link::LinkError> {
        // Reading the system's authorities takes a while; a panic in it is its own error.
        let (pool, ca) = (self.tls.clone(), self.download.ca.clone());
        let read = spawn_blocking(move || pool.anonymous(ca.as_deref())).await;
        read.unwrap_or_else(|error| Err(crate::link::LinkError::NoAuthorities(format!(" ({error})"))))
    }

    /// Checks the links of a grant: to a payload, and to its archive.
    pub(crate) fn check_links(&self, payload: &str, archive: Option<&str>) -> Result<Links, LinkError> {
        let check = |link| link::check(link, self.download.http);
        let archive = archive.and_then(|link| {
            let checked = check(link);
            checked.inspect_err(|error| tracing::warn!(%error, "the link to the archive is not used")).ok()
        });
        Ok(Links { payload: check(payload)?, archive })
    }

    /// What downloads have cost.
    pub(crate) fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// What the rest of a payload will cost, and what it may.
    pub(crate) fn plan(&self, release: &Release, offset: u64) -> Plan {
        let left = release.size.saturating_sub(offset);
        let plan = Plan::full(release.size, offset);
        Plan {
            bytes: ask::cost(left),
            spent: self.ledger.spent(release).bytes,
            allowance: self.ledger.allowance(unix_now()),
            ..plan
        }
    }
}

/// Seconds since 1970; a clock before that counts as that.
pub(crate) fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Where a payload is, and its chunked archive. Both are secrets.
#[derive(Clone, Debug)]
pub(crate) struct Links {
    pub(crate) payload: Uri,
    #[cfg_attr(not(feature = "delta"), allow(dead_code, reason = "who asks for chunks is not built in"))]
    pub(crate) archive: Option<Uri>,
}

/// What one target has of its payload.
#[derive(Debug)]
pub(crate) struct Payload {
    progress: Arc<Mutex<Progress>>,
    /// Held by whoever works on the payload: a step that was given up may still have something on its way to the disk.
    gate: Arc<tokio::sync::Mutex<()>>,
    pause: RefCell<Rc<Notify>>,
    position: Cell<u64>,
    /// Why the last try to plan or to fetch failed.
    trouble: RefCell<Option<String>>,
    #[cfg(feature = "delta")]
    deltas: delta::Deltas,
}

impl Payload {
    /// `dir` is the target's directory, in which progress is written down.
    pub(crate) fn open(dir: &Path) -> Rc<Self> {
        Rc::new(Self {
            progress: Arc::new(Mutex::new(Progress::open(dir.join(PROGRESS)))),
            gate: Arc::default(),
            pause: RefCell::default(),
            position: Cell::new(0),
            trouble: RefCell::default(),
            #[cfg(feature = "delta")]
            deltas: delta::Deltas::new(dir),
        })
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().expect("nobody panics while holding it")
    }

    /// How many bytes of the payload of `release` are durable in `place`.
    pub(crate) fn durable(&self, release: &Release, place: &Place) -> u64 {
        self.progress().durable(&Subject::new(release, place), &place.path)
    }

    /// How far the download under way is, or the last one was; for whoever watches.
    pub(crate) fn position(&self) -> u64 {
        self.position.get()
    }

    /// Why the last try to plan or to fetch failed, told once.
    pub(crate) fn trouble(&self) -> Option<String> {
        self.trouble.take()
    }

    /// Finds out what the rest of a payload will cost, and in which way it is fetched: by its archive, if it has one and
    /// that is cheaper. What `seeds` hold of it is not fetched then.
    pub(crate) fn plan(
        self: &Rc<Self>,
        fetcher: &Rc<Fetcher>,
        links: Option<Links>,
        release: Release,
        offset: u64,
        seeds: Vec<Seed>,
    ) -> Later<Result<Plan, FetchError>> {
        let (payload, fetcher) = (self.clone(), fetcher.clone());
        #[cfg(feature = "delta")]
        return Box::pin(delta::price(payload, fetcher, links, release, offset, seeds));
        #[cfg(not(feature = "delta"))]
        {
            let _ = (payload, links, seeds);
            Box::pin(std::future::ready(Ok(fetcher.plan(&release, offset))))
        }
    }

    /// Fetches what is missing from `offset` on into `place`, and says how that went. Dropping it is as good as a power
    /// cut.
    pub(crate) fn fetch(
        self: &Rc<Self>,
        fetcher: &Rc<Fetcher>,
        links: Links,
        place: Place,
        release: Release,
        offset: u64,
    ) -> Later<Event> {
        // A pause is for the download that is under way when it is asked for.
        let pause = Rc::new(Notify::new());
        self.pause.replace(pause.clone());
        self.position.set(offset);
        let (payload, fetcher) = (self.clone(), fetcher.clone());
        Box::pin(async move {
            let job = get::Job { payload, fetcher, links, place, release, offset };
            job.run(&pause).await
        })
    }

    /// Lets the download under way end with [`FetchError::Stopped`], and what has come kept.
    pub(crate) fn pause(&self) {
        self.pause.borrow().notify_one();
    }

    /// Compares the payload with what was signed. What went through this process was hashed on its way; anything else
    /// is read.
    pub(crate) fn verify(self: &Rc<Self>, place: Place, release: Release) -> Later<Event> {
        let payload = self.clone();
        Box::pin(async move {
            let _gate = payload.gate.lock().await;
            let verified = payload.compare(&place, &release).await;
            #[cfg(feature = "delta")]
            payload.deltas.compared(&release, verified.is_ok());
            Event::Verified(verified)
        })
    }

    async fn compare(&self, place: &Place, release: &Release) -> Result<(), VerifyError> {
        let subject = Subject::new(release, place);
        let known = {
            let mut progress = self.progress();
            if progress.hashed_length(&subject).is_some_and(|length| length != release.size) {
                return Err(VerifyError::Size);
            }
            progress.hashed(&subject, release.size)
        };
        let hash = match known {
            Some(hash) => Ok(hash),
            None if regular_length(&place.path).is_some_and(|length| length != release.size) => {
                return Err(VerifyError::Size);
            }
            None => hash::hash(place.path.clone(), release.size).await,
        };
        match hash.map(|hash| hash.finalize().as_slice() == release.digest) {
            Ok(true) => Ok(()),
            Ok(false) => Err(VerifyError::Digest),
            Err(error) => {
                tracing::error!(%error, path = %place.path.display(), "the payload cannot be read");
                Err(VerifyError::Unreadable)
            }
        }
    }

    /// Forgets what there is, for good. The bytes themselves are the installer's to remove.
    pub(crate) fn discard(&self) -> io::Result<()> {
        self.position.set(0);
        self.progress().discard()?;
        #[cfg(feature = "delta")]
        self.deltas.discard()?;
        Ok(())
    }
}

/// How many bytes of the payload of `release` are called durable in its target's directory, for whoever only reads.
pub(crate) fn recorded(dir: &Path, release: &Release) -> u64 {
    progress::recorded(&dir.join(PROGRESS), release)
}

/// The ledger in the directory `state`, for whoever only reads. `None` if nothing was downloaded yet.
pub(crate) fn costs(state: &Path, limits: &LedgerLimits) -> io::Result<Option<LedgerRead>> {
    let ledger = state.join(LEDGER);
    if !ledger.exists() {
        return Ok(None);
    }
    LedgerRead::new(&ledger, limits, unix_now()).map(Some)
}

/// The length of a file; `None` for a device, or if there is nothing.
fn regular_length(path: &Path) -> Option<u64> {
    std::fs::metadata(path).ok().filter(std::fs::Metadata::is_file).map(|file| file.len())
}

fn storage(error: &io::Error) -> FetchError {
    FetchError::Storage(storage_error(error))
}

#[cfg(test)]
mod tests;
