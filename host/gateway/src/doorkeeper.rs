//! Who lets the guest's first bytes through on a flow to a name: TLS that asks for that name, HTTP in clear that is looked into, and
//! what is neither.

use crate::hello::line::{FirstLine, Line};
use crate::hello::retry::{Next, Retry};
use crate::hello::{Hello, Seen};
use crate::record::Kind;
use crate::relay::{Doorkeeper, Gate};

/// Lets a TLS connection pass that asks for the name of its flow, and what is no HTTP.
pub(crate) struct ServerName {
    name: String,
    /// Whether HTTP in clear is looked into.
    looks: bool,
    door: Door,
}

/// What is waited for.
enum Door {
    /// The first bytes.
    First(Box<Hello>),
    /// The end of a first line that goes on meanwhile.
    Line(FirstLine),
    /// The server's first message, and a second ClientHello if that asks for one.
    Again(Box<Retry>),
    /// Nothing more.
    Open,
}

impl ServerName {
    /// For a flow to this name and port.
    pub(crate) fn new(name: &str, port: u16, looks: bool) -> Self {
        Self { name: name.to_owned(), looks, door: Door::First(Box::new(Hello::on_port(port))) }
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
            Seen::Http if self.looks => Gate::Divert(hello.into_bytes()),
            Seen::Unclear if self.looks => Gate::Shut(Kind::Request, UNCLEAR.into()),
            Seen::Other if self.looks => match hello.line() {
                Some((line, rest)) => match self.line(line, rest) {
                    Gate::Pass(_) => Gate::Pass(hello.into_bytes()),
                    Gate::Open(_) => Gate::Open(hello.into_bytes()),
                    shut => shut,
                },
                None => Gate::Open(hello.into_bytes()),
            },
            Seen::Http | Seen::Unclear | Seen::Other => Gate::Open(hello.into_bytes()),
            Seen::Hello { encrypted: true, name } if self.is_same(name.as_deref()) => {
                Gate::Divert(hello.into_bytes())
            }
            Seen::Hello { name, .. } if self.is_same(name.as_deref()) => {
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
            Seen::Broken(why) => Gate::Shut(Kind::Tls, format!("TLS that begins wrong: {why}")),
        }
    }

    /// Looks on at a line whose bytes go on.
    fn line(&mut self, mut line: FirstLine, bytes: &[u8]) -> Gate {
        for byte in bytes {
            match line.push(*byte) {
                Line::Held | Line::Passing => {}
                Line::Other => return Gate::Open(bytes.to_vec()),
                Line::Request | Line::Unclear => return Gate::Shut(Kind::Request, UNCLEAR.into()),
            }
        }
        self.door = Door::Line(line);
        Gate::Pass(bytes.to_vec())
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
                if self.is_same(name.as_deref()) =>
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

    /// Whether the client asks for the flow's name.
    fn is_same(&self, asked: Option<&str>) -> bool {
        let asked = asked.and_then(|asked| policy::Name::parse(asked).ok());
        asked.is_some_and(|asked| asked.as_str() == self.name)
    }
}

/// Why what may be HTTP goes nowhere.
const UNCLEAR: &str = "a first line that some HTTP servers read as a request, and that cannot be looked into";

impl Doorkeeper for ServerName {
    fn look(&mut self, bytes: &[u8]) -> Gate {
        match std::mem::replace(&mut self.door, Door::Open) {
            Door::First(hello) => self.first(hello, bytes),
            Door::Line(line) => self.line(line, bytes),
            Door::Again(mut retry) => {
                let next = retry.push(bytes);
                self.again(retry, next, Vec::new())
            }
            Door::Open => Gate::Open(bytes.to_vec()),
        }
    }

    fn answered(&mut self, bytes: &[u8]) -> Gate {
        match std::mem::replace(&mut self.door, Door::Open) {
            Door::Again(mut retry) => {
                let next = retry.answered(bytes);
                self.again(retry, next, Vec::new())
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
            Door::Line(line) if line.end() != Line::Other => Gate::Shut(Kind::Request, UNCLEAR.into()),
            Door::Again(retry) if retry.is_cut() => {
                Gate::Shut(Kind::Tls, "TLS that goes on wrong: it ends in a record".into())
            }
            Door::Line(_) | Door::Again(_) | Door::Open => Gate::Open(Vec::new()),
        }
    }
}
