//! A request's head, before anything is done with it: is it for this flow's host, and do two servers read it alike?
//!
//! hyper has refused by now what is no HTTP: bare CR, folded lines, spaces before a colon, bad lengths, a last transfer coding
//! other than `chunked`. Where both a length and `chunked` were given it has dropped the length and closes after the
//! answer (RFC 9112 §6.1). What is left of the odd is refused here.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::uri::{Authority, PathAndQuery};
use http::{Method, Version};
use policy::CanonicalPath;

use crate::tls::{is_host_service, same_name};
use crate::{Flow, FlowHost};

/// Why a head is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HeadError {
    #[error("CONNECT is not served here: connect to the host itself")]
    Connect,
    #[error("{0}")]
    Malformed(&'static str),
    #[error("{0}")]
    Path(String),
    #[error("the request is for {asked}, the connection is to {flow}")]
    Mismatch { asked: String, flow: String },
    #[error("transfer codings other than chunked are not supported")]
    TransferCoding,
    #[error("only 100-continue can be expected")]
    Expectation,
}

impl HeadError {
    pub(crate) const fn status(&self) -> http::StatusCode {
        match self {
            Self::Connect => http::StatusCode::METHOD_NOT_ALLOWED,
            Self::Malformed(_) | Self::Path(_) => http::StatusCode::BAD_REQUEST,
            Self::Mismatch { .. } => http::StatusCode::MISDIRECTED_REQUEST,
            Self::TransferCoding => http::StatusCode::NOT_IMPLEMENTED,
            Self::Expectation => http::StatusCode::EXPECTATION_FAILED,
        }
    }
}

/// What was found in a head.
#[derive(Debug)]
pub(crate) struct Examined {
    /// The path that rules are asked about.
    pub(crate) path: CanonicalPath,
    /// Further methods and paths that some servers take a request for.
    pub(crate) other_methods: Vec<String>,
    pub(crate) other_paths: Vec<CanonicalPath>,
    /// `Upgrade: websocket` was asked for.
    pub(crate) websocket: bool,
    /// The guest sends a body whose length is not declared.
    pub(crate) chunked: bool,
}

/// Looks at the head of a request on `flow`, which is under TLS or not.
pub(crate) fn examine(flow: &Flow, secure: bool, head: &Parts) -> Result<Examined, HeadError> {
    if head.method == Method::CONNECT {
        return Err(HeadError::Connect);
    }
    agree(flow, secure, head)?;
    let chunked = is_chunked(&head.headers);
    if !chunked && head.headers.contains_key(header::TRANSFER_ENCODING) {
        return Err(HeadError::TransferCoding);
    }
    if head.headers.get_all(header::CONTENT_LENGTH).iter().count() > usize::from(!chunked) {
        return Err(HeadError::Malformed("more than one length of the body"));
    }
    if head
        .headers
        .get_all(header::EXPECT)
        .iter()
        .any(|value| !value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
    {
        return Err(HeadError::Expectation);
    }
    let path = canonical(head.uri.path())?;
    let (other_methods, other_paths) = overrides(&head.headers)?;
    Ok(Examined { path, other_methods, other_paths, websocket: wants_websocket(head), chunked })
}

/// Is `chunked` the one transfer coding?
pub(crate) fn is_chunked(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    let only = codings.next().filter(|_| codings.next().is_none());
    only.is_some_and(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked"))
}

fn canonical(path: &str) -> Result<CanonicalPath, HeadError> {
    if !path.starts_with('/') {
        return Err(HeadError::Malformed("the target is neither a path nor a URL of this host"));
    }
    CanonicalPath::parse(path).map_err(|error| HeadError::Path(error.to_string()))
}

/// The target's authority, the Host field and the flow must name the same host and port.
fn agree(flow: &Flow, secure: bool, head: &Parts) -> Result<(), HeadError> {
    let scheme = if secure { "https" } else { "http" };
    if let Some(other) = head.uri.scheme_str().filter(|named| *named != scheme) {
        return Err(HeadError::Mismatch { asked: format!("{other}:"), flow: format!("{scheme}://{flow}") });
    }
    let mut hosts = head.headers.get_all(header::HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(HeadError::Malformed("more than one Host field"));
    }
    if host.is_none() && head.uri.authority().is_none() && head.version != Version::HTTP_10 {
        return Err(HeadError::Malformed("no Host field"));
    }
    if let Some(authority) = head.uri.authority() {
        agree_authority(flow, secure, authority)?;
    }
    if let Some(host) = host {
        let authority = Authority::try_from(host.as_bytes())
            .map_err(|_| HeadError::Malformed("the Host field is no host"))?;
        agree_authority(flow, secure, &authority)?;
    }
    Ok(())
}

fn agree_authority(flow: &Flow, secure: bool, authority: &Authority) -> Result<(), HeadError> {
    if authority.as_str().contains('@') {
        return Err(HeadError::Malformed("a user in the authority"));
    }
    let asked = authority.host();
    // What stands behind the host is a port of digits or nothing: `Authority` takes "a:" and "a:99999" too.
    let port = match authority.as_str().get(asked.len()..) {
        Some("") => Some(default_port(secure)),
        Some(tail) => tail
            .strip_prefix(':')
            .filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))
            .and_then(|digits| digits.parse::<u16>().ok()),
        None => None,
    };
    let host = match &flow.host {
        FlowHost::Name(name) => same_name(name, asked),
        FlowHost::Address(address) => {
            let bare = asked.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(asked);
            bare.parse() == Ok(*address)
        }
    };
    if host && port == Some(flow.port) {
        return Ok(());
    }
    Err(HeadError::Mismatch { asked: authority.to_string(), flow: flow.to_string() })
}

const fn default_port(secure: bool) -> u16 {
    if secure { 443 } else { 80 }
}

/// The flow's authority as a Host field has it: without the scheme's own port.
pub(crate) fn authority(flow: &Flow, secure: bool) -> Option<Authority> {
    let host = match &flow.host {
        FlowHost::Name(name) => name.as_str().to_owned(),
        FlowHost::Address(std::net::IpAddr::V6(address)) => format!("[{address}]"),
        FlowHost::Address(address) => address.to_string(),
    };
    let text = if flow.port == default_port(secure) { host } else { format!("{host}:{}", flow.port) };
    Authority::try_from(text).ok()
}

/// What goes upstream as the host: as the guest wrote it if that is the flow's authority with or without its port (it
/// may be signed), else the flow's.
pub(crate) fn host_field(flow: &Flow, secure: bool, head: &Parts) -> Option<HeaderValue> {
    let ours = authority(flow, secure)?;
    let asked = head.uri.authority().map(Authority::as_str);
    let asked = asked.or_else(|| head.headers.get(header::HOST).and_then(|host| host.to_str().ok()));
    let with_port = |text: &str| text.strip_suffix(&format!(":{}", flow.port)) == Some(ours.as_str());
    let is_alias = |text: &str| {
        let asked = Authority::try_from(text).ok();
        matches!((&flow.host, asked), (FlowHost::Name(name), Some(asked)) if is_host_service(name, asked.host()))
    };
    match asked {
        Some(text) if with_port(text) || is_alias(text) => HeaderValue::from_str(text).ok(),
        _ => HeaderValue::from_str(ours.as_str()).ok(),
    }
}

/// What a field takes the place of in the request line, where frameworks believe it.
pub(crate) enum Overrides {
    Method,
    Path,
}

impl Overrides {
    pub(crate) fn of(name: &HeaderName) -> Option<Self> {
        const METHOD: [&str; 3] = ["x-http-method-override", "x-http-method", "x-method-override"];
        const PATH: [&str; 2] = ["x-original-url", "x-rewrite-url"];
        let is_one = |known: &[&str]| known.iter().any(|known| vault::is_read_as(name, known));
        is_one(&METHOD).then_some(Self::Method).or_else(|| is_one(&PATH).then_some(Self::Path))
    }
}

/// Methods and paths that stand in fields instead of the request line: they must be allowed as well.
fn overrides(headers: &HeaderMap) -> Result<(Vec<String>, Vec<CanonicalPath>), HeadError> {
    let mut methods = Vec::new();
    let mut paths = Vec::new();
    for (name, value) in headers {
        match Overrides::of(name) {
            Some(Overrides::Method) => {
                let method = value.to_str().ok().map(|text| text.trim().to_ascii_uppercase());
                let method = method.filter(|text| Method::from_bytes(text.as_bytes()).is_ok());
                methods.push(method.ok_or(HeadError::Malformed("a method in a field that is none"))?);
            }
            Some(Overrides::Path) => {
                let text =
                    value.to_str().map_err(|_| HeadError::Malformed("a path in a field that is none"))?;
                paths.push(canonical(text)?);
            }
            None => {}
        }
    }
    Ok((methods, paths))
}

fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|text| text.split(','))
        .map(str::trim)
        .filter(|token| !token.is_empty())
}

/// RFC 6455 §4.1: GET, HTTP/1.1, `Connection: upgrade`, `Upgrade: websocket` and nothing else.
fn wants_websocket(head: &Parts) -> bool {
    head.method == Method::GET
        && head.version == Version::HTTP_11
        && tokens(&head.headers, &header::CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade"))
        && is_websocket(&head.headers)
}

/// Is `Upgrade` exactly `websocket`?
pub(crate) fn is_websocket(headers: &HeaderMap) -> bool {
    let mut upgrades = tokens(headers, &header::UPGRADE);
    upgrades.next().is_some_and(|token| token.eq_ignore_ascii_case("websocket")) && upgrades.next().is_none()
}

/// Takes out the fields that are for one connection alone (RFC 9110 §7.6.1), those that `Connection` names too.
pub(crate) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = tokens(headers, &header::CONNECTION)
        .filter_map(|token| HeaderName::from_bytes(token.as_bytes()).ok())
        // A length or a host is no field of a connection: taking it out would change how the message is read.
        .filter(|name| name != header::CONTENT_LENGTH && name != header::HOST && name != header::TRAILER)
        .collect();
    // `TE: trailers` says that the guest takes trailers, which we pass on (gRPC needs it).
    let trailers = tokens(headers, &header::TE).any(|token| token.eq_ignore_ascii_case("trailers"));
    for name in named {
        headers.remove(name);
    }
    for name in [
        header::CONNECTION,
        header::TE,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
        header::PROXY_AUTHORIZATION,
        header::PROXY_AUTHENTICATE,
        HeaderName::from_static("keep-alive"),
        HeaderName::from_static("proxy-connection"),
        HeaderName::from_static("http2-settings"),
    ] {
        headers.remove(name);
    }
    if trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
}

/// The target without scheme and authority.
pub(crate) fn origin_form(head: &Parts) -> http::Uri {
    let path = head.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    http::Uri::from(path)
}
