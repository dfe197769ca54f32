//! What is asked of the policy and what is told to the log.

use policy::Policy;

/// The policy in force. Asked anew for each request, and for those under way at [`crate::Intercept::judge_again`].
pub trait Rules {
    /// The policy of this moment (a clone is cheap).
    fn policy(&self) -> Policy;

    /// What becomes, at this moment, of a request that no rule speaks of.
    fn undecided(&self) -> Undecided {
        Undecided::Refuse
    }
}

/// What becomes of a request that no rule speaks of. A denial is a denial in each of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Undecided {
    /// It is refused.
    Refuse,
    /// It passes, and is recorded as [`Decision::Observed`].
    Observe,
}

/// Where records go. Called once a request, when it was refused or when its answer has ended; must not block.
pub trait Sink {
    /// One request.
    fn request(&self, record: RequestRecord);
    /// A token endpoint granted something: the shim keeps it over restarts. It is in force here already.
    fn grant(&self, grant: &vault::oauth::Grant);
}

/// How a request ended, as the log has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It went to the host.
    Allowed,
    /// No rule allows it; it went to the host because the sandbox is observed.
    Observed,
    /// A rule, or no rule, refused it, or ended it when the rules changed.
    Refused,
    /// It was no request that two servers read alike.
    Malformed,
    /// Its SNI, authority or Host was another than the flow's.
    Mismatch,
    /// It carried a placeholder that is not bound to this host.
    Exfiltration {
        /// The secret's name.
        secret: String,
    },
    /// A credential was due and could not be put in.
    CredentialFailed,
    /// It was allowed and the host was not reached, not trusted, or broke off.
    UpstreamFailed,
}

/// One request. No field ever holds a secret: the path is without its query, headers are left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestRecord {
    /// The method; empty when there was no request yet.
    pub method: String,
    /// The flow's host.
    pub host: String,
    /// The flow's port.
    pub port: u16,
    /// The canonical path, or as it came where there is none.
    pub path: String,
    /// The answer's status as the guest saw it; 0 when there was none.
    pub status: u16,
    /// Body bytes from the guest.
    pub sent: u64,
    /// Body bytes to the guest.
    pub received: u64,
    /// The deciding rule.
    pub rule: Option<String>,
    /// The rule's layer.
    pub layer: Option<String>,
    /// How it ended.
    pub decision: Decision,
    /// Names of the secrets that were put in.
    pub secrets: Vec<String>,
    /// More, for a person.
    pub detail: Option<String>,
    /// A command that would allow it.
    pub remedy: Option<String>,
}
