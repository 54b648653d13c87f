//! The storage account whose container takes devices' files, and the signatures that open one blob of it.
//!
//! Source: "Configure Azure Storage connection strings" and "Create a service SAS" of the Azure Storage reference.

use std::time::Duration;

use fleetwave_hub_core::Iso8601;
use fleetwave_protocol::sas::Key;
use fleetwave_protocol::{WallTime, bag};
use hyper::Uri;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

/// The version of the storage service whose rules signatures follow.
const VERSION: &str = "2021-06-08";
/// How long a device has for an upload, unless set otherwise: IoT Hub's default.
const LIFETIME: Duration = Duration::from_secs(3600);
/// The account that every Azurite has; its key is published in Azurite's documentation and protects nothing.
const DEVELOPMENT: &str = "DefaultEndpointsProtocol=http;AccountName=devstoreaccount1;\
     AccountKey=Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==;\
     BlobEndpoint=http://127.0.0.1:10000/devstoreaccount1";

/// What is wrong with a storage account's settings. None of it tells the key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StorageError {
    /// A member of the connection string is missing.
    #[error(
        "the storage connection string has no {0}: AccountName=…;AccountKey=… was expected, \
         with BlobEndpoint=… or EndpointSuffix=…"
    )]
    Missing(&'static str),
    /// The key is not base64.
    #[error("AccountKey in the storage connection string is not base64")]
    Key,
    /// The endpoint is no URL of a blob service.
    #[error("BlobEndpoint is {0:?}, http:// or https:// with a host was expected")]
    Endpoint(String),
    /// The container's name breaks the rules of such names.
    #[error(
        "{0:?} is no name of a container: 3 to 63 lower-case letters, digits and single hyphens, \
         with a letter or digit at both ends"
    )]
    Container(String),
    /// What should be trusted is no certificate.
    #[error("the storage account's authority is not a certificate in PEM form: {0}")]
    Certificate(String),
}

/// A storage account, and the container in it for devices' files.
#[derive(Clone, Debug)]
pub struct StorageAccount {
    name: String,
    key: Key,
    secure: bool,
    /// The host, with its port if it is not the usual one.
    authority: String,
    /// What stands between host and container: nothing on Azure, the account on Azurite.
    path: String,
    container: String,
    lifetime: Duration,
    trusted: Vec<CertificateDer<'static>>,
}

impl StorageAccount {
    /// Reads the connection string of a storage account, or `UseDevelopmentStorage=true` for Azurite on this machine.
    ///
    /// # Errors
    /// What is wrong with it, or with the container's name.
    pub fn parse(connection_string: &str, container: &str) -> Result<Self, StorageError> {
        let text = connection_string.trim().trim_end_matches(';');
        let text = if text.eq_ignore_ascii_case("UseDevelopmentStorage=true") { DEVELOPMENT } else { text };
        let member = |name: &str| {
            text.split(';')
                .filter_map(|member| member.split_once('='))
                .find_map(|(key, value)| key.trim().eq_ignore_ascii_case(name).then(|| value.trim()))
                .filter(|value| !value.is_empty())
        };
        let name = member("AccountName").ok_or(StorageError::Missing("AccountName"))?;
        let key = member("AccountKey").ok_or(StorageError::Missing("AccountKey"))?;
        let endpoint = match (member("BlobEndpoint"), member("EndpointSuffix")) {
            (Some(endpoint), _) => endpoint.to_owned(),
            (None, suffix) => {
                let scheme = member("DefaultEndpointsProtocol").unwrap_or("https");
                format!("{scheme}://{name}.blob.{}", suffix.unwrap_or("core.windows.net"))
            }
        };
        if !is_container(container) {
            return Err(StorageError::Container(container.to_owned()));
        }
        let uri: Option<Uri> = endpoint.parse().ok();
        let parts = uri.as_ref().and_then(|uri| Some((uri.scheme_str()?, uri.authority()?, uri.path())));
        let Some((scheme @ ("http" | "https"), authority, path)) = parts else {
            return Err(StorageError::Endpoint(endpoint));
        };
        Ok(Self {
            name: name.to_owned(),
            key: Key::from_base64(key).ok_or(StorageError::Key)?,
            secure: scheme == "https",
            authority: authority.as_str().to_owned(),
            path: path.trim_end_matches('/').to_owned(),
            container: container.to_owned(),
            lifetime: LIFETIME,
            trusted: Vec::new(),
        })
    }

    /// How long a device has for an upload: an hour unless set.
    #[must_use]
    pub fn lifetime(mut self, lifetime: Duration) -> Self {
        self.lifetime = lifetime;
        self
    }

    /// An authority that vouches for the account's endpoint, beside those that the system trusts: certificates in PEM
    /// form.
    ///
    /// # Errors
    /// If there is none in it.
    pub fn trust(mut self, pem: &str) -> Result<Self, StorageError> {
        let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
        match certificates {
            Ok(certificates) if certificates.is_empty() => {
                Err(StorageError::Certificate("there is no certificate in it".into()))
            }
            Ok(certificates) => {
                self.trusted.extend(certificates);
                Ok(self)
            }
            Err(error) => Err(StorageError::Certificate(error.to_string())),
        }
    }

    pub(super) fn trusted(&self) -> &[CertificateDer<'static>] {
        &self.trusted
    }

    pub(super) fn upload_lifetime(&self) -> Duration {
        self.lifetime
    }

    pub(super) fn is_secure(&self) -> bool {
        self.secure
    }

    pub(super) fn authority(&self) -> &str {
        &self.authority
    }

    /// The container's name.
    pub(crate) fn container(&self) -> &str {
        &self.container
    }

    /// What clients put in front of `/{container}/{blob}`.
    pub(crate) fn host_name(&self) -> String {
        format!("{}{}", self.authority, self.path)
    }

    /// The path of a blob, encoded.
    pub(super) fn path_of(&self, blob: &str) -> String {
        let blob: Vec<String> = blob.split('/').map(bag::encode).collect();
        format!("{}/{}/{}", self.path, self.container, blob.join("/"))
    }

    /// Where a blob is.
    pub(crate) fn uri_of(&self, blob: &str) -> String {
        let scheme = if self.secure { "https" } else { "http" };
        format!("{scheme}://{}{}", self.authority, self.path_of(blob))
    }

    /// The query of a URL that opens one blob, and nothing else: `permissions` of `r` and `w`.
    pub(crate) fn signature(&self, blob: &str, permissions: &str, until: WallTime) -> String {
        let mut expiry = Iso8601(until).to_string();
        // Storage takes whole seconds.
        expiry.truncate("2000-01-01T00:00:00".len());
        expiry.push('Z');
        let resource = format!("/blob/{}/{}/{blob}", self.name, self.container);
        // Permissions, start, expiry, resource, policy, addresses, protocol, version, kind, snapshot, scope, and five
        // headers that an answer would have.
        let signed =
            [permissions, "", &expiry, &resource, "", "", "", VERSION, "b", "", "", "", "", "", "", ""];
        let signature = bag::encode(&self.key.sign(&[signed.join("\n").as_bytes()]));
        format!("sv={VERSION}&sr=b&sig={signature}&se={}&sp={permissions}", bag::encode(&expiry))
    }
}

fn is_container(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (3..=63).contains(&name.len())
        && name.bytes().all(allowed)
        && !name.contains("--")
        && !name.starts_with('-')
        && !name.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "c2VjcmV0";

    fn parse(text: &str) -> Result<StorageAccount, StorageError> {
        StorageAccount::parse(text, "files")
    }

    #[test]
    fn an_account_is_where_its_connection_string_says() {
        for (text, host, uri) in [
            (
                format!(
                    "DefaultEndpointsProtocol=https;AccountName=a;AccountKey={KEY};EndpointSuffix=core.windows.net"
                ),
                "a.blob.core.windows.net",
                "https://a.blob.core.windows.net/files/d/b%20c.txt",
            ),
            (
                format!("AccountName=a;AccountKey={KEY};"),
                "a.blob.core.windows.net",
                "https://a.blob.core.windows.net/files/d/b%20c.txt",
            ),
            (
                format!("BlobEndpoint=https://localhost:10000/a/;AccountName=a;accountkey={KEY}"),
                "localhost:10000/a",
                "https://localhost:10000/a/files/d/b%20c.txt",
            ),
            (
                "UseDevelopmentStorage=true;".into(),
                "127.0.0.1:10000/devstoreaccount1",
                "http://127.0.0.1:10000/devstoreaccount1/files/d/b%20c.txt",
            ),
        ] {
            let account = parse(&text).unwrap();
            assert_eq!((account.host_name().as_str(), account.uri_of("d/b c.txt").as_str()), (host, uri));
            assert!(!format!("{account:?}").contains(KEY), "no secret in logs");
        }
    }

    #[test]
    fn a_signature_is_what_azurite_makes_of_the_same() {
        let account = parse("UseDevelopmentStorage=true").unwrap();
        let until = WallTime::from_unix_millis(1_893_553_445_678);
        assert_eq!(
            account.signature("d/b c.txt", "rw", until),
            "sv=2021-06-08&sr=b&sig=UmKIAQx%2BKTmAkaDYlrdqEEnigg%2BdL1xvymIIxL4lrQ4%3D\
             &se=2030-01-02T03%3A04%3A05Z&sp=rw"
        );
    }

    #[test]
    fn what_is_wrong_with_an_account_is_told() {
        for (text, expected) in [
            ("", StorageError::Missing("AccountName")),
            ("AccountName=a;SharedAccessSignature=sv", StorageError::Missing("AccountKey")),
            ("AccountName=a;AccountKey=%", StorageError::Key),
            ("AccountName=a;AccountKey=aaaa;BlobEndpoint=ftp://x", StorageError::Endpoint("ftp://x".into())),
            ("AccountName=a;AccountKey=aaaa;BlobEndpoint=x", StorageError::Endpoint("x".into())),
        ] {
            assert_eq!(parse(text).unwrap_err(), expected, "{text}");
        }
        for name in ["", "ab", "Files", "a--b", "-ab", "ab-", "a_b"] {
            let error = StorageAccount::parse("UseDevelopmentStorage=true", name).unwrap_err();
            assert_eq!(error, StorageError::Container(name.into()));
        }
        assert!(matches!(
            parse("UseDevelopmentStorage=true").unwrap().trust("no certificate"),
            Err(StorageError::Certificate(_))
        ));
    }
}
