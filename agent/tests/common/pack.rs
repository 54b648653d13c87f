//! A chunked archive, as `fleetwave release create --delta` makes it.

use std::collections::HashMap;
use std::fs::{self, File};

use bitar::chunk_dictionary::{ChunkCompression, ChunkDescriptor, ChunkDictionary, ChunkerParameters};
use bitar::chunker::{Config, FilterBits, FilterConfig};
use fleetwave_agent_core::Archive;
use sha2::{Digest as _, Sha256};

use super::Chunks;

/// Shorter chunks than releases have: what a test does with a megabyte would take ten otherwise.
const CUT: FilterConfig = FilterConfig {
    filter_bits: FilterBits(12),
    min_chunk_size: 2 << 10,
    max_chunk_size: 32 << 10,
    window_size: 64,
};

/// The archive of a payload, and what is signed of it.
pub(crate) fn pack(payload: &[u8]) -> (Vec<u8>, Archive) {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("payload");
    fs::write(&path, payload).expect("written");
    let mut known: HashMap<Vec<u8>, u32> = HashMap::new();
    let (mut descriptors, mut order, mut chunks) = (Vec::new(), Vec::new(), Vec::new());
    for chunk in Chunks::of(File::open(&path).expect("opened"), u64::MAX, &Config::RollSum(CUT)) {
        let verified = chunk.expect("read").1.verify();
        let hash = verified.hash().slice()[..32].to_vec();
        let index = *known.entry(hash.clone()).or_insert_with(|| {
            let packed = zstd::bulk::compress(verified.data(), 3).expect("compresses");
            let stored = if packed.len() < verified.len() { &packed[..] } else { verified.data() };
            descriptors.push(ChunkDescriptor {
                checksum: hash,
                archive_size: stored.len() as u32,
                archive_offset: chunks.len() as u64,
                source_size: verified.len() as u32,
            });
            chunks.extend_from_slice(stored);
            descriptors.len() as u32 - 1
        });
        order.push(index);
    }
    let dictionary = ChunkDictionary {
        source_total_size: payload.len() as u64,
        chunker_params: Some(ChunkerParameters {
            chunk_filter_bits: CUT.filter_bits.bits(),
            min_chunk_size: CUT.min_chunk_size as u32,
            max_chunk_size: CUT.max_chunk_size as u32,
            rolling_hash_window_size: CUT.window_size as u32,
            chunk_hash_length: 32,
            chunking_algorithm: 1,
        }),
        chunk_compression: Some(ChunkCompression { compression: 2, compression_level: 3 }),
        rebuild_order: order,
        chunk_descriptors: descriptors,
        ..ChunkDictionary::default()
    };
    let header = bitar::header::build(&dictionary, None).expect("a header");
    let archive = Archive {
        size: (header.len() + chunks.len()) as u64,
        header_size: header.len() as u64,
        header_digest: Sha256::digest(&header).into(),
    };
    ([header, chunks].concat(), archive)
}
