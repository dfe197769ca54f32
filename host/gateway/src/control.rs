//! The words between a sandbox's shim and its gateway: JSON in packets ([`packet::send_large`]), descriptors beside them.

use std::net::{IpAddr, SocketAddr};

use policy::{PolicySet, Protocol};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::names::SavedNames;
use crate::record::Record;

/// What the shim says.
#[derive(Serialize, Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub enum ToGateway {
    /// The first word, once. With it come the descriptors of the frame ring: its memory, the bell that wakes the gateway, the
    /// bell that wakes the guest's network card.
    Configure(Box<Configuration>),
    /// The whole policy: holds at once, for established flows too.
    Policy {
        /// All that is said about this sandbox.
        policy: Box<PolicySet>,
    },
    /// What becomes of flows that no rule speaks of.
    Mode {
        /// From now on.
        mode: Mode,
    },
    /// How the host resolves names changed.
    Resolver {
        /// The servers.
        resolver: ResolverSettings,
        /// The host's own table.
        hosts: Vec<HostsEntry>,
    },
    /// Upstream proxies changed.
    Proxies {
        /// All of them.
        proxies: Proxies,
    },
    /// The certificates that upstream servers are checked against changed.
    Roots {
        /// Each in DER.
        #[serde(with = "in_base64")]
        roots: Vec<Vec<u8>>,
    },
    /// The sandbox's certificate authority, in the interceptor's own form.
    Ca {
        /// With its key.
        ca: SecretText,
    },
    /// The whole set of secrets, in the interceptor's own form.
    Secrets {
        /// With their values.
        secrets: SecretText,
    },
    /// The user's no to [`FromGateway::Question`]. A yes is a [`ToGateway::Policy`] with a rule for what was asked.
    Refuse {
        /// The question's number.
        question: u64,
    },
    /// Opens a port of the guest to the host; with it comes the descriptor of a listening TCP socket or a bound UDP socket.
    Publish {
        /// How the shim calls it.
        number: u64,
        /// What kind of socket it is.
        protocol: Protocol,
        /// The port in the guest.
        guest_port: u16,
    },
    /// Closes such a port and resets its flows.
    Unpublish {
        /// As in [`ToGateway::Publish`].
        number: u64,
    },
    /// Asks for [`FromGateway::Counted`].
    Count,
    /// Asks for [`FromGateway::Saved`].
    Save,
}

/// Text that is never shown, and wiped when it is dropped.
#[derive(Serialize, Deserialize, Default, Clone, PartialEq, Eq)]
#[serde(transparent)]
pub struct SecretText(Zeroizing<String>);

impl SecretText {
    /// Takes the text over.
    pub fn new(text: Zeroizing<String>) -> Self {
        Self(text)
    }

    /// The text.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for SecretText {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("[secret]")
    }
}

/// What a gateway starts with.
#[derive(Serialize, Deserialize, Debug, Default, Clone)]
#[serde(default, deny_unknown_fields)]
pub struct Configuration {
    /// All that is said about this sandbox.
    pub policy: PolicySet,
    /// What becomes of flows that no rule speaks of.
    pub mode: Mode,
    /// How the host resolves names.
    pub resolver: ResolverSettings,
    /// The host's own table of names.
    pub hosts: Vec<HostsEntry>,
    /// Upstream proxies.
    pub proxies: Proxies,
    /// Certificates that upstream servers are checked against, each in DER.
    #[serde(with = "in_base64")]
    pub roots: Vec<Vec<u8>>,
    /// The sandbox's certificate authority, in the interceptor's own form; without it nothing can be inspected.
    pub ca: Option<SecretText>,
    /// The secrets, in the interceptor's own form.
    pub secrets: Option<SecretText>,
    /// What a gateway of this sandbox said before in [`FromGateway::Saved`].
    pub restore: Option<Saved>,
}

/// What becomes of a flow that no rule speaks of. A denial is a denial in each of them.
#[derive(Serialize, Deserialize, Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// It is refused.
    #[default]
    Enforce,
    /// It is held until the user has answered, and refused after a minute.
    Ask,
    /// It is let through and recorded.
    Observe,
}

/// The name servers of the host.
#[derive(Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[serde(default, deny_unknown_fields)]
pub struct ResolverSettings {
    /// Asked in this order.
    pub servers: Vec<SocketAddr>,
    /// How often each is asked.
    pub attempts: u8,
    /// How long an answer may take, in milliseconds.
    pub timeout_ms: u32,
}

impl Default for ResolverSettings {
    fn default() -> Self {
        Self { servers: Vec::new(), attempts: 2, timeout_ms: 5000 }
    }
}

/// A line of the host's table of names.
#[derive(Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct HostsEntry {
    /// Where they are.
    pub address: IpAddr,
    /// The names; those that are none are passed over.
    pub names: Vec<String>,
}

/// Upstream proxies, as URLs: `http://[user:password@]host[:port]`, `socks5://…`, `socks5h://…`.
#[derive(Serialize, Deserialize, Default, Clone, PartialEq, Eq)]
#[serde(default, deny_unknown_fields)]
pub struct Proxies {
    /// For port 80.
    pub http: Option<String>,
    /// For every other port.
    pub https: Option<String>,
    /// For those that neither of the others is for.
    pub all: Option<String>,
    /// Hosts that are reached without: `host`, `.domain`, `address`, `network/bits`, each with an optional `:port`; `*` for all.
    pub no_proxy: Vec<String>,
}

impl Proxies {
    /// Whether a URL is one of a proxy that can be used.
    ///
    /// # Errors
    /// One sentence without the URL, which may hold a password.
    pub fn check_url(url: &str) -> Result<(), String> {
        crate::proxy::Proxy::parse(url).map(|_| ())
    }

    /// Whether an entry of [`Proxies::no_proxy`] can be used.
    ///
    /// # Errors
    /// One sentence.
    pub fn check_no_proxy(entry: &str) -> Result<(), String> {
        let direct = crate::proxy::direct(entry).filter(|_| !entry.contains(char::is_whitespace));
        direct.map(|_| ()).ok_or_else(|| {
            let entry = entry.escape_debug();
            format!("\"{entry}\" is neither a host nor a domain, an address, a network nor *")
        })
    }
}

// A proxy's URL may hold a password.
impl std::fmt::Debug for Proxies {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let set = |url: &Option<String>| url.as_ref().map(|_| "…");
        out.debug_struct("Proxies")
            .field("http", &set(&self.http))
            .field("https", &set(&self.https))
            .field("all", &set(&self.all))
            .field("no_proxy", &self.no_proxy)
            .finish()
    }
}

/// What outlives a gateway: a restarted one, or that of a restored sandbox, goes on with it.
#[derive(Serialize, Deserialize, Debug, Default, Clone, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Saved {
    /// Which name has which synthetic address.
    pub names: SavedNames,
    /// The flows that were open: the guest is told that they are gone.
    #[serde(with = "one_in_base64")]
    pub flows: Vec<u8>,
}

/// What the gateway says.
#[derive(Serialize, Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub enum FromGateway {
    /// The configuration is in force and frames flow.
    Ready,
    /// What was decided.
    Records {
        /// In order of time.
        records: Vec<Record>,
    },
    /// A flow that no rule speaks of waits for the user ([`Mode::Ask`]).
    Question {
        /// For the answer.
        question: u64,
        /// Name or address.
        host: String,
        /// The destination's port.
        port: u16,
        /// Of the flow.
        protocol: Protocol,
        /// Why it is asked.
        text: String,
        /// A command that would allow it for good.
        remedy: Option<String>,
    },
    /// A question needs no answer any more: its flow is gone, its minute is over or a rule speaks of it now.
    QuestionOver {
        /// The question's number.
        question: u64,
    },
    /// A port is open.
    Published {
        /// As in [`ToGateway::Publish`].
        number: u64,
    },
    /// A port is not.
    PublishFailed {
        /// As in [`ToGateway::Publish`].
        number: u64,
        /// One sentence.
        why: String,
    },
    /// See [`ToGateway::Count`].
    Counted {
        /// Since the gateway's start.
        counters: Counters,
    },
    /// See [`ToGateway::Save`].
    Saved {
        /// For [`Configuration::restore`].
        state: Saved,
    },
    /// New tokens that a service gave to a guest's login, in the interceptor's own form: the shim keeps them.
    Grant {
        /// With their values.
        grant: SecretText,
    },
    /// A word could not be used; what held before holds on.
    Rejected {
        /// Which word.
        word: String,
        /// One sentence.
        why: String,
    },
    /// The last word of a gateway that cannot go on.
    Failed {
        /// One sentence.
        why: String,
    },
}

/// Sums since the gateway's start, and what there is now.
#[derive(Serialize, Deserialize, Debug, Default, Clone, Copy, PartialEq, Eq)]
#[serde(default)]
pub struct Counters {
    /// Flows there are now.
    pub flows: u64,
    /// Flows that were opened.
    pub opened: u64,
    /// Flows that were refused.
    pub refused: u64,
    /// Names that have an address.
    pub names: u64,
    /// DNS questions.
    pub questions: u64,
    /// Bytes from the guest that were passed on.
    pub bytes_up: u64,
    /// Bytes to the guest that were passed on.
    pub bytes_down: u64,
    /// Frames from the guest.
    pub frames_in: u64,
    /// Frames to the guest.
    pub frames_out: u64,
}

/// A list of byte strings, each in base64.
mod in_base64 {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(list: &[Vec<u8>], to: S) -> Result<S::Ok, S::Error> {
        list.iter().map(|bytes| STANDARD.encode(bytes)).collect::<Vec<_>>().serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Vec<u8>>, D::Error> {
        let list = Vec::<String>::deserialize(from)?;
        list.iter().map(|text| STANDARD.decode(text).map_err(D::Error::custom)).collect()
    }
}

/// One byte string in base64.
mod one_in_base64 {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        STANDARD.decode(String::deserialize(from)?).map_err(D::Error::custom)
    }
}
