//! How devices show that they belong to an enrollment.

use fleetwave_protocol::WallTime;
use fleetwave_protocol::sas::{Key, Token};
use rustls::pki_types::CertificateDer;
use serde_json::{Map, Value, json};

use super::DpsError;
use super::certificate::Certificate;

/// What a device shows.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Credential<'a> {
    /// A token for `{scope}/registrations/{id}`.
    Token(&'a str),
    /// A certificate chain in DER, the device's own first.
    Chain(&'a [CertificateDer<'static>]),
}

/// What an enrollment asks for.
#[derive(Clone, Debug)]
pub(super) enum Attestation {
    /// A token signed with one of two keys; in a group with a key that is derived from one of them.
    SymmetricKey { primary: Key, secondary: Key },
    /// One of these very certificates.
    ClientCertificates(Vec<Certificate>),
    /// A certificate that one of these has signed, directly or by others in between.
    SigningCertificates(Vec<Certificate>),
}

impl Attestation {
    /// Reads an enrollment's `attestation`. Keys that are not given are drawn.
    pub(super) fn read(value: &Value, group: bool, draw: &mut dyn FnMut() -> Key) -> Result<Self, DpsError> {
        match value["type"].as_str() {
            Some("symmetricKey") => {
                let mut key = |name: &str| match value["symmetricKey"][name].as_str() {
                    None | Some("") => Ok(draw()),
                    Some(text) => read_key(name, text),
                };
                Ok(Self::SymmetricKey { primary: key("primaryKey")?, secondary: key("secondaryKey")? })
            }
            Some("x509") => {
                let x509 = &value["x509"];
                let certificates = |name: &str| {
                    ["primary", "secondary"]
                        .iter()
                        .map(|which| &x509[name][*which])
                        .filter(|entry| entry["certificate"].is_string())
                        .map(|entry| Certificate::read(entry["certificate"].as_str().unwrap_or_default()))
                        .collect::<Result<Vec<_>, _>>()
                };
                let (client, signing) =
                    (certificates("clientCertificates")?, certificates("signingCertificates")?);
                match (client.is_empty(), signing.is_empty()) {
                    (false, true) if !group => Ok(Self::ClientCertificates(client)),
                    (true, false) => Ok(Self::SigningCertificates(signing)),
                    (true, true) if x509["caReferences"].is_object() => Err(DpsError::new(
                        501_000,
                        "caReferences are not modelled: give the certificates as signingCertificates",
                    )),
                    _ => Err(DpsError::invalid(
                        "attestation.x509: one of clientCertificates (individual enrollments) and \
                         signingCertificates was expected",
                    )),
                }
            }
            Some("tpm") => Err(DpsError::new(501_000, "attestation by TPM is not modelled")),
            other => Err(DpsError::invalid(format!(
                "attestation.type is {other:?}: symmetricKey or x509 was expected"
            ))),
        }
    }

    /// The JSON of it. Keys are shown only where they are asked for.
    pub(super) fn write(&self, with_keys: bool) -> Value {
        let pair = |certificates: &[Certificate]| {
            let mut both = Map::new();
            for (name, certificate) in ["primary", "secondary"].iter().zip(certificates) {
                both.insert((*name).to_owned(), certificate.write());
            }
            Value::Object(both)
        };
        match self {
            Self::SymmetricKey { primary, secondary } if with_keys => json!({
                "type": "symmetricKey",
                "symmetricKey": { "primaryKey": primary.to_base64(), "secondaryKey": secondary.to_base64() },
            }),
            Self::SymmetricKey { .. } => json!({ "type": "symmetricKey" }),
            Self::ClientCertificates(certificates) => {
                json!({ "type": "x509", "x509": { "clientCertificates": pair(certificates) } })
            }
            Self::SigningCertificates(certificates) => {
                json!({ "type": "x509", "x509": { "signingCertificates": pair(certificates) } })
            }
        }
    }

    /// The keys of a registration.
    pub(super) fn keys(&self, group: bool, registration: &str) -> Option<[Key; 2]> {
        let Self::SymmetricKey { primary, secondary } = self else { return None };
        Some([primary, secondary].map(|key| if group { key.derive(registration) } else { key.clone() }))
    }

    /// Whether a device that shows this belongs here.
    pub(super) fn admits(
        &self,
        group: bool,
        registration: &str,
        resource: &str,
        shown: Credential<'_>,
        wall: WallTime,
    ) -> Result<(), String> {
        match (self, shown) {
            (Self::SymmetricKey { .. }, Credential::Token(text)) => {
                let token = Token::parse(text).map_err(|error| error.to_string())?;
                let keys = self.keys(group, registration).expect("it has keys");
                let mut result = Ok(());
                for key in &keys {
                    result = token.check(resource, wall, key);
                    if result.is_ok() {
                        break;
                    }
                }
                result.map_err(|error| error.to_string())
            }
            (Self::ClientCertificates(known), Credential::Chain(chain)) => {
                let own = chain.first().ok_or("no certificate was shown")?;
                let certificate = known.iter().find(|known| known.der() == own.as_ref());
                let certificate = certificate.ok_or("the certificate is not the enrollment's")?;
                certificate.check_dates(wall)
            }
            (Self::SigningCertificates(anchors), Credential::Chain(chain)) => {
                let own = chain.first().ok_or("no certificate was shown")?;
                let own = Certificate::of_der(own.to_vec()).map_err(|error| error.message)?;
                let name = own.common_name().unwrap_or_default();
                if !name.eq_ignore_ascii_case(registration) {
                    return Err(format!("the certificate is made out to {name:?}"));
                }
                super::certificate::verify_chain(chain, anchors, wall)
            }
            (Self::SymmetricKey { .. }, Credential::Chain(_)) => Err("a token was expected".into()),
            (_, Credential::Token(_)) => Err("a client certificate was expected".into()),
        }
    }
}

fn read_key(name: &str, text: &str) -> Result<Key, DpsError> {
    let sized = |key: &Key| key.to_base64().len() >= 24 && key.to_base64().len() <= 88;
    Key::from_base64(text).filter(sized).ok_or_else(|| {
        DpsError::invalid(format!("attestation.symmetricKey.{name} is not base64 of 16 to 64 bytes"))
    })
}
