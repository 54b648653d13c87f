//! What the fuzz targets reach of the crate.

use bytes::BytesMut;
use rumqttc::mqttbytes::v4::Packet;

use crate::auth::Claim;
use crate::codec;

pub use crate::amqp::fuzz_amqp as amqp;

/// Reads all packets of a client, whole and byte by byte, and what its CONNECT claims.
///
/// # Panics
/// If it makes a difference in what pieces the bytes come, or a packet is read and nothing is taken.
pub fn packets(bytes: &[u8], connected: bool) {
    let whole = read_all(&mut BytesMut::from(bytes), connected);
    let mut pieces = Vec::new();
    let mut input = BytesMut::new();
    for byte in bytes {
        input.extend_from_slice(&[*byte]);
        let more = read_all(&mut input, connected || !pieces.is_empty());
        let ended = more.last().is_some_and(|read| read.starts_with("fault"));
        pieces.extend(more);
        if ended {
            break;
        }
    }
    assert_eq!(whole, pieces);
}

fn read_all(input: &mut BytesMut, mut connected: bool) -> Vec<String> {
    let mut all = Vec::new();
    loop {
        let before = input.len();
        match codec::read(input, connected) {
            Ok(Some(packet)) => {
                assert!(input.len() < before, "a packet that was read leaves the input");
                connected = true;
                if let Packet::Connect(connect) = &packet
                    && let Ok(claim) = Claim::read(connect)
                {
                    assert!(connect.login.is_some() && claim.id == connect.client_id);
                }
                all.push(format!("{packet:?}"));
            }
            Ok(None) => return all,
            Err(fault) => {
                all.push(format!("fault: {fault}"));
                return all;
            }
        }
    }
}
