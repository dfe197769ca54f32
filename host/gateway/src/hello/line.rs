//! The first line of what is not TLS: whether an HTTP server could read a request in it (RFC 9112 §3). Each byte is looked at once and
//! none is kept.

/// What a line is, as far as it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// It may become a request, and what comes of it is to be known before any of it goes on.
    Held,
    /// It may, but is hardly one: it goes on, and is looked at further.
    Passing,
    /// No HTTP server reads a request in it.
    Other,
    /// A request, or too much of one to wait for its end.
    Request,
    /// Some servers may read a request in it that others refuse.
    Unclear,
}

/// Methods that begin a request on any port: IANA's registry (RFC 9110 §16.1), HTTP/2's preface, UPnP's and those of caches.
const METHODS: [&[u8]; 47] = [
    b"GET",
    b"HEAD",
    b"POST",
    b"PUT",
    b"DELETE",
    b"CONNECT",
    b"OPTIONS",
    b"TRACE",
    b"PATCH",
    b"PRI",
    b"ACL",
    b"BASELINE-CONTROL",
    b"BIND",
    b"CHECKIN",
    b"CHECKOUT",
    b"COPY",
    b"LABEL",
    b"LINK",
    b"LOCK",
    b"MERGE",
    b"MKACTIVITY",
    b"MKCALENDAR",
    b"MKCOL",
    b"MKREDIRECTREF",
    b"MKWORKSPACE",
    b"MOVE",
    b"ORDERPATCH",
    b"PROPFIND",
    b"PROPPATCH",
    b"QUERY",
    b"REBIND",
    b"REPORT",
    b"SEARCH",
    b"UNBIND",
    b"UNCHECKOUT",
    b"UNLINK",
    b"UNLOCK",
    b"UPDATE",
    b"UPDATEREDIRECTREF",
    b"VERSION-CONTROL",
    b"M-SEARCH",
    b"NOTIFY",
    b"SUBSCRIBE",
    b"UNSUBSCRIBE",
    b"PURGE",
    b"BAN",
    b"REFRESH",
];
/// What a version begins with (RFC 9112 §2.3), compared without case.
const VERSION: &[u8] = b"HTTP/";
/// Bytes of a line that is waited for, empty lines before it included.
const LONGEST: usize = 16 << 10;
/// Bytes of a line that goes on while it is looked at: more than any server reads (Go's: 1 MiB).
const LONGEST_PASSING: usize = 2 << 20;

/// Where the next byte is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Before the first word. Servers overlook empty lines (RFC 9112 §2.2), Varnish all white space.
    Before,
    /// In the first word.
    Method,
    /// Behind it.
    Rest,
}

/// The first line of a connection.
#[derive(Clone, Debug)]
pub struct FirstLine {
    /// The port is HTTP's: whatever some server could read as a request counts as one.
    strict: bool,
    place: Place,
    /// Bytes so far.
    length: usize,
    /// The first word, as far as it may be one of [`METHODS`].
    method: Vec<u8>,
    known: bool,
    /// The first word is a token (RFC 9110 §5.6.2), without white space before it, and with a blank or a tab behind.
    plain: bool,
    /// There was a slash.
    slash: bool,
    /// Bytes of [`VERSION`] that the word begins with; `None` once that is decided.
    word: Option<usize>,
    /// The last word begins with it.
    version: bool,
    /// The last one before a CR did, which some could take for the line's end.
    version_before: bool,
    /// It goes on already.
    passing: bool,
}

impl Default for FirstLine {
    fn default() -> Self {
        Self::new(false)
    }
}

impl FirstLine {
    /// `strict`: for port 80.
    pub fn new(strict: bool) -> Self {
        Self {
            strict,
            place: Place::Before,
            length: 0,
            method: Vec::new(),
            known: true,
            plain: true,
            slash: false,
            word: None,
            version: false,
            version_before: false,
            passing: false,
        }
    }

    /// Looks at the next byte. After anything but [`Line::Held`] and [`Line::Passing`] it is asked no more.
    pub fn push(&mut self, byte: u8) -> Line {
        self.length = self.length.saturating_add(1);
        // No server takes a NUL anywhere, or another such character in a method; in a path old ones take some.
        if byte.is_ascii_control()
            && !is_space(byte)
            && (self.place != Place::Rest || self.passing && byte == 0)
        {
            return Line::Other;
        }
        match (self.place, is_space(byte)) {
            (Place::Before, true) => self.plain &= matches!(byte, b'\r' | b'\n'),
            (Place::Before | Place::Method, false) => {
                self.place = Place::Method;
                if !self.takes(byte) {
                    return Line::Other;
                }
            }
            (Place::Method, true) => {
                self.place = Place::Rest;
                self.plain &= matches!(byte, b' ' | b'\t');
                self.known &= METHODS.contains(&self.method.as_slice());
            }
            (Place::Rest, _) => {}
        }
        if self.place == Place::Rest {
            if byte == b'\n' {
                return self.end();
            }
            self.rest(byte);
        }
        self.so_far()
    }

    /// What it is if it ends here. The connection's end is one, too: some servers take it for a line's.
    pub fn end(&self) -> Line {
        let version = self.version || self.version_before;
        match (self.strict, version) {
            // Neither a path, a URL nor a version is without one.
            (true, _) if !self.slash => Line::Other,
            (true, true) if self.plain => Line::Request,
            (true, _) => Line::Unclear,
            (false, false) => Line::Other,
            (false, true) if self.plain && self.known && !self.passing => Line::Request,
            (false, true) => Line::Unclear,
        }
    }

    /// Takes a byte of the first word; `false`: it is of no request's.
    fn takes(&mut self, byte: u8) -> bool {
        if self.known {
            self.method.push(byte);
            self.known = METHODS.iter().any(|known| known.starts_with(&self.method));
        }
        self.slash |= byte == b'/';
        let token = byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        self.plain &= token;
        // Varnish takes others, too.
        token || self.strict
    }

    /// Takes a byte behind the first word.
    fn rest(&mut self, byte: u8) {
        self.slash |= byte == b'/';
        if is_space(byte) {
            self.version_before |= self.version && byte == b'\r';
            self.word = Some(0);
            return;
        }
        let Some(word) = self.word else { return };
        let next = word.saturating_add(1);
        let fits = VERSION.get(word).is_some_and(|wanted| byte.eq_ignore_ascii_case(wanted));
        self.version = fits && next == VERSION.len();
        self.word = Some(next).filter(|_| fits && !self.version);
    }

    fn so_far(&mut self) -> Line {
        if self.strict {
            return match self.length > LONGEST {
                false => Line::Held,
                // Whoever looks into it says so.
                true if self.plain && self.place == Place::Rest => Line::Request,
                true => Line::Unclear,
            };
        }
        self.passing |= !self.plain || !self.known;
        match (self.passing, self.place) {
            (false, _) if self.length <= LONGEST => Line::Held,
            (false, Place::Rest) => Line::Request,
            // Nothing else begins with so many empty lines, and some servers overlook any number.
            (false, _) => Line::Unclear,
            (true, _) if self.length <= LONGEST_PASSING => Line::Passing,
            (true, _) => Line::Other,
        }
    }
}

/// White space for some server: ASCII's, and what else Python splits at.
fn is_space(byte: u8) -> bool {
    matches!(byte, b'\t'..=b'\r' | 0x1c..=0x1f | b' ')
}
