//! One request: agreement, rules, credentials, upstream, answer.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Request, Response, StatusCode, Version};
use http_body::Body as _;
use hyper::body::Incoming;
use policy::{Host, Verdict};
use tokio::sync::Notify;

use crate::body::{
    Exchange, Held, Inbound, Mask, Outbound, Part, Payload, collect, describe, full, note_end,
};
use crate::flow::Shared;
use crate::head::{self, Examined};
use crate::judge::Judge;
use crate::record::{Decision, RequestRecord, Rules, Sink};
use crate::refusal::{Answer, is_grpc, respond};
use crate::upgrade::{self, Wanted};
use crate::upstream::{Upstream, UpstreamError};
use crate::{Flow, FlowHost, Limits};

/// Characters of a path in records and answers.
const LONGEST_PATH: usize = 2048;
/// Characters of a method.
const LONGEST_METHOD: usize = 32;
/// Characters of a sentence with the guest's words in it.
const LONGEST_REASON: usize = 512;

/// Ends the guest's connection without an answer, as the host did: the client asks again if it may.
#[derive(Debug, thiserror::Error)]
#[error("the host closed the connection")]
pub(crate) struct HangUp;

/// What the requests of one flow have in common.
pub(crate) struct Service {
    pub(crate) flow: Flow,
    /// TLS on both sides; upstream is verified then.
    pub(crate) secure: bool,
    pub(crate) rules: Rc<dyn Rules>,
    pub(crate) sink: Rc<dyn Sink>,
    pub(crate) upstream: Upstream,
    pub(crate) shared: Rc<Shared>,
    pub(crate) limits: Limits,
    /// Requests that have no answer yet.
    pub(crate) waiting: Cell<usize>,
    /// Rung when one got its answer.
    pub(crate) answered: Notify,
    /// The connection, if a request asked it to become something else and it did not.
    pub(crate) unclaimed: RefCell<Option<hyper::upgrade::OnUpgrade>>,
    /// What goes on after an upgrade.
    pub(crate) tunnel: RefCell<Option<Pin<Box<dyn Future<Output = ()>>>>>,
}

/// A request that waits for its answer.
struct Waiting<'a>(&'a Service);

impl<'a> Waiting<'a> {
    fn new(service: &'a Service) -> Self {
        service.waiting.set(service.waiting.get().saturating_add(1));
        Self(service)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.set(self.0.waiting.get().saturating_sub(1));
        self.0.answered.notify_one();
    }
}

/// A request that got its credentials.
struct Ready {
    head: http::request::Parts,
    body: Payload,
    chunked: bool,
    /// The answer holds tokens that are kept here.
    token: Option<Box<vault::oauth::Exchange>>,
}

type Refused = Response<Payload>;

impl Service {
    /// Ends when the host has closed its connection and no answer of it is due. After an upgrade it never does: both
    /// connections are the tunnel's.
    pub(crate) async fn closed(&self) {
        self.upstream.closed.notified().await;
        while self.waiting.get() > 0 {
            self.answered.notified().await;
        }
        if self.tunnel.borrow().is_some() {
            std::future::pending::<()>().await;
        }
    }

    /// Serves one request of the guest.
    pub(crate) async fn serve(&self, mut request: Request<Incoming>) -> Result<Response<Payload>, HangUp> {
        let _waiting = Waiting::new(self);
        let guest = hyper::upgrade::on(&mut request);
        if request.method() == Method::CONNECT || request.headers().contains_key(header::UPGRADE) {
            self.unclaimed.replace(Some(guest.clone()));
        }
        let (head, body) = request.into_parts();
        let version = head.version;
        let exchange = self.begin(&head);
        let asked = Asked {
            grpc: is_grpc(&head.headers),
            method: head.method.to_string(),
            http1: version < Version::HTTP_2,
        };
        let result = tokio::select! {
            biased;
            // There is no answer yet: one of ours says why.
            Some(verdict) = exchange.ended(Part::Head) => {
                let refused = self.denied(&verdict, &asked, &exchange);
                exchange.note(|record| note_end(record, &verdict));
                Err(refused)
            }
            result = self.forward(head, body, guest, &asked, &exchange) => result,
        };
        let response = match result {
            Ok(response) => {
                exchange.note(|record| record.status = response.status().as_u16());
                response
            }
            // Its status is noted: gRPC's refusals are a 200 on the wire.
            Err(Ended::Refused(response)) => *response,
            Err(Ended::HangUp) if version < Version::HTTP_2 => {
                exchange.note(|record| record.decision = Decision::UpstreamFailed);
                return Err(HangUp);
            }
            Err(Ended::HangUp) => self.upstream_failed(&UpstreamError::Stale, &asked, &exchange),
        };
        Ok(response)
    }

    fn begin(&self, head: &http::request::Parts) -> Rc<Exchange> {
        let record = RequestRecord {
            method: shown(head.method.as_str(), LONGEST_METHOD),
            host: self.flow.host.to_string(),
            port: self.flow.port,
            path: shown(head.uri.path(), LONGEST_PATH),
            status: 0,
            sent: 0,
            received: 0,
            rule: None,
            layer: None,
            decision: Decision::Allowed,
            secrets: Vec::new(),
            detail: None,
            remedy: None,
        };
        Exchange::new(Rc::clone(&self.sink), record)
    }

    async fn forward(
        &self,
        head: http::request::Parts,
        body: Incoming,
        guest: hyper::upgrade::OnUpgrade,
        asked: &Asked,
        exchange: &Rc<Exchange>,
    ) -> Result<Response<Payload>, Ended> {
        let examined = head::examine(&self.flow, self.secure, &head)
            .map_err(|error| Ended::refused(self.malformed(&error, asked, exchange)))?;
        exchange.note(|record| record.path = shown(&examined.path.to_string(), LONGEST_PATH));
        let examined = Rc::new(examined);
        self.judge(&examined, asked, exchange)?;
        let websocket = examined.websocket;
        let ready = self.prepare(head, body, &examined, asked, exchange).await?;
        let wanted = websocket.then(|| Wanted { guest, watch: self.watch() });
        let mut request = Request::from_parts(ready.head, ready.body);
        if websocket {
            request.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
            request.headers_mut().insert(header::UPGRADE, HeaderValue::from_static("websocket"));
            // Messages that are compressed cannot be watched for placeholders (RFC 7692).
            request.headers_mut().remove(header::SEC_WEBSOCKET_EXTENSIONS);
        }
        let response = match self.upstream.send(request, ready.chunked).await {
            Ok(response) => response,
            Err(error) => {
                // The guest's body may be why.
                if let Some(refusal) = exchange.take_refusal() {
                    return Err(Ended::refused(self.refused(&refusal, asked, exchange)));
                }
                if matches!(error, UpstreamError::Stale) {
                    return Err(Ended::HangUp);
                }
                return Err(Ended::refused(self.upstream_failed(&error, asked, exchange)));
            }
        };
        self.answer(response, wanted, ready.token, asked, exchange).await
    }

    fn judge(&self, examined: &Rc<Examined>, asked: &Asked, exchange: &Rc<Exchange>) -> Result<(), Ended> {
        let judge = Judge {
            rules: Rc::clone(&self.rules),
            flow: self.flow.clone(),
            method: asked.method.clone(),
            examined: Rc::clone(examined),
        };
        if let Some((decision, verdict)) = judge.judge() {
            let reason = &verdict.reason;
            exchange.note(|record| {
                record.rule = reason.rule.as_ref().map(ToString::to_string);
                record.layer = Some(reason.layer.to_string());
            });
            match decision {
                Decision::Refused => return Err(self.denied(&verdict, asked, exchange)),
                Decision::Observed => exchange.note(|record| {
                    record.decision = decision;
                    record.detail = Some(reason.text.clone());
                    record.remedy.clone_from(&reason.remedy);
                }),
                _ => {}
            }
        }
        exchange.judged_by(judge);
        self.shared.under_way.borrow_mut().add(exchange);
        Ok(())
    }

    /// Puts the credentials in and makes the body ready to be sent.
    async fn prepare(
        &self,
        mut head: http::request::Parts,
        body: Incoming,
        examined: &Examined,
        asked: &Asked,
        exchange: &Rc<Exchange>,
    ) -> Result<Ready, Ended> {
        let refuse = |refusal: vault::Refusal| Ended::refused(self.refused(&refusal, asked, exchange));
        if let Some(host) = head::host_field(&self.flow, self.secure, &head) {
            head.headers.insert(header::HOST, host);
        }
        head.uri = head::origin_form(&head);
        head::strip_hop_by_hop(&mut head.headers);
        // hyper gives the guest its 100 as soon as the body is asked for.
        head.headers.remove(header::EXPECT);
        let (credentials, changes) = (self.shared.credentials(), self.shared.changes());
        let name = self.flow.host.to_string();
        let to = vault::Destination { host: &name, port: self.flow.port, tls: self.secure };
        let placed = credentials.place(&to, &mut head, SystemTime::now()).map_err(refuse)?;
        exchange.note(|record| record.secrets.clone_from(&placed.used));
        if matches!(placed.body, vault::Body::Stream) && !placed.used.is_empty() {
            // What the host echoes has to be read here, to be masked. A signature may cover the header; it puts no value in.
            head.headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        }
        let unknown = !head.headers.contains_key(header::CONTENT_LENGTH) && !body.is_end_stream();
        let chunked = examined.chunked || unknown;
        let outbound = |body, signer| -> Payload {
            Box::pin(Outbound {
                inner: body,
                exchange: Rc::clone(exchange),
                watch: credentials.watch(&to),
                signer,
            })
        };
        match placed.body {
            vault::Body::Stream => Ok(Ready { head, body: outbound(body, None), chunked, token: None }),
            vault::Body::SigV4(pending) => match pending.payload() {
                vault::sigv4::Payload::Undeclared => {
                    let held = self.hold(body, self.limits.held_body, asked, exchange).await?;
                    credentials.watch(&to).feed(&held.whole).map_err(refuse)?;
                    // The guest had all the time it wanted; a key that was removed meanwhile signs nothing more.
                    if self.shared.changes() != changes {
                        let secret = placed.used.first().cloned().unwrap_or_default();
                        let why = "secrets changed before the request's body had come".into();
                        return Err(refuse(vault::Refusal::Unavailable { secret, why }));
                    }
                    pending.sign(&mut head, Some(&held.whole)).map_err(refuse)?;
                    set_length(&mut head.headers, held.whole.len());
                    Ok(Ready { head, body: full(Bytes::from_owner(held)), chunked: false, token: None })
                }
                _ => {
                    let signer = pending.sign(&mut head, None).map_err(refuse)?;
                    Ok(Ready { head, body: outbound(body, signer), chunked, token: None })
                }
            },
            vault::Body::Token(mut token) => {
                let held = self.hold(body, vault::oauth::MAX_BODY, asked, exchange).await?;
                credentials.watch(&to).feed(&held.whole).map_err(refuse)?;
                let kind = head.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
                let real = token.request(kind, &held.whole).map_err(refuse)?;
                set_length(&mut head.headers, real.len());
                // The answer has to be read here, as it is and whole.
                head.headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
                head.headers.remove(header::RANGE);
                Ok(Ready { head, body: full(real.to_vec()), chunked: false, token: Some(token) })
            }
        }
    }

    /// A body that has to be there whole. It waits until there is room for all of it, so that those that are held can come to their end.
    async fn hold(
        &self,
        body: Incoming,
        limit: usize,
        asked: &Asked,
        exchange: &Rc<Exchange>,
    ) -> Result<Held, Ended> {
        let declared = body.size_hint().upper().and_then(|length| usize::try_from(length).ok());
        let most = declared.unwrap_or(limit).min(limit).min(self.limits.held_in_all);
        let place = u32::try_from(most).unwrap_or(u32::MAX);
        let place = match Arc::clone(&self.shared.room).try_acquire_many_owned(place) {
            Ok(place) => place,
            Err(_) => {
                let text = format!(
                    "waited for others: {} bytes of bodies are held at most",
                    self.limits.held_in_all
                );
                exchange.note(|record| record.detail = Some(text));
                let room = Arc::clone(&self.shared.room);
                // It is never closed.
                room.acquire_many_owned(place).await.map_err(|_| Ended::HangUp)?
            }
        };
        match collect(body, limit).await {
            Ok(Some(whole)) => {
                exchange.note(|record| record.sent = whole.len() as u64);
                Ok(Held { whole, _place: place })
            }
            Ok(None) => Err(Ended::refused(self.refused(
                &vault::Refusal::TooLarge { what: "the request's body", limit },
                asked,
                exchange,
            ))),
            Err(error) => {
                exchange
                    .note(|record| record.detail = Some(format!("the request's body broke off: {error}")));
                Err(Ended::HangUp)
            }
        }
    }

    fn watch(&self) -> vault::Watch {
        let name = self.flow.host.to_string();
        self.shared.credentials().watch(&vault::Destination {
            host: &name,
            port: self.flow.port,
            tls: self.secure,
        })
    }

    /// Makes upstream's answer the guest's.
    async fn answer(
        &self,
        mut response: Response<Incoming>,
        wanted: Option<Wanted>,
        token: Option<Box<vault::oauth::Exchange>>,
        asked: &Asked,
        exchange: &Rc<Exchange>,
    ) -> Result<Response<Payload>, Ended> {
        let failed =
            |text: String| Ended::refused(self.upstream_failed(&UpstreamError::Http(text), asked, exchange));
        let credentials = self.shared.credentials();
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let Some(wanted) = wanted.filter(|_| upgrade::is_consent(&response)) else {
                return Err(failed("it switches to a protocol that nobody asked for".into()));
            };
            let upstream = hyper::upgrade::on(&mut response);
            let (mut head, _) = response.into_parts();
            clean_answer(&mut head.headers);
            credentials.mask_headers(&mut head.headers);
            *self.tunnel.borrow_mut() =
                Some(Box::pin(upgrade::tunnel(wanted, upstream, Rc::clone(exchange))));
            return Ok(upgrade::consent(head));
        }
        let (mut head, body) = response.into_parts();
        // Under another coding nothing could be looked for in the body, and chunks overrule a length (RFC 9112 §6.1, §6.3).
        if head.headers.contains_key(header::TRANSFER_ENCODING) {
            if !head::is_chunked(&head.headers) {
                return Err(failed("its answer has a transfer coding other than chunked".into()));
            }
            head.headers.remove(header::CONTENT_LENGTH);
        }
        clean_answer(&mut head.headers);
        credentials.mask_headers(&mut head.headers);
        // Words of the host's that nothing masks; clients do without (RFC 9112 §4).
        head.extensions.remove::<hyper::ext::ReasonPhrase>();
        let plain = is_identity(&head.headers);
        if let Some(token) = token {
            return self.keep_tokens(head, body, plain, &token, asked, exchange).await;
        }
        let mask = Mask::new(&self.shared, &self.flow, &head.headers, &body);
        let body = Inbound { inner: body, exchange: Rc::clone(exchange), mask, trailers: None };
        Ok(Response::from_parts(head, Box::pin(body) as Payload))
    }

    /// A token endpoint's answer: what can be read is kept and answered with sentinels; what cannot is not passed on.
    async fn keep_tokens(
        &self,
        mut head: http::response::Parts,
        body: Incoming,
        plain: bool,
        token: &vault::oauth::Exchange,
        asked: &Asked,
        exchange: &Rc<Exchange>,
    ) -> Result<Response<Payload>, Ended> {
        let failed = |text: &str| {
            let error = UpstreamError::Http(text.to_owned());
            Ended::refused(self.upstream_failed(&error, asked, exchange))
        };
        if !plain {
            return Err(failed("a token endpoint's answer is compressed although that was not asked for"));
        }
        if head.status == StatusCode::PARTIAL_CONTENT {
            return Err(failed("a token endpoint's answer is a part although that was not asked for"));
        }
        let whole = match collect(body, self.limits.token_answer).await {
            Ok(Some(whole)) => zeroize::Zeroizing::new(whole),
            Ok(None) => return Err(failed("a token endpoint's answer is too long")),
            Err(_) => return Err(failed("a token endpoint's answer broke off")),
        };
        let body = match token.response(head.status.as_u16(), &whole, SystemTime::now()) {
            Ok(Some(kept)) => {
                if let Err(refusal) = self.shared.credentials().may_keep(token, SystemTime::now()) {
                    return Err(Ended::refused(self.refused(&refusal, asked, exchange)));
                }
                self.shared.grant(&kept.grant);
                self.sink.grant(&kept.grant);
                // Now the tokens are known: none stands in the head either.
                self.shared.credentials().mask_headers(&mut head.headers);
                kept.body
            }
            Ok(None) => {
                let (mut masker, mut masked) =
                    (self.shared.credentials().masker(), Vec::with_capacity(whole.len()));
                masker.feed(&whole, &mut masked);
                masker.finish(&mut masked);
                masked
            }
            Err(refusal) => return Err(Ended::refused(self.refused(&refusal, asked, exchange))),
        };
        for name in [header::ETAG, header::CONTENT_ENCODING, header::TRAILER] {
            head.headers.remove(name);
        }
        head.headers.remove("digest");
        head.headers.remove("content-digest");
        head.headers.remove("repr-digest");
        if asked.method != "HEAD" {
            set_length(&mut head.headers, body.len());
        }
        exchange.note(|record| record.received = body.len() as u64);
        Ok(Response::from_parts(head, full(body)))
    }

    fn reply(
        &self,
        status: StatusCode,
        error: &'static str,
        asked: &Asked,
        exchange: &Exchange,
        answer: Answer<'_>,
    ) -> Refused {
        let host = self.flow.host.to_string();
        let mut path = String::new();
        exchange.note(|record| {
            record.status = status.as_u16();
            path.clone_from(&record.path);
        });
        let method = shown(&asked.method, LONGEST_METHOD);
        let answer = Answer {
            error,
            by: "vivarium",
            host: &host,
            port: self.flow.port,
            method: &method,
            path: &path,
            ..answer
        };
        respond(status, asked.grpc, &answer)
    }

    fn malformed(&self, error: &head::HeadError, asked: &Asked, exchange: &Exchange) -> Refused {
        let mismatch = matches!(error, head::HeadError::Mismatch { .. });
        let reason = shown(&error.to_string(), LONGEST_REASON);
        exchange.note(|record| {
            record.decision = if mismatch { Decision::Mismatch } else { Decision::Malformed };
            record.detail = Some(reason.clone());
        });
        let word = if mismatch { "mismatch" } else { "malformed" };
        let answer = Answer { reason: &reason, ..Answer::default() };
        let mut response = self.reply(error.status(), word, asked, exchange, answer);
        if asked.http1 {
            // Nothing that stands behind such a head on the connection is taken for a request.
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    fn denied(&self, verdict: &Verdict, asked: &Asked, exchange: &Exchange) -> Ended {
        exchange.note(|record| {
            record.decision = Decision::Refused;
            record.detail = Some(verdict.reason.text.clone());
            record.remedy.clone_from(&verdict.reason.remedy);
        });
        let rule = verdict.reason.rule.as_ref().map(ToString::to_string);
        let layer = verdict.reason.layer.to_string();
        let answer = Answer {
            rule: rule.as_deref(),
            layer: Some(&layer),
            reason: &verdict.reason.text,
            remedy: verdict.reason.remedy.as_deref(),
            ..Answer::default()
        };
        Ended::refused(self.reply(StatusCode::FORBIDDEN, "denied", asked, exchange, answer))
    }

    fn refused(&self, refusal: &vault::Refusal, asked: &Asked, exchange: &Exchange) -> Refused {
        exchange.note(|record| describe(record, refusal));
        let status = StatusCode::from_u16(refusal.status()).unwrap_or(StatusCode::FORBIDDEN);
        let (reason, hint) = (refusal.to_string(), refusal.hint());
        let word = if refusal.is_exfiltration() { "exfiltration" } else { "credential" };
        self.reply(
            status,
            word,
            asked,
            exchange,
            Answer { reason: &reason, remedy: hint.as_deref(), ..Answer::default() },
        )
    }

    fn upstream_failed(&self, error: &UpstreamError, asked: &Asked, exchange: &Exchange) -> Refused {
        let reason = error.to_string();
        exchange.note(|record| {
            record.decision = Decision::UpstreamFailed;
            record.detail = Some(reason.clone());
        });
        let status = if matches!(error, UpstreamError::Timeout) {
            StatusCode::GATEWAY_TIMEOUT
        } else {
            StatusCode::BAD_GATEWAY
        };
        self.reply(status, "upstream", asked, exchange, Answer { reason: &reason, ..Answer::default() })
    }
}

/// What an answer of ours has to know of the request.
struct Asked {
    grpc: bool,
    method: String,
    http1: bool,
}

/// Why a request did not get upstream's answer.
enum Ended {
    Refused(Box<Refused>),
    HangUp,
}

impl Ended {
    fn refused(response: Refused) -> Self {
        Self::Refused(Box::new(response))
    }
}

/// What the guest wrote, as records and answers show it: without control characters, at most `longest` characters.
fn shown(text: &str, longest: usize) -> String {
    let mut letters = text.chars().filter(|letter| !letter.is_control());
    let mut text: String = letters.by_ref().take(longest).collect();
    if letters.next().is_some() {
        text.push('…');
    }
    text
}

fn set_length(headers: &mut HeaderMap, length: usize) {
    headers.remove(header::TRANSFER_ENCODING);
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
}

fn is_identity(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::CONTENT_ENCODING)
        .iter()
        .all(|value| value.as_bytes().eq_ignore_ascii_case(b"identity"))
}

/// Takes out what is for upstream's connection alone, and what would lead the guest past this flow (RFC 7838).
fn clean_answer(headers: &mut HeaderMap) {
    head::strip_hop_by_hop(headers);
    headers.remove(header::ALT_SVC);
}

impl FlowHost {
    /// As the policy knows it.
    pub(crate) fn for_policy(&self) -> Host<'_> {
        match self {
            Self::Name(name) if name.is_host_service() => Host::HostService,
            Self::Name(name) => Host::Name(name),
            Self::Address(address) => Host::Address(*address),
        }
    }
}
