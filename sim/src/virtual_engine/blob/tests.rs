use proptest::prelude::*;

use super::*;

fn fetch(at: u64, device: u16, group: u16, bytes: u64) -> Request {
    let what =
        What::Fetch { part: Part::Payload, group, generation: 1, bytes, latency: 0, draw: u64::from(device) };
    Request { at, from: Address { shard: 0, device }, what }
}

fn stop(at: u64, device: u16) -> Request {
    Request {
        at,
        from: Address { shard: 0, device },
        what: What::Stop { generation: 1, wanted: true, notices: 0 },
    }
}

/// Runs a store to its end: (device, time, kind, bytes).
fn run(mut store: Store, requests: &[Request]) -> Vec<(u16, u64, Kind, u64)> {
    for &request in requests {
        store.submit(request);
    }
    let mut out = Vec::new();
    while let Some(next) = store.next() {
        store.advance(next + 1000, &mut out);
    }
    out.iter().map(|(_, event)| (event.device, event.at, event.kind, whole(event))).collect()
}

const MB: f64 = 1e6;

#[test]
fn downloads_share_the_bandwidth_evenly() {
    // 1 byte a microsecond in all. The first is alone for 500, then shares.
    let store = Store::new(MB, 0, &[f64::INFINITY], &[2]);
    let ends = run(store, &[fetch(0, 0, 0, 1000), fetch(500, 1, 0, 1000)]);
    assert_eq!(ends, [(0, 1500, Kind::Fetched, 1000), (1, 2000, Kind::Fetched, 1000)]);
}

#[test]
fn what_a_slow_link_does_not_take_goes_to_the_others() {
    let store = Store::new(MB, 0, &[0.25 * MB, f64::INFINITY], &[2]);
    let ends = run(store, &[fetch(0, 0, 0, 250), fetch(0, 1, 1, 750)]);
    assert_eq!(ends, [(0, 1000, Kind::Fetched, 250), (1, 1000, Kind::Fetched, 750)]);
}

#[test]
fn a_limit_of_one_at_once_makes_a_queue() {
    let store = Store::new(MB, 1, &[f64::INFINITY], &[3]);
    let ends = run(store, &[fetch(0, 0, 0, 100), fetch(1, 1, 0, 100), fetch(2, 2, 0, 100), stop(50, 1)]);
    assert_eq!(
        ends,
        [(1, 50, Kind::FetchCut, 0), (0, 100, Kind::Fetched, 100), (2, 200, Kind::Fetched, 100)]
    );
}

#[test]
fn a_download_that_is_stopped_says_how_far_it_came() {
    let store = Store::new(MB, 0, &[f64::INFINITY], &[2]);
    let ends = run(store, &[fetch(0, 0, 0, 1000), fetch(0, 1, 0, 1000), stop(600, 0)]);
    assert_eq!(ends, [(0, 600, Kind::FetchCut, 300), (1, 1300, Kind::Fetched, 1000)]);
}

#[test]
fn a_share_of_requests_is_refused_or_corrupted() {
    let mut store = Store::new(MB, 0, &[f64::INFINITY], &[1000]);
    store.trouble().refuse = Some((503, 0.1));
    store.trouble().corrupt = 0.3;
    let requests: Vec<Request> = (0..1000).map(|device| fetch(0, device, 0, 10)).collect();
    let ends = run(store, &requests);
    let count = |kind| ends.iter().filter(|end| end.2 == kind).count();
    assert!((70..130).contains(&count(Kind::FetchRefused)));
    assert!((150..250).contains(&count(Kind::FetchedCorrupt)));
    assert_eq!(ends.len(), 1000);
}

proptest! {
    /// Assumes any arrivals, sizes, caps and stops. Asserts that each request has one outcome, that nobody gets
    /// more than was asked for or than the link takes, and that the store never sends more than its bandwidth.
    #[test]
    fn nothing_is_lost_and_no_limit_is_broken(
        requests in prop::collection::vec((0_u64..10_000, 1_u64..5_000, 0_u16..3, any::<bool>()), 1..60),
        concurrency in 0_u32..5,
    ) {
        let caps = [0.1 * MB, 0.7 * MB, 3.0 * MB];
        let mut all = Vec::new();
        for (device, &(at, bytes, group, stopped)) in requests.iter().enumerate() {
            all.push(fetch(at, device as u16, group, bytes));
            if stopped {
                all.push(stop(at + bytes, device as u16));
            }
        }
        let ends = run(Store::new(MB, concurrency, &caps, &[requests.len()]), &all);
        let mut devices: Vec<u16> = ends.iter().map(|end| end.0).collect();
        devices.sort_unstable();
        prop_assert_eq!(devices, (0..requests.len() as u16).collect::<Vec<_>>());
        let first = requests.iter().map(|request| request.0).min().unwrap_or(0);
        let last = ends.iter().map(|end| end.1).max().unwrap_or(0);
        let sent: u64 = ends.iter().map(|end| end.3).sum();
        prop_assert!(sent as f64 <= (last - first) as f64 + requests.len() as f64, "{sent} in {}", last - first);
        for &(device, at, kind, bytes) in &ends {
            let (start, wanted, group, _) = requests[usize::from(device)];
            prop_assert!(bytes <= wanted);
            prop_assert!(kind != Kind::Fetched || bytes == wanted);
            let most = (at - start) as f64 * caps[usize::from(group)] / MB;
            prop_assert!(bytes as f64 <= most + 1.0, "{bytes} of at most {most}");
        }
    }
}
