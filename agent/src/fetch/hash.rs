//! The SHA-256 of bytes that are on disk already.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::PathBuf;

use sha2::{Digest as _, Sha256};
use tokio::task::spawn_blocking;

/// What is read at once.
const PIECE: usize = 256 * 1024;
/// What is read before somebody who waits no longer is noticed.
const STRETCH: u64 = 32 << 20;

/// Hashes the first `length` bytes of `path`, on another thread. Fewer are an error.
pub(crate) async fn hash(path: PathBuf, length: u64) -> io::Result<Sha256> {
    let file = spawn_blocking(move || File::open(path)).await??;
    stretch_by_stretch(file, length).await
}

async fn stretch_by_stretch(mut file: File, length: u64) -> io::Result<Sha256> {
    let mut hash = Sha256::new();
    let mut done = 0;
    while done < length {
        let stretch = (length - done).min(STRETCH);
        let hashed = spawn_blocking(move || {
            digest(&mut file, stretch, &mut hash)?;
            io::Result::Ok((file, hash))
        });
        (file, hash) = hashed.await??;
        done += stretch;
    }
    Ok(hash)
}

fn digest(file: &mut File, length: u64, hash: &mut Sha256) -> io::Result<()> {
    let mut left = length;
    let mut piece = vec![0; PIECE];
    while left > 0 {
        let wanted = usize::try_from(left).map_or(PIECE, |left| left.min(PIECE));
        file.read_exact(&mut piece[..wanted])?;
        hash.update(&piece[..wanted]);
        left -= wanted as u64;
    }
    Ok(())
}
