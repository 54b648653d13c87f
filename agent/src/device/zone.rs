//! How far local time is ahead of UTC. The standard library does not say; `date` does, and knows about summer time.

use std::time::Duration;

use crate::command::Program;
use crate::install::Later;

/// Summer time begins and ends on the hour, and somebody may set another zone.
const AGAIN: Duration = Duration::from_secs(900);

/// The seconds, after a while; at once the first time.
pub(super) fn ask(first: bool) -> Later<i32> {
    Box::pin(async move {
        loop {
            if !first {
                tokio::time::sleep(AGAIN).await;
            }
            match Program::new("date").arg("+%z").succeed().await {
                Ok(said) => match parse(&String::from_utf8_lossy(&said)) {
                    Some(seconds) => return seconds,
                    None => tracing::error!("`date +%z` says what is no offset: windows are taken as UTC"),
                },
                Err(error) => tracing::error!(%error, "local time is not known: windows are taken as UTC"),
            }
            if first {
                return 0;
            }
        }
    })
}

/// The seconds, asked once, for a program that has nothing else to do; `None` if `date` does not say.
#[must_use]
pub fn utc_offset() -> Option<i32> {
    let said = std::process::Command::new("date").arg("+%z").output().ok()?;
    parse(&String::from_utf8_lossy(&said.stdout))
}

/// The seconds of `+0130`.
fn parse(text: &str) -> Option<i32> {
    let text = text.trim();
    let (sign, digits) = match text.as_bytes().first()? {
        b'+' => (1, &text[1..]),
        b'-' => (-1, &text[1..]),
        _ => return None,
    };
    if digits.len() != 4 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: i32 = digits.parse().ok()?;
    Some(sign * (number / 100 * 3600 + number % 100 * 60))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offset_is_read_east_and_west_of_greenwich() {
        assert_eq!(parse("+0000\n"), Some(0));
        assert_eq!(parse("+0530\n"), Some(19_800));
        assert_eq!(parse("-0930"), Some(-34_200));
        for text in ["", "UTC", "+05", "+05:30", "+é1"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
