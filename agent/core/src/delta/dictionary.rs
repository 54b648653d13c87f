//! The header of a chunked archive, in bita's format:
//!
//! | at | length | |
//! |---|---|---|
//! | 0 | 6 | `BITA1\0` |
//! | 6 | 8 | how long the dictionary is, little-endian |
//! | 14 | n | the dictionary, in protobuf |
//! | 14 + n | 8 | where the first chunk lies, little-endian |
//! | 22 + n | 64 | a checksum of the above, which says nothing to one who has compared the whole with what was signed |
//!
//! It is read into what a device needs and no more: some 60 bytes a chunk.

use sha2::{Digest as _, Sha256};

use super::Chunk;
use crate::Archive;

const MAGIC: &[u8] = b"BITA1\0";
/// Magic and length.
const BEFORE: usize = MAGIC.len() + 8;
/// Place of the first chunk, and checksum.
const BEHIND: usize = 8 + 64;
/// The longest chunk that a device takes into memory.
const LONGEST: u32 = 1 << 20;

/// Why a header cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Not what was signed.
    #[error("the archive's header is not the one that was signed")]
    Digest,
    /// What was signed makes no sense here.
    #[error("the archive's header: {0}")]
    Form(&'static str),
}

/// How payloads are cut into chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// By which rule.
    pub rule: Rule,
    /// So many bits of the rolling hash are set at the end of a chunk.
    pub filter_bits: u32,
    /// The shortest chunk but for the last one.
    pub min: u32,
    /// The longest.
    pub max: u32,
    /// So many bytes are in the rolling hash.
    pub window: u32,
}

/// Where a chunk ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Where the BuzHash says so.
    BuzHash,
    /// Where the rolling sum says so.
    RollSum,
    /// When it is as long as the longest one.
    Fixed,
}

/// Where a chunk lies, in the archive and in the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its place in the archive.
    pub at: u64,
    /// Its first place in the payload.
    pub first: u64,
    /// How long it is in the archive; compressed if that is shorter than in the payload.
    pub stored: u32,
    /// How long it is in the payload.
    pub size: u32,
}

impl Entry {
    /// The first byte of the payload behind its first place.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.first + u64::from(self.size)
    }
}

/// The chunks of a payload.
#[derive(Clone, Debug)]
pub struct Dictionary {
    hash_length: usize,
    hashes: Vec<u8>,
    /// In the order of their first places in the payload, which is that of their places in the archive, too.
    entries: Vec<Entry>,
    /// The same, ordered by their hashes.
    by_hash: Vec<u32>,
    /// The payload: one of the entries after the other.
    order: Vec<u32>,
    cut: Cut,
}

impl Dictionary {
    /// Reads the header of the archive of a payload of `size` bytes. Nothing of it is looked at before it was compared
    /// with what was signed.
    ///
    /// # Errors
    /// [`HeaderError`] if it was not signed, or is not one that a device can go by.
    pub fn read(header: &[u8], archive: &Archive, size: u64) -> Result<Self, HeaderError> {
        let signed = header.len() as u64 == archive.header_size
            && Sha256::digest(header).as_slice() == archive.header_digest;
        if !signed {
            return Err(HeaderError::Digest);
        }
        let length =
            header.strip_prefix(MAGIC).and_then(number).ok_or(HeaderError::Form("no bita archive"))?;
        if Some(length) != header.len().checked_sub(BEFORE + BEHIND).map(|length| length as u64) {
            return Err(HeaderError::Form("another length than the dictionary's"));
        }
        let (dictionary, behind) = header[BEFORE..].split_at(header.len() - BEFORE - BEHIND);
        let base = number(behind).ok_or(HeaderError::Form("no place for chunks"))?;
        let mut read = Reading::default();
        for field in Fields(dictionary) {
            read.field(field?, base)?;
        }
        read.finish(archive, size)
    }

    /// How payloads are cut.
    #[must_use]
    pub const fn cut(&self) -> &Cut {
        &self.cut
    }

    /// The chunks, each once.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The digest of a chunk: BLAKE2b's, or the beginning of it.
    #[must_use]
    pub fn hash(&self, index: usize) -> &[u8] {
        &self.hashes[index * self.hash_length..][..self.hash_length]
    }

    /// How much of a digest there is.
    #[must_use]
    pub const fn hash_length(&self) -> usize {
        self.hash_length
    }

    /// The chunk with a digest, of which as much is given as the dictionary has.
    #[must_use]
    pub fn find(&self, hash: &[u8]) -> Option<usize> {
        let found = self.by_hash.binary_search_by(|index| self.hash(*index as usize).cmp(hash));
        found.ok().map(|at| self.by_hash[at] as usize)
    }

    /// What the payload is made of: chunks with their places in it, one behind the other.
    pub fn pieces(&self) -> impl Iterator<Item = (usize, u64)> {
        self.order.iter().scan(0, |at, index| {
            let start = *at;
            *at += u64::from(self.entries[*index as usize].size);
            Some((*index as usize, start))
        })
    }

    /// The chunks that a device lacks that has the payload's bytes up to `offset`, and those of which `has` is true.
    pub fn missing(&self, offset: u64, has: impl Fn(usize) -> bool) -> impl Iterator<Item = Chunk<'_>> {
        let lacks = move |(index, entry): &(usize, &Entry)| entry.end() > offset && !has(*index);
        let chunk = |(index, entry): (usize, &Entry)| Chunk {
            hash: self.hash(index),
            at: entry.at,
            stored: entry.stored,
        };
        self.entries.iter().enumerate().filter(lacks).map(chunk)
    }
}

fn number(bytes: &[u8]) -> Option<u64> {
    bytes.first_chunk().map(|bytes| u64::from_le_bytes(*bytes))
}

/// A field of a protobuf message.
enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

struct Fields<'a>(&'a [u8]);

const BROKEN: HeaderError = HeaderError::Form("a broken dictionary");

impl<'a> Fields<'a> {
    fn varint(&mut self) -> Result<u64, HeaderError> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first().ok_or(BROKEN)?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(BROKEN)
    }

    fn take(&mut self, length: u64) -> Result<&'a [u8], HeaderError> {
        let length = usize::try_from(length).map_err(|_| BROKEN)?;
        let (bytes, rest) = self.0.split_at_checked(length).ok_or(BROKEN)?;
        self.0 = rest;
        Ok(bytes)
    }

    fn field(&mut self) -> Result<(u64, Value<'a>), HeaderError> {
        let key = self.varint()?;
        let value = match key & 7 {
            0 => Value::Number(self.varint()?),
            1 => Value::Bytes(self.take(8)?),
            2 => {
                let length = self.varint()?;
                Value::Bytes(self.take(length)?)
            }
            5 => Value::Bytes(self.take(4)?),
            _ => return Err(BROKEN),
        };
        Ok((key >> 3, value))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Value<'a>), HeaderError>;

    fn next(&mut self) -> Option<Self::Item> {
        (!self.0.is_empty()).then(|| self.field())
    }
}

fn small(number: u64) -> Result<u32, HeaderError> {
    u32::try_from(number).map_err(|_| BROKEN)
}

/// A dictionary, as far as it was read.
#[derive(Default)]
struct Reading {
    size: u64,
    /// By field: filter bits, shortest, longest, window, length of hashes, rule.
    cut: [u32; 7],
    /// By field: the algorithm is the second.
    compression: [u32; 4],
    order: Vec<u32>,
    entries: Vec<Entry>,
    hashes: Vec<u8>,
}

impl Reading {
    fn field(&mut self, (field, value): (u64, Value<'_>), base: u64) -> Result<(), HeaderError> {
        match (field, value) {
            (3, Value::Number(size)) => self.size = size,
            (4, Value::Bytes(message)) => numbers(message, &mut self.cut)?,
            (5, Value::Bytes(message)) => numbers(message, &mut self.compression)?,
            (6, Value::Number(index)) => self.order.push(small(index)?),
            (6, Value::Bytes(packed)) => {
                let mut packed = Fields(packed);
                while !packed.0.is_empty() {
                    self.order.push(small(packed.varint()?)?);
                }
            }
            (7, Value::Bytes(chunk)) => self.chunk(chunk, base)?,
            // Who made it, a digest that is not the signed one, notes.
            _ => {}
        }
        Ok(())
    }

    fn chunk(&mut self, message: &[u8], base: u64) -> Result<(), HeaderError> {
        let mut entry = Entry { at: base, first: 0, stored: 0, size: 0 };
        for field in Fields(message) {
            match field? {
                (1, Value::Bytes(hash)) => self.hashes.extend_from_slice(hash),
                (3, Value::Number(stored)) => entry.stored = small(stored)?,
                (4, Value::Number(at)) => entry.at = base.checked_add(at).ok_or(BROKEN)?,
                (5, Value::Number(size)) => entry.size = small(size)?,
                _ => {}
            }
        }
        self.entries.push(entry);
        Ok(())
    }

    fn finish(mut self, archive: &Archive, size: u64) -> Result<Dictionary, HeaderError> {
        let form = |right: bool, what| if right { Ok(()) } else { Err(HeaderError::Form(what)) };
        let [_, filter_bits, min, max, window, hash_length, rule] = self.cut;
        let rule = match rule {
            0 => Rule::BuzHash,
            1 => Rule::RollSum,
            2 => Rule::Fixed,
            _ => return Err(HeaderError::Form("an unknown way to cut")),
        };
        let sound = rule == Rule::Fixed
            || ((1..=30).contains(&filter_bits) && min <= max && (1..=4096).contains(&window));
        form(
            sound && (1..=LONGEST).contains(&max),
            "chunks that are too long, or cut in a way that makes no sense",
        )?;
        form(matches!(self.compression[2], 0 | 2), "compressed otherwise than by zstd")?;
        let hash_length = hash_length as usize;
        form((32..=64).contains(&hash_length), "digests that are too short, or too long")?;
        form(self.hashes.len() == self.entries.len() * hash_length, "a digest of another length")?;
        form(self.size == size, "another payload's size")?;
        let mut end = archive.header_size;
        for entry in &self.entries {
            let sound = (1..=max).contains(&entry.size) && (1..=entry.size).contains(&entry.stored);
            form(sound && entry.at >= end, "a chunk that is too long, or not behind the one before")?;
            end = entry.at.checked_add(entry.stored.into()).ok_or(BROKEN)?;
        }
        form(end <= archive.size, "a chunk outside of the archive")?;
        let (mut known, mut at) = (0, 0_u64);
        for index in self.order.iter().map(|index| *index as usize) {
            let entry = self.entries.get_mut(index).filter(|_| index <= known).ok_or(BROKEN)?;
            if index == known {
                (known, entry.first) = (known + 1, at);
            }
            at = at.checked_add(entry.size.into()).ok_or(BROKEN)?;
        }
        form(known == self.entries.len() && at == size, "chunks that do not make the payload")?;
        let Self { order, entries, hashes, .. } = self;
        let cut = Cut { rule, filter_bits, min, max, window };
        let by_hash = (0..entries.len() as u32).collect();
        let mut dictionary = Dictionary { hash_length, hashes, entries, by_hash, order, cut };
        let mut by_hash = core::mem::take(&mut dictionary.by_hash);
        by_hash.sort_unstable_by(|a, b| dictionary.hash(*a as usize).cmp(dictionary.hash(*b as usize)));
        dictionary.by_hash = by_hash;
        for list in [&mut dictionary.by_hash, &mut dictionary.order] {
            list.shrink_to_fit();
        }
        dictionary.entries.shrink_to_fit();
        dictionary.hashes.shrink_to_fit();
        Ok(dictionary)
    }
}

/// Reads a message of numbers into the places that their fields have.
fn numbers(message: &[u8], into: &mut [u32]) -> Result<(), HeaderError> {
    for field in Fields(message) {
        if let (field, Value::Number(number)) = field?
            && let Some(place) = usize::try_from(field).ok().and_then(|field| into.get_mut(field))
        {
            *place = small(number)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
