//! The first bytes of a flow, read ahead: TLS, HTTP/2 without TLS, or HTTP/1.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use crate::upstream::Stream;

/// RFC 9113 §3.4.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// A TLS record of type handshake (RFC 8446 §5.1).
const TLS_HANDSHAKE: u8 = 0x16;

/// What a flow speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// TLS.
    Tls,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// HTTP/1, or what its parser will refuse.
    Http1,
    /// Nothing came.
    Nothing,
}

/// Reads until it is clear what is spoken; the bytes are given again by the stream that is returned.
pub(crate) async fn sniff<S: Stream>(mut stream: S) -> io::Result<(Kind, Prefixed<S>)> {
    let mut read = BytesMut::with_capacity(PREFACE.len());
    let kind = loop {
        match kind_of(&read) {
            Some(kind) => break kind,
            None if stream.read_buf(&mut read).await? == 0 => {
                break if read.is_empty() { Kind::Nothing } else { Kind::Http1 };
            }
            None => {}
        }
    };
    Ok((kind, Prefixed { ahead: read.freeze(), inner: stream }))
}

fn kind_of(read: &[u8]) -> Option<Kind> {
    let first = read.first()?;
    if *first == TLS_HANDSHAKE {
        return Some(Kind::Tls);
    }
    if read.starts_with(PREFACE) {
        return Some(Kind::Http2);
    }
    if PREFACE.starts_with(read) { None } else { Some(Kind::Http1) }
}

/// A stream of which some bytes were read already.
pub(crate) struct Prefixed<S> {
    ahead: Bytes,
    inner: S,
}

impl<S: AsyncRead + Unpin> AsyncRead for Prefixed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.ahead.is_empty() {
            return Pin::new(&mut self.inner).poll_read(cx, out);
        }
        let count = self.ahead.len().min(out.remaining());
        let piece = self.ahead.split_to(count);
        out.put_slice(piece.chunk());
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Prefixed<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, data)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

/// When bytes last moved.
#[derive(Clone)]
pub(crate) struct Activity {
    begin: Instant,
    /// Milliseconds after `begin`. An atomic only because hyper wants its streams to be `Send`.
    last: Arc<AtomicU64>,
}

impl Activity {
    pub(crate) fn new() -> Self {
        Self { begin: Instant::now(), last: Arc::new(AtomicU64::new(0)) }
    }

    fn note(&self) {
        let now = u64::try_from(self.begin.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(now, Ordering::Relaxed);
    }

    /// Ends when nothing has moved for `limit`.
    pub(crate) async fn idle(&self, limit: std::time::Duration) {
        loop {
            let last = std::time::Duration::from_millis(self.last.load(Ordering::Relaxed));
            let Some(until) = last.checked_add(limit).and_then(|after| self.begin.checked_add(after)) else {
                return std::future::pending().await;
            };
            if Instant::now() >= until {
                return;
            }
            tokio::time::sleep_until(until).await;
        }
    }
}

/// A stream that notes when bytes move.
pub(crate) struct Watched<S> {
    pub(crate) inner: S,
    pub(crate) activity: Activity,
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.inner).poll_read(cx, out);
        if result.is_ready() {
            self.activity.note();
        }
        result
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.inner).poll_write(cx, data);
        if result.is_ready() {
            self.activity.note();
        }
        result
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.inner).poll_write_vectored(cx, data);
        if result.is_ready() {
            self.activity.note();
        }
        result
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;

    #[tokio::test]
    async fn each_kind_is_seen_byte_by_byte_and_nothing_is_lost() {
        for (sent, kind) in [
            (&b"\x16\x03\x01\x00\x05"[..], Kind::Tls),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nrest", Kind::Http2),
            (b"PRI * HTTP/1.1\r\n\r\n", Kind::Http1),
            (b"P", Kind::Http1),
            (b"POST / HTTP/1.1\r\n", Kind::Http1),
            (b"\x00", Kind::Http1),
            (b"", Kind::Nothing),
        ] {
            let (mut near, far) = tokio::io::duplex(1);
            let write = async move {
                near.write_all(sent).await.expect("open");
                drop(near);
            };
            let read = async {
                let (seen, mut stream) = sniff(far).await.expect("bytes");
                let mut all = Vec::new();
                stream.read_to_end(&mut all).await.expect("bytes");
                (seen, all)
            };
            let ((seen, all), ()) = tokio::join!(read, write);
            assert_eq!((seen, all.as_slice()), (kind, sent));
        }
    }
}
