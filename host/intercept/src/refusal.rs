//! Answers of our own: JSON for HTTP, a status in trailers' clothes for gRPC.

use http::header::{self, HeaderMap, HeaderValue};
use http::{Response, StatusCode};
use serde::Serialize;

use crate::body::{Payload, empty, full};

/// The body of an answer of ours. The field names are part of the product: agents read them.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Answer<'a> {
    /// `denied`, `mismatch`, `malformed`, `exfiltration`, `credential` or `upstream`.
    pub(crate) error: &'static str,
    pub(crate) by: &'static str,
    pub(crate) host: &'a str,
    pub(crate) port: u16,
    pub(crate) method: &'a str,
    pub(crate) path: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) rule: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) layer: Option<&'a str>,
    pub(crate) reason: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) remedy: Option<&'a str>,
}

/// Is the request a gRPC one, which reads no JSON?
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|value| {
        value.as_bytes().get(..16).is_some_and(|begin| begin.eq_ignore_ascii_case(b"application/grpc"))
    })
}

/// Our answer to a request that does not go on.
pub(crate) fn respond(status: StatusCode, grpc: bool, answer: &Answer<'_>) -> Response<Payload> {
    if grpc {
        return respond_grpc(status, answer);
    }
    let body = serde_json::to_vec_pretty(answer).unwrap_or_default();
    let mut response = Response::new(full(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Trailers-only, as the gRPC over HTTP/2 protocol has it: 200, the status among the headers, no body.
fn respond_grpc(status: StatusCode, answer: &Answer<'_>) -> Response<Payload> {
    // https://github.com/grpc/grpc/blob/master/doc/statuscodes.md
    let code = match status {
        StatusCode::FORBIDDEN | StatusCode::MISDIRECTED_REQUEST => "7",
        StatusCode::PAYLOAD_TOO_LARGE => "8",
        StatusCode::BAD_GATEWAY | StatusCode::GATEWAY_TIMEOUT => "14",
        _ => "3",
    };
    let mut message = String::new();
    let remedy = answer.remedy.map(|remedy| format!(" ({remedy})")).unwrap_or_default();
    for byte in format!("{}{remedy}", answer.reason).bytes() {
        // Percent-encoded but for 0x20 to 0x7e without %.
        if (0x20..0x7f).contains(&byte) && byte != b'%' {
            message.push(char::from(byte));
        } else {
            message.push_str(&format!("%{byte:02X}"));
        }
    }
    let mut response = Response::new(empty());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert("grpc-status", HeaderValue::from_static(code));
    if let Ok(message) = HeaderValue::try_from(message) {
        headers.insert("grpc-message", message);
    }
    response
}
