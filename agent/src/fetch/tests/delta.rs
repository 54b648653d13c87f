//! Payloads from chunked archives.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::sync::{Arc, Mutex};

use fleetwave_agent_core::{
    Archive, Event, FetchError, Method, Plan, Release, Releases, TrustRoot, Unsigned, VerifyError,
};
use sha2::{Digest as _, Sha256};

use super::kit::{Device, Nginx, answer, bytes, failure, have, says};
use crate::fetch::{Fetcher, Links};
use crate::install::Seed;
use crate::pack::pack;

/// A release with a payload and its archive. Who signed it is not asked here.
fn release(payload: &[u8], archive: Archive) -> Release {
    let digest = Sha256::digest(payload).into();
    let said = Unsigned { delta: Some(archive), ..Unsigned::new("fw-2", 2, payload.len() as u64, digest) };
    let mut releases = Releases::new(TrustRoot::default());
    let id = releases.intern(&said.sign(&[]));
    releases[id].clone()
}

/// What an update is about.
struct Case {
    device: Device,
    fetcher: Rc<Fetcher>,
    release: Release,
    links: Links,
    seeds: Vec<Seed>,
}

impl Case {
    /// `old` runs; `new` comes from there.
    fn new(old: &[u8], new: &[u8], archive: Archive, links: (&str, &str), download: &str) -> Self {
        let device = Device::new();
        let fetcher = device.fetcher(download, "");
        let links = fetcher.check_links(links.0, Some(links.1)).expect("good links");
        let seed = device.dir.path().join("runs");
        fs::write(&seed, old).expect("written");
        let seeds = vec![Seed { path: seed, length: u64::MAX }];
        Self { device, fetcher, release: release(new, archive), links, seeds }
    }

    fn durable(&self) -> u64 {
        self.device.payload.durable(&self.release, &self.device.place)
    }

    async fn plan(&self) -> Result<Plan, FetchError> {
        let (links, seeds) = (Some(self.links.clone()), self.seeds.clone());
        let offset = self.durable();
        self.device.payload.plan(&self.fetcher, links, self.release.clone(), offset, seeds).await
    }

    async fn fetch(&self) -> Event {
        let (links, place) = (self.links.clone(), self.device.place.clone());
        self.device.payload.fetch(&self.fetcher, links, place, self.release.clone(), self.durable()).await
    }

    async fn done(&self, payload: &[u8]) {
        assert_eq!(self.fetch().await, Event::Fetched);
        assert_eq!(self.device.verify(&self.release).await, Event::Verified(Ok(())));
        assert!(self.device.stored() == payload);
        let left = fs::read_dir(self.device.dir.path()).expect("read").flatten();
        assert!(left.map(|entry| entry.file_name()).all(|name| name != "archive-header"), "it is not kept");
    }
}

/// The ranges that a server was asked for.
type Ranges = Arc<Mutex<Vec<(usize, usize)>>>;

/// A server with ranges for one file, which cuts each connection after so many bytes of body. It tells the ranges that
/// it was asked for.
fn store(content: Vec<u8>, cut: usize) -> (String, Ranges) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let link = format!("http://{}/archive?sig=secret", listener.local_addr().expect("an address"));
    let asked = Ranges::default();
    let told = Arc::clone(&asked);
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            serve(&stream, &content, cut, &told);
        }
    });
    (link, asked)
}

fn serve(mut stream: &TcpStream, content: &[u8], mut cut: usize, told: &Mutex<Vec<(usize, usize)>>) {
    let mut reader = BufReader::new(stream);
    loop {
        let mut request = String::new();
        while !request.ends_with("\r\n\r\n") {
            if reader.read_line(&mut request).unwrap_or_default() == 0 {
                return;
            }
        }
        let request = request.to_ascii_lowercase();
        let range = request.lines().find_map(|line| line.strip_prefix("range: bytes=")).expect("a range");
        let (first, last) = range.split_once('-').expect("one range");
        let (first, end) = (first.parse().expect("a number"), last.parse::<usize>().expect("a number") + 1);
        told.lock().expect("no panic under it").push((first, end));
        let total = content.len();
        let head = format!(
            "HTTP/1.1 206 Partial Content\r\ncontent-range: bytes {first}-{}/{total}\r\ncontent-length: {}\r\n\r\n",
            end - 1,
            end - first
        );
        let sent = cut.min(end - first);
        let all = [head.as_bytes(), &content[first..first + sent]].concat();
        cut -= sent;
        if stream.write_all(&all).is_err() || cut == 0 {
            return;
        }
    }
}

/// An image, and one in which a few kilobytes are others, some have moved, and some are new.
fn images() -> (Vec<u8>, Vec<u8>) {
    let old = bytes(1_500_000);
    let mut new = old.clone();
    new[400_000..403_000].copy_from_slice(&bytes(5_000)[2_000..]);
    new.splice(800_000..800_000, bytes(9_000)[4_000..].iter().copied());
    new.splice(1_200_000..1_200_000, [7; 200_000]);
    (old, new)
}

fn ext4(dir: &Path, name: &str, root: &Path) -> Vec<u8> {
    let image = dir.join(name);
    let made = Command::new("mkfs.ext4")
        .stdout(Stdio::null())
        .args(["-q", "-F", "-b", "4096", "-O", "^metadata_csum_seed"])
        .args([
            "-U",
            "0b2b9d4e-0a2c-4f0e-9d1e-5d1a3c6f7a01",
            "-E",
            "hash_seed=0b2b9d4e-0a2c-4f0e-9d1e-5d1a3c6f7a02",
        ])
        .args(["-d".as_ref(), root, &image])
        .arg("24M")
        .env("SOURCE_DATE_EPOCH", "1700000000")
        .env("E2FSPROGS_FAKE_TIME", "1700000000")
        .status()
        .expect("mkfs.ext4 runs");
    assert!(made.success());
    fs::read(image).expect("an image")
}

#[tokio::test]
async fn an_image_with_one_file_changed_costs_little_more_than_that_file() {
    if !have("nginx") || !have("mkfs.ext4") {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let root = dir.path().join("root");
    fs::create_dir_all(root.join("usr")).expect("a directory");
    for file in 0..60_usize {
        let content = &bytes(200_000 + 2_000 * file)[file * 1_000..];
        fs::write(root.join(format!("usr/{file}")), content).expect("written");
    }
    let old = ext4(dir.path(), "old", &root);
    fs::write(root.join("usr/30"), &bytes(600_000)[370_000..]).expect("written");
    let new = ext4(dir.path(), "new", &root);
    assert!(old != new);
    let (archive, signed) = pack(&new);
    let nginx = Nginx::start(dir.path(), "");
    nginx.put(&new);
    nginx.put_as("archive", &archive);
    let links = (nginx.link("payload"), nginx.link("archive"));
    let case = Case::new(&old, &new, signed, (&links.0, &links.1), &nginx.ca());
    let plan = case.plan().await.expect("a plan");
    assert_eq!(plan.method, Method::Delta);
    assert!((230_000..500_000).contains(&plan.bytes), "{plan:?}");
    case.done(&new).await;
    let requests = nginx.requests();
    // The header, and the ranges that were planned: one range each, nothing of the payload itself.
    assert_eq!(requests.len(), 1 + plan.requests as usize);
    assert!(
        requests.iter().all(|line| line.starts_with("206 bytes=") && !line.contains(',')),
        "{requests:?}"
    );
    let spent = case.fetcher.ledger().spent(&case.release).bytes;
    assert!(spent <= plan.spent + plan.bytes, "{spent} spent, planned {plan:?}");
    assert!(spent < old.len() as u64 / 20, "{spent}");
}

#[tokio::test]
async fn the_dearer_way_is_not_taken_and_to_find_that_out_costs_a_hundredth_at_most() {
    let new = bytes(3_000_000);
    let (archive, signed) = pack(&new);
    let (link, asked) = store(archive, usize::MAX);
    let case = Case::new(&bytes(10)[..], &new, signed, (&link, &link), "");
    let plan = case.plan().await.expect("a plan");
    assert_eq!((plan.method, plan.requests), (Method::Full, 1));
    assert!(100 * plan.spent <= plan.bytes, "{plan:?}");
    assert_eq!(asked.lock().expect("no panic").len(), 1, "the header alone");
    // What compresses is cheaper by its archive though nothing of it is there.
    let new = "what is said again and again ".repeat(50_000);
    let (archive, signed) = pack(new.as_bytes());
    let (link, _) = store(archive, usize::MAX);
    let case = Case::new(&[], new.as_bytes(), signed, (&link, &link), "");
    let plan = case.plan().await.expect("a plan");
    assert!(plan.method == Method::Delta && plan.bytes < 30_000, "{plan:?}");
    case.done(new.as_bytes()).await;
}

#[tokio::test]
async fn a_header_that_was_not_signed_is_not_believed_and_all_of_the_payload_is_fetched() {
    let (old, new) = images();
    let (mut archive, signed) = pack(&new);
    archive[100] ^= 1;
    let (link, _) = store(archive, usize::MAX);
    let (payload, _) = store(new.clone(), usize::MAX);
    let case = Case::new(&old, &new, signed, (&payload, &link), "");
    assert_eq!(case.plan().await.expect("a plan").method, Method::Full);
    assert!(!case.device.place.path.exists(), "nothing was written");
    case.done(&new).await;
}

#[tokio::test]
async fn a_chunk_that_was_not_signed_is_not_written_and_the_rest_is_planned_anew() {
    let (old, new) = images();
    let (mut archive, signed) = pack(&new);
    let last = archive.len() - 1;
    archive[last] ^= 1;
    let (link, _) = store(archive, usize::MAX);
    let (payload, asked) = store(new.clone(), usize::MAX);
    let mut case = Case::new(&old, &new, signed, (&payload, &link), "");
    // Of the seed, the end is not there: the last chunk comes from the archive.
    case.seeds[0].length = 1_400_000;
    let plan = case.plan().await.expect("a plan");
    assert_eq!(plan.method, Method::Delta);
    let (error, durable) = failure(case.fetch().await);
    assert_eq!(error, FetchError::Unplanned);
    assert!(durable > 1_500_000 && case.device.stored() == new[..durable as usize], "{durable}");
    let again = case.plan().await.expect("a plan");
    assert_eq!(again.method, Method::Full);
    assert!(again.spent > plan.spent && again.bytes < 300_000, "what is here is kept: {again:?}");
    case.done(&new).await;
    let asked = asked.lock().expect("no panic");
    assert_eq!(*asked, [(durable as usize, new.len())]);
}

#[tokio::test]
async fn what_breaks_off_anywhere_goes_on_behind_the_chunks_that_are_durable() {
    let (mut old, mut new) = images();
    // It compresses, or the rest would be as cheap without its archive at some point.
    [&mut old, &mut new].into_iter().flatten().for_each(|byte| *byte &= 0x1f);
    let (archive, signed) = pack(&new);
    let header = signed.header_size as usize;
    // A chunk is 32 KB at the most: with less at a time there would be no end.
    for cut in [37_000, 40_001, 55_000, 90_000, 130_000] {
        // The header comes in one piece, for it is not what this is about.
        let (link, asked) = store(archive.clone(), header + cut);
        let mut case = Case::new(&old, &new, signed, (&link, &link), "");
        // Much of it is missing.
        case.seeds[0].length = 1_000_000;
        let mut planned = None;
        let mut before = 0;
        for tries in 0.. {
            assert!(tries < 1_000, "it comes to an end");
            let plan = case.plan().await.expect("a plan");
            assert_eq!(plan.method, Method::Delta);
            let planned = *planned.get_or_insert(plan.bytes);
            assert!(plan.bytes <= planned, "{plan:?}");
            match case.fetch().await {
                Event::Fetched => break,
                event => {
                    let (error, durable) = failure(event);
                    assert_eq!(error, FetchError::Interrupted);
                    assert!(
                        durable >= before && new[..durable as usize] == case.device.stored(),
                        "{durable}"
                    );
                    before = durable;
                }
            }
            // Every other time the power goes, too.
            if tries % 2 == 1 {
                case.device.reborn();
            }
        }
        assert_eq!(case.device.verify(&case.release).await, Event::Verified(Ok(())));
        let asked = asked.lock().expect("no panic");
        let headers = asked.iter().filter(|range| range.0 == 0).count();
        assert_eq!(headers, 1, "it is kept");
        // No try begins before the one before it.
        let starts: Vec<_> = asked.iter().map(|range| range.0).filter(|start| *start > 0).collect();
        assert!(starts.is_sorted(), "{starts:?}");
    }
}

#[tokio::test]
async fn what_runs_and_changes_meanwhile_is_noticed_and_fetched_after_all() {
    let (old, new) = images();
    let (archive, signed) = pack(&new);
    let (link, _) = store(archive, usize::MAX);
    let case = Case::new(&old, &new, signed, (&link, &link), "");
    let plan = case.plan().await.expect("a plan");
    let mut other = old.clone();
    other[700_000..700_100].fill(0);
    fs::write(&case.seeds[0].path, &other).expect("written");
    let (error, durable) = failure(case.fetch().await);
    assert!(error == FetchError::Unplanned && (600_000..=700_000).contains(&durable), "{durable}");
    let again = case.plan().await.expect("a plan");
    assert!(again.method == Method::Delta && again.bytes < plan.bytes + 40_000, "{again:?}");
    case.done(&new).await;
}

#[tokio::test]
async fn a_store_that_cannot_give_the_archive_is_asked_for_all_of_the_payload() {
    let (old, new) = images();
    let (archive, signed) = pack(&new);
    let (payload, _) = store(new.clone(), usize::MAX);
    let gone = answer("404 Not Found\ncontent-length: 0", b"");
    let whole = answer(&format!("200 OK\ncontent-length: {}", archive.len()), &archive);
    for said in [gone, whole] {
        let (link, _requests) = says(vec![said]);
        let case = Case::new(&old, &new, signed, (&payload, &link), "");
        assert_eq!(case.plan().await.expect("a plan").method, Method::Full);
        case.done(&new).await;
    }
    // One that is in trouble is given some time.
    let trouble = answer("500 Internal Server Error\ncontent-length: 0", b"");
    let (link, _requests) = says(vec![trouble.clone(), trouble.clone(), trouble]);
    let case = Case::new(&old, &new, signed, (&payload, &link), "");
    assert_eq!(case.plan().await, Err(FetchError::Server));
    assert_eq!(case.plan().await, Err(FetchError::Server));
    assert_eq!(case.plan().await.expect("a plan").method, Method::Full);
    // No link to it.
    let mut case = Case::new(&old, &new, signed, (&payload, &payload), "");
    case.links.archive = None;
    assert_eq!(case.plan().await.expect("a plan").method, Method::Full);
    case.done(&new).await;
}

#[tokio::test]
async fn what_chunks_make_is_compared_with_what_was_signed_and_not_made_of_them_twice() {
    let (old, new) = images();
    let (archive, signed) = pack(&new);
    let (link, _) = store(archive, usize::MAX);
    // A mistake of whoever signed it: of the same size, but another payload.
    let mut other = new.clone();
    other[5] ^= 1;
    let (payload, _) = store(other.clone(), usize::MAX);
    let case = Case::new(&old, &other, signed, (&payload, &link), "");
    assert_eq!(case.plan().await.expect("a plan").method, Method::Delta);
    assert_eq!(case.fetch().await, Event::Fetched);
    assert_eq!(case.device.verify(&case.release).await, Event::Verified(Err(VerifyError::Digest)));
    case.device.payload.discard().expect("discards");
    assert_eq!(case.plan().await.expect("a plan").method, Method::Full);
    case.done(&other).await;
}
