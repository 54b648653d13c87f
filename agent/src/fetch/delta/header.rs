//! The archive's header: fetched once, kept as long as the update lasts, and compared with what was signed each time.

use std::fs;
use std::path::Path;

use fleetwave_agent_core::delta::{Dictionary, HeaderError};
use fleetwave_agent_core::{Archive, FetchError, Release};
use hyper::Uri;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::super::Fetcher;
use super::super::ask::{Asked, Bill, Caller, Stop, cut, stop};
use super::super::ledger::Account;
use crate::{crash, files};

/// The dictionary in the header, from the file `path` if it is there.
pub(super) async fn dictionary(
    path: &Path,
    fetcher: &Fetcher,
    link: &Uri,
    archive: &Archive,
    release: &Release,
) -> Result<Dictionary, Stop> {
    let (archive, size) = (*archive, release.size);
    let kept = path.to_owned();
    let kept = spawn_blocking(move || {
        let header = fs::read(kept).ok()?;
        Dictionary::read(&header, &archive, size).ok()
    });
    if let Some(dictionary) = kept.await.map_err(cut)? {
        return Ok(dictionary);
    }
    crash::point("delta: before the header is fetched");
    let header = fetch(fetcher, link, &archive, release).await?;
    let path = path.to_owned();
    let read = spawn_blocking(move || {
        let dictionary = Dictionary::read(&header, &archive, size)?;
        // Without it the next life fetches it again.
        let kept =
            path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| files::replace(&path, &header));
        if let Err(error) = kept {
            tracing::warn!(%error, "the archive's header is not kept");
        }
        Ok::<_, HeaderError>(dictionary)
    });
    let read = read.await.map_err(cut)?;
    crash::point("delta: the header is here");
    read.map_err(|error| stop(FetchError::Protocol, error))
}

async fn fetch(fetcher: &Fetcher, link: &Uri, archive: &Archive, release: &Release) -> Result<Vec<u8>, Stop> {
    let bill = Bill::new(Account::new(fetcher.ledger.clone(), release), fetcher.counters.clone());
    let most = fetcher.download.most();
    let fetched = timeout(most, receive(fetcher, link, archive, &bill)).await;
    bill.settle().await;
    fetcher.tell_allowance();
    fetched.unwrap_or_else(|_| Err(cut("it took longer than total_timeout")))
}

async fn receive(fetcher: &Fetcher, link: &Uri, archive: &Archive, bill: &Bill) -> Result<Vec<u8>, Stop> {
    let size = archive.header_size;
    let caller = Caller::new(fetcher, bill).await?;
    let mut flow = match caller.ask(link, 0..size, None, size).await? {
        Asked::Take(flow, _) if flow.is_partial() => flow,
        Asked::Take(..) => return Err(stop(FetchError::Protocol, "the server knows no ranges")),
        Asked::Short { .. } => {
            return Err(stop(FetchError::Protocol, "the archive is shorter than its header"));
        }
    };
    let size = usize::try_from(size).map_err(|error| stop(FetchError::Protocol, error))?;
    let mut header = Vec::with_capacity(size);
    while header.len() < size {
        let bytes = flow.next().await?;
        let wanted = bytes.len().min(size - header.len());
        header.extend_from_slice(&bytes[..wanted]);
    }
    Ok(header)
}
