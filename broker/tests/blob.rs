//! The blob endpoint, as an HTTP client sees it.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use fleetwave_hub::Clock;
use fleetwave_hub::blob::{BlobControl, BlobServer, Content, Fault, FaultKind};
use fleetwave_protocol::WallTime;

struct Answer {
    status: u16,
    headers: HashMap<String, String>,
    body: Vec<u8>,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// Whether everything that was announced came.
    fn is_whole(&self) -> bool {
        self.header("content-length").and_then(|length| length.parse().ok()) == Some(self.body.len())
    }
}

/// Asks for a signed URL, with extra header lines.
fn ask(method: &str, url: &str, headers: &[&str]) -> Answer {
    let (host, path) = url.strip_prefix("http://").and_then(|rest| rest.split_once('/')).expect("a URL");
    let mut stream = TcpStream::connect(host).expect("the endpoint accepts");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("timeout");
    let extra: String = headers.iter().map(|line| format!("{line}\r\n")).collect();
    write!(stream, "{method} /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{extra}\r\n")
        .expect("sent");
    let mut bytes = Vec::new();
    // A connection that is cut is the end of the answer.
    let _ = stream.read_to_end(&mut bytes);
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n").expect("a head");
    let head = String::from_utf8(bytes[..end].to_vec()).expect("text");
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).expect("a status line");
    let headers = lines.filter_map(|line| line.split_once(": "));
    Answer {
        status: status.parse().expect("a number"),
        headers: headers.map(|(name, value)| (name.to_lowercase(), value.to_owned())).collect(),
        body: bytes[end + 4..].to_vec(),
    }
}

const DATA: &[u8] = b"0123456789";

fn endpoint() -> (BlobServer, BlobControl, Clock) {
    let clock = Clock::new();
    let server = BlobServer::builder().clock(clock.clone()).secret("test").start().expect("a free port");
    let control = server.control();
    control.put("fw/2", Content::Bytes(DATA.into())).expect("a good name");
    (server, control, clock)
}

fn soon(clock: &Clock) -> WallTime {
    WallTime::from_unix_millis(clock.now().wall.as_unix_millis() + 60_000)
}

#[test]
fn a_blob_comes_whole_or_in_ranges() {
    let (_server, control, clock) = endpoint();
    let url = control.sign_url("fw/2", soon(&clock));
    let whole = ask("GET", &url, &[]);
    assert_eq!((whole.status, &whole.body[..]), (200, DATA));
    assert_eq!(whole.header("accept-ranges"), Some("bytes"));
    let etag = whole.header("etag").expect("an entity tag").to_owned();
    let tail = ask("GET", &url, &["Range: bytes=4-", &format!("If-Range: {etag}")]);
    assert_eq!((tail.status, &tail.body[..]), (206, &b"456789"[..]));
    assert_eq!(tail.header("content-range"), Some("bytes 4-9/10"));
    let part = ask("GET", &url, &["Range: bytes=2-3"]);
    assert_eq!((part.status, &part.body[..]), (206, &b"23"[..]));
    let behind = ask("GET", &url, &["Range: bytes=10-"]);
    assert_eq!((behind.status, behind.header("content-range")), (416, Some("bytes */10")));
    let changed = ask("GET", &url, &["Range: bytes=4-", "If-Range: \"other\""]);
    assert_eq!((changed.status, &changed.body[..]), (200, DATA), "another version is sent whole");
    let head = ask("HEAD", &url, &[]);
    assert_eq!((head.status, head.header("content-length"), head.body.len()), (200, Some("10"), 0));
    assert_eq!(ask("PUT", &url, &["Content-Length: 0"]).status, 405);
    assert_eq!(control.counters().bytes, 10 + 6 + 2 + 10);
}

#[test]
fn only_a_good_signature_in_time_opens_one_blob() {
    let (_server, control, clock) = endpoint();
    control.put("other", Content::Bytes(DATA.into())).expect("a good name");
    let url = control.sign_url("fw/2", soon(&clock));
    for bad in [
        url.replace("fw/2", "other"),
        url.replace("sp=r", "sp=w"),
        url.replace("sig=", "sig=A"),
        url.split('?').next().expect("a path").to_owned(),
    ] {
        let refused = ask("GET", &bad, &[]);
        assert_eq!(refused.status, 403, "{bad}");
        assert_eq!(refused.header("x-ms-error-code"), Some("AuthenticationFailed"));
    }
    assert_eq!(ask("GET", &url, &[]).status, 200);
    clock.advance(Duration::from_secs(61));
    assert_eq!(ask("GET", &url, &[]).status, 403, "expired");
    assert_eq!(control.counters().refused, 5);
    assert!(control.remove("other") && !control.remove("other"));
    assert_eq!(ask("GET", &control.sign_url("other", soon(&clock)), &[]).status, 404);
}

#[test]
fn a_generated_blob_of_any_size_occupies_nothing_and_has_one_digest() {
    let (_server, control, clock) = endpoint();
    let size = 8 << 40;
    control.put("huge", Content::Generated { seed: 7, size }).expect("a good name");
    let url = control.sign_url("huge", soon(&clock));
    let end = ask("GET", &url, &[&format!("Range: bytes={}-", size - 100_000)]);
    assert_eq!((end.status, end.body.len()), (206, 100_000));
    let small = Content::Generated { seed: 7, size: 300_000 };
    control.put("small", small.clone()).expect("a good name");
    let body = ask("GET", &control.sign_url("small", soon(&clock)), &[]).body;
    assert_eq!(Content::Bytes(body.into()).sha256(), small.sha256());
}

#[test]
fn faults_strike_as_asked_and_are_counted() {
    let (_server, control, clock) = endpoint();
    let url = control.sign_url("fw/2", soon(&clock));
    let always = |kind| [Fault { kind, share: 1.0 }];
    for code in [403, 404, 429, 503] {
        control.set_faults(&always(FaultKind::Status { code, retry_after: Some(3) }));
        let answer = ask("GET", &url, &[]);
        assert_eq!((answer.status, answer.header("retry-after")), (code, Some("3")));
    }
    control.set_faults(&always(FaultKind::Truncated));
    let cut = ask("GET", &url, &[]);
    assert_eq!((cut.status, cut.header("content-length")), (200, Some("10")));
    assert!(!cut.is_whole() && DATA.starts_with(&cut.body));
    control.set_faults(&always(FaultKind::Corrupted));
    let corrupt = ask("GET", &url, &[]);
    assert!(corrupt.is_whole() && corrupt.body != DATA && corrupt.body[1..] == DATA[1..]);
    assert_eq!(control.counters().faults, 6);
    control.set_faults(&[]);
    assert_eq!(ask("GET", &url, &[]).body, DATA);
}

#[test]
fn downloads_share_a_limited_bandwidth_and_the_slow_fault_has_its_own() {
    let clock = Clock::new();
    let server = BlobServer::builder().clock(clock.clone()).bandwidth(1 << 30).start().expect("a free port");
    let control = server.control();
    let content = Content::Generated { seed: 1, size: 200_000 };
    control.put("fw", content.clone()).expect("a good name");
    let url = control.sign_url("fw", soon(&clock));
    for faults in [&[][..], &[Fault { kind: FaultKind::Slow { bytes_per_second: 4 << 20 }, share: 1.0 }]] {
        control.set_faults(faults);
        let body = ask("GET", &url, &[]).body;
        assert_eq!(Content::Bytes(body.into()).sha256(), content.sha256());
    }
}

#[test]
fn too_many_downloads_at_once_are_turned_away_and_later_served() {
    let clock = Clock::new();
    let server = BlobServer::builder().clock(clock.clone()).max_concurrent(1).start().expect("a free port");
    let control = server.control();
    control.put("huge", Content::Generated { seed: 1, size: 1 << 40 }).expect("a good name");
    control.put("fw", Content::Bytes(DATA.into())).expect("a good name");
    let huge = control.sign_url("huge", soon(&clock));
    let (host, path) = huge.strip_prefix("http://").and_then(|rest| rest.split_once('/')).expect("a URL");
    let mut hog = TcpStream::connect(host).expect("the endpoint accepts");
    write!(hog, "GET /{path} HTTP/1.1\r\nHost: {host}\r\n\r\n").expect("sent");
    hog.read_exact(&mut [0; 100]).expect("the download has begun");
    let url = control.sign_url("fw", soon(&clock));
    let busy = ask("GET", &url, &[]);
    assert_eq!((busy.status, busy.header("retry-after")), (503, Some("1")));
    drop(hog);
    while control.counters().in_flight > 0 {
        std::thread::yield_now();
    }
    assert_eq!(ask("GET", &url, &[]).body, DATA);
    let counters = control.counters();
    assert_eq!((counters.busy, counters.peak_in_flight), (1, 1));
}

#[test]
fn names_that_no_url_carries_are_refused_and_a_taken_port_is_a_clear_error() {
    let (_server, control, _) = endpoint();
    for name in ["", "a b", "ä", "a?b", "a%20b"] {
        assert!(control.put(name, Content::Bytes(DATA.into())).is_err(), "{name}");
    }
    let Err(error) = BlobServer::builder().listen(control.address()).start() else {
        panic!("one port, twice")
    };
    assert!(error.to_string().contains("another process uses this port"), "{error}");
}
