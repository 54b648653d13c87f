use std::collections::VecDeque;
use std::net::SocketAddr;

use fleetwave_hub::pki::Pki;
use fleetwave_hub_core::throttle::Tier;
use hyper::Response;
use hyper::service::service_fn;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::remote::trust;

/// What a hub answers: status, pause, body; `None` breaks the connection.
type Told = Option<(u16, &'static str, &'static str)>;

/// A hub that answers as it is told, and notes what it was asked.
struct Fake {
    client: Client,
    asked: Arc<Mutex<Vec<String>>>,
    dir: tempfile::TempDir,
}

impl Fake {
    async fn start(script: Vec<Told>) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let pki = Pki::load_or_create(Some(dir.path()), &[]).expect("certificates");
        let listener = TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let asked = Arc::new(Mutex::new(Vec::new()));
        let script = Arc::new(Mutex::new(VecDeque::from(script)));
        tokio::spawn(serve(listener, TlsAcceptor::from(pki.server_config()), script, asked.clone()));
        let client = client(address, &dir.path().join("ca.pem"));
        Self { client, asked, dir }
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().expect("nothing panics under it").clone()
    }
}

fn client(address: SocketAddr, ca: &std::path::Path) -> Client {
    let text = format!(
        "HostName=localhost:{};SharedAccessKeyName=owner;SharedAccessKey=c2VjcmV0;GatewayHostName=127.0.0.1",
        address.port()
    );
    let clock = Clock::new();
    let pacer = Arc::new(Pacer::new(Tier::None, 1, clock.clone()));
    let tls = trust::client_config(Some(ca)).expect("an authority");
    Client::new(text.parse().expect("well formed"), tls, clock, pacer)
}

async fn serve(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    script: Arc<Mutex<VecDeque<Told>>>,
    asked: Arc<Mutex<Vec<String>>>,
) {
    while let Ok((stream, _)) = listener.accept().await {
        let (acceptor, script, asked) = (acceptor.clone(), script.clone(), asked.clone());
        tokio::spawn(async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let answer = service_fn(|request: Request<hyper::body::Incoming>| {
                let token = request.headers()[AUTHORIZATION].to_str().expect("a token is ASCII");
                assert!(token.starts_with("SharedAccessSignature sr=localhost&"), "{token}");
                asked.lock().expect("nothing panics under it").push(format!(
                    "{} {}",
                    request.method(),
                    request.uri()
                ));
                let next =
                    script.lock().expect("nothing panics under it").pop_front().expect("no more is asked");
                async move {
                    let Some((status, after, body)) = next else { return Err("broken") };
                    let mut response = Response::builder().status(status);
                    if !after.is_empty() {
                        response = response.header(RETRY_AFTER, after);
                    }
                    Ok(response.body(Full::new(Bytes::from_static(body.as_bytes()))).expect("an answer"))
                }
            });
            // That the client goes away, or that it is to be broken, is no failure.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), answer)
                .await;
        });
    }
}

fn on_runtime<T>(act: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(act)
}

fn get() -> Call {
    Call::new("reading", Method::GET, "/devices/d1".to_owned(), Operation::Registry)
}

fn invoke() -> Call {
    Call::new("calling", Method::POST, "/twins/d1/methods".to_owned(), Operation::Method)
}

const OK: &[StatusCode] = &[StatusCode::OK];

#[test]
fn what_a_busy_hub_refuses_is_sent_again_after_the_pause_that_it_asks_for() {
    on_runtime(async {
        let fake = Fake::start(vec![Some((429, "0", "")), Some((503, "0", "")), Some((200, "", "{}"))]).await;
        let answer = fake.client.ask(&get(), OK).await.expect("the third time");
        assert_eq!(answer.json("reading").expect("JSON"), serde_json::json!({}));
        assert_eq!(fake.asked(), vec!["GET /devices/d1?api-version=2021-04-12"; 3]);
    });
}

#[test]
fn what_may_have_been_done_is_sent_again_only_if_that_does_no_harm() {
    on_runtime(async {
        let fake = Fake::start(vec![None, Some((200, "", "{}"))]).await;
        fake.client.ask(&get(), OK).await.expect("the second time");
        let fake = Fake::start(vec![None]).await;
        let error = fake.client.ask(&invoke(), OK).await.expect_err("a device may have heard it");
        assert!(matches!(error, ServiceError::Broken(_)), "{error}");
        let fake = Fake::start(vec![Some((500, "0", ""))]).await;
        let error = fake.client.ask(&invoke(), OK).await.expect_err("a device may have heard it");
        assert_eq!(error.status(), Some(StatusCode::INTERNAL_SERVER_ERROR));
        // A hub that was too busy for it has not done it.
        let fake = Fake::start(vec![Some((429, "0", "")), Some((200, "", "{}"))]).await;
        fake.client.ask(&invoke(), OK).await.expect("the second time");
    });
}

#[test]
fn a_refusal_says_what_the_hub_says() {
    on_runtime(async {
        let body = r#"{"Message":"ErrorCode:IotHubUnauthorizedAccess;Unauthorized","ExceptionMessage":""}"#;
        let fake = Fake::start(vec![Some((401, "", body))]).await;
        let error = fake.client.ask(&get(), OK).await.expect_err("it is refused").to_string();
        assert_eq!(
            error,
            "reading: the hub answered 401 Unauthorized: ErrorCode:IotHubUnauthorizedAccess;Unauthorized"
        );
    });
}

#[test]
fn a_hub_that_was_never_reached_is_not_waited_for() {
    on_runtime(async {
        let fake = Fake::start(Vec::new()).await;
        let listener = TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        drop(listener);
        let error = client(address, &fake.dir.path().join("ca.pem")).ask(&get(), OK).await;
        let error = error.expect_err("nobody listens");
        assert!(matches!(error, ServiceError::Unreachable { .. }), "{error}");
    });
}
