//! WebSocket: after both sides agreed to it, bytes go both ways until one side ends.

use std::io::ErrorKind;
use std::rc::Rc;

use http::header;
use http::{Response, StatusCode};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use crate::body::{Exchange, Part, Payload, empty};
use crate::frames::Unmask;
use crate::head::is_websocket;

/// Buffer of one direction.
const BUFFER: usize = 64 * 1024;

/// The guest's half of an upgrade, and what watches what it says.
pub(crate) struct Wanted {
    pub(crate) guest: OnUpgrade,
    pub(crate) watch: vault::Watch,
}

/// Is this upstream's consent to a WebSocket (RFC 6455 §4.2.2)?
pub(crate) fn is_consent<B>(response: &Response<B>) -> bool {
    response.status() == StatusCode::SWITCHING_PROTOCOLS && is_websocket(response.headers())
}

/// The answer that the guest gets with the consent.
pub(crate) fn consent(mut head: http::response::Parts) -> Response<Payload> {
    head.headers.insert(header::CONNECTION, http::HeaderValue::from_static("upgrade"));
    head.headers.insert(header::UPGRADE, http::HeaderValue::from_static("websocket"));
    Response::from_parts(head, empty())
}

/// Carries bytes until either side is done, or the rules have changed and refuse it now.
pub(crate) async fn tunnel(wanted: Wanted, upstream: OnUpgrade, exchange: Rc<Exchange>) {
    tokio::select! {
        biased;
        // In the middle of any message there is no place for a word of ours: both connections end.
        _ = exchange.ended(Part::Head) => {}
        () = carry(wanted, upstream, &exchange) => {}
    }
}

async fn carry(wanted: Wanted, upstream: OnUpgrade, exchange: &Exchange) {
    let Wanted { guest, watch } = wanted;
    let (guest, upstream) = match tokio::try_join!(guest, upstream) {
        Ok(both) => both,
        Err(error) => {
            exchange.note(|record| record.detail = Some(format!("the upgrade failed: {error}")));
            return;
        }
    };
    let (mut guest_read, mut guest_write) = tokio::io::split(TokioIo::new(guest));
    let (mut host_read, mut host_write) = tokio::io::split(TokioIo::new(upstream));
    let mut unmask = Unmask::new(watch);
    let up = pump(&mut guest_read, &mut host_write, |bytes| {
        exchange.note(|record| record.sent = record.sent.saturating_add(bytes.len() as u64));
        unmask.feed(bytes).map_err(|refusal| exchange.refuse(refusal))
    });
    let down = pump(&mut host_read, &mut guest_write, |bytes| {
        exchange.note(|record| record.received = record.received.saturating_add(bytes.len() as u64));
        Ok(())
    });
    // A side that ends its half is followed by the other, as TCP would; an error ends both.
    if let Err(error) = tokio::try_join!(up, down) {
        exchange.note(|record| {
            record.detail.get_or_insert_with(|| format!("the WebSocket broke off: {error}"));
        });
    }
}

async fn pump<R, W>(
    from: &mut R,
    to: &mut W,
    mut see: impl FnMut(&[u8]) -> Result<(), crate::body::BodyError>,
) -> Result<(), crate::body::BodyError>
where
    R: tokio::io::AsyncRead + Unpin,
    W: tokio::io::AsyncWrite + Unpin,
{
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut buffer = vec![0; BUFFER];
    loop {
        let count = match from.read(&mut buffer).await {
            // Without a word of TLS's about its end, as many clients and servers do: what came before still goes on. WebSocket
            // has a closing handshake of its own, by which the other side knows whether something is missing.
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => 0,
            read => read?,
        };
        let Some(bytes) = buffer.get(..count).filter(|bytes| !bytes.is_empty()) else { break };
        see(bytes)?;
        to.write_all(bytes).await?;
        to.flush().await?;
    }
    Ok(to.shutdown().await?)
}
