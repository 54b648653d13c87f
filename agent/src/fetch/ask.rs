//! Asking a server for a range of bytes: the client, redirections, what it costs, and the answer as it comes.

use std::cell::Cell;
use std::error::Error;
use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fleetwave_agent_core::FetchError;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::{Request, Response, Uri, header};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, Sleep, sleep, timeout};

use super::answer::{self, Answer, Body};
use super::connect::{self, HttpClient, Meter};
use super::ledger::Account;
use super::{Fetcher, link, storage, unix_now};
use crate::link::plain;
use crate::metrics::Counters;

/// So many redirections are followed.
const REDIRECTIONS: usize = 5;
/// What a request costs beside its payload: TLS and headers.
const OVERHEAD: u64 = 8 * 1024;

/// What one request for so many bytes costs, about.
pub(super) fn cost(bytes: u64) -> u64 {
    bytes.saturating_add(bytes / 512 + OVERHEAD)
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

pub(super) fn cut(why: impl ToString) -> Stop {
    stop(FetchError::Interrupted, why)
}

/// Asks, in one try.
pub(super) struct Caller<'a> {
    fetcher: &'a Fetcher,
    bill: &'a Bill,
    client: HttpClient,
}

/// What a server answered.
pub(super) enum Asked<'a> {
    /// These bytes.
    Take(Box<Flow<'a>>, Body),
    /// It holds no more than so many.
    Short {
        /// All that the store has.
        total: u64,
    },
}

impl<'a> Caller<'a> {
    pub(super) async fn new(fetcher: &'a Fetcher, bill: &'a Bill) -> Result<Self, Stop> {
        let tls = fetcher.store_tls().await.map_err(cut)?;
        let limiter = fetcher.limiter.clone();
        let connect = fetcher.download.connect_timeout.duration();
        let client = connect::client(tls, fetcher.proxies.clone(), limiter, bill.meter.clone(), connect);
        Ok(Self { fetcher, bill, client })
    }

    /// Asks for a range, and goes where the answer leads. `left` is what is still to come with this range and after
    /// it: no request is made for what may not be paid to its end.
    pub(super) async fn ask(
        &self,
        link: &Uri,
        range: Range<u64>,
        etag: Option<&str>,
        left: u64,
    ) -> Result<Asked<'a>, Stop> {
        let mut link = link.clone();
        for _ in 0..=REDIRECTIONS {
            self.bill.reserve(cost(left), 1).await?;
            let asked = self.bill.meter.total();
            let response = self.request(&link, &range, etag).await?;
            let (status, headers) = (response.status(), response.headers());
            match answer::read(status, headers, range.start, range.end, etag) {
                Answer::Take(body) => {
                    let flow = Flow::new(response, self.fetcher, self.bill, asked);
                    return Ok(Asked::Take(Box::new(flow), body));
                }
                Answer::Short { total } => return Ok(Asked::Short { total }),
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

    async fn request(
        &self,
        link: &Uri,
        range: &Range<u64>,
        etag: Option<&str>,
    ) -> Result<Response<Incoming>, Stop> {
        let mut request = Request::get(link.clone())
            .header(header::RANGE, format!("bytes={}-{}", range.start, range.end - 1))
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
        match timeout(patience, self.client.request(request)).await {
            Ok(answered) => answered.map_err(|error| cut(causes(&error))),
            Err(_) => Err(cut("the server does not answer")),
        }
    }
}

/// A body as it comes.
pub(super) struct Flow<'a> {
    response: Response<Incoming>,
    bill: &'a Bill,
    idle: Duration,
    watch: Pin<Box<Sleep>>,
    /// What had come when somebody looked last.
    seen: u64,
    /// What had come before it was asked for.
    asked: u64,
    /// What was given out of it.
    given: u64,
}

impl<'a> Flow<'a> {
    fn new(response: Response<Incoming>, fetcher: &Fetcher, bill: &'a Bill, asked: u64) -> Self {
        let (idle, seen) = (fetcher.download.idle_timeout.duration(), bill.meter.total());
        Self { response, bill, idle, watch: Box::pin(sleep(idle)), seen, asked, given: 0 }
    }

    /// Reserves for `left` bytes that were not given out yet, if what is reserved runs low.
    pub(super) async fn reserve(&self, left: u64) -> Result<(), Stop> {
        // Some of them may have come, and lie in a buffer: they are not paid for twice.
        let ahead = self.bill.meter.total().saturating_sub(self.asked + self.given);
        let expected = cost(left).saturating_sub(ahead);
        if self.bill.runs_low(expected) { self.bill.reserve(expected, 0).await } else { Ok(()) }
    }

    /// Whether the server knows ranges.
    #[cfg(feature = "delta")]
    pub(super) fn is_partial(&self) -> bool {
        self.response.status() == hyper::StatusCode::PARTIAL_CONTENT
    }

    /// All that was wanted has come: lets the connection serve the next request.
    #[cfg(feature = "delta")]
    pub(super) async fn end(mut self) {
        // A server that says more than it was asked for loses it.
        let _ = timeout(Duration::from_secs(1), self.response.frame()).await;
    }

    /// The next bytes: there have to be some.
    pub(super) async fn next(&mut self) -> Result<Bytes, Stop> {
        loop {
            let frame = tokio::select! {
                biased;
                frame = self.response.frame() => frame,
                () = self.watch.as_mut() => {
                    // A slow link may take long for what makes a piece; what counts is that something comes.
                    let now = self.bill.meter.total();
                    if now == self.seen {
                        return Err(cut("the server is silent"));
                    }
                    self.seen = now;
                    self.watch.as_mut().reset(Instant::now() + self.idle);
                    continue;
                }
            };
            let frame = frame.ok_or_else(|| cut("the answer ended early"))?;
            let frame = frame.map_err(|error| cut(causes(&error)))?;
            if let Ok(bytes) = frame.into_data() {
                self.given += bytes.len() as u64;
                return Ok(bytes);
            }
        }
    }
}

/// An error with what caused it.
fn causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    plain(&text)
}

/// Counts a try, and settles its account however it ends.
pub(super) struct Bill {
    account: Account,
    meter: Arc<Meter>,
    counters: Counters,
    /// What the counters know of.
    counted: Cell<u64>,
}

impl Bill {
    pub(super) fn new(account: Account, counters: Counters) -> Self {
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

    pub(super) async fn settle(&self) {
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
