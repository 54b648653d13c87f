//! The body of a response: a part of a blob, paced.

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep};

use super::Flight;
use super::content::Content;

/// A paced response is sent in pieces this small, so that downloads share the rate smoothly.
const PACED_PIECE: u64 = 16 * 1024;

/// Hands out sending times at a rate, first come, first served.
#[derive(Debug)]
pub(super) struct Pacer {
    bytes_per_second: u64,
    next_free: Mutex<Option<Instant>>,
}

impl Pacer {
    pub(super) fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second: bytes_per_second.max(1), next_free: Mutex::new(None) }
    }

    /// When the next `bytes` may go out. Time that nobody used is not made up for.
    fn reserve(&self, bytes: u64) -> Instant {
        let takes = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
        let mut next_free = self.next_free.lock().expect("nothing panics while it holds the lock");
        let starts = next_free.map_or_else(Instant::now, |free| free.max(Instant::now()));
        *next_free = Some(starts + takes);
        starts
    }
}

/// The announced bytes did not all come: a fault that was asked for, or a file that has become shorter.
#[derive(Debug, thiserror::Error)]
#[error("truncated after {sent} of {announced} bytes")]
pub(super) struct Truncated {
    sent: u64,
    announced: u64,
}

/// A part of a blob on its way out.
pub(super) struct BlobBody {
    content: Content,
    offset: u64,
    end: u64,
    /// Where to stop, if that is before the end.
    cut: Option<u64>,
    /// What came before the cut had a chance to leave the server.
    flushed: bool,
    corrupt: bool,
    start: u64,
    pacers: Vec<Arc<Pacer>>,
    due: Option<Pin<Box<Sleep>>>,
    flight: Option<Flight>,
}

impl BlobBody {
    pub(super) fn empty() -> Self {
        Self::new(Content::Bytes(Bytes::new()), 0, 0)
    }

    pub(super) fn new(content: Content, start: u64, end: u64) -> Self {
        Self {
            content,
            offset: start,
            end,
            cut: None,
            flushed: false,
            corrupt: false,
            start,
            pacers: Vec::new(),
            due: None,
            flight: None,
        }
    }

    pub(super) fn truncated(mut self) -> Self {
        self.cut = Some(self.start + (self.end - self.start) / 2);
        self
    }

    pub(super) fn corrupted(mut self) -> Self {
        self.corrupt = true;
        self
    }

    pub(super) fn paced_by(mut self, pacer: Arc<Pacer>) -> Self {
        self.pacers.push(pacer);
        self
    }

    /// Counts the response as under way, and its bytes, for as long as it lives.
    pub(super) fn counted_by(mut self, flight: Flight) -> Self {
        self.flight = Some(flight);
        self
    }

    /// Nothing follows.
    fn cut_off(&mut self) -> Truncated {
        let (sent, announced) = (self.offset - self.start, self.end - self.start);
        self.offset = self.end;
        Truncated { sent, announced }
    }

    fn piece(&mut self) -> Bytes {
        let limit = if self.pacers.is_empty() { u64::MAX } else { PACED_PIECE };
        let end = self.cut.unwrap_or(self.end);
        let mut piece = self.content.read(self.offset, (end - self.offset).min(limit));
        if self.corrupt && self.offset == self.start && !piece.is_empty() {
            let mut bytes = BytesMut::from(&piece[..]);
            bytes[0] = !bytes[0];
            piece = bytes.freeze();
        }
        self.offset += piece.len() as u64;
        piece
    }
}

impl Body for BlobBody {
    type Data = Bytes;
    type Error = Truncated;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Truncated>>> {
        if self.offset >= self.end {
            return Poll::Ready(None);
        }
        if self.cut.is_some_and(|cut| self.offset >= cut) {
            if !self.flushed {
                // hyper flushes when a body makes it wait; an error would throw away what it holds.
                self.flushed = true;
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            return Poll::Ready(Some(Err(self.cut_off())));
        }
        if self.due.is_none() && !self.pacers.is_empty() {
            let bytes = (self.end - self.offset).min(PACED_PIECE);
            let due = self.pacers.iter().map(|pacer| pacer.reserve(bytes)).max();
            self.due = due.map(|due| Box::pin(tokio::time::sleep_until(due)));
        }
        if let Some(due) = &mut self.due {
            std::task::ready!(due.as_mut().poll(context));
            self.due = None;
        }
        let piece = self.piece();
        if piece.is_empty() {
            return Poll::Ready(Some(Err(self.cut_off())));
        }
        if let Some(flight) = &self.flight {
            flight.sent(piece.len() as u64);
        }
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.offset >= self.end
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.end - self.offset)
    }
}
