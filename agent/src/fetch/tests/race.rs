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
    let server = format!("/proc/{}", nginx.pid());
    for (what, link) in [("TLS", nginx.link("payload")), ("plain", format!("http://{}/payload", nginx.plain))]
    {
        let (mut ours, mut curl, mut shell) = (Vec::new(), Vec::new(), Vec::new());
        // Of a processor: who receives, all of the agent, nginx beside it; curl, nginx beside it.
        let used = || [busy("/proc/thread-self"), all_busy(), busy(&server), children_busy()];
        let mut parts = [0.0; 5];
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
            let (before, start) = (used(), Instant::now());
            assert_eq!(device.fetch(&fetcher, &link, &release).await, Event::Fetched);
            assert_eq!(device.verify(&release).await, Event::Verified(Ok(())));
            ours.push(start.elapsed());
            let between = used();
            curl.push(run("curl -s -o \"$1\" --cacert \"$2\" \"$3\""));
            let after = used();
            for part in 0..3 {
                parts[part] += between[part] - before[part];
            }
            parts[3] += after[3] - between[3];
            parts[4] += after[2] - between[2];
            shell.push(run(
                "curl -s --cacert \"$2\" \"$3\" | tee \"$1\" | sha256sum > /dev/null && sync -d \"$1\"",
            ));
        }
        let rate = |times: Vec<Duration>| SIZE as f64 / median(times).as_secs_f64() / 1e6;
        let best = |times: &[Duration]| {
            times.iter().min().map_or(0.0, |time| SIZE as f64 / time.as_secs_f64() / 1e6)
        };
        let (best_ours, best_curl) = (best(&ours), best(&curl));
        let (ours, curl, shell) = (rate(ours), rate(curl), rate(shell));
        println!(
            "{what}: {ours:.0} MB/s hashed, written, durable; curl {curl:.0} MB/s: {:.2}; \
             curl | tee | sha256sum, sync {shell:.0} MB/s: {:.2}; \
             best rounds {best_ours:.0}, {best_curl:.0} MB/s: {:.2}",
            ours / curl,
            ours / shell,
            best_ours / best_curl
        );
        let [receiver, agent, beside_agent, curl, beside_curl] = parts.map(|part| part / ROUNDS as f64);
        println!(
            "{what}, seconds of a processor: agent {agent:.3} ({receiver:.3} of it receive), nginx {beside_agent:.3}; \
             curl {curl:.3}, nginx {beside_curl:.3}"
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

/// Seconds of a processor that the thread with this directory has had.
fn busy(thread: &str) -> f64 {
    let stat = std::fs::read_to_string(format!("{thread}/schedstat")).unwrap_or_default();
    stat.split_whitespace().next().and_then(|time| time.parse::<f64>().ok()).unwrap_or_default() / 1e9
}

/// … and all of this process.
fn all_busy() -> f64 {
    let threads = std::fs::read_dir("/proc/self/task").expect("Linux");
    threads.flatten().map(|thread| busy(&thread.path().display().to_string())).sum()
}

/// … and the processes that it has waited for.
fn children_busy() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("Linux");
    let fields = stat.rsplit(") ").next().into_iter().flat_map(str::split_whitespace);
    fields.skip(13).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / 100.0
}
