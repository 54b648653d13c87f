use proptest::prelude::*;

use super::*;

fn varint(mut value: u64, into: &mut Vec<u8>) {
    while value >= 0x80 {
        into.push(value as u8 | 0x80);
        value >>= 7;
    }
    into.push(value as u8);
}

fn field(number: u64, value: u64, into: &mut Vec<u8>) {
    varint(number << 3, into);
    varint(value, into);
}

fn bytes(number: u64, value: &[u8], into: &mut Vec<u8>) {
    varint(number << 3 | 2, into);
    varint(value.len() as u64, into);
    into.extend_from_slice(value);
}

/// What a test says of an archive: chunks by their lengths, stored and whole, and the payload made of them.
#[derive(Clone, Debug)]
struct Said {
    chunks: Vec<(u32, u32)>,
    order: Vec<u32>,
    cut: [u64; 6],
    compression: u64,
}

impl Said {
    fn new(chunks: &[(u32, u32)], order: &[u32]) -> Self {
        Self {
            chunks: chunks.to_vec(),
            order: order.to_vec(),
            cut: [15, 10, 1000, 64, 32, 1],
            compression: 2,
        }
    }

    fn size(&self) -> u64 {
        self.order.iter().map(|index| u64::from(self.chunks[*index as usize].1)).sum()
    }

    fn header(&self) -> Vec<u8> {
        let mut dictionary = Vec::new();
        bytes(1, b"a test", &mut dictionary);
        bytes(2, &[7; 64], &mut dictionary);
        field(3, self.size(), &mut dictionary);
        let mut cut = Vec::new();
        (1..).zip(self.cut).for_each(|(number, value)| field(number, value, &mut cut));
        bytes(4, &cut, &mut dictionary);
        let mut compression = Vec::new();
        field(2, self.compression, &mut compression);
        bytes(5, &compression, &mut dictionary);
        let mut order = Vec::new();
        self.order.iter().for_each(|index| varint((*index).into(), &mut order));
        bytes(6, &order, &mut dictionary);
        let mut at = 0;
        for (index, (stored, size)) in self.chunks.iter().enumerate() {
            let mut chunk = Vec::new();
            bytes(1, &[200 - index as u8; 32], &mut chunk);
            field(3, (*stored).into(), &mut chunk);
            field(4, at, &mut chunk);
            field(5, (*size).into(), &mut chunk);
            bytes(7, &chunk, &mut dictionary);
            at += u64::from(*stored);
        }
        let mut header = MAGIC.to_vec();
        header.extend((dictionary.len() as u64).to_le_bytes());
        header.extend(&dictionary);
        header.extend((header.len() as u64 + BEHIND as u64).to_le_bytes());
        header.extend([0; 64]);
        header
    }

    fn archive(&self, header: &[u8]) -> Archive {
        let size = header.len() as u64 + self.chunks.iter().map(|chunk| u64::from(chunk.0)).sum::<u64>();
        Archive { size, header_size: header.len() as u64, header_digest: Sha256::digest(header).into() }
    }

    fn read(&self) -> Result<Dictionary, HeaderError> {
        let header = self.header();
        Dictionary::read(&header, &self.archive(&header), self.size())
    }
}

#[test]
fn a_header_says_where_each_chunk_lies_and_what_the_payload_is_made_of() {
    let said = Said::new(&[(50, 100), (20, 20), (5, 300)], &[0, 1, 0, 2, 2]);
    let header = said.header();
    let base = header.len() as u64;
    let dictionary = said.read().expect("well-formed");
    let entries =
        dictionary.entries().iter().map(|entry| (entry.at - base, entry.first, entry.stored, entry.size));
    assert_eq!(entries.collect::<Vec<_>>(), [(0, 0, 50, 100), (50, 100, 20, 20), (70, 220, 5, 300)]);
    let pieces: Vec<_> = dictionary.pieces().collect();
    assert_eq!(pieces, [(0, 0), (1, 100), (0, 120), (2, 220), (2, 520)]);
    assert_eq!(dictionary.find(&[199; 32]), Some(1));
    assert_eq!(dictionary.find(&[1; 32]), None);
    assert_eq!(dictionary.cut().rule, Rule::RollSum);
    let missing = |offset, has: &[usize]| {
        dictionary
            .missing(offset, |index| has.contains(&index))
            .map(|chunk| chunk.at - base)
            .collect::<Vec<_>>()
    };
    assert_eq!(missing(0, &[]), [0, 50, 70]);
    assert_eq!(missing(99, &[1]), [0, 70], "one that is there in part is missing");
    assert_eq!(missing(100, &[]), [50, 70]);
    assert_eq!(missing(820, &[]), [] as [u64; 0]);
}

#[test]
fn what_was_not_signed_is_not_looked_at() {
    let said = Said::new(&[(50, 100)], &[0]);
    let header = said.header();
    let archive = said.archive(&header);
    for at in [0, 20, header.len() - 1] {
        let mut other = header.clone();
        other[at] ^= 1;
        assert_eq!(Dictionary::read(&other, &archive, 100).err(), Some(HeaderError::Digest));
    }
    assert_eq!(Dictionary::read(&header[..10], &archive, 100).err(), Some(HeaderError::Digest));
}

#[test]
fn a_header_that_no_device_can_go_by_is_refused_though_it_was_signed() {
    let good = Said::new(&[(50, 100), (20, 20)], &[0, 1]);
    assert!(good.read().is_ok());
    let cut = |at: usize, value| {
        let mut said = good.clone();
        said.cut[at] = value;
        said
    };
    for (what, said) in [
        ("longer in the archive than in the payload", Said::new(&[(101, 100)], &[0])),
        ("empty", Said::new(&[(0, 0), (1, 1)], &[0, 1])),
        ("too long", Said::new(&[(5, 1001)], &[0])),
        ("unused", Said::new(&[(50, 100), (20, 20)], &[0, 0])),
        ("in another order", Said::new(&[(50, 100), (20, 20)], &[1, 0])),
        ("no bits", cut(0, 0)),
        ("too many bits", cut(0, 32)),
        ("shortest above longest", cut(1, 1001)),
        ("longest above what a device takes", cut(2, 2 << 20)),
        ("no window", cut(3, 0)),
        ("digests of another length", cut(4, 33)),
        ("digests that are too short", cut(4, 8)),
        ("unknown rule", cut(5, 3)),
        ("LZMA", Said { compression: 1, ..good.clone() }),
    ] {
        assert!(matches!(said.read(), Err(HeaderError::Form(_))), "{what}");
    }
    let header = good.header();
    let archive = good.archive(&header);
    assert!(Dictionary::read(&header, &archive, 121).is_err(), "another payload's");
    let short = Archive { size: archive.size - 1, ..archive };
    assert!(Dictionary::read(&header, &short, 120).is_err(), "a chunk outside of the archive");
}

proptest! {
    /// Does: breaks a header in any way, and signs it. Asserts: it is read or refused, and one that is read makes a
    /// payload of its size.
    #[test]
    fn no_header_breaks_its_reader(
        chunks in prop::collection::vec((1..60u32, 60..90u32), 1..8),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let order: Vec<u32> = (0..chunks.len() as u32).chain(0..chunks.len() as u32).collect();
        let said = Said::new(&chunks, &order);
        let mut header = said.header();
        for (at, value) in changes {
            let at = at.index(header.len());
            header[at] = value;
        }
        if let Some(cut) = cut {
            header.truncate(cut.index(header.len()));
        }
        let archive = said.archive(&header);
        if let Ok(dictionary) = Dictionary::read(&header, &archive, said.size()) {
            let last = dictionary.pieces().last().map_or(0, |(index, at)| at + u64::from(dictionary.entries()[index].size));
            prop_assert_eq!(last, said.size());
            for (index, entry) in dictionary.entries().iter().enumerate() {
                prop_assert!(entry.at >= archive.header_size && entry.at + u64::from(entry.stored) <= archive.size);
                prop_assert!(dictionary.find(dictionary.hash(index)).is_some());
            }
        }
    }
}
