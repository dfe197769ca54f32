//! TLS of both sides: what the guest's ClientHello asks for, and upstream's verification.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};

use crate::leaf::Alpn;
use crate::{Flow, FlowHost, InterceptError};

/// What of HTTP a client offered by ALPN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Offer {
    /// Both versions.
    Both,
    /// HTTP/2 alone (gRPC clients).
    Http2,
    /// HTTP/1.1 alone, or nothing was said.
    Http1,
}

/// What the ClientHello offers; the second is false when there was no ALPN at all. `None`: other protocols only, which
/// nobody can look into.
pub(crate) fn offer<'a>(alpn: Option<impl Iterator<Item = &'a [u8]>>) -> Option<(Offer, bool)> {
    let Some(protocols) = alpn else { return Some((Offer::Http1, false)) };
    let (mut h2, mut http1) = (false, false);
    for protocol in protocols {
        h2 |= protocol == b"h2";
        http1 |= protocol == b"http/1.1";
    }
    match (h2, http1) {
        (true, true) => Some((Offer::Both, true)),
        (true, false) => Some((Offer::Http2, true)),
        (false, true) => Some((Offer::Http1, true)),
        (false, false) => None,
    }
}

/// What the guest is told, after upstream has chosen (`h2`), or could not be asked (`None`).
pub(crate) fn answer(offer: Offer, said: bool, upstream_h2: Option<bool>) -> Alpn {
    match (offer, said) {
        (_, false) => Alpn::None,
        (Offer::Http1, true) => Alpn::Http1,
        (Offer::Http2, true) => Alpn::H2,
        (Offer::Both, true) if upstream_h2 == Some(false) => Alpn::Http1,
        (Offer::Both, true) => Alpn::H2,
    }
}

/// Is the name in the ClientHello the flow's? Names are compared without case and final dot; a flow to an address has no
/// name (RFC 6066 §3 forbids addresses there), and a hello without one is for the flow's host.
pub(crate) fn sni_agrees(flow: &Flow, sni: Option<&str>) -> bool {
    match (&flow.host, sni) {
        (_, None) => true,
        (FlowHost::Name(name), Some(sni)) => same_name(name.as_str(), sni),
        (FlowHost::Address(_), Some(_)) => false,
    }
}

/// Compares a name with what a client wrote.
pub(crate) fn same_name(name: &str, written: &str) -> bool {
    name.eq_ignore_ascii_case(written.strip_suffix('.').unwrap_or(written))
}

/// Client configurations for one set of roots; they differ in ALPN alone and share the session store.
#[derive(Clone)]
pub(crate) struct UpstreamTls {
    both: Arc<ClientConfig>,
    http2: Arc<ClientConfig>,
    http1: Arc<ClientConfig>,
}

impl UpstreamTls {
    /// Trusts `roots` (DER) and nothing else; the second is how many of them could be used.
    pub(crate) fn new(
        roots: &[Vec<u8>],
        provider: &Arc<CryptoProvider>,
    ) -> Result<(Self, usize), InterceptError> {
        let wrong = |what: String| InterceptError::Roots(what);
        let mut store = RootCertStore::empty();
        let (usable, _) =
            store.add_parsable_certificates(roots.iter().map(|root| CertificateDer::from(root.as_slice())));
        if store.is_empty() {
            return Err(wrong("none of the host's roots can be used".into()));
        }
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(store), Arc::clone(provider))
            .build()
            .map_err(|e| wrong(e.to_string()))?;
        let base = ClientConfig::builder_with_provider(Arc::clone(provider))
            .with_safe_default_protocol_versions()
            .map_err(|e| wrong(e.to_string()))?
            .with_webpki_verifier(verifier)
            .with_no_client_auth();
        let config = |alpn: &[&[u8]]| {
            let mut config = base.clone();
            config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
            Arc::new(config)
        };
        Ok((
            Self {
                both: config(&[b"h2", b"http/1.1"]),
                http2: config(&[b"h2"]),
                http1: config(&[b"http/1.1"]),
            },
            usable,
        ))
    }

    pub(crate) fn config(&self, offer: Offer) -> Arc<ClientConfig> {
        Arc::clone(match offer {
            Offer::Both => &self.both,
            Offer::Http2 => &self.http2,
            Offer::Http1 => &self.http1,
        })
    }
}

/// The name that upstream's certificate has to have.
pub(crate) fn server_name(host: &FlowHost) -> Option<ServerName<'static>> {
    match host {
        FlowHost::Name(name) => ServerName::try_from(name.as_str().to_owned()).ok(),
        FlowHost::Address(address) => Some(ServerName::from(*address)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offers_and_answers_agree() {
        let of = |list: &[&'static [u8]]| offer(Some(list.iter().copied()));
        assert_eq!(offer(None::<std::vec::IntoIter<&[u8]>>), Some((Offer::Http1, false)));
        assert_eq!(of(&[b"h2", b"http/1.1"]), Some((Offer::Both, true)));
        assert_eq!(of(&[b"h2"]), Some((Offer::Http2, true)));
        assert_eq!(of(&[b"http/1.1", b"http/1.0"]), Some((Offer::Http1, true)));
        assert_eq!(of(&[b"postgresql"]), None);
        assert_eq!(of(&[]), None);
        assert_eq!(answer(Offer::Both, true, Some(true)), Alpn::H2);
        assert_eq!(answer(Offer::Both, true, Some(false)), Alpn::Http1);
        assert_eq!(answer(Offer::Both, true, None), Alpn::H2);
        assert_eq!(answer(Offer::Http1, true, Some(true)), Alpn::Http1);
        assert_eq!(answer(Offer::Http1, false, Some(false)), Alpn::None);
    }
}
