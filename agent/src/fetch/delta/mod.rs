//! A payload from its chunked archive: the device fetches the chunks that it lacks, and takes the others from what runs.
//!
//! Chunks are put in the order of the payload, so what is durable of it is a beginning, as with any download: a try
//! goes on behind it, by chunks or not. Nothing of the archive is believed before it was compared: its header with what
//! was signed, each chunk with the header, and the whole with what was signed once more.

mod assemble;
mod header;
mod seeds;

use std::cell::{Cell, RefCell};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use fleetwave_agent_core::delta::{Dictionary, DictionaryError, Prices, plan, worth_a_look};
use fleetwave_agent_core::{Archive, FetchError, Method, Plan, Release};

use super::ask::Stop;
use super::{Fetcher, Links, Payload, ask};
use crate::files;
use crate::install::Seed;
use seeds::Found;

/// The file of an archive's header, in its target's directory.
const HEADER: &str = "archive-header";
/// The longest header that a device takes into memory: of an image of some 4 GiB.
const LONGEST_HEADER: u64 = 4 << 20;
/// So often a header may not come before all of the payload is fetched in its place.
const TRIES: u8 = 3;
/// What a request costs beside what it brings, on a connection that is there.
const REQUEST: u64 = 1024;

/// What a target knows of the archive of a payload.
#[derive(Debug)]
pub(super) struct Deltas {
    header: PathBuf,
    known: RefCell<Option<Known>>,
}

#[derive(Debug)]
struct Known {
    /// Of which payload.
    digest: [u8; 32],
    /// So often its header has not come.
    failures: u8,
    /// It is not fetched by chunks, whatever would be cheaper.
    refused: bool,
    patch: Option<Rc<Patch>>,
}

/// How a payload is put together.
#[derive(Debug)]
pub(super) struct Patch {
    archive: Archive,
    dictionary: Arc<Dictionary>,
    seeds: Arc<Vec<Seed>>,
    /// Where each chunk lies on the device.
    found: RefCell<Found>,
    /// One was not there any more.
    stale: Cell<bool>,
}

impl Patch {
    /// What of the archive is to be fetched for the payload from `offset` on, if that costs less than `full`.
    fn plan(
        &self,
        offset: u64,
        full: u64,
    ) -> Result<fleetwave_agent_core::delta::DeltaPlan, DictionaryError> {
        let found = self.found.borrow();
        let missing = self.dictionary.missing(offset, |index| found.has(index));
        plan(&self.archive, missing, |_| false, full, &Prices::default())
    }

    /// The same, whatever it costs: it was planned.
    fn ranges(&self, offset: u64) -> Result<Vec<Range<u64>>, DictionaryError> {
        self.plan(offset, u64::MAX / 2).map(|plan| plan.ranges)
    }
}

impl Deltas {
    pub(super) fn new(dir: &Path) -> Self {
        Self { header: dir.join(HEADER), known: RefCell::default() }
    }

    /// How the payload of `release` is put together, if it is.
    pub(super) fn patch(&self, release: &Release) -> Option<Rc<Patch>> {
        let known = self.known.borrow();
        known.as_ref().filter(|known| known.digest == release.digest && !known.refused)?.patch.clone()
    }

    fn with<T>(&self, release: &Release, change: impl FnOnce(&mut Known) -> T) -> T {
        let mut known = self.known.borrow_mut();
        let fresh = Known { digest: release.digest, failures: 0, refused: false, patch: None };
        if known.as_ref().is_none_or(|known| known.digest != release.digest) {
            *known = None;
        }
        change(known.get_or_insert(fresh))
    }

    /// All of the payload is fetched from now on, as long as this process lives.
    pub(super) fn refuse(&self, release: &Release, why: &dyn std::fmt::Display) {
        tracing::warn!(release = &*release.id, %why, "not fetched by chunks");
        self.with(release, |known| (known.refused, known.patch) = (true, None));
    }

    /// The whole was compared with what was signed: there is nothing left to be put together, or it is not to be done
    /// again.
    pub(super) fn compared(&self, release: &Release, same: bool) {
        if !same && self.patch(release).is_some() {
            self.refuse(release, &"what its chunks make is not what was signed");
        } else if same && let Err(error) = self.discard() {
            tracing::warn!(%error, "the archive's header is left");
        }
    }

    /// The update has ended, or begins again.
    pub(super) fn discard(&self) -> io::Result<()> {
        // One that is not to be fetched by chunks stays that.
        let mut known = self.known.borrow_mut();
        *known = known.take().filter(|known| known.refused);
        files::remove(&self.header)
    }
}

/// Finds out what the payload from `offset` on will cost, and how it is to be fetched.
pub(super) async fn price(
    payload: Rc<Payload>,
    fetcher: Rc<Fetcher>,
    links: Option<Links>,
    release: Release,
    offset: u64,
    seeds: Vec<Seed>,
) -> Result<Plan, FetchError> {
    let full = fetcher.plan(&release, offset);
    let (Some(archive), Some(link)) = (release.delta, links.and_then(|links| links.archive)) else {
        payload.deltas.with(&release, |known| known.patch = None);
        return Ok(full);
    };
    if payload.deltas.with(&release, |known| known.refused) {
        return Ok(full);
    }
    if !worth_a_look(&archive, release.size) || archive.header_size > LONGEST_HEADER {
        payload.deltas.refuse(&release, &"the archive's header is too long");
        return Ok(full);
    }
    let patch = match payload.deltas.patch(&release) {
        Some(patch) => {
            if patch.stale.get() {
                let found = seeds::search(Arc::clone(&patch.dictionary), Arc::clone(&patch.seeds)).await;
                patch.found.replace(found);
                patch.stale.set(false);
            }
            patch
        }
        None => {
            let header = &payload.deltas.header;
            let dictionary = match header::dictionary(header, &fetcher, &link, &archive, &release).await {
                Ok(dictionary) => Arc::new(dictionary),
                Err(Stop { error, why }) => return without(&payload, &release, error, &why).map(|()| full),
            };
            let seeds = Arc::new(seeds);
            let found = seeds::search(Arc::clone(&dictionary), Arc::clone(&seeds)).await;
            let patch = Rc::new(Patch {
                archive,
                dictionary,
                seeds,
                found: RefCell::new(found),
                stale: Cell::new(false),
            });
            payload.deltas.with(&release, |known| known.patch = Some(Rc::clone(&patch)));
            patch
        }
    };
    // Its header has been paid for meanwhile.
    let full = fetcher.plan(&release, offset);
    let planned = match patch.plan(offset, release.size.saturating_sub(offset)) {
        Ok(planned) => planned,
        Err(error) => {
            payload.deltas.refuse(&release, &error);
            return Ok(full);
        }
    };
    let chunks = patch.dictionary.entries().len();
    tracing::info!(
        release = &*release.id,
        method = planned.method.name(),
        bytes = planned.bytes,
        requests = planned.requests,
        of = full.bytes,
        chunks,
        here = patch.found.borrow().count(),
        "planned"
    );
    if planned.method == Method::Full {
        payload.deltas.with(&release, |known| (known.refused, known.patch) = (true, None));
        return Ok(full);
    }
    let bytes = match u64::from(planned.requests) {
        0 => 0,
        requests => ask::cost(planned.bytes) + (requests - 1) * REQUEST,
    };
    Ok(planned.price(full.spent, full.allowance)).map(|plan| Plan { bytes, ..plan })
}

/// What a header that has not come means: a try that failed, or that there will be none.
fn without(payload: &Payload, release: &Release, error: FetchError, why: &str) -> Result<(), FetchError> {
    let deltas = &payload.deltas;
    let failures = deltas.with(release, |known| {
        known.failures = known.failures.saturating_add(1);
        known.failures
    });
    let passing = matches!(
        error,
        FetchError::Forbidden | FetchError::Busy(_) | FetchError::Server | FetchError::Interrupted
    );
    let capped = matches!(error, FetchError::OverUpdateCap | FetchError::OverWindowCap);
    if capped || (passing && failures < TRIES) {
        tracing::warn!(release = &*release.id, why, "the archive's header has not come");
        payload.trouble.replace(Some(format!("the archive's header: {why}")));
        return Err(error);
    }
    deltas.refuse(release, &why);
    Ok(())
}
