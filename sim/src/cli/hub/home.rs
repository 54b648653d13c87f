//! Where a hub's keys and certificates are, and the keys themselves.

use std::collections::BTreeMap;
use std::env;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use fleetwave_hub::policy::{DEFAULT_POLICIES, Policy};
use fleetwave_protocol::sas::Key;
use rand::Rng as _;
use serde::{Deserialize, Serialize};

use super::HubError;
use super::args::Place;

/// Bytes of a key: their base64 text has no padding, and a connection string for `localhost` fits 100 columns.
const KEY_BYTES: usize = 24;
/// The version of the file of keys.
const FORMAT: u32 = 1;
/// The policy of the provisioning service.
const PROVISIONING: &str = "provisioningserviceowner";

/// The directories of a hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Home {
    /// Keys, and what a running hub says about itself.
    pub(super) state: PathBuf,
    /// Certificates.
    pub(super) certs: PathBuf,
    /// Devices, twins and all else, if they are kept.
    pub(super) data: Option<PathBuf>,
}

impl Home {
    /// What is kept of a hub stands in `--data`, else in `--cert-dir`, else in the user's data directory.
    pub(super) fn find(place: &Place) -> Result<Self, HubError> {
        let user = || {
            let absolute =
                |name: &str| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
            absolute("XDG_DATA_HOME")
                .or_else(|| absolute("HOME").map(|home| home.join(".local/share")))
                .map(|data| data.join("fleetwave/hub"))
        };
        let state =
            place.data.clone().or_else(|| place.cert_dir.clone()).or_else(user).ok_or(HubError::NoHome)?;
        let certs = place.cert_dir.clone().unwrap_or_else(|| state.join("certs"));
        Ok(Self { state, certs, data: place.data.clone() })
    }

    /// The certificate that clients have to trust.
    pub(super) fn ca(&self) -> PathBuf {
        let ca = self.certs.join("ca.pem");
        fs::canonicalize(&ca).unwrap_or(ca)
    }

    /// What a running hub says about itself, for commands on the same machine.
    pub(super) fn running(&self) -> PathBuf {
        self.state.join("running.json")
    }

    fn keys(&self) -> PathBuf {
        self.state.join("keys.json")
    }
}

/// A hub's secrets, as they are kept.
#[derive(Deserialize, Serialize)]
struct Kept {
    format: u32,
    id_scope: String,
    group_key: String,
    policies: BTreeMap<String, [String; 2]>,
}

/// A hub's secrets.
pub(super) struct Keys {
    pub(super) id_scope: String,
    pub(super) group_key: Key,
    pub(super) policies: Vec<Policy>,
    pub(super) provisioning: [Key; 2],
}

impl Keys {
    /// Reads the keys, and makes them if there are none yet.
    pub(super) fn load_or_create(home: &Home) -> Result<Self, HubError> {
        let path = home.keys();
        match read(&path)? {
            Some(kept) => Self::from(&kept, &path),
            None => {
                let kept = generate();
                fs::create_dir_all(&home.state)
                    .map_err(|source| HubError::Write { path: home.state.clone(), source })?;
                match write_secret(&path, &serde_json::to_string_pretty(&kept).expect("text is JSON"), false)
                {
                    Ok(()) => Self::from(&kept, &path),
                    // Another hub has made them in the meantime.
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => match read(&path)? {
                        Some(kept) => Self::from(&kept, &path),
                        None => Err(HubError::Write { path, source: error }),
                    },
                    Err(source) => Err(HubError::Write { path, source }),
                }
            }
        }
    }

    fn from(kept: &Kept, path: &Path) -> Result<Self, HubError> {
        let wrong = |why: String| HubError::Keys { path: path.to_owned(), why };
        if kept.format != FORMAT {
            let why = format!("its format is {}, this fleetwave knows {FORMAT}", kept.format);
            return Err(wrong(why));
        }
        let key = |text: &str| Key::from_base64(text).ok_or_else(|| wrong("a key is not base64".to_owned()));
        let pair = |name: &str| {
            let pair =
                kept.policies.get(name).ok_or_else(|| wrong(format!("the policy {name} is missing")))?;
            Ok::<_, HubError>([key(&pair[0])?, key(&pair[1])?])
        };
        let policies = DEFAULT_POLICIES.iter().map(|(name, rights)| {
            let [primary, secondary] = pair(name)?;
            Ok(Policy { name: (*name).to_owned(), primary, secondary, rights: *rights })
        });
        Ok(Self {
            id_scope: kept.id_scope.clone(),
            group_key: key(&kept.group_key)?,
            policies: policies.collect::<Result<_, HubError>>()?,
            provisioning: pair(PROVISIONING)?,
        })
    }

    /// The connection string of the policy that may do everything.
    pub(super) fn service_connection_string(&self, host: &str) -> String {
        let policy = &self.policies[0];
        connection_string(host, &policy.name, &policy.primary)
    }

    /// The connection string for the provisioning service's own operations.
    pub(super) fn provisioning_connection_string(&self, host: &str) -> String {
        connection_string(host, PROVISIONING, &self.provisioning[0])
    }
}

fn connection_string(host: &str, policy: &str, key: &Key) -> String {
    format!("HostName={host};SharedAccessKeyName={policy};SharedAccessKey={}", key.to_base64())
}

fn read(path: &Path) -> Result<Option<Kept>, HubError> {
    match fs::read_to_string(path) {
        Ok(text) => serde_json::from_str(&text)
            .map(Some)
            .map_err(|error| HubError::Keys { path: path.to_owned(), why: error.to_string() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(HubError::Read { path: path.to_owned(), source }),
    }
}

fn generate() -> Kept {
    let mut rng = rand::rng();
    let mut key = || {
        let mut bytes = [0; KEY_BYTES];
        rng.fill_bytes(&mut bytes);
        Key::from_bytes(bytes).to_base64()
    };
    let names = DEFAULT_POLICIES.iter().map(|(name, _)| *name).chain([PROVISIONING]);
    let policies = names.map(|name| (name.to_owned(), [key(), key()])).collect();
    let group_key = key();
    // The shape of the service's own.
    let id_scope = format!("0ne{:08X}", rand::rng().next_u32());
    Kept { format: FORMAT, id_scope, group_key, policies }
}

/// Writes a file that nobody else may read: whole, or not at all.
pub(super) fn write_secret(path: &Path, text: &str, replace: bool) -> io::Result<()> {
    let partial = path.with_extension(format!("{}.partial", std::process::id()));
    let write = || {
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&partial)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        if replace { fs::rename(&partial, path) } else { fs::hard_link(&partial, path) }
    };
    let written = write();
    let _ = fs::remove_file(&partial);
    written
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn place(data: Option<&Path>, cert_dir: Option<&Path>) -> Place {
        Place { data: data.map(Into::into), cert_dir: cert_dir.map(Into::into) }
    }

    #[test]
    fn what_is_kept_stands_together() {
        let home = |data, cert_dir| Home::find(&place(data, cert_dir)).unwrap();
        let (data, certs) = (Path::new("/d"), Path::new("/c"));
        let both = home(Some(data), Some(certs));
        assert_eq!((both.state.as_path(), both.certs.as_path()), (data, certs));
        let kept = home(Some(data), None);
        assert_eq!((kept.state.as_path(), kept.certs.as_path()), (data, Path::new("/d/certs")));
        let memory = home(None, Some(certs));
        assert_eq!((memory.state.as_path(), memory.certs.as_path(), memory.data), (certs, certs, None));
    }

    #[test]
    fn keys_are_made_once_and_only_their_owner_can_read_them() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::find(&place(Some(&dir.path().join("new")), None)).unwrap();
        let first = Keys::load_or_create(&home).unwrap();
        let again = Keys::load_or_create(&home).unwrap();
        let strings = |keys: &Keys| (keys.service_connection_string("h"), keys.id_scope.clone());
        assert_eq!(strings(&first), strings(&again));
        assert_eq!(first.group_key.to_base64(), again.group_key.to_base64());
        assert_ne!(first.policies[0].primary.to_base64(), first.policies[0].secondary.to_base64());
        let mode = fs::metadata(home.keys()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(first.service_connection_string("localhost").len() <= 100);
    }

    #[test]
    fn a_file_of_keys_that_is_none_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::find(&place(Some(dir.path()), None)).unwrap();
        for (text, expected) in [
            ("nonsense", "expected"),
            (r#"{"format":2,"id_scope":"","group_key":"","policies":{}}"#, "format is 2"),
        ] {
            fs::write(home.keys(), text).unwrap();
            let Err(error) = Keys::load_or_create(&home) else { panic!("{text} was taken") };
            let message = error.to_string();
            assert!(message.contains("keys.json") && message.contains(expected), "{message}");
        }
    }
}
