//! Property bags: `key=value&key=value`, percent-encoded, as they stand in MQTT topics.
//!
//! Source: the IoT Hub guide to MQTT ("Sending device-to-cloud messages") and the SDKs, which encode the `$`
//! of system properties too: look at *decoded* keys only.

use std::borrow::Cow;

/// Bytes that stand for themselves: RFC 3986's unreserved characters.
const fn unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// Appends `text`, percent-encoded, to `out`.
pub fn encode_into(text: &str, out: &mut String) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    for byte in text.bytes() {
        if unreserved(byte) {
            out.push(char::from(byte));
        } else {
            out.push('%');
            out.push(char::from(HEX[usize::from(byte >> 4)]));
            out.push(char::from(HEX[usize::from(byte & 15)]));
        }
    }
}

/// `text`, percent-encoded.
#[must_use]
pub fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    encode_into(text, &mut out);
    out
}

/// `text` without its percent-encoding, or `None` if it is not well-formed or not UTF-8.
#[must_use]
pub fn decode(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains('%') {
        return Some(Cow::Borrowed(text));
    }
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let high = char::from(bytes.next()?).to_digit(16)?;
            let low = char::from(bytes.next()?).to_digit(16)?;
            out.push((high * 16 + low) as u8);
        } else {
            out.push(byte);
        }
    }
    String::from_utf8(out).ok().map(Cow::Owned)
}

/// Appends `key=value` to a bag, with `&` if it is not the first member.
pub fn push(bag: &mut String, key: &str, value: &str) {
    if !bag.is_empty() {
        bag.push('&');
    }
    encode_into(key, bag);
    bag.push('=');
    encode_into(value, bag);
}

/// The members of a bag, decoded. A member without `=` has an empty value; one that is not well-formed ends
/// the iteration with `None` in its place.
pub fn members(bag: &str) -> impl Iterator<Item = Option<(Cow<'_, str>, Cow<'_, str>)>> {
    bag.split('&').filter(|member| !member.is_empty()).map(|member| {
        let (key, value) = member.split_once('=').unwrap_or((member, ""));
        Some((decode(key)?, decode(value)?))
    })
}

/// The value of `key` in a bag.
#[must_use]
pub fn get<'a>(bag: &'a str, key: &str) -> Option<Cow<'a, str>> {
    members(bag).flatten().find_map(|(k, v)| (k == key).then_some(v))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn system_properties_are_found_with_and_without_an_encoded_dollar() {
        for bag in ["$.mid=42&kind=grant", "%24.mid=42&kind=grant"] {
            assert_eq!(get(bag, "$.mid").as_deref(), Some("42"));
        }
        assert_eq!(get("a=1", "b"), None);
        assert_eq!(get("flag&a=1", "flag").as_deref(), Some(""));
    }

    proptest! {
        #[test]
        fn what_was_pushed_comes_out(pairs in prop::collection::vec((".{1,12}", ".{0,12}"), 0..5)) {
            let mut bag = String::new();
            for (key, value) in &pairs {
                push(&mut bag, key, value);
            }
            prop_assert!(!bag.contains(['/', '#', '+', '\0']), "{bag} cannot stand in a topic");
            let seen: Vec<(String, String)> =
                members(&bag).map(|m| m.expect("well-formed")).map(|(k, v)| (k.into(), v.into())).collect();
            prop_assert_eq!(seen, pairs);
        }

        #[test]
        fn no_text_makes_decoding_panic(text in ".*") {
            let _ = members(&text).count();
        }
    }
}
