//! Bodies on their way: counted, watched, signed, masked. None is held beyond what its part says.

use std::cell::{Cell, RefCell};
use std::error::Error;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, Bytes};
use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use policy::Verdict;
use tokio::sync::OwnedSemaphorePermit;

use crate::Flow;
use crate::borders::Borders;
use crate::flow::Shared;
use crate::head::Overrides;
use crate::judge::Judge;
use crate::record::{Decision, RequestRecord, Sink};

/// What goes wrong in a body; its text is for the log.
pub(crate) type BodyError = Box<dyn Error + Send + Sync>;
/// Any body of ours.
pub(crate) type Payload = Pin<Box<dyn Body<Data = Bytes, Error = BodyError>>>;

pub(crate) fn empty() -> Payload {
    Box::pin(Empty::new().map_err(|never| match never {}))
}

pub(crate) fn full(bytes: impl Into<Bytes>) -> Payload {
    Box::pin(Full::new(bytes.into()).map_err(|never| match never {}))
}

/// A body that is held whole, in a place that it gives back.
pub(crate) struct Held {
    pub(crate) whole: Vec<u8>,
    pub(crate) _place: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.whole
    }
}

/// A part of an exchange that goes on by itself.
#[derive(Clone, Copy)]
pub(crate) enum Part {
    /// Until there is an answer; all of a WebSocket.
    Head,
    /// The request's body.
    Up,
    /// The answer's.
    Down,
}

/// One request until the last of it is over; told to the log then.
pub(crate) struct Exchange {
    sink: Rc<dyn Sink>,
    record: RefCell<RequestRecord>,
    refusal: RefCell<Option<vault::Refusal>>,
    judge: RefCell<Option<Judge>>,
    /// The rules have changed, and refuse it now.
    ended: RefCell<Option<Verdict>>,
    /// Of each [`Part`].
    wakers: [Cell<Option<Waker>>; 3],
}

impl Exchange {
    pub(crate) fn new(sink: Rc<dyn Sink>, record: RequestRecord) -> Rc<Self> {
        Rc::new(Self {
            sink,
            record: record.into(),
            refusal: None.into(),
            judge: None.into(),
            ended: None.into(),
            wakers: Default::default(),
        })
    }

    pub(crate) fn note(&self, change: impl FnOnce(&mut RequestRecord)) {
        change(&mut self.record.borrow_mut());
    }

    /// Has it judged, now by the caller and again when the rules change.
    pub(crate) fn judged_by(&self, judge: Judge) {
        *self.judge.borrow_mut() = Some(judge);
    }

    /// The rules have changed: what they refuse now ends.
    pub(crate) fn judge_again(&self) {
        // What was refused for another reason keeps that reason.
        let passes = matches!(self.record.borrow().decision, Decision::Allowed | Decision::Observed);
        let judged = self.judge.borrow().as_ref().filter(|_| passes).and_then(Judge::judge);
        let Some((Decision::Refused, verdict)) = judged else { return };
        self.note(|record| note_end(record, &verdict));
        self.ended.replace(Some(verdict));
        for waker in self.wakers.iter().filter_map(Cell::take) {
            waker.wake();
        }
    }

    /// Ready when the rules have ended it.
    fn poll_ended(&self, part: Part, cx: &Context<'_>) -> Poll<()> {
        if self.ended.borrow().is_some() {
            return Poll::Ready(());
        }
        if let Some(place) = self.wakers.get(part as usize) {
            let known = place.take().filter(|waker| waker.will_wake(cx.waker()));
            place.set(Some(known.unwrap_or_else(|| cx.waker().clone())));
        }
        Poll::Pending
    }

    /// Waits until the rules end it, and says why.
    pub(crate) async fn ended(&self, part: Part) -> Option<Verdict> {
        poll_fn(|cx| self.poll_ended(part, cx)).await;
        self.ended.borrow().clone()
    }

    /// A body that may not go on, and why.
    pub(crate) fn refuse(&self, refusal: vault::Refusal) -> BodyError {
        let text = refusal.to_string();
        self.note(|record| describe(record, &refusal));
        *self.refusal.borrow_mut() = Some(refusal);
        text.into()
    }

    /// Why the request's body was cut off, once.
    pub(crate) fn take_refusal(&self) -> Option<vault::Refusal> {
        self.refusal.borrow_mut().take()
    }

    fn broken(&self, what: &dyn std::fmt::Display) {
        self.note(|record| {
            if record.detail.is_none() {
                record.detail = Some(what.to_string());
            }
        });
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.sink.request(self.record.borrow().clone());
    }
}

/// Writes into a record that the rules have ended its request.
pub(crate) fn note_end(record: &mut RequestRecord, verdict: &Verdict) {
    let reason = &verdict.reason;
    record.decision = Decision::Refused;
    record.rule = reason.rule.as_ref().map(ToString::to_string);
    record.layer = Some(reason.layer.to_string());
    record.detail = Some(format!("ended, for the policy changed: {}", reason.text));
    record.remedy.clone_from(&reason.remedy);
}

/// What the side that still reads or writes is told then.
fn ended() -> BodyError {
    "the policy changed".into()
}

/// Writes into a record what the vault refused.
pub(crate) fn describe(record: &mut RequestRecord, refusal: &vault::Refusal) {
    record.decision = match refusal.secret() {
        Some(secret) if refusal.is_exfiltration() => Decision::Exfiltration { secret: secret.to_owned() },
        Some(_) => Decision::CredentialFailed,
        None => Decision::Malformed,
    };
    record.detail = Some(refusal.to_string());
    record.remedy = refusal.hint();
}

/// A request's body from the guest to the host.
pub(crate) struct Outbound {
    pub(crate) inner: Incoming,
    pub(crate) exchange: Rc<Exchange>,
    pub(crate) watch: vault::Watch,
    pub(crate) signer: Option<vault::sigv4::ChunkSigner>,
}

impl Outbound {
    fn data(&mut self, data: Bytes) -> Result<Bytes, BodyError> {
        self.exchange.note(|record| record.sent = record.sent.saturating_add(data.len() as u64));
        self.watch.feed(&data).map_err(|refusal| self.exchange.refuse(refusal))?;
        let Some(signer) = &mut self.signer else { return Ok(data) };
        let mut out = Vec::with_capacity(data.len());
        signer.feed(&data, &mut out).map_err(|refusal| self.exchange.refuse(refusal))?;
        Ok(out.into())
    }

    /// Trailers are watched like the body: the value that a placeholder stands for never goes there.
    fn trailers(&mut self, trailers: &HeaderMap) -> Result<(), BodyError> {
        for value in trailers.values() {
            // The line ends keep two fields from being read as one.
            self.watch
                .feed(b"\r\n")
                .and_then(|()| self.watch.feed(value.as_bytes()))
                .map_err(|refusal| self.exchange.refuse(refusal))?;
        }
        Ok(())
    }
}

impl Body for Outbound {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.exchange.poll_ended(Part::Up, cx).is_ready() {
            return Poll::Ready(Some(Err(ended())));
        }
        loop {
            return Poll::Ready(match ready!(Pin::new(&mut self.inner).poll_frame(cx)) {
                None => match self.signer.take().map(|mut signer| signer.finish()) {
                    Some(Err(refusal)) => Some(Err(self.exchange.refuse(refusal))),
                    _ => None,
                },
                Some(Err(error)) => {
                    self.exchange.broken(&format_args!("the request's body broke off: {error}"));
                    Some(Err(error.into()))
                }
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => match self.data(data) {
                        // The signer holds a chunk until it is whole.
                        Ok(data) if data.is_empty() => continue,
                        result => Some(result.map(Frame::data)),
                    },
                    Err(frame) => match frame.into_trailers() {
                        Ok(mut trailers) => {
                            let result = self.trailers(&trailers);
                            clean_trailers(&mut trailers, |name| {
                                Overrides::of(name).is_some() || self.watch.is_place(name)
                            });
                            Some(result.map(|()| Frame::trailers(trailers)))
                        }
                        Err(_) => continue,
                    },
                },
            });
        }
    }

    fn is_end_stream(&self) -> bool {
        self.signer.is_none() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// Masks one answer with the credentials in force, whenever they came: a host may say here what it got by a later request.
pub(crate) struct Mask {
    shared: Rc<Shared>,
    host: String,
    port: u16,
    /// Those of [`Shared::changes`] that are followed.
    changes: u64,
    /// Where a value may be echoed. Dropped without `finish` it shows nothing of what it holds: a body that breaks off
    /// stays masked (CVE-2026-101998).
    masker: Option<vault::Masker>,
    /// Where its messages end, of which each side may wait for the other's.
    borders: Option<Borders>,
}

impl Mask {
    /// For an answer of this flow's host with these headers and this body.
    pub(crate) fn new(shared: &Rc<Shared>, flow: &Flow, headers: &HeaderMap, body: &Incoming) -> Self {
        let mut mask = Self {
            shared: Rc::clone(shared),
            host: flow.host.to_string(),
            port: flow.port,
            changes: shared.changes(),
            masker: None,
            borders: Borders::of(headers),
        };
        if !body.is_end_stream() {
            mask.begin(&shared.credentials());
        }
        mask
    }

    /// Whatever the answer says of its coding: that may be the guest's choice, and no form of a value stands in compressed bytes by chance.
    fn begin(&mut self, credentials: &vault::Credentials) {
        self.masker = credentials.is_masked(&self.host, self.port).then(|| credentials.masker());
    }

    /// What may be shown once these came, too.
    fn data(&mut self, data: Bytes) -> Bytes {
        if self.changes != self.shared.changes() {
            self.changes = self.shared.changes();
            let now = self.shared.credentials();
            match &mut self.masker {
                Some(masker) => now.renew(masker),
                None => self.begin(&now),
            }
        }
        // Followed from the beginning: a masker may come later.
        let is_end = self.borders.as_mut().is_some_and(|borders| borders.feed(&data));
        let Some(masker) = &mut self.masker else { return data };
        let mut out = Vec::with_capacity(data.len());
        masker.feed(&data, &mut out);
        if is_end {
            masker.flush(&mut out);
        }
        out.into()
    }

    /// What is still held, at the end.
    fn rest(&mut self) -> Option<Bytes> {
        let mut masker = self.masker.take()?;
        let mut out = Vec::new();
        masker.finish(&mut out);
        (!out.is_empty()).then(|| out.into())
    }
}

/// An answer's body from the host to the guest.
pub(crate) struct Inbound {
    pub(crate) inner: Incoming,
    pub(crate) exchange: Rc<Exchange>,
    pub(crate) mask: Mask,
    /// Trailers that came while bytes were held.
    pub(crate) trailers: Option<HeaderMap>,
}

impl Inbound {
    fn count(&self, bytes: usize) {
        self.exchange.note(|record| record.received = record.received.saturating_add(bytes as u64));
    }
}

impl Body for Inbound {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.exchange.poll_ended(Part::Down, cx).is_ready() {
            self.mask.masker = None;
            return Poll::Ready(Some(Err(ended())));
        }
        loop {
            if let Some(trailers) = self.trailers.take() {
                return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
            }
            let frame = match ready!(Pin::new(&mut self.inner).poll_frame(cx)) {
                None => {
                    let Some(rest) = self.mask.rest() else { return Poll::Ready(None) };
                    self.count(rest.len());
                    return Poll::Ready(Some(Ok(Frame::data(rest))));
                }
                Some(Err(error)) => {
                    self.mask.masker = None;
                    self.exchange.broken(&format_args!("the answer's body broke off: {error}"));
                    return Poll::Ready(Some(Err(error.into())));
                }
                Some(Ok(frame)) => frame,
            };
            match frame.into_data() {
                Ok(data) => {
                    let data = self.mask.data(data);
                    if data.has_remaining() {
                        self.count(data.len());
                        return Poll::Ready(Some(Ok(Frame::data(data))));
                    }
                }
                Err(frame) => {
                    let Ok(mut trailers) = frame.into_trailers() else { continue };
                    clean_trailers(&mut trailers, |_| false);
                    // gRPC puts its errors there.
                    self.mask.shared.credentials().mask_headers(&mut trailers);
                    let Some(rest) = self.mask.rest() else {
                        return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
                    };
                    self.trailers = Some(trailers);
                    self.count(rest.len());
                    return Poll::Ready(Some(Ok(Frame::data(rest))));
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.mask.masker.is_none() && self.trailers.is_none() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        // The masker gives out as many bytes as it is given; some may still be with it.
        if self.mask.masker.is_some() { SizeHint::default() } else { self.inner.size_hint() }
    }
}

/// Takes out of trailers what may only stand in a head (RFC 9110 §6.5.1), credentials above all, and what is unfit for another reason: a head
/// is judged, and servers may merge trailers into it.
fn clean_trailers(trailers: &mut HeaderMap<HeaderValue>, is_unfit: impl Fn(&HeaderName) -> bool) {
    const OF_A_HEAD: [HeaderName; 13] = [
        header::TRANSFER_ENCODING,
        header::CONTENT_LENGTH,
        header::HOST,
        header::PROXY_AUTHORIZATION,
        header::CONTENT_ENCODING,
        header::CONTENT_TYPE,
        header::CONTENT_RANGE,
        header::SET_COOKIE,
        header::COOKIE,
        header::CONNECTION,
        header::UPGRADE,
        header::TRAILER,
        header::TE,
    ];
    let is_unfit = |name: &HeaderName| {
        let is_of_a_head = OF_A_HEAD.iter().any(|known| vault::is_read_as(name, known.as_str()));
        is_of_a_head || vault::may_hold_a_credential(name) || is_unfit(name)
    };
    let names: Vec<HeaderName> = trailers.keys().filter(|name| is_unfit(name)).cloned().collect();
    for name in names {
        trailers.remove(name);
    }
}

/// A whole body of at most `limit` bytes; `Ok(None)` when there is more.
pub(crate) async fn collect(mut body: Incoming, limit: usize) -> Result<Option<Vec<u8>>, BodyError> {
    let mut whole = Vec::new();
    if body.size_hint().lower() > limit as u64 {
        return Ok(None);
    }
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        if whole.len().saturating_add(data.len()) > limit {
            return Ok(None);
        }
        whole.extend_from_slice(&data);
    }
    Ok(Some(whole))
}
