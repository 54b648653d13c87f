//! `[download]` and `[ledger]` of the configuration.

use std::fmt;
use std::path::PathBuf;

use fleetwave_agent_core::Caps;
use hyper::Uri;
use std::time::Duration;

use serde::Deserialize;

use crate::units::{Bytes, Rate, Span};

/// How payloads are fetched.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Download {
    /// The proxy. Without it the environment's `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY` count.
    pub proxy: Option<Proxy>,
    /// Hosts that are reached without the proxy: names with all below them, addresses, networks, or `*`.
    pub no_proxy: Vec<String>,
    /// Who signs the servers' certificates, PEM. Without it the system's authorities count.
    pub ca: Option<PathBuf>,
    /// Whether links without TLS to other machines are followed. The payload is signed, but anyone on the way can
    /// read it, and the link.
    pub http: bool,
    /// The most bytes a second, for all targets of the device together.
    pub rate: Option<Rate>,
    /// How long a connection may take, with TLS and proxy.
    pub connect_timeout: Span,
    /// How long a server may be silent.
    pub idle_timeout: Span,
    /// How long one try may take; what has come by then is kept, and the next try goes on there.
    pub total_timeout: Option<Span>,
}

impl Download {
    /// How long one try may take.
    pub(super) fn most(&self) -> Duration {
        self.total_timeout.map_or(Duration::MAX, Span::duration)
    }
}

impl Default for Download {
    fn default() -> Self {
        Self {
            proxy: None,
            no_proxy: Vec::new(),
            ca: None,
            http: false,
            rate: None,
            connect_timeout: Span(30),
            idle_timeout: Span(30),
            total_timeout: None,
        }
    }
}

impl Download {
    /// The proxy, for people: it may have a password.
    pub(crate) fn proxy_name(&self) -> &str {
        match &self.proxy {
            None => "the environment's, if there is one",
            Some(Proxy::None) => "none",
            Some(Proxy::Http(url)) => url.rsplit_once('@').map_or(url, |(_, host)| host),
        }
    }
}

/// A proxy, or that there is none whatever the environment says.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Proxy {
    /// `"none"`.
    None,
    /// `"http://[user:password@]host:port"`.
    Http(String),
}

impl TryFrom<String> for Proxy {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        if text == "none" {
            return Ok(Self::None);
        }
        let url: Option<Uri> = text.parse().ok();
        match url {
            Some(url) if url.scheme_str() == Some("http") && url.host().is_some() => Ok(Self::Http(text)),
            // It may hold a password: it is not repeated.
            _ => Err("a proxy is \"http://host:port\", \"http://user:password@host:port\" or \"none\""),
        }
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "None",
            Self::Http(_) => "Http(…)",
        })
    }
}

/// What downloads may cost.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LedgerLimits {
    /// The most bytes that one update may cost, all its tries together.
    pub per_update: Option<Bytes>,
    /// The most bytes that all updates of a window may cost.
    pub per_window: Option<Bytes>,
    /// How long a window is. Windows are counted from 1970 on, in UTC: one of a day begins at midnight.
    pub window: Span,
}

impl Default for LedgerLimits {
    fn default() -> Self {
        Self { per_update: None, per_window: None, window: Span(30 * 86_400) }
    }
}

impl LedgerLimits {
    /// What the machine is to keep to: it refuses an update before its first byte. `None` if nothing is limited.
    pub(crate) fn caps(&self) -> Option<Caps> {
        let bytes = |limit: Option<Bytes>| limit.map_or(u64::MAX, |limit| limit.0);
        let caps = Caps {
            per_update: bytes(self.per_update),
            per_window: bytes(self.per_window),
            window: self.window.duration(),
        };
        (self.per_update.is_some() || self.per_window.is_some()).then_some(caps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxys_password_is_neither_shown_nor_repeated_in_an_error() {
        let download: Download = toml::from_str("proxy = 'http://u:secret@p:3128'").expect("well-formed");
        assert!(!format!("{download:?}").contains("secret"));
        let error = toml::from_str::<Download>("proxy = 'socks5://u:secret@p'").expect_err("not http");
        assert!(
            error.message().contains("http://host:port") && !error.message().contains("secret"),
            "{error}"
        );
    }

    #[test]
    fn limits_are_read_as_the_documentation_writes_them() {
        let limits: LedgerLimits =
            toml::from_str("per_update = '200 MiB'\nper_window = '1 GiB'\nwindow = '1 day'")
                .expect("well-formed");
        assert_eq!(limits.per_update, Some(Bytes(200 << 20)));
        assert_eq!(limits.window, Span(86_400));
    }
}
