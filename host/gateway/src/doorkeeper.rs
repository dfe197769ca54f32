//! Who lets the guest's first bytes through on a flow to a name: TLS that asks for that name, HTTP in clear that is looked into, and
//! what is neither, as long as neither comes behind it. TLS that PostgreSQL's server was asked for is followed.

use policy::Name;

use crate::hello::line::{FirstLine, Line};
use crate::hello::postgres::{Asks, Request};
use crate::hello::records::{Found, Records};
use crate::hello::retry::{Next, Retry};
use crate::hello::{ALERT, Hello, LONGEST, Seen};
use crate::record::Kind;
use crate::relay::{Doorkeeper, Gate};

/// Lets a TLS connection pass that asks for the name of its flow, and what is no HTTP.
pub(crate) struct ServerName {
    name: Name,
    /// Whether HTTP in clear is looked into.
    looks: bool,
    /// The server has said something.
    spoken: bool,
    /// It said yes to PostgreSQL's request: TLS follows, whose clients need not ask for a name (libpq before 14 asks for none).
    agreed: bool,
    door: Door,
}

/// What may come of that which is no TLS so far.
struct Clear {
    /// The end of a first line, which may make it a request.
    line: Option<FirstLine>,
    /// A ClientHello behind what some servers overlook.
    records: Option<Records>,
    /// A request to begin TLS.
    request: Option<Request>,
}

/// What is waited for.
enum Door {
    /// The first bytes.
    First(Box<Hello>),
    /// What may come of that which goes on meanwhile, and is no TLS so far.
    Clear(Box<Clear>),
    /// The server's answer to PostgreSQL's request. These of the guest's bytes wait for it.
    Asked(Vec<u8>),
    /// The server's first message, and a second ClientHello if that asks for one.
    Again(Box<Retry>),
    /// Nothing more.
    Open,
}

impl ServerName {
    /// For a flow to this name and port.
    pub(crate) fn new(name: &Name, port: u16, looks: bool) -> Self {
        Self {
            name: name.clone(),
            looks,
            spoken: false,
            agreed: false,
            door: Door::First(Box::new(Hello::on_port(port))),
        }
    }

    fn first(&mut self, mut hello: Box<Hello>, bytes: &[u8]) -> Gate {
        let seen = hello.push(bytes);
        self.judge(seen, hello)
    }

    fn judge(&mut self, seen: Seen, hello: Box<Hello>) -> Gate {
        match seen {
            Seen::More => {
                self.door = Door::First(hello);
                Gate::Wait
            }
            Seen::Http | Seen::Unclear | Seen::Other if self.agreed => Gate::Shut(
                Kind::Tls,
                "what is no TLS, behind the server's yes to PostgreSQL's request for it".into(),
            ),
            Seen::Http if self.looks => Gate::Divert(hello.into_bytes()),
            Seen::Unclear if self.looks => Gate::Shut(Kind::Request, UNCLEAR.into()),
            Seen::Http | Seen::Unclear | Seen::Other => {
                let (records, behind) = hello.records();
                let (line, rest) = hello.line().filter(|_| self.looks).unzip();
                // A server of TLS says nothing before it has a ClientHello, and PostgreSQL's nothing before it has a request.
                let (records, request) = match self.spoken {
                    true => (None, None),
                    false => (Some(records), Some(Request::default())),
                };
                let clear = Box::new(Clear { line, records, request });
                match self.clear(clear, hello.bytes(), rest.unwrap_or_default(), behind) {
                    Ok(()) => self.passing(hello.into_bytes()),
                    Err(shut) => shut,
                }
            }
            // Who looks into such a one must be there from the connection's beginning.
            Seen::Hello { encrypted: true, .. } if self.agreed => Gate::Shut(
                Kind::Tls,
                "an encrypted ClientHello behind PostgreSQL's request, which cannot be looked into".into(),
            ),
            Seen::Hello { encrypted: true, name } if self.is_same(name.as_deref()) => {
                Gate::Divert(hello.into_bytes())
            }
            Seen::Hello { name, .. } if self.may_ask(name.as_deref()) => {
                let end = hello.end();
                let mut first = hello.into_bytes();
                let behind = first.split_off(end.min(first.len()));
                let mut retry = Box::new(Retry::new());
                let next = retry.push(&behind);
                self.again(retry, next, first)
            }
            Seen::Hello { name: Some(other), .. } => Gate::Shut(
                Kind::Tls,
                format!("TLS asks for the server {other}, which is not the name of the flow"),
            ),
            Seen::Hello { name: None, .. } => {
                Gate::Shut(Kind::Tls, "TLS without the server's name (SNI)".into())
            }
            Seen::Broken(why) => broken(&why),
        }
    }

    /// Looks on at what goes on: all new bytes, those that the line was not asked about yet, and those that the records were not
    /// followed through.
    fn clear(&mut self, mut clear: Box<Clear>, new: &[u8], line: &[u8], records: &[u8]) -> Result<(), Gate> {
        match clear.request.as_mut().map(|request| request.push(new)) {
            Some(Asks::Whole(end)) => return self.asked(new.get(end..).unwrap_or_default().to_vec()),
            Some(Asks::Long) => {
                let why = "PostgreSQL's request for TLS with another length than its own";
                return Err(Gate::Shut(Kind::Tls, why.into()));
            }
            Some(Asks::Nothing) => clear.request = None,
            Some(Asks::Begun) | None => {}
        }
        for byte in line {
            match clear.line.as_mut().map(|line| line.push(*byte)) {
                Some(Line::Held | Line::Passing) => {}
                Some(Line::Other) => clear.line = None,
                Some(Line::Request | Line::Unclear) => {
                    return Err(Gate::Shut(Kind::Request, UNCLEAR.into()));
                }
                None => break,
            }
        }
        match clear.records.as_mut().map(|follow| follow.push(records)) {
            Some(Found::Hello(why)) => return Err(broken(why)),
            Some(Found::Over) => clear.records = None,
            Some(Found::Begun | Found::Nothing) | None => {}
        }
        if clear.line.is_some() || clear.records.is_some() || clear.request.is_some() {
            self.door = Door::Clear(clear);
        }
        Ok(())
    }

    /// Lets bytes go on that were looked at, but for those that wait.
    fn passing(&self, mut bytes: Vec<u8>) -> Gate {
        match &self.door {
            Door::Open => return Gate::Open(bytes),
            Door::Asked(waiting) => bytes.truncate(bytes.len().saturating_sub(waiting.len())),
            _ => {}
        }
        if bytes.is_empty() { Gate::Wait } else { Gate::Pass(bytes) }
    }

    /// Keeps what comes behind PostgreSQL's request.
    fn asked(&mut self, waiting: Vec<u8>) -> Result<(), Gate> {
        if waiting.len() > LONGEST {
            let why = "too much before the server's answer to PostgreSQL's request for TLS";
            return Err(Gate::Shut(Kind::Tls, why.into()));
        }
        self.door = Door::Asked(waiting);
        Ok(())
    }

    /// The server has answered PostgreSQL's request.
    fn told(&mut self, answer: &[u8], waiting: Vec<u8>) -> Gate {
        match *answer {
            [b'S', ..] => {
                self.agreed = true;
                self.first(Box::default(), &waiting)
            }
            // The other request may follow.
            [b'N'] => {
                let clear = Clear { line: None, records: None, request: Some(Request::default()) };
                match self.clear(Box::new(clear), &waiting, &[], &[]) {
                    Ok(()) => self.passing(waiting),
                    Err(shut) => shut,
                }
            }
            _ => Gate::Open(waiting),
        }
    }

    /// Goes on behind a ClientHello, after these bytes.
    fn again(&mut self, retry: Box<Retry>, next: Next, mut before: Vec<u8>) -> Gate {
        match next {
            Next::Pass(mut bytes) => {
                before.append(&mut bytes);
                self.door = Door::Again(retry);
                if before.is_empty() { Gate::Wait } else { Gate::Pass(before) }
            }
            Next::Free(mut bytes) => {
                before.append(&mut bytes);
                Gate::Open(before)
            }
            Next::Again(Seen::Hello { name, encrypted: false }, mut bytes)
                if self.may_ask(name.as_deref()) =>
            {
                before.append(&mut bytes);
                Gate::Open(before)
            }
            Next::Again(Seen::Hello { name: Some(other), .. }, _) if !self.is_same(Some(&other)) => {
                Gate::Shut(Kind::Tls, format!("TLS asks for the server {other} when it is asked once more"))
            }
            Next::Again(..) => Gate::Shut(Kind::Tls, "TLS whose second ClientHello cannot be judged".into()),
            Next::Broken(why) => Gate::Shut(Kind::Tls, format!("TLS that goes on wrong: {why}")),
        }
    }

    /// Whether TLS for this name may pass.
    fn may_ask(&self, asked: Option<&str>) -> bool {
        self.is_same(asked) || self.agreed && asked.is_none()
    }

    /// Whether the client asks for the flow's name.
    fn is_same(&self, asked: Option<&str>) -> bool {
        let asked = asked.and_then(|asked| Name::parse(asked).ok());
        asked.is_some_and(|asked| asked.is_same_host(&self.name))
    }
}

/// Why what may be HTTP goes nowhere.
const UNCLEAR: &str = "a first line that some HTTP servers read as a request, and that cannot be looked into";

fn broken(why: &str) -> Gate {
    Gate::Shut(Kind::Tls, format!("TLS that begins wrong: {why}"))
}

impl Doorkeeper for ServerName {
    fn look(&mut self, bytes: &[u8]) -> Gate {
        match std::mem::replace(&mut self.door, Door::Open) {
            Door::First(hello) => self.first(hello, bytes),
            Door::Clear(clear) => match self.clear(clear, bytes, bytes, bytes) {
                Ok(()) if matches!(self.door, Door::Clear(_)) => Gate::Through,
                Ok(()) => self.passing(bytes.to_vec()),
                Err(shut) => shut,
            },
            Door::Asked(mut waiting) => {
                waiting.extend_from_slice(bytes);
                self.asked(waiting).err().unwrap_or(Gate::Wait)
            }
            Door::Again(mut retry) => {
                let next = retry.push(bytes);
                self.again(retry, next, Vec::new())
            }
            Door::Open => Gate::Open(bytes.to_vec()),
        }
    }

    fn answered(&mut self, bytes: &[u8]) -> Gate {
        // An alert need not be the last word.
        let speaks = bytes.first().is_some_and(|first| *first != ALERT);
        self.spoken |= speaks;
        match std::mem::replace(&mut self.door, Door::Open) {
            Door::Again(mut retry) => {
                let next = retry.answered(bytes);
                self.again(retry, next, Vec::new())
            }
            Door::Asked(waiting) if speaks => self.told(bytes, waiting),
            Door::Clear(mut clear) if self.spoken => {
                (clear.records, clear.request) = (None, None);
                // Nothing waits here.
                if clear.line.is_none() {
                    return Gate::Open(Vec::new());
                }
                self.door = Door::Clear(clear);
                Gate::Wait
            }
            door => {
                self.door = door;
                Gate::Wait
            }
        }
    }

    fn over(&mut self) -> Gate {
        match std::mem::replace(&mut self.door, Door::Open) {
            Door::First(hello) => match hello.over() {
                Seen::Other => Gate::Open(hello.into_bytes()),
                seen => self.judge(seen, hello),
            },
            Door::Clear(clear) if clear.line.as_ref().is_some_and(|line| line.end() != Line::Other) => {
                Gate::Shut(Kind::Request, UNCLEAR.into())
            }
            Door::Again(retry) if retry.is_cut() => {
                Gate::Shut(Kind::Tls, "TLS that goes on wrong: it ends in a record".into())
            }
            Door::Asked(waiting) if !waiting.is_empty() => Gate::Shut(
                Kind::Tls,
                "what ends before the server's answer to PostgreSQL's request for TLS".into(),
            ),
            Door::Clear(_) | Door::Asked(_) | Door::Again(_) | Door::Open => Gate::Open(Vec::new()),
        }
    }
}
