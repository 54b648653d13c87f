//! Where the bytes go, and what is known of them after a crash.

use std::fs;

use fleetwave_agent_core::{Event, FetchError, StorageError};

use super::kit::{Device, answer, bytes, failure, release, says};
use crate::install::Place;

fn whole(payload: &[u8]) -> Vec<u8> {
    answer(&format!("200 OK\ncontent-length: {}", payload.len()), payload)
}

#[tokio::test]
async fn what_the_record_does_not_call_durable_is_not_taken_for_it() {
    let (mut device, payload) = (Device::new(), bytes(1000));
    let (fetcher, release) = (device.fetcher("", ""), release(&payload));
    let (link, _requests) = says(vec![answer("200 OK\ncontent-length: 1000", &payload[..300])]);
    assert_eq!(failure(device.fetch(&fetcher, &link, &release).await).1, 300);
    // The file became longer, but nobody said that it is on disk.
    fs::write(&device.place.path, [&payload[..300], &[0; 200]].concat()).expect("written");
    device.reborn();
    assert_eq!(device.payload.durable(&release, &device.place), 300);
    // It became shorter than what was said: nothing of it counts.
    fs::write(&device.place.path, &payload[..200]).expect("written");
    assert_eq!(device.payload.durable(&release, &device.place), 0);
    // It was another release's, or lies elsewhere.
    fs::write(&device.place.path, &payload).expect("written");
    assert_eq!(device.payload.durable(&super::kit::release(b"other"), &device.place), 0);
    let elsewhere = Place { path: device.dir.path().join("elsewhere"), capacity: None };
    assert_eq!(device.payload.durable(&release, &elsewhere), 0);
    device.payload.discard().expect("discards");
    device.reborn();
    assert_eq!(device.payload.durable(&release, &device.place), 0);
}

#[tokio::test]
async fn what_was_there_and_was_changed_by_somebody_is_found_by_the_comparison() {
    let (mut device, payload) = (Device::new(), bytes(1000));
    let (fetcher, release) = (device.fetcher("", ""), release(&payload));
    let rest = "206 Partial Content\ncontent-range: bytes 300-999/1000\ncontent-length: 700";
    let (link, _requests) =
        says(vec![answer("200 OK\ncontent-length: 1000", &payload[..300]), answer(rest, &payload[300..])]);
    assert_eq!(failure(device.fetch(&fetcher, &link, &release).await).1, 300);
    fs::write(&device.place.path, [0; 300]).expect("written");
    device.reborn();
    assert_eq!(device.fetch(&fetcher, &link, &release).await, Event::Fetched);
    let verified = device.verify(&release).await;
    assert_eq!(verified, Event::Verified(Err(fleetwave_agent_core::VerifyError::Digest)));
}

#[tokio::test]
async fn a_place_that_is_too_small_or_missing_is_told_before_anything_is_asked_for() {
    let (mut device, payload) = (Device::new(), bytes(1000));
    let (fetcher, release) = (device.fetcher("", ""), release(&payload));
    let (link, requests) = says(vec![whole(&payload)]);
    device.place.capacity = Some(999);
    let (error, _) = failure(device.fetch(&fetcher, &link, &release).await);
    assert_eq!(error, FetchError::Storage(StorageError::NoSpace));
    device.place = Place { path: device.dir.path().join("no/such/place"), capacity: None };
    let (error, _) = failure(device.fetch(&fetcher, &link, &release).await);
    assert_eq!(error, FetchError::Storage(StorageError::Failed));
    assert!(requests.try_recv().is_err());
}

#[tokio::test]
async fn a_disk_that_is_full_stops_the_download_with_its_own_error() {
    // The device that is always full.
    let (mut device, payload) = (Device::new(), bytes(1000));
    let (fetcher, release) = (device.fetcher("", ""), release(&payload));
    let (link, _requests) = says(vec![whole(&payload)]);
    device.place = Place { path: "/dev/full".into(), capacity: None };
    let (error, durable) = failure(device.fetch(&fetcher, &link, &release).await);
    assert_eq!((error, durable), (FetchError::Storage(StorageError::NoSpace), 0));
}

#[tokio::test]
async fn what_a_disk_does_not_make_durable_is_not_called_so() {
    // The device that takes all bytes, and cannot be synchronized.
    let (mut device, payload) = (Device::new(), bytes(1000));
    let (fetcher, release) = (device.fetcher("", ""), release(&payload));
    let (link, _requests) = says(vec![whole(&payload)]);
    device.place = Place { path: "/dev/null".into(), capacity: None };
    let (error, durable) = failure(device.fetch(&fetcher, &link, &release).await);
    assert_eq!((error, durable), (FetchError::Storage(StorageError::Failed), 0));
    assert_eq!(device.payload.durable(&release, &device.place), 0);
}

#[tokio::test]
async fn what_is_durable_of_bytes_that_come_fast_is_there_after_a_crash_in_their_middle() {
    // More than is taken over before something is durable.
    let (mut device, payload) = (Device::new(), bytes(1 << 20).repeat(100));
    let release = release(&payload);
    let source = device.dir.path().join("source");
    fs::write(&source, &payload).expect("written");
    {
        let copy = device.payload.copy((None, source.clone()), device.place.clone(), release.clone(), 0);
        let much = async {
            while device.payload.durable(&release, &device.place) == 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            biased;
            () = much => {}
            _ = copy => panic!("nothing was durable before its end"),
        }
    }
    device.reborn();
    let durable = device.payload.durable(&release, &device.place);
    assert!((1..100 << 20).contains(&durable), "{durable}");
    let length = usize::try_from(durable).expect("it fits");
    assert!(device.stored()[..length] == payload[..length]);
    // The rest is behind it, and the whole is what was signed.
    let copy = device.payload.copy((None, source), device.place.clone(), release.clone(), durable);
    assert_eq!(copy.await, (Event::Fetched, None));
    assert_eq!(device.verify(&release).await, Event::Verified(Ok(())));
    assert!(device.stored() == payload);
}
