//! What looks into flows: inspected HTTP, credentials put in on the wire. The gateway brings the byte streams, judges the
//! addresses and writes down what is decided.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::SystemTime;

use policy::{Host, Policy};

use crate::control::{Mode, SecretText};
use crate::core::{Shared, Target};
use crate::dial::Dialer;
use crate::flow::FlowStream;
use crate::record::What;

/// Looks into flows. Everything runs on the gateway's one thread; futures need not be `Send`.
pub trait Interceptor {
    /// Whether a flow to this host and port has to be looked into although the policy lets it pass: a credential is bound
    /// to it.
    fn wants(&self, host: Host<'_>, port: u16) -> bool;
    /// Drives one guest connection to its end. Dropping the future ends it.
    fn serve(&self, flow: Intercepted) -> Pin<Box<dyn Future<Output = ()>>>;
    /// The policy or the mode has changed: requests under way that may not go on end, with a record.
    fn judge_again(&self);
    /// Other certificates to check servers against, each in DER.
    ///
    /// # Errors
    /// One sentence; those of before hold on.
    fn set_roots(&self, roots: &[Vec<u8>]) -> Result<(), String>;
    /// Another certificate authority.
    ///
    /// # Errors
    /// One sentence; that of before holds on.
    fn set_ca(&self, ca: &SecretText) -> Result<(), String>;
    /// The whole set of secrets.
    ///
    /// # Errors
    /// One sentence; those of before hold on.
    fn set_secrets(&self, secrets: &SecretText) -> Result<(), String>;
    /// The secrets whose tokens can be asked for anew, each with the time when they end.
    fn renewable(&self) -> Vec<(String, SystemTime)>;
    /// What to ask for those of one secret.
    fn renewal(&self, name: &str) -> Option<Renewal>;
    /// Asks, puts the new tokens in force, and gives them for the shim to keep.
    fn renew(&self, renewal: Renewal, dialer: Dialer) -> Renewing;
}

/// A request for new tokens. Its path and host are no secret.
pub use vault::oauth::Refresh as Renewal;

/// The answer to one, or one sentence without a token in it.
pub type Renewing = Pin<Box<dyn Future<Output = Result<SecretText, String>>>>;

/// What an interceptor starts with.
#[derive(Debug)]
pub struct Setup {
    /// The sandbox's certificate authority.
    pub ca: SecretText,
    /// Certificates to check servers against, each in DER.
    pub roots: Vec<Vec<u8>>,
    /// The secrets, if there are any.
    pub secrets: Option<SecretText>,
    /// For what is not of one flow.
    pub reporter: Reporter,
}

/// Makes the interceptor once the shim has handed a certificate authority over.
pub type MakeInterceptor = Box<dyn Fn(Setup) -> Result<Rc<dyn Interceptor>, String>>;

/// A flow to look into. Upstream is connected already, and the guest answered.
#[derive(Debug)]
pub struct Intercepted {
    /// The guest's bytes, from the first on.
    pub stream: FlowStream,
    /// Where it goes.
    pub target: Target,
    /// Always the policy in force.
    pub policy: CurrentPolicy,
    /// Connections upstream; the first is there already.
    pub dialer: Dialer,
    /// Takes records.
    pub reporter: Reporter,
}

/// The policy in force.
#[derive(Clone, Debug)]
pub struct CurrentPolicy(pub(crate) Arc<Shared>);

impl CurrentPolicy {
    /// The policy as it is now.
    pub fn get(&self) -> Policy {
        self.0.lock().rules.policy.clone()
    }

    /// What becomes of what no rule speaks of, as it is now.
    pub fn mode(&self) -> Mode {
        self.0.lock().rules.mode
    }
}

/// Takes records, and words for the shim.
#[derive(Clone, Debug)]
pub struct Reporter(pub(crate) Arc<Shared>);

impl Reporter {
    /// Writes a decision down, with the bytes that it let up and down.
    pub fn record(&self, what: What, bytes: (u64, u64)) {
        self.0.record_bytes(what, bytes);
    }

    /// Hands new tokens to the shim.
    pub fn grant(&self, grant: SecretText) {
        self.0.say(crate::control::FromGateway::Grant { grant });
        self.0.logins.notify_one();
    }
}
