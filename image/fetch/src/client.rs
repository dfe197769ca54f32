//! HTTP(S), and nothing of files: one agent for all requests.

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use ureq::tls::{RootCerts, TlsConfig, TlsProvider};

use crate::FetchError;

/// An HTTP client. TLS servers are judged by the system's own root certificates (`SSL_CERT_FILE` and `SSL_CERT_DIR`
/// are honoured), so that companies which re-sign traffic are no obstacle; proxies come from the usual variables.
#[derive(Debug, Clone)]
pub struct Client {
    agent: ureq::Agent,
}

/// A body on its way, and where in the file it starts.
pub(crate) struct Body {
    pub(crate) reader: Box<dyn Read + Send>,
    pub(crate) start: u64,
}

/// Why a request gave no body.
pub(crate) enum Refusal {
    /// No such file: asking again will not help.
    Gone,
    /// The partial file does not fit: start over.
    BadRange,
    /// Something that asking again will not change.
    Final(String),
    /// Something that may be over in a moment.
    Passing(String),
}

impl Default for Client {
    fn default() -> Self {
        Self::new()
    }
}

impl Client {
    /// A client with this project's time limits: 20 s to connect, 60 s of silence in a transfer.
    #[must_use]
    pub fn new() -> Self {
        let tls = TlsConfig::builder()
            .provider(TlsProvider::Rustls)
            .root_certs(RootCerts::PlatformVerifier)
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .build();
        let config = ureq::Agent::config_builder()
            .tls_config(tls)
            .http_status_as_error(false)
            .user_agent(concat!("vivarium/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(Duration::from_secs(20)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            .timeout_per_read(Some(Duration::from_secs(60)))
            .build();
        Self { agent: config.into() }
    }

    /// Reads a small document of at most `limit` bytes, with retries.
    ///
    /// # Errors
    /// If it is gone, too large, or cannot be had.
    pub fn get(&self, url: &str, limit: u64) -> Result<Vec<u8>, FetchError> {
        let mut waits = crate::cache::back_off();
        loop {
            let reason = match self.request(url, 0) {
                Ok(body) => {
                    let mut bytes = Vec::new();
                    match body.reader.take(limit.saturating_add(1)).read_to_end(&mut bytes) {
                        Ok(_) if u64::try_from(bytes.len()).is_ok_and(|len| len <= limit) => {
                            return Ok(bytes);
                        }
                        Ok(_) => return Err(FetchError::TooLarge { url: url.to_owned(), limit }),
                        Err(error) => error.to_string(),
                    }
                }
                Err(Refusal::Gone) => return Err(FetchError::Gone { url: url.to_owned() }),
                Err(Refusal::Final(reason)) => {
                    return Err(FetchError::Network { url: url.to_owned(), reason });
                }
                Err(Refusal::BadRange) => "the server answered with a range".to_owned(),
                Err(Refusal::Passing(reason)) => reason,
            };
            match waits.next() {
                Some(wait) => std::thread::sleep(wait),
                None => return Err(FetchError::Network { url: url.to_owned(), reason }),
            }
        }
    }

    /// Whether the server of an address answers at all, whatever it says, within `patience`.
    ///
    /// # Errors
    /// If it does not.
    pub fn check_server(&self, url: &str, patience: Duration) -> Result<(), FetchError> {
        let head = self.agent.head(url).config().timeout_global(Some(patience)).max_redirects(0).build();
        match head.call() {
            Ok(_) | Err(ureq::Error::TooManyRedirects) => Ok(()),
            Err(error) => Err(FetchError::Network { url: url.to_owned(), reason: in_words(&error) }),
        }
    }

    /// Asks for a file from byte `from` on.
    pub(crate) fn request(&self, url: &str, from: u64) -> Result<Body, Refusal> {
        let mut request = self.agent.get(url);
        if from > 0 {
            request = request.header("Range", format!("bytes={from}-"));
        }
        let response = request.call().map_err(|error| match error {
            ureq::Error::BadUri(_) | ureq::Error::Http(_) | ureq::Error::InvalidProxyUrl => {
                Refusal::Final(error.to_string())
            }
            other => Refusal::Passing(in_words(&other)),
        })?;
        let status = response.status().as_u16();
        let start = match status {
            200 => 0,
            206 => range_start(&response).filter(|start| *start == from).ok_or(Refusal::BadRange)?,
            404 | 410 => return Err(Refusal::Gone),
            416 => return Err(Refusal::BadRange),
            408 | 425 | 429 | 500..=599 => return Err(Refusal::Passing(format!("the server said {status}"))),
            _ => return Err(Refusal::Final(format!("the server said {status}"))),
        };
        let reader = response.into_body().into_with_config().limit(u64::MAX).reader();
        Ok(Body { reader: Box::new(reader), start })
    }
}

/// An error for people: without the numbers of the system's errors.
fn in_words(error: &ureq::Error) -> String {
    let text = match error {
        ureq::Error::Io(error) => error.to_string(),
        other => other.to_string(),
    };
    match text.split_once(" (os error ") {
        Some((words, _)) => words.to_owned(),
        None => text,
    }
}

/// The first byte's position out of `Content-Range: bytes 5-9/10` (RFC 9110 §14.4).
fn range_start(response: &ureq::http::Response<ureq::Body>) -> Option<u64> {
    let value = response.headers().get("content-range")?.to_str().ok()?;
    value.strip_prefix("bytes ")?.split('-').next()?.trim().parse().ok()
}
