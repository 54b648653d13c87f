//! REST operations at a hub on this machine, for commands beside it.

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fleetwave_protocol::WallTime;
use fleetwave_protocol::sas::{self, Key};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::{Method, Request, header};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde::Deserialize;
use serde_json::Value;
use tokio_rustls::TlsConnector;

use super::HubError;
use super::args::Place;
use super::home::Home;

/// How long the hub may take.
const PATIENCE: Duration = Duration::from_secs(30);
const API: &str = "api-version=2021-04-12";

/// What a running hub says about itself.
#[derive(Deserialize)]
pub(super) struct Running {
    pub(super) hub_name: String,
    service_connection_string: String,
    ca: PathBuf,
    pub(super) address: IpAddr,
    https_port: u16,
}

impl Running {
    /// The hub that was given the same directories.
    pub(super) fn find(place: &Place) -> Result<Self, HubError> {
        let path = Home::find(place)?.running();
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(HubError::NotRunning { path });
            }
            Err(source) => return Err(HubError::Read { path, source }),
        };
        serde_json::from_str(&text)
            .map_err(|error| HubError::Answer(format!("{} is not what a hub wrote: {error}", path.display())))
    }

    /// Asks for an operation, with the hub's own connection string.
    pub(super) fn ask(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value, HubError> {
        let request = self.request(method, path, body)?;
        let tls = self.tls()?;
        let name = ServerName::try_from(self.hub_name.clone())
            .map_err(|error| HubError::Answer(format!("{} is no host name: {error}", self.hub_name)))?;
        let ip = if self.address.is_unspecified() { IpAddr::from([127, 0, 0, 1]) } else { self.address };
        let address = SocketAddr::new(ip, self.https_port);

        let ask = async {
            let stream = tokio::net::TcpStream::connect(address).await.map_err(to_text)?;
            let stream = TlsConnector::from(Arc::new(tls)).connect(name, stream).await.map_err(to_text)?;
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(to_text)?;
            let answer = async {
                let response = sender.send_request(request).await.map_err(to_text)?;
                let status = response.status();
                let body = response.into_body().collect().await.map_err(to_text)?.to_bytes();
                Ok::<_, String>((status, body))
            };
            // The connection is driven beside the request that it carries.
            tokio::select! {
                answered = answer => answered,
                ended = connection => Err(ended.err().map_or("the connection ended".to_owned(), to_text)),
            }
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| HubError::Answer(error.to_string()))?;
        let asked = runtime.block_on(async { tokio::time::timeout(PATIENCE, ask).await });
        let answered = asked.unwrap_or_else(|_| Err(format!("no answer within {} s", PATIENCE.as_secs())));
        let (status, body) = answered.map_err(|why| HubError::Unreachable { address, why })?;
        let value: Value = serde_json::from_slice(&body).unwrap_or_default();
        if status.is_success() {
            return Ok(value);
        }
        let message = value["Message"].as_str().map_or_else(|| status.to_string(), str::to_owned);
        Err(HubError::Answer(format!("the hub refused it: {message}")))
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Request<Full<Bytes>>, HubError> {
        let member = |name: &str| {
            let mut members =
                self.service_connection_string.split(';').filter_map(|part| part.split_once('='));
            members.find_map(|(key, value)| (key == name).then_some(value)).unwrap_or_default()
        };
        let host = member("HostName");
        let key = Key::from_base64(member("SharedAccessKey"))
            .ok_or_else(|| HubError::Answer("the hub's connection string has no key".to_owned()))?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default() + PATIENCE * 2;
        let expires = WallTime::from_unix_millis(u64::try_from(now.as_millis()).unwrap_or(u64::MAX));
        let token = sas::token(&key, host, expires, Some(member("SharedAccessKeyName")));
        Request::builder()
            .method(method)
            .uri(format!("{path}?{API}"))
            .header(header::HOST, host)
            .header(header::AUTHORIZATION, token)
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body.map(|body| Bytes::from(body.to_string())).unwrap_or_default()))
            .map_err(|error| HubError::Answer(error.to_string()))
    }

    fn tls(&self) -> Result<ClientConfig, HubError> {
        let pem = fs::read(&self.ca).map_err(|source| HubError::Read { path: self.ca.clone(), source })?;
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            let wrong = |error: &dyn std::error::Error| {
                HubError::Answer(format!("{} is no certificate: {error}", self.ca.display()))
            };
            let certificate = certificate.map_err(|error| wrong(&error))?;
            roots.add(certificate).map_err(|error| wrong(&error))?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| HubError::Answer(error.to_string()))?;
        Ok(config.with_root_certificates(roots).with_no_client_auth())
    }
}

fn to_text(error: impl std::error::Error) -> String {
    error.to_string()
}
