//! Against servers that nobody here wrote.

use std::process::{Command, Stdio};
use std::rc::Rc;
use std::time::Duration;

use fleetwave_agent_core::{Event, FetchError, Release};

use super::super::Fetcher;
use super::kit::{Device, Nginx, bytes, failure, free, have, release, until};

const SIZE: usize = 1_500_000;

#[tokio::test]
async fn a_payload_comes_over_tls_and_is_what_was_signed() {
    if !have("nginx") {
        return;
    }
    let (device, payload) = (Device::new(), bytes(SIZE));
    let nginx = Nginx::start(device.dir.path(), "");
    nginx.put(&payload);
    let (fetcher, release) = (device.fetcher(&nginx.ca(), ""), release(&payload));
    assert_eq!(device.fetch(&fetcher, &nginx.link("payload"), &release).await, Event::Fetched);
    assert_eq!(device.verify(&release).await, Event::Verified(Ok(())));
    assert!(device.stored() == payload);
    let counts = fetcher.ledger().counts(super::super::unix_now());
    assert!((SIZE as u64..SIZE as u64 + 20_000).contains(&counts.bytes), "{counts:?}");
    assert_eq!(counts.requests, 1);
}

#[tokio::test]
async fn a_server_whose_certificate_nobody_here_trusts_gets_no_request() {
    if !have("nginx") {
        return;
    }
    let (device, payload) = (Device::new(), bytes(10));
    let nginx = Nginx::start(device.dir.path(), "");
    nginx.put(&payload);
    let other = Device::new();
    let stranger = Nginx::start(other.dir.path(), "");
    let (fetcher, release) = (device.fetcher(&stranger.ca(), ""), release(&payload));
    let (error, durable) = failure(device.fetch(&fetcher, &nginx.link("payload"), &release).await);
    assert_eq!((error, durable), (FetchError::Interrupted, 0));
    assert!(nginx.requests().is_empty(), "{:?}", nginx.requests());
}

/// A download whose server dies when more than half of it has come.
async fn dies_in_the_middle(
    device: &Device,
    fetcher: &Rc<Fetcher>,
    nginx: &mut Nginx,
    release: &Release,
) -> Event {
    let link = nginx.link("payload");
    let (event, ()) = tokio::join!(device.fetch(fetcher, &link, release), async {
        while device.payload.position() < 400_000 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        nginx.kill();
    });
    event
}

#[tokio::test]
async fn a_server_that_dies_in_the_middle_costs_only_what_is_missing_even_if_the_agent_dies_too() {
    if !have("nginx") {
        return;
    }
    let (mut device, payload) = (Device::new(), bytes(SIZE));
    let mut nginx = Nginx::start(device.dir.path(), "limit_rate 1m;");
    nginx.put(&payload);
    let (fetcher, release) = (device.fetcher(&nginx.ca(), ""), release(&payload));
    let link = nginx.link("payload");
    let (error, durable) = failure(dies_in_the_middle(&device, &fetcher, &mut nginx, &release).await);
    assert_eq!(error, FetchError::Interrupted);
    assert!((400_000..SIZE as u64).contains(&durable), "{durable}");

    nginx.again();
    device.reborn();
    assert_eq!(device.payload.durable(&release, &device.place), durable);
    assert_eq!(device.fetch(&fetcher, &link, &release).await, Event::Fetched);
    assert_eq!(device.verify(&release).await, Event::Verified(Ok(())));
    nginx.kill();
    let requests = nginx.requests();
    let (range, tag) = (format!("206 bytes={durable}-{} ", SIZE - 1), "\\x22");
    let asked = |line: &String| line.starts_with(&range) && line.ends_with(tag);
    assert!(requests.last().is_some_and(asked), "with If-Range: {requests:?}");
}

#[tokio::test]
async fn a_payload_that_changed_between_two_tries_begins_again() {
    if !have("nginx") {
        return;
    }
    let (device, old, new) = (Device::new(), bytes(SIZE), bytes(SIZE + 1)[1..].to_vec());
    let mut nginx = Nginx::start(device.dir.path(), "limit_rate 1m;");
    nginx.put(&old);
    // The release is the new one from the start: its old bytes are a mistake of the server's operator.
    let (fetcher, release) = (device.fetcher(&nginx.ca(), ""), release(&new));
    let link = nginx.link("payload");
    assert!(failure(dies_in_the_middle(&device, &fetcher, &mut nginx, &release).await).1 > 0);
    // Another time of change, and with it another entity tag.
    std::thread::sleep(Duration::from_millis(1100));
    nginx.put(&new);
    nginx.again();
    assert_eq!(device.fetch(&fetcher, &link, &release).await, Event::Fetched);
    assert_eq!(device.verify(&release).await, Event::Verified(Ok(())));
    nginx.kill();
    assert!(nginx.requests().last().is_some_and(|last| last.starts_with("200")), "{:?}", nginx.requests());
}

#[tokio::test]
async fn redirections_are_followed_but_not_in_circles_and_not_away_from_tls() {
    if !have("nginx") {
        return;
    }
    let (device, payload) = (Device::new(), bytes(1000));
    let nginx = Nginx::start(device.dir.path(), "");
    nginx.put(&payload);
    let (fetcher, release) = (device.fetcher(&nginx.ca(), ""), release(&payload));
    for path in ["around", "away"] {
        let (error, _) = failure(device.fetch(&fetcher, &nginx.link(path), &release).await);
        assert_eq!(error, FetchError::Protocol, "{path}");
    }
    assert_eq!(device.fetch(&fetcher, &nginx.link("moved"), &release).await, Event::Fetched);
    assert!(device.stored() == payload);
}

#[tokio::test]
async fn the_devices_rate_slows_a_fast_server_down() {
    if !have("nginx") {
        return;
    }
    let (device, payload) = (Device::new(), bytes(600_000));
    let nginx = Nginx::start(device.dir.path(), "");
    nginx.put(&payload);
    let limited = format!("rate = '200 kB/s'\n{}", nginx.ca());
    let (fetcher, release) = (device.fetcher(&limited, ""), release(&payload));
    let link = nginx.link("payload");
    let mut fetch = std::pin::pin!(device.fetch(&fetcher, &link, &release));
    // Not how long it took, but that nothing came too early: at any time no more than the rate allows.
    let start = tokio::time::Instant::now();
    let mut ticks = tokio::time::interval(Duration::from_millis(50));
    let event = loop {
        tokio::select! {
            event = &mut fetch => break event,
            _ = ticks.tick() => {
                let most = 200_000.0 * (start.elapsed().as_secs_f64() + 0.3);
                assert!((device.payload.position() as f64) < most, "{} bytes", device.payload.position());
            }
        }
    };
    assert_eq!(event, Event::Fetched);
}

#[tokio::test]
async fn a_proxy_is_used_for_links_with_tls_and_without_and_not_where_it_must_not_be() {
    if !have("nginx") || !have("tinyproxy") {
        return;
    }
    let (device, payload) = (Device::new(), bytes(100_000));
    let nginx = Nginx::start(device.dir.path(), "");
    nginx.put(&payload);
    let port = free().port();
    let (conf, log) = (device.dir.path().join("proxy.conf"), device.dir.path().join("proxy.log"));
    let lines = format!(
        "Port {port}\nListen 127.0.0.1\nTimeout 60\nLogFile \"{}\"\nLogLevel Info\nMaxClients 10\n\
         BasicAuth user secret\n",
        log.display()
    );
    std::fs::write(&conf, lines).expect("written");
    let mut proxy = Command::new("tinyproxy")
        .args(["-d", "-c"])
        .arg(&conf)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("tinyproxy starts");
    until("the proxy listens", || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
    let release = release(&payload);
    let log = || std::fs::read_to_string(&log).unwrap_or_default();
    let plain = format!("http://127.0.0.1:{}/payload?sig=secret", nginx.plain.port());
    let through = format!("proxy = 'http://user:secret@127.0.0.1:{port}'\n{}", nginx.ca());

    let fetcher = device.fetcher(&format!("no_proxy = ['localhost', '127.0.0.1']\n{through}"), "");
    assert_eq!(device.fetch(&fetcher, &nginx.link("payload"), &release).await, Event::Fetched);
    assert!(!log().contains("CONNECT localhost"), "{}", log());

    let fetcher = device.fetcher(&through, "");
    for (link, seen) in [(nginx.link("payload"), "CONNECT localhost"), (plain, "GET http://127.0.0.1")] {
        device.payload.discard().expect("discards");
        assert_eq!(device.fetch(&fetcher, &link, &release).await, Event::Fetched, "{seen}");
        assert_eq!(device.verify(&release).await, Event::Verified(Ok(())));
        assert!(log().contains(seen), "{}", log());
    }
    let stranger = through.replace("user:secret", "user:guess");
    device.payload.discard().expect("discards");
    let (error, _) =
        failure(device.fetch(&device.fetcher(&stranger, ""), &nginx.link("payload"), &release).await);
    assert_eq!(error, FetchError::Interrupted);
    proxy.kill().expect("it still runs");
    proxy.wait().expect("a child of ours");
}
