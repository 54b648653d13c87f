//! Download grants: what the agent asks the cloud side for, and the answer. JSON, both directions, both sides.
//!
//! The request is telemetry with the property `kind=grant`; the answer is the direct method [`METHOD`], or a
//! cloud-to-device message with the property `kind=grant`, with the same body.

use core::time::Duration;

use fleetwave_protocol::time::WallTime;
use serde::{Deserialize, Serialize};

/// The property bag of a request, and of an answer by C2D message.
pub const PROPERTIES: &str = "kind=grant";

/// The name of the direct method that carries an answer.
pub const METHOD: &str = "grant";

/// A device asks for a link to the payload of a release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The release's name.
    pub id: String,
    /// Its sequence.
    pub seq: u64,
    /// The target that it is for; the firmware if that is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
}

/// The cloud side's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The release's name, as in the request.
    pub id: String,
    /// Its sequence, as in the request.
    pub seq: u64,
    /// The target, as in the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// The link, or why there is none.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// The link, or why there is none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// A link to this payload alone.
    Granted {
        /// Where the payload is; the signature is part of it, so it is a secret.
        url: String,
        /// Where its chunked archive is, if the release has one: a secret, too.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        delta_url: Option<String>,
        /// When the link ends, in seconds since the Unix epoch.
        expires: u64,
    },
    /// Ask again after so many seconds.
    RetryAfter(u32),
    /// This device does not get this release: its twin does not ask for it.
    Refused(String),
}

impl Answer {
    /// What the machine needs of it.
    #[must_use]
    pub fn decision(&self) -> crate::GrantAnswer {
        match &self.outcome {
            Outcome::Granted { expires, .. } => crate::GrantAnswer::Granted {
                expires: WallTime::from_unix_millis(expires.saturating_mul(1000)),
            },
            Outcome::RetryAfter(seconds) => {
                crate::GrantAnswer::Later(Duration::from_secs(u64::from(*seconds)))
            }
            Outcome::Refused(_) => crate::GrantAnswer::Refused,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_survives_json() {
        let url = "http://127.0.0.1/fw?sig=x";
        let granted = |delta_url| Outcome::Granted { url: url.into(), delta_url, expires: 2_000_000_000 };
        let refused = || Outcome::Refused("not desired".into());
        for outcome in [granted(None), granted(Some(url.into())), Outcome::RetryAfter(30), refused()] {
            for target in [None, Some("components.app".to_owned())] {
                let answer = Answer { id: "fw-2".into(), seq: 2, target, outcome: outcome.clone() };
                let text = serde_json::to_string(&answer).expect("serialises");
                assert_eq!(serde_json::from_str::<Answer>(&text).expect(&text), answer);
                assert_eq!(text.contains("target"), answer.target.is_some(), "{text}");
            }
        }
    }
}
