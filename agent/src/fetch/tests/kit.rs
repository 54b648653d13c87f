//! What the tests need: a payload, a target that takes it, servers.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use fleetwave_agent_core::{Event, FetchError, Release, Releases, TrustRoot};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::fetch::pair::hex;
use crate::fetch::{Download, Fetcher, LedgerLimits, Payload};
use crate::install::Place;
use crate::link::TlsPool;
use crate::metrics::Counters;

pub(super) use crate::real::have;

/// A target with an empty place, and the directory that all of a test lies in.
pub(super) struct Device {
    pub(super) dir: tempfile::TempDir,
    pub(super) place: Place,
    pub(super) payload: Rc<Payload>,
}

impl Device {
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let place = Place { path: dir.path().join("payload"), capacity: None };
        let payload = Payload::open(dir.path());
        Self { dir, place, payload }
    }

    /// The process has died: what is in memory is lost.
    pub(super) fn reborn(&mut self) {
        self.payload = Payload::open(self.dir.path());
    }

    pub(super) fn fetcher(&self, download: &str, limits: &str) -> Rc<Fetcher> {
        let download: Download = toml::from_str(download).expect("a well-formed section");
        let limits: LedgerLimits = toml::from_str(limits).expect("a well-formed section");
        Fetcher::new(&download, &limits, self.dir.path(), &TlsPool::default(), Counters::default())
    }

    /// One try, from what is durable on.
    pub(super) async fn fetch(&self, fetcher: &Rc<Fetcher>, link: &str, release: &Release) -> Event {
        let links = fetcher.check_links(link, None).expect("a good link");
        let offset = self.payload.durable(release, &self.place);
        self.payload.fetch(fetcher, links, self.place.clone(), release.clone(), offset).await
    }

    pub(super) async fn verify(&self, release: &Release) -> Event {
        self.payload.verify(self.place.clone(), release.clone()).await
    }

    pub(super) fn stored(&self) -> Vec<u8> {
        fs::read(&self.place.path).expect("there is a payload")
    }
}

/// Bytes that do not repeat.
pub(super) fn bytes(size: usize) -> Vec<u8> {
    let mut state = 88_172_645_463_325_252_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..size).map(|_| next()).collect()
}

/// A release with this payload. Who signed it is not asked here.
pub(super) fn release(payload: &[u8]) -> Release {
    let reference = json!({
        "id": "fw-2", "seq": 2, "size": payload.len(), "sha256": hex(&Sha256::digest(payload)),
    });
    let mut releases = Releases::new(TrustRoot::default());
    let id = releases.intern(reference.as_object().expect("an object"));
    releases[id].clone()
}

/// Why a try failed, and how much is durable.
pub(super) fn failure(event: Event) -> (FetchError, u64) {
    match event {
        Event::FetchFailed { error, durable } => (error, durable),
        other => panic!("it did not fail: {other:?}"),
    }
}

/// A server that answers each request with the next of these, and tells the requests.
pub(super) fn says(answers: Vec<Vec<u8>>) -> (String, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    let (sender, requests) = mpsc::channel();
    std::thread::spawn(move || {
        for answer in answers {
            let Ok((mut stream, _)) = listener.accept() else { return };
            let request = heard(&stream);
            // The test may have ended, and the other side may not want all of it.
            let _ = sender.send(request.to_ascii_lowercase());
            let _ = stream.write_all(&answer);
        }
    });
    (format!("http://{address}/blobs/fw-2?sig=secret"), requests)
}

/// A server that answers one request with this, and then says nothing more and leaves the connection open.
pub(super) fn stalls(answer: Vec<u8>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        let Ok((mut stream, _)) = listener.accept() else { return };
        heard(&stream);
        let _ = stream.write_all(&answer);
        // Until the other side ends it.
        let _ = std::io::copy(&mut stream, &mut std::io::sink());
    });
    format!("http://{address}/fw-2")
}

/// A request's head. What is said before it came would confuse its sender.
fn heard(stream: &TcpStream) -> String {
    let mut request = String::new();
    let mut reader = BufReader::new(stream);
    while !request.ends_with("\r\n\r\n") {
        if reader.read_line(&mut request).unwrap_or_default() == 0 {
            break;
        }
    }
    request
}

/// An answer: status line and headers, and a body behind them.
pub(super) fn answer(head: &str, body: &[u8]) -> Vec<u8> {
    let head = head.trim().replace('\n', "\r\n");
    [format!("HTTP/1.1 {head}\r\nconnection: close\r\n\r\n").as_bytes(), body].concat()
}

/// nginx, serving a directory with TLS and without.
pub(super) struct Nginx {
    dir: PathBuf,
    child: Option<Child>,
    pub(super) plain: SocketAddr,
    pub(super) tls: SocketAddr,
}

impl Nginx {
    /// `extra` goes into the place of `/`.
    pub(super) fn start(dir: &Path, extra: &str) -> Self {
        let dir = dir.join("nginx");
        for sub in ["files", "tmp"] {
            fs::create_dir_all(dir.join(sub)).expect("a directory");
        }
        authority(&dir);
        let (plain, tls) = (free(), free());
        let root = dir.display();
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("{kind}_temp_path {root}/tmp/{kind};"))
            .concat();
        let configuration = format!(
            "daemon off; master_process off; pid {root}/pid; error_log {root}/errors;\n\
             events {{ worker_connections 64; }}\n\
             http {{ {temporary}\n\
             log_format ours '$status $http_range $http_if_range'; access_log {root}/access ours;\n\
             server {{ listen {plain}; listen {tls} ssl; root {root}/files;\n\
             ssl_certificate {root}/chain.pem; ssl_certificate_key {root}/key.pem;\n\
             location / {{ {extra} }}\n\
             location /moved {{ return 302 /payload?sig=other; }}\n\
             location /around {{ return 302 /around; }}\n\
             location /away {{ return 302 http://127.0.0.1/payload; }} }} }}\n"
        );
        fs::write(dir.join("nginx.conf"), configuration).expect("written");
        let mut nginx = Self { dir, child: None, plain, tls };
        nginx.again();
        nginx
    }

    /// Starts it, on the same ports as before.
    pub(super) fn again(&mut self) {
        let program = if Path::new("/usr/sbin/nginx").exists() { "/usr/sbin/nginx" } else { "nginx" };
        let child = Command::new(program)
            .args(["-p", &self.dir.display().to_string(), "-c", "nginx.conf", "-e", "errors"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("nginx starts");
        self.child = Some(child);
        until("nginx listens", || TcpStream::connect(self.tls).is_ok());
    }

    pub(super) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    pub(super) fn put(&self, payload: &[u8]) {
        self.put_as("payload", payload);
    }

    pub(super) fn put_as(&self, name: &str, content: &[u8]) {
        fs::write(self.dir.join("files").join(name), content).expect("written");
    }

    pub(super) fn link(&self, path: &str) -> String {
        format!("https://localhost:{}/{path}?sig=secret", self.tls.port())
    }

    /// The authority that signed its certificate, as a line of `[download]`.
    pub(super) fn ca(&self) -> String {
        format!("ca = {:?}\n", self.dir.join("ca.pem").display().to_string())
    }

    /// Status, `Range` and `If-Range` of each request so far.
    pub(super) fn requests(&self) -> Vec<String> {
        let log = fs::read_to_string(self.dir.join("access")).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        self.kill();
    }
}

fn authority(dir: &Path) {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::default();
    // Another name than the server's, or OpenSSL takes that for its own authority.
    params.distinguished_name.push(DnType::CommonName, "the store's authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = params.self_signed(&key).expect("a certificate");
    let issuer = Issuer::new(params, key);
    let key = KeyPair::generate().expect("a key");
    let names = vec!["localhost".to_owned()];
    let leaf =
        CertificateParams::new(names).expect("a name").signed_by(&key, &issuer).expect("a certificate");
    fs::write(dir.join("ca.pem"), ca.pem()).expect("written");
    fs::write(dir.join("chain.pem"), leaf.pem()).expect("written");
    fs::write(dir.join("key.pem"), key.serialize_pem()).expect("written");
}

/// An address that nobody listens at.
pub(super) fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port")
}

/// Waits for something that another process does.
pub(super) fn until(what: &str, mut happened: impl FnMut() -> bool) {
    let give_up = Instant::now() + Duration::from_secs(60);
    while !happened() {
        assert!(Instant::now() < give_up, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
