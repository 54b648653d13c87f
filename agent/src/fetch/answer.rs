//! What an answer to a request for a range means.

use std::time::{Duration, SystemTime};

use fleetwave_agent_core::FetchError;
use hyper::StatusCode;
use hyper::header::{self, HeaderMap, HeaderName};

/// What to do with an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Take its body.
    Take(Body),
    /// Ask there instead.
    Elsewhere(String),
    /// The store holds `total` bytes and no more: the comparison with what was signed will say what that means.
    Short {
        /// All that the store has.
        total: u64,
    },
    /// Stop.
    Stop(FetchError, String),
}

/// Which bytes a body brings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Body {
    /// The first one's place in the payload.
    pub(crate) start: u64,
    /// The place behind the last one that is wanted.
    pub(crate) end: u64,
    /// A strong entity tag, if the server gave one.
    pub(crate) etag: Option<String>,
    /// The server has other bytes than those that are here: begin again.
    pub(crate) changed: bool,
}

/// Reads the answer to a request for the bytes from `offset` to `size`, which was conditional on `etag` if there is
/// one.
pub(crate) fn read(
    status: StatusCode,
    headers: &HeaderMap,
    offset: u64,
    size: u64,
    etag: Option<&str>,
) -> Answer {
    let stop = |error, why: &str| Answer::Stop(error, format!("{status}: {why}"));
    if text(headers, header::CONTENT_ENCODING).is_some_and(|coding| coding != "identity") {
        return stop(FetchError::Protocol, "the body is compressed, which nobody asked for");
    }
    let current = text(headers, header::ETAG).filter(|tag| tag.starts_with('"')).map(str::to_owned);
    match status {
        StatusCode::PARTIAL_CONTENT => {
            if let (Some(known), Some(current)) = (etag, &current)
                && known != current
            {
                return stop(FetchError::Protocol, "a part of other bytes than were asked for");
            }
            match text(headers, header::CONTENT_RANGE).and_then(content_range) {
                Some((_, _, Some(total))) if total < size => Answer::Short { total },
                Some((start, last, _)) if start == offset && (start..size).contains(&last) => {
                    Answer::Take(Body { start, end: last + 1, etag: current, changed: false })
                }
                _ => stop(FetchError::Protocol, "another range than the one asked for"),
            }
        }
        StatusCode::OK => {
            let length = text(headers, header::CONTENT_LENGTH).and_then(|text| text.parse().ok());
            match length {
                Some(total) if total < size => Answer::Short { total },
                _ => {
                    // A server without ranges sends the same bytes again; one that was asked on a condition says by
                    // this answer that they are others now, unless it names them as it did before.
                    let changed = offset > 0 && etag.is_some() && current.as_deref() != etag;
                    Answer::Take(Body { start: 0, end: size, etag: current, changed })
                }
            }
        }
        StatusCode::RANGE_NOT_SATISFIABLE => {
            match text(headers, header::CONTENT_RANGE)
                .and_then(|text| text.strip_prefix("bytes */")?.parse().ok())
            {
                Some(total) if total < size => Answer::Short { total },
                _ => stop(FetchError::Protocol, "the server does not have the range"),
            }
        }
        StatusCode::MOVED_PERMANENTLY
        | StatusCode::FOUND
        | StatusCode::SEE_OTHER
        | StatusCode::TEMPORARY_REDIRECT
        | StatusCode::PERMANENT_REDIRECT => match text(headers, header::LOCATION) {
            Some(location) => Answer::Elsewhere(location.to_owned()),
            None => stop(FetchError::Protocol, "a redirection that leads nowhere"),
        },
        StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED => {
            stop(FetchError::Forbidden, "the link is not good")
        }
        StatusCode::NOT_FOUND | StatusCode::GONE => stop(FetchError::NotFound, "there is no such payload"),
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
            stop(FetchError::Busy(retry_after(headers, SystemTime::now())), "the server is busy")
        }
        StatusCode::REQUEST_TIMEOUT => stop(FetchError::Interrupted, "the request took too long"),
        StatusCode::PROXY_AUTHENTICATION_REQUIRED => {
            stop(FetchError::Interrupted, "the proxy wants to know who asks: see `proxy` in [download]")
        }
        status if status.is_server_error() => stop(FetchError::Server, "the server failed"),
        _ => stop(FetchError::Protocol, "an answer that makes no sense here"),
    }
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

/// First byte, last byte and total of `bytes 0-99/200` or `bytes 0-99/*`.
fn content_range(text: &str) -> Option<(u64, u64, Option<u64>)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let total = if total == "*" { None } else { Some(total.parse().ok()?) };
    Some((first.parse().ok()?, last.parse().ok()?, total))
}

/// The pause that the server asks for: a number of seconds or a date. A date counts from the server's own, if it told
/// it: a device's clock may be anywhere.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Duration {
    let Some(after) = text(headers, header::RETRY_AFTER) else { return Duration::ZERO };
    if let Ok(seconds) = after.parse() {
        return Duration::from_secs(seconds);
    }
    let date = |text| httpdate::parse_http_date(text).ok();
    let here = text(headers, header::DATE).and_then(date).unwrap_or(now);
    date(after).and_then(|then| then.duration_since(here).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(HeaderName, &'static str)]) -> HeaderMap {
        let lines = lines.iter().cloned();
        lines.map(|(name, value)| (name, header::HeaderValue::from_static(value))).collect()
    }

    fn body(answer: Answer) -> Body {
        match answer {
            Answer::Take(body) => body,
            other => panic!("no body to take: {other:?}"),
        }
    }

    fn error(answer: Answer) -> FetchError {
        match answer {
            Answer::Stop(error, _) => error,
            other => panic!("no reason to stop: {other:?}"),
        }
    }

    #[test]
    fn a_part_is_taken_if_it_is_the_one_that_was_asked_for() {
        let part = |range| headers(&[(header::CONTENT_RANGE, range), (header::ETAG, "\"a\"")]);
        let read = |range, etag| read(StatusCode::PARTIAL_CONTENT, &part(range), 5, 10, etag);
        let whole = body(read("bytes 5-9/10", None));
        assert_eq!(
            (whole.start, whole.end, whole.etag.as_deref(), whole.changed),
            (5, 10, Some("\"a\""), false)
        );
        assert_eq!(body(read("bytes 5-6/*", None)).end, 7);
        assert_eq!(body(read("bytes 5-9/512", Some("\"a\""))).end, 10, "the store may hold more");
        for range in ["bytes 4-9/10", "bytes 5-10/11", "bytes 5-/10", "5-9/10", ""] {
            assert_eq!(error(read(range, None)), FetchError::Protocol, "{range}");
        }
        assert_eq!(error(read("bytes 5-9/10", Some("\"b\""))), FetchError::Protocol);
    }

    #[test]
    fn a_store_that_has_less_than_was_signed_is_seen_before_any_byte_is_taken() {
        let short = Answer::Short { total: 7 };
        let part = headers(&[(header::CONTENT_RANGE, "bytes 5-6/7")]);
        assert_eq!(read(StatusCode::PARTIAL_CONTENT, &part, 5, 10, None), short);
        let whole = headers(&[(header::CONTENT_LENGTH, "7")]);
        assert_eq!(read(StatusCode::OK, &whole, 0, 10, None), short);
        let none = headers(&[(header::CONTENT_RANGE, "bytes */7")]);
        assert_eq!(read(StatusCode::RANGE_NOT_SATISFIABLE, &none, 8, 10, None), short);
        let enough = headers(&[(header::CONTENT_RANGE, "bytes */10")]);
        assert_eq!(
            error(read(StatusCode::RANGE_NOT_SATISFIABLE, &enough, 8, 10, None)),
            FetchError::Protocol
        );
    }

    #[test]
    fn a_whole_answer_to_a_question_for_a_part_is_other_bytes_only_if_the_server_says_so() {
        let whole = headers(&[(header::CONTENT_LENGTH, "10"), (header::ETAG, "\"a\"")]);
        let changed = |etag| body(read(StatusCode::OK, &whole, 5, 10, etag)).changed;
        assert!(!changed(None) && !changed(Some("\"a\"")) && changed(Some("\"b\"")));
        let weak = headers(&[(header::ETAG, "W/\"a\"")]);
        assert_eq!(body(read(StatusCode::OK, &weak, 0, 10, None)).etag, None, "good for no condition");
    }

    #[test]
    fn a_pause_is_read_as_seconds_and_as_a_date_by_the_servers_own_clock() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        let pause = |lines: &[(HeaderName, &'static str)]| retry_after(&headers(lines), now).as_secs();
        assert_eq!(pause(&[(header::RETRY_AFTER, "120")]), 120);
        assert_eq!(pause(&[(header::RETRY_AFTER, "Sun, 06 Nov 1994 08:50:37 GMT")]), 60);
        let dated = [
            (header::DATE, "Sun, 06 Nov 2044 08:49:37 GMT"),
            (header::RETRY_AFTER, "Sun, 06 Nov 2044 08:49:40 GMT"),
        ];
        assert_eq!(pause(&dated), 3);
        assert_eq!(pause(&[(header::RETRY_AFTER, "soon")]), 0);
        assert_eq!(pause(&[]), 0);
    }

    #[test]
    fn each_refusal_has_its_own_cause() {
        let stop = |status| error(read(status, &HeaderMap::new(), 0, 10, None));
        assert_eq!(stop(StatusCode::UNAUTHORIZED), FetchError::Forbidden);
        assert_eq!(stop(StatusCode::GONE), FetchError::NotFound);
        assert_eq!(stop(StatusCode::SERVICE_UNAVAILABLE), FetchError::Busy(Duration::ZERO));
        assert_eq!(stop(StatusCode::BAD_GATEWAY), FetchError::Server);
        assert_eq!(stop(StatusCode::IM_A_TEAPOT), FetchError::Protocol);
        let zipped = headers(&[(header::CONTENT_ENCODING, "gzip")]);
        assert_eq!(error(read(StatusCode::OK, &zipped, 0, 10, None)), FetchError::Protocol);
    }
}
