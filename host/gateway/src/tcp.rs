//! A TCP flow of the guest: judged when its SYN is there, answered when upstream is connected.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use netstack::{FlowId, FlowInfo, Refusal};
use policy::{HostKey, Outcome, Protocol, Reason};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::ask::{self, Said};
use crate::core::{Core, Course, Judgement, Slot, Target, is_dns, is_gateway, name_of};
use crate::dial::{DialError, Dialer, Upstream};
use crate::dns;
use crate::doorkeeper::ServerName;
use crate::flow::{Flow, FlowStream};
use crate::intercept::{CurrentPolicy, Intercepted, Reporter};
use crate::record::{Decision, Kind, What};
use crate::relay::{Finished, Relay};
use crate::serve::World;

/// How long a DNS connection may be silent.
const DNS_IDLE: Duration = Duration::from_secs(10);
/// DNS connections at one time. More are refused.
pub(crate) const MOST_DNS_STREAMS: usize = 64;

/// A SYN came. `core` is locked.
pub(crate) fn incoming(world: &Rc<World>, core: &mut Core, id: FlowId, info: FlowInfo) {
    if is_dns(info.destination) {
        if world.dns_streams.get() >= MOST_DNS_STREAMS {
            let text = format!("more than {MOST_DNS_STREAMS} DNS connections at once");
            core.rules.record(What::new(Kind::Limit, Decision::Refused, "DNS", 53).text(text));
            return refuse(world, core, id);
        }
        world.dns_streams.set(world.dns_streams.get().saturating_add(1));
        let flow = Flow::new(&world.shared, core, id, Slot::default());
        tokio::task::spawn_local(serve_dns(Rc::clone(world), flow));
        return;
    }
    let Some((target, judgement)) = judged(core, info.destination, Protocol::Tcp, Kind::Connect) else {
        return refuse(world, core, id);
    };
    let slot = Slot { target: Some(target.clone()), ..Slot::default() };
    let flow = Flow::new(&world.shared, core, id, slot);
    tokio::task::spawn_local(serve(Rc::clone(world), flow, target, judgement));
}

fn refuse(world: &World, core: &mut Core, id: FlowId) {
    core.count_refused();
    // An error: it is gone by itself.
    let _ = core.stack.refuse(id, Refusal::Reset, world.shared.now());
}

/// The verdict on a new flow; `None`, with a record, when it is refused.
pub(crate) fn judged(
    core: &mut Core,
    destination: SocketAddr,
    protocol: Protocol,
    kind: Kind,
) -> Option<(Target, Judgement)> {
    let port = destination.port();
    let Some(host) = core.rules.host(destination.ip()) else {
        let text = if is_gateway(destination.ip()) {
            "the gateway itself serves names only"
        } else {
            "an address that no name has"
        };
        let what =
            What { protocol: Some(protocol), ..What::new(kind, Decision::Refused, destination.ip(), port) };
        core.rules.record(what.text(text));
        return None;
    };
    let target = Target { host, port, protocol };
    let judgement = core.rules.judge(&target);
    if judgement.course == Course::Refuse {
        core.rules.record(target.what(kind, Decision::Refused).because(&judgement.verdict.reason));
        return None;
    }
    Some((target, judgement))
}

/// Waits for the user's yes, if that is needed. What is decided then; `None`, with a record, when it is refused.
pub(crate) async fn held(
    world: &World,
    flow: &Flow,
    target: &Target,
    judgement: Judgement,
    kind: Kind,
) -> Option<Judgement> {
    if judgement.course != Course::Ask {
        return Some(judgement);
    }
    let said = tokio::select! {
        said = ask::ask(&world.shared, target) => said,
        _ = flow.ended() => return None,
    };
    let mut core = world.shared.lock();
    let again = core.rules.judge(target);
    match (said, again.course) {
        (_, Course::Pass | Course::Inspect | Course::Observe) => Some(again),
        _ => {
            let text = match said {
                Said::Yes => again.verdict.reason.text.clone(),
                Said::No => "the user said no".to_owned(),
                Said::Nothing => "nobody answered within a minute".to_owned(),
                Said::TooMany => format!(
                    "more than {} questions to the user in a minute, or {} connections that wait for one answer",
                    ask::A_MINUTE,
                    ask::MOST_HELD
                ),
            };
            core.rules.record(target.what(kind, Decision::Refused).because(&again.verdict.reason).text(text));
            None
        }
    }
}

async fn serve(world: Rc<World>, flow: Flow, target: Target, judgement: Judgement) {
    let Some(judgement) = held(&world, &flow, &target, judgement, Kind::Connect).await else {
        world.shared.lock().count_refused();
        return flow.refuse(Refusal::Reset);
    };
    let inspect = judgement.looks || world.wants(&target);
    if inspect && world.interceptor().is_none() {
        let text = "its requests have rules, and this sandbox has no certificate to look into them with";
        world.shared.record(
            target.what(Kind::Connect, Decision::Refused).because(&judgement.verdict.reason).text(text),
        );
        return flow.refuse(Refusal::Reset);
    }
    flow.note(|slot| slot.inspected = inspect);
    let dialer = Dialer::new(Arc::clone(&world.shared), target.clone()).of(flow.id());
    let upstream = tokio::select! {
        upstream = dialer.dial() => upstream,
        _ = flow.ended() => return world.shared.record(given_up(&target, Kind::Connect)),
    };
    let upstream = match upstream {
        Ok(upstream) => upstream,
        Err(error) => {
            world.shared.record(unreached(&target, Kind::Connect, &error));
            return flow.refuse(refusal(&error));
        }
    };
    if !connected(&world, &flow, Kind::Connect) {
        return flow.refuse(Refusal::Reset);
    }
    let decision = if judgement.course == Course::Observe { Decision::Observed } else { Decision::Allowed };
    let mut what = target.what(Kind::Connect, decision).because(&judgement.verdict.reason);
    what.address = upstream.address;
    world.shared.record(what);
    if !flow.accept() {
        return;
    }
    world.shared.lock().count_opened();
    if inspect {
        return intercepted(&world, flow, Vec::new(), target, dialer.with_first(upstream)).await;
    }
    passed(&world, flow, upstream, target, dialer).await;
}

/// Hands a flow to the interceptor, with what was read of it.
async fn intercepted(world: &Rc<World>, flow: Flow, first: Vec<u8>, target: Target, dialer: Dialer) {
    let Some(interceptor) = world.interceptor() else { return };
    let shared = &world.shared;
    interceptor
        .serve(Intercepted {
            stream: FlowStream::new(flow, first),
            target,
            policy: CurrentPolicy(Arc::clone(shared)),
            dialer,
            reporter: Reporter(Arc::clone(shared)),
        })
        .await;
}

/// Passes bytes on untouched; to a name, a TLS connection must ask for that name.
async fn passed(world: &Rc<World>, flow: Flow, upstream: Upstream, target: Target, dialer: Dialer) {
    // A server of many names would take a request for another one: whoever looks into it compares them. What is open only
    // because somebody observes has no rule that a request could pass by.
    let looks = world.interceptor().is_some()
        && world.shared.lock().rules.policy.connect(target.view()).outcome == Outcome::Allow;
    let gate = name_of(&target).map(|name| ServerName::new(name, target.port, looks));
    let Upstream { stream, early, address } = upstream;
    let ended = Relay::new(flow, stream, early, gate).run().await;
    let shared = &world.shared;
    let text = match ended.finished {
        Finished::Whole => String::new(),
        Finished::GuestGone => "reset by the guest".to_owned(),
        Finished::UpstreamGone(error) => format!("reset by the server: {error}"),
        Finished::Refused(kind, why) => {
            return shared.record(target.what(kind, Decision::Refused).text(why));
        }
        Finished::Divert(first) => {
            let Some((flow, stream)) = ended.sides else { return };
            if world.interceptor().is_none() {
                let text = "an encrypted ClientHello hides the server's name, and this sandbox has no certificate to look into it with";
                return shared.record(target.what(Kind::Tls, Decision::Refused).text(text));
            }
            flow.note(|slot| slot.inspected = true);
            let first_upstream = Upstream { stream, early: Vec::new(), address };
            return intercepted(world, flow, first, target, dialer.with_first(first_upstream)).await;
        }
    };
    let mut what = target.what(Kind::Ended, Decision::Allowed).text(text);
    what.address = address;
    shared.record_bytes(what, ended.bytes);
}

/// The record of a flow that was allowed, and ended by the guest or by another rule while upstream was asked.
pub(crate) fn given_up(target: &Target, kind: Kind) -> What {
    target.what(kind, Decision::Failed).text("given up before there was a connection")
}

/// The record of a flow that was allowed and did not come to be.
pub(crate) fn unreached(target: &Target, kind: Kind, error: &DialError) -> What {
    match error {
        DialError::Guarded(guarded) => {
            let (address, reason) = guarded.as_ref();
            target.what(kind, Decision::Refused).because(reason).at(*address)
        }
        DialError::Changed(reason) => target.what(kind, Decision::Refused).because(reason),
        DialError::Crowded => target.what(Kind::Limit, Decision::Refused).text(error.to_string()),
        _ => target.what(kind, Decision::Failed).text(error.to_string()),
    }
}

fn refusal(error: &DialError) -> Refusal {
    use std::io::ErrorKind::{HostUnreachable, NetworkUnreachable, TimedOut};
    match error {
        DialError::Connect(error)
            if matches!(error.kind(), HostUnreachable | NetworkUnreachable | TimedOut) =>
        {
            Refusal::Unreachable
        }
        _ => Refusal::Reset,
    }
}

/// DNS over TCP (RFC 7766): a length before each message.
async fn serve_dns(world: Rc<World>, flow: Flow) {
    if flow.accept() {
        let mut stream = FlowStream::new(flow, Vec::new());
        while let Ok(Some(answer)) =
            tokio::time::timeout(DNS_IDLE, dns_question(&world, &mut stream)).await.unwrap_or(Ok(None))
        {
            let length = u16::try_from(answer.len()).unwrap_or(u16::MAX).to_be_bytes();
            let written = async {
                stream.write_all(&length).await?;
                stream.write_all(&answer).await
            };
            if !matches!(tokio::time::timeout(DNS_IDLE, written).await, Ok(Ok(()))) {
                break;
            }
        }
        let _ = stream.shutdown().await;
    }
    world.dns_streams.set(world.dns_streams.get().saturating_sub(1));
}

/// The answer to the next message; `None` at the end, or when there is none.
async fn dns_question(world: &World, stream: &mut FlowStream) -> std::io::Result<Option<Vec<u8>>> {
    let length = usize::from(stream.read_u16().await?);
    if !world.shared.lock().rules.may_be_read(length) {
        world.shared.outbox.notify_one();
        return Ok(None);
    }
    let mut message = vec![0; length];
    stream.read_exact(&mut message).await?;
    let mut core = world.shared.lock();
    core.counters.questions = core.counters.questions.saturating_add(1);
    let answer = if core.rules.may_ask() { dns::answer(&message, &mut core.rules) } else { None };
    drop(core);
    world.shared.outbox.notify_one();
    Ok(answer)
}

/// Why a flow may not go on under the policy as it is now, and that in words.
fn ending(core: &Core, world: &World, slot: &Slot) -> Option<(Reason, String)> {
    let target = slot.target.as_ref()?;
    let Judgement { course, looks, verdict } = core.rules.judge(target);
    let text = verdict.reason.text.clone();
    let wanted = course == Course::Pass && target.protocol == Protocol::Tcp && world.wants(target);
    match course {
        // Pending ones are asked about.
        Course::Ask if !slot.connected => {}
        Course::Ask | Course::Refuse => return Some((verdict.reason, text)),
        // Of one that is asked about or made just now that is decided later.
        _ if (looks || wanted) && !slot.inspected && slot.connected => {
            let text = format!("its requests have to be looked into from now on: {text}");
            return Some((verdict.reason, text));
        }
        _ => {}
    }
    if target.host == HostKey::HostService {
        return None;
    }
    let mut verdicts =
        slot.addresses.iter().map(|address| core.rules.policy.upstream(target.view(), *address));
    let guarded = verdicts.find(|verdict| !verdict.outcome.is_open())?;
    let text = guarded.reason.text.clone();
    Some((guarded.reason, text))
}

/// Upstream is connected. `false`, with a record, when the rules have changed since it was asked for so that the flow may not be.
pub(crate) fn connected(world: &World, flow: &Flow, kind: Kind) -> bool {
    let mut core = world.shared.lock();
    if let Some(slot) = core.flows.get_mut(&flow.id()) {
        slot.connected = true;
    }
    // Not there: the guest gave up, which who asks finds out.
    let Some(slot) = core.flows.get(&flow.id()) else { return true };
    let Some((reason, text)) = ending(&core, world, slot) else { return true };
    if let Some(target) = slot.target.clone() {
        let what = target.what(kind, Decision::Refused).because(&reason);
        core.rules.record(what.text(format!("the policy changed while it was connected: {text}")));
    }
    world.shared.outbox.notify_one();
    false
}

/// Resets every flow that may not go on.
pub(crate) fn judge_again(core: &mut Core, world: &World) {
    let gone: Vec<_> = core
        .flows
        .iter()
        .filter(|(_, slot)| slot.end.is_none())
        .filter_map(|(id, slot)| Some((*id, slot.target.clone()?, ending(core, world, slot)?)))
        .collect();
    for (id, target, (reason, text)) in gone {
        core.reset(id);
        let what = target.what(Kind::Ended, Decision::Refused).because(&reason);
        core.rules.record(what.text(format!("reset, for the policy changed: {text}")));
    }
    world.shared.pump.notify_one();
    world.shared.outbox.notify_one();
}
