//! Any text is a token or none, and no text is one that a key which it does not have has signed.
#![no_main]

use fleetwave_protocol::WallTime;
use fleetwave_protocol::sas::{self, Key, Token};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (&str, &str, u64)| {
    let (text, resource, expires) = input;
    let key = Key::from_bytes(*b"a key that no input has");
    for text in [text.to_owned(), format!("SharedAccessSignature {text}")] {
        if let Ok(token) = Token::parse(&text) {
            assert!(token.check(resource, WallTime::from_unix_millis(0), &key).is_err(), "{text}");
        }
    }
    let _ = Key::from_base64(text).map(|key| assert_eq!(Key::from_base64(&key.to_base64()), Some(key)));
    let expires = WallTime::from_unix_millis(expires);
    let policy = (!text.is_empty()).then_some(text);
    let made = sas::token(&key, resource, expires, policy);
    let token = Token::parse(&made).expect("a token that was made");
    assert_eq!((&*token.resource, token.policy.as_deref()), (resource, policy));
    assert!(token.is_signed_with(&key));
});
