//! The interceptor that gateways have: [`intercept::Intercept`], with the gateway's dialler, policy and records.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::time::SystemTime;

use intercept::{
    Decision as Ended, Dial, Dialling, Flow, FlowEnd, FlowHost, Intercept, Limits, RequestRecord, Rules,
    Settings, Sink, Undecided,
};
use policy::{Host, HostKey, Name, Policy, Protocol};
use vault::Credentials;

use crate::control::{Mode, SecretText};
use crate::dial::Dialer;
use crate::intercept::{CurrentPolicy, Intercepted, Interceptor, Renewal, Renewing, Reporter, Setup};
use crate::record::{Decision, Kind, What};

/// What is said of a flow that one of the times of [`Limits`] ended.
const IDLE: &str = "closed: its handshake, its next request or any byte of it was too long in coming";

/// Makes a gateway's interceptor.
///
/// # Errors
/// One sentence, when the authority, the roots or the secrets cannot be used.
pub(crate) fn make(setup: Setup, limits: Limits) -> Result<Rc<dyn Interceptor>, String> {
    let settings = Settings { ca: authority(&setup.ca)?, roots: setup.roots, limits };
    let intercept = Intercept::new(&settings).map_err(|error| error.to_string())?;
    let inspector = Inspector { intercept };
    if let Some(secrets) = &setup.secrets {
        inspector.set_secrets(secrets)?;
    }
    Ok(Rc::new(inspector))
}

fn authority(ca: &SecretText) -> Result<intercept::IntermediateCa, String> {
    // The error would show a part of the text.
    serde_json::from_str(ca.expose()).map_err(|_| "the certificate authority cannot be read".to_owned())
}

struct Inspector {
    intercept: Intercept,
}

impl Interceptor for Inspector {
    fn wants(&self, host: Host<'_>, port: u16) -> bool {
        flow_host(host).is_some_and(|host| self.intercept.wants(&host, port))
    }

    fn serve(&self, flow: Intercepted) -> Pin<Box<dyn Future<Output = ()>>> {
        let intercept = self.intercept.clone();
        Box::pin(async move {
            let Intercepted { stream, target, policy, dialer, reporter } = flow;
            let Some(host) = flow_host(target.host.as_host()) else { return };
            let to = Flow { host, port: target.port };
            let is_host = target.host == HostKey::HostService;
            let rules = Rc::new(PolicyRules { policy, is_host });
            let sink = Rc::new(Records(reporter.clone()));
            let end = intercept.flow(to, stream, Upstream(dialer), rules, sink).await;
            // What was done wrong was recorded with the request; the flow's own end tells of the rest.
            let (decision, why) = match end {
                FlowEnd::Refused(why) | FlowEnd::Broken(why) => (Decision::Refused, why),
                // Nothing wrong: clients leave connections that they may need again, too.
                FlowEnd::Idle => (Decision::Allowed, IDLE.to_owned()),
                FlowEnd::Closed => return,
            };
            reporter.record(target.what(Kind::Ended, decision).text(why), (0, 0));
        })
    }

    fn judge_again(&self) {
        self.intercept.judge_again();
    }

    fn set_roots(&self, roots: &[Vec<u8>]) -> Result<(), String> {
        self.intercept.set_roots(roots).map(|_| ()).map_err(|error| error.to_string())
    }

    fn set_ca(&self, ca: &SecretText) -> Result<(), String> {
        self.intercept.set_ca(&authority(ca)?).map_err(|error| error.to_string())
    }

    fn set_secrets(&self, secrets: &SecretText) -> Result<(), String> {
        let credentials = Credentials::from_wire(secrets.expose()).map_err(|error| error.to_string())?;
        self.intercept.set_credentials(credentials);
        Ok(())
    }

    fn renewable(&self) -> Vec<(String, SystemTime)> {
        self.intercept.credentials().renewable()
    }

    fn renewal(&self, name: &str) -> Option<Renewal> {
        self.intercept.credentials().refresh(name)
    }

    fn renew(&self, renewal: Renewal, dialer: Dialer) -> Renewing {
        let intercept = self.intercept.clone();
        Box::pin(async move {
            let grant = intercept.refresh(&renewal, Upstream(dialer)).await?;
            // The error would show a part of the text.
            grant.to_wire().map(SecretText::new).map_err(|_| "they cannot be handed over".to_owned())
        })
    }
}

fn flow_host(host: Host<'_>) -> Option<FlowHost> {
    match host {
        Host::Name(name) => Some(FlowHost::Name(name.clone())),
        Host::Address(address) => Some(FlowHost::Address(address)),
        Host::HostService => Some(FlowHost::Name(Name::host_service())),
    }
}

struct Upstream(Dialer);

impl Dial for Upstream {
    fn dial(&self) -> Dialling<'_> {
        Box::pin(async {
            let upstream = self.0.dial().await.map_err(|error| io::Error::other(error.to_string()))?;
            Ok(Box::new(upstream) as Box<dyn intercept::Stream>)
        })
    }
}

struct PolicyRules {
    policy: CurrentPolicy,
    /// The flow goes to a service of the host.
    is_host: bool,
}

impl Rules for PolicyRules {
    fn policy(&self) -> Policy {
        self.policy.get()
    }

    /// The same for a request as for a flow ([`crate::core::Rules::judge`]).
    fn undecided(&self) -> Undecided {
        match self.policy.mode() {
            _ if self.is_host => Undecided::Refuse,
            Mode::Observe => Undecided::Observe,
            Mode::Ask | Mode::Enforce => Undecided::Refuse,
        }
    }
}

struct Records(Reporter);

impl Sink for Records {
    fn request(&self, record: RequestRecord) {
        let (kind, decision) = match &record.decision {
            Ended::Allowed => (Kind::Request, Decision::Allowed),
            Ended::Observed => (Kind::Request, Decision::Observed),
            Ended::Exfiltration { .. } => (Kind::Exfiltration, Decision::Refused),
            Ended::Refused | Ended::Malformed | Ended::Mismatch => (Kind::Request, Decision::Refused),
            Ended::CredentialFailed | Ended::UpstreamFailed => (Kind::Request, Decision::Failed),
        };
        let text = text(&record);
        let mut what = What::new(kind, decision, &record.host, record.port).text(text);
        what.protocol = Some(Protocol::Tcp);
        what.method = Some(record.method).filter(|method| !method.is_empty());
        what.path = Some(record.path).filter(|path| !path.is_empty());
        what.status = Some(record.status).filter(|status| *status != 0);
        what.rule = record.rule;
        what.layer = record.layer;
        what.remedy = record.remedy;
        self.0.record(what, (record.sent, record.received));
    }

    fn grant(&self, grant: &vault::oauth::Grant) {
        match grant.to_wire() {
            Ok(text) => self.0.grant(SecretText::new(text)),
            // The error would show a part of the text.
            Err(_) => tracing::error!("new tokens could not be handed over"),
        }
    }
}

/// Why, in words, with the names of the secrets that were put in.
fn text(record: &RequestRecord) -> String {
    let mut parts: Vec<String> = record.detail.iter().cloned().collect();
    if let Ended::Exfiltration { secret } = &record.decision {
        parts.push(format!("the placeholder of {secret} was on its way to a host that it is not for"));
    }
    if !record.secrets.is_empty() {
        parts.push(format!("with {}", record.secrets.join(", ")));
    }
    parts.join("; ")
}
