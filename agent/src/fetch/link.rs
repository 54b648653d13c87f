//! Links of grants. Each is a secret: no error and no log line repeats one.

use hyper::Uri;

use crate::config::is_loopback;

/// Why a link is not followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LinkError {
    #[error("the link is not a URL")]
    Malformed,
    #[error("the link is neither https:// nor http://")]
    Scheme,
    #[error(
        "the link leads to another machine without TLS: anyone on the way could read it. If that is meant, say \
         `http = true` in [download]"
    )]
    Plain,
    #[error("the server leads from https:// to a place without TLS")]
    Downgrade,
}

/// Checks the link of a grant; `http` allows links without TLS to other machines.
pub(crate) fn check(link: &str, http: bool) -> Result<Uri, LinkError> {
    let link: Uri = link.parse().map_err(|_| LinkError::Malformed)?;
    let host = link.host().ok_or(LinkError::Malformed)?;
    match link.scheme_str() {
        Some("https") => Ok(link),
        Some("http") if http || is_loopback(host) => Ok(link),
        Some("http") => Err(LinkError::Plain),
        Some(_) => Err(LinkError::Scheme),
        None => Err(LinkError::Malformed),
    }
}

/// Where a redirection from `from` leads.
pub(crate) fn redirected(from: &Uri, location: &str, http: bool) -> Result<Uri, LinkError> {
    let (Some(scheme), Some(authority)) = (from.scheme_str(), from.authority()) else {
        return Err(LinkError::Malformed);
    };
    let location = location.split('#').next().unwrap_or_default();
    let colon = location.find(':').unwrap_or(usize::MAX);
    let absolute = if location.find(['/', '?']).is_none_or(|other| colon < other) && colon != usize::MAX {
        location.to_owned()
    } else if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else if location.starts_with('?') {
        format!("{scheme}://{authority}{}{location}", from.path())
    } else {
        let (directory, _) = from.path().rsplit_once('/').unwrap_or_default();
        format!("{scheme}://{authority}{directory}/{location}")
    };
    let to = check(&absolute, http)?;
    if scheme == "https" && to.scheme_str() != Some("https") { Err(LinkError::Downgrade) } else { Ok(to) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_with_tls_or_to_this_machine_are_followed_and_none_is_repeated() {
        for link in ["https://store.example/fw-2?sig=secret", "http://127.0.0.1:80/fw-2", "http://[::1]/fw-2"]
        {
            assert!(check(link, false).is_ok(), "{link}");
        }
        assert!(check("http://store.example/fw-2", true).is_ok());
        for (link, why) in [
            ("http://store.example/fw-2?sig=secret", "without TLS"),
            ("ftp://store.example/fw-2?sig=secret", "neither"),
            ("/fw-2?sig=secret", "not a URL"),
        ] {
            let error = check(link, false).expect_err(link).to_string();
            assert!(error.contains(why) && !error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn a_redirection_is_followed_from_where_it_was_met_and_never_away_from_tls() {
        let from: Uri = "https://store.example:8443/a/b?sig=1".parse().expect("a link");
        for (location, to) in [
            ("https://other.example/c?sig=2", "https://other.example/c?sig=2"),
            ("//other.example/c", "https://other.example/c"),
            ("/c?t=12:30", "https://store.example:8443/c?t=12:30"),
            ("c#top", "https://store.example:8443/a/c"),
            ("?sig=2", "https://store.example:8443/a/b?sig=2"),
        ] {
            assert_eq!(redirected(&from, location, false).expect(location).to_string(), to);
        }
        assert_eq!(redirected(&from, "http://127.0.0.1/c", true), Err(LinkError::Downgrade));
        assert_eq!(redirected(&from, "file:///etc/passwd", true), Err(LinkError::Malformed));
    }
}
