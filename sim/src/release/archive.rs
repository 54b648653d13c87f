//! The chunked archive of a payload: each chunk once, compressed, behind a header that says where it lies and where it
//! belongs. The format is bita's (`bita clone` reads it), and the same payload makes the same archive.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Seek as _, Write as _};
use std::path::Path;
use std::thread;

use bitar::chunk_dictionary::{
    ChunkCompression, ChunkDescriptor, ChunkDictionary, ChunkerParameters,
    chunk_compression::CompressionType, chunker_parameters::ChunkingAlgorithm,
};
use bitar::chunker::Config;
use fleetwave_agent::chunks::{CUT, Chunk, Chunks, VerifiedChunk};
use fleetwave_agent_core::Archive;
use sha2::{Digest as _, Sha256};

use super::ShelfError;

/// As small as it gets: made once, fetched by a fleet.
const LEVEL: i32 = 19;
/// So much of a chunk's digest stands in the header: half of it is as safe as SHA-256, and each byte of it is fetched by
/// every device.
const HASH_LENGTH: usize = 32;
/// Chunks that are worked on at once, for each processor.
const BATCH: usize = 32;

/// Makes the archive of a payload, telling how many of its bytes are done.
pub(super) fn pack(payload: &Path, archive: &Path, mut done: impl FnMut(u64)) -> Result<Archive, ShelfError> {
    let chunks_path = archive.with_extension("chunks");
    let source = File::open(payload).map_err(ShelfError::read(payload))?;
    let size = source.metadata().map_err(ShelfError::read(payload))?.len();
    let mut chunks = Chunks::of(source, u64::MAX, &CUT);
    let mut packed = Packed::create(&chunks_path).map_err(ShelfError::write(&chunks_path))?;
    let processors = thread::available_parallelism().map_or(1, usize::from);
    loop {
        let mut batch = Vec::with_capacity(processors * BATCH);
        for chunk in chunks.by_ref().take(processors * BATCH) {
            batch.push(chunk.map_err(ShelfError::read(payload))?.1);
        }
        let Some(bytes) = batch.iter().map(|chunk| chunk.len() as u64).reduce(|sum, next| sum + next) else {
            break;
        };
        packed.add(batch, processors).map_err(ShelfError::write(&chunks_path))?;
        done(bytes);
    }
    let header = packed.header(size).map_err(ShelfError::write(archive))?;
    let size = packed.finish(&header, archive).map_err(ShelfError::write(archive))?;
    fs::remove_file(&chunks_path).map_err(ShelfError::write(&chunks_path))?;
    Ok(Archive { size, header_size: header.len() as u64, header_digest: Sha256::digest(&header).into() })
}

/// Chunks, as they come.
struct Packed {
    file: BufWriter<File>,
    at: u64,
    /// Where in the list of those below each is.
    known: HashMap<[u8; HASH_LENGTH], u32>,
    chunks: Vec<ChunkDescriptor>,
    order: Vec<u32>,
}

impl Packed {
    fn create(path: &Path) -> io::Result<Self> {
        let file = File::options().read(true).write(true).create_new(true).open(path)?;
        let file = BufWriter::with_capacity(1 << 20, file);
        Ok(Self { file, at: 0, known: HashMap::new(), chunks: Vec::new(), order: Vec::new() })
    }

    fn add(&mut self, batch: Vec<Chunk>, processors: usize) -> io::Result<()> {
        let share = batch.len().div_ceil(processors);
        let known = &self.known;
        let packed: Vec<_> = thread::scope(|scope| {
            let workers: Vec<_> = batch
                .chunks(share)
                .map(|chunks| {
                    scope.spawn(move || chunks.iter().map(|chunk| pack_one(chunk, known)).collect::<Vec<_>>())
                })
                .collect();
            workers
                .into_iter()
                .flat_map(|worker| worker.join().expect("compressing does not panic"))
                .collect()
        });
        for packed in packed {
            let One { hash, size, stored } = packed?;
            if let Some(index) = self.known.get(&hash) {
                self.order.push(*index);
                continue;
            }
            let stored = stored.expect("compressed unless it was known");
            let index = u32::try_from(self.chunks.len()).map_err(io::Error::other)?;
            self.known.insert(hash, index);
            self.order.push(index);
            self.chunks.push(ChunkDescriptor {
                checksum: hash.to_vec(),
                archive_size: stored.len() as u32,
                archive_offset: self.at,
                source_size: size,
            });
            self.file.write_all(&stored)?;
            self.at += stored.len() as u64;
        }
        Ok(())
    }

    fn header(&mut self, size: u64) -> io::Result<Vec<u8>> {
        let Config::RollSum(cut) = CUT else { unreachable!("the rolling sum of bita's default") };
        let dictionary = ChunkDictionary {
            application_version: concat!("fleetwave ", env!("CARGO_PKG_VERSION")).to_owned(),
            // The whole is signed by its SHA-256, which stands elsewhere.
            source_checksum: Vec::new(),
            source_total_size: size,
            chunker_params: Some(ChunkerParameters {
                chunk_filter_bits: cut.filter_bits.bits(),
                min_chunk_size: cut.min_chunk_size as u32,
                max_chunk_size: cut.max_chunk_size as u32,
                rolling_hash_window_size: cut.window_size as u32,
                chunk_hash_length: HASH_LENGTH as u32,
                chunking_algorithm: ChunkingAlgorithm::Rollsum as i32,
            }),
            chunk_compression: Some(ChunkCompression {
                compression: CompressionType::Zstd as i32,
                compression_level: LEVEL as u32,
            }),
            rebuild_order: std::mem::take(&mut self.order),
            chunk_descriptors: std::mem::take(&mut self.chunks),
            metadata: Default::default(),
        };
        bitar::header::build(&dictionary, None)
    }

    /// Puts the chunks behind the header; gives the size of both.
    fn finish(self, header: &[u8], path: &Path) -> io::Result<u64> {
        let mut chunks = self.file.into_inner().map_err(io::IntoInnerError::into_error)?;
        chunks.rewind()?;
        let mut archive = File::create(path)?;
        archive.write_all(header)?;
        io::copy(&mut chunks, &mut archive)?;
        archive.sync_all()?;
        Ok(header.len() as u64 + self.at)
    }
}

struct One {
    hash: [u8; HASH_LENGTH],
    size: u32,
    /// As it stands in the archive; nothing for one that stands there already.
    stored: Option<Vec<u8>>,
}

fn pack_one(chunk: &Chunk, known: &HashMap<[u8; HASH_LENGTH], u32>) -> io::Result<One> {
    let verified = VerifiedChunk::new(chunk.clone());
    let hash: [u8; HASH_LENGTH] = verified.hash().slice()[..HASH_LENGTH].try_into().expect("that long");
    let stored = if known.contains_key(&hash) {
        None
    } else {
        let packed = zstd::bulk::compress(chunk.data(), LEVEL)?;
        // One that stands there as long as it is counts as not compressed.
        Some(if packed.len() < chunk.len() { packed } else { chunk.data().to_vec() })
    };
    Ok(One { hash, size: chunk.len() as u32, stored })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Text, noise, and the same again: compressible, not compressible, and known.
    fn payload() -> Vec<u8> {
        let mut state = 1_u64;
        let mut noise = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        };
        let noise: Vec<u8> = (0..500_000).map(|_| noise()).collect();
        let text = "what is said three times is true ".repeat(10_000);
        [&noise[..], text.as_bytes(), &vec![0; 2_000_000], &noise[..]].concat()
    }

    #[tokio::test]
    async fn bitas_own_reader_finds_the_payload_in_an_archive() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("payload");
        let payload = payload();
        fs::write(&path, &payload).expect("written");
        let archives = ["one", "two"].map(|name| dir.path().join(name));
        let mut told = 0;
        let made = pack(&path, &archives[0], |bytes| told += bytes).expect("made");
        assert_eq!(told, payload.len() as u64);
        assert_eq!(pack(&path, &archives[1], |_| {}).expect("made"), made, "the same archive each time");
        let archive = fs::read(&archives[0]).expect("read");
        assert_eq!(archive.len() as u64, made.size);
        assert!(archive.len() < 900_000, "{}: what stands there twice is stored once", archive.len());
        assert_eq!(fs::read_dir(dir.path()).expect("read").count(), 3, "nothing is left behind");

        let reader = bitar::archive_reader::IoReader::new(io::Cursor::new(archive.clone()));
        let read = bitar::Archive::try_init(reader).await.expect("an archive");
        assert_eq!(
            (read.header_size() as u64, read.total_source_size()),
            (made.header_size, payload.len() as u64)
        );
        assert_eq!(read.chunker_config(), &CUT);
        let mut joined = Vec::new();
        for (at, chunk) in read.iter_source_chunks() {
            assert_eq!(at, joined.len() as u64);
            let stored = &archive[chunk.archive_offset as usize..chunk.archive_end_offset() as usize];
            let bytes = match stored.len() == chunk.source_size as usize {
                true => stored.to_vec(),
                false => zstd::bulk::decompress(stored, chunk.source_size as usize).expect("compressed"),
            };
            let verified = VerifiedChunk::new(bytes.into());
            assert_eq!(verified.hash(), &chunk.checksum);
            joined.extend_from_slice(verified.data());
        }
        assert!(joined == payload);
    }
}
