//! A payload that is here already: copied from a file to where the installer wants it, by the same checks and as durably
//! as one that is downloaded. It costs nothing, so the byte ledger does not hear of it.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use fleetwave_agent_core::{Event, FetchError, Release};
use tokio::sync::Notify;
use tokio::task::spawn_blocking;

use super::Payload;
use super::ask::{Stop, stop};
use super::get::open;
use super::pipe::Pipe;
use crate::install::{Later, Place};

/// What is read at once.
const PIECE: usize = 256 * 1024;

impl Payload {
    /// Copies what is missing from `offset` on out of a file into `place`: says how that went, and why it did not. The
    /// file is the opened one, or else opened by its path.
    pub(crate) fn copy(
        self: &Rc<Self>,
        (file, path): (Option<Arc<File>>, PathBuf),
        place: Place,
        release: Release,
        offset: u64,
    ) -> Later<(Event, Option<String>)> {
        let pause = Rc::new(Notify::new());
        self.pause.replace(pause.clone());
        self.position.set(offset);
        let payload = self.clone();
        Box::pin(async move {
            let mut pipe = match open(&payload, &place, &release, offset).await {
                Ok((pipe, _)) => pipe,
                Err((Stop { error, why }, durable)) => {
                    let why = format!("{}: {why}", place.path.display());
                    tracing::error!(why, "the copy cannot begin");
                    return (Event::FetchFailed { error, durable }, Some(why));
                }
            };
            let ended = tokio::select! {
                ended = payload.pour((file, path), &mut pipe, release.size, offset) => ended,
                () = pause.notified() => Err(stop(FetchError::Stopped, "the window of downloads is over")),
            };
            let (durable, kept) = pipe.finish().await;
            let Stop { error, why } = match (ended, kept) {
                (Ok(()), Ok(())) => return (Event::Fetched, None),
                (Err(stop), Ok(())) => stop,
                (_, Err(error)) => error.into(),
            };
            tracing::warn!(code = error.code().name(), why, durable, "the copy stopped");
            (Event::FetchFailed { error, durable }, Some(why))
        })
    }

    async fn pour(
        &self,
        (file, path): (Option<Arc<File>>, PathBuf),
        pipe: &mut Pipe,
        size: u64,
        offset: u64,
    ) -> Result<(), Stop> {
        // What cannot be read now may be there again later: as with a server that is away.
        let unread =
            |why: &dyn std::fmt::Display| stop(FetchError::Interrupted, format!("{}: {why}", path.display()));
        let file = match file {
            Some(file) => file,
            None => {
                let path = path.clone();
                let opened =
                    spawn_blocking(move || File::open(path)).await.map_err(|error| unread(&error))?;
                Arc::new(opened.map_err(|error| unread(&error))?)
            }
        };
        let (mut at, mut piece) = (offset, vec![0; PIECE]);
        while at < size {
            let (file, most) =
                (file.clone(), usize::try_from(size - at).map_or(PIECE, |left| left.min(PIECE)));
            let read = spawn_blocking(move || {
                let read = file.read_at(&mut piece[..most], at);
                (piece, read)
            });
            let read = read.await.map_err(|error| unread(&error))?;
            piece = read.0;
            let length = match read.1 {
                Ok(0) => return Err(unread(&format_args!("it ends after {at} of {size} bytes"))),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                read => read.map_err(|error| unread(&error))?,
            };
            pipe.push(&piece[..length]).await?;
            at += length as u64;
            self.position.set(at);
        }
        Ok(())
    }
}
