//! How files are cut into chunks: by their content, so that what is inserted somewhere leaves the chunks behind it as
//! they are. The archive of a release and the device's own files are cut by the same code.

use std::fs::File;
use std::io::{self, Read as _};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use bitar::chunker::{Config, FilterBits, FilterConfig};
use futures_util::Stream;
use tokio::io::{AsyncRead, ReadBuf};

pub use bitar::{Chunk, VerifiedChunk};

/// The way in which archives of releases are cut: 64 KiB on average.
pub const CUT: Config = Config::RollSum(FilterConfig {
    filter_bits: FilterBits(15),
    min_chunk_size: 32 << 10,
    max_chunk_size: 256 << 10,
    window_size: 64,
});

/// The chunks of a file, one behind the other. It blocks where the file does.
pub struct Chunks(Box<dyn Stream<Item = io::Result<(u64, Chunk)>> + Unpin + Send>);

impl Chunks {
    /// Cuts the first `length` bytes of `file`, or all of it if there are fewer.
    #[must_use]
    pub fn of(file: File, length: u64, cut: &Config) -> Self {
        Self(cut.new_chunker(Blocking(file.take(length))))
    }
}

impl Iterator for Chunks {
    type Item = io::Result<(u64, Chunk)>;

    fn next(&mut self) -> Option<Self::Item> {
        match Pin::new(&mut self.0).poll_next(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(next) => next,
            Poll::Pending => unreachable!("a file is read without waiting"),
        }
    }
}

/// A file in the place of something that can be waited for.
struct Blocking(io::Take<File>);

impl AsyncRead for Blocking {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = self.0.read(buffer.initialize_unfilled())?;
        buffer.advance(read);
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn cut(bytes: &[u8], length: u64) -> Vec<(u64, Vec<u8>)> {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("file");
        fs::write(&path, bytes).expect("written");
        let chunks = Chunks::of(File::open(&path).expect("opened"), length, &CUT);
        chunks.map(|chunk| chunk.map(|(at, chunk)| (at, chunk.data().to_vec())).expect("read")).collect()
    }

    #[test]
    fn what_is_inserted_in_the_middle_leaves_the_chunks_around_it() {
        let mut state = 7_u32;
        let mut byte = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        let mut bytes: Vec<u8> = (0..4 << 20).map(|_| byte()).collect();
        let before = cut(&bytes, u64::MAX);
        let joined: Vec<u8> = before.iter().flat_map(|(_, chunk)| chunk.clone()).collect();
        assert!(joined == bytes, "nothing is lost");
        assert!(before.windows(2).all(|pair| pair[0].0 + pair[0].1.len() as u64 == pair[1].0));
        let average = bytes.len() / before.len();
        assert!((48 << 10..80 << 10).contains(&average), "{average}");
        bytes.splice(2_000_000..2_000_000, [1, 2, 3]);
        let after = cut(&bytes, u64::MAX);
        let new = after.iter().filter(|(_, chunk)| !before.iter().any(|(_, old)| old == chunk)).count();
        assert!(new <= 2, "{new} of {} are new", after.len());
        assert_eq!(cut(&bytes, 1000), [(0, bytes[..1000].to_vec())]);
    }
}
