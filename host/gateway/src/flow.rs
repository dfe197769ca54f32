//! A flow as its task has it, and as a byte stream for an interceptor.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use netstack::{FlowId, Received, Refusal, SendError};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::core::{Core, End, Shared, Slot, name_of};
use crate::record::{Decision, Kind};

/// A flow of the guest. Dropped before it was accepted: refused; dropped before both ways were finished: reset.
#[derive(Debug)]
pub(crate) struct Flow {
    shared: Arc<Shared>,
    id: FlowId,
    /// Its end is left to the stack.
    left: bool,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl Flow {
    /// Takes a flow over. `core` is that of `shared`, locked.
    pub(crate) fn new(shared: &Arc<Shared>, core: &mut Core, id: FlowId, slot: Slot) -> Self {
        if let Some(name) = slot.target.as_ref().and_then(name_of) {
            core.rules.names.hold(name);
        }
        core.flows.insert(id, slot);
        Self { shared: Arc::clone(shared), id, left: false }
    }

    pub(crate) fn id(&self) -> FlowId {
        self.id
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Answers the guest. `false`: the flow is gone.
    pub(crate) fn accept(&self) -> bool {
        let now = self.shared.now();
        let accepted = self.shared.lock().stack.accept(self.id, now).is_ok();
        self.shared.pump.notify_one();
        accepted
    }

    /// Refuses it.
    pub(crate) fn refuse(self, refusal: Refusal) {
        let now = self.shared.now();
        // An error: it is gone by itself.
        let _ = self.shared.lock().stack.refuse(self.id, refusal, now);
        self.shared.pump.notify_one();
    }

    /// Whether it is established.
    pub(crate) fn is_open(&self) -> bool {
        self.shared.lock().flows.get(&self.id).is_some_and(|slot| slot.open && slot.end.is_none())
    }

    /// Changes what is known of it.
    pub(crate) fn note(&self, change: impl FnOnce(&mut Slot)) {
        if let Some(slot) = self.shared.lock().flows.get_mut(&self.id) {
            change(slot);
        }
    }

    /// Ready when the flow is gone. Only one task may wait in this and the other functions that poll.
    pub(crate) fn poll_end(&self, cx: &Context<'_>) -> Poll<End> {
        let mut core = self.shared.lock();
        match core.flows.get_mut(&self.id) {
            Some(slot) => match slot.end {
                Some(end) => Poll::Ready(end),
                None => {
                    slot.read = Some(cx.waker().clone());
                    slot.write = Some(cx.waker().clone());
                    Poll::Pending
                }
            },
            None => Poll::Ready(End::Reset),
        }
    }

    /// Waits until the flow is gone.
    pub(crate) async fn ended(&self) -> End {
        std::future::poll_fn(|cx| self.poll_end(cx)).await
    }

    /// Hands the next piece of the guest's bytes to `take`, which says how many it took. Ready with 0 at the end of the
    /// stream; pending, with `None` in between, when `take` took nothing of what there is.
    pub(crate) fn poll_receive(
        &self,
        cx: &Context<'_>,
        take: impl FnOnce(&[u8]) -> usize,
    ) -> Poll<io::Result<Option<usize>>> {
        let mut core = self.shared.lock();
        let got = core.stack.recv_with(self.id, take);
        let slot = core.flows.get_mut(&self.id);
        let end = slot.as_ref().map_or(Some(End::Reset), |slot| slot.end);
        match (got, end) {
            (Ok(Received::Bytes(0)), _) => Poll::Ready(Ok(None)),
            (Ok(Received::Bytes(count)), _) => {
                core.counters.bytes_up = core.counters.bytes_up.saturating_add(count as u64);
                drop(core);
                self.shared.pump.notify_one();
                Poll::Ready(Ok(Some(count)))
            }
            (Ok(Received::Finished), _) | (Err(_), Some(End::Closed)) => Poll::Ready(Ok(Some(0))),
            (_, Some(_)) => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            // Gone: the event that says how is still to come.
            (Ok(Received::Empty) | Err(_), None) => {
                if let Some(slot) = slot {
                    slot.read = Some(cx.waker().clone());
                }
                Poll::Pending
            }
        }
    }

    /// Has `fill` write into the next free piece of the buffer towards the guest; it says how many bytes it wrote.
    pub(crate) fn poll_send(
        &self,
        cx: &Context<'_>,
        fill: impl FnOnce(&mut [u8]) -> usize,
    ) -> Poll<io::Result<usize>> {
        let mut core = self.shared.lock();
        let mut called = false;
        let put = core.stack.send_with(self.id, |room| {
            called = true;
            fill(room)
        });
        let slot = core.flows.get_mut(&self.id);
        let end = slot.as_ref().map_or(Some(End::Reset), |slot| slot.end);
        match (put, end) {
            (Ok(0), None) if !called => {
                if let Some(slot) = slot {
                    slot.write = Some(cx.waker().clone());
                }
                Poll::Pending
            }
            (Ok(count), _) if called => {
                core.counters.bytes_down = core.counters.bytes_down.saturating_add(count as u64);
                drop(core);
                self.shared.pump.notify_one();
                Poll::Ready(Ok(count))
            }
            (Err(SendError::Finished), _) => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            (Err(SendError::NoFlow(_)), None) => {
                if let Some(slot) = slot {
                    slot.write = Some(cx.waker().clone());
                }
                Poll::Pending
            }
            _ => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
        }
    }

    /// Half-closes towards the guest once everything is sent.
    pub(crate) fn finish(&self) {
        // An error: the flow is gone, which the next receive says.
        let _ = self.shared.lock().stack.finish(self.id);
        self.shared.pump.notify_one();
    }

    /// Leaves the rest to the stack: what was sent, then a reset.
    pub(crate) fn leave_to_reset(mut self) {
        // An error: it is gone by itself.
        let _ = self.shared.lock().stack.reset_after_sent(self.id);
        self.shared.pump.notify_one();
        self.left = true;
    }

    /// Leaves the rest (both ways are finished) to the stack.
    pub(crate) fn leave(mut self) {
        self.left = true;
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        let mut core = self.shared.lock();
        let Some(slot) = core.flows.remove(&self.id) else { return };
        if let Some(name) = slot.target.as_ref().and_then(name_of) {
            core.rules.names.release(name);
        }
        if slot.end.is_none() && !self.left {
            // An error: refused, or gone by itself.
            let _ = core.stack.reset(self.id);
            drop(core);
            self.shared.pump.notify_one();
        }
    }
}

/// The guest's end of a flow as a byte stream.
#[derive(Debug)]
pub struct FlowStream {
    flow: Option<Flow>,
    /// Bytes that were looked at before, and come first.
    first: Vec<u8>,
    taken: usize,
    read_end: bool,
    write_end: bool,
}

impl FlowStream {
    pub(crate) fn new(flow: Flow, first: Vec<u8>) -> Self {
        Self { flow: Some(flow), first, taken: 0, read_end: false, write_end: false }
    }
}

impl AsyncRead for FlowStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let rest = this.first.get(this.taken..).unwrap_or_default();
        if let Some(part) = rest.get(..rest.len().min(into.remaining())).filter(|part| !part.is_empty()) {
            into.put_slice(part);
            this.taken = this.taken.saturating_add(part.len());
            if this.taken >= this.first.len() {
                this.first = Vec::new();
                this.taken = 0;
            }
            return Poll::Ready(Ok(()));
        }
        let Some(flow) = this.flow.as_ref().filter(|_| !this.read_end && into.remaining() > 0) else {
            return Poll::Ready(Ok(()));
        };
        let got = ready!(flow.poll_receive(cx, |bytes| {
            let part = bytes.get(..bytes.len().min(into.remaining())).unwrap_or_default();
            into.put_slice(part);
            part.len()
        }))?;
        this.read_end = got == Some(0);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for FlowStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let Some(flow) = self.flow.as_ref().filter(|_| !self.write_end) else {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        };
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        flow.poll_send(cx, |room| {
            let count = room.len().min(bytes.len());
            if let (Some(room), Some(bytes)) = (room.get_mut(..count), bytes.get(..count)) {
                room.copy_from_slice(bytes);
            }
            count
        })
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.write_end {
            self.write_end = true;
            if let Some(flow) = &self.flow {
                flow.finish();
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for FlowStream {
    fn drop(&mut self) {
        // What the guest still sends after both sides said goodbye is thrown away with the flow; a stream that is dropped
        // without goodbye resets it.
        if let Some(flow) = self.flow.take().filter(|_| self.write_end) {
            let linger = Linger { flow: Some(flow), left: LINGER };
            if tokio::runtime::Handle::try_current().is_ok() && !self.read_end {
                tokio::spawn(linger.run());
            } else if let Some(flow) = linger.flow {
                flow.leave();
            }
        }
    }
}

/// Bytes that a guest may still send on a flow that nobody reads any more.
const LINGER: usize = 1 << 20;
/// And for how long.
const LINGER_TIME: std::time::Duration = std::time::Duration::from_secs(10);

/// A flow whose answer is complete: its last bytes reach the guest although it is still sending.
struct Linger {
    flow: Option<Flow>,
    left: usize,
}

impl Linger {
    async fn run(mut self) {
        let Some(flow) = self.flow.take() else { return };
        let drained = tokio::time::timeout(LINGER_TIME, async {
            loop {
                match std::future::poll_fn(|cx| flow.poll_receive(cx, <[u8]>::len)).await {
                    Ok(Some(0)) => return true,
                    Ok(Some(count)) if count < self.left => self.left = self.left.saturating_sub(count),
                    Ok(Some(_)) => {
                        Self::note_too_much(&flow);
                        return false;
                    }
                    _ => return false,
                }
            }
        });
        if drained.await.unwrap_or(false) {
            flow.leave();
        }
    }

    fn note_too_much(flow: &Flow) {
        let target = flow.shared.lock().flows.get(&flow.id).and_then(|slot| slot.target.clone());
        if let Some(target) = target {
            let what = target.what(Kind::Limit, Decision::Refused);
            flow.shared
                .record(what.text(format!("more than {LINGER} bytes came after the last answer: reset")));
        }
    }
}
