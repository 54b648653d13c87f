//! Whatever a server may say.

use std::time::Duration;

use fleetwave_agent_core::{Event, FetchError, VerifyError};

use super::kit::{Device, answer, bytes, failure, release, says, stalls};

fn part(from: usize, to: usize, total: usize, tag: &str) -> String {
    format!(
        "206 Partial Content\ncontent-range: bytes {from}-{}/{total}\ncontent-length: {}\netag: {tag}",
        to - 1,
        to - from
    )
}

#[tokio::test]
async fn a_truncated_answer_is_gone_on_with_where_it_broke_off() {
    let (device, payload) = (Device::new(), bytes(1000));
    let (fetcher, release) = (device.fetcher("", ""), release(&payload));
    let (link, requests) = says(vec![
        answer(&part(0, 1000, 1000, "\"a\""), &payload[..300]),
        answer(&part(300, 1000, 1000, "\"a\""), &payload[300..]),
    ]);
    let (error, durable) = failure(device.fetch(&fetcher, &link, &release).await);
    assert_eq!((error, durable), (FetchError::Interrupted, 300));
    assert_eq!(device.fetch(&fetcher, &link, &release).await, Event::Fetched);
    assert_eq!(device.verify(&release).await, Event::Verified(Ok(())));
    let (first, second) = (requests.recv().expect("a request"), requests.recv().expect("a request"));
    assert!(first.contains("range: bytes=0-999\r") && !first.contains("if-range"), "{first}");
    assert!(second.contains("range: bytes=300-999\r") && second.contains("if-range: \"a\"\r"), "{second}");
    assert!(second.starts_with("get /blobs/fw-2?sig=secret "), "the grant's own link: {second}");
}

#[tokio::test]
async fn a_server_without_ranges_sends_all_again_and_what_is_here_is_not_written_twice() {
    let (device, payload) = (Device::new(), bytes(1000));
    let (fetcher, release) = (device.fetcher("", ""), release(&payload));
    let whole = answer("200 OK\ncontent-length: 1000", &payload);
    // The second answer breaks off inside of what is here already: nothing of that is lost.
    let (link, _requests) = says(vec![
        answer("200 OK\ncontent-length: 1000", &payload[..300]),
        answer("200 OK\ncontent-length: 1000", &payload[..200]),
        whole,
    ]);
    assert_eq!(failure(device.fetch(&fetcher, &link, &release).await).1, 300);
    assert_eq!(failure(device.fetch(&fetcher, &link, &release).await).1, 300);
    assert_eq!(device.fetch(&fetcher, &link, &release).await, Event::Fetched);
    assert_eq!(device.verify(&release).await, Event::Verified(Ok(())));
    assert!(device.stored() == payload);
}

#[tokio::test]
async fn a_store_that_has_less_than_was_signed_is_told_before_its_bytes_are_paid_for() {
    let (device, payload) = (Device::new(), bytes(1000));
    let (fetcher, release) = (device.fetcher("", ""), release(&payload));
    let (link, _requests) = says(vec![answer(&part(0, 900, 900, "\"a\""), &payload[..900])]);
    assert_eq!(device.fetch(&fetcher, &link, &release).await, Event::Fetched);
    assert_eq!(device.verify(&release).await, Event::Verified(Err(VerifyError::Size)));
    assert!(device.stored().is_empty());
}

#[tokio::test]
async fn bytes_that_were_not_signed_are_found_by_the_hash_on_their_way_and_by_reading_them_again() {
    let (mut device, payload) = (Device::new(), bytes(1000));
    let mut other = payload.clone();
    other[500] ^= 1;
    let (fetcher, release) = (device.fetcher("", ""), release(&payload));
    let (link, _requests) = says(vec![answer(&part(0, 1000, 1000, "\"a\""), &other)]);
    assert_eq!(device.fetch(&fetcher, &link, &release).await, Event::Fetched);
    let wrong = Event::Verified(Err(VerifyError::Digest));
    assert_eq!(device.verify(&release).await, wrong);
    device.reborn();
    assert_eq!(device.verify(&release).await, wrong);
    std::fs::write(&device.place.path, &payload).expect("written");
    assert_eq!(device.verify(&release).await, Event::Verified(Ok(())));
}

#[tokio::test]
async fn refusals_are_told_apart_and_a_busy_server_is_given_the_time_that_it_asks_for() {
    let (device, payload) = (Device::new(), bytes(10));
    let (fetcher, release) = (device.fetcher("", ""), release(&payload));
    for (head, expected) in [
        ("403 Forbidden", FetchError::Forbidden),
        ("404 Not Found", FetchError::NotFound),
        ("429 Too Many Requests\nretry-after: 7", FetchError::Busy(Duration::from_secs(7))),
        (
            "503 Service Unavailable\ndate: Sun, 06 Nov 1994 08:49:37 GMT\nretry-after: Sun, 06 Nov 1994 08:50:37 GMT",
            FetchError::Busy(Duration::from_secs(60)),
        ),
        ("500 Internal Server Error", FetchError::Server),
        ("416 Range Not Satisfiable\ncontent-range: bytes */10", FetchError::Protocol),
        ("206 Partial Content\ncontent-range: bytes 1-9/10", FetchError::Protocol),
        ("301 Moved Permanently\nlocation: gopher://elsewhere/", FetchError::Protocol),
    ] {
        let (link, _requests) = says(vec![answer(head, b"")]);
        assert_eq!(failure(device.fetch(&fetcher, &link, &release).await), (expected, 0), "{head}");
    }
}

#[tokio::test]
async fn a_server_that_falls_silent_is_left_and_what_it_sent_is_kept() {
    let (device, payload) = (Device::new(), bytes(1000));
    let (fetcher, release) = (device.fetcher("idle_timeout = '1 s'", ""), release(&payload));
    let link = stalls(answer(&part(0, 1000, 1000, "\"a\""), &payload[..300]));
    let (error, durable) = failure(device.fetch(&fetcher, &link, &release).await);
    assert_eq!((error, durable), (FetchError::Interrupted, 300));
}

#[tokio::test]
async fn a_download_that_is_asked_to_pause_keeps_what_has_come() {
    let (device, payload) = (Device::new(), bytes(1000));
    let (fetcher, release) = (device.fetcher("", ""), release(&payload));
    let link = stalls(answer(&part(0, 1000, 1000, "\"a\""), &payload[..300]));
    device.payload.pause();
    let (event, ()) = tokio::join!(device.fetch(&fetcher, &link, &release), async {
        while device.payload.position() < 300 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        device.payload.pause();
    });
    assert_eq!(failure(event), (FetchError::Stopped, 300), "only the pause in its own time counts");
}
