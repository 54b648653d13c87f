//! Keys that never leave their token: it signs, the agent asks it to.

use std::fmt;
use std::sync::{Arc, Mutex};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error as TokenFault, RvError};
use cryptoki::mechanism::rsa::{PkcsMgfType, PkcsPssParams};
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::slot::Slot;
use cryptoki::types::AuthPin;
use rustls::sign::{Signer, SigningKey};
use rustls::{SignatureAlgorithm, SignatureScheme};
use sha2::{Digest as _, Sha256, Sha384};

use super::secret::{self, FileError};
use super::uri::{Pin, Pkcs11Uri};

/// Why a key in a token cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TokenError {
    /// The vendor's library cannot be used.
    #[error("the PKCS#11 library {module}: {source}")]
    Library {
        /// Its path.
        module: String,
        /// What is wrong.
        source: TokenFault,
    },
    /// The token is not there.
    #[error("no token {wanted}: is it plugged in, and may this user reach it? There are: {present}")]
    NoToken {
        /// What the URI says.
        wanted: String,
        /// The labels of those that are there.
        present: String,
    },
    /// The PIN.
    #[error(transparent)]
    Pin(#[from] FileError),
    /// The token refused the login.
    #[error("the token refused the login: {0}")]
    Login(TokenFault),
    /// It has refused this very PIN before.
    #[error(
        "the token has refused this PIN, which is not tried again, as tokens lock themselves after a few: put the right \
         one into the file, or restart the agent"
    )]
    PinRefused,
    /// No such key, or too many.
    #[error("{found} keys in the token are {wanted}: one was expected (object=… and id=… choose it)")]
    Key {
        /// How many.
        found: usize,
        /// What the URI says.
        wanted: String,
    },
    /// A key that the agent has no use for.
    #[error("the key in the token is neither ECDSA P-256, P-384 nor RSA")]
    Kind,
    /// Anything else.
    #[error("the token failed: {0}")]
    Failed(#[from] TokenFault),
}

/// What a key can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    P256,
    P384,
    Rsa,
    Secret,
}

/// A key in a token.
pub(crate) struct TokenKey {
    uri: Pkcs11Uri,
    class: ObjectClass,
    /// A token takes one request at a time of a session; held for the one.
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    open: Option<Open>,
    refused_pin: Option<String>,
}

struct Open {
    session: Session,
    key: ObjectHandle,
    kind: Kind,
}

impl fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenKey").field("uri", &self.uri).finish_non_exhaustive()
    }
}

/// The parameters of an elliptic curve key are the DER of its curve's name.
const P256: [u8; 10] = [0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
const P384: [u8; 7] = [0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22];

/// What stands before a SHA-256 in a PKCS#1 signature (RFC 8017, section 9.2).
const SHA256_INFO: [u8; 19] = [
    0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01, 0x05, 0x00,
    0x04, 0x20,
];

impl TokenKey {
    /// A private key, to show a certificate with.
    pub(crate) fn private(uri: Pkcs11Uri) -> Self {
        Self { uri, class: ObjectClass::PRIVATE_KEY, held: Mutex::default() }
    }

    /// A symmetric key, to sign tokens with.
    pub(crate) fn secret(uri: Pkcs11Uri) -> Self {
        Self { uri, class: ObjectClass::SECRET_KEY, held: Mutex::default() }
    }

    /// HMAC-SHA256.
    pub(crate) fn mac(&self, message: &[u8]) -> Result<Vec<u8>, TokenError> {
        self.sign(&Mechanism::Sha256Hmac, message)
    }

    /// What TLS signs with.
    pub(crate) fn for_tls(self: Arc<Self>) -> Result<Arc<dyn SigningKey>, TokenError> {
        let kind = self.with(|open| Ok(open.kind))?;
        Ok(Arc::new(TlsKey { key: self, kind }))
    }

    fn sign(&self, mechanism: &Mechanism<'_>, data: &[u8]) -> Result<Vec<u8>, TokenError> {
        self.with(|open| open.session.sign(mechanism, open.key, data))
    }

    /// Does something with the open key. A token that was pulled out and put back is opened again.
    fn with<T>(&self, work: impl Fn(&Open) -> Result<T, TokenFault>) -> Result<T, TokenError> {
        let mut held = self.held.lock().expect("nothing panics under this lock");
        let Held { open, refused_pin } = &mut *held;
        if let Some(known) = open {
            match work(known) {
                Err(TokenFault::Pkcs11(
                    RvError::DeviceRemoved
                    | RvError::ObjectHandleInvalid
                    | RvError::SessionClosed
                    | RvError::SessionHandleInvalid
                    | RvError::TokenNotPresent
                    | RvError::UserNotLoggedIn,
                    _,
                )) => *open = None,
                result => return Ok(result?),
            }
        }
        let opened = open.insert(login(&self.uri, self.class, refused_pin)?);
        Ok(work(opened)?)
    }
}

fn login(uri: &Pkcs11Uri, class: ObjectClass, refused: &mut Option<String>) -> Result<Open, TokenError> {
    let library = |source| TokenError::Library { module: uri.module.display().to_string(), source };
    let pkcs11 = Pkcs11::new(&uri.module).map_err(library)?;
    match pkcs11.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
        // Another key of this process lies in a token of the same library.
        Ok(()) | Err(TokenFault::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => {}
        Err(source) => return Err(library(source)),
    }
    let session = pkcs11.open_ro_session(find_token(&pkcs11, uri)?)?;
    let pin = match &uri.pin {
        None => None,
        Some(Pin::Value(pin)) => Some(pin.clone()),
        Some(Pin::File(path)) => Some(secret::read_secret(path)?),
    };
    if let Some(pin) = pin {
        if refused.as_ref() == Some(&pin) {
            return Err(TokenError::PinRefused);
        }
        match session.login(UserType::User, Some(&AuthPin::from(pin.clone()))) {
            Ok(()) | Err(TokenFault::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => *refused = None,
            Err(error) => {
                if matches!(error, TokenFault::Pkcs11(RvError::PinIncorrect | RvError::PinLocked, _)) {
                    *refused = Some(pin);
                }
                return Err(TokenError::Login(error));
            }
        }
    }
    let mut template = vec![Attribute::Class(class)];
    template.extend(uri.object.iter().map(|label| Attribute::Label(label.clone().into_bytes())));
    template.extend(uri.id.iter().map(|id| Attribute::Id(id.clone())));
    let key = match session.find_objects(&template)?[..] {
        [key] => key,
        ref keys => {
            let id =
                uri.id.as_ref().map(|id| id.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
            let wanted = [("object", &uri.object), ("id", &id)].into_iter();
            let wanted: Vec<_> = wanted.filter_map(|(name, value)| Some((name, value.as_ref()?))).collect();
            let wanted = wanted.iter().map(|(name, value)| format!("{name} {value:?}")).collect::<Vec<_>>();
            return Err(TokenError::Key { found: keys.len(), wanted: wanted.join(", ") });
        }
    };
    let kind = if class == ObjectClass::SECRET_KEY { Kind::Secret } else { kind(&session, key)? };
    Ok(Open { session, key, kind })
}

fn find_token(pkcs11: &Pkcs11, uri: &Pkcs11Uri) -> Result<Slot, TokenError> {
    let mut present = Vec::new();
    for slot in pkcs11.get_slots_with_initialized_token()? {
        let info = pkcs11.get_token_info(slot)?;
        let label = uri.token.as_ref().is_none_or(|label| label == info.label());
        if label && uri.serial.as_ref().is_none_or(|serial| serial == info.serial_number()) {
            return Ok(slot);
        }
        present.push(format!("{:?} (serial {})", info.label(), info.serial_number()));
    }
    let wanted = [("labelled", &uri.token), ("with serial", &uri.serial)].into_iter();
    let wanted = wanted.filter_map(|(how, value)| Some(format!("{how} {:?}", value.as_ref()?)));
    let present = if present.is_empty() { "none".to_owned() } else { present.join(", ") };
    Err(TokenError::NoToken { wanted: wanted.collect::<Vec<_>>().join(" "), present })
}

fn kind(session: &Session, key: ObjectHandle) -> Result<Kind, TokenError> {
    let [Attribute::KeyType(kind)] = session.get_attributes(key, &[AttributeType::KeyType])?[..] else {
        return Err(TokenError::Kind);
    };
    if kind == KeyType::RSA {
        return Ok(Kind::Rsa);
    }
    if kind == KeyType::EC
        && let [Attribute::EcParams(curve)] = &session.get_attributes(key, &[AttributeType::EcParams])?[..]
    {
        match curve {
            curve if **curve == P256 => return Ok(Kind::P256),
            curve if **curve == P384 => return Ok(Kind::P384),
            _ => {}
        }
    }
    Err(TokenError::Kind)
}

#[derive(Debug)]
struct TlsKey {
    key: Arc<TokenKey>,
    kind: Kind,
}

impl SigningKey for TlsKey {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        let can: &[SignatureScheme] = match self.kind {
            Kind::P256 => &[SignatureScheme::ECDSA_NISTP256_SHA256],
            Kind::P384 => &[SignatureScheme::ECDSA_NISTP384_SHA384],
            Kind::Rsa => &[SignatureScheme::RSA_PSS_SHA256, SignatureScheme::RSA_PKCS1_SHA256],
            Kind::Secret => &[],
        };
        let scheme = can.iter().copied().find(|scheme| offered.contains(scheme))?;
        Some(Box::new(TokenSigner { key: self.key.clone(), scheme }))
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        match self.kind {
            Kind::Rsa => SignatureAlgorithm::RSA,
            Kind::P256 | Kind::P384 | Kind::Secret => SignatureAlgorithm::ECDSA,
        }
    }
}

#[derive(Debug)]
struct TokenSigner {
    key: Arc<TokenKey>,
    scheme: SignatureScheme,
}

impl Signer for TokenSigner {
    /// The token signs what is hashed here: that is what most tokens have.
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        let pss = PkcsPssParams {
            hash_alg: MechanismType::SHA256,
            mgf: PkcsMgfType::MGF1_SHA256,
            s_len: 32.into(),
        };
        let signed = match self.scheme {
            SignatureScheme::ECDSA_NISTP384_SHA384 => {
                self.key.sign(&Mechanism::Ecdsa, &Sha384::digest(message)).map(|pair| ecdsa_der(&pair))
            }
            SignatureScheme::RSA_PSS_SHA256 => {
                self.key.sign(&Mechanism::RsaPkcsPss(pss), &Sha256::digest(message))
            }
            SignatureScheme::RSA_PKCS1_SHA256 => {
                let info = [&SHA256_INFO[..], &Sha256::digest(message)].concat();
                self.key.sign(&Mechanism::RsaPkcs, &info)
            }
            _ => self.key.sign(&Mechanism::Ecdsa, &Sha256::digest(message)).map(|pair| ecdsa_der(&pair)),
        };
        // TLS tells the caller no more than that it failed.
        signed.map_err(|error| rustls::Error::General(format!("the key in the token cannot sign: {error}")))
    }

    fn scheme(&self) -> SignatureScheme {
        self.scheme
    }
}

/// A token gives the two numbers of an ECDSA signature one after the other; TLS has them in DER.
fn ecdsa_der(pair: &[u8]) -> Vec<u8> {
    let (r, s) = pair.split_at(pair.len() / 2);
    let mut numbers = Vec::with_capacity(pair.len() + 8);
    for number in [r, s] {
        let start = number.iter().position(|byte| *byte != 0).unwrap_or(number.len().saturating_sub(1));
        let number = &number[start..];
        // A leading bit would be a sign.
        let pad = usize::from(number.first().is_some_and(|byte| *byte >= 0x80));
        numbers.extend([0x02, (number.len() + pad) as u8]);
        numbers.extend(&[0][..pad]);
        numbers.extend(number);
    }
    // Two numbers of up to 49 bytes: a length of one byte.
    let mut der = vec![0x30, numbers.len() as u8];
    der.append(&mut numbers);
    der
}

#[cfg(test)]
mod tests {
    use super::ecdsa_der;

    #[test]
    fn the_numbers_of_a_signature_become_the_shortest_positive_der() {
        let pair = |r: [u8; 4], s: [u8; 4]| ecdsa_der(&[r, s].concat());
        assert_eq!(
            pair([1, 2, 3, 4], [0x80, 0, 0, 1]),
            [0x30, 13, 0x02, 4, 1, 2, 3, 4, 0x02, 5, 0, 0x80, 0, 0, 1]
        );
        assert_eq!(pair([0, 0, 0, 5], [0, 0, 0x90, 1]), [0x30, 8, 0x02, 1, 5, 0x02, 3, 0, 0x90, 1]);
        assert_eq!(pair([0; 4], [0; 4]), [0x30, 6, 0x02, 1, 0, 0x02, 1, 0]);
    }
}
