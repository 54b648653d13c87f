//! How the agent gets at the cluster: a kubeconfig, or what a pod is given. `kube`'s own client knows far more ways to
//! log in; they would be a twentieth of the agent's size, and no device uses them.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, HeaderValue};
use hyper::{Request, Response, Uri};
use kube::Client;
use kube::client::Body;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use rustls::sign::SingleCertAndKey;
use serde_json::Value;
use serde_saphyr::UserMessageFormatter;
use tokio::time::timeout;
use tower_service::Service;

use super::Options;
use super::cluster::{ClusterError, Setback};
use crate::fetch::{HttpClient, direct_client};
use crate::identity::certified;
use crate::link::{authorities, client_config};

/// Where K3s leaves its administrator's access.
const K3S: &str = "/etc/rancher/k3s/k3s.yaml";
/// Where a pod finds its account.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// How long the API server may take to be connected to, and for an answer.
const CONNECT: Duration = Duration::from_secs(5);
const ANSWER: Duration = Duration::from_secs(30);

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A client of the cluster that the options name. Reads files, and makes no request.
pub(super) fn client(options: &Options) -> Result<Client, Setback> {
    let named = options.kubeconfig.as_deref();
    let host = std::env::var("KUBERNETES_SERVICE_HOST").ok();
    if let Some(host) = host.filter(|_| named.is_none() && !Path::new(K3S).exists()) {
        let port = std::env::var("KUBERNETES_SERVICE_PORT").unwrap_or_else(|_| "443".to_owned());
        return Ok(pod(&host, &port, Path::new(ACCOUNT))?.client());
    }
    let path = named.unwrap_or(Path::new(K3S));
    // K3s writes it when it starts for the first time, and again when it renews certificates.
    let text = std::fs::read_to_string(path).map_err(|error| Setback::Passing(said(path, error)))?;
    Ok(kubeconfig(path, &text, options.context.as_deref())?.client())
}

/// Whom to ask, and who asks.
struct Access {
    server: String,
    tls: Arc<ClientConfig>,
    /// The name in the server's certificate, if that is another than the one in its address.
    name: Option<ServerName<'static>>,
    authorization: Option<HeaderValue>,
}

/// What Kubernetes says to the containers of a pod.
fn pod(host: &str, port: &str, account: &Path) -> Result<Access, ClusterError> {
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    let (ca, token) = (account.join("ca.crt"), account.join("token"));
    let roots = authorities(&ca, &file(&ca)?).map_err(refused)?;
    let tls = client_config(roots.into(), None);
    let authorization = Some(bearer(&token, &text(&token)?)?);
    Ok(Access { server: format!("https://{host}:{port}"), tls, name: None, authorization })
}

fn kubeconfig(path: &Path, content: &str, context: Option<&str>) -> Result<Access, ClusterError> {
    let bad = |words: String| refused(said(path, words));
    let options = serde_saphyr::options! { with_snippet: false };
    let mut documents: Vec<Value> = serde_saphyr::from_multiple_with_options(content, options)
        // It quotes nothing: the file holds secrets.
        .map_err(|error| bad(format!("not YAML: {}", error.render_with_formatter(&UserMessageFormatter))))?;
    let config = documents.pop().unwrap_or_default();
    let Some(context) = context.or_else(|| string(&config, "current-context")) else {
        return Err(bad("no current-context: name one as `context`".to_owned()));
    };
    let entry = |list: &str, kind: &str, name: &str| {
        let mut entries = config[list].as_array().into_iter().flatten();
        let found = entries.find(|entry| entry["name"] == name).map(|entry| entry[kind].clone());
        found.ok_or_else(|| bad(format!("there is no {kind} {name:?} in it")))
    };
    let context = entry("contexts", "context", context)?;
    let cluster = entry("clusters", "cluster", string(&context, "cluster").unwrap_or_default())?;
    let user = entry("users", "user", string(&context, "user").unwrap_or_default())?;

    for (part, key, instead) in [
        (&cluster, "proxy-url", "take it out"),
        (&cluster, "insecure-skip-tls-verify", "give the cluster's certificate-authority"),
        (&user, "exec", "give the user a client certificate or a token"),
        (&user, "auth-provider", "give the user a client certificate or a token"),
        (&user, "username", "give the user a client certificate or a token"),
        (&user, "as", "give the user the rights itself"),
    ] {
        if !matches!(&part[key], Value::Null | Value::Bool(false)) {
            return Err(bad(format!("`{key}` is not supported: {instead}")));
        }
    }
    let server = string(&cluster, "server").filter(|server| server.starts_with("https://"));
    let server = server.ok_or_else(|| bad("the cluster's server has no address with https".to_owned()))?;
    let name = match string(&cluster, "tls-server-name") {
        Some(name) => {
            let name = ServerName::try_from(name.to_owned());
            Some(name.map_err(|_| bad("tls-server-name is no name".to_owned()))?)
        }
        None => None,
    };
    let material = |part: &Value, key: &str| material(path, part, key);
    let (from, ca) = material(&cluster, "certificate-authority")?
        .ok_or_else(|| bad("the cluster has no certificate-authority".to_owned()))?;
    let roots = authorities(&from, &ca).map_err(refused)?;
    let certificate = match (material(&user, "client-certificate")?, material(&user, "client-key")?) {
        (Some((from, chain)), Some((key_from, key))) => {
            let certified = certified((&from, &chain), (&key_from, &key)).map_err(refused)?;
            Some(Arc::new(SingleCertAndKey::from(certified)) as _)
        }
        (None, None) => None,
        _ => return Err(bad("client-certificate and client-key belong together".to_owned())),
    };
    let authorization = match (string(&user, "tokenFile"), string(&user, "token")) {
        (Some(file), _) => {
            let file = beside(path, file);
            Some(bearer(&file, &text(&file)?)?)
        }
        (None, Some(token)) => Some(bearer(path, token)?),
        (None, None) => None,
    };
    Ok(Access {
        server: server.to_owned(),
        tls: client_config(roots.into(), certificate),
        name,
        authorization,
    })
}

/// What stands under `key` as a file, or as `key-data` in the kubeconfig itself, and where it is from.
fn material(path: &Path, part: &Value, key: &str) -> Result<Option<(PathBuf, Vec<u8>)>, ClusterError> {
    let inline = format!("{key}-data");
    if let Some(data) = string(part, &inline).filter(|data| !data.is_empty()) {
        let bytes = STANDARD.decode(data);
        let bytes = bytes.map_err(|_| refused(said(path, format!("{inline} is not Base64"))))?;
        return Ok(Some((path.to_owned(), bytes)));
    }
    let Some(name) = string(part, key).filter(|name| !name.is_empty()) else { return Ok(None) };
    let name = beside(path, name);
    let bytes = file(&name)?;
    Ok(Some((name, bytes)))
}

/// Files are named from where the kubeconfig lies.
fn beside(path: &Path, name: &str) -> PathBuf {
    path.parent().unwrap_or(Path::new("/")).join(name)
}

fn string<'a>(value: &'a Value, key: &str) -> Option<&'a str> {
    value[key].as_str()
}

fn file(path: &Path) -> Result<Vec<u8>, ClusterError> {
    std::fs::read(path).map_err(|error| refused(said(path, error)))
}

fn text(path: &Path) -> Result<String, ClusterError> {
    String::from_utf8(file(path)?).map_err(|_| refused(said(path, "not text")))
}

fn bearer(from: &Path, token: &str) -> Result<HeaderValue, ClusterError> {
    let mut value = HeaderValue::try_from(format!("Bearer {}", token.trim()))
        .map_err(|_| refused(said(from, "what should be a token is none")))?;
    value.set_sensitive(true);
    Ok(value)
}

fn said(path: &Path, words: impl ToString) -> String {
    format!("{}: {}", path.display(), words.to_string())
}

fn refused(words: impl ToString) -> ClusterError {
    ClusterError::Access(words.to_string())
}

impl Access {
    fn client(self) -> Client {
        let http = direct_client(self.tls, self.name, CONNECT);
        // Each object says where it is.
        Client::new(Requests { http, server: self.server, authorization: self.authorization }, "default")
    }
}

/// Sends what `kube` asks for.
struct Requests {
    http: HttpClient,
    server: String,
    authorization: Option<HeaderValue>,
}

impl Service<Request<Body>> for Requests {
    type Response = Response<Incoming>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Incoming>, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
        let link = format!("{}{path}", self.server.trim_end_matches('/')).parse::<Uri>();
        let (http, authorization) = (self.http.clone(), self.authorization.clone());
        Box::pin(async move {
            let (mut parts, body) = request.into_parts();
            parts.uri = link?;
            if let Some(authorization) = authorization {
                parts.headers.insert(AUTHORIZATION, authorization);
            }
            let body = Full::new(body.collect_bytes().await?);
            let answer = timeout(CONNECT + ANSWER, http.request(Request::from_parts(parts, body)));
            Ok(answer.await.map_err(|_| "the API server does not answer")??)
        })
    }
}

#[cfg(test)]
mod tests;
