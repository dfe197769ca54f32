//! The bytes of an upstream connection: TCP's own, or TLS over it towards an upstream proxy with an `https://` URL.
//!
//! The relay works by readiness and tries ([`Wire::try_read`]), so that it copies straight between the stack's buffers and the
//! socket. TLS keeps bytes of its own in between: plaintext that was not taken yet counts as readiness, and what the
//! socket did not take yet is sent by [`Wire::poll_drain`].

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

/// An upstream connection.
#[derive(Debug)]
pub(crate) enum Wire {
    /// A socket.
    Plain(TcpStream),
    /// TLS to an upstream proxy.
    Sealed(Box<TlsStream<TcpStream>>),
}

impl Wire {
    pub(crate) fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Sealed(stream) => stream.get_ref().0,
        }
    }

    /// Ready when a read is worth a try.
    pub(crate) fn poll_read_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Self::Sealed(stream) = self
            // An error is what the next read says.
            && stream
                .get_mut()
                .1
                .process_new_packets()
                .is_ok_and(|state| state.plaintext_bytes_to_read() > 0 || state.peer_has_closed())
        {
            return Poll::Ready(Ok(()));
        }
        self.tcp().poll_read_ready(cx)
    }

    /// Ready when a write is worth a try.
    pub(crate) fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.tcp().poll_write_ready(cx)
    }

    /// Reads what is there. `WouldBlock`: the next [`Self::poll_read_ready`] leaves a waker.
    pub(crate) fn try_read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.try_read(room),
            Self::Sealed(stream) => {
                let mut into = ReadBuf::new(room);
                match Pin::new(stream).poll_read(&mut Context::from_waker(Waker::noop()), &mut into) {
                    // An end without a goodbye (RFC 8446 §6.1): what came through the proxy ends with TCP's.
                    Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(0),
                    Poll::Ready(done) => done.map(|()| into.filled().len()),
                    Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
                }
            }
        }
    }

    /// Writes what there is room for. `WouldBlock`: the next [`Self::poll_write_ready`] leaves a waker.
    pub(crate) fn try_write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.try_write(bytes),
            Self::Sealed(stream) => {
                match Pin::new(stream).poll_write(&mut Context::from_waker(Waker::noop()), bytes) {
                    Poll::Ready(done) => done,
                    Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
                }
            }
        }
    }

    /// Sends what was written and is still here, and the goodbye once `closing`. An error is what reading says, too.
    pub(crate) fn poll_drain(&mut self, cx: &mut Context<'_>, closing: bool) {
        if let Self::Sealed(stream) = self {
            let stream = Pin::new(stream);
            let _ = if closing { stream.poll_shutdown(cx) } else { stream.poll_flush(cx) };
        }
    }

    /// Makes the end a reset.
    pub(crate) fn set_zero_linger(&self) -> io::Result<()> {
        self.tcp().set_zero_linger()
    }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, into),
            Self::Sealed(stream) => Pin::new(stream).poll_read(cx, into),
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Sealed(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Self::Sealed(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Sealed(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Sealed(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
