//! Asks the storage account what became of an upload.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Empty;
use hyper::{Method, Request, StatusCode, Uri, header};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::storage::StorageAccount;

/// How long the storage account may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// A blob that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Blob {
    pub(crate) size: u64,
    /// As `2016-06-01T21:22:41+00:00`.
    pub(crate) modified: String,
}

/// Why nobody knows whether a blob is there.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProbeError {
    #[error("it does not answer")]
    Late,
    #[error("it cannot be reached: {0}")]
    Io(#[from] std::io::Error),
    #[error("it does not speak HTTP: {0}")]
    Http(#[from] hyper::Error),
    #[error("its endpoint's name is none")]
    Name,
    #[error("it answers with {0}; the account's name or key may be another")]
    Refused(StatusCode),
}

/// How an account's endpoint is called; nothing for one without TLS.
pub(super) fn connector(account: &StorageAccount) -> Option<TlsConnector> {
    if !account.is_secure() {
        return None;
    }
    let mut roots = RootCertStore::empty();
    let native = rustls_native_certs::load_native_certs();
    for error in &native.errors {
        tracing::warn!(%error, "some of the system's certificates cannot be read");
    }
    roots.add_parsable_certificates(native.certs);
    roots.add_parsable_certificates(account.trusted().iter().cloned());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider has suites of the usual versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    Some(TlsConnector::from(Arc::new(config)))
}

/// Looks for a blob; `signature` opens it for reading.
pub(super) async fn look(
    account: &StorageAccount,
    connector: Option<&TlsConnector>,
    blob: &str,
    signature: &str,
) -> Result<Option<Blob>, ProbeError> {
    let path = format!("{}?{signature}", account.path_of(blob));
    let looked = async {
        let authority: Uri = account.authority().parse().map_err(|_| ProbeError::Name)?;
        let host = authority.host().ok_or(ProbeError::Name)?;
        let port = authority.port_u16().unwrap_or(if connector.is_some() { 443 } else { 80 });
        let address = (host.trim_matches(['[', ']']), port);
        let stream = TcpStream::connect(address).await?;
        let head = match connector {
            None => head(stream, account.authority(), &path).await?,
            Some(connector) => {
                let name = ServerName::try_from(address.0.to_owned()).map_err(|_| ProbeError::Name)?;
                head(connector.connect(name, stream).await?, account.authority(), &path).await?
            }
        };
        match head.status {
            StatusCode::OK => {
                let text = |name| head.headers.get(name).and_then(|value| value.to_str().ok());
                Ok(Some(Blob {
                    size: text(header::CONTENT_LENGTH).and_then(|size| size.parse().ok()).unwrap_or(0),
                    modified: text(header::LAST_MODIFIED).and_then(calendar).unwrap_or_default(),
                }))
            }
            StatusCode::NOT_FOUND => Ok(None),
            other => Err(ProbeError::Refused(other)),
        }
    };
    tokio::time::timeout(PATIENCE, looked).await.unwrap_or(Err(ProbeError::Late))
}

async fn head<S>(stream: S, host: &str, path: &str) -> Result<hyper::http::response::Parts, ProbeError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let request = Request::builder()
        .method(Method::HEAD)
        .uri(path)
        .header(header::HOST, host)
        .body(Empty::<Bytes>::new())
        .map_err(|_| ProbeError::Name)?;
    let answer = sender.send_request(request).await;
    drop(sender);
    connection.abort();
    Ok(answer?.into_parts().0)
}

/// `Wed, 01 Jun 2016 21:22:41 GMT` as file notifications have times.
fn calendar(text: &str) -> Option<String> {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let mut words = text.split_ascii_whitespace().skip(1);
    let (day, month, year, time) = (words.next()?, words.next()?, words.next()?, words.next()?);
    let month = MONTHS.iter().position(|name| *name == month)? + 1;
    Some(format!("{year}-{month:02}-{day:0>2}T{time}+00:00"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_iot_hub_writes_them() {
        assert_eq!(calendar("Wed, 01 Jun 2016 21:22:41 GMT").as_deref(), Some("2016-06-01T21:22:41+00:00"));
        assert_eq!(calendar("yesterday"), None);
    }
}
