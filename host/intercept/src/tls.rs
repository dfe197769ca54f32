//! TLS of both sides: what the guest's ClientHello asks for, and upstream's verification.

use std::sync::Arc;

use policy::{HOST_SERVICES, Name};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

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
        (FlowHost::Name(name), Some(sni)) => same_name(name, sni),
        (FlowHost::Address(_), Some(_)) => false,
    }
}

/// Compares a name with what a client wrote: each name of the user's own machine is as good as another.
pub(crate) fn same_name(name: &Name, written: &str) -> bool {
    name.as_str().eq_ignore_ascii_case(written.strip_suffix('.').unwrap_or(written))
        || is_host_service(name, written)
}

/// Whether a flow to the user's own machine is called by one of its names.
pub(crate) fn is_host_service(name: &Name, written: &str) -> bool {
    name.is_host_service() && Name::parse(written).is_ok_and(|written| written.is_host_service())
}

/// Verifies as webpki does. A certificate of the user's own machine may have any of its names: whoever made it for `localhost` made it for
/// the same service.
#[derive(Debug)]
struct OneHost(Arc<WebPkiServerVerifier>);

impl ServerCertVerifier for OneHost {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verify = |name: &ServerName<'_>| {
            self.0.verify_server_cert(end_entity, intermediates, name, ocsp_response, now)
        };
        let outcome = verify(server_name);
        let is_ours =
            matches!(server_name, ServerName::DnsName(name) if HOST_SERVICES.contains(&name.as_ref()));
        if outcome.is_ok() || !is_ours {
            return outcome;
        }
        let mut others = HOST_SERVICES.iter().filter_map(|name| ServerName::try_from(*name).ok());
        others.find_map(|name| verify(&name).ok()).map_or(outcome, Ok)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
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
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(OneHost(verifier)))
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

/// The name that upstream's certificate has to have. The user's own machine is asked by the name that the guest has for it.
pub(crate) fn server_name(host: &FlowHost, sni: Option<&str>) -> Option<ServerName<'static>> {
    match host {
        FlowHost::Name(name) => {
            let asked = sni.filter(|sni| is_host_service(name, sni)).and_then(|sni| Name::parse(sni).ok());
            ServerName::try_from(asked.as_ref().unwrap_or(name).as_str().to_owned()).ok()
        }
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

    #[test]
    fn the_users_own_machine_may_be_asked_for_by_each_of_its_names_and_no_other_host() {
        let flow = |name: &str| Flow { host: FlowHost::Name(Name::parse(name).unwrap()), port: 8443 };
        for one in HOST_SERVICES {
            for other in HOST_SERVICES {
                assert!(sni_agrees(&flow(one), Some(other)), "{one} {other}");
                let name = server_name(&flow(one).host, Some(other)).unwrap();
                assert_eq!(name, ServerName::try_from(other).unwrap(), "it is asked for as the guest did");
            }
            for other in ["api.example.com", "a.localhost", "docker.internal", "host.viv.internal..", ""] {
                assert!(!sni_agrees(&flow(one), Some(other)), "{one} {other}");
                assert!(!sni_agrees(&flow("api.example.com"), Some(one)), "{one}");
                let name = server_name(&flow(one).host, Some(other)).unwrap();
                assert_eq!(name, ServerName::try_from(one).unwrap());
            }
            let name = server_name(&flow("api.example.com").host, Some(one)).unwrap();
            assert_eq!(name, ServerName::try_from("api.example.com").unwrap());
        }
        assert!(sni_agrees(&flow("api.example.com"), Some("API.example.com.")));
        assert!(!sni_agrees(&flow("api.example.com"), Some("api.example.com..")));
        assert!(!sni_agrees(&flow("api.example.com"), Some("www.example.com")));
    }
}
