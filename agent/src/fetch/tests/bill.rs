//! What downloads cost, and what they may.

use fleetwave_agent_core::{Event, FetchError};

use super::kit::{Device, answer, bytes, failure, release, says};
use crate::fetch::unix_now;

const SIZE: usize = 100_000;

fn whole(payload: &[u8]) -> Vec<u8> {
    answer(&format!("200 OK\ncontent-length: {}", payload.len()), payload)
}

#[tokio::test]
async fn an_update_above_a_cap_is_refused_before_anything_is_asked_for() {
    let (device, payload) = (Device::new(), bytes(SIZE));
    let release = release(&payload);
    let (link, requests) = says(vec![whole(&payload)]);
    for (limits, error) in [
        ("per_update = '90 kB'", FetchError::OverUpdateCap),
        ("per_window = '90 kB'", FetchError::OverWindowCap),
    ] {
        let fetcher = device.fetcher("", limits);
        assert_eq!(failure(device.fetch(&fetcher, &link, &release).await), (error, 0));
    }
    assert!(requests.try_recv().is_err());
}

#[tokio::test]
async fn tries_add_up_and_the_one_that_would_exceed_the_cap_does_not_begin() {
    let (device, payload) = (Device::new(), bytes(SIZE));
    let release = release(&payload);
    let fetcher = device.fetcher("", "per_update = '150 kB'");
    // A server without ranges that breaks off: every try costs all that was sent before.
    let broken = answer(&format!("200 OK\ncontent-length: {SIZE}"), &payload[..60_000]);
    let (link, requests) = says(vec![broken, whole(&payload)]);
    assert_eq!(failure(device.fetch(&fetcher, &link, &release).await), (FetchError::Interrupted, 60_000));
    assert!(requests.recv().is_ok());
    let spent = fetcher.ledger().spent(&release).bytes;
    assert!((60_000..61_000).contains(&spent), "{spent}");
    // Its answer would be all of it again, which it does not say before it is asked.
    assert_eq!(failure(device.fetch(&fetcher, &link, &release).await), (FetchError::OverUpdateCap, 60_000));
    let spent = fetcher.ledger().spent(&release).bytes;
    assert!(spent < 150_000, "{spent}");
    fetcher.ledger().ended(&release);
    assert_eq!(fetcher.ledger().spent(&release).bytes, 0);
}

#[tokio::test]
async fn a_download_that_nobody_waits_for_any_more_is_settled_all_the_same() {
    let (device, payload) = (Device::new(), bytes(SIZE));
    let release = release(&payload);
    let fetcher = device.fetcher("", "per_window = '10 MB'");
    let (link, _requests) =
        says(vec![answer(&format!("200 OK\ncontent-length: {SIZE}"), &payload[..50_000]), whole(&payload)]);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let silent = format!("http://{}/fw-2", listener.local_addr().expect("an address"));
    {
        let mut fetch = std::pin::pin!(device.fetch(&fetcher, &silent, &release));
        let reserved = async {
            while fetcher.ledger().counts(unix_now()).bytes == 0 {
                tokio::time::sleep(std::time::Duration::from_millis(2)).await;
            }
        };
        tokio::select! {
            _ = &mut fetch => panic!("nobody answers"),
            () = reserved => {}
        }
    }
    // The next try begins when the one before has come to its end, and counts right.
    assert_eq!(failure(device.fetch(&fetcher, &link, &release).await).1, 50_000);
    assert_eq!(device.fetch(&fetcher, &link, &release).await, Event::Fetched);
    let counts = fetcher.ledger().counts(unix_now());
    assert!((150_000..152_000).contains(&counts.bytes), "{counts:?}");
}
