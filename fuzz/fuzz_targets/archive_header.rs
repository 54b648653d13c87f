//! The header of any archive, signed by whoever made it so, is read or refused; one that is read lies within its archive
//! and makes a payload of its size.
#![no_main]

use fleetwave_agent_core::Archive;
use fleetwave_agent_core::delta::{Dictionary, Prices, plan};
use libfuzzer_sys::fuzz_target;
use sha2::{Digest as _, Sha256};

/// Behind the header.
const CHUNKS: u64 = 1 << 20;

fuzz_target!(|dictionary: &[u8]| {
    let mut header = b"BITA1\0".to_vec();
    header.extend((dictionary.len() as u64).to_le_bytes());
    header.extend(dictionary);
    header.extend((header.len() as u64 + 72).to_le_bytes());
    header.extend([0; 64]);
    let header_size = header.len() as u64;
    let header_digest = Sha256::digest(&header).into();
    let archive = Archive { size: header_size + CHUNKS, header_size, header_digest };
    // The size is in it, too: as a field of its own it would never be found.
    for size in sizes(dictionary) {
        let Ok(read) = Dictionary::read(&header, &archive, size) else { continue };
        let end = read.pieces().last().map_or(0, |(index, at)| at + u64::from(read.entries()[index].size));
        assert_eq!(end, size);
        for (index, entry) in read.entries().iter().enumerate() {
            assert!(entry.at >= header_size && entry.at + u64::from(entry.stored) <= archive.size);
            let found = read.find(read.hash(index)).expect("it is there");
            assert_eq!(read.hash(found), read.hash(index));
        }
        let missing = read.missing(size / 2, |index| index % 3 == 0);
        let plan = plan(&archive, missing, |_| false, u64::MAX / 2, &Prices::default()).expect("within it");
        assert!(plan.bytes <= CHUNKS);
    }
});

/// Numbers that stand in the input as varints behind the tag of the payload's size.
fn sizes(dictionary: &[u8]) -> impl Iterator<Item = u64> {
    let tags = dictionary.iter().enumerate().filter(|(_, byte)| **byte == 3 << 3).take(4);
    tags.map(|(at, _)| {
        let number = dictionary[at + 1..].iter().take(9).scan(false, |over, byte| {
            let taken = (!*over).then_some(u64::from(byte & 0x7f));
            *over |= byte & 0x80 == 0;
            taken
        });
        number.enumerate().fold(0, |sum, (place, bits)| sum | bits << (7 * place))
    })
}
