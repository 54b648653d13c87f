//! One try of a download: from the request to the last byte on disk.

use std::cell::Cell;
use std::error::Error;
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fleetwave_agent_core::{Event, FetchError, Release};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::header;
use hyper::{Request, Response, Uri};
use tokio::sync::Notify;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, timeout};

use super::answer::{self, Answer, Body};
use super::connect::{self, HttpClient, Meter};
use super::ledger::Account;
use super::progress::{Origin, Subject, short};
use super::sink::{Pipe, Sink};
use super::{Fetcher, Payload, hash, link, storage, unix_now};
use crate::install::Place;
use crate::metrics::Counters;
use crate::units::Span;

/// So many redirections are followed.
const REDIRECTIONS: usize = 5;
/// What a request costs beside its payload: TLS and headers.
const OVERHEAD: u64 = 8 * 1024;

/// What one request for so many bytes costs, about.
pub(super) fn cost(bytes: u64) -> u64 {
    bytes.saturating_add(bytes / 512 + OVERHEAD)
}

/// What is fetched.
pub(super) struct Job {
    pub(super) payload: Rc<Payload>,
    pub(super) fetcher: Rc<Fetcher>,
    pub(super) link: Uri,
    pub(super) place: Place,
    pub(super) release: Release,
    pub(super) offset: u64,
}

/// Why a download stopped: for the machine, and for the log.
pub(super) struct Stop {
    pub(super) error: FetchError,
    pub(super) why: String,
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self { error: storage(&error), why: error.to_string() }
    }
}

impl From<FetchError> for Stop {
    fn from(error: FetchError) -> Self {
        Self { error, why: "the byte ledger".to_owned() }
    }
}

pub(super) fn stop(error: FetchError, why: impl ToString) -> Stop {
    Stop { error, why: why.to_string() }
}

fn cut(why: impl ToString) -> Stop {
    stop(FetchError::Interrupted, why)
}

/// Opens the place; what lies there already is hashed unless this process remembers the hash.
pub(super) async fn open(
    payload: &Payload,
    place: &Place,
    release: &Release,
    offset: u64,
) -> Result<(Pipe, Option<Origin>), (Stop, u64)> {
    let gate = payload.gate.clone().lock_owned().await;
    let subject = Subject::new(release, place);
    let (attempt, known, origin) = {
        let mut progress = payload.progress();
        (progress.begin(), progress.hashed(&subject, offset), progress.origin(&subject))
    };
    let hash = match known {
        Some(hash) => hash,
        None => match hash::hash(place.path.clone(), offset).await {
            Ok(hash) => hash,
            Err(_) if offset == 0 => sha2::Sha256::default(),
            // What was there is not there any more.
            Err(error) => return Err((cut(error), 0)),
        },
    };
    let (place, size) = (place.clone(), release.size);
    let progress = payload.progress.clone();
    let sink =
        spawn_blocking(move || Sink::open(&place, subject, (offset, hash), size, (attempt, progress), gate));
    // Whether it still holds what it held is for a later try to find out.
    let sink = sink.await.unwrap_or_else(|error| Err(io::Error::other(error)));
    let sink = sink.map_err(|error| (Stop::from(error), offset))?;
    Ok((Pipe::new(sink), origin.filter(|_| offset > 0)))
}

impl Job {
    pub(super) async fn run(self, pause: &Notify) -> Event {
        let opened = tokio::select! {
            opened = open(&self.payload, &self.place, &self.release, self.offset) => opened,
            () = pause.notified() => Err((stop(FetchError::Stopped, "asked to"), self.offset)),
        };
        let (mut pipe, origin) = match opened {
            Ok(opened) => opened,
            Err((Stop { error, why }, durable)) => {
                tracing::error!(why, path = %self.place.path.display(), "the download cannot begin");
                return Event::FetchFailed { error, durable };
            }
        };
        let account = Account::new(self.fetcher.ledger.clone(), &self.release);
        let bill = Bill::new(account, self.fetcher.counters.clone());
        let ended = {
            let most = self.fetcher.download.total_timeout.map_or(Duration::MAX, Span::duration);
            tokio::select! {
                ended = timeout(most, self.download(&mut pipe, origin, &bill)) => {
                    ended.unwrap_or_else(|_| Err(cut("it took longer than total_timeout")))
                }
                () = pause.notified() => Err(stop(FetchError::Stopped, "asked to")),
            }
        };
        bill.settle().await;
        self.fetcher.tell_allowance();
        // What came before it broke off counts, if it can be kept.
        let (durable, kept) = pipe.finish().await;
        let Stop { error, why } = match (ended, kept) {
            (Ok(()), Ok(())) => return Event::Fetched,
            (Err(stop), Ok(())) => stop,
            (Err(stop), Err(_)) if matches!(stop.error, FetchError::Storage(_)) => stop,
            (_, Err(error)) => error.into(),
        };
        tracing::warn!(code = error.code().name(), why, durable, "the download stopped");
        Event::FetchFailed { error, durable }
    }

    async fn download(&self, pipe: &mut Pipe, origin: Option<Origin>, bill: &Bill) -> Result<(), Stop> {
        let source = source(&self.link);
        let origin = origin.filter(|origin| origin.source == source);
        let etag = origin.as_ref().map(|origin| origin.etag.as_str());
        let client = self.client(bill).await?;
        let mut link = self.link.clone();
        for _ in 0..=REDIRECTIONS {
            let left = self.release.size - self.offset;
            bill.reserve(cost(left), 1).await?;
            let response = self.ask(&client, &link, etag).await?;
            let (status, headers) = (response.status(), response.headers());
            match answer::read(status, headers, self.offset, self.release.size, etag) {
                Answer::Take(body) => {
                    if body.changed {
                        tracing::warn!("the server has other bytes than those that are here: begins again");
                        pipe.restart().await?;
                    }
                    let etag = body.etag.clone();
                    pipe.name(etag.filter(|tag| tag.len() <= 128).map(|etag| Origin { source, etag }));
                    return self.receive(response, &body, pipe, bill).await;
                }
                Answer::Short { total } => {
                    tracing::warn!(total, signed = self.release.size, "the store has less than was signed");
                    return Ok(());
                }
                Answer::Elsewhere(location) => {
                    let to = link::redirected(&link, &location, self.fetcher.download.http);
                    link = to.map_err(|error| stop(FetchError::Protocol, error))?;
                    tracing::debug!(host = link.host(), "redirected");
                }
                Answer::Stop(error, why) => return Err(stop(error, why)),
            }
        }
        Err(stop(FetchError::Protocol, "redirected once too often"))
    }

    async fn client(&self, bill: &Bill) -> Result<HttpClient, Stop> {
        let fetcher = &self.fetcher;
        let (pool, ca) = (fetcher.tls.clone(), fetcher.download.ca.clone());
        let tls = spawn_blocking(move || pool.anonymous(ca.as_deref())).await.map_err(cut)?;
        let limiter = fetcher.limiter.clone();
        let connect = fetcher.download.connect_timeout.duration();
        Ok(connect::client(tls.map_err(cut)?, fetcher.proxies.clone(), limiter, bill.meter.clone(), connect))
    }

    async fn ask(
        &self,
        client: &HttpClient,
        link: &Uri,
        etag: Option<&str>,
    ) -> Result<Response<Incoming>, Stop> {
        let mut request = Request::get(link.clone())
            .header(header::RANGE, format!("bytes={}-{}", self.offset, self.release.size - 1))
            .header(header::ACCEPT_ENCODING, "identity")
            .header(header::USER_AGENT, concat!("fleetwave-agent/", env!("CARGO_PKG_VERSION")));
        if let Some(etag) = etag {
            request = request.header(header::IF_RANGE, etag);
        }
        if let Some(proxy) = self.fetcher.proxies.authorization(link) {
            request = request.header(header::PROXY_AUTHORIZATION, proxy);
        }
        let request: Request<Full<Bytes>> =
            request.body(Full::default()).map_err(|_| stop(FetchError::Protocol, "the link is not a URL"))?;
        let download = &self.fetcher.download;
        let patience = download.connect_timeout.duration() + download.idle_timeout.duration();
        match timeout(patience, client.request(request)).await {
            Ok(answered) => answered.map_err(|error| cut(causes(&error))),
            Err(_) => Err(cut("the server does not answer")),
        }
    }

    async fn receive(
        &self,
        mut response: Response<Incoming>,
        body: &Body,
        pipe: &mut Pipe,
        bill: &Bill,
    ) -> Result<(), Stop> {
        let idle = self.fetcher.download.idle_timeout.duration();
        let mut watch = pin!(sleep(idle));
        let mut seen = bill.meter.total();
        let mut have = if body.changed { 0 } else { self.offset };
        let mut at = body.start;
        if at < have {
            tracing::warn!(
                skipped = have - at,
                "the server knows no ranges: what is here comes once more, in vain"
            );
        }
        while at < body.end {
            let left = body.end - at;
            if bill.runs_low(left) {
                bill.reserve(left + left / 512, 0).await?;
            }
            let frame = tokio::select! {
                biased;
                frame = response.frame() => frame,
                () = &mut watch => {
                    // A slow link may take long for what makes a piece; what counts is that something comes.
                    let now = bill.meter.total();
                    if now == seen {
                        return Err(cut("the server is silent"));
                    }
                    seen = now;
                    watch.as_mut().reset(Instant::now() + idle);
                    continue;
                }
            };
            let frame =
                frame.ok_or_else(|| cut("the answer ended early"))?.map_err(|error| cut(causes(&error)))?;
            let Some(bytes) = frame.data_ref() else { continue };
            let wanted = usize::try_from(body.end - at).unwrap_or(usize::MAX).min(bytes.len());
            let known = usize::try_from(have.saturating_sub(at)).unwrap_or(usize::MAX).min(wanted);
            pipe.push(&bytes[known..wanted]).await?;
            at += wanted as u64;
            have = have.max(at);
            self.payload.position.set(have);
        }
        if have == self.release.size { Ok(()) } else { Err(cut("the server sent a part of the range")) }
    }
}

/// Host and path of a link, abbreviated: what follows them is this grant's alone.
fn source(link: &Uri) -> String {
    short(
        format!("{}{}", link.authority().map_or("", |authority| authority.as_str()), link.path()).as_bytes(),
    )
}

/// An error with what caused it.
fn causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Counts a try, and settles its account however it ends.
struct Bill {
    account: Account,
    meter: Arc<Meter>,
    counters: Counters,
    /// What the counters know of.
    counted: Cell<u64>,
}

impl Bill {
    fn new(account: Account, counters: Counters) -> Self {
        Self { account, meter: Arc::default(), counters, counted: Cell::new(0) }
    }

    /// Tells the counters what has come since they were told last.
    fn count(&self) {
        let used = self.meter.total();
        self.counters.received(used - self.counted.replace(used));
    }

    fn runs_low(&self, expected: u64) -> bool {
        self.account.runs_low(self.meter.total(), expected)
    }

    async fn reserve(&self, expected: u64, requests: u32) -> Result<(), Stop> {
        let (account, used) = (self.account.clone(), self.meter.total());
        let reserved = spawn_blocking(move || account.reserve(used, expected, requests, unix_now()));
        reserved.await.map_err(io::Error::other)??;
        self.count();
        (0..requests).for_each(|_| self.counters.requested());
        Ok(())
    }

    async fn settle(&self) {
        self.count();
        let (account, used) = (self.account.clone(), self.meter.total());
        let settled = spawn_blocking(move || account.settle(used, unix_now())).await;
        if let Err(error) = settled {
            tracing::error!(%error, "the byte ledger was not settled");
        }
    }
}

impl Drop for Bill {
    /// A download that nobody waits for any more is settled all the same.
    fn drop(&mut self) {
        self.count();
        let used = self.meter.total();
        if !self.account.is_settled(used)
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let account = self.account.clone();
            runtime.spawn_blocking(move || account.settle(used, unix_now()));
        }
    }
}
