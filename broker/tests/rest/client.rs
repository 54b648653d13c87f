//! A hub with its REST operations, and a client that speaks to them.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use fleetwave_hub::HubServer;
use fleetwave_hub::HubServerBuilder;
use fleetwave_hub::policy::{DEFAULT_POLICIES, Policy};
use fleetwave_protocol::sas::{self, Key};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1;
use hyper::{HeaderMap, Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;

pub(crate) const HOST: &str = "hub.example";

/// A running hub.
pub(crate) struct Rig {
    pub(crate) hub: HubServer,
    address: SocketAddr,
    runtime: tokio::runtime::Runtime,
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Got {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Got {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("not JSON: {self:?}"))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().expect("headers are ASCII"))
    }

    /// Asserts a refusal: its status, its name in the header and in the body.
    #[track_caller]
    pub(crate) fn refused(&self, status: u16, name: &str) {
        assert_eq!(self.status.as_u16(), status, "{self:?}");
        assert_eq!(self.header("iothub-errorcode"), Some(name), "{self:?}");
        let message = self.json()["Message"].as_str().expect("a message").to_owned();
        assert!(message.contains(name) || message.contains("errorCode"), "{message}");
    }
}

pub(crate) fn key(policy: &str) -> Key {
    Key::from_bytes(format!("{policy}-primary"))
}

impl Rig {
    pub(crate) fn new() -> Self {
        Self::with(|builder| builder.shards(2))
    }

    pub(crate) fn with(configure: impl FnOnce(HubServerBuilder) -> HubServerBuilder) -> Self {
        let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut builder = HubServer::builder().host_name(HOST).https(loopback, None);
        for (name, rights) in DEFAULT_POLICIES {
            let secondary = Key::from_bytes(format!("{name}-secondary"));
            builder = builder.policy(Policy { name: name.into(), primary: key(name), secondary, rights });
        }
        let hub = configure(builder).start().expect("a hub on loopback");
        let address = hub.https_address().expect("it serves REST");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Self { hub, address, runtime }
    }

    /// A token of a policy.
    pub(crate) fn token(&self, policy: &str) -> String {
        let now = self.hub.control().clock().now().wall;
        let expires = fleetwave_protocol::WallTime::from_unix_millis(now.as_unix_millis() + 3_600_000);
        sas::token(&key(policy), HOST, expires, Some(policy))
    }

    /// A request in the name of `iothubowner`.
    pub(crate) fn ask(&self, method: Method, path: &str, body: Option<Value>) -> Got {
        self.ask_with(method, path, &[], body)
    }

    pub(crate) fn get(&self, path: &str) -> Got {
        self.ask(Method::GET, path, None)
    }

    pub(crate) fn put(&self, path: &str, body: Value) -> Got {
        self.ask(Method::PUT, path, Some(body))
    }

    /// The same, with further headers; an `authorization` there replaces the owner's.
    pub(crate) fn ask_with(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<Value>,
    ) -> Got {
        let body = body.map(|body| body.to_string()).unwrap_or_default();
        self.raw(method, path, headers, body.into())
    }

    pub(crate) fn raw(&self, method: Method, path: &str, headers: &[(&str, &str)], body: Bytes) -> Got {
        let owner = self.token("iothubowner");
        let mut request = Request::builder().method(method).uri(path).header("host", HOST);
        if !headers.iter().any(|(name, _)| *name == "authorization") {
            request = request.header("authorization", owner);
        }
        for (name, value) in headers.iter().filter(|(_, value)| !value.is_empty()) {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body)).expect("a request");
        self.runtime.block_on(async {
            let exchange = async {
                let stream = tokio::net::TcpStream::connect(self.address).await.expect("the hub listens");
                let (mut sender, connection) = http1::Builder::new()
                    .title_case_headers(true)
                    .handshake(TokioIo::new(stream))
                    .await
                    .expect("HTTP");
                let connection = tokio::spawn(connection);
                let answer = sender.send_request(request).await.expect("an answer");
                let (parts, body) = answer.into_parts();
                let body = body.collect().await.expect("a body").to_bytes();
                drop(sender);
                let _ = connection.await;
                Got { status: parts.status, headers: parts.headers, body }
            };
            tokio::time::timeout(Duration::from_secs(60), exchange).await.expect("an answer in time")
        })
    }
}
