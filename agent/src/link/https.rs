//! The device as the hub's HTTPS interface sees it: the same name, the same key or certificate.

use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;

use super::LinkError;
use super::access::Access;
use crate::identity::Proof;

/// A token is for a few requests.
const TOKEN_LIFE: Duration = Duration::from_secs(600);

/// What a request to the hub takes.
pub(crate) struct Https {
    /// The address: `https://host:port/devices/ID`.
    pub(crate) device: String,
    /// The header `Authorization`; a device with a certificate has none.
    pub(crate) token: Option<String>,
    /// How TLS is made; with the device's certificate.
    pub(crate) tls: Arc<ClientConfig>,
}

impl Access {
    /// The way to the hub's HTTPS interface.
    pub(crate) async fn https(&self) -> Result<Https, LinkError> {
        let (station, proof) = self.station().await?;
        let (certificate, token) = match &proof {
            Proof::Certificate(certificate) => (Some(certificate), None),
            Proof::Sas(signer) => {
                let resource = format!("{}/devices/{}", station.hub, station.device);
                (None, Some(signer.token(&resource, self.expiry(TOKEN_LIFE), None)?))
            }
            Proof::Password { .. } | Proof::Nothing => (None, None),
        };
        Ok(Https {
            device: format!(
                "https://{}:{}/devices/{}",
                station.peer,
                self.hub.https_port,
                fleetwave_protocol::bag::encode(&station.device)
            ),
            token,
            tls: self.tls.config(certificate)?,
        })
    }
}
