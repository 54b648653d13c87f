//! `pkcs11:` URIs (RFC 7512): where a key lies in a token, and how to get at it.

use std::path::PathBuf;

use fleetwave_protocol::bag;

/// What a URI says. What it does not say is not compared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pkcs11Uri {
    /// The token's label.
    pub(crate) token: Option<String>,
    /// The token's serial number.
    pub(crate) serial: Option<String>,
    /// The key's label.
    pub(crate) object: Option<String>,
    /// The key's id.
    pub(crate) id: Option<Vec<u8>>,
    /// The vendor's library.
    pub(crate) module: PathBuf,
    /// Where the PIN is; a token without one needs no login.
    pub(crate) pin: Option<Pin>,
}

/// Where a PIN is.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Pin {
    /// In the URI.
    Value(String),
    /// In a file.
    File(PathBuf),
}

impl std::fmt::Debug for Pin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Value(_) => f.write_str("Value(…)"),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
        }
    }
}

/// How a key in a token is told from a file.
pub(crate) const SCHEME: &str = "pkcs11:";

impl Pkcs11Uri {
    /// Reads a URI.
    ///
    /// # Errors
    /// What is wrong with it. Attributes of RFC 7512 that the agent does not compare are refused: to ignore one would
    /// be to take a key that was not meant.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let rest = text.strip_prefix(SCHEME).ok_or("not a pkcs11: URI")?;
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let mut uri = Self::default();
        for (name, value) in members(path, ';') {
            match name {
                "id" => uri.id = Some(bytes(name, value)?),
                "token" => uri.token = Some(string(name, value)?),
                "serial" => uri.serial = Some(string(name, value)?),
                "object" => uri.object = Some(string(name, value)?),
                // Which kind it is follows from what it is for.
                "type" if ["private", "secret-key"].contains(&value) => {}
                "type" => return Err(format!("type={value} in the pkcs11: URI: private or secret-key")),
                _ => {
                    return Err(format!(
                        "{name:?} in the pkcs11: URI is not supported: token, serial, object, id and type are"
                    ));
                }
            }
        }
        for (name, value) in members(query, '&') {
            match name {
                "module-path" => uri.module = string(name, value)?.into(),
                "pin-value" => uri.pin = Some(Pin::Value(string(name, value)?)),
                "pin-source" => {
                    let source = string(name, value)?;
                    let path = source.strip_prefix("file:").unwrap_or(&source);
                    let path = path.strip_prefix("//").unwrap_or(path);
                    if !path.starts_with('/') {
                        return Err("pin-source in the pkcs11: URI: file:/the/path was expected".to_owned());
                    }
                    uri.pin = Some(Pin::File(path.into()));
                }
                _ => {
                    return Err(format!(
                        "{name:?} in the pkcs11: URI is not supported: module-path, pin-source and pin-value are"
                    ));
                }
            }
        }
        if !uri.module.is_absolute() {
            return Err("the pkcs11: URI needs ?module-path=/the/vendor's/library.so".to_owned());
        }
        if uri.object.is_none() && uri.id.is_none() {
            return Err("the pkcs11: URI needs object=… or id=…: a token may hold many keys".to_owned());
        }
        Ok(uri)
    }
}

fn members(text: &str, separator: char) -> impl Iterator<Item = (&str, &str)> {
    let members = text.split(separator).filter(|member| !member.is_empty());
    members.map(|member| member.split_once('=').unwrap_or((member, "")))
}

fn string(name: &str, value: &str) -> Result<String, String> {
    bag::decode(value).map(String::from).ok_or_else(|| malformed(name))
}

fn malformed(name: &str) -> String {
    format!("{name} in the pkcs11: URI is not well-formed (%, / and others are written as %25, %2F …)")
}

/// Unlike a string an id need not be UTF-8.
fn bytes(name: &str, value: &str) -> Result<Vec<u8>, String> {
    let mut out = Vec::new();
    let mut rest = value.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let digit = |byte: Option<u8>| byte.and_then(|byte| char::from(byte).to_digit(16));
        match (digit(rest.next()), digit(rest.next())) {
            (Some(high), Some(low)) => out.push((high * 16 + low) as u8),
            _ => return Err(malformed(name)),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uri_names_token_key_library_and_the_file_of_the_pin() {
        let uri = Pkcs11Uri::parse(
            "pkcs11:token=my%20device;object=hub-key;id=%01%fe;type=private?module-path=/usr/lib/p11.so&pin-source=file:/etc/pin",
        )
        .expect("well-formed");
        assert_eq!(uri.token.as_deref(), Some("my device"));
        assert_eq!(uri.object.as_deref(), Some("hub-key"));
        assert_eq!(uri.id.as_deref(), Some(&[1, 0xfe][..]));
        assert_eq!(uri.module, PathBuf::from("/usr/lib/p11.so"));
        assert_eq!(uri.pin, Some(Pin::File("/etc/pin".into())));
        let uri = Pkcs11Uri::parse("pkcs11:object=k?module-path=/p.so&pin-value=1234").expect("well-formed");
        assert!(!format!("{uri:?}").contains("1234"));
    }

    #[test]
    fn what_would_be_ignored_is_refused() {
        for (text, says) in [
            ("file:/x", "not a pkcs11: URI"),
            ("pkcs11:object=k", "module-path"),
            ("pkcs11:token=t?module-path=/p.so", "object=… or id=…"),
            ("pkcs11:object=k;slot-id=3?module-path=/p.so", "\"slot-id\""),
            ("pkcs11:object=k?module-path=/p.so&module-name=x", "\"module-name\""),
            ("pkcs11:object=k;id=%0?module-path=/p.so", "not well-formed"),
            ("pkcs11:object=k;type=cert?module-path=/p.so", "private or secret-key"),
            ("pkcs11:object=k?module-path=/p.so&pin-source=pin", "file:/the/path"),
        ] {
            let error = Pkcs11Uri::parse(text).expect_err(text);
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
