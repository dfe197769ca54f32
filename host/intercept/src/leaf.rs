//! Leaves: the certificate that a guest is shown for the name that it asked for, minted on demand.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use policy::HOST_SERVICES;
use rcgen::{
    CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{ClientHello, ResolvesServerCert, ServerSessionMemoryCache};
use rustls::sign::CertifiedKey;

use crate::ca::{IntermediateCa, seconds, set_validity, sign_leaf};
use crate::{FlowHost, InterceptError};

/// Leaves kept; beyond it the one that was used longest ago goes.
pub const MAX_LEAVES: usize = 256;
/// How long a leaf is good for, in days (never longer than its issuer).
pub const LEAF_DAYS: u64 = 7;
/// TLS sessions remembered per leaf, for resumption.
const SESSIONS: usize = 16;

/// What the guest is told of the application protocol (ALPN, RFC 7301).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Alpn {
    /// `h2`
    H2,
    /// `http/1.1`
    Http1,
    /// The client did not ask.
    None,
}

/// One leaf's server configurations; they differ in ALPN alone.
#[derive(Clone)]
struct Leaf {
    h2: Arc<ServerConfig>,
    http1: Arc<ServerConfig>,
    none: Arc<ServerConfig>,
    /// Seconds since 1970 from which it is made anew.
    renew: u64,
    used: u64,
}

/// The sandbox's leaves.
pub(crate) struct Leaves {
    issuer: Issuer<'static, KeyPair>,
    /// One key for all leaves: it never leaves this process, and the names it serves are told apart by their certificates.
    key: KeyPair,
    chain: Vec<u8>,
    not_after: u64,
    provider: Arc<CryptoProvider>,
    leaves: HashMap<FlowHost, Leaf>,
    clock: u64,
}

impl Leaves {
    pub(crate) fn new(ca: &IntermediateCa, provider: Arc<CryptoProvider>) -> Result<Self, InterceptError> {
        let certificate = |error: rcgen::Error| InterceptError::Certificate(error.to_string());
        Ok(Self {
            issuer: ca.issuer().map_err(certificate)?,
            key: KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(certificate)?,
            chain: ca.certificate.clone(),
            not_after: ca.not_after,
            provider,
            leaves: HashMap::new(),
            clock: 0,
        })
    }

    /// The configuration that serves `host`, with the protocol that was agreed on.
    pub(crate) fn config(
        &mut self,
        host: &FlowHost,
        alpn: Alpn,
        now: SystemTime,
    ) -> Result<Arc<ServerConfig>, InterceptError> {
        let seconds = seconds(now);
        self.clock = self.clock.wrapping_add(1);
        let known = self.leaves.get_mut(host).filter(|leaf| leaf.renew > seconds);
        let leaf = if let Some(leaf) = known {
            leaf.used = self.clock;
            leaf.clone()
        } else {
            let leaf = self.mint(host, now)?;
            self.make_room(host);
            self.leaves.insert(host.clone(), leaf.clone());
            leaf
        };
        Ok(match alpn {
            Alpn::H2 => leaf.h2,
            Alpn::Http1 => leaf.http1,
            Alpn::None => leaf.none,
        })
    }

    fn make_room(&mut self, host: &FlowHost) {
        if self.leaves.len() < MAX_LEAVES || self.leaves.contains_key(host) {
            return;
        }
        let oldest = self.leaves.iter().min_by_key(|(_, leaf)| leaf.used).map(|(name, _)| name.clone());
        if let Some(oldest) = oldest {
            self.leaves.remove(&oldest);
        }
    }

    fn mint(&self, host: &FlowHost, now: SystemTime) -> Result<Leaf, InterceptError> {
        let wrong = |what: String| InterceptError::Certificate(what);
        let begin = seconds(now);
        let not_after = begin.saturating_add(LEAF_DAYS * 86_400).min(self.not_after);
        let params = leaf_params(host, now, not_after).map_err(|e| wrong(e.to_string()))?;
        let leaf = sign_leaf(&params, &self.key, &self.issuer).map_err(|e| wrong(e.to_string()))?;
        let chain = vec![CertificateDer::from(leaf), CertificateDer::from(self.chain.clone())];
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.serialize_der()));
        let key = CertifiedKey::from_der(chain, key, &self.provider).map_err(|e| wrong(e.to_string()))?;
        let key = Arc::new(key);
        let config = |alpn: &[&[u8]]| server_config(&self.provider, &key, alpn);
        Ok(Leaf {
            h2: config(&[b"h2"])?,
            http1: config(&[b"http/1.1"])?,
            none: config(&[])?,
            // The last day is for connections that were begun with it.
            renew: not_after.saturating_sub(86_400).max(begin.saturating_add(60)),
            used: self.clock,
        })
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.leaves.len()
    }
}

fn leaf_params(host: &FlowHost, now: SystemTime, not_after: u64) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::ExplicitNoCa;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.subject_alt_names = match host {
        FlowHost::Name(name) => {
            // A common name ends at 64 characters (RFC 5280, ub-common-name); the alternative name counts anyway.
            if name.as_str().len() <= 64 {
                params.distinguished_name.push(DnType::CommonName, name.as_str());
            }
            // A guest may have asked for the user's own machine by any of its names.
            let names = if name.is_host_service() { &HOST_SERVICES[..] } else { &[name.as_str()] };
            names
                .iter()
                .map(|name| Ok(SanType::DnsName((*name).try_into()?)))
                .collect::<Result<_, rcgen::Error>>()?
        }
        FlowHost::Address(address) => vec![SanType::IpAddress(*address)],
    };
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    set_validity(&mut params, now, not_after);
    Ok(params)
}

/// Shows the same certificate to everyone: the name was compared before.
#[derive(Debug)]
struct Always(Arc<CertifiedKey>);

impl ResolvesServerCert for Always {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

fn server_config(
    provider: &Arc<CryptoProvider>,
    key: &Arc<CertifiedKey>,
    alpn: &[&[u8]],
) -> Result<Arc<ServerConfig>, InterceptError> {
    let mut config = ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_safe_default_protocol_versions()
        .map_err(|e| InterceptError::Certificate(e.to_string()))?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(Always(Arc::clone(key))));
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    config.session_storage = ServerSessionMemoryCache::new(SESSIONS);
    // No early data: it can be replayed (RFC 8446 §8).
    config.max_early_data_size = 0;
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn leaves_are_bounded_the_oldest_goes_and_each_is_made_anew_in_time() {
        let folder = tempfile::tempdir().expect("a folder");
        let now = SystemTime::now();
        let root = crate::RootCa::load_or_make(folder.path(), now).expect("a root");
        let ca = root.issue("box", now).expect("an intermediate");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut leaves = Leaves::new(&ca, provider).expect("usable");
        let host = |number: usize| {
            FlowHost::Name(policy::Name::parse(&format!("h{number}.example.com")).expect("a name"))
        };
        let first = leaves.config(&host(0), Alpn::H2, now).expect("a leaf");
        for number in 1..MAX_LEAVES + 5 {
            leaves.config(&host(number), Alpn::H2, now).expect("a leaf");
            // In use, so it stays.
            assert!(Arc::ptr_eq(&first, &leaves.config(&host(0), Alpn::H2, now).expect("a leaf")));
        }
        assert_eq!(leaves.len(), MAX_LEAVES);
        let later = now + Duration::from_secs(86_400 * (LEAF_DAYS - 1) + 1);
        assert!(!Arc::ptr_eq(&first, &leaves.config(&host(0), Alpn::H2, later).expect("a leaf")));
        let long = "a".repeat(63);
        let long = FlowHost::Name(
            policy::Name::parse(&format!("{long}.{long}.{long}.example.com")).expect("a name"),
        );
        leaves.config(&long, Alpn::None, now).expect("a leaf for a name longer than a common name may be");
    }
}
