//! Who may use the server.

use std::env;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use anyhow::{Context, Result, bail};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::Response;

use crate::app::Shared;
use crate::error::ApiError;

/// The variable of the environment that has the key if no file is named.
const VARIABLE: &str = "EMBER_API_KEY";
/// A key that can be guessed is none.
const SHORTEST: usize = 16;

/// The keys that clients may use; none of them is kept itself.
///
/// Keys are compared by their hashes, in a time that depends on neither ([`blake3::Hash`] compares in
/// constant time, and all of them are always looked at).
#[derive(Debug, Clone, Default)]
pub(crate) struct Keys(Vec<blake3::Hash>);

impl Keys {
    /// Those of `file`, or else of the environment.
    pub(crate) fn find(file: Option<&Path>) -> Result<Self> {
        if let Some(path) = file {
            let text = fs::read_to_string(path)
                .with_context(|| format!("cannot read the keys in {}", path.display()))?;
            let keys = Self::of_lines(&text).with_context(|| path.display().to_string())?;
            if keys.is_empty() {
                bail!("{}: there is no key in it", path.display());
            }
            return Ok(keys);
        }
        match env::var(VARIABLE) {
            Err(env::VarError::NotPresent) => Ok(Self::default()),
            Ok(key) => Self::of_lines(&key).with_context(|| format!("the variable {VARIABLE}")),
            Err(error) => Err(error).with_context(|| format!("the variable {VARIABLE}")),
        }
    }

    /// One key a line.
    pub(crate) fn of_lines(text: &str) -> Result<Self> {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let keys = lines.map(|key| {
            if key.len() < SHORTEST {
                bail!("a key has at least {SHORTEST} characters; `openssl rand -hex 32` makes one");
            }
            // What can be sent after `Bearer ` (RFC 6750, section 2.1, and any other visible one).
            if !key.bytes().all(|byte| byte.is_ascii_graphic()) {
                bail!("a key is of visible ASCII characters; `openssl rand -hex 32` makes one");
            }
            Ok(blake3::hash(key.as_bytes()))
        });
        keys.collect::<Result<_>>().map(Self)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Refuses to listen where others than this machine's users could run what they like.
    pub(crate) fn suffice_for(&self, address: SocketAddr) -> Result<()> {
        if self.is_empty() && !address.ip().is_loopback() {
            bail!(
                "without a key, whoever can reach {address} could run code on this machine: name a \
                 file with one (--key-file), or set {VARIABLE}, or listen on 127.0.0.1"
            );
        }
        Ok(())
    }

    fn has(&self, key: &str) -> bool {
        let given = blake3::hash(key.as_bytes());
        let mut found = false;
        for key in &self.0 {
            found |= *key == given;
        }
        found
    }

    fn check(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        if self.is_empty() {
            return from_here(headers);
        }
        let Some(value) = headers.get(header::AUTHORIZATION) else {
            return Err(ApiError::unauthorized("Missing Authorization header"));
        };
        // Its name is of any case (RFC 9110, section 11.1).
        let given = value.to_str().ok().and_then(|value| {
            let (scheme, key) = value.split_once(' ')?;
            scheme
                .eq_ignore_ascii_case("bearer")
                .then_some(key.trim_matches(' '))
        });
        match given {
            Some(key) if self.has(key) => Ok(()),
            _ => Err(ApiError::unauthorized("Invalid API key")),
        }
    }
}

/// Without a key, a web page that somebody on this machine looks at must not be able to run code
/// here: a browser says for which page it asks (`Origin`), and whom it believes to ask (`Host`), which
/// is another than this machine if the page has rebound its name.
fn from_here(headers: &HeaderMap) -> Result<(), ApiError> {
    if headers.contains_key(header::ORIGIN) {
        return Err(ApiError::forbidden(
            "this server has no key, and does not answer web pages",
        ));
    }
    let host = headers.get(header::HOST).map(|host| host.to_str());
    match host {
        // HTTP/1.0, which no browser speaks.
        None => Ok(()),
        Some(Ok(host)) if is_loopback(host) => Ok(()),
        Some(_) => Err(ApiError::forbidden(
            "this server has no key, and answers only to localhost and loopback addresses",
        )),
    }
}

/// Whether what a `Host` header has is this machine for itself.
fn is_loopback(host: &str) -> bool {
    if let Ok(address) = host.parse::<SocketAddr>() {
        return address.ip().is_loopback();
    }
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost")
        || bare
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

/// Lets pass who may.
pub(crate) async fn require(
    State(app): State<Shared>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    app.keys.check(request.headers())?;
    Ok(next.run(request).await)
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    const KEY: &str = "0123456789abcdef0123";

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let pairs = pairs.iter().map(|(name, value)| {
            let value = HeaderValue::from_str(value).unwrap();
            (name.parse::<header::HeaderName>().unwrap(), value)
        });
        pairs.collect()
    }

    #[test]
    fn only_a_key_that_is_known_lets_pass() {
        let keys = Keys::of_lines(&format!("{KEY}\n\n  another-key-of-some-length \n")).unwrap();
        let with = |value: &str| keys.check(&headers(&[("authorization", value)]));
        for right in [
            format!("Bearer {KEY}"),
            format!("bearer  {KEY}"),
            "Bearer another-key-of-some-length".to_owned(),
        ] {
            with(&right).unwrap();
        }
        for wrong in [
            "",
            "Bearer",
            "Bearer ",
            KEY,
            "Basic 0123456789abcdef0123",
            "Bearer 0123456789abcdef012",
            "Bearer 0123456789abcdef01234",
        ] {
            assert_eq!(with(wrong).unwrap_err().status.as_u16(), 401, "{wrong:?}");
        }
        assert_eq!(keys.check(&headers(&[])).unwrap_err().status.as_u16(), 401);
    }

    #[test]
    fn a_weak_key_is_refused() {
        for weak in ["short", "has a space in its midst", "schlüssel-und-umlaut"] {
            Keys::of_lines(weak).unwrap_err();
        }
        assert!(Keys::of_lines("\n\n").unwrap().is_empty());
    }

    #[test]
    fn without_a_key_only_loopback_is_listened_on() {
        let open = Keys::default();
        let keyed = Keys::of_lines(KEY).unwrap();
        for (address, is_loopback) in [
            ("127.0.0.1:80", true),
            ("127.1.2.3:80", true),
            ("[::1]:80", true),
            ("0.0.0.0:80", false),
            ("[::]:80", false),
            ("10.0.0.1:80", false),
        ] {
            let address: SocketAddr = address.parse().unwrap();
            assert_eq!(open.suffice_for(address).is_ok(), is_loopback, "{address}");
            keyed.suffice_for(address).unwrap();
        }
        let error = open.suffice_for(([0, 0, 0, 0], 1).into()).unwrap_err();
        assert!(error.to_string().contains("--key-file"), "{error}");
    }

    #[test]
    fn without_a_key_web_pages_are_not_answered() {
        let open = Keys::default();
        for host in [
            "localhost",
            "LOCALHOST:8080",
            "127.0.0.1:8080",
            "[::1]:80",
            "[::1]",
            "127.0.0.1",
        ] {
            open.check(&headers(&[("host", host)])).unwrap();
        }
        open.check(&headers(&[])).unwrap();
        for host in [
            "evil.example:8080",
            "localhost.evil.example",
            "10.0.0.1:80",
            "",
            "::",
        ] {
            let error = open.check(&headers(&[("host", host)])).unwrap_err();
            assert_eq!(error.status.as_u16(), 403, "{host:?}");
        }
        let page = headers(&[("host", "localhost"), ("origin", "https://evil.example")]);
        assert_eq!(open.check(&page).unwrap_err().status.as_u16(), 403);
    }
}
