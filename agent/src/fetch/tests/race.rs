//! How fast a download is beside `curl`, which neither hashes nor makes anything durable, and beside the same work done
//! by a shell. Not a test: run it by
//! `cargo test --release -p fleetwave-agent --lib fetch::tests::race -- --ignored --nocapture`.

use std::process::Command;
use std::time::{Duration, Instant};

use fleetwave_agent_core::Event;

use super::kit::{Device, Nginx, bytes, have, release};

const SIZE: usize = 256 << 20;
const ROUNDS: usize = 7;

#[tokio::test]
#[ignore = "a measurement"]
async fn beside_curl() {
    if !have("nginx") || !have("curl") {
        return;
    }
    let device = Device::new();
    let nginx = Nginx::start(device.dir.path(), "sendfile on;");
    let payload = bytes(SIZE);
    nginx.put(&payload);
    let release = release(&payload);
    drop(payload);
    // Resets the peak to what there is now.
    std::fs::write("/proc/self/clear_refs", "5").expect("Linux");
    let before = peak();
    let fetcher = device.fetcher(&nginx.ca(), "");
    let file = device.dir.path().join("curl");
    for (what, link) in [("TLS", nginx.link("payload")), ("plain", format!("http://{}/payload", nginx.plain))]
    {
        let (mut ours, mut curl, mut shell) = (Vec::new(), Vec::new(), Vec::new());
        let run = |script: &str| {
            let _ = std::fs::remove_file(&file);
            let start = Instant::now();
            let status = Command::new("sh")
                .args(["-c", script, "sh"])
                .args([&file, &device.dir.path().join("nginx/ca.pem")])
                .arg(&link)
                .status();
            assert!(status.expect("sh runs").success());
            start.elapsed()
        };
        for _ in 0..ROUNDS {
            device.payload.discard().expect("discards");
            let _ = std::fs::remove_file(&device.place.path);
            let start = Instant::now();
            assert_eq!(device.fetch(&fetcher, &link, &release).await, Event::Fetched);
            assert_eq!(device.verify(&release).await, Event::Verified(Ok(())));
            ours.push(start.elapsed());
            curl.push(run("curl -s -o \"$1\" --cacert \"$2\" \"$3\""));
            shell.push(run(
                "curl -s --cacert \"$2\" \"$3\" | tee \"$1\" | sha256sum > /dev/null && sync -d \"$1\"",
            ));
        }
        let rate = |times: Vec<Duration>| SIZE as f64 / median(times).as_secs_f64() / 1e6;
        let (ours, curl, shell) = (rate(ours), rate(curl), rate(shell));
        println!(
            "{what}: {ours:.0} MB/s hashed, written, durable; curl {curl:.0} MB/s: {:.2}; \
             curl | tee | sha256sum, sync {shell:.0} MB/s: {:.2}",
            ours / curl,
            ours / shell
        );
    }
    println!("peak memory: {} KiB above what there was before the downloads", peak().saturating_sub(before));
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// The most memory that this process had since it was reset, in KiB.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find(|line| line.starts_with("VmHWM")).expect("a kernel that tells");
    line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number")
}
