//! One try of a download: from the request to the last byte on disk.

use std::io;
use std::rc::Rc;

use fleetwave_agent_core::{Event, FetchError, Release};
use hyper::Uri;
use tokio::sync::Notify;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::answer::Body;
use super::ask::{Asked, Bill, Caller, Flow, Stop, cut, stop};
use super::ledger::Account;
use super::pipe::Pipe;
use super::progress::{Origin, Subject, short};
use super::sink::Sink;
use super::{Fetcher, Links, Payload, hash};
use crate::install::Place;

/// What is fetched.
pub(super) struct Job {
    pub(super) payload: Rc<Payload>,
    pub(super) fetcher: Rc<Fetcher>,
    pub(super) links: Links,
    pub(super) place: Place,
    pub(super) release: Release,
    pub(super) offset: u64,
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
    let sink = spawn_blocking(move || Sink::open(&place, subject, offset, size, (attempt, progress), gate));
    // Whether it still holds what it held is for a later try to find out.
    let sink = sink.await.unwrap_or_else(|error| Err(io::Error::other(error)));
    let sink = sink.map_err(|error| (Stop::from(error), offset))?;
    Ok((Pipe::new(sink, (offset, hash)), origin.filter(|_| offset > 0)))
}

impl Job {
    pub(super) async fn run(self, pause: &Notify) -> Event {
        let opened = tokio::select! {
            opened = open(&self.payload, &self.place, &self.release, self.offset) => opened,
            () = pause.notified() => Err((stop(FetchError::Stopped, "the window of downloads is over"), self.offset)),
        };
        let (mut pipe, origin) = match opened {
            Ok(opened) => opened,
            Err((Stop { error, why }, durable)) => {
                tracing::error!(why, path = %self.place.path.display(), "the download cannot begin");
                self.payload.trouble.replace(Some(why));
                return Event::FetchFailed { error, durable };
            }
        };
        let account = Account::new(self.fetcher.ledger.clone(), &self.release);
        let bill = Bill::new(account, self.fetcher.counters.clone());
        let ended = {
            let most = self.fetcher.download.most();
            tokio::select! {
                ended = timeout(most, self.get(&mut pipe, origin, &bill)) => {
                    ended.unwrap_or_else(|_| Err(cut("it took longer than total_timeout")))
                }
                () = pause.notified() => Err(stop(FetchError::Stopped, "the window of downloads is over")),
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
        self.payload.trouble.replace(Some(why));
        Event::FetchFailed { error, durable }
    }

    /// By chunks if that was planned.
    async fn get(&self, pipe: &mut Pipe, origin: Option<Origin>, bill: &Bill) -> Result<(), Stop> {
        #[cfg(feature = "delta")]
        if let Some(patch) = self.payload.deltas.patch(&self.release) {
            return self.assemble(&patch, pipe, bill).await;
        }
        self.download(pipe, origin, bill).await
    }

    async fn download(&self, pipe: &mut Pipe, origin: Option<Origin>, bill: &Bill) -> Result<(), Stop> {
        let source = source(&self.links.payload);
        let origin = origin.filter(|origin| origin.source == source);
        let etag = origin.as_ref().map(|origin| origin.etag.as_str());
        let caller = Caller::new(&self.fetcher, bill).await?;
        let size = self.release.size;
        match caller.ask(&self.links.payload, self.offset..size, etag, size - self.offset).await? {
            Asked::Short { total } => {
                tracing::warn!(total, signed = size, "the store has less than was signed");
                Ok(())
            }
            Asked::Take(flow, body) => {
                if body.changed {
                    tracing::warn!("the server has other bytes than those that are here: begins again");
                    pipe.restart().await?;
                }
                let etag = body.etag.clone().filter(|tag| tag.len() <= 128);
                pipe.name(etag.map(|etag| Origin { source, etag }));
                self.receive(flow, &body, pipe).await
            }
        }
    }

    async fn receive(&self, mut flow: Box<Flow<'_>>, body: &Body, pipe: &mut Pipe) -> Result<(), Stop> {
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
            flow.reserve(left).await?;
            let bytes = flow.next().await?;
            let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
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
