//! The filter itself: one for each connection of the guest.

use crate::key::{self, Unverified};
use crate::wire::{Reader, put_string};

pub(crate) const FAILURE: u8 = 5;
const SUCCESS: u8 = 6;
const REQUEST_IDENTITIES: u8 = 11;
const IDENTITIES_ANSWER: u8 = 12;
const SIGN_REQUEST: u8 = 13;
const SIGN_RESPONSE: u8 = 14;
const EXTENSION: u8 = 27;
const EXTENSION_FAILURE: u8 = 28;
const USERAUTH_REQUEST: u8 = 50;

const SESSION_BIND: &[u8] = b"session-bind@openssh.com";
const HOSTBOUND: &[u8] = b"publickey-hostbound-v00@openssh.com";
const SSHSIG: &[u8] = b"SSHSIG";

/// Sessions that one connection may bind, as OpenSSH's agent has it.
const MOST_SESSIONS: usize = 16;
/// The longest session identifier, in bytes: OpenSSH's are hashes.
const LONGEST_SESSION: usize = 128;
/// The longest signature to verify, in bytes.
const LONGEST_SIGNATURE: usize = 16 << 10;

/// What a sandbox may have signed.
#[derive(Clone, Debug, Default)]
pub struct Grants {
    /// The keys that it sees and uses, as they are encoded on the wire; none means all of the agent's.
    pub keys: Vec<Vec<u8>>,
    /// The hosts that it may authenticate at.
    pub hosts: Vec<HostGrant>,
    /// The namespaces of signatures that are no authentication (`git`).
    pub namespaces: Vec<String>,
}

/// One host.
#[derive(Clone, Debug)]
pub struct HostGrant {
    /// Its name, for records.
    pub name: String,
    /// Its known keys, as they are encoded on the wire.
    pub keys: Vec<Vec<u8>>,
}

/// Why something was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A message that cannot be read.
    #[error("a message to the SSH agent cannot be read")]
    Malformed,
    /// A request that changes the agent, or that is unknown.
    #[error("the SSH agent is asked for something else than keys and signatures (message {0})")]
    Request(u8),
    /// An extension that is unknown.
    #[error("the SSH agent is asked for an extension that is not let through")]
    Extension,
    /// The key of a host that was not granted.
    #[error(
        "the host that was connected to is not granted the use of SSH keys, or its key is not the known one"
    )]
    Host,
    /// The signature of a session is not that of its host key.
    #[error("the binding of a session is not signed by its host's key")]
    Binding,
    /// The host has a key of a kind that is not known here.
    #[error(
        "the host's key is of a kind whose signatures cannot be checked (ed25519, ECDSA 256 and 384, and RSA can)"
    )]
    KeyKind,
    /// Somebody wants to use the agent from further hosts.
    #[error("the SSH agent may not be forwarded to another host")]
    Forwarding,
    /// Too many sessions on one connection.
    #[error("one connection to the SSH agent binds more than {MOST_SESSIONS} sessions")]
    Sessions,
    /// Authentication in a session that was not bound.
    #[error("the SSH session to authenticate in was not bound to a host (OpenSSH 8.9 or later does that)")]
    Unbound,
    /// Authentication for a key or host that the request contradicts.
    #[error("what is to be signed names another key or host than the request")]
    Contradiction,
    /// A key that was not granted.
    #[error("the SSH key is not granted")]
    Key,
    /// A namespace that was not granted.
    #[error("signatures in the namespace \"{}\" are not granted", .0.escape_debug())]
    Namespace(String),
    /// Data that is neither authentication nor a signature in a namespace.
    #[error("what is to be signed is neither an SSH login nor a signature in a namespace")]
    Data,
}

/// What came of a request, for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The keys were asked for.
    Listed,
    /// A session was bound to a host.
    Bound {
        /// The host's name.
        host: String,
    },
    /// A signature to authenticate at a host.
    Login {
        /// The host's name.
        host: String,
        /// The user there.
        user: String,
    },
    /// A signature in a namespace.
    Signed {
        /// The namespace.
        namespace: String,
    },
    /// Refused.
    Refused(Refusal),
}

/// What to do with a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Pass it to the agent as it is, and its answer through [`Filter::answer`].
    Pass(Event),
    /// Answer with this message; the agent hears nothing.
    Answer(Vec<u8>, Event),
}

#[derive(Debug)]
struct Session {
    id: Vec<u8>,
    host: String,
    key: Vec<u8>,
}

/// One connection of the guest to the agent.
#[derive(Debug)]
pub struct Filter {
    grants: Grants,
    sessions: Vec<Session>,
}

impl Filter {
    /// A connection with these grants.
    pub fn new(grants: Grants) -> Self {
        Self { grants, sessions: Vec::new() }
    }

    /// Judges a message of the guest (without its length).
    pub fn request(&mut self, message: &[u8]) -> Verdict {
        let mut reader = Reader(message);
        let kind = reader.byte();
        let outcome = match kind {
            Some(REQUEST_IDENTITIES) if reader.is_empty() => Ok(Event::Listed),
            Some(SIGN_REQUEST) => self.sign(reader),
            Some(EXTENSION) => self.extension(reader),
            Some(other) if other != REQUEST_IDENTITIES => Err(Refusal::Request(other)),
            _ => Err(Refusal::Malformed),
        };
        match outcome {
            // The real agent need not know of sessions: what it signs was judged here.
            Ok(event @ Event::Bound { .. }) => Verdict::Answer(vec![SUCCESS], event),
            Ok(event) => Verdict::Pass(event),
            Err(refusal) => {
                let answer = if kind == Some(EXTENSION) { EXTENSION_FAILURE } else { FAILURE };
                Verdict::Answer(vec![answer], Event::Refused(refusal))
            }
        }
    }

    /// What the guest gets of the agent's answer to a request that passed.
    pub fn answer(&self, event: &Event, message: &[u8]) -> Vec<u8> {
        let mut reader = Reader(message);
        let shown = match (event, reader.byte()) {
            (Event::Listed, Some(IDENTITIES_ANSWER)) => self.identities(reader),
            (Event::Login { .. } | Event::Signed { .. }, Some(SIGN_RESPONSE)) => {
                reader.string().filter(|_| reader.is_empty()).map(|_| message.to_vec())
            }
            _ => None,
        };
        shown.unwrap_or_else(|| vec![FAILURE])
    }

    /// The granted keys, without the comments, which may name paths and people.
    fn identities(&self, mut reader: Reader<'_>) -> Option<Vec<u8>> {
        let (mut count, mut keys) = (0u32, Vec::new());
        for _ in 0..reader.u32()? {
            let (key, _comment) = (reader.string()?, reader.string()?);
            if self.has_key(key) {
                count = count.saturating_add(1);
                put_string(&mut keys, key);
                put_string(&mut keys, b"");
            }
        }
        let mut out = vec![IDENTITIES_ANSWER];
        out.extend_from_slice(&count.to_be_bytes());
        out.extend_from_slice(&keys);
        Some(out)
    }

    fn has_key(&self, key: &[u8]) -> bool {
        self.grants.keys.is_empty() || self.grants.keys.iter().any(|known| known == key)
    }

    fn extension(&mut self, mut reader: Reader<'_>) -> Result<Event, Refusal> {
        if reader.string().ok_or(Refusal::Malformed)? != SESSION_BIND {
            return Err(Refusal::Extension);
        }
        let fields = (|| Some((reader.string()?, reader.string()?, reader.string()?, reader.bool()?)))();
        let (key, id, signature, is_forwarding) =
            fields.filter(|_| reader.is_empty()).ok_or(Refusal::Malformed)?;
        if is_forwarding {
            return Err(Refusal::Forwarding);
        }
        if id.is_empty() || id.len() > LONGEST_SESSION || signature.len() > LONGEST_SIGNATURE {
            return Err(Refusal::Malformed);
        }
        let host = self
            .grants
            .hosts
            .iter()
            .find(|host| host.keys.iter().any(|known| known == key))
            .ok_or(Refusal::Host)?;
        key::verify(key, id, signature).map_err(|error| match error {
            Unverified::Kind => Refusal::KeyKind,
            Unverified::Signature => Refusal::Binding,
        })?;
        let name = host.name.clone();
        let is_known = |session: &Session| session.id == id;
        match self.sessions.iter().find(|session| is_known(session)) {
            // A session belongs to one host.
            Some(session) if session.key != key => return Err(Refusal::Contradiction),
            Some(_) => {}
            None if self.sessions.len() >= MOST_SESSIONS => return Err(Refusal::Sessions),
            None => self.sessions.push(Session { id: id.to_vec(), host: name.clone(), key: key.to_vec() }),
        }
        Ok(Event::Bound { host: name })
    }

    fn sign(&self, mut reader: Reader<'_>) -> Result<Event, Refusal> {
        let fields = (|| Some((reader.string()?, reader.string()?, reader.u32()?)))();
        let (key, data, _flags) = fields.filter(|_| reader.is_empty()).ok_or(Refusal::Malformed)?;
        if !self.has_key(key) {
            return Err(Refusal::Key);
        }
        match data.strip_prefix(SSHSIG) {
            Some(rest) => self.sign_in_namespace(rest),
            None => self.login(key, data),
        }
    }

    /// PROTOCOL.sshsig, section 3: namespace, reserved, hash algorithm, hash.
    fn sign_in_namespace(&self, data: &[u8]) -> Result<Event, Refusal> {
        let mut reader = Reader(data);
        let fields = (|| Some((reader.string()?, reader.string()?, reader.string()?, reader.string()?)))();
        let (namespace, _, algorithm, hash) = fields.filter(|_| reader.is_empty()).ok_or(Refusal::Data)?;
        let is_hash = matches!((algorithm, hash.len()), (b"sha256", 32) | (b"sha512", 64));
        let namespace = std::str::from_utf8(namespace)
            .ok()
            .filter(|name| !name.is_empty() && is_hash)
            .ok_or(Refusal::Data)?;
        if !self.grants.namespaces.iter().any(|known| known == namespace) {
            return Err(Refusal::Namespace(namespace.chars().take(64).collect()));
        }
        Ok(Event::Signed { namespace: namespace.to_owned() })
    }

    /// RFC 4252, section 7; with the host's key behind it in OpenSSH's own method.
    fn login(&self, key: &[u8], data: &[u8]) -> Result<Event, Refusal> {
        let mut reader = Reader(data);
        let fields = (|| {
            let id = reader.string()?;
            let kind = reader.byte()?;
            let (user, service, method) = (reader.string()?, reader.string()?, reader.string()?);
            let is_signed = reader.bool()?;
            let (_algorithm, signed_key) = (reader.string()?, reader.string()?);
            let host_key = if method == HOSTBOUND { Some(reader.string()?) } else { None };
            let fits = kind == USERAUTH_REQUEST
                && service == b"ssh-connection"
                && is_signed
                && (method == b"publickey" || method == HOSTBOUND)
                && reader.is_empty();
            fits.then_some((id, user, signed_key, host_key))
        })();
        let (id, user, signed_key, host_key) = fields.ok_or(Refusal::Data)?;
        if signed_key != key {
            return Err(Refusal::Contradiction);
        }
        let session = self.sessions.iter().find(|session| session.id == id).ok_or(Refusal::Unbound)?;
        if host_key.is_some_and(|host_key| host_key != session.key) {
            return Err(Refusal::Contradiction);
        }
        let user = String::from_utf8_lossy(user).chars().take(64).collect();
        Ok(Event::Login { host: session.host.clone(), user })
    }
}
